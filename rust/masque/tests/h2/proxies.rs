//! Through HTTP proxies: a real forwarding one, and ones that refuse, lie or die.

use std::{net::SocketAddr, sync::Arc};

use anyreach_masque::{
    carrier::{CarrierError, CarrierKind},
    h2::{Route, dial},
    https::{ClientTrust, Proxy, ProxyUrlError, ServerCertificate},
};
use anyreach_quic::Identity;
use base64::{Engine, engine::general_purpose::STANDARD};
use tokio::{
    io::{AsyncBufReadExt, AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, duplex},
    net::{TcpListener, TcpStream},
    sync::mpsc,
};
use tokio_rustls::TlsAcceptor;

use crate::support::{Recorder, Relay, only, request, within};

/// What the proxy was asked: request line and fields.
type Asked = mpsc::UnboundedReceiver<Vec<String>>;

/// A forwarding proxy, over TLS if there is a certificate, that wants these credentials.
async fn forwarding_proxy(
    credentials: Option<&'static str>,
    tls: Option<TlsAcceptor>,
) -> (SocketAddr, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (tell, asked) = mpsc::unbounded_channel();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (tls, tell) = (tls.clone(), tell.clone());
            tokio::spawn(async move {
                match tls {
                    Some(tls) => {
                        let stream = tls.accept(stream).await.unwrap();
                        forward(stream, credentials, tell).await;
                    }
                    None => forward(stream, credentials, tell).await,
                }
            });
        }
    });
    (addr, asked)
}

async fn forward<S>(stream: S, credentials: Option<&str>, tell: mpsc::UnboundedSender<Vec<String>>)
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut stream = BufReader::new(stream);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        stream.read_line(&mut line).await.unwrap();
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_owned()),
        }
    }
    let target = lines[0].split(' ').nth(1).unwrap().to_owned();
    let wanted =
        credentials.map(|text| format!("Proxy-Authorization: Basic {}", STANDARD.encode(text)));
    let allowed = wanted.is_none_or(|wanted| lines.contains(&wanted));
    tell.send(lines).unwrap();
    if !allowed {
        let answer = b"HTTP/1.1 407 Proxy Authentication Required\r\n\
            Proxy-Authenticate: Negotiate, Basic realm=\"a, b\"\r\n\
            Content-Length: 5\r\n\r\nsorry";
        stream.write_all(answer).await.unwrap();
        return;
    }
    match TcpStream::connect(&target).await {
        Ok(mut far) => {
            stream
                .write_all(b"HTTP/1.1 200 Connection established\r\n\r\n")
                .await
                .unwrap();
            let _ = tokio::io::copy_bidirectional(&mut stream, &mut far).await;
        }
        Err(_) => {
            stream
                .write_all(b"HTTP/1.1 502 Bad Gateway\r\n\r\n")
                .await
                .unwrap();
        }
    }
}

fn route(url: &str) -> Route {
    Route::Proxy {
        proxy: url.parse().unwrap(),
        tls: None,
    }
}

#[tokio::test]
async fn a_tunnel_through_a_proxy() {
    let relay = Relay::start().await;
    let (proxy, mut asked) = forwarding_proxy(None, None).await;
    let node = Identity::generate().unwrap();
    let route = route(&format!("http://{proxy}"));
    let dialed = within(dial(&relay.target(&node), &route)).await.unwrap();
    assert_eq!(dialed.address, Some(proxy));
    assert_eq!(dialed.carrier.kind(), CarrierKind::H2Proxy);
    assert_eq!(dialed.carrier.peer_id(), Some(relay.peer_id));
    let input = Recorder::new();
    let (_, out) = within(dialed.carrier.open(request("/tunnel"), input.clone()))
        .await
        .unwrap();
    let opened = relay.service.opened(0).await;
    assert_eq!(opened.client.peer_id, Some(node.peer_id()));
    out.send_datagram(b"", b"up").unwrap();
    opened.out.send_datagram(b"", b"down").unwrap();
    opened.input.until(|heard| heard.datagrams == ["up"]).await;
    input.until(|heard| heard.datagrams == ["down"]).await;
    let lines = asked.recv().await.unwrap();
    assert_eq!(lines[0], format!("CONNECT {} HTTP/1.1", relay.addr));
    assert_eq!(lines[1], format!("Host: {}", relay.addr));
    assert_eq!(lines.len(), 2);
}

#[tokio::test]
async fn a_proxy_that_wants_a_password() {
    let relay = Relay::start().await;
    let (proxy, mut asked) = forwarding_proxy(Some("us er:p@ss:w%"), None).await;
    let node = Identity::generate().unwrap();
    let target = relay.target(&node);
    let good = route(&format!("http://us%20er:p%40ss%3Aw%25@{proxy}"));
    within(dial(&target, &good)).await.unwrap();
    assert_eq!(asked.recv().await.unwrap().len(), 3);

    let none = route(&format!("http://{proxy}"));
    let attempt = only(within(dial(&target, &none)).await.unwrap_err());
    assert_eq!(attempt.reason, "proxy-auth");
    assert_eq!(attempt.carrier, CarrierKind::H2Proxy);
    assert!(
        attempt.detail.contains("Negotiate, Basic"),
        "{}",
        attempt.detail
    );
    assert!(attempt.detail.contains("no credentials were given"));
    let wrong = route(&format!("http://user:wrong@{proxy}"));
    let attempt = only(within(dial(&target, &wrong)).await.unwrap_err());
    assert_eq!(attempt.reason, "proxy-auth");
    assert!(attempt.detail.contains("did not accept"));
    assert!(!attempt.detail.contains("wrong"), "passwords are not shown");
}

#[tokio::test]
async fn a_proxy_over_tls() {
    let relay = Relay::start().await;
    let certificate = ServerCertificate::self_signed(["localhost".to_owned()]).unwrap();
    let path = std::env::temp_dir().join(format!("anyreach-h2-proxy-{}.pem", std::process::id()));
    std::fs::write(&path, certificate.to_pem()).unwrap();
    let trust = ClientTrust::only(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    let mut tls = (*certificate.tcp_config(false).unwrap()).clone();
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let (addr, _asked) = forwarding_proxy(None, Some(TlsAcceptor::from(Arc::new(tls)))).await;
    let proxy: Proxy = format!("https://localhost:{}", addr.port())
        .parse()
        .unwrap();
    let node = Identity::generate().unwrap();
    let route = Route::Proxy {
        proxy: proxy.clone(),
        tls: Some(trust.proxy_config(false).unwrap()),
    };
    let carrier = within(dial(&relay.target(&node), &route))
        .await
        .unwrap()
        .carrier;
    within(carrier.open(request("/tunnel"), Recorder::new()))
        .await
        .unwrap();
    let route = Route::Proxy { proxy, tls: None };
    let attempts = within(dial(&relay.target(&node), &route))
        .await
        .unwrap_err();
    assert!(attempts.iter().any(|attempt| attempt.reason == "internal"));
}

#[tokio::test]
async fn what_the_proxy_cannot_reach_and_proxies_that_are_not_there() {
    let relay = Relay::start().await;
    let (proxy, _asked) = forwarding_proxy(None, None).await;
    let node = Identity::generate().unwrap();
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = gone.local_addr().unwrap();
    drop(gone);
    let mut target = relay.target(&node);
    target.port = refused.port();
    let attempt = only(
        within(dial(&target, &route(&format!("http://{proxy}"))))
            .await
            .unwrap_err(),
    );
    assert_eq!(attempt.reason, "proxy-refused");
    assert!(
        attempt.detail.contains("502 Bad Gateway"),
        "{}",
        attempt.detail
    );
    let attempt = only(
        within(dial(&target, &route(&format!("http://{refused}"))))
            .await
            .unwrap_err(),
    );
    assert_eq!(attempt.reason, "refused");
    let nowhere = route("http://proxy.invalid:3128");
    let attempt = only(within(dial(&target, &nowhere)).await.unwrap_err());
    assert_eq!((attempt.reason, attempt.address), ("unreachable", None));
    assert!(attempt.detail.contains("http://proxy.invalid:3128"));
}

/// What becomes of a proxy that says this, in pieces of so many bytes, and then closes.
async fn told(url: &str, answer: &[u8], piece: usize) -> Result<String, CarrierError> {
    let proxy: Proxy = url.parse().unwrap();
    let (near, mut far) = duplex(1 << 20);
    let answer = answer.to_vec();
    let server = tokio::spawn(async move {
        let mut request = vec![0; 4096];
        let _ = far.read(&mut request).await;
        for piece in answer.chunks(piece) {
            if far.write_all(piece).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
    });
    let mut stream = within(proxy.connect(near, "2001:db8::1", 443)).await?;
    server.await.unwrap();
    let mut rest = String::new();
    stream.read_to_string(&mut rest).await.unwrap();
    Ok(rest)
}

const PLAIN: &str = "http://proxy.test:3128";

#[tokio::test]
async fn bytes_after_the_head_belong_to_the_connection() {
    for piece in [1, 7, 1000] {
        for head in [
            "HTTP/1.1 200 OK\r\n\r\n",
            "HTTP/1.0 200\r\n\r\n",
            "HTTP/1.1 299 Fine\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nA: b\r\n\r\nHTTP/1.1 200 OK\r\n\r\n",
        ] {
            let rest = told(PLAIN, format!("{head}first bytes").as_bytes(), piece).await;
            assert_eq!(rest.unwrap(), "first bytes", "{head:?} by {piece}");
        }
    }
}

#[tokio::test]
async fn every_refusal_has_its_words() {
    let large = format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(16 << 10));
    let endless = "HTTP/1.1 100 Continue\r\n\r\n".repeat(1000);
    let with = "http://me:secret@proxy.test:3128";
    let no_auth = "HTTP/1.1 407 Nope\r\n\r\n";
    let ntlm = "HTTP/1.1 407 Nope\r\nProxy-Authenticate: NTLM\r\nproxy-authenticate: Digest a=\"x\", b=c\r\n\r\n";
    for (url, answer, reason, words) in [
        (
            PLAIN,
            "HTTP/1.1 403 Forbidden by policy\r\n\r\n",
            "proxy-refused",
            "[2001:db8::1]:443: 403 Forbidden by policy",
        ),
        (
            PLAIN,
            "HTTP/1.1 405 Method Not Allowed\r\n\r\n",
            "proxy-refused",
            "405 Method Not Allowed",
        ),
        (PLAIN, "HTTP/1.1 502\r\n\r\n", "proxy-refused", ": 502"),
        (
            PLAIN,
            "HTTP/1.1 302 Found\r\nLocation: http://login\r\n\r\n",
            "proxy-refused",
            "302 Found",
        ),
        (
            PLAIN,
            "HTTP/1.1 101 Switching Protocols\r\n\r\n",
            "proxy-refused",
            "no HTTP proxy",
        ),
        (PLAIN, no_auth, "proxy-auth", "it offers no scheme"),
        (
            PLAIN,
            ntlm,
            "proxy-auth",
            "it offers NTLM, Digest): no credentials were given, and Basic",
        ),
        (
            with,
            ntlm,
            "proxy-auth",
            "sent as Basic, which it does not take",
        ),
        (
            PLAIN,
            "SSH-2.0-OpenSSH_9.9\r\n",
            "proxy-refused",
            "no HTTP proxy",
        ),
        (
            PLAIN,
            "HTTP/2 200 OK\r\n\r\n",
            "proxy-refused",
            "no HTTP proxy",
        ),
        (
            PLAIN,
            "HTTP/1.1 abc\r\n\r\n",
            "proxy-refused",
            "no HTTP proxy",
        ),
        (
            PLAIN,
            "HTTP/1.1 099 Odd\r\n\r\n",
            "proxy-refused",
            "no HTTP proxy",
        ),
        (PLAIN, "", "closed", "without an answer"),
        (
            PLAIN,
            "HTTP/1.1 200 OK\r\nA:",
            "closed",
            "without an answer",
        ),
        (PLAIN, &large, "proxy-refused", "more than 16384 bytes"),
        (PLAIN, &endless, "proxy-refused", "more than 16384 bytes"),
    ] {
        let error = told(url, answer.as_bytes(), 1000).await.unwrap_err();
        let start: String = answer.chars().take(40).collect();
        assert_eq!(error.reason, reason, "{start:?}: {error}");
        assert!(error.detail.contains(words), "{start:?}: {error}");
        assert!(error.detail.contains("http://proxy.test:3128"), "{error}");
        assert!(!error.detail.contains("secret"), "{error}");
    }
}

#[tokio::test]
async fn a_head_at_the_limit_is_read() {
    let fill = |length: usize| format!("HTTP/1.1 200 OK\r\nA: {}\r\n\r\n", "x".repeat(length));
    let exact = (16 << 10) - fill(0).len();
    assert!(told(PLAIN, fill(exact).as_bytes(), 999).await.is_ok());
    assert!(told(PLAIN, fill(exact + 1).as_bytes(), 999).await.is_err());
}

#[tokio::test]
async fn control_characters_of_the_proxy_are_not_shown() {
    let answer = b"HTTP/1.1 403 \x1b[31mred\x07\r\n\r\n";
    let error = told(PLAIN, answer, 1000).await.unwrap_err();
    assert!(!error.detail.contains('\x1b'), "{error:?}");
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_does_not_answer_is_not_waited_for() {
    let proxy: Proxy = PLAIN.parse().unwrap();
    let (near, _far) = duplex(1 << 16);
    let error = proxy.connect(near, "relay.test", 443).await.unwrap_err();
    assert_eq!(error.reason, "handshake-timeout");
    let (near, mut far) = duplex(1 << 16);
    far.write_all(b"HTTP/1.1 200 ").await.unwrap();
    let error = proxy.connect(near, "relay.test", 443).await.unwrap_err();
    assert_eq!(error.reason, "handshake-timeout");
}

#[tokio::test]
async fn hosts_that_would_break_the_request_are_not_asked_for() {
    let proxy: Proxy = PLAIN.parse().unwrap();
    for host in ["a b", "a\r\nX: y", "\u{e9}.test"] {
        let (near, _far) = duplex(1 << 16);
        let error = within(proxy.connect(near, host, 443)).await.unwrap_err();
        assert_eq!(error.reason, "http");
    }
}

#[test]
fn proxy_urls() {
    let parsed = |text: &str| text.parse::<Proxy>().map(|proxy| proxy.to_string());
    for (text, shown) in [
        ("http://proxy.test:3128", "http://proxy.test:3128"),
        ("http://proxy.test", "http://proxy.test:80"),
        ("https://proxy.test/", "https://proxy.test:443"),
        ("proxy.test:8080", "http://proxy.test:8080"),
        (" 192.0.2.1:8080 ", "http://192.0.2.1:8080"),
        ("http://[2001:db8::1]:3128", "http://[2001:db8::1]:3128"),
        ("HTTP://user:pass@Proxy.test:1", "http://Proxy.test:1"),
        ("http://user@proxy.test:1", "http://proxy.test:1"),
    ] {
        assert_eq!(parsed(text).unwrap(), shown);
    }
    for text in [
        "",
        "http://",
        "http://:80",
        "http://a b:80",
        "http://a:99999",
    ] {
        assert_eq!(parsed(text), Err(ProxyUrlError::Invalid), "{text:?}");
    }
    for text in ["socks5://proxy.test:1080", "ftp://proxy.test"] {
        assert!(matches!(parsed(text), Err(ProxyUrlError::Scheme(_))));
    }
    for text in [
        "http://us%er:pass@proxy.test:1",
        "http://user:%zz@proxy.test:1",
        "http://user:%0d%0a@proxy.test:1",
        "http://us%3Aer:pass@proxy.test:1",
        "http://user:%ff@proxy.test:1",
    ] {
        assert_eq!(parsed(text), Err(ProxyUrlError::Credentials), "{text:?}");
    }
    let proxy: Proxy = "http://user:secret@proxy.test:1".parse().unwrap();
    assert!(!format!("{proxy:?}").contains("secret"));
    assert!(!ProxyUrlError::Credentials.to_string().contains("secret"));
}
