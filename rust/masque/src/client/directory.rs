//! Which remote stands behind a synthetic address. Read by the engine while it holds its own
//! locks: every lock here is a leaf, held for one look-up in a table.

use std::{
    collections::HashMap,
    net::SocketAddr,
    sync::{Arc, OnceLock, PoisonError, RwLock},
};

use anyreach_net::SyntheticAddr;
use anyreach_quic::{Directory, PeerId, Resolved};

/// What is known of one tunnel. Written by the tunnel, as remotes come and go.
#[derive(Debug, Default)]
pub(super) struct View {
    /// Who the relay proved to be, on the first carrier; later ones must prove the same.
    relay: OnceLock<PeerId>,
    remotes: RwLock<HashMap<u32, SocketAddr>>,
}

impl View {
    pub(super) fn relay(&self) -> Option<PeerId> {
        self.relay.get().copied()
    }

    /// Keeps the first answer.
    pub(super) fn prove_relay(&self, relay: PeerId) {
        self.relay.get_or_init(|| relay);
    }

    pub(super) fn insert(&self, index: u32, remote: SocketAddr) {
        self.write(|remotes| remotes.insert(index, remote));
    }

    pub(super) fn remove(&self, index: u32) {
        self.write(|remotes| remotes.remove(&index));
    }

    pub(super) fn remote(&self, index: u32) -> Option<SocketAddr> {
        // A map is whole between any two operations, so a poisoned lock is harmless.
        let remotes = self.remotes.read().unwrap_or_else(PoisonError::into_inner);
        remotes.get(&index).copied()
    }

    fn write<T>(&self, change: impl FnOnce(&mut HashMap<u32, SocketAddr>) -> T) {
        change(&mut self.remotes.write().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The remotes of all tunnels of an endpoint. Holds neither the tunnels nor the endpoint.
#[derive(Debug, Default)]
pub struct TunnelDirectory {
    views: RwLock<HashMap<u32, Arc<View>>>,
}

impl TunnelDirectory {
    pub(super) fn insert(&self, tunnel: u32, view: Arc<View>) {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        views.insert(tunnel, view);
    }

    pub(super) fn remove(&self, tunnel: u32) {
        let mut views = self.views.write().unwrap_or_else(PoisonError::into_inner);
        views.remove(&tunnel);
    }
}

impl Directory for TunnelDirectory {
    fn resolve(&self, address: SyntheticAddr) -> Option<Resolved> {
        let views = self.views.read().unwrap_or_else(PoisonError::into_inner);
        let view = views.get(&address.tunnel())?;
        Some(Resolved {
            remote: view.remote(address.index())?,
            relay: view.relay(),
        })
    }
}
