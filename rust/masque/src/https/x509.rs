//! TLS with X.509 certificates: for ordinary HTTP clients of our relay, and for proxies and
//! TLS-inspecting networks between us and a relay.
//!
//! Key exchange stays with ML-KEM-768 unless the user lets go of it for one outer hop; what runs
//! inside is end to end and never bends. Certificates prove names, not PeerIds: see
//! [`token`](super::token).

use std::{
    fs, io,
    path::{Path, PathBuf},
    sync::Arc,
};

use anyreach_quic::tls::{ALPN_H3, crypto_provider};
use noq::crypto::rustls::{QuicClientConfig, QuicServerConfig};
use rustls::{
    RootCertStore,
    client::Resumption,
    crypto::{CryptoProvider, aws_lc_rs::kx_group},
    pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, pem, pem::PemObject},
    server::NoServerSessionStorage,
    sign::{CertifiedKey, SingleCertAndKey},
};

/// The application protocol of HTTP/2 over TLS.
const ALPN_H2: &[u8] = anyreach_quic::https::ALPN;

/// Certificate, key or CA files that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum X509Error {
    /// The file is missing, or not readable for this user.
    #[error("cannot read {}: {source}; check the path and its permissions", .path.display())]
    Unreadable {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// There is PEM in it, and it is damaged.
    #[error("{} is damaged: {detail}; export it again as PEM", .path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        detail: String,
    },
    /// No `BEGIN CERTIFICATE` in it.
    #[error("{} holds no certificate; give a PEM file, the server's certificate first", .0.display())]
    NoCertificate(PathBuf),
    /// No private key in it.
    #[error("{} holds no private key; give a PEM file with an unencrypted PKCS#8, SEC 1 or PKCS#1 key", .0.display())]
    NoKey(PathBuf),
    /// Certificate and key are good, but not of each other.
    #[error("the certificate in {} was not made for the key in {}", .cert.display(), .key.display())]
    Mismatch {
        /// The certificate's file.
        cert: PathBuf,
        /// The key's file.
        key: PathBuf,
    },
    /// A certificate or key the TLS library does not take.
    #[error("{} cannot be used: {detail}", .path.display())]
    Unusable {
        /// Which file.
        path: PathBuf,
        /// What the library said.
        detail: String,
    },
    /// Neither the system nor the user gave a root certificate.
    #[error(
        "the system has no root certificates ({0}); install them (package ca-certificates) or give a CA file"
    )]
    NoRoots(String),
    /// A name a certificate cannot carry, or no randomness.
    #[error("a self-signed certificate could not be made: {0}")]
    SelfSigned(String),
    /// A configuration error of the TLS library; it cannot happen with our constants.
    #[error("TLS could not be configured: {0}")]
    Tls(String),
}

/// A certificate chain with its key, for the listener for ordinary clients.
#[derive(Debug, Clone)]
pub struct ServerCertificate {
    key: Arc<CertifiedKey>,
}

impl ServerCertificate {
    /// Reads PEM files: the chain, the server's certificate first, and its private key.
    ///
    /// # Errors
    /// [`X509Error`], naming the file and what to do.
    pub fn from_files(cert: &Path, key: &Path) -> Result<Self, X509Error> {
        let chain = read_certificates(cert)?;
        let unreadable = |error| match error {
            pem::Error::NoItemsFound => X509Error::NoKey(key.to_owned()),
            other => damaged(key, &other),
        };
        let private = PrivateKeyDer::from_pem_slice(&read(key)?).map_err(unreadable)?;
        CertifiedKey::from_der(chain, private, &crypto_provider())
            .map(|key| Self { key: Arc::new(key) })
            .map_err(|error| match error {
                rustls::Error::InconsistentKeys(_) => X509Error::Mismatch {
                    cert: cert.to_owned(),
                    key: key.to_owned(),
                },
                rustls::Error::InvalidCertificate(_) => unusable(cert, &error),
                _ => unusable(key, &error),
            })
    }

    /// Makes a certificate nobody has signed, with a fresh ECDSA P-256 key, for these DNS names
    /// and IP addresses. Clients must be given [`to_pem`](Self::to_pem) as a CA file.
    ///
    /// # Errors
    /// [`X509Error::SelfSigned`] for a name that is neither.
    pub fn self_signed(names: impl IntoIterator<Item = String>) -> Result<Self, X509Error> {
        let failed = |error: rcgen::Error| X509Error::SelfSigned(error.to_string());
        let names: Vec<String> = names.into_iter().collect();
        let shown = names.first().cloned().unwrap_or_default();
        let mut params = rcgen::CertificateParams::new(names).map_err(failed)?;
        params
            .distinguished_name
            .push(rcgen::DnType::CommonName, shown);
        let key = rcgen::KeyPair::generate().map_err(failed)?;
        let cert = params.self_signed(&key).map_err(failed)?;
        let private = PrivatePkcs8KeyDer::from(key.serialize_der());
        CertifiedKey::from_der(vec![cert.der().clone()], private.into(), &crypto_provider())
            .map(|key| Self { key: Arc::new(key) })
            .map_err(|error| X509Error::SelfSigned(error.to_string()))
    }

    /// The chain as PEM: for a self-signed certificate what clients need as their CA file.
    pub fn to_pem(&self) -> String {
        use base64::{Engine, engine::general_purpose::STANDARD};
        let mut out = String::new();
        for cert in &self.key.cert {
            out.push_str("-----BEGIN CERTIFICATE-----\n");
            let text = STANDARD.encode(cert);
            for line in text.as_bytes().chunks(64) {
                out.extend(line.iter().map(|byte| char::from(*byte)));
                out.push('\n');
            }
            out.push_str("-----END CERTIFICATE-----\n");
        }
        out
    }

    /// TLS for the TCP side of the listener: HTTP/2, key exchange with ML-KEM-768 only. With
    /// `key_log`, secrets go to the file `SSLKEYLOGFILE` names.
    ///
    /// # Errors
    /// [`X509Error::Tls`], which would be a fault of ours.
    pub fn tcp_config(&self, key_log: bool) -> Result<Arc<rustls::ServerConfig>, X509Error> {
        self.config(ALPN_H2, key_log).map(Arc::new)
    }

    /// The QUIC side of the listener: HTTP/3, key exchange with ML-KEM-768 only.
    ///
    /// # Errors
    /// [`X509Error::Tls`], which would be a fault of ours.
    pub fn quic_config(&self, key_log: bool) -> Result<noq::ServerConfig, X509Error> {
        let tls = self.config(ALPN_H3, key_log)?;
        let quic = QuicServerConfig::try_from(tls).map_err(tls_error)?;
        Ok(noq::ServerConfig::with_crypto(Arc::new(quic)))
    }

    fn config(&self, alpn: &[u8], key_log: bool) -> Result<rustls::ServerConfig, X509Error> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(crypto_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(self.key.clone())));
        config.alpn_protocols = vec![alpn.to_vec()];
        // Nothing of one connection in the next, as between nodes.
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        if key_log {
            config.key_log = Arc::new(rustls::KeyLogFile::new());
        }
        Ok(config)
    }
}

/// Whom to believe, and what to accept, on an outer hop with X.509 certificates.
#[derive(Debug, Clone)]
pub struct ClientTrust {
    roots: Arc<RootCertStore>,
    allow_classical: bool,
}

impl ClientTrust {
    /// The system's roots, and those of `ca_file` besides. Reads files: not for the event loop.
    ///
    /// # Errors
    /// [`X509Error`] if `ca_file` cannot be used, or nothing is left to trust.
    pub fn load(ca_file: Option<&Path>) -> Result<Self, X509Error> {
        let mut roots = RootCertStore::empty();
        let system = rustls_native_certs::load_native_certs();
        // Systems ship roots that no library parses; the rest are good.
        roots.add_parsable_certificates(system.certs);
        if let Some(path) = ca_file {
            add_roots(&mut roots, path)?;
        }
        if roots.is_empty() {
            let why = system.errors.first().map(ToString::to_string);
            return Err(X509Error::NoRoots(
                why.unwrap_or_else(|| "none found".into()),
            ));
        }
        Ok(Self::new(roots))
    }

    /// The roots of this file and no others.
    ///
    /// # Errors
    /// [`X509Error`] if it cannot be used.
    pub fn only(ca_file: &Path) -> Result<Self, X509Error> {
        let mut roots = RootCertStore::empty();
        add_roots(&mut roots, ca_file)?;
        Ok(Self::new(roots))
    }

    fn new(roots: RootCertStore) -> Self {
        Self {
            roots: Arc::new(roots),
            allow_classical: false,
        }
    }

    /// Accepts key exchange without ML-KEM-768 as well, for hops the user has named. TLS 1.3 with
    /// ML-KEM-768 is still offered first.
    #[must_use]
    pub fn allow_classical(mut self, allow: bool) -> Self {
        self.allow_classical = allow;
        self
    }

    /// TLS over TCP to a relay: HTTP/2.
    ///
    /// # Errors
    /// [`X509Error::Tls`], which would be a fault of ours.
    pub fn h2_config(&self, key_log: bool) -> Result<Arc<rustls::ClientConfig>, X509Error> {
        self.config(&[ALPN_H2], key_log).map(Arc::new)
    }

    /// TLS over TCP to an `https://` proxy: HTTP/1.1, which carries CONNECT.
    ///
    /// # Errors
    /// [`X509Error::Tls`], which would be a fault of ours.
    pub fn proxy_config(&self, key_log: bool) -> Result<Arc<rustls::ClientConfig>, X509Error> {
        self.config(&[b"http/1.1"], key_log).map(Arc::new)
    }

    /// QUIC to a relay with an ordinary certificate: HTTP/3.
    ///
    /// # Errors
    /// [`X509Error::Tls`], which would be a fault of ours.
    pub fn quic_config(&self, key_log: bool) -> Result<noq::ClientConfig, X509Error> {
        let quic =
            QuicClientConfig::try_from(self.config(&[ALPN_H3], key_log)?).map_err(tls_error)?;
        Ok(noq::ClientConfig::new(Arc::new(quic)))
    }

    fn config(&self, alpn: &[&[u8]], key_log: bool) -> Result<rustls::ClientConfig, X509Error> {
        let provider = if self.allow_classical {
            with_classical_groups(crypto_provider())
        } else {
            crypto_provider()
        };
        let mut config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(tls_error)?
            .with_root_certificates(self.roots.clone())
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        if key_log {
            config.key_log = Arc::new(rustls::KeyLogFile::new());
        }
        Ok(config)
    }
}

/// The groups TLS-inspecting proxies commonly have, after ours.
fn with_classical_groups(mut provider: CryptoProvider) -> CryptoProvider {
    provider
        .kx_groups
        .extend([kx_group::X25519, kx_group::SECP256R1, kx_group::SECP384R1]);
    provider
}

fn add_roots(roots: &mut RootCertStore, path: &Path) -> Result<(), X509Error> {
    for cert in read_certificates(path)? {
        roots.add(cert).map_err(|error| unusable(path, &error))?;
    }
    Ok(())
}

fn read(path: &Path) -> Result<Vec<u8>, X509Error> {
    fs::read(path).map_err(|source| X509Error::Unreadable {
        path: path.to_owned(),
        source,
    })
}

fn read_certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, X509Error> {
    let chain = CertificateDer::pem_slice_iter(&read(path)?)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| damaged(path, &error))?;
    if chain.is_empty() {
        return Err(X509Error::NoCertificate(path.to_owned()));
    }
    Ok(chain)
}

fn damaged(path: &Path, error: &pem::Error) -> X509Error {
    X509Error::Damaged {
        path: path.to_owned(),
        detail: error.to_string(),
    }
}

fn unusable(path: &Path, error: &rustls::Error) -> X509Error {
    X509Error::Unusable {
        path: path.to_owned(),
        detail: error.to_string(),
    }
}

fn tls_error(error: impl std::fmt::Display) -> X509Error {
    X509Error::Tls(error.to_string())
}
