//! The watch over all paths of a connection: which to ping, and which to close.
//!
//! A path that owes an answer is asked for it, and the others are asked as well, to see whether it is
//! only that one. It is dead if it does not answer while another one does.
//!
//! The engine acknowledges what comes by any path on the one it sends on itself, which may be the
//! dead one. So nodes also answer by a ping on the path they were asked on, and every path has signs
//! of life of its own. What was heard of a path, though nothing of what was sent by it was
//! acknowledged, is closed only if acknowledgements do arrive: that of another path.
//!
//! Only the side that dialed closes paths, so that the two never close different ones. The other
//! side asks as well, which makes the first one look; it acts itself when nothing comes of that.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{
    floor::Floor,
    health::{Health, LOOK, Pulse, Sample},
};
use crate::throttle::{Pace, Throttle};

/// A look that comes later than this says nothing about the time before: we were not served, and so
/// neither were our packets.
const LATE: Duration = Duration::from_millis(50);

/// Between two looks at an only path, than which there may have to be another: a fifth of the silence
/// that takes.
const LOOK_ALONE: Duration = Duration::from_millis(100);

/// Between two times it is said that no path answers: new ways are tried again.
const LOST_AGAIN: Duration = Duration::from_secs(1);

/// The current path has been silent for so long when something comes by another one unasked: then the
/// other side is looking for a path, and so do we.
const UNASKED_SILENCE: Duration = Duration::from_millis(50);

/// An acknowledgement of what was received so long ago tells the peer less than it misleads it.
const STALE: Duration = Duration::from_millis(100);

/// What comes by a path so soon after our own ping is its answer.
const ANSWER_WINDOW: Duration = Duration::from_millis(60);

/// Answers by pings of the side that did not dial: as many as a search takes, and little more when
/// the two sides use different paths all the time. The other side answers none, or the two would
/// play ball; it asks about the path it uses itself as often.
const ECHO_PACE: Pace = Pace {
    burst: 64,
    period: Duration::from_millis(500),
};

/// Datagrams that make a flow, the end of which is worth a packet: more than an exchange of messages
/// or the keep-alives of some minutes.
const FLOW: u64 = 32;

/// How much longer the side that did not dial waits for the other one to act.
const FOLLOWER_PATIENCE: Duration = Duration::from_secs(1);

/// Silences that far apart have nothing to do with each other.
const ONE_OUTAGE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Vigil {
    watched: BTreeMap<u32, Watched>,
    looked: Option<Instant>,
    /// How long after that the next look should come.
    expected: Duration,
    /// When all paths were last said to be lost.
    lost: Option<Instant>,
    /// When anything was last seen to happen.
    busy: Instant,
    /// A silent path was heard again with the last samples: so it was not the path, and the others
    /// may be about to be heard as well.
    revived: bool,
    /// Whether this side dialed.
    leads: bool,
    echoes: Throttle,
}

#[derive(Debug)]
struct Watched {
    pulse: Pulse,
    floor: Floor,
    pinged: Option<Instant>,
    /// Something came by it before the last look.
    received: bool,
    /// Datagrams that came by it since something sent by it was acknowledged, or it was asked.
    flow: u64,
    /// It was no better than one that was found silent, and was not heard since.
    quiet: bool,
    /// When its silence was forgiven because another path was back, if it was not heard since.
    forgiven: Option<Instant>,
}

/// What is to be done after a look.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Orders {
    /// To be closed. Never all.
    pub(crate) close: Vec<u32>,
    /// To be pinged.
    pub(crate) ping: Vec<u32>,
    /// What was received by these is not to be acknowledged any more, until something comes again.
    pub(crate) stale: Vec<u32>,
    /// Nothing is answered by any path, and another one is to be looked for. Said again from time to
    /// time.
    pub(crate) lost: bool,
}

impl Vigil {
    pub(crate) fn new(leads: bool, now: Instant) -> Self {
        Self {
            watched: BTreeMap::new(),
            looked: None,
            expected: Duration::ZERO,
            lost: None,
            busy: now,
            revived: false,
            leads,
            echoes: Throttle::new(ECHO_PACE, now),
        }
    }

    /// When it last looked.
    pub(crate) fn looked(&self) -> Option<Instant> {
        self.looked
    }

    /// When anything was last seen to happen.
    pub(crate) fn busy(&self) -> Instant {
        self.busy
    }

    /// How long until the next look, if there is anything to look at.
    pub(crate) fn interval(&self) -> Duration {
        match self.watched.len() {
            0 | 1 => LOOK_ALONE,
            _ => LOOK,
        }
    }

    /// Whether any path owes an answer.
    pub(crate) fn is_owed(&self) -> bool {
        self.watched
            .values()
            .any(|path| path.pulse.unanswered().is_some())
    }

    /// When a path last gave a sign of life.
    pub(crate) fn heard(&self, id: u32) -> Option<Instant> {
        self.watched.get(&id).map(|path| path.pulse.heard())
    }

    /// Whether a path was asked for a sign of life and has given none.
    pub(crate) fn is_doubtful(&self, now: Instant, id: u32) -> bool {
        let watched = self.watched.get(&id);
        watched.is_some_and(|path| path.quiet || path.pulse.is_doubtful(now))
    }

    /// Forgets all paths but these.
    pub(crate) fn retain(&mut self, now: Instant, open: impl Fn(u32) -> bool) {
        let before = self.watched.len();
        self.watched.retain(|id, _| open(*id));
        if self.watched.len() < before {
            // Answers of the others may have been lost on those that are gone. Not those of paths
            // that are silent altogether: they may have been cut together.
            let others = self.watched.values_mut();
            let hurt = others.filter(|path| !path.pulse.is_doubtful(now));
            hurt.for_each(|path| path.pulse.forgive());
        }
    }

    /// Takes in what the engine counts on a path; its round-trip time without our own queues.
    pub(crate) fn sample(&mut self, now: Instant, id: u32, sample: Sample) -> Duration {
        let watched = self.watched.entry(id).or_insert_with(|| Watched {
            pulse: Pulse::new(now, sample),
            floor: Floor::new(now, sample.rtt),
            pinged: None,
            received: false,
            flow: 0,
            quiet: false,
            forgiven: None,
        });
        let change = watched.pulse.sample(now, sample);
        if change.any {
            self.busy = now;
        }
        watched.received = change.received > 0;
        watched.flow = match change.answered {
            true => 0,
            false => watched.flow.saturating_add(change.received),
        };
        if watched.pulse.heard() == now {
            watched.forgiven = None;
            watched.quiet = false;
        }
        self.revived |= change.revived;
        watched.floor.sample(now, sample.rtt)
    }

    /// After the samples of all paths: what is to be done. `current` is the path data goes by.
    pub(crate) fn look(&mut self, now: Instant, current: Option<u32>) -> Orders {
        let expected = std::mem::replace(&mut self.expected, Duration::ZERO);
        let late = self
            .looked
            .is_none_or(|looked| now.saturating_duration_since(looked) > expected + LATE);
        self.looked = Some(now);
        let revived = std::mem::take(&mut self.revived);
        if late {
            self.forgive();
        } else if revived {
            self.forgive_once(now);
        }
        let mut orders = Orders::default();
        self.hush(now, &mut orders);
        if self.watched.len() > 1 {
            self.unasked(now, current, &mut orders);
        }
        let silent = self.question(now, &mut orders);
        self.distrust(&silent);
        if self.would_be_lost(now, current, &orders.close) {
            orders.close.clear();
        }
        orders.lost = self.all_lost(now);
        if !orders.close.is_empty() {
            orders.ping.clear();
            orders.stale.clear();
            self.retain(now, |id| !orders.close.contains(&id));
        }
        for id in &orders.ping {
            if let Some(path) = self.watched.get_mut(id) {
                path.pinged = Some(now);
                path.pulse.pinged(now);
            }
        }
        self.expected = self.interval();
        orders
    }

    /// Whether it is time to say that no path answers.
    fn all_lost(&mut self, now: Instant) -> bool {
        let lost =
            !self.watched.is_empty() && self.watched.values().all(|path| path.pulse.is_lost(now));
        if !lost {
            self.lost = None;
            return false;
        }
        let again = |said: Instant| now.saturating_duration_since(said) >= LOST_AGAIN;
        let tell = self.lost.is_none_or(again);
        if tell {
            self.lost = Some(now);
        }
        tell
    }

    /// When to look because a flow of data may have ceased.
    pub(crate) fn hush_due(&self) -> Option<Instant> {
        let flowing = self.watched.values().filter(|path| path.flow >= FLOW);
        let due = flowing.map(|path| path.pulse.received() + path.pulse.patience());
        due.min()
    }

    /// Data came, and no more does. Its sender may have said all, or our NAT may have forgotten us,
    /// which nothing but a packet of ours mends, and who only receives sends none: one is asked for.
    fn hush(&mut self, now: Instant, orders: &mut Orders) {
        for (id, path) in &mut self.watched {
            let silence = now.saturating_duration_since(path.pulse.received());
            if path.flow >= FLOW && silence >= path.pulse.patience() {
                path.flow = 0;
                orders.ping.push(*id);
            }
        }
    }

    /// Whether the news that paths are closed would go by another one that owes an answer itself.
    ///
    /// What is lost with it the engine sends again only when the peer has closed that one as well, for
    /// which it may wait for the very news.
    fn would_be_lost(&self, now: Instant, current: Option<u32>, close: &[u32]) -> bool {
        let current = current.filter(|id| !close.contains(id));
        let path = current.and_then(|id| self.watched.get(&id));
        path.is_some_and(|path| path.pulse.health(now) != Health::Good)
    }

    /// What was not answered so far does not count.
    fn forgive(&mut self) {
        for path in self.watched.values_mut() {
            path.pulse.forgive();
        }
    }

    /// As [`forgive`](Self::forgive), but no path twice before it is heard: one that carries a packet
    /// now and then falls silent and comes back all the time.
    fn forgive_once(&mut self, now: Instant) {
        for path in self.watched.values_mut() {
            let before = path.forgiven.map(|at| now.saturating_duration_since(at));
            if path.pulse.unanswered().is_some() && before.is_none_or(|ago| ago >= ONE_OUTAGE) {
                path.forgiven = Some(now);
                path.pulse.forgive();
            }
        }
    }

    /// What came by other paths than the current one without being asked for.
    fn unasked(&mut self, now: Instant, current: Option<u32>, orders: &mut Orders) {
        let unasked = self.watched.iter().filter(|(id, path)| {
            let window = ANSWER_WINDOW + path.floor.get() * 2;
            let asked = path
                .pinged
                .is_some_and(|pinged| now.saturating_duration_since(pinged) < window);
            // The other side answers nothing, so who follows need not tell answers from questions.
            path.received && Some(**id) != current && !(asked && self.leads)
        });
        let unasked: Vec<u32> = unasked.map(|(id, _)| *id).collect();
        if unasked.is_empty() {
            return;
        }
        if !self.leads {
            let echoes = unasked.into_iter();
            orders
                .ping
                .extend(echoes.filter(|_| self.echoes.take(now).is_ok()));
            return;
        }
        let Some((current, own)) = current.and_then(|id| Some((id, self.watched.get_mut(&id)?)))
        else {
            return;
        };
        if now.saturating_duration_since(own.pulse.received()) >= UNASKED_SILENCE {
            own.pulse.expect();
        } else if self.echoes.take(now).is_ok() {
            // It lives towards us. Whether it does the other way shows when it is asked.
            orders.ping.push(current);
        }
    }

    /// Paths that owe an answer, and the others because of them.
    ///
    /// Returns those that alone are silent, and since when each owes a sign of life.
    fn question(&self, now: Instant, orders: &mut Orders) -> Vec<(u32, Instant)> {
        let mut asking = false;
        let mut alone = Vec::new();
        for (id, path) in &self.watched {
            let health = path.pulse.health(now);
            let silence = now.saturating_duration_since(path.pulse.received());
            if path.pulse.unanswered().is_some() && silence >= STALE {
                orders.stale.push(*id);
            }
            let Some(due) = path.pulse.due().filter(|_| health != Health::Good) else {
                continue;
            };
            asking = true;
            let is_alone =
                matches!(health, Health::Silent | Health::Hopeless) && self.is_only(*id, due, now);
            if is_alone {
                alone.push((*id, due));
            }
            let dead = match health {
                Health::Hopeless if !path.pulse.is_half_alive(now) => true,
                _ => is_alone,
            };
            // One must be left, however hopeless.
            // One alone the engine asks often enough by itself, once it is known to be silent.
            let enough = self.watched.len() == 1 && path.pulse.is_asked();
            if dead && orders.close.len() + 1 < self.watched.len() {
                orders.close.push(*id);
            } else if path.pulse.ping_is_due(now) && !enough && !orders.ping.contains(id) {
                orders.ping.push(*id);
            }
        }
        // The others as long as it takes.
        for (id, path) in self.watched.iter().filter(|_| asking) {
            if path.pulse.unanswered().is_none()
                && path.pulse.ping_is_due(now)
                && !orders.ping.contains(id)
            {
                orders.ping.push(*id);
            }
        }
        alone
    }

    /// After some paths alone were found silent, each with the time its answer was due: no other that
    /// was not heard since is to be moved to.
    fn distrust(&mut self, silent: &[(u32, Instant)]) {
        for (id, due) in silent {
            let others = self.watched.iter_mut().filter(|(other, _)| *other != id);
            for (_, path) in others {
                path.quiet |= !path.pulse.is_heard_since(*due);
            }
        }
    }

    /// Whether it is this path alone that is silent: others have shown life since its answer was
    /// `due`.
    fn is_only(&self, id: u32, due: Instant, now: Instant) -> bool {
        let Some(silent) = self.watched.get(&id).map(|path| &path.pulse) else {
            return false;
        };
        let patience = match self.leads {
            true => Duration::ZERO,
            false => FOLLOWER_PATIENCE,
        };
        let rtts = self.watched.values().map(|path| path.pulse.rtt());
        let slowest = rtts.max().unwrap_or_default();
        let others = self.watched.iter().filter(|(other, _)| **other != id);
        others.map(|(_, path)| &path.pulse).any(|other| {
            let lives = match silent.is_half_alive(now) {
                false => other.is_heard_since(due),
                // An acknowledgement may come by the slowest path.
                true => silent
                    .settled()
                    .is_some_and(|settled| other.is_answered_after(settled + slowest)),
            };
            // On a line that stutters all answers are late, and this one may still come.
            lives && silent.outlasted(now, patience + other.late_by() * 2)
        })
    }
}

#[cfg(test)]
mod tests;
