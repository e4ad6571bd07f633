//! TLS configurations: as a node speaks it (raw public keys both ways), or with a certificate.

use std::{path::PathBuf, str::FromStr, sync::Arc};

use rustls::{
    ClientConfig, DigitallySignedStruct, DistinguishedName, ServerConfig, SignatureScheme,
    client::{
        AlwaysResolvesClientRawPublicKeys, Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::{
        CryptoProvider, WebPkiSupportedAlgorithms, aws_lc_rs as provider, verify_tls13_signature,
        verify_tls13_signature_with_raw_key,
    },
    pki_types::{
        CertificateDer, PrivateKeyDer, ServerName, SubjectPublicKeyInfoDer, UnixTime,
        pem::PemObject,
    },
    server::{
        AlwaysResolvesServerRawPublicKeys,
        danger::{ClientCertVerified, ClientCertVerifier},
    },
    sign::CertifiedKey,
};

use crate::{Failure, identity};

/// The key-exchange group a peer offers and accepts: exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Group {
    /// The hybrid of RFC-to-be draft-ietf-tls-ecdhe-mlkem.
    X25519MlKem768,
    /// ML-KEM-768 alone.
    MlKem768,
    /// Classical: a node must refuse it.
    X25519,
}

impl FromStr for Group {
    type Err = ();

    fn from_str(text: &str) -> Result<Self, ()> {
        match text {
            "x25519mlkem768" => Ok(Self::X25519MlKem768),
            "mlkem768" => Ok(Self::MlKem768),
            "x25519" => Ok(Self::X25519),
            _ => Err(()),
        }
    }
}

/// How a peer proves who it is.
#[derive(Debug, Clone)]
pub enum Auth {
    /// A fresh ML-DSA-65 raw public key, and the same demanded of the other side.
    Raw,
    /// A server with this certificate and key in PEM; clients are anonymous and trust anyone who
    /// holds the key of the certificate shown.
    X509 {
        /// Certificate file, for servers.
        certificate: Option<PathBuf>,
        /// Key file, for servers.
        key: Option<PathBuf>,
    },
}

/// Both roles, and the PeerId they prove.
#[derive(Debug)]
pub struct Tls {
    /// For dialing.
    pub client: ClientConfig,
    /// For accepting; `None` without a certificate.
    pub server: Option<ServerConfig>,
    /// PeerId, or an empty string where identity is not a raw public key.
    pub peer_id: String,
}

impl Tls {
    /// Configures TLS 1.3 without resumption.
    ///
    /// # Errors
    /// Unreadable files, or the library refuses.
    pub fn new(auth: &Auth, group: Group, alpn: &str) -> Result<Self, Failure> {
        let provider = Arc::new(CryptoProvider {
            kx_groups: vec![match group {
                Group::X25519MlKem768 => provider::kx_group::X25519MLKEM768,
                Group::MlKem768 => provider::kx_group::MLKEM768,
                Group::X25519 => provider::kx_group::X25519,
            }],
            ..provider::default_provider()
        });
        let mut tls = match auth {
            Auth::Raw => raw(provider)?,
            Auth::X509 { certificate, key } => {
                let files = certificate.as_ref().zip(key.as_ref());
                x509(provider, files)?
            }
        };
        tls.client.alpn_protocols = vec![alpn.into()];
        tls.client.resumption = Resumption::disabled();
        if let Some(server) = &mut tls.server {
            server.alpn_protocols = vec![alpn.into()];
            server.send_tls13_tickets = 0;
        }
        Ok(tls)
    }
}

fn raw(provider: Arc<CryptoProvider>) -> Result<Tls, Failure> {
    let (key, spki) = identity::generate()?;
    let peer_id = identity::peer_id(&spki);
    let certified = Arc::new(CertifiedKey::new(vec![CertificateDer::from(spki)], key));
    let verifier = Arc::new(AnyPeer {
        algorithms: provider.signature_verification_algorithms,
        raw: true,
    });
    let mut client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier.clone())
        .with_client_cert_resolver(Arc::new(AlwaysResolvesClientRawPublicKeys::new(
            certified.clone(),
        )));
    client.enable_sni = false;
    let server = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(Arc::new(AlwaysResolvesServerRawPublicKeys::new(certified)));
    Ok(Tls {
        client,
        server: Some(server),
        peer_id,
    })
}

fn x509(
    provider: Arc<CryptoProvider>,
    files: Option<(&PathBuf, &PathBuf)>,
) -> Result<Tls, Failure> {
    let verifier = Arc::new(AnyPeer {
        algorithms: provider.signature_verification_algorithms,
        raw: false,
    });
    let client = ClientConfig::builder_with_provider(provider.clone())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    let server = match files {
        None => None,
        Some((certificate, key)) => {
            let chain =
                CertificateDer::pem_file_iter(certificate)?.collect::<Result<Vec<_>, _>>()?;
            Some(
                ServerConfig::builder_with_provider(provider)
                    .with_protocol_versions(&[&rustls::version::TLS13])?
                    .with_no_client_auth()
                    .with_single_cert(chain, PrivateKeyDer::from_pem_file(key)?)?,
            )
        }
    };
    Ok(Tls {
        client,
        server,
        peer_id: String::new(),
    })
}

/// Takes any key, but only from its holder: signatures are verified.
#[derive(Debug)]
struct AnyPeer {
    algorithms: WebPkiSupportedAlgorithms,
    raw: bool,
}

impl AnyPeer {
    fn verify(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        if self.raw {
            let spki = SubjectPublicKeyInfoDer::from(certificate.as_ref());
            verify_tls13_signature_with_raw_key(message, &spki, signed, &self.algorithms)
        } else {
            verify_tls13_signature(message, certificate, signed, &self.algorithms)
        }
    }

    fn schemes(&self) -> Vec<SignatureScheme> {
        if self.raw {
            vec![SignatureScheme::ML_DSA_65]
        } else {
            self.algorithms.supported_schemes()
        }
    }
}

/// TLS 1.2 is not enabled, so this is never asked for.
fn no_tls12() -> rustls::Error {
    rustls::Error::PeerIncompatible(rustls::PeerIncompatible::Tls13RequiredForQuic)
}

impl ServerCertVerifier for AnyPeer {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw
    }
}

impl ClientCertVerifier for AnyPeer {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _now: UnixTime,
    ) -> Result<ClientCertVerified, rustls::Error> {
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _certificate: &CertificateDer<'_>,
        _signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Err(no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.verify(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.schemes()
    }

    fn requires_raw_public_keys(&self) -> bool {
        self.raw
    }
}
