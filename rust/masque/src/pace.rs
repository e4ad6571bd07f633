//! How often something may happen: a burst, and then one per period.

use std::time::Duration;

use tokio::time::Instant;

/// A token bucket.
#[derive(Debug)]
pub(crate) struct Pace {
    burst: u32,
    period: Duration,
    /// When the bucket was, or will be, full.
    full_at: Instant,
}

impl Pace {
    pub(crate) fn new(burst: u32, period: Duration, now: Instant) -> Self {
        Self {
            burst,
            period,
            full_at: now,
        }
    }

    /// Whether it may happen once more; it is counted if it may.
    pub(crate) fn take(&mut self, now: Instant) -> bool {
        let full_at = self.full_at.max(now) + self.period;
        if full_at - now > self.period * self.burst {
            return false;
        }
        self.full_at = full_at;
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_and_then_at_a_pace() {
        const BURST: u32 = 128;
        const PERIOD: Duration = Duration::from_millis(100);
        let start = Instant::now();
        let mut pace = Pace::new(BURST, PERIOD, start);
        assert!((0..BURST).all(|_| pace.take(start)));
        assert!(!pace.take(start));
        assert!(!pace.take(start + PERIOD / 2));
        assert!(pace.take(start + PERIOD));
        assert!(!pace.take(start + PERIOD));
        let later = start + PERIOD * 1000;
        assert!((0..BURST).all(|_| pace.take(later)));
        assert!(!pace.take(later));
    }
}
