//! What becomes of requests.

use std::sync::Arc;

use anyreach_masque::{
    carrier::{CarrierKind, ClientCarrier},
    h3::{connect, greet},
};
use http::Request;
use noq::TransportConfig;
use tokio::net::UdpSocket;

use crate::support::{
    Pair, client_endpoint, raw, recorder, refused, request, server_endpoint, within,
};

fn get(uri: &str, method: &str) -> Request<()> {
    Request::builder().method(method).uri(uri).body(()).unwrap()
}

#[tokio::test]
async fn a_request_is_put_to_the_service_and_answered() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    assert_eq!(carrier.kind(), CarrierKind::H3);
    let (input, _events) = recorder();
    let mut wanted = request("192.0.2.1");
    wanted
        .headers_mut()
        .insert("connect-udp-bind", "?1".parse().unwrap());
    let (response, out) = within(carrier.open(wanted, input)).await.unwrap();
    let opened = pair.opened().await;
    assert_eq!(
        opened.request.uri(),
        "https://relay.test/.well-known/masque/udp/192.0.2.1/4433/"
    );
    assert_eq!(opened.request.headers()["connect-udp-bind"], "?1");
    assert_eq!(opened.request.headers()["capsule-protocol"], "?1");
    assert_eq!(response.headers()["capsule-protocol"], "?1");
    assert_eq!(response.headers()["x-told"], "yes");
    assert!(out.rtt().is_some());
    assert!(carrier.rtt().is_some());
}

#[tokio::test]
async fn a_refusal_says_why() {
    let pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let error = refused(&carrier, request("refuse.test")).await;
    assert_eq!(error.reason, "refused");
    assert!(error.detail.contains("403"), "{error}");
    assert!(
        error.detail.contains("error=destination_ip_prohibited"),
        "{error}"
    );
}

#[tokio::test]
async fn other_requests_are_answered_with_errors() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let path = "/.well-known/masque/udp/192.0.2.1/4433/";
    for (method, uri, status) in [
        ("GET", format!("https://relay.test{path}"), "405"),
        ("POST", format!("https://relay.test{path}"), "405"),
        ("GET", "https://relay.test/".into(), "404"),
        ("CONNECT", "https://relay.test/elsewhere".into(), "404"),
        ("CONNECT", format!("http://relay.test{path}"), "400"),
    ] {
        let error = refused(&carrier, get(&uri, method)).await;
        assert_eq!(error.reason, "refused");
        assert!(error.detail.contains(status), "{method} {uri}: {error}");
    }
    // And the connection is as good as before.
    pair.tunnel(&carrier).await;
}

#[tokio::test]
async fn a_request_too_large_is_refused() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let mut large = request("192.0.2.1");
    let value = "x".repeat(20_000);
    large
        .headers_mut()
        .insert("x-large", value.parse().unwrap());
    // The settings of the relay forbid it.
    let error = refused(&carrier, large).await;
    assert_eq!(error.reason, "http");
    assert!(error.detail.contains("too big"), "{error}");
    // And this is why: a name from the table and a run-length code would not help either.
    let large: Vec<(&str, &str)> = std::iter::once((":method", "CONNECT"))
        .chain(std::iter::repeat_n(("a", ""), 1000))
        .collect();
    let (_send, mut recv) = raw::stream(&pair.dialed, &raw::headers(&large)).await;
    let answer = within(recv.read_to_end(1000)).await.unwrap();
    assert_eq!(answer[0], 1, "a header section: 431");
    pair.tunnel(&carrier).await;
}

#[tokio::test]
async fn malformed_requests_are_reset() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let unknown = raw::headers(&[
        (":method", "CONNECT"),
        (":scheme", "https"),
        (":authority", "relay.test"),
        (":path", "/"),
        (":protocol", "connect-tcp"),
    ]);
    let upper = raw::headers(&[(":method", "GET"), ("Upper", "case")]);
    let none = raw::headers(&[]);
    for bytes in [unknown, upper, none] {
        let (_send, mut recv) = raw::stream(&pair.dialed, &bytes).await;
        let error = within(recv.read_to_end(1000)).await.unwrap_err();
        assert!(error.to_string().contains("reset"), "{error}");
    }
    pair.tunnel(&carrier).await;
}

#[tokio::test]
async fn a_request_can_be_taken_back() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let (input, mut events) = recorder();
    {
        let opening = carrier.open(request("pending.test"), input);
        tokio::pin!(opening);
        tokio::select! {
            _ = &mut opening => panic!("decided"),
            _opened = pair.opened() => {}
        }
    }
    pair.abandoned().await;
    assert_eq!(events.any().await, None);
    pair.tunnel(&carrier).await;
}

#[tokio::test]
async fn a_request_goes_with_its_connection() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let (input, _events) = recorder();
    let (opened, _) = {
        let opening = carrier.open(request("pending.test"), input);
        tokio::pin!(opening);
        let opened = tokio::select! {
            _ = &mut opening => panic!("decided"),
            opened = pair.opened() => opened,
        };
        pair.accepted.close(7u32.into(), b"gone");
        let error = within(opening).await.map(|_| ()).unwrap_err();
        assert_eq!(error.reason, "closed");
        (opened, ())
    };
    pair.abandoned().await;
    within(pair.serving).await.unwrap();
    assert!(opened.out.send_capsule(bytes::Bytes::new()).is_err());
}

#[tokio::test]
async fn the_settings_can_come_with_the_handshake() {
    let server = server_endpoint(TransportConfig::default());
    let client = client_endpoint(TransportConfig::default());
    // Passes packets on, but nothing of the client once the relay has begun to answer: what proves
    // the client, and ends the handshake, never arrives.
    let middle = Arc::new(UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (to, from) = (server.local_addr().unwrap(), client.local_addr().unwrap());
    let passing = tokio::spawn({
        let middle = middle.clone();
        async move {
            let mut answered = false;
            let mut packet = [0; 2000];
            loop {
                let (length, source) = middle.recv_from(&mut packet).await.unwrap();
                if source == to {
                    // More than an acknowledgement.
                    answered |= length > 1000;
                    middle.send_to(&packet[..length], from).await.unwrap();
                } else if !answered {
                    middle.send_to(&packet[..length], to).await.unwrap();
                }
            }
        }
    });
    let dial = client
        .connect(middle.local_addr().unwrap(), "relay.test")
        .unwrap();
    let greeting = async {
        let accepted = server.accept().await.unwrap().accept().unwrap();
        let (engine, handshake) = accepted.into_0rtt().ok().unwrap();
        (greet(engine).await.unwrap(), handshake)
    };
    let (dialed, _greeted) = within(async { tokio::join!(dial, greeting) }).await;
    let carrier = within(connect(dialed.unwrap(), None)).await.unwrap();
    assert_eq!(carrier.kind(), CarrierKind::H3);
    passing.abort();
}
