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

/// Between two looks at several paths: what is added to the time a dead one is noticed in.
pub(crate) const LOOK: Duration = Duration::from_millis(10);

/// Silence of a path there is no other than, from which on one is looked for: anything shorter is
/// more often a peer that is busy than a way that is cut.
const LOST_FLOOR: Duration = Duration::from_millis(500);
const LOST_RTTS: u32 = 4;

/// The path is asked when a round trip and the delay of its answer have passed in silence, at least
/// this long after what was sent.
const FIRST_PING_FLOOR: Duration = Duration::from_millis(50);

/// How often it is asked before it counts as silent. At a loss of one packet in ten each way, less
/// than one in a hundred live paths does not answer three times, and the engine asks as well.
const PINGS: u32 = 3;

/// Between two pings, until it counts as silent.
const PING_INTERVAL_MIN: Duration = Duration::from_millis(20);
const PING_INTERVAL_MAX: Duration = Duration::from_millis(100);

/// And afterwards: it may come back. More often than what came by it is forgotten.
const PING_INTERVAL_SILENT: Duration = Duration::from_millis(100);

/// Bytes sent between two looks that do not come from pings and acknowledgements alone.
const BULK: u64 = 4 * 1200;

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
    /// It owes an answer, and is to be asked for it, and the others as well.
    Suspect,
    /// It does not answer, and is to be closed if another one lives.
    Silent,
    /// It has not answered for so long that it is to be closed in any case, if there is another.
    Hopeless,
}

/// What a sample has shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Change {
    /// Anything has happened on the path.
    pub(crate) any: bool,
    /// Datagrams that have come by it.
    pub(crate) received: u64,
    /// Something sent by it was acknowledged.
    pub(crate) answered: bool,
    /// It had been silent and is not any more.
    pub(crate) revived: bool,
}

/// The memory of one path.
#[derive(Debug)]
pub(crate) struct Pulse {
    last: Sample,
    heard: Instant,
    received: Instant,
    answered: Instant,
    /// When a lot was last sent.
    bulk: Option<Instant>,
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
            answered: now,
            bulk: None,
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
        let was_silent =
            matches!(self.health(now), Health::Silent | Health::Hopeless) && !self.is_heard();
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
            self.answered = now;
            // Not all of what left since can be meant, and a full window lets nothing follow it.
            self.unanswered = self.has_sent_bulk(now, last.rtt * 3 / 4).then_some(now);
            self.reset_pings();
        } else if sent && self.unanswered.is_none() {
            self.unanswered = Some(now);
        }
        if sample.sent.saturating_sub(last.sent) >= BULK {
            self.bulk = Some(now);
        }
        Change {
            any: sent || received,
            received: sample.received.saturating_sub(last.received),
            answered,
            revived: was_silent && self.heard == now,
        }
    }

    fn has_sent_bulk(&self, now: Instant, time: Duration) -> bool {
        self.bulk
            .is_some_and(|sent| now.saturating_duration_since(sent) < time)
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

    /// Something should have come by it since it was last heard.
    pub(crate) fn expect(&mut self) {
        self.unanswered.get_or_insert(self.heard);
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

    /// Its smoothed round-trip time.
    pub(crate) fn rtt(&self) -> Duration {
        self.last.rtt
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

    /// When the answer it owes should have been here.
    pub(crate) fn due(&self) -> Option<Instant> {
        self.unanswered.map(|since| since + self.answer_time())
    }

    /// How long an answer takes at most if all is well.
    fn answer_time(&self) -> Duration {
        self.last.rtt + self.last.rtt / 4 + ACK_DELAY
    }

    /// Silence that means something.
    pub(crate) fn patience(&self) -> Duration {
        SILENCE_FLOOR.max(self.last.rtt * SILENCE_RTTS)
    }

    /// Whether it has been asked in vain for so long that there had better be another.
    pub(crate) fn is_lost(&self, now: Instant) -> bool {
        let patience = LOST_FLOOR.max(self.last.rtt * LOST_RTTS);
        self.asked.is_some()
            && self
                .unanswered
                .is_some_and(|since| now.saturating_duration_since(since) >= patience)
    }

    /// Whether it was asked as often as it takes.
    pub(crate) fn is_asked(&self) -> bool {
        self.asked.is_some()
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

    /// Whether anything was heard of it since it owes an answer.
    pub(crate) fn is_heard(&self) -> bool {
        self.unanswered
            .is_none_or(|since| self.is_heard_since(since))
    }

    /// Whether something was heard of it that left the peer after `since`: what comes sooner was
    /// under way before.
    pub(crate) fn is_heard_since(&self, since: Instant) -> bool {
        self.heard > since + self.last.rtt
    }

    /// Whether something we sent by it was acknowledged after `time`.
    pub(crate) fn is_answered_after(&self, time: Instant) -> bool {
        self.answered > time
    }

    /// When the last of the pings that were to settle it should have been answered.
    pub(crate) fn settled(&self) -> Option<Instant> {
        self.asked.map(|asked| asked + self.answer_time())
    }

    /// Whether something has come by it of late, although it owes an answer: it lives one way at
    /// least, and it may be the answers that get lost, on another path.
    pub(crate) fn is_half_alive(&self, now: Instant) -> bool {
        let of_late = now.saturating_duration_since(self.received) < self.patience();
        // What was sent left before the look that noticed it.
        let answer = |since| self.received + LOOK > since + self.last.rtt;
        of_late && self.unanswered.is_some_and(answer)
    }

    /// Whether it has given no sign of life since it was asked for one, and should have: another one
    /// is the better choice until it does.
    pub(crate) fn is_doubtful(&self, now: Instant) -> bool {
        let answer = self.answer_time() + ECHO_DELAY;
        self.asked_first
            .is_some_and(|asked| now.saturating_duration_since(asked) >= answer)
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
            Health::Silent
        } else {
            Health::Suspect
        }
    }
}

#[cfg(test)]
mod tests;
