//! Which connection to a peer counts: at most one per peer, the same one on both ends.
//!
//! Sans-I/O: the endpoint reports handshakes and hellos, the registry answers what to do. The
//! rules (docs/protocol.md has them with the reasons):
//!
//! * A dialer sends its hello only on one connection per peer; a further one that completes its
//!   handshake (a lost race) is closed unsaid.
//! * Two nodes dialing each other at once: the connection dialed by the *smaller* PeerId stays.
//! * A hello carries a number that grows with every hello a node sends, and one that is fresh
//!   per start of the node. So a late hello is told from a peer that lost its connection and
//!   dials again, and from a peer that was restarted; those two replace what was there.
//! * A connection that no longer answers may be replaced by one whose handshake just proved that
//!   the peer is alive elsewhere.

use std::collections::HashMap;

use crate::PeerId;

/// Identifies one connection inside its endpoint.
pub(crate) type ConnectionKey = u64;

/// The two numbers of a hello that order it among the hellos of its sender.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct HelloStamp {
    /// Random, fresh per start of the node.
    pub(crate) instance: u64,
    /// Grows with each hello the node sends.
    pub(crate) serial: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// We dialed, said hello and wait for the answer.
    Tentative,
    /// The peer said hello with this stamp, and our answer is not out yet.
    Answering(HelloStamp),
    /// Both sides said hello; the stamp is the peer's.
    Established(HelloStamp),
}

#[derive(Debug)]
struct Entry<C> {
    key: ConnectionKey,
    connection: C,
    state: State,
}

/// What a dialer does with a connection whose handshake is complete.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Dialed<C> {
    /// Say hello with this stamp and wait for the answer. The connection replaced, if there was
    /// one, is to be closed.
    SayHello {
        stamp: HelloStamp,
        replaced: Option<C>,
    },
    /// Another connection to this peer exists or is about to: close this one, use that.
    Superfluous,
}

/// What the accepting side does with a hello.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Greeted<C> {
    /// Answer with this stamp and report [`Registry::settled`]; then close the connection that
    /// was there before, if any: it is replaced.
    Accept {
        stamp: HelloStamp,
        replaced: Option<C>,
    },
    /// Close this connection, another one counts.
    Reject,
}

/// The connections of one node, by peer.
#[derive(Debug)]
pub(crate) struct Registry<C> {
    me: PeerId,
    instance: u64,
    last_serial: u64,
    peers: HashMap<PeerId, Entry<C>>,
}

impl<C: Clone> Registry<C> {
    /// `instance` is a random number, fresh for this start of the node.
    pub(crate) fn new(me: PeerId, instance: u64) -> Self {
        Self {
            me,
            instance,
            last_serial: 0,
            peers: HashMap::new(),
        }
    }

    fn next_stamp(&mut self) -> HelloStamp {
        self.last_serial += 1;
        HelloStamp {
            instance: self.instance,
            serial: self.last_serial,
        }
    }

    /// A connection we dialed completed its handshake. `dead` is a connection to the peer that
    /// did not answer when it was asked to, if there is one; it does not stand in the way.
    pub(crate) fn dialed(
        &mut self,
        peer: PeerId,
        key: ConnectionKey,
        connection: C,
        dead: Option<ConnectionKey>,
    ) -> Dialed<C> {
        if let Some(entry) = self.peers.get(&peer)
            && dead != Some(entry.key)
        {
            return Dialed::Superfluous;
        }
        let entry = Entry {
            key,
            connection,
            state: State::Tentative,
        };
        let replaced = self.peers.insert(peer, entry).map(|old| old.connection);
        Dialed::SayHello {
            stamp: self.next_stamp(),
            replaced,
        }
    }

    /// The peer answered the hello on a connection we dialed. False if another connection has
    /// taken its place meanwhile.
    pub(crate) fn answered(&mut self, peer: PeerId, key: ConnectionKey, stamp: HelloStamp) -> bool {
        match self.peers.get_mut(&peer) {
            Some(entry) if entry.key == key => {
                entry.state = State::Established(stamp);
                true
            }
            _ => false,
        }
    }

    /// A peer that dialed us said hello.
    pub(crate) fn greeted(
        &mut self,
        peer: PeerId,
        key: ConnectionKey,
        connection: C,
        stamp: HelloStamp,
    ) -> Greeted<C> {
        if peer == self.me {
            return Greeted::Reject;
        }
        let keep_old = match self.peers.get(&peer).map(|entry| entry.state) {
            None => false,
            Some(State::Tentative) => self.me < peer,
            Some(State::Answering(old) | State::Established(old)) => {
                old.instance == stamp.instance && old.serial >= stamp.serial
            }
        };
        if keep_old {
            return Greeted::Reject;
        }
        let entry = Entry {
            key,
            connection,
            state: State::Answering(stamp),
        };
        let replaced = self.peers.insert(peer, entry).map(|old| old.connection);
        Greeted::Accept {
            stamp: self.next_stamp(),
            replaced,
        }
    }

    /// Our answer to the hello on an accepted connection is out.
    pub(crate) fn settled(&mut self, peer: PeerId, key: ConnectionKey) {
        if let Some(entry) = self.peers.get_mut(&peer)
            && entry.key == key
            && let State::Answering(stamp) = entry.state
        {
            entry.state = State::Established(stamp);
        }
    }

    /// The connection is gone. True if it was the one that counted.
    pub(crate) fn removed(&mut self, peer: PeerId, key: ConnectionKey) -> bool {
        let counted = self.peers.get(&peer).is_some_and(|entry| entry.key == key);
        if counted {
            self.peers.remove(&peer);
        }
        counted
    }

    /// The established connection to `peer`, if there is one.
    pub(crate) fn established(&self, peer: &PeerId) -> Option<&C> {
        self.peers
            .get(peer)
            .filter(|entry| matches!(entry.state, State::Established(_)))
            .map(|entry| &entry.connection)
    }

    /// Whether a connection to `peer` exists or is about to.
    pub(crate) fn contains(&self, peer: &PeerId) -> bool {
        self.peers.contains_key(peer)
    }

    /// All established connections, in no particular order.
    pub(crate) fn connections(&self) -> impl Iterator<Item = &C> {
        self.peers
            .values()
            .filter(|entry| matches!(entry.state, State::Established(_)))
            .map(|entry| &entry.connection)
    }
}

#[cfg(test)]
mod tests;
