//! How often a connection may make news: a token bucket with time as an argument.

use std::time::{Duration, Instant};

/// News at once, before the pace sets in: a failover with a few candidates stays below.
const BURST: u32 = 8;

/// One more every so often. Faster than a person or a policy can use, and slow enough that a peer
/// that makes up changes costs nothing.
const PERIOD: Duration = Duration::from_millis(250);

#[derive(Debug)]
pub(crate) struct Throttle {
    /// When the bucket was, or will be, full.
    full_at: Instant,
}

impl Throttle {
    pub(crate) fn new(now: Instant) -> Self {
        Self { full_at: now }
    }

    /// Takes a token, or says when there will be one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let full_at = self.full_at.max(now) + PERIOD;
        // A clock younger than the burst cannot have given anything away.
        let allowed_from = full_at.checked_sub(PERIOD * BURST).unwrap_or(now);
        if allowed_from > now {
            return Err(allowed_from);
        }
        self.full_at = full_at;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_then_the_pace() {
        let start = Instant::now();
        let mut throttle = Throttle::new(start);
        for _ in 0..BURST {
            assert_eq!(throttle.take(start), Ok(()));
        }
        let next = throttle.take(start).unwrap_err();
        assert_eq!(next, start + PERIOD);
        assert!(throttle.take(next - Duration::from_millis(1)).is_err());
        assert_eq!(throttle.take(next), Ok(()));
        assert!(throttle.take(next).is_err());
        // Full again after a rest, and not fuller.
        let later = next + PERIOD * 100;
        let granted = (0..100).filter(|_| throttle.take(later).is_ok()).count();
        assert_eq!(granted, BURST as usize);
    }
}
