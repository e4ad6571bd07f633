//! Telling a dead path from a quiet one.
//!
//! The engine tells nobody of acknowledgements, so they are looked for in its counters: one that
//! counts has the round-trip time of its path measured anew, on whatever path it comes itself. A path
//! on which something was sent that calls for an answer, and is not answered for about three round
//! trips while it is asked several times, is dead, provided another one lives: when none does, it is
//! the peer or our own line that is silent, and nothing is gained by closing paths. That something
//! is received on a path shows that it lives the other way; what we send may still get lost on it.

use std::time::{Duration, Instant};

/// Silence that means nothing: a delayed acknowledgement, a scheduler at work elsewhere.
const SILENCE_FLOOR: Duration = Duration::from_millis(150);

/// Round trips of silence that mean something.
const SILENCE_RTTS: u32 = 3;

/// By how much a peer may delay an acknowledgement: `max_ack_delay`, RFC 9000 section 18.2.
const ACK_DELAY: Duration = Duration::from_millis(25);

/// What else an answer may take that is a ping itself: the other side looks at its paths now and
/// then, and must have found its own silent.
const ECHO_DELAY: Duration = Duration::from_millis(70);

/// The path is asked when a round trip and the delay of its answer have passed in silence, at least
/// this long after what was sent.
const FIRST_PING_FLOOR: Duration = Duration::from_millis(50);

/// How often it is asked before it counts as silent. At a loss of one packet in ten each way, less
/// than one in a hundred live paths does not answer three times, and the engine asks as well.
const PINGS: u32 = 3;

/// Between two pings, until it counts as silent.
const PING_INTERVAL_MIN: Duration = Duration::from_millis(20);
const PING_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// And afterwards: it may come back.
const PING_INTERVAL_SILENT: Duration = Duration::from_millis(250);

/// Silence after which a path is given up although no other has shown life either: peers of other
/// makes may answer only on the dead one.
const HOPELESS: Duration = Duration::from_secs(3);
const HOPELESS_RTTS: u32 = 10;

/// What the engine's counters say of a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) struct Sample {
    /// Bytes sent in packets that call for an acknowledgement.
    pub(crate) sent: u64,
    /// Datagrams received.
    pub(crate) received: u64,
    /// Smoothed round-trip time.
    pub(crate) rtt: Duration,
}

/// How a path looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Health {
    /// It answers, or was asked nothing.
    Good,
    /// It owes an answer. To be pinged, and the others as well, if `ping`.
    Suspect {
        /// Whether it is time for the next ping.
        ping: bool,
    },
    /// It does not answer; to be closed if another one lives. To be pinged, and the others as well,
    /// if `ping`.
    Silent {
        /// Whether it is time for the next ping.
        ping: bool,
    },
    /// It has not answered for so long that it is to be closed in any case, if there is another.
    Hopeless,
}

/// What a sample has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// Anything has happened on the path.
    pub(crate) any: bool,
    /// It had been silent and is not any more.
    pub(crate) revived: bool,
}

/// The memory of one path.
#[derive(Debug)]
pub(crate) struct Pulse {
    last: Sample,
    heard: Instant,
    received: Instant,
    /// When something was sent that has not been answered.
    unanswered: Option<Instant>,
    pings: u32,
    pinged: Option<Instant>,
    /// When it had been asked often enough.
    asked: Option<Instant>,
    /// When it was first asked since it was last heard.
    asked_first: Option<Instant>,
    /// By how much its last sign of life came later than it should have.
    late_by: Duration,
}

impl Pulse {
    pub(crate) fn new(now: Instant, sample: Sample) -> Self {
        Self {
            last: sample,
            heard: now,
            received: now,
            unanswered: None,
            pings: 0,
            pinged: None,
            asked: None,
            asked_first: None,
            late_by: Duration::ZERO,
        }
    }

    /// Takes in the counters.
    pub(crate) fn sample(&mut self, now: Instant, sample: Sample) -> Change {
        let was_silent = matches!(self.health(now), Health::Silent { .. } | Health::Hopeless);
        let last = std::mem::replace(&mut self.last, sample);
        let (sent, received) = (sample.sent != last.sent, sample.received != last.received);
        if received {
            self.received = now;
        }
        let answered = sample.rtt != last.rtt;
        if received || answered {
            self.heard = now;
            let answer = self.answer_time() + ECHO_DELAY;
            self.late_by = self.asked_first.take().map_or(Duration::ZERO, |asked| {
                now.saturating_duration_since(asked).saturating_sub(answer)
            });
        }
        if answered {
            self.unanswered = None;
            self.reset_pings();
        } else if sent && self.unanswered.is_none() {
            self.unanswered = Some(now);
        }
        Change {
            any: sent || received,
            revived: was_silent && self.heard == now,
        }
    }

    /// Silence so far means nothing: we were not looking ourselves, or it was not this path. It owes
    /// an answer again when something is sent again; pings may wait for the congestion window, which
    /// is full of what was lost.
    pub(crate) fn forgive(&mut self) {
        self.unanswered = None;
        self.reset_pings();
    }

    fn reset_pings(&mut self) {
        self.pings = 0;
        self.asked = None;
    }

    /// The path was asked for a sign of life.
    pub(crate) fn pinged(&mut self, now: Instant) {
        self.pinged = Some(now);
        self.asked_first.get_or_insert(now);
        if self.unanswered.is_some() {
            self.pings += 1;
            if self.pings == PINGS {
                self.asked = Some(now);
            }
        }
    }

    /// When it last gave a sign of life.
    pub(crate) fn heard(&self) -> Instant {
        self.heard
    }

    /// By how much its last sign of life came later than it should have: so late may be those of
    /// other paths.
    pub(crate) fn late_by(&self) -> Duration {
        self.late_by
    }

    /// How long an answer takes at most if all is well.
    fn answer_time(&self) -> Duration {
        self.last.rtt + self.last.rtt / 4 + ACK_DELAY
    }

    /// Silence that means something.
    fn patience(&self) -> Duration {
        SILENCE_FLOOR.max(self.last.rtt * SILENCE_RTTS)
    }

    /// Whether it has been silent for longer than that by so much.
    pub(crate) fn outlasted(&self, now: Instant, extra: Duration) -> bool {
        self.unanswered.is_some_and(|unanswered| {
            now.saturating_duration_since(unanswered) >= self.patience() + extra
        })
    }

    /// When something last came by it.
    pub(crate) fn received(&self) -> Instant {
        self.received
    }

    /// Since when it owes an answer.
    pub(crate) fn unanswered(&self) -> Option<Instant> {
        self.unanswered
    }

    /// Whether it is time to ask again.
    pub(crate) fn ping_is_due(&self, now: Instant) -> bool {
        let interval = match self.asked {
            None => (self.last.rtt / 2).clamp(PING_INTERVAL_MIN, PING_INTERVAL_MAX),
            Some(_) => PING_INTERVAL_SILENT.max(self.last.rtt),
        };
        self.pinged
            .is_none_or(|pinged| now.saturating_duration_since(pinged) >= interval)
    }

    pub(crate) fn health(&self, now: Instant) -> Health {
        let Some(unanswered) = self.unanswered else {
            return Health::Good;
        };
        let rtt = self.last.rtt;
        let silence = now.saturating_duration_since(unanswered);
        let answer = self.answer_time();
        if silence < answer.max(FIRST_PING_FLOOR) {
            return Health::Good;
        }
        let asked = self
            .asked
            .is_some_and(|asked| now.saturating_duration_since(asked) >= answer);
        if asked && silence >= HOPELESS.max(rtt * HOPELESS_RTTS) {
            Health::Hopeless
        } else if asked && silence >= self.patience() {
            Health::Silent {
                ping: self.ping_is_due(now),
            }
        } else {
            Health::Suspect {
                ping: self.ping_is_due(now),
            }
        }
    }
}

#[cfg(test)]
mod tests;
