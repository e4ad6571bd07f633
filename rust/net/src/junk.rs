//! What arrives on an open UDP port and cannot be QUIC.
//!
//! Pure. The first byte decides, by the demultiplexing table of RFC 9443 (which updates RFC 7983):
//! 0-3 STUN, 16-19 ZRTP, 20-63 DTLS, 64-79 TURN channel *or* QUIC, 80-127 QUIC, 128-191 RTP,
//! 192-255 QUIC. Everything from us and our peers has QUIC's fixed bit (0x40), because the endpoint
//! does not advertise `grease_quic_bit` (RFC 9287): without that parameter no peer may clear it.

use anyreach_wire::opener::is_opener;

/// The smallest QUIC datagram: a Version Negotiation packet with empty connection ids and one
/// version (RFC 8999 section 6). The smallest that can hold a protected packet is 21 bytes.
const MIN_QUIC_DATAGRAM: usize = 11;

/// The bit RFC 9000 section 17 fixes to one.
const FIXED_BIT: u8 = 0x40;

/// Marks a long header packet, in all versions of QUIC (RFC 8999).
const LONG_HEADER: u8 = 0x80;

/// Why a datagram cannot be QUIC.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Junk {
    /// No payload at all.
    Empty,
    /// Shorter than any QUIC datagram.
    Runt,
    /// Looks like STUN (RFC 8489).
    Stun,
    /// Looks like ZRTP (RFC 6189).
    Zrtp,
    /// Looks like DTLS (RFC 9147).
    Dtls,
    /// Looks like an opener, which is none and still not for the engine.
    Opener,
    /// Anything else without the fixed bit, such as RTP or DNS.
    Other,
}

/// Says why `datagram` cannot be QUIC, or `None` if it may be.
#[inline]
pub(crate) fn classify(datagram: &[u8]) -> Option<Junk> {
    let Some(&first) = datagram.first() else {
        return Some(Junk::Empty);
    };
    if datagram.len() < MIN_QUIC_DATAGRAM {
        return Some(Junk::Runt);
    }
    if first & FIXED_BIT != 0 {
        return None;
    }
    match first {
        0..=3 => Some(Junk::Stun),
        16..=19 => Some(Junk::Zrtp),
        20..=63 => Some(Junk::Dtls),
        _ if is_opener(datagram) => Some(Junk::Opener),
        // In Version Negotiation the bits below the first are arbitrary (RFC 8999 section 6).
        _ if first & LONG_HEADER != 0 && datagram[1..5] == [0; 4] => None,
        _ => Some(Junk::Other),
    }
}

#[cfg(test)]
mod tests {
    use anyreach_wire::opener::{OPENER_FIRST_BYTE, OPENER_LEN};
    use proptest::prelude::*;

    use super::*;

    fn datagram(first: u8) -> [u8; 1200] {
        let mut bytes = [0xa5; 1200];
        bytes[0] = first;
        bytes
    }

    #[test]
    fn every_first_byte_is_classified_by_the_table() {
        for first in 0..=255_u8 {
            let expected = match first {
                0..=3 => Some(Junk::Stun),
                16..=19 => Some(Junk::Zrtp),
                20..=63 => Some(Junk::Dtls),
                64..=127 | 192..=255 => None,
                _ => Some(Junk::Other),
            };
            assert_eq!(classify(&datagram(first)), expected, "first byte {first}");
        }
    }

    #[test]
    fn openers_are_told_by_their_first_byte_and_length() {
        let opener = [OPENER_FIRST_BYTE; OPENER_LEN];
        assert_eq!(classify(&opener), Some(Junk::Opener));
        assert_eq!(classify(&opener[1..]), Some(Junk::Other));
        assert_eq!(classify(&datagram(OPENER_FIRST_BYTE)), Some(Junk::Other));
    }

    #[test]
    fn short_datagrams_are_named_by_their_length() {
        assert_eq!(classify(&[]), Some(Junk::Empty));
        for len in 1..MIN_QUIC_DATAGRAM {
            assert_eq!(classify(&datagram(0xc0)[..len]), Some(Junk::Runt));
        }
        assert_eq!(classify(&datagram(0xc0)[..MIN_QUIC_DATAGRAM]), None);
    }

    #[test]
    fn version_negotiation_may_clear_the_fixed_bit() {
        let mut bytes = datagram(0x80);
        bytes[1..5].fill(0);
        assert_eq!(classify(&bytes), None);
        bytes[4] = 1;
        assert_eq!(classify(&bytes), Some(Junk::Other));
    }

    proptest! {
        #[test]
        fn whatever_has_the_fixed_bit_and_a_size_passes(
            mut bytes in proptest::collection::vec(any::<u8>(), MIN_QUIC_DATAGRAM..64),
        ) {
            bytes[0] |= FIXED_BIT;
            prop_assert_eq!(classify(&bytes), None);
        }
    }
}
