//! Openers: authenticated datagrams that open NATs, find out what NATs do, and tell both ends of a
//! connection where they met.
//!
//! A [`Line`] is one connection's: it sends openers to where the peer may be, answers those of the
//! peer, and tells where one came through. A [`Spray`] sends them to many ports, a [`Pool`] from
//! many sockets. The [`Mirror`] is the node's own: openers to itself, which show how the network
//! sees it. The [`Desk`] sits at the socket and sorts what comes in.
//!
//! None of this opens a path or decides anything: whoever reads the events does. Nothing is sent
//! but where the [`Guard`] of the connection lets it, within what the peer has paid for.

mod line;
mod mirror;
mod pool;
mod ports;
mod secret;
mod spray;
mod window;

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{
        Arc, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use anyreach_net::{Arrival, OpenerSink};
use anyreach_wire::opener::{OPENER_LEN, Opener, OpenerKind, TAG_LEN};

use self::mirror::Mirror;
pub(crate) use self::{
    line::Line,
    secret::{EXPORTER_LABEL, SECRET_LEN, Secret},
};
pub use self::{
    mirror::{MAX_REFLECTIONS, ReflectError, Reflected, Reflection},
    pool::{MAX_POOL, Pool},
    spray::{MAX_SPRAY, Spray, Sprayed},
};
use crate::directory::DirectorySlot;

/// What a connection may send to whom, besides its packets.
pub(crate) trait Guard: Send + Sync + 'static {
    /// Whether the peer may have us send to this (canonical) address. Counts what it refuses.
    fn allows(&self, address: SocketAddr) -> bool;

    /// Takes bytes from what the peer has paid for. Counts what it refuses.
    fn take(&self, bytes: u64) -> bool;

    /// Gives back what was taken and not sent.
    fn give_back(&self, bytes: u64);

    /// The peer was met at this address: a path to it is the fruit of coordination.
    fn met(&self, address: SocketAddr);
}

/// Sorts the openers that come in at a socket. Called with a lock of the engine held: all locks in
/// here are leaves.
pub(crate) struct Desk {
    /// By the name of their secret. Those of established connections.
    lines: RwLock<HashMap<[u8; TAG_LEN], Arc<Line>>>,
    mirror: Mirror,
    directory: DirectorySlot,
    /// Openers that belong to nobody here.
    unknown: AtomicU64,
}

impl Desk {
    /// `None` if the system gives no randomness.
    pub(crate) fn new(directory: DirectorySlot) -> Option<Self> {
        Some(Self {
            lines: RwLock::default(),
            mirror: Mirror::new(Secret::random()?),
            directory,
            unknown: AtomicU64::new(0),
        })
    }

    /// Takes openers of this connection from now on.
    pub(crate) fn add(&self, line: &Arc<Line>) {
        self.write(|lines| lines.insert(line.tag(), line.clone()));
    }

    /// Its connection has ended.
    pub(crate) fn remove(&self, line: &Line) {
        let removed = self.write(|lines| lines.remove(&line.tag()));
        // Outside the lock: it may be the last to hold it.
        drop(removed);
    }

    pub(crate) fn mirror(&self) -> &Mirror {
        &self.mirror
    }

    /// How many openers belonged to nobody.
    pub(crate) fn unknown(&self) -> u64 {
        self.unknown.load(Ordering::Relaxed)
    }

    fn write<T>(&self, change: impl FnOnce(&mut HashMap<[u8; TAG_LEN], Arc<Line>>) -> T) -> T {
        // A map is whole between any two operations.
        change(&mut self.lines.write().unwrap_or_else(PoisonError::into_inner))
    }

    fn line(&self, tag: &[u8; TAG_LEN]) -> Option<Arc<Line>> {
        let lines = self.lines.read().unwrap_or_else(PoisonError::into_inner);
        lines.get(tag).cloned()
    }
}

impl OpenerSink for Desk {
    fn received(&self, datagram: &[u8; OPENER_LEN], arrival: &Arrival<'_>) {
        let Some((opener, mac)) = Opener::parse(datagram) else {
            self.unknown.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let known = match opener.kind {
            OpenerKind::Reflection => self
                .mirror
                .received(&opener, &mac, arrival, &self.directory),
            OpenerKind::Open | OpenerKind::Answer => match self.line(&opener.tag) {
                Some(line) => {
                    line.received(&opener, &mac, arrival);
                    true
                }
                None => false,
            },
        };
        if !known {
            self.unknown.fetch_add(1, Ordering::Relaxed);
        }
    }
}
