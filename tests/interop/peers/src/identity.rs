//! ML-DSA-65 keys and the names of their holders.

use std::sync::Arc;

use aws_lc_rs::{
    digest::{SHA256, digest},
    encoding::AsDer,
    signature::{ML_DSA_65_SIGNING, PqdsaKeyPair},
};
use rustls::{
    crypto::aws_lc_rs::sign::any_supported_type,
    pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer},
    sign::SigningKey,
};

use crate::Failure;

/// RFC 4648 base32 in lower case.
const ALPHABET: &[u8; 32] = b"abcdefghijklmnopqrstuvwxyz234567";

/// A fresh signing key and its DER SubjectPublicKeyInfo.
///
/// # Errors
/// The cryptographic library fails.
pub fn generate() -> Result<(Arc<dyn SigningKey>, Vec<u8>), Failure> {
    let pair = PqdsaKeyPair::generate(&ML_DSA_65_SIGNING)?;
    let pkcs8 = pair.private_key().as_der()?.as_ref().to_vec();
    let key = any_supported_type(&PrivateKeyDer::from(PrivatePkcs8KeyDer::from(pkcs8)))?;
    let spki = key
        .public_key()
        .ok_or("no public key for a raw-public-key identity")?
        .to_vec();
    Ok((key, spki))
}

/// The PeerId of a public key: SHA-256 of its SubjectPublicKeyInfo in base32 without padding.
pub fn peer_id(spki: &[u8]) -> String {
    let hash = digest(&SHA256, spki);
    let mut text = String::new();
    let (mut bits, mut count) = (0u32, 0u32);
    for &byte in hash.as_ref() {
        bits = bits << 8 | u32::from(byte);
        count += 8;
        while count >= 5 {
            count -= 5;
            text.push(char::from(ALPHABET[(bits >> count & 31) as usize]));
        }
        bits &= (1 << count) - 1;
    }
    if count > 0 {
        text.push(char::from(ALPHABET[(bits << (5 - count) & 31) as usize]));
    }
    text
}
