//! Ordinary certificates, and tokens where they say nothing about a PeerId.

use std::{fs, path::PathBuf, sync::Arc, time::SystemTime};

use anyreach_masque::{
    client::{Attempt, Dialed},
    h2::{Limits, Route, Security, Target, dial, serve_listener},
    https::{
        Authenticated, ClientTrust, ServerCertificate, X509Error,
        token::{Audience, Verifier, issue},
    },
};
use anyreach_quic::{Identity, PeerId, tls::crypto_provider};
use http::{HeaderValue, header};
use rustls::crypto::{CryptoProvider, aws_lc_rs::kx_group};
use tokio::{
    net::TcpListener,
    task::{AbortHandle, JoinHandle},
};
use tokio_rustls::TlsAcceptor;

use crate::support::{Recorder, Recording, only, request, within};

/// A folder of files, gone afterwards.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("anyreach-h2-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }

    fn write(&self, name: &str, content: impl AsRef<[u8]>) -> PathBuf {
        let path = self.0.join(name);
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

struct WebRelay {
    port: u16,
    relay: PeerId,
    service: Arc<Recording>,
    task: AbortHandle,
    trust: ClientTrust,
    ca: PathBuf,
    _folder: Folder,
}

impl Drop for WebRelay {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl WebRelay {
    async fn start(name: &str) -> Self {
        let certificate = ServerCertificate::self_signed(["localhost".to_owned()]).unwrap();
        let folder = Folder::new(name);
        let ca = folder.write("ca.pem", certificate.to_pem());
        let relay = Identity::generate().unwrap().peer_id();
        let service = Arc::new(Recording::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let authority = Audience::authority("localhost:443");
        let verifier = Arc::new(Verifier::new(relay, authority));
        let task: JoinHandle<()> = tokio::spawn(serve_listener(
            listener,
            certificate.tcp_config(false).unwrap(),
            |_| None,
            Arc::new(Authenticated::new(service.clone(), verifier)),
            Limits::default(),
        ));
        Self {
            port,
            relay,
            service,
            task: task.abort_handle(),
            trust: ClientTrust::only(&ca).unwrap(),
            ca,
            _folder: folder,
        }
    }

    async fn dial(&self, trust: &ClientTrust) -> Result<Dialed, Vec<Attempt>> {
        dial_web(self.port, trust).await
    }
}

async fn dial_web(port: u16, trust: &ClientTrust) -> Result<Dialed, Vec<Attempt>> {
    let target = Target {
        host: "localhost".into(),
        port,
        security: Security::X509 {
            tls: trust.h2_config(false).unwrap(),
        },
    };
    let route = Route::Direct(vec![([127, 0, 0, 1], port).into()]);
    within(dial(&target, &route)).await
}

#[tokio::test]
async fn an_ordinary_client_has_no_peer_id() {
    let relay = WebRelay::start("ordinary").await;
    let carrier = relay.dial(&relay.trust).await.unwrap().carrier;
    assert_eq!(carrier.peer_id(), None);
    let mut request = request("/tunnel");
    // Its own credentials are not ours to judge.
    let basic = HeaderValue::from_static("Basic dXNlcjpwYXNz");
    request.headers_mut().insert(header::AUTHORIZATION, basic);
    within(carrier.open(request, Recorder::new()))
        .await
        .unwrap();
    assert_eq!(relay.service.opened(0).await.client.peer_id, None);
}

#[tokio::test]
async fn a_token_says_who_asks() {
    let relay = WebRelay::start("token").await;
    let carrier = relay.dial(&relay.trust).await.unwrap().carrier;
    let node = Identity::generate().unwrap();
    let with_token = |audience: &Audience| {
        let mut request = request("/tunnel");
        let token = issue(&node, audience, SystemTime::now()).unwrap();
        request.headers_mut().insert(header::AUTHORIZATION, token);
        request
    };
    for (n, audience) in [
        Audience::peer(relay.relay),
        Audience::authority("localhost:443").unwrap(),
    ]
    .iter()
    .enumerate()
    {
        within(carrier.open(with_token(audience), Recorder::new()))
            .await
            .unwrap();
        let opened = relay.service.opened(n).await;
        assert_eq!(opened.client.peer_id, Some(node.peer_id()));
    }

    let elsewhere = Audience::peer(Identity::generate().unwrap().peer_id());
    let error = within(carrier.open(with_token(&elsewhere), Recorder::new()))
        .await
        .unwrap_err();
    assert_eq!(error.reason, "refused");
    assert!(error.detail.contains("401"), "{error}");
    assert!(error.detail.contains("for another relay"), "{error}");
    let used = with_token(&Audience::peer(relay.relay));
    within(carrier.open(used.clone(), Recorder::new()))
        .await
        .unwrap();
    let error = within(carrier.open(used, Recorder::new()))
        .await
        .unwrap_err();
    assert!(error.detail.contains("used before"), "{error}");
    assert_eq!(relay.service.count(), 3);
}

#[tokio::test]
async fn certificates_of_strangers_and_for_others_are_refused() {
    let relay = WebRelay::start("strangers").await;
    let stranger = ServerCertificate::self_signed(["localhost".to_owned()]).unwrap();
    let folder = Folder::new("stranger");
    let trust = ClientTrust::only(&folder.write("ca.pem", stranger.to_pem())).unwrap();
    let attempt = only(relay.dial(&trust).await.unwrap_err());
    assert_eq!(attempt.reason, "tls");
    assert!(attempt.detail.contains("CA file"), "{}", attempt.detail);

    let target = Target {
        host: "127.0.0.1".into(),
        port: relay.port,
        security: Security::X509 {
            tls: relay.trust.h2_config(false).unwrap(),
        },
    };
    let route = Route::Direct(vec![([127, 0, 0, 1], relay.port).into()]);
    let attempt = only(within(dial(&target, &route)).await.unwrap_err());
    assert_eq!(attempt.reason, "tls", "{attempt:?}");
}

/// A web server with these groups and this application protocol; serves HTTP/2 tunnels.
async fn web_server(provider: CryptoProvider, alpn: &[u8], folder: &Folder) -> (u16, PathBuf) {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    let ca = folder.write("server.pem", made.cert.pem());
    let key = made.signing_key.serialize_der().try_into().unwrap();
    let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = vec![alpn.to_vec()];
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, remote)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else {
                    return;
                };
                let client = anyreach_masque::carrier::Client {
                    peer_id: None,
                    remote,
                    local: None,
                    carrier: anyreach_masque::carrier::CarrierKind::H2,
                };
                let service = Arc::new(Recording::default());
                anyreach_masque::h2::serve(stream, client, service).await;
            });
        }
    });
    (port, ca)
}

#[tokio::test]
async fn classical_key_exchange_has_to_be_allowed() {
    let folder = Folder::new("classical");
    let classical = CryptoProvider {
        kx_groups: vec![kx_group::X25519],
        ..crypto_provider()
    };
    let (port, ca) = web_server(classical, b"h2", &folder).await;
    let trust = ClientTrust::only(&ca).unwrap();
    let attempt = only(dial_web(port, &trust).await.unwrap_err());
    assert_eq!(attempt.reason, "tls");
    assert!(attempt.detail.contains("ML-KEM-768"), "{}", attempt.detail);
    let carrier = dial_web(port, &trust.allow_classical(true))
        .await
        .unwrap()
        .carrier;
    within(carrier.open(request("/tunnel"), Recorder::new()))
        .await
        .unwrap();
}

#[tokio::test]
async fn http_2_is_required() {
    let folder = Folder::new("alpn");
    let (port, ca) = web_server(crypto_provider(), b"http/1.1", &folder).await;
    let trust = ClientTrust::only(&ca).unwrap();
    let attempt = only(dial_web(port, &trust).await.unwrap_err());
    assert_eq!(attempt.reason, "tls", "{attempt:?}");
    let (port, ca) = web_server(crypto_provider(), b"", &folder).await;
    let trust = ClientTrust::only(&ca).unwrap();
    let attempt = only(dial_web(port, &trust).await.unwrap_err());
    assert!(["http", "tls"].contains(&attempt.reason), "{attempt:?}");
}

#[test]
fn files_that_cannot_be_used_say_why_and_what_to_do() {
    let folder = Folder::new("files");
    let make = || rcgen::generate_simple_self_signed(["relay.test".to_owned()]).unwrap();
    let (one, two) = (make(), make());
    let cert = folder.write("cert.pem", one.cert.pem());
    let key = folder.write("key.pem", one.signing_key.serialize_pem());
    let other_key = folder.write("other.pem", two.signing_key.serialize_pem());
    let empty = folder.write("empty.pem", "");
    let der = folder.write("cert.der", one.cert.der());
    let both = folder.write(
        "both.pem",
        one.signing_key.serialize_pem() + &one.cert.pem(),
    );
    let broken = folder.write(
        "broken.pem",
        "-----BEGIN CERTIFICATE-----\n!!!!\n-----END CERTIFICATE-----\n",
    );
    let hollow = folder.write(
        "hollow.pem",
        "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n",
    );
    let missing = folder.0.join("missing.pem");

    ServerCertificate::from_files(&cert, &key).unwrap();
    ServerCertificate::from_files(&both, &both).unwrap();
    let error = |cert: &PathBuf, key: &PathBuf| {
        let error = ServerCertificate::from_files(cert, key).unwrap_err();
        assert!(error.to_string().contains(".pem") || error.to_string().contains(".der"));
        error
    };
    assert!(matches!(
        error(&missing, &key),
        X509Error::Unreadable { .. }
    ));
    assert!(matches!(
        error(&cert, &missing),
        X509Error::Unreadable { .. }
    ));
    assert!(matches!(error(&empty, &key), X509Error::NoCertificate(_)));
    assert!(matches!(error(&der, &key), X509Error::NoCertificate(_)));
    assert!(matches!(error(&key, &key), X509Error::NoCertificate(_)));
    assert!(matches!(error(&cert, &cert), X509Error::NoKey(_)));
    assert!(matches!(error(&broken, &key), X509Error::Damaged { .. }));
    assert!(matches!(error(&hollow, &key), X509Error::Unusable { .. }));
    assert!(matches!(
        error(&cert, &other_key),
        X509Error::Mismatch { .. }
    ));
    for bad in [&missing, &empty, &broken, &hollow] {
        ClientTrust::only(bad).unwrap_err();
        ClientTrust::load(Some(bad)).unwrap_err();
    }
    ClientTrust::load(Some(&cert)).unwrap();
    ServerCertificate::self_signed(["no name \u{e9}".to_owned()]).unwrap_err();
}

#[tokio::test]
async fn the_same_certificate_serves_quic() {
    let certificate =
        ServerCertificate::self_signed(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let folder = Folder::new("quic");
    let trust = ClientTrust::only(&folder.write("ca.pem", certificate.to_pem())).unwrap();
    let any = "127.0.0.1:0".parse().unwrap();
    let server = noq::Endpoint::server(certificate.quic_config(false).unwrap(), any).unwrap();
    let client = noq::Endpoint::client(any).unwrap();
    let accepting = async { server.accept().await.unwrap().await.unwrap() };
    let addr = server.local_addr().unwrap();
    let connecting = client
        .connect_with(trust.quic_config(false).unwrap(), addr, "localhost")
        .unwrap();
    let (_accepted, connected) = within(async { tokio::join!(accepting, connecting) }).await;
    let connected = connected.unwrap();
    let data = connected.handshake_data().unwrap();
    let data = data
        .downcast::<noq::crypto::rustls::HandshakeData>()
        .unwrap();
    assert_eq!(data.protocol.as_deref(), Some(&b"h3"[..]));
}

#[tokio::test]
async fn the_ca_file_adds_to_the_roots_of_the_system() {
    let relay = WebRelay::start("system").await;
    let trust = ClientTrust::load(Some(&relay.ca)).unwrap();
    relay.dial(&trust).await.unwrap();
}
