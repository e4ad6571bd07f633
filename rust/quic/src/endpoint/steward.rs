//! Carries out what is decided about the paths of one connection: which one data goes by, and that
//! dead ones are closed, so that what was under way on them comes again on another.
//!
//! It looks at the counters of the engine while something goes on and sleeps while nothing does: a
//! connection with nothing to say costs nothing here.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use noq::{PathId, PathStatus};

use super::news::News;
use crate::{
    Connection,
    paths::{
        choice::{Candidate, choose},
        floor::Floor,
        health::{Health, Pulse, Sample},
    },
    throttle::{Pace, Throttle},
};

/// Between two looks at several paths: what is added to the time a dead one is noticed in.
const LOOK: Duration = Duration::from_millis(20);

/// Between two looks at an only path, which is watched for a change of its address alone.
const LOOK_ALONE: Duration = Duration::from_secs(1);

/// Without any packet for so long the steward sleeps until the next one.
const REST: Duration = Duration::from_secs(1);

/// A look that comes later than this says nothing about the time before: we were not served, and so
/// neither were our packets.
const LATE: Duration = Duration::from_millis(60);

/// The current path has been silent for so long when another one is used by the peer: it may be
/// asking whether that one lives, and its acknowledgement would go by the silent one.
const ECHO_SILENCE: Duration = Duration::from_millis(50);

/// Such questions are answered so often. Two nodes must not play ball with them.
const ECHO_PACE: Pace = Pace {
    burst: 4,
    period: Duration::from_secs(5),
};

/// Nor is a packet a question that comes so soon after our own ping: it is the answer.
const ECHO_AFTER_PING: Duration = Duration::from_millis(200);

pub(super) struct Steward<'a> {
    connection: &'a Connection,
    current: Option<(u32, SocketAddr)>,
    watched: BTreeMap<PathId, Watched>,
    looked: Option<Instant>,
    /// When anything was last seen to happen.
    busy: Instant,
    echoes: Throttle,
    /// A silent path was heard again with the last samples: so it was not the path, and the others
    /// may be about to be heard as well.
    revived: bool,
}

struct Watched {
    pulse: Pulse,
    floor: Floor,
    pinged: Option<Instant>,
}

impl<'a> Steward<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        let now = Instant::now();
        let mut steward = Self {
            connection,
            current: None,
            watched: BTreeMap::new(),
            looked: None,
            busy: now,
            echoes: Throttle::new(ECHO_PACE, now),
            revived: false,
        };
        let candidates = steward.candidates(now);
        steward.current = steward.choose(&candidates);
        steward
    }

    /// Waits until there is something to look at.
    pub(super) async fn wait(&self) {
        let now = Instant::now();
        tokio::select! {
            () = self.connection.paths_reconsidered() => {}
            () = self.due(now) => {}
        }
    }

    async fn due(&self, now: Instant) {
        let interval = match self.watched.len() {
            0 | 1 => LOOK_ALONE,
            _ => LOOK,
        };
        let owed = self
            .watched
            .values()
            .any(|path| path.pulse.unanswered().is_some());
        let several = self.watched.len() > 1;
        match self.looked {
            Some(looked)
                if now.saturating_duration_since(self.busy) < REST || (owed && several) =>
            {
                tokio::time::sleep_until((looked + interval).into()).await;
            }
            _ => self.connection.stirred().await,
        }
    }

    /// Looks at the paths, and does what is to be done.
    pub(super) fn look(&mut self, news: &mut News<'_>) {
        let now = Instant::now();
        let late = self
            .looked
            .is_none_or(|looked| now.saturating_duration_since(looked) > LATE);
        self.looked = Some(now);
        let heard = self.current.and_then(|(id, _)| {
            let path = self.watched.get(&PathId::from(id))?;
            Some(path.pulse.heard())
        });
        let mut candidates = self.candidates(now);
        if late || self.revived {
            for path in self.watched.values_mut() {
                path.pulse.forgive();
            }
        }
        if candidates.len() > 1 {
            let closed = self.close_dead(now);
            candidates.retain(|(id, ..)| !closed.contains(id));
            self.echo(now);
        }
        let before = self.current;
        self.current = self.choose(&candidates);
        if let (Some((old, from)), Some((new, to))) = (before, self.current) {
            let gone = !candidates.iter().any(|(_, path, _)| path.id == old);
            if old != new && gone {
                // Closed by us or by the peer, which may have noticed first.
                let silent = heard.map(|heard| now.saturating_duration_since(heard));
                news.failed_over(silent.unwrap_or_default());
            } else if old != new {
                news.switched("better");
            } else if from != to {
                news.switched("roamed");
            }
        }
    }

    /// The open paths, with their counters taken in.
    fn candidates(&mut self, now: Instant) -> Vec<(PathId, Candidate, SocketAddr)> {
        let mut candidates = self.connection.candidates();
        self.revived = false;
        self.watched
            .retain(|id, _| candidates.iter().any(|(open, ..)| open == id));
        for (id, candidate, _) in &mut candidates {
            let Some(path) = self.connection.engine().path(*id) else {
                continue;
            };
            let stats = path.stats();
            let sample = Sample {
                sent: stats.sent_bytes,
                received: stats.udp_rx.datagrams,
                rtt: stats.rtt,
            };
            let watched = self.watched.entry(*id).or_insert_with(|| Watched {
                pulse: Pulse::new(now, sample),
                floor: Floor::new(now, sample.rtt),
                pinged: None,
            });
            let change = watched.pulse.sample(now, sample);
            if change.any {
                self.busy = now;
            }
            self.revived |= change.revived;
            candidate.rtt = watched.floor.sample(now, sample.rtt);
        }
        candidates
    }

    /// Asks silent paths for a sign of life, and the others to see whether it is only them; closes
    /// those that are dead.
    fn close_dead(&mut self, now: Instant) -> Vec<PathId> {
        let mut closed = Vec::new();
        let mut question = None;
        let ids: Vec<PathId> = self.watched.keys().copied().collect();
        for id in ids {
            let Some(path) = self.watched.get(&id) else {
                continue;
            };
            let Some(since) = path.pulse.unanswered() else {
                continue;
            };
            let another_lives = self.watched.iter().any(|(other, living)| {
                // On a line that stutters all answers are late, and this one may still come.
                let extra = living.pulse.late_by() * 2;
                *other != id && living.pulse.heard() > since && path.pulse.outlasted(now, extra)
            });
            let (dead, ping) = match path.pulse.health(now) {
                Health::Good => continue,
                Health::Suspect { ping } => (false, ping),
                Health::Silent { ping } => (another_lives, ping),
                Health::Hopeless => (true, false),
            };
            question = Some(question.map_or(since, |earlier: Instant| earlier.min(since)));
            // The engine refuses to close the last one.
            if dead && self.connection.close_dead_path(id) {
                self.watched.remove(&id);
                closed.push(id);
            } else if ping {
                self.ping(id, now);
            }
        }
        if let Some(since) = question {
            let others: Vec<PathId> = self
                .watched
                .iter()
                .filter(|(_, path)| {
                    path.pulse.unanswered().is_none()
                        && path.pulse.heard() <= since
                        && path.pulse.ping_is_due(now)
                })
                .map(|(id, _)| *id)
                .collect();
            for id in others {
                self.ping(id, now);
            }
        }
        closed
    }

    /// Answers on another path what came by it while the current one is silent: the acknowledgement
    /// goes by the current one, and may never arrive.
    fn echo(&mut self, now: Instant) {
        let Some((current, _)) = self.current else {
            return;
        };
        let current = PathId::from(current);
        let Some(last) = self.watched.get(&current).map(|path| path.pulse.received()) else {
            return;
        };
        let asked: Vec<PathId> = self
            .watched
            .iter()
            .filter(|(id, path)| {
                let answer = path
                    .pinged
                    .is_some_and(|pinged| now < pinged + ECHO_AFTER_PING.max(path.floor.get() * 2));
                **id != current
                    && path.pulse.received() == now
                    && now.saturating_duration_since(last) >= ECHO_SILENCE
                    && !answer
            })
            .map(|(id, _)| *id)
            .collect();
        for id in asked {
            if self.echoes.take(now).is_ok() {
                self.ping(id, now);
            }
        }
    }

    fn ping(&mut self, id: PathId, now: Instant) {
        let path = self.connection.engine().path(id);
        if let (Some(path), Some(watched)) = (path, self.watched.get_mut(&id)) {
            // Fails for a path that was closed just now.
            let _ = path.ping();
            watched.pinged = Some(now);
            watched.pulse.pinged(now);
        }
    }

    /// Chooses the path data goes by, and has the engine use it: the only available one.
    fn choose(&self, candidates: &[(PathId, Candidate, SocketAddr)]) -> Option<(u32, SocketAddr)> {
        let paths: Vec<Candidate> = candidates.iter().map(|(_, path, _)| *path).collect();
        let current = self.current.map(|(id, _)| id);
        let chosen = choose(current, &paths, &self.connection.ranking())?;
        let position = candidates
            .iter()
            .position(|(_, path, _)| path.id == chosen)?;
        let (id, _, remote) = candidates[position];
        // The new one first: there is one at any time.
        self.connection.set_path_status(id, PathStatus::Available);
        for (other, path, _) in candidates {
            if path.id != chosen {
                self.connection.set_path_status(*other, PathStatus::Backup);
            }
        }
        Some((chosen, remote))
    }
}
