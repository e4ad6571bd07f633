//! The identity of a node: an ML-DSA-65 key pair, and the `PeerId` derived from it.

use std::{fmt, sync::Arc};

use aws_lc_rs::{
    digest,
    encoding::AsDer,
    hkdf,
    signature::{KeyPair, ML_DSA_65, ML_DSA_65_SIGNING, PqdsaKeyPair, UnparsedPublicKey},
};
use rustls::{
    SignatureScheme,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::SigningKey,
};

/// DER of a SubjectPublicKeyInfo with an ML-DSA-65 key up to the key itself (RFC 9881):
/// SEQUENCE, AlgorithmIdentifier 2.16.840.1.101.3.4.3.18, BIT STRING.
const SPKI_PREFIX: [u8; 22] = [
    0x30, 0x82, 0x07, 0xb2, 0x30, 0x0b, 0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x03,
    0x12, 0x03, 0x82, 0x07, 0xa1, 0x00,
];
/// Length of an ML-DSA-65 public key (FIPS 204, table 2).
pub const PUBLIC_KEY_LEN: usize = 1952;
/// Length of an ML-DSA-65 signature (FIPS 204, table 2).
pub const SIGNATURE_LEN: usize = 3309;
/// Length of the DER SubjectPublicKeyInfo of an ML-DSA-65 key.
pub(crate) const SPKI_LEN: usize = SPKI_PREFIX.len() + PUBLIC_KEY_LEN;

/// SHA-256 of a node's DER SubjectPublicKeyInfo: the name of a node on every network.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PeerId(pub [u8; 32]);

impl PeerId {
    /// The PeerId of a public key, if `spki` is a well-formed ML-DSA-65 SubjectPublicKeyInfo.
    ///
    /// The encoding is compared byte by byte, so that one key has exactly one PeerId.
    pub fn from_spki(spki: &[u8]) -> Option<Self> {
        (spki.len() == SPKI_LEN && spki.starts_with(&SPKI_PREFIX)).then(|| {
            let mut id = [0; 32];
            id.copy_from_slice(digest::digest(&digest::SHA256, spki).as_ref());
            Self(id)
        })
    }
}

/// Who signed `message`, if the signature of [`Identity::sign`] is that of the raw ML-DSA-65
/// public key (1952 bytes, the last bytes of [`Identity::public_key`]).
pub fn verify_signed(public_key: &[u8], message: &[u8], signature: &[u8]) -> Option<PeerId> {
    if public_key.len() != PUBLIC_KEY_LEN {
        return None;
    }
    UnparsedPublicKey::new(&ML_DSA_65, public_key)
        .verify(message, signature)
        .ok()?;
    PeerId::from_spki(&[&SPKI_PREFIX, public_key].concat())
}

impl fmt::Display for PeerId {
    /// Lower-case base32 (RFC 4648) without padding, 52 characters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";
        let mut text = String::with_capacity(52);
        let (mut bits, mut held) = (0u32, 0u32);
        for byte in self.0 {
            bits = (bits << 8) | u32::from(byte);
            held += 8;
            while held >= 5 {
                held -= 5;
                text.push(char::from(ALPHABET[(bits >> held) as usize & 31]));
            }
            bits &= (1 << held) - 1;
        }
        text.push(char::from(ALPHABET[(bits << (5 - held)) as usize & 31]));
        f.write_str(&text)
    }
}

impl fmt::Debug for PeerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "PeerId({self})")
    }
}

/// A key that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// The bytes are no PKCS#8 ML-DSA-65 private key.
    #[error("not a PKCS#8 ML-DSA-65 private key; create a new one with `anyreach id --new`")]
    NotMlDsa65,
    /// The operating system gave no randomness, or the library failed.
    #[error("the cryptographic library could not make a key")]
    Generation,
}

/// An ML-DSA-65 key pair (FIPS 204): what a node proves in every handshake.
pub struct Identity {
    pkcs8: Vec<u8>,
    spki: Vec<u8>,
    peer_id: PeerId,
    signing_key: Arc<dyn SigningKey>,
}

impl Identity {
    /// Makes a fresh key pair.
    ///
    /// # Errors
    /// [`IdentityError::Generation`] if the system gives no randomness.
    pub fn generate() -> Result<Self, IdentityError> {
        let pair =
            PqdsaKeyPair::generate(&ML_DSA_65_SIGNING).map_err(|_| IdentityError::Generation)?;
        let pkcs8 = pair.to_pkcs8v1().map_err(|_| IdentityError::Generation)?;
        Self::from_pkcs8(pkcs8.as_ref())
    }

    /// Reads a key pair from PKCS#8 DER (RFC 9881).
    ///
    /// # Errors
    /// [`IdentityError::NotMlDsa65`] if the bytes are anything else.
    pub fn from_pkcs8(der: &[u8]) -> Result<Self, IdentityError> {
        let pair = PqdsaKeyPair::from_pkcs8(&ML_DSA_65_SIGNING, der)
            .map_err(|_| IdentityError::NotMlDsa65)?;
        let spki = pair
            .public_key()
            .as_der()
            .map_err(|_| IdentityError::NotMlDsa65)?
            .as_ref()
            .to_vec();
        let peer_id = PeerId::from_spki(&spki).ok_or(IdentityError::NotMlDsa65)?;
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(der.to_vec()));
        let signing_key = rustls::crypto::aws_lc_rs::sign::any_supported_type(&key)
            .map_err(|_| IdentityError::NotMlDsa65)?;
        if signing_key
            .choose_scheme(&[SignatureScheme::ML_DSA_65])
            .is_none()
        {
            return Err(IdentityError::NotMlDsa65);
        }
        Ok(Self {
            pkcs8: der.to_vec(),
            spki,
            peer_id,
            signing_key,
        })
    }

    /// The private key as PKCS#8 DER. Whoever has it is this node.
    pub fn to_pkcs8(&self) -> &[u8] {
        &self.pkcs8
    }

    /// The public key as DER SubjectPublicKeyInfo (1974 bytes).
    pub fn public_key(&self) -> &[u8] {
        &self.spki
    }

    /// The name of this node.
    pub fn peer_id(&self) -> PeerId {
        self.peer_id
    }

    /// Signs `message` (ML-DSA-65, FIPS 204, empty context string), for a statement that is no TLS
    /// handshake. `message` must start with a text that says what kind of statement it is, so that
    /// it can never be taken for one of another kind.
    ///
    /// # Errors
    /// [`IdentityError::Generation`] if the system gives no randomness.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, IdentityError> {
        self.signing_key
            .choose_scheme(&[SignatureScheme::ML_DSA_65])
            .ok_or(IdentityError::NotMlDsa65)?
            .sign(message)
            .map_err(|_| IdentityError::Generation)
    }

    pub(crate) fn signing_key(&self) -> Arc<dyn SigningKey> {
        self.signing_key.clone()
    }

    /// A secret that is the same each time this identity starts, for `purpose`.
    ///
    /// Derived from the private key, so that a restarted node recognises connection ids of its
    /// former life and can answer them with a stateless reset (RFC 9000, 10.3.2).
    pub(crate) fn derive_secret(&self, purpose: &[u8]) -> [u8; 32] {
        let salt = hkdf::Salt::new(hkdf::HKDF_SHA256, b"anyreach/1 derived secret");
        let mut out = [0; 32];
        salt.extract(&self.pkcs8)
            .expand(&[purpose], hkdf::HKDF_SHA256)
            .and_then(|okm| okm.fill(&mut out))
            .expect("HKDF-SHA256 can always give 32 bytes");
        out
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("peer_id", &self.peer_id)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_its_encoding() {
        let made = Identity::generate().unwrap();
        let read = Identity::from_pkcs8(made.to_pkcs8()).unwrap();
        assert_eq!(made.peer_id(), read.peer_id());
        assert_eq!(read.public_key().len(), SPKI_LEN);
        assert_eq!(made.derive_secret(b"a"), read.derive_secret(b"a"));
        assert_ne!(made.derive_secret(b"a"), made.derive_secret(b"b"));
    }

    #[test]
    fn damaged_keys_are_refused() {
        let good = Identity::generate().unwrap().to_pkcs8().to_vec();
        for cut in 0..good.len() {
            assert!(Identity::from_pkcs8(&good[..cut]).is_err(), "cut at {cut}");
        }
        let ed25519 = aws_lc_rs::signature::Ed25519KeyPair::generate().unwrap();
        let other = ed25519.to_pkcs8().unwrap();
        assert!(matches!(
            Identity::from_pkcs8(other.as_ref()),
            Err(IdentityError::NotMlDsa65)
        ));
    }

    #[test]
    fn only_the_canonical_encoding_has_a_peer_id() {
        let spki = Identity::generate().unwrap().public_key().to_vec();
        assert!(PeerId::from_spki(&spki).is_some());
        let mut longer = spki.clone();
        longer.push(0);
        assert_eq!(PeerId::from_spki(&longer), None);
        let mut other_algorithm = spki;
        other_algorithm[16] = 0x11;
        assert_eq!(PeerId::from_spki(&other_algorithm), None);
    }

    #[test]
    fn a_signature_tells_who_signed() {
        let signer = Identity::generate().unwrap();
        let message = b"a kind of statement\0and what it says";
        let signature = signer.sign(message).unwrap();
        assert_eq!(signature.len(), SIGNATURE_LEN);
        let key = &signer.public_key()[SPKI_LEN - PUBLIC_KEY_LEN..];
        assert_eq!(
            verify_signed(key, message, &signature),
            Some(signer.peer_id())
        );
        assert_eq!(verify_signed(key, b"something else", &signature), None);
        assert_eq!(verify_signed(&key[1..], message, &signature), None);
        assert_eq!(verify_signed(key, message, &signature[1..]), None);
        let other = Identity::generate().unwrap();
        let key = &other.public_key()[SPKI_LEN - PUBLIC_KEY_LEN..];
        assert_eq!(verify_signed(key, message, &signature), None);
    }

    #[test]
    fn text_form_is_base32() {
        assert_eq!(PeerId([0; 32]).to_string(), "a".repeat(52));
        assert_eq!(
            PeerId([0xff; 32]).to_string(),
            format!("{}q", "7".repeat(51))
        );
    }
}
