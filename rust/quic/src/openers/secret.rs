//! What openers are authenticated with.

use std::fmt;

use anyreach_wire::opener::{MAC_LEN, Mac, OPENER_LEN, Opener, OpenerKind, OpenerRole, TAG_LEN};
use aws_lc_rs::{constant_time, hmac, rand};

/// Label of the TLS exporter (RFC 8446, section 7.5) the secret of a connection comes from: only its
/// two ends have it, and it says nothing of the keys that protect their packets.
pub(crate) const EXPORTER_LABEL: &[u8] = b"EXPORTER-anyreach-opener";

const KEY_LEN: usize = 32;

/// What is exported: a key for HMAC-SHA-256, and a name for it.
pub(crate) const SECRET_LEN: usize = KEY_LEN + TAG_LEN;

/// A key and its name. Kept as bytes: a ready key is half a kilobyte, and most connections never
/// need one.
#[derive(Clone)]
pub(crate) struct Secret {
    key: [u8; KEY_LEN],
    tag: [u8; TAG_LEN],
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

impl Secret {
    /// Of what was exported.
    pub(crate) fn new(exported: &[u8; SECRET_LEN]) -> Self {
        let (mut key, mut tag) = ([0; KEY_LEN], [0; TAG_LEN]);
        key.copy_from_slice(&exported[..KEY_LEN]);
        tag.copy_from_slice(&exported[KEY_LEN..]);
        Self { key, tag }
    }

    /// One nobody else has; `None` if there is no randomness.
    pub(super) fn random() -> Option<Self> {
        let mut bytes = [0; SECRET_LEN];
        rand::fill(&mut bytes).ok()?;
        Some(Self::new(&bytes))
    }

    pub(super) fn tag(&self) -> [u8; TAG_LEN] {
        self.tag
    }

    fn mac(&self, opener: &Opener, role: OpenerRole) -> Mac {
        let key = hmac::Key::new(hmac::HMAC_SHA256, &self.key);
        let full = hmac::sign(&key, &opener.signed(role));
        let mut mac = [0; MAC_LEN];
        mac.copy_from_slice(&full.as_ref()[..MAC_LEN]);
        mac
    }

    /// An opener said by `role`, as a datagram.
    pub(super) fn datagram(
        &self,
        kind: OpenerKind,
        number: u32,
        role: OpenerRole,
    ) -> [u8; OPENER_LEN] {
        let opener = Opener {
            kind,
            tag: self.tag,
            number,
        };
        opener.to_datagram(&self.mac(&opener, role))
    }

    /// Whether `role` has said this opener, sooner or later, wherever it comes from.
    pub(super) fn is_genuine(&self, opener: &Opener, mac: &Mac, role: OpenerRole) -> bool {
        opener.tag == self.tag
            && constant_time::verify_slices_are_equal(&self.mac(opener, role), mac).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bit_counts_and_so_does_the_role() {
        let secret = Secret::new(&[7; SECRET_LEN]);
        let other = Secret::new(&[8; SECRET_LEN]);
        let datagram = secret.datagram(OpenerKind::Open, 5, OpenerRole::Client);
        let genuine = |secret: &Secret, datagram: &[u8], role| {
            Opener::parse(datagram)
                .is_some_and(|(opener, mac)| secret.is_genuine(&opener, &mac, role))
        };
        assert!(genuine(&secret, &datagram, OpenerRole::Client));
        assert!(!genuine(&secret, &datagram, OpenerRole::Server));
        assert!(!genuine(&secret, &datagram, OpenerRole::Myself));
        assert!(!genuine(&other, &datagram, OpenerRole::Client));
        for bit in 0..OPENER_LEN * 8 {
            let mut forged = datagram;
            forged[bit / 8] ^= 1 << (bit % 8);
            assert!(!genuine(&secret, &forged, OpenerRole::Client), "bit {bit}");
        }
    }

    /// Computed with another implementation of HMAC.
    #[test]
    fn the_proof_is_hmac_sha_256() {
        let secret = Secret::new(&[7; SECRET_LEN]);
        let datagram = secret.datagram(OpenerKind::Answer, 0x0102_0304, OpenerRole::Server);
        assert_eq!(datagram[OPENER_LEN - MAC_LEN..], KNOWN);
    }

    const KNOWN: [u8; MAC_LEN] = [0xf7, 0x99, 0xed, 0xf0, 0x66, 0x3a, 0xf7, 0x50, 0x69, 0x64];
}
