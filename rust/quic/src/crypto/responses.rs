//! How much is sent to where challenges come from, which can be forged.
//!
//! The engine answers a PATH_CHALLENGE of forty bytes with a datagram of 1,200, to an address that
//! nothing is known of. RFC 9000, section 8.2.2, has such a response not expanded beyond three times
//! what came from there. A packet that is being sealed has the length it has; so challenges beyond
//! that are blanked before the engine sees them, which for the peer is the loss of a packet. Where a
//! packet came from is not known here: what is counted is the whole connection, which whoever forges
//! addresses has to feed all the same.

use std::sync::atomic::{AtomicI64, Ordering};

use anyreach_wire::walk::frame_at;

/// RFC 9000, section 8.1: three times what was received.
const FACTOR: i64 = 3;

/// Bytes of a response, as it is expanded to (RFC 9000, section 8.2.2).
const RESPONSE_BYTES: i64 = 1200;

/// What is counted of a packet besides its payload: the shortest header and the tag.
const PACKET_OVERHEAD: i64 = 1 + 1 + 16;

/// What came before packets are counted here. At least the first datagram of a client.
const STRANGER_BYTES: i64 = 1200;

/// From a node, an ML-DSA-65 key and signature (FIPS 204: 1,952 and 3,309 bytes).
const NODE_BYTES: i64 = 1952 + 3309;

/// Most that can be saved up: as many responses as the engine has waiting. However much a peer has
/// sent, it cannot turn on somebody with all of that at once.
const MOST: i64 = 32 * RESPONSE_BYTES;

/// Type of PATH_CHALLENGE.
const PATH_CHALLENGE: u64 = 0x1a;

/// Balance of one connection: what the peer has paid for and not used, below zero at the expense of
/// the handshake.
#[derive(Debug, Default)]
pub(crate) struct Responses(AtomicI64);

impl Responses {
    /// Looks at the payload of a packet that was opened, and blanks its challenges if the response
    /// would be too much; whether that was so. `node`: whether the peer has proved to be one.
    /// Packets of a connection are opened one at a time.
    #[inline]
    pub(super) fn admit(&self, payload: &mut [u8], node: bool) -> bool {
        let paid = FACTOR * (payload.len() as i64 + PACKET_OVERHEAD);
        let balance = self.0.load(Ordering::Relaxed).saturating_add(paid);
        // Those that are as large pay for themselves.
        if paid >= RESPONSE_BYTES || !has_challenge(payload) {
            self.0.store(balance.min(MOST), Ordering::Relaxed);
            return false;
        }
        let handshake = FACTOR * if node { NODE_BYTES } else { STRANGER_BYTES };
        let refused = balance + handshake < RESPONSE_BYTES;
        let spent = if refused { 0 } else { RESPONSE_BYTES };
        self.0.store((balance - spent).min(MOST), Ordering::Relaxed);
        if refused {
            blank_challenges(payload);
        }
        refused
    }
}

fn has_challenge(payload: &[u8]) -> bool {
    let mut at = 0;
    while let Ok(Some(frame)) = frame_at(payload, at) {
        if frame.frame_type == PATH_CHALLENGE {
            return true;
        }
        at = frame.range.end;
    }
    false
}

/// Leaves PADDING, which probes as little as they did: anything else would be a sign that the peer
/// has moved to where it came from (RFC 9000, section 9.1).
#[cold]
fn blank_challenges(payload: &mut [u8]) {
    let mut at = 0;
    while let Ok(Some(frame)) = frame_at(payload, at) {
        at = frame.range.end;
        if frame.frame_type == PATH_CHALLENGE {
            payload[frame.range].fill(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A packet of `length` bytes with a challenge in front.
    fn challenge(length: usize) -> Vec<u8> {
        let mut payload = vec![0; length.max(9)];
        payload[..9].copy_from_slice(&[0x1a, 1, 2, 3, 4, 5, 6, 7, 8]);
        payload
    }

    #[test]
    fn a_few_probes_are_answered_at_once_and_many_are_not() {
        for (node, expected) in [(true, 13), (false, 3)] {
            let responses = Responses::default();
            let answered = (0..100)
                .take_while(|_| !responses.admit(&mut challenge(16), node))
                .count();
            assert!((expected..=expected + 2).contains(&answered), "{answered}");
            // Others pay for more.
            for _ in 0..20 {
                assert!(!responses.admit(&mut [1; 300], node));
            }
            assert!(!responses.admit(&mut challenge(16), node));
        }
    }

    #[test]
    fn what_is_refused_is_blanked_and_nothing_else() {
        let responses = Responses::default();
        while !responses.admit(&mut challenge(9), false) {}
        let mut payload = [&[0x01][..], &challenge(9), &[0x1b; 9], &[0x01]].concat();
        assert!(responses.admit(&mut payload, false));
        let expected = [&[0x01][..], &[0; 9], &[0x1b; 9], &[0x01]].concat();
        assert_eq!(payload, expected);
        let large = challenge(1100);
        let mut payload = large.clone();
        assert!(!responses.admit(&mut payload, false));
        assert_eq!(payload, large);
    }

    proptest! {
        /// Whatever the order, small challenges bring no more than was paid for.
        #[test]
        fn three_for_one(lengths in prop::collection::vec((any::<bool>(), 9_usize..1500), 0..300)) {
            let responses = Responses::default();
            let (mut received, mut sent) = (NODE_BYTES, 0);
            for (asks, length) in lengths {
                let mut payload = if asks { challenge(length) } else { vec![0; length] };
                received += length as i64 + PACKET_OVERHEAD;
                let refused = responses.admit(&mut payload, true);
                prop_assert!(asks || !refused);
                sent += i64::from(asks && !refused) * RESPONSE_BYTES;
                prop_assert!(sent <= FACTOR * received);
            }
        }
    }
}
