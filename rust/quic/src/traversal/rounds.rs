//! What a client may ask of its server: rounds of probing, and the limits of each.
//!
//! Pure, time and money are arguments. Frames come late, twice and in any order: whatever was taken
//! is taken again, and counts once.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyreach_wire::{address::Address, frames::PunchMeNow, varint::VarInt};

use super::{
    MAX_CANDIDATES, PROBES,
    budget::{Budget, Reserve},
    filter::Refusal,
};
use crate::throttle::{Pace, Throttle};

/// Between two rounds. A round probes for some four seconds, so more of them achieve nothing; two
/// that have come closer together on their way are let pass.
pub(super) const ROUND_PACE: Pace = Pace {
    burst: 2,
    ..OWN_PACE
};

/// Between two rounds this side begins.
pub(super) const OWN_PACE: Pace = Pace {
    burst: 1,
    period: Duration::from_secs(1),
};

/// How long after the start of a round a path that comes up is taken for a fruit of it: what the
/// engine probes for, and a validation.
const HARVEST: Duration = Duration::from_secs(10);

/// The rounds of one client.
#[derive(Debug)]
pub(super) struct Rounds {
    throttle: Throttle,
    current: Option<Round>,
    /// The one before, whose probes may still be answered.
    previous: Option<Round>,
    /// The highest round that was begun too early, and is left out.
    skipped: Option<VarInt>,
    reserve: Reserve,
}

#[derive(Debug)]
struct Round {
    number: VarInt,
    begun: Instant,
    /// Addresses asked for, and whether each was taken.
    asked: BTreeMap<Address, bool>,
    /// Whether it was said that the round has begun.
    told: bool,
}

/// What becomes of a PUNCH_ME_NOW frame.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The address is probed.
    Probe {
        /// It is the first of its round.
        begins: bool,
    },
    /// It is not, for a reason that is counted.
    Refuse(Refused),
    /// It was dealt with.
    Stale,
    /// More addresses than the server has allowed: the client breaks the protocol.
    TooMany,
}

/// Why an address is not probed.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Refused {
    Address(Refusal),
    /// The round comes too early.
    Pace,
    /// It would cost more than the peer has paid for.
    Budget,
}

impl Rounds {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            throttle: Throttle::new(ROUND_PACE, now),
            current: None,
            previous: None,
            skipped: None,
            reserve: Reserve::default(),
        }
    }

    /// The client asks for an address to be probed, of which this is thought.
    pub(super) fn punch(
        &mut self,
        now: Instant,
        punch: PunchMeNow,
        judged: Result<(), Refusal>,
        budget: &Budget,
    ) -> Verdict {
        let current = self.current.as_ref().map(|round| round.number);
        if current != Some(punch.round) {
            if current > Some(punch.round) {
                return Verdict::Stale;
            }
            if self.skipped >= Some(punch.round) {
                return Verdict::Refuse(Refused::Pace);
            }
            if self.throttle.take(now).is_err() {
                self.skipped = Some(punch.round);
                return Verdict::Refuse(Refused::Pace);
            }
            self.previous = self.current.take();
            self.reserve.settle(budget);
        }
        let round = self.current.get_or_insert_with(|| Round {
            number: punch.round,
            begun: now,
            asked: BTreeMap::new(),
            told: false,
        });
        match round.asked.get(&punch.address) {
            Some(true) => return Verdict::Probe { begins: false },
            Some(false) => return Verdict::Stale,
            None if round.asked.len() >= MAX_CANDIDATES => return Verdict::TooMany,
            None => {}
        }
        let taken = match judged {
            Err(refusal) => Err(Refused::Address(refusal)),
            Ok(()) if self.reserve.take(budget, PROBES) => Ok(()),
            Ok(()) => Err(Refused::Budget),
        };
        round.asked.insert(punch.address, taken.is_ok());
        match taken {
            Ok(()) => Verdict::Probe {
                begins: !std::mem::replace(&mut round.told, true),
            },
            Err(refused) => Verdict::Refuse(refused),
        }
    }

    /// Addresses that are probed in the present round.
    #[cfg(test)]
    pub(super) fn probed(&self) -> usize {
        let taken = |round: &Round| round.asked.values().filter(|taken| **taken).count();
        self.current.as_ref().map_or(0, taken)
    }

    /// Whether a path from there is the fruit of a round. A NAT may have given the client another
    /// port than it knows of.
    pub(super) fn has_probed(&self, now: Instant, remote: Address) -> bool {
        let rounds = self.current.iter().chain(&self.previous);
        rounds.into_iter().any(|round| {
            let fresh = now.saturating_duration_since(round.begun) <= HARVEST;
            let mut taken = round.asked.iter().filter(|(_, taken)| **taken);
            taken.any(|(address, _)| *address == remote || fresh && address.ip() == remote.ip())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn punch(round: u32, host: u8) -> PunchMeNow {
        PunchMeNow {
            round: VarInt::from_u32(round),
            paired_with: VarInt::default(),
            address: Address::new([203, 0, 113, host].into(), 9000),
        }
    }

    struct Case {
        rounds: Rounds,
        budget: Budget,
        now: Instant,
    }

    impl Case {
        fn new() -> Self {
            let now = Instant::now();
            let budget = Budget::default();
            budget.received(1 << 20);
            Self {
                rounds: Rounds::new(now),
                budget,
                now,
            }
        }

        fn punch(&mut self, round: u32, host: u8) -> Verdict {
            let frame = punch(round, host);
            self.rounds.punch(self.now, frame, Ok(()), &self.budget)
        }
    }

    const BEGINS: Verdict = Verdict::Probe { begins: true };
    const AGAIN: Verdict = Verdict::Probe { begins: false };

    #[test]
    fn a_round_takes_each_address_once_and_whatever_the_order() {
        let mut case = Case::new();
        assert_eq!(case.punch(3, 1), BEGINS);
        assert_eq!(case.punch(3, 2), AGAIN);
        assert_eq!(case.punch(3, 1), AGAIN);
        assert_eq!(case.rounds.probed(), 2);
        assert_eq!(case.punch(2, 4), Verdict::Stale);
        assert_eq!(case.rounds.probed(), 2);
        assert_eq!(case.punch(4, 1), BEGINS);
        assert_eq!(case.punch(3, 1), Verdict::Stale);
        assert_eq!(case.rounds.probed(), 1);
    }

    #[test]
    fn rounds_that_come_too_early_are_left_out() {
        let mut case = Case::new();
        let early = Verdict::Refuse(Refused::Pace);
        assert_eq!(case.punch(1, 1), BEGINS);
        assert_eq!(case.punch(2, 1), BEGINS);
        assert_eq!(case.punch(9, 1), early);
        case.now += ROUND_PACE.period;
        // Its other frames come later, and are no round of their own.
        assert_eq!(case.punch(9, 2), early);
        assert_eq!(case.punch(8, 2), early);
        assert_eq!(case.punch(2, 2), AGAIN);
        assert_eq!(case.punch(10, 1), BEGINS);
        assert_eq!(case.punch(11, 1), early);
    }

    #[test]
    fn a_round_has_its_limit() {
        let mut case = Case::new();
        for host in 0..MAX_CANDIDATES as u8 {
            assert!(matches!(case.punch(1, host), Verdict::Probe { .. }));
        }
        assert_eq!(case.punch(1, 200), Verdict::TooMany);
        assert_eq!(case.punch(1, 0), AGAIN);
        assert_eq!(case.punch(2, 200), BEGINS);
    }

    #[test]
    fn what_is_refused_is_refused_for_the_round_and_counts() {
        let mut case = Case::new();
        let refused = Verdict::Refuse(Refused::Address(Refusal::Far));
        let frame = punch(1, 1);
        let judged = Err(Refusal::Far);
        let verdict = case.rounds.punch(case.now, frame, judged, &case.budget);
        assert_eq!(verdict, refused);
        assert_eq!(case.punch(1, 1), Verdict::Stale);
        assert!(!case.rounds.has_probed(case.now, frame.address));
        assert_eq!(case.rounds.probed(), 0);
        assert_eq!(case.punch(1, 2), BEGINS);
    }

    #[test]
    fn probes_are_paid_for() {
        let mut case = Case::new();
        case.budget = Budget::default();
        let probed = (0..32)
            .filter(|host| matches!(case.punch(1, *host), Verdict::Probe { .. }))
            .count();
        assert_eq!(probed, 32, "the handshake has paid for a round");
        let probed = (0..32)
            .filter(|host| matches!(case.punch(2, *host), Verdict::Probe { .. }))
            .count();
        assert_eq!(probed, 32, "none was sent");
        for _ in 0..32 * PROBES {
            case.budget.probe_sent();
        }
        case.now += ROUND_PACE.period;
        let refused = (0..32)
            .filter(|host| case.punch(3, *host) == Verdict::Refuse(Refused::Budget))
            .count();
        assert!(refused > 24, "{refused}");
        assert_eq!(case.punch(3, 31), Verdict::Stale);
    }

    #[test]
    fn paths_are_fruits_of_rounds() {
        let mut case = Case::new();
        case.punch(1, 1);
        case.now += ROUND_PACE.period;
        case.punch(2, 2);
        let other_port = Address::new([203, 0, 113, 1].into(), 777);
        let stranger = Address::new([203, 0, 113, 3].into(), 9000);
        assert!(case.rounds.has_probed(case.now, punch(1, 1).address));
        assert!(case.rounds.has_probed(case.now, other_port));
        assert!(!case.rounds.has_probed(case.now, stranger));
        let later = case.now + HARVEST * 2;
        assert!(case.rounds.has_probed(later, punch(2, 2).address));
        assert!(!case.rounds.has_probed(later, other_port));
    }
}
