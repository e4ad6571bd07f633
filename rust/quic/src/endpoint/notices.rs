//! What the endpoint tells its peers about where nodes can be reached: itself, to all of them, and
//! its peers to each other, one hop and no further. Answered here and not in Python, so that nodes
//! are found while a program is busy.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::{Duration, Instant},
};

use anyreach_net::Prefix;
use anyreach_wire::control::{Find, FindStatus, Found, Nat, Sought};

use super::Endpoint;
use crate::{
    Connection, PeerId,
    directory::Directory,
    reach::{Reach, addresses_to_wire},
    throttle::{Pace, Throttle},
};

/// Questions of one peer that are answered: a node that starts may look for all its friends at
/// once, and in an hour for thousands. An answer is a table look-up and at most 3 KB.
pub(super) const FIND_PACE: Pace = Pace {
    burst: 64,
    period: Duration::from_millis(125),
};

/// Of those, how many are passed on to who is looked for, so that nobody can use up for others what
/// a node listens to.
pub(super) const SEEK_PACE: Pace = Pace {
    burst: 16,
    period: Duration::from_millis(500),
};

/// What one peer may ask.
#[derive(Debug)]
pub(super) struct Allowance {
    finds: Throttle,
    seeks: Throttle,
}

impl Allowance {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            finds: Throttle::new(FIND_PACE, now),
            seeks: Throttle::new(SEEK_PACE, now),
        }
    }
}

impl Endpoint {
    /// Says how this node can be reached, to all peers there are and will be. Each hears of it
    /// right after the hello, and again when it changes.
    pub fn set_reach(&self, reach: Reach) {
        // Held while it is announced: of two calls, no peer may keep the first.
        let mut current = self.0.reach.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in self.connections() {
            connection.announce(&reach);
        }
        *current = Some(reach);
    }

    /// Says what the NAT in front of this node does, to all peers there are and will be.
    pub fn announce_nat(&self, nat: Nat) {
        // As above.
        let mut current = self.0.nat.lock().unwrap_or_else(PoisonError::into_inner);
        for connection in self.connections() {
            connection.notices().outbox.announce_nat(nat);
        }
        *current = Some(nat);
    }

    /// Tells a new connection what all others were told.
    pub(super) fn announce_on(&self, connection: &Connection) {
        let current = self.0.reach.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reach) = &*current {
            connection.announce(reach);
        }
        drop(current);
        let current = self.0.nat.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(nat) = *current {
            connection.notices().outbox.announce_nat(nat);
        }
    }

    /// Lets this endpoint know what stands behind the synthetic addresses of tunnels, in place of
    /// what it was told before.
    pub fn set_directory(&self, directory: Arc<dyn Directory>) {
        self.0.directory.set(directory);
    }

    /// An address out of the engine, for people.
    pub(super) fn shown(&self, address: SocketAddr) -> String {
        if !anyreach_net::is_synthetic(address.ip()) {
            return address.to_string();
        }
        match self.0.directory.resolve(address) {
            Some(resolved) => format!("{} through a relay", resolved.remote),
            None => "a relay".to_owned(),
        }
    }

    /// Networks in which addresses peers offer for NAT traversal are not refused although they are
    /// private, in place of those given before. Loopback counts only if named itself.
    pub fn set_near(&self, prefixes: impl IntoIterator<Item = Prefix>) {
        self.0.near.set(prefixes);
        for connection in self.connections() {
            connection.near_changed();
        }
    }

    /// Answers a question of a peer, and tells the node it asks for.
    pub(super) fn find_for(
        &self,
        asker: &Connection,
        find: &Find,
        allowance: &mut Allowance,
        now: Instant,
    ) -> Found {
        if allowance.finds.take(now).is_err() {
            return Found::nothing(find.request, FindStatus::Limit);
        }
        let Some(sought) = self.connection(&PeerId(find.peer)) else {
            return Found::nothing(find.request, FindStatus::Unknown);
        };
        let Some(reach) = sought.reach().filter(|reach| reach.findable) else {
            return Found::nothing(find.request, FindStatus::NotFindable);
        };
        if sought.id() != asker.id() && allowance.seeks.take(now).is_ok() {
            let notice = Sought {
                peer: asker.peer_id().0,
                observed: addresses_to_wire(&asker.observed_peer()),
            };
            sought.notices().tell_sought(notice, now);
        }
        let reach = reach.to_wire();
        Found {
            request: find.request,
            status: FindStatus::Found,
            direct: reach.direct,
            bound: reach.bound,
            observed: addresses_to_wire(&sought.observed_peer()),
        }
    }
}
