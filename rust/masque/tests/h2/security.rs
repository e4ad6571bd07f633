//! Who is at the other end, and by what key exchange.

use std::sync::Arc;

use anyreach_masque::h2::{Route, Security, Target, dial};
use anyreach_quic::{Identity, https, https::TcpTls, tls::crypto_provider};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    crypto::{CryptoProvider, aws_lc_rs::kx_group},
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::{Relay, localhost, only, within};

#[tokio::test]
async fn somebody_else_is_not_taken_for_the_relay() {
    let relay = Relay::start().await;
    let node = Identity::generate().unwrap();
    let wanted = Identity::generate().unwrap().peer_id();
    let target = Target {
        security: Security::Node {
            tls: TcpTls::new(&node, false).unwrap().client,
            expected: Some(wanted),
        },
        ..relay.target(&node)
    };
    let route = Route::Direct(vec![relay.addr]);
    let attempt = only(within(dial(&target, &route)).await.unwrap_err());
    assert_eq!(attempt.reason, "peer-id-mismatch");
    assert_eq!(attempt.actual, Some(relay.peer_id));
    assert_eq!(attempt.address, Some(relay.addr));

    let anybody = Target {
        security: Security::Node {
            tls: TcpTls::new(&node, false).unwrap().client,
            expected: None,
        },
        ..target
    };
    let dialed = within(dial(&anybody, &route)).await.unwrap();
    assert_eq!(dialed.carrier.peer_id(), Some(relay.peer_id));
}

/// A client as the web has them: whatever certificate, classical key exchange.
#[derive(Debug)]
struct Gullible;

impl ServerCertVerifier for Gullible {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ML_DSA_65, SignatureScheme::ED25519]
    }
}

fn classical() -> CryptoProvider {
    CryptoProvider {
        kx_groups: vec![kx_group::X25519, kx_group::SECP256R1],
        ..crypto_provider()
    }
}

fn gullible(provider: CryptoProvider) -> TlsConnector {
    let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Gullible))
        .with_no_client_auth();
    config.alpn_protocols = vec![https::ALPN.to_vec()];
    TlsConnector::from(Arc::new(config))
}

#[tokio::test]
async fn clients_without_ml_kem_or_without_a_key_are_refused() {
    let relay = Relay::start().await;
    for provider in [classical(), crypto_provider()] {
        let stream = TcpStream::connect(relay.addr).await.unwrap();
        let connecting = gullible(provider).connect(localhost(), stream);
        let error = within(connecting).await.unwrap_err();
        let tls = error.get_ref().unwrap().downcast_ref::<rustls::Error>();
        assert!(
            matches!(
                tls,
                Some(rustls::Error::AlertReceived(
                    rustls::AlertDescription::HandshakeFailure
                        | rustls::AlertDescription::UnsupportedCertificate
                ))
            ),
            "{error:?}"
        );
    }
    assert_eq!(relay.service.count(), 0);
}

#[tokio::test]
async fn a_server_without_ml_kem_is_refused() {
    let identity = Identity::generate().unwrap();
    let mut config = (*TcpTls::new(&identity, false).unwrap().server).clone();
    // The same keys, and nothing to agree upon them with.
    let resolver = config.cert_resolver.clone();
    config = rustls::ServerConfig::builder_with_provider(Arc::new(classical()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_no_client_auth()
        .with_cert_resolver(resolver);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (stream, _) = listener.accept().await.unwrap();
        let _ = TlsAcceptor::from(Arc::new(config)).accept(stream).await;
    });
    let node = Identity::generate().unwrap();
    let target = Target {
        host: "127.0.0.1".into(),
        port: addr.port(),
        security: Security::Node {
            tls: TcpTls::new(&node, false).unwrap().client,
            expected: Some(identity.peer_id()),
        },
    };
    let route = Route::Direct(vec![addr]);
    let attempt = only(within(dial(&target, &route)).await.unwrap_err());
    assert_eq!(attempt.reason, "key-exchange", "{attempt:?}");
}

#[tokio::test]
async fn of_several_addresses_the_one_that_works_is_used() {
    let relay = Relay::start().await;
    let node = Identity::generate().unwrap();
    // Nothing listens on a port that was just given back.
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let refused = gone.local_addr().unwrap();
    drop(gone);
    // Accepts and says nothing, as a box that terminates TCP does.
    let mute = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let silent = mute.local_addr().unwrap();
    let route = Route::Direct(vec![refused, silent, relay.addr]);
    let dialed = within(dial(&relay.target(&node), &route)).await.unwrap();
    assert_eq!(dialed.address, Some(relay.addr));

    let route = Route::Direct(vec![refused]);
    let attempt = only(
        within(dial(&relay.target(&node), &route))
            .await
            .unwrap_err(),
    );
    assert_eq!(attempt.reason, "refused");
    assert!(attempt.detail.contains(&refused.to_string()));
    let route = Route::Direct(vec![]);
    let attempt = only(
        within(dial(&relay.target(&node), &route))
            .await
            .unwrap_err(),
    );
    assert_eq!((attempt.reason, attempt.address), ("unreachable", None));
}

#[tokio::test]
async fn connections_closed_in_the_handshake_are_said_to_be() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    let relay = Relay::start().await;
    let node = Identity::generate().unwrap();
    let route = Route::Direct(vec![addr]);
    let attempt = only(
        within(dial(&relay.target(&node), &route))
            .await
            .unwrap_err(),
    );
    assert_eq!(attempt.reason, "closed", "{attempt:?}");
}
