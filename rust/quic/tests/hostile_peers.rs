//! Peers with good keys and bad manners, made of the stock engine.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{sync::Arc, time::Duration};

use anyreach_quic::{Endpoint, EndpointConfig, code, tls};
use anyreach_wire::control::{self, BoundAt, Hello, Message, Reach};
use common::{
    connected, endpoint, endpoint_with, loopback,
    stranger::{Stranger, close_code},
    within,
};
use noq::ConnectionError;
use rustls::{
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::CertifiedKey,
};

async fn still_alive(node: &Endpoint) {
    let guest = endpoint();
    connected(&guest, node).await;
}

#[tokio::test]
async fn a_proper_hello_from_another_implementation_is_answered() {
    let node = endpoint();
    let connection = Stranger::new().connect(&node).await.unwrap();
    let (mut send, mut recv) = connection.open_bi().await.unwrap();
    let hello = control::encode(&Message::Hello(Hello::new(1, 1)));
    for byte in hello {
        send.write_all(&[byte]).await.unwrap();
    }
    let mut decoder = control::Decoder::new();
    let answer = within(async {
        loop {
            if let Some(message) = decoder.next().unwrap() {
                return message;
            }
            decoder
                .push(&recv.read_chunk(64).await.unwrap().unwrap())
                .unwrap();
        }
    })
    .await;
    assert!(matches!(answer, Message::Accept(_)), "{answer:?}");
    assert!(within(node.accept()).await.is_some());
    // Messages of later versions are skipped: a map of one pair, kind 99.
    send.write_all(&[4, 0xa1, 0x00, 0x18, 99]).await.unwrap();
    // A hello where none belongs is not.
    send.write_all(&control::encode(&Message::Hello(Hello::new(1, 2))))
        .await
        .unwrap();
    assert_eq!(close_code(&connection).await, u64::from(code::BAD_HELLO));
}

#[tokio::test]
async fn a_way_through_a_relay_is_none_before_the_peer_has_said_so() {
    let node = endpoint();
    let stranger = Stranger::new();
    let connection = stranger.connect(&node).await.unwrap();
    let (mut send, _recv) = connection.open_bi().await.unwrap();
    let hello = control::encode(&Message::Hello(Hello::new(1, 1)));
    let bound = BoundAt {
        relay: [7; 32],
        addresses: vec![stranger.endpoint.local_addr().unwrap().into()],
    };
    let reach = control::encode(&Message::Reach(Reach {
        direct: Vec::new(),
        bound: vec![bound],
        findable: false,
        load: None,
    }));
    // Two packets, the second of which is late.
    let (first, second) = reach.split_at(reach.len() / 2);
    send.write_all(&[&hello, first].concat()).await.unwrap();
    let early = tokio::time::timeout(Duration::from_millis(300), node.accept()).await;
    assert!(early.is_err(), "it was taken for direct");
    send.write_all(second).await.unwrap();
    let accepted = within(node.accept()).await.unwrap();
    assert_eq!(accepted.first_path().unwrap().method, "relayed");
    assert_eq!(accepted.paths()[0].method, "relayed");
}

#[tokio::test]
async fn bad_hellos_end_the_connection_and_nothing_else() {
    let node = endpoint_with(|config| config.handshake_timeout = Duration::from_secs(1));
    let mut huge = vec![0xbf, 0xff, 0xff, 0xff];
    huge.extend([0; 100]);
    let bad: [&[u8]; 5] = [
        b"GET / HTTP/1.1\r\n\r\n",
        &[1, 0xff],
        &huge,
        &[0],
        &control::encode(&Message::Accept(Hello::new(1, 1))),
    ];
    for bytes in bad {
        let connection = Stranger::new().connect(&node).await.unwrap();
        let (mut send, _recv) = connection.open_bi().await.unwrap();
        send.write_all(bytes).await.unwrap();
        let code = close_code(&connection).await;
        assert_eq!(code, u64::from(code::BAD_HELLO), "{bytes:02x?}");
    }
    assert!(node.connections().is_empty());
    still_alive(&node).await;
}

#[tokio::test]
async fn whoever_says_nothing_is_dropped() {
    let node = endpoint_with(|config| config.handshake_timeout = Duration::from_millis(500));
    let silent = Stranger::new().connect(&node).await.unwrap();
    let _stream = silent.open_bi().await.unwrap();
    assert_eq!(close_code(&silent).await, u64::from(code::BAD_HELLO));
    assert!(node.connections().is_empty());
    still_alive(&node).await;
}

#[tokio::test]
async fn classical_key_exchange_is_refused_at_once() {
    let node = endpoint();
    let mut classical = Stranger::new();
    classical.groups = vec![aws_lc_rs::kx_group::X25519, aws_lc_rs::kx_group::SECP256R1];
    let error = classical.connect(&node).await.unwrap_err();
    // TLS alert handshake_failure as a QUIC error.
    assert!(
        matches!(&error, ConnectionError::ConnectionClosed(close)
            if u64::from(close.error_code) == 0x128),
        "{error}"
    );
    still_alive(&node).await;
}

#[tokio::test]
async fn either_post_quantum_group_alone_will_do() {
    let node = endpoint();
    for group in tls::crypto_provider().kx_groups {
        let mut stranger = Stranger::new();
        stranger.groups = vec![group];
        assert!(stranger.connect(&node).await.is_ok(), "{:?}", group.name());
    }
}

#[tokio::test]
async fn a_classical_server_is_named_as_such() {
    let pair = ::aws_lc_rs::signature::EcdsaKeyPair::generate(
        &::aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING,
    )
    .unwrap();
    let der = pair.to_pkcs8v1().unwrap();
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.as_ref().to_vec()));
    let certified = CertifiedKey::new(
        vec![CertificateDer::from(vec![0x30, 0x00])],
        aws_lc_rs::sign::any_supported_type(&key).unwrap(),
    );
    let provider = rustls::crypto::CryptoProvider {
        kx_groups: vec![aws_lc_rs::kx_group::X25519],
        ..aws_lc_rs::default_provider()
    };
    let mut server = rustls::ServerConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
    server.alpn_protocols = vec![tls::ALPN.to_vec()];
    let crypto = noq::crypto::rustls::QuicServerConfig::try_from(server).unwrap();
    let classical =
        noq::Endpoint::server(noq::ServerConfig::with_crypto(Arc::new(crypto)), loopback())
            .unwrap();
    let accepting = tokio::spawn({
        let classical = classical.clone();
        async move {
            while let Some(incoming) = classical.accept().await {
                let _ = incoming.await;
            }
        }
    });
    let node = endpoint_with(|_: &mut EndpointConfig| ());
    let address = classical.local_addr().unwrap();
    let error = within(node.dial(address, None, Duration::from_secs(2)))
        .await
        .unwrap_err();
    // The stock engine as server never sends its alert when it refuses in the second datagram of
    // the ClientHello, so this one is found out by our timeout; its text names the likely cause.
    assert!(
        ["key-exchange", "handshake-timeout"].contains(&error.reason),
        "{error:?}"
    );
    assert!(error.detail.contains("ML-KEM-768"), "{error:?}");
    accepting.abort();
}

/// The ClientHello is refused in its second datagram, when the engine as server has not validated
/// the path and stays silent; the stranger only finds out by its own timeout.
#[tokio::test]
async fn another_application_protocol_gets_no_connection() {
    let node = endpoint();
    let mut other = Stranger::new();
    other.alpn = b"h3";
    let refused = tokio::time::timeout(Duration::from_millis(500), other.connect(&node)).await;
    assert!(!matches!(refused, Ok(Ok(_))));
    assert!(node.connections().is_empty());
    still_alive(&node).await;
}
