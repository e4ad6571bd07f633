//! One direction of a line: when each packet leaves, or that it does not. Without I/O or clock.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use crate::random::Random;
use crate::words::{Error, Words};

/// How good a line is.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Quality {
    /// Time on the way.
    delay: Duration,
    /// Largest further time on the way, uniformly distributed. Packets never overtake each other.
    jitter: Duration,
    /// Share of packets lost, 0 to 1.
    loss: f64,
    /// Bytes per second, if limited.
    rate: Option<f64>,
    /// Bytes that wait for a limited line before further ones are dropped.
    queue: f64,
}

impl Quality {
    /// Reads `delay_us`, `jitter_us`, `loss`, `rate` (bytes per second, 0: no limit), `queue` (bytes).
    pub(crate) fn parse(words: &Words) -> Result<Self, Error> {
        let loss = words.get("loss")?.unwrap_or(0.0);
        if !(0.0..=1.0).contains(&loss) {
            return Err(format!("a loss of {loss} is not within 0 to 1").into());
        }
        let rate = words.get("rate")?.filter(|rate: &f64| *rate > 0.0);
        Ok(Self {
            delay: Duration::from_micros(words.get("delay_us")?.unwrap_or(0)),
            jitter: Duration::from_micros(words.get("jitter_us")?.unwrap_or(0)),
            loss,
            rate,
            queue: words.get("queue")?.unwrap_or(f64::INFINITY),
        })
    }
}

/// The packets on one direction of a line.
#[derive(Debug)]
pub(crate) struct Shaper {
    quality: Quality,
    random: Random,
    /// In order of the time they leave.
    waiting: VecDeque<(Instant, Vec<u8>)>,
    /// When the last bit taken so far has been put on a line of limited rate.
    busy_until: Option<Instant>,
}

impl Shaper {
    /// An empty line.
    pub(crate) fn new(quality: Quality, seed: u64) -> Self {
        Self {
            quality,
            random: Random::new(seed),
            waiting: VecDeque::new(),
            busy_until: None,
        }
    }

    /// Changes the quality for packets to come.
    pub(crate) fn set(&mut self, quality: Quality) {
        self.quality = quality;
        self.busy_until = None;
    }

    /// Takes a packet in; true unless it is lost.
    pub(crate) fn push(&mut self, packet: &[u8], now: Instant) -> bool {
        let Quality {
            delay,
            jitter,
            loss,
            rate,
            queue,
        } = self.quality;
        let Some(sent) = self.serialise(packet.len(), rate, queue, now) else {
            return false;
        };
        // Lost after it used the line, as on a radio link.
        if loss > 0.0 && self.random.unit() < loss {
            return false;
        }
        let mut leaves = sent + delay;
        if !jitter.is_zero() {
            leaves += jitter.mul_f64(self.random.unit());
        }
        if let Some((last, _)) = self.waiting.back() {
            leaves = leaves.max(*last);
        }
        self.waiting.push_back((leaves, packet.to_vec()));
        true
    }

    /// The next packet whose time has come.
    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        let (leaves, _) = self.waiting.front()?;
        if *leaves > now {
            return None;
        }
        self.waiting.pop_front().map(|(_, packet)| packet)
    }

    /// When the next packet leaves.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.waiting.front().map(|(leaves, _)| *leaves)
    }

    fn serialise(
        &mut self,
        bytes: usize,
        rate: Option<f64>,
        queue: f64,
        now: Instant,
    ) -> Option<Instant> {
        let Some(rate) = rate else {
            return Some(now);
        };
        let free = self.busy_until.map_or(now, |until| until.max(now));
        if (free - now).as_secs_f64() * rate + bytes as f64 > queue {
            return None;
        }
        let sent = free + Duration::from_secs_f64(bytes as f64 / rate);
        self.busy_until = Some(sent);
        Some(sent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shaper(words: &[&str]) -> Shaper {
        let words = Words::parse(words).expect("well formed");
        Shaper::new(Quality::parse(&words).expect("a quality"), 7)
    }

    fn drain(shaper: &mut Shaper, now: Instant) -> usize {
        std::iter::from_fn(|| shaper.pop(now)).count()
    }

    #[test]
    fn packets_leave_after_the_delay() {
        let start = Instant::now();
        let mut line = shaper(&["delay_us=10000"]);
        assert!(line.push(b"x", start));
        let due = start + Duration::from_millis(10);
        assert_eq!(line.next(), Some(due));
        assert_eq!(line.pop(due - Duration::from_nanos(1)), None);
        assert_eq!(line.pop(due).as_deref(), Some(&b"x"[..]));
        assert_eq!(line.next(), None);
    }

    #[test]
    fn jitter_never_reorders() {
        let start = Instant::now();
        let mut line = shaper(&["delay_us=100", "jitter_us=5000"]);
        for number in 0..200u8 {
            assert!(line.push(&[number], start + Duration::from_micros(u64::from(number))));
        }
        let all: Vec<u8> = std::iter::from_fn(|| line.pop(start + Duration::from_secs(1)))
            .map(|packet| packet[0])
            .collect();
        assert_eq!(all, (0..200).collect::<Vec<u8>>());
    }

    #[test]
    fn the_share_of_lost_packets_is_the_one_asked_for() {
        let now = Instant::now();
        let mut line = shaper(&["loss=0.1"]);
        let lost = (0..10_000).filter(|_| !line.push(b"x", now)).count();
        assert!((900..1100).contains(&lost), "{lost}");
        assert!(Quality::parse(&Words::parse(["loss=1.5"]).expect("well formed")).is_err());
    }

    #[test]
    fn the_rate_spaces_packets_and_the_queue_bounds_them() {
        let start = Instant::now();
        let mut line = shaper(&["rate=1000000", "queue=10000"]);
        let taken = (0..20).filter(|_| line.push(&[0; 1000], start)).count();
        assert_eq!(taken, 10);
        assert_eq!(drain(&mut line, start + Duration::from_micros(3500)), 3);
        // What has left makes room.
        assert!(line.push(&[0; 1000], start + Duration::from_micros(3500)));
        assert_eq!(drain(&mut line, start + Duration::from_millis(11)), 8);
    }

    #[test]
    fn a_new_quality_holds_for_packets_to_come() {
        let start = Instant::now();
        let mut line = shaper(&["delay_us=1000"]);
        assert!(line.push(b"a", start));
        line.set(Quality::parse(&Words::default()).expect("the perfect line"));
        assert!(line.push(b"b", start));
        assert_eq!(drain(&mut line, start), 0, "no overtaking");
        assert_eq!(drain(&mut line, start + Duration::from_millis(1)), 2);
    }
}
