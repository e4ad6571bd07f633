//! The round-trip time of a path without the queues our own data makes on it.

use std::time::{Duration, Instant};

/// How far back the least of all measurements is remembered, at least; at most twice as long.
/// Longer than most transfers fill a queue without a pause, short enough to notice another route.
const WINDOW: Duration = Duration::from_secs(30);

/// The least round-trip time of the last while, in two halves.
#[derive(Debug)]
pub(crate) struct Floor {
    before: Duration,
    now: Duration,
    since: Instant,
}

impl Floor {
    pub(crate) fn new(now: Instant, rtt: Duration) -> Self {
        Self {
            before: rtt,
            now: rtt,
            since: now,
        }
    }

    /// Takes in a measurement; the least of late.
    pub(crate) fn sample(&mut self, now: Instant, rtt: Duration) -> Duration {
        if now.saturating_duration_since(self.since) >= WINDOW {
            self.before = self.now;
            self.now = rtt;
            self.since = now;
        }
        self.now = self.now.min(rtt);
        self.get()
    }

    pub(crate) fn get(&self) -> Duration {
        self.before.min(self.now)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_is_seen_through_and_another_route_is_not_missed() {
        let start = Instant::now();
        let ms = Duration::from_millis;
        let mut floor = Floor::new(start, ms(40));
        assert_eq!(floor.sample(start + WINDOW / 2, ms(300)), ms(40));
        assert_eq!(floor.sample(start + WINDOW * 3 / 2, ms(300)), ms(40));
        assert_eq!(floor.sample(start + WINDOW * 3, ms(300)), ms(300));
        assert_eq!(floor.sample(start + WINDOW * 3, ms(80)), ms(80));
    }
}
