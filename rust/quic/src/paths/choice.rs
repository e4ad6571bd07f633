//! Choosing the path data goes by.
//!
//! A ranking from above comes first. Without one, or among equals of it: standbys last, direct
//! before relayed, then the shorter round trip, with hysteresis: two paths of nearly the same length
//! must not take turns, since each change costs a congestion window.

use std::{collections::BTreeMap, time::Duration};

/// IPv6 is preferred when it is no slower than this: fewer translators on the way.
const IPV6_BONUS: Duration = Duration::from_millis(3);

/// A shorter round trip counts if it is shorter by this much, and by a tenth: the first is the noise
/// of short lines, the second that of long ones.
const MIN_GAIN: Duration = Duration::from_millis(5);
const MIN_GAIN_DIVISOR: u32 = 10;

/// One usable path.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Candidate {
    pub(crate) id: u32,
    /// To be used only if there is no other, by our wish or that of the peer.
    pub(crate) standby: bool,
    pub(crate) relayed: bool,
    pub(crate) ipv6: bool,
    /// It was asked for a sign of life and has given none so far.
    pub(crate) doubtful: bool,
    /// Round trip without what our own data adds to it.
    pub(crate) rtt: Duration,
}

/// Ranks by path number; the lowest is best, and paths without one come after all others.
pub(crate) type Ranking = BTreeMap<u32, u32>;

impl Candidate {
    /// What is decided at once, whatever the round-trip times.
    fn class(&self, ranking: &Ranking) -> (Option<u32>, bool, bool) {
        // Reversed, so that `None` is last.
        let rank = ranking.get(&self.id).map(|rank| u32::MAX - rank);
        (rank, !self.standby, !self.relayed)
    }

    fn length(&self) -> Duration {
        let bonus = if self.ipv6 {
            IPV6_BONUS
        } else {
            Duration::ZERO
        };
        self.rtt.saturating_sub(bonus)
    }
}

/// The path to use; `None` only if there is none. A doubtful one is left only when it is closed, but
/// not moved to while there is any other.
pub(crate) fn choose(
    current: Option<u32>,
    candidates: &[Candidate],
    ranking: &Ranking,
) -> Option<u32> {
    let certain = |path: &&Candidate| !path.doubtful || Some(path.id) == current;
    let any_certain = candidates.iter().any(|path| certain(&path));
    let usable = || {
        let candidates = candidates.iter();
        candidates.filter(move |path| !any_certain || certain(path))
    };
    let class = usable().map(|path| path.class(ranking)).max()?;
    let equals = || usable().filter(|path| path.class(ranking) == class);
    let best = equals().min_by_key(|path| (path.length(), path.id))?;
    let current = equals().find(|path| Some(path.id) == current);
    let chosen = match current {
        Some(current) if !is_worth_it(current.length(), best.length()) => current,
        _ => best,
    };
    Some(chosen.id)
}

fn is_worth_it(from: Duration, to: Duration) -> bool {
    from.saturating_sub(to) >= MIN_GAIN.max(from / MIN_GAIN_DIVISOR)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn direct(id: u32, rtt_ms: u64) -> Candidate {
        Candidate {
            id,
            standby: false,
            relayed: false,
            ipv6: false,
            doubtful: false,
            rtt: Duration::from_millis(rtt_ms),
        }
    }

    fn relayed(id: u32, rtt_ms: u64) -> Candidate {
        Candidate {
            relayed: true,
            ..direct(id, rtt_ms)
        }
    }

    fn standby(id: u32, rtt_ms: u64) -> Candidate {
        Candidate {
            standby: true,
            ..direct(id, rtt_ms)
        }
    }

    fn by_rule(current: Option<u32>, candidates: &[Candidate]) -> Option<u32> {
        choose(current, candidates, &Ranking::new())
    }

    #[test]
    fn direct_comes_before_relayed_at_once() {
        assert_eq!(by_rule(Some(0), &[relayed(0, 10), direct(1, 200)]), Some(1));
        assert_eq!(by_rule(Some(0), &[relayed(0, 10), standby(1, 1)]), Some(0));
        assert_eq!(by_rule(Some(7), &[relayed(0, 10)]), Some(0));
        assert_eq!(by_rule(Some(7), &[]), None);
    }

    #[test]
    fn small_gains_are_not_worth_a_change() {
        assert_eq!(by_rule(Some(0), &[direct(0, 20), direct(1, 16)]), Some(0));
        assert_eq!(by_rule(Some(0), &[direct(0, 20), direct(1, 15)]), Some(1));
        assert_eq!(by_rule(Some(0), &[direct(0, 200), direct(1, 185)]), Some(0));
        assert_eq!(by_rule(Some(0), &[direct(0, 200), direct(1, 180)]), Some(1));
        let v6 = Candidate {
            ipv6: true,
            ..direct(1, 22)
        };
        assert_eq!(by_rule(None, &[direct(0, 20), v6]), Some(1));
    }

    #[test]
    fn nobody_moves_to_a_doubtful_path_while_there_is_another() {
        let doubtful = |path| Candidate {
            doubtful: true,
            ..path
        };
        let punched = doubtful(direct(2, 40));
        assert_eq!(by_rule(Some(1), &[relayed(0, 90), punched]), Some(0));
        assert_eq!(by_rule(Some(2), &[relayed(0, 90), punched]), Some(2));
        assert_eq!(
            by_rule(Some(1), &[doubtful(relayed(0, 90)), punched]),
            Some(2)
        );
        let ranking = Ranking::from([(2, 0), (0, 1)]);
        assert_eq!(choose(None, &[relayed(0, 90), punched], &ranking), Some(0));
    }

    #[test]
    fn a_ranking_decides_over_everything() {
        let ranking = Ranking::from([(0, 1), (2, 0)]);
        let paths = [relayed(0, 90), direct(1, 1), relayed(2, 99)];
        assert_eq!(choose(Some(1), &paths, &ranking), Some(2));
        assert_eq!(choose(Some(2), &paths[..2], &ranking), Some(0));
        assert_eq!(choose(Some(0), &paths[1..2], &ranking), Some(1));
    }

    prop_compose! {
        fn any_candidates()(
            paths in prop::collection::vec(
                (any::<[bool; 4]>(), 0_u64..400), 0..8,
            ),
        ) -> Vec<Candidate> {
            let numbered = paths.into_iter().enumerate();
            let path = |(id, (flags, rtt)): (usize, ([bool; 4], u64))| Candidate {
                id: id as u32,
                standby: flags[0],
                relayed: flags[1],
                ipv6: flags[2],
                doubtful: flags[3],
                rtt: Duration::from_millis(rtt),
            };
            numbered.map(path).collect()
        }
    }

    proptest! {
        /// Whatever is chosen is there, of the best class, and stays chosen.
        #[test]
        fn the_choice_is_stable_and_never_a_worse_class(
            candidates in any_candidates(),
            current in prop::option::of(0_u32..8),
            ranks in prop::collection::btree_map(0_u32..8, 0_u32..3, 0..4),
        ) {
            let chosen = choose(current, &candidates, &ranks);
            prop_assert_eq!(chosen.is_none(), candidates.is_empty());
            if let Some(id) = chosen {
                let of = |id| candidates.iter().find(|path| path.id == id);
                let class = of(id).map(|path| path.class(&ranks));
                let usable = |path: &&Candidate| !path.doubtful || Some(path.id) == current;
                let best = candidates.iter().filter(usable).map(|path| path.class(&ranks)).max();
                let any = candidates.iter().map(|path| path.class(&ranks)).max();
                prop_assert_eq!(class, best.or(any));
                prop_assert_eq!(choose(chosen, &candidates, &ranks), chosen);
                // And a change within the class is worth it.
                if let (Some(old), Some(new)) = (current.and_then(of), of(id))
                    && old.id != new.id && old.class(&ranks) == new.class(&ranks)
                {
                    prop_assert!(old.length() >= new.length() + MIN_GAIN);
                }
            }
        }

        /// Round trips that wander by less than the hysteresis change nothing.
        #[test]
        fn noise_never_changes_the_path(
            base in 20_u64..300, noise in prop::collection::vec((0_u64..2, 0_u64..2), 1..50),
        ) {
            for (a, b) in noise {
                let paths = [direct(0, base + 2 * a), direct(1, base + 2 * b)];
                prop_assert_eq!(by_rule(Some(0), &paths), Some(0));
            }
        }
    }
}
