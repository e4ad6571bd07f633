//! How often a connection may make news, or ask for something: a token bucket with time as an argument.

use std::time::{Duration, Instant};

/// How often something may happen.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Pace {
    /// At once, before the pace sets in.
    pub(crate) burst: u32,
    /// One more every so often.
    pub(crate) period: Duration,
}

/// News of one connection. A failover with a few candidates stays below the burst; the pace is
/// faster than a person or a policy can use, and slow enough that a peer that makes up changes
/// costs nothing.
pub(crate) const NEWS: Pace = Pace {
    burst: 8,
    period: Duration::from_millis(250),
};

#[derive(Debug)]
pub(crate) struct Throttle {
    pace: Pace,
    /// When the bucket was, or will be, full.
    full_at: Instant,
}

impl Throttle {
    pub(crate) fn new(pace: Pace, now: Instant) -> Self {
        Self { pace, full_at: now }
    }

    /// Takes a token, or says when there will be one.
    pub(crate) fn take(&mut self, now: Instant) -> Result<(), Instant> {
        let Pace { burst, period } = self.pace;
        let full_at = self.full_at.max(now) + period;
        // A clock younger than the burst cannot have given anything away.
        let allowed_from = full_at.checked_sub(period * burst).unwrap_or(now);
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
        let mut throttle = Throttle::new(NEWS, start);
        for _ in 0..NEWS.burst {
            assert_eq!(throttle.take(start), Ok(()));
        }
        let next = throttle.take(start).unwrap_err();
        assert_eq!(next, start + NEWS.period);
        assert!(throttle.take(next - Duration::from_millis(1)).is_err());
        assert_eq!(throttle.take(next), Ok(()));
        assert!(throttle.take(next).is_err());
        // Full again after a rest, and not fuller.
        let later = next + NEWS.period * 100;
        let granted = (0..100).filter(|_| throttle.take(later).is_ok()).count();
        assert_eq!(granted, NEWS.burst as usize);
    }
}
