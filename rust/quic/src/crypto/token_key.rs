//! Seals the tokens of Retry packets (RFC 9000, section 8.1.2) with a key of this run.

use aws_lc_rs::{
    aead::{AES_256_GCM, Aad, LessSafeKey, Nonce, UnboundKey},
    hkdf,
};
use noq_proto::crypto::{CryptoError, HandshakeTokenKey};

/// Derives one AEAD key per token from the token's random 128 bits, so that no nonce repeats
/// however many tokens are made.
pub(crate) struct TokenKey(hkdf::Prk);

impl TokenKey {
    pub(crate) fn new(secret: &[u8; 32]) -> Self {
        Self(hkdf::Salt::new(hkdf::HKDF_SHA256, b"anyreach/1 retry token").extract(secret))
    }

    fn key(&self, token_nonce: u128) -> Result<LessSafeKey, CryptoError> {
        let info = token_nonce.to_be_bytes();
        let info = [&info[..]];
        let okm = self
            .0
            .expand(&info, &AES_256_GCM)
            .map_err(|_| CryptoError)?;
        Ok(LessSafeKey::new(UnboundKey::from(okm)))
    }
}

/// Each key seals one token.
fn nonce() -> Nonce {
    Nonce::assume_unique_for_key([0; 12])
}

impl HandshakeTokenKey for TokenKey {
    fn seal(&self, token_nonce: u128, data: &mut Vec<u8>) -> Result<(), CryptoError> {
        self.key(token_nonce)?
            .seal_in_place_append_tag(nonce(), Aad::empty(), data)
            .map_err(|_| CryptoError)
    }

    fn open<'a>(&self, token_nonce: u128, data: &'a mut [u8]) -> Result<&'a [u8], CryptoError> {
        self.key(token_nonce)?
            .open_in_place(nonce(), Aad::empty(), data)
            .map(|opened| &*opened)
            .map_err(|_| CryptoError)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn opens_what_it_sealed_and_nothing_else() {
        let key = TokenKey::new(&[7; 32]);
        let mut sealed = b"address".to_vec();
        key.seal(1, &mut sealed).unwrap();
        assert_eq!(key.open(1, &mut sealed.clone()).unwrap(), b"address");
        assert!(key.open(2, &mut sealed.clone()).is_err());
        assert!(
            TokenKey::new(&[8; 32])
                .open(1, &mut sealed.clone())
                .is_err()
        );
        for at in 0..sealed.len() {
            let mut damaged = sealed.clone();
            damaged[at] ^= 1;
            assert!(key.open(1, &mut damaged).is_err(), "byte {at}");
        }
    }
}
