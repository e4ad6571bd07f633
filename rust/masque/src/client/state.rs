//! Where a tunnel stands, for those who use it.

use std::{net::SocketAddr, sync::Arc, time::Instant};

use anyreach_quic::PeerId;

use super::{session::Opened, target::Attempt};
use crate::carrier::CarrierKind;

/// Where a tunnel stands.
#[derive(Debug, Clone)]
pub enum State {
    /// It has not had a carrier yet.
    Connecting,
    /// It carries datagrams.
    Up(Arc<Up>),
    /// It had a carrier, or was told to persist without one, and looks for the next.
    Down(Arc<Down>),
    /// It has ended.
    Closed(Arc<Closed>),
}

/// A tunnel that carries datagrams.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Up {
    /// Which carrier won.
    pub carrier: CarrierKind,
    /// Where it goes: the relay, or the HTTP proxy on the way to it.
    pub address: Option<SocketAddr>,
    /// Who the relay proved to be.
    pub relay: Option<PeerId>,
    /// Addresses bound for us at the relay.
    pub public: Vec<SocketAddr>,
    /// Addresses of the relay's own node, as they can be reached from the bound ones.
    pub node: Vec<SocketAddr>,
    /// Since when.
    pub since: Instant,
    /// How many carriers it has had, this one included. A reader who finds it grown by more than a
    /// state between has missed a short outage.
    pub carriers: u32,
    /// Why the carrier before this one was lost.
    pub lost: Option<String>,
    /// How often the bound addresses have changed so far.
    pub moves: u32,
    /// What they were before the last change.
    pub moved_from: Option<Vec<SocketAddr>>,
    /// Carriers tried this time that failed.
    pub failed: Vec<Attempt>,
}

/// A tunnel without a carrier.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// Why, for people: how the last carrier was lost, or why the first was not found.
    pub error: String,
    /// The last tries to get another; none if it has only just been lost.
    pub attempts: Vec<Attempt>,
    /// When the next try begins. In the past while it is being made.
    pub retry_at: Instant,
}

/// The end of a tunnel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Closed {
    /// Why, for people.
    pub error: String,
    /// Why it never came up, if it did not.
    pub attempts: Vec<Attempt>,
}

/// What there was before.
#[derive(Debug, Default)]
pub(super) struct History {
    /// Carriers so far.
    pub(super) carriers: u32,
    /// How the last carrier was lost, while there is no other.
    pub(super) lost: Option<String>,
    public: Vec<SocketAddr>,
    moves: u32,
    moved_from: Option<Vec<SocketAddr>>,
}

impl History {
    /// Takes note of a carrier; `failed` were tried before it.
    pub(super) fn came_up(
        &mut self,
        carrier: CarrierKind,
        address: Option<SocketAddr>,
        relay: Option<PeerId>,
        opened: &Opened,
        failed: Vec<Attempt>,
    ) -> Up {
        // The order in which a relay names them means nothing.
        let mut public = opened.public.clone();
        public.sort_unstable();
        if self.carriers > 0 && public != self.public {
            self.moves += 1;
            self.moved_from = Some(std::mem::take(&mut self.public));
        }
        self.public = public;
        self.carriers += 1;
        Up {
            carrier,
            address,
            relay,
            public: opened.public.clone(),
            node: opened.node.clone(),
            since: Instant::now(),
            carriers: self.carriers,
            lost: self.lost.take(),
            moves: self.moves,
            moved_from: self.moved_from.clone(),
            failed,
        }
    }
}
