//! A peer with a good key and the stock engine, who can say anything.

use std::sync::Arc;

use anyreach_quic::{Endpoint, Identity, tls};
use anyreach_wire::control::{self, Hello, Message};
use noq::{ConnectionError, RecvStream, SendStream, crypto::rustls::QuicClientConfig};
use rustls::{
    DigitallySignedStruct, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{
        CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, SubjectPublicKeyInfoDer,
        UnixTime,
    },
    sign::CertifiedKey,
};

use super::{loopback, within};

/// Takes any key that signs for itself.
#[derive(Debug)]
struct AnyKey;

impl ServerCertVerifier for AnyKey {
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
        unreachable!("QUIC has no TLS 1.2")
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature_with_raw_key(
            message,
            &SubjectPublicKeyInfoDer::from(cert.as_ref()),
            signed,
            &aws_lc_rs::default_provider().signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ML_DSA_65]
    }

    fn requires_raw_public_keys(&self) -> bool {
        true
    }
}

/// A client of the stock engine with its own key.
pub struct Stranger {
    pub endpoint: noq::Endpoint,
    pub groups: Vec<&'static dyn rustls::crypto::SupportedKxGroup>,
    pub alpn: &'static [u8],
}

impl Stranger {
    pub fn new() -> Self {
        Self {
            endpoint: noq::Endpoint::client(loopback()).unwrap(),
            groups: tls::crypto_provider().kx_groups,
            alpn: tls::ALPN,
        }
    }

    pub async fn connect(&self, to: &Endpoint) -> Result<noq::Connection, ConnectionError> {
        let provider = rustls::crypto::CryptoProvider {
            kx_groups: self.groups.clone(),
            ..aws_lc_rs::default_provider()
        };
        let identity = Identity::generate().unwrap();
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(identity.to_pkcs8().to_vec()));
        let certified = CertifiedKey::new(
            vec![CertificateDer::from(identity.public_key().to_vec())],
            aws_lc_rs::sign::any_supported_type(&key).unwrap(),
        );
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(AnyKey))
            .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(Arc::new(
                certified,
            ))));
        config.alpn_protocols = vec![self.alpn.to_vec()];
        let config = noq::ClientConfig::new(Arc::new(QuicClientConfig::try_from(config).unwrap()));
        let connecting = self
            .endpoint
            .connect_with(config, to.local_addr(), "stranger")
            .unwrap();
        within(connecting).await
    }
}

/// A conversation after proper hellos.
pub struct Talk {
    pub connection: noq::Connection,
    pub send: SendStream,
    pub recv: RecvStream,
    decoder: control::Decoder,
}

impl Talk {
    pub async fn with(node: &Endpoint) -> Self {
        let connection = Stranger::new().connect(node).await.unwrap();
        let (mut send, recv) = connection.open_bi().await.unwrap();
        let hello = control::encode(&Message::Hello(Hello::new(1, 1)));
        send.write_all(&hello).await.unwrap();
        let mut talk = Self {
            connection,
            send,
            recv,
            decoder: control::Decoder::new(),
        };
        assert!(matches!(talk.hear().await, Message::Accept(_)));
        talk
    }

    pub async fn say(&mut self, message: &Message) {
        self.say_bytes(&control::encode(message)).await;
    }

    pub async fn say_bytes(&mut self, bytes: &[u8]) {
        within(self.send.write_all(bytes)).await.unwrap();
    }

    pub async fn hear(&mut self) -> Message {
        within(async {
            loop {
                if let Some(message) = self.decoder.next().unwrap() {
                    return message;
                }
                let chunk = self.recv.read_chunk(4096).await.unwrap().unwrap();
                self.decoder.push(&chunk).unwrap();
            }
        })
        .await
    }
}

/// The application error code the connection was closed with.
pub async fn close_code(connection: &noq::Connection) -> u64 {
    match within(connection.closed()).await {
        ConnectionError::ApplicationClosed(close) => close.error_code.into_inner(),
        other => panic!("{other}"),
    }
}
