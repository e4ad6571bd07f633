//! Carries out what is decided about the paths of one connection: which one data goes by, and that
//! dead ones are closed, so that what was under way on them comes again on another.
//!
//! It looks at the counters of the engine while something goes on and sleeps while nothing does: a
//! connection with nothing to say costs nothing here.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use noq::{PathId, PathStatus};

use super::news::News;
use crate::{
    Connection,
    paths::{
        choice::{Candidate, choose},
        health::Sample,
        vigil::Vigil,
    },
};

/// Without any packet for so long the steward sleeps until the next one.
const REST: Duration = Duration::from_secs(1);

pub(super) struct Steward<'a> {
    connection: &'a Connection,
    vigil: Vigil,
    /// The path data goes by, and the address of the peer on it, as the engine has it.
    current: Option<(u32, SocketAddr)>,
}

/// An open path.
struct Open {
    id: PathId,
    candidate: Candidate,
    remote: SocketAddr,
}

impl<'a> Steward<'a> {
    pub(super) fn new(connection: &'a Connection) -> Self {
        let now = Instant::now();
        let mut steward = Self {
            connection,
            vigil: Vigil::new(connection.outbound(), now),
            current: None,
        };
        let open = steward.open_paths(now);
        steward.current = steward.choose(&open);
        steward
    }

    /// Waits until there is something to look at.
    pub(super) async fn wait(&self) {
        tokio::select! {
            () = self.connection.paths_reconsidered() => {}
            () = self.due() => {}
        }
    }

    async fn due(&self) {
        let awake = self.vigil.busy().elapsed() < REST || self.vigil.is_owed();
        let interval = self.vigil.interval();
        let look = self.vigil.looked().map(|looked| looked + interval);
        let due = look.filter(|_| awake);
        match due.into_iter().chain(self.vigil.hush_due()).min() {
            Some(due) if awake => tokio::time::sleep_until(due.into()).await,
            Some(due) => tokio::select! {
                () = tokio::time::sleep_until(due.into()) => {}
                () = self.connection.stirred() => {}
            },
            None => self.connection.stirred().await,
        }
    }

    /// Looks at the paths, and does what is to be done.
    pub(super) fn look(&mut self, news: &mut News<'_>) {
        let now = Instant::now();
        let before = self.current;
        let heard = before.and_then(|(id, _)| self.vigil.heard(id));
        let mut open = self.open_paths(now);
        let orders = self.vigil.look(now, before.map(|(id, _)| id));
        for id in orders.ping {
            if let Some(path) = self.connection.engine().path(PathId::from(id)) {
                // Fails for a path that was closed just now.
                let _ = path.ping();
            }
        }
        if orders.lost {
            news.lost();
        }
        for id in orders.stale {
            self.connection.path_stale(PathId::from(id));
        }
        for path in &mut open {
            path.candidate.doubtful = self.vigil.is_doubtful(now, path.candidate.id);
        }
        let is_dead = |path: &Open| orders.close.contains(&path.candidate.id);
        let (dead, mut open): (Vec<Open>, Vec<Open>) = open.into_iter().partition(is_dead);
        // Chosen before any is closed: the engine tells the peer at once, by whatever is left, and
        // what went by a path that is closed next is sent again only when the peer has answered.
        self.current = self.choose(&open);
        for path in dead {
            if !self.connection.close_dead_path(path.id) {
                open.push(path);
            }
        }
        let (Some((old, from)), Some((new, to))) = (before, self.current) else {
            return;
        };
        if old == new && from != to {
            news.switched("roamed");
        } else if old != new && open.iter().any(|path| path.candidate.id == old) {
            news.switched("better");
        } else if old != new {
            // Closed by us or by the peer, which may have noticed first.
            let silent = heard.map(|heard| now.saturating_duration_since(heard));
            news.failed_over(silent.unwrap_or_default());
        }
    }

    /// The open paths, with their counters taken in.
    fn open_paths(&mut self, now: Instant) -> Vec<Open> {
        let mut open = self.connection.candidates();
        self.vigil
            .retain(now, |id| open.iter().any(|(_, path, _)| path.id == id));
        for (id, candidate, _) in &mut open {
            if let Some(path) = self.connection.engine().path(*id) {
                let stats = path.stats();
                let sample = Sample {
                    sent: stats.sent_bytes,
                    received: stats.udp_rx.datagrams,
                    rtt: stats.rtt,
                };
                candidate.rtt = self.vigil.sample(now, candidate.id, sample);
            }
        }
        let open = open.into_iter();
        open.map(|(id, candidate, remote)| Open {
            id,
            candidate,
            remote,
        })
        .collect()
    }

    /// Chooses the path data goes by, and has the engine use it: the only available one.
    fn choose(&self, open: &[Open]) -> Option<(u32, SocketAddr)> {
        let candidates: Vec<Candidate> = open.iter().map(|path| path.candidate).collect();
        let current = self.current.map(|(id, _)| id);
        let chosen = choose(current, &candidates, &self.connection.ranking())?;
        let (yes, no): (Vec<&Open>, Vec<&Open>) =
            open.iter().partition(|path| path.candidate.id == chosen);
        // The new one first: there is one at any time.
        for path in &yes {
            self.connection
                .set_path_status(path.id, PathStatus::Available);
        }
        for path in &no {
            self.connection.set_path_status(path.id, PathStatus::Backup);
        }
        yes.first().map(|path| (chosen, path.remote))
    }
}
