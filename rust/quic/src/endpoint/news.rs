//! What is to be told of one connection, at the pace it may make news.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyreach_net::canonical;
use anyreach_wire::control::{Prepare, Prepared, Sought};
use noq::{PathEvent, PathId};

use super::Endpoint;
use crate::{
    Connection, PeerId,
    control::SOUGHT_PACE,
    events::weightier,
    reach::addresses_from_wire,
    steps::{Step, StepResult},
    throttle::{NEWS, Throttle},
    traversal,
};

pub(super) struct News<'a> {
    endpoint: &'a Endpoint,
    connection: &'a Connection,
    throttle: Throttle,
    /// A peer keeps to the same pace itself.
    sought_throttle: Throttle,
    /// What has happened to the paths, in the words of [`Event::PathsChanged`](crate::Event).
    paths: Option<&'static str>,
    /// How long the path in use had been silent when it went.
    silent: Option<Duration>,
    observed: bool,
    reach: bool,
    candidates: bool,
    nat: bool,
}

impl<'a> News<'a> {
    pub(super) fn new(endpoint: &'a Endpoint, connection: &'a Connection) -> Self {
        let now = Instant::now();
        Self {
            endpoint,
            connection,
            throttle: Throttle::new(NEWS, now),
            sought_throttle: Throttle::new(SOUGHT_PACE, now),
            paths: None,
            silent: None,
            observed: false,
            reach: connection.reach().is_some(),
            candidates: false,
            nat: false,
        }
    }

    pub(super) fn path_event(&mut self, event: &PathEvent) {
        match *event {
            PathEvent::Established { id, .. } => {
                self.connection.path_established(id);
                self.paths_changed("established");
            }
            PathEvent::Abandoned { id, .. } => {
                self.connection.path_abandoned(id);
                self.paths_changed("abandoned");
            }
            PathEvent::RemoteStatus { id, status, .. } => {
                self.connection.path_wanted_by_peer(id, status);
            }
            PathEvent::Discarded { id, .. } => self.connection.path_discarded(id),
            PathEvent::ObservedAddr { id, addr, .. } => self.observed(id, addr),
            _ => {}
        }
    }

    /// Data goes by another path, or the one it goes by leads elsewhere.
    pub(super) fn switched(&mut self, reason: &'static str) {
        self.paths_changed(reason);
    }

    /// The path data went by is gone, after such a silence, and another is in its place.
    pub(super) fn failed_over(&mut self, silent: Duration) {
        self.silent = self.silent.max(Some(silent));
        self.paths_changed("failover");
    }

    /// Nothing is answered by any path. Told at once, at the pace of the steward.
    pub(super) fn lost(&mut self) {
        self.endpoint.0.journal.silent(self.connection);
    }

    /// Of several changes told as one, the one that matters most gives its name.
    fn paths_changed(&mut self, reason: &'static str) {
        self.paths = Some(match self.paths {
            Some(known) => weightier(known, reason),
            None => reason,
        });
    }

    pub(super) fn observed(&mut self, id: PathId, address: SocketAddr) {
        self.observed |= self.connection.path_observed(id, canonical(address));
    }

    /// The engine made events faster than they were taken.
    pub(super) fn missed(&mut self) {
        self.connection.paths_missed();
        self.paths_changed("established");
    }

    /// The peer has said how it can be reached.
    pub(super) fn reach(&mut self) {
        self.reach = true;
    }

    /// The peer has said what its NAT does.
    pub(super) fn nat(&mut self) {
        self.nat = true;
    }

    /// The peer asks for a step of a punch, at the pace it may. Told at once: both NATs forget.
    pub(super) fn prepare(&mut self, prepare: &Prepare) {
        let step = Step::from_wire(prepare);
        let journal = &self.endpoint.0.journal;
        journal.prepare(self.connection, prepare.request, step);
    }

    /// The peer answers a step that was asked of it.
    pub(super) fn prepared(&mut self, prepared: &Prepared) {
        let result = StepResult::from_wire(prepared);
        let journal = &self.endpoint.0.journal;
        journal.prepared(self.connection, prepared.request, result);
    }

    /// Something has come of NAT traversal. A round is told at once, as it goes on meanwhile; that
    /// rounds do not come too often is seen to where they begin.
    pub(super) fn traversal(&mut self, news: traversal::News) {
        self.candidates |= news.candidates;
        if let Some(round) = news.round {
            self.endpoint.0.journal.round(self.connection, round);
        }
    }

    /// Somebody looks for us. Told at once: whoever looks is about to call.
    pub(super) fn sought(&mut self, sought: &Sought, now: Instant) {
        if self.sought_throttle.take(now).is_ok() {
            let observed = addresses_from_wire(&sought.observed);
            let journal = &self.endpoint.0.journal;
            journal.sought(self.connection, PeerId(sought.peer), observed);
        }
    }

    /// Tells what there is, or says when it may be told.
    pub(super) fn tell(&mut self, now: Instant) -> Option<Instant> {
        if self.paths.is_none() && !self.observed && !self.reach && !self.candidates && !self.nat {
            return None;
        }
        if let Err(due) = self.throttle.take(now) {
            return Some(due);
        }
        let journal = &self.endpoint.0.journal;
        if std::mem::take(&mut self.reach) {
            journal.reach(self.connection);
        }
        if std::mem::take(&mut self.nat) {
            journal.nat(self.connection);
        }
        if std::mem::take(&mut self.candidates) {
            journal.candidates(self.connection);
        }
        if let Some(reason) = self.paths.take() {
            let silent = self.silent.take();
            journal.paths_changed(self.connection, reason, silent);
        }
        if std::mem::take(&mut self.observed) {
            for (path_id, address, after) in self.connection.take_observed() {
                journal.observed(self.connection, path_id, address, after);
            }
        }
        None
    }
}
