//! What NAT traversal on a connection has come to, in numbers.

use std::sync::atomic::{AtomicU64, Ordering};

use super::{filter::Refusal, offers, rounds};

/// Counters of one connection.
#[derive(Debug, Default)]
pub(crate) struct Counts {
    /// Rounds begun, by the client of the connection.
    pub(super) rounds: AtomicU64,
    scope: AtomicU64,
    far: AtomicU64,
    port: AtomicU64,
    limit: AtomicU64,
    pace: AtomicU64,
    /// Refused because the peer had not paid for it.
    pub(crate) budget: AtomicU64,
}

impl Counts {
    pub(crate) fn bump(counter: &AtomicU64) {
        counter.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn address(&self, refusal: Refusal) {
        Self::bump(match refusal {
            Refusal::Scope => &self.scope,
            Refusal::Far => &self.far,
            Refusal::Port => &self.port,
        });
    }

    /// An offer was refused.
    pub(super) fn offer(&self, refused: &offers::Refused) {
        match refused {
            offers::Refused::Address(refusal) => self.address(*refusal),
            offers::Refused::Limit => Self::bump(&self.limit),
        }
    }

    /// An address was not probed.
    pub(super) fn punch(&self, refused: &rounds::Refused) {
        match refused {
            rounds::Refused::Address(refusal) => self.address(*refusal),
            rounds::Refused::Pace => Self::bump(&self.pace),
            rounds::Refused::Budget => Self::bump(&self.budget),
        }
    }

    /// By name.
    pub(crate) fn by_name(&self) -> [(&'static str, u64); 7] {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        [
            ("rounds", get(&self.rounds)),
            ("refused_scope", get(&self.scope)),
            ("refused_private", get(&self.far)),
            ("refused_port", get(&self.port)),
            ("refused_limit", get(&self.limit)),
            ("refused_pace", get(&self.pace)),
            ("budget_refused", get(&self.budget)),
        ]
    }
}
