//! How many bytes a peer may have this node send to addresses that have not proved themselves.
//!
//! Pure, but for being shared. What is sent to whom a peer names is answered by what the peer has
//! sent itself, three for one as RFC 9000, section 8, has it for addresses not validated. Who asks
//! for a flood has to pay for a third of it.

use std::sync::atomic::{AtomicU64, Ordering};

/// RFC 9000, section 8.1: three times what was received.
const FACTOR: u64 = 3;

/// What a peer has sent before packets are counted here: an ML-DSA-65 key and signature at least
/// (FIPS 204: 1,952 and 3,309 bytes), which no handshake can do without.
const HANDSHAKE_BYTES: u64 = 1952 + 3309;

/// Bytes of a probe: first byte, connection ID, packet number, PATH_CHALLENGE, tag, each as long as
/// it can get (RFC 9000, section 17.3.1).
pub(crate) const PROBE_BYTES: u64 = 1 + 20 + 4 + 9 + 16;

/// What is counted of a packet besides its payload: a header and the tag.
const PACKET_OVERHEAD: u64 = 1 + 1 + 16;

/// Bytes received and spent.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    received: AtomicU64,
    spent: AtomicU64,
    /// Probes sent, ever.
    probes: AtomicU64,
}

impl Budget {
    /// A probe was sealed.
    pub(crate) fn probe_sent(&self) {
        self.probes.fetch_add(1, Ordering::Relaxed);
    }

    /// Probes sent, ever.
    pub(crate) fn probes_sent(&self) -> u64 {
        self.probes.load(Ordering::Relaxed)
    }

    /// A packet of the peer with so much payload was opened. Packets of a connection are opened one
    /// at a time.
    #[inline]
    pub(crate) fn received(&self, payload: usize) {
        let before = self.received.load(Ordering::Relaxed);
        let now = before + payload as u64 + PACKET_OVERHEAD;
        self.received.store(now, Ordering::Relaxed);
    }

    /// Takes so many bytes, if there are so many.
    pub(crate) fn take(&self, bytes: u64) -> bool {
        let received = self.received.load(Ordering::Relaxed) + HANDSHAKE_BYTES;
        let allowed = received.saturating_mul(FACTOR);
        let spend = |spent: u64| spent.checked_add(bytes).filter(|spent| *spent <= allowed);
        self.spent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .is_ok()
    }

    /// Gives back what was taken and not sent.
    pub(crate) fn give_back(&self, bytes: u64) {
        let restore = |spent: u64| Some(spent.saturating_sub(bytes));
        // Never fails: the closure always has an answer.
        let _ = self
            .spent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, restore);
    }
}

/// What is put aside for the probes of a round, most of which are sent only if nobody answers.
#[derive(Debug, Default)]
pub(super) struct Reserve {
    probes: u64,
    /// [`Budget::probes_sent`] when the round began.
    sent_before: u64,
}

impl Reserve {
    /// A new round: gives back what the one before did not need, since its probing is over.
    pub(super) fn settle(&mut self, budget: &Budget) {
        let sent = budget.probes_sent();
        let unsent = self.probes.saturating_sub(sent - self.sent_before);
        budget.give_back(unsent * PROBE_BYTES);
        *self = Self {
            probes: 0,
            sent_before: sent,
        };
    }

    /// Puts aside so many probes, if the peer has paid for them.
    pub(super) fn take(&mut self, budget: &Budget, probes: u64) -> bool {
        let taken = budget.take(probes * PROBE_BYTES);
        if taken {
            self.probes += probes;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever the order, not more than three times what was received is ever out.
        #[test]
        fn three_for_one(
            steps in prop::collection::vec((0_usize..1500, 0_u64..5000, 0_u64..300), 0..50),
        ) {
            let budget = Budget::default();
            let (mut received, mut out) = (HANDSHAKE_BYTES, 0);
            for (payload, wanted, unsent) in steps {
                budget.received(payload);
                received += payload as u64 + PACKET_OVERHEAD;
                let fits = out + wanted <= received * FACTOR;
                prop_assert_eq!(budget.take(wanted), fits);
                if fits {
                    budget.give_back(unsent.min(wanted));
                    out += wanted - unsent.min(wanted);
                }
            }
        }
    }

    #[test]
    fn a_handshake_pays_for_a_round() {
        let budget = Budget::default();
        assert!(budget.take(32 * 9 * PROBE_BYTES));
        assert!(!budget.take(u64::MAX));
    }

    #[test]
    fn what_was_put_aside_and_not_sent_comes_back() {
        let budget = Budget::default();
        let mut reserve = Reserve::default();
        for _ in 0..100 {
            reserve.settle(&budget);
            assert!(reserve.take(&budget, 200));
            budget.probe_sent();
        }
        // One probe of each round is gone for good.
        let rest = HANDSHAKE_BYTES * FACTOR - (99 + 200) * PROBE_BYTES;
        assert!(!budget.take(rest + 1) && budget.take(rest));
    }
}
