//! How long to wait between attempts to get a carrier back.

use std::time::Duration;

/// The first wait. An attempt costs a handshake, and most outages that end by themselves (a
/// restart, a hand-over between networks) last longer than this.
pub const FIRST_DELAY: Duration = Duration::from_millis(100);

/// The longest wait: what a person waits before pressing the button again, and at 2 attempts a
/// minute nothing a relay that comes back notices, however many clients it had.
pub const MAX_DELAY: Duration = Duration::from_secs(30);

/// A carrier that held for this long was a good one: the next attempt after it is made at once.
/// One that is taken away sooner is part of the same outage.
pub const STABLE_AFTER: Duration = Duration::from_secs(5);

/// None at first, then doubling from [`FIRST_DELAY`] to [`MAX_DELAY`]. Sans-I/O.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Backoff {
    waits: u32,
}

impl Backoff {
    /// For after an attempt in vain: at once is for a carrier that was lost.
    pub(super) const fn not_found() -> Self {
        Self { waits: 1 }
    }

    /// The wait before the next attempt: a random one between half and all of what is due, so that
    /// the clients of a relay that went away do not all come back in the same instant. `random` is
    /// equally distributed.
    pub(super) fn next(&mut self, random: u32) -> Duration {
        let waits = self.waits;
        self.waits = waits.saturating_add(1);
        let Some(doublings) = waits.checked_sub(1) else {
            return Duration::ZERO;
        };
        let factor = 1_u32.checked_shl(doublings).unwrap_or(u32::MAX);
        let half = FIRST_DELAY.saturating_mul(factor).min(MAX_DELAY) / 2;
        half + half.mul_f64(f64::from(random) / f64::from(u32::MAX))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_doubles_to_the_longest_wait_and_stays_there() {
        let mut backoff = Backoff::default();
        let waits: Vec<u128> = (0..13)
            .map(|_| backoff.next(u32::MAX).as_millis())
            .collect();
        assert_eq!(
            waits,
            [
                0, 100, 200, 400, 800, 1600, 3200, 6400, 12800, 25600, 30000, 30000, 30000
            ]
        );
        let mut backoff = Backoff::not_found();
        assert_eq!(backoff.next(0), FIRST_DELAY / 2);
        for _ in 0..100 {
            assert!(backoff.next(0) <= MAX_DELAY / 2);
        }
    }

    #[test]
    fn it_lies_between_half_and_all_of_it() {
        for random in [0, 1, u32::MAX / 2, u32::MAX] {
            let wait = Backoff::not_found().next(random);
            assert!((FIRST_DELAY / 2..=FIRST_DELAY).contains(&wait), "{wait:?}");
        }
    }
}
