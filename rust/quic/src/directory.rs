//! What stands behind the synthetic addresses of tunnels.
//!
//! The engine knows a tunnelled peer by an address that exists in this process only. Whoever made
//! the tunnel knows the real one, as its relay reports it, and says so here: for what people and
//! peers are told. Packets find their way without.

use std::{
    fmt,
    net::SocketAddr,
    sync::{Arc, PoisonError, RwLock},
};

use anyreach_net::{SyntheticAddr, canonical, is_possible_peer, is_synthetic};
use anyreach_wire::observed::Correction;

use crate::PeerId;

/// The real side of a synthetic address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resolved {
    /// Address of the peer as the relay sees it.
    pub remote: SocketAddr,
    /// The relay that carries the tunnel, where it is a node.
    pub relay: Option<PeerId>,
}

/// Knows what stands behind synthetic addresses.
pub trait Directory: Send + Sync + 'static {
    /// The peer behind `address`; `None` if the tunnel or its slot is gone.
    ///
    /// Called while a packet is sealed, with the connection locked: it must neither wait nor call
    /// into the endpoint or its connections.
    fn resolve(&self, address: SyntheticAddr) -> Option<Resolved>;
}

/// The directory of an endpoint, once it has one. Clones share it.
#[derive(Clone, Default)]
pub(crate) struct DirectorySlot(Arc<RwLock<Option<Arc<dyn Directory>>>>);

impl DirectorySlot {
    pub(crate) fn set(&self, directory: Arc<dyn Directory>) {
        // Whole at any time.
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(directory);
    }

    /// The real side of an address out of the engine, if it is a synthetic one that is known.
    pub(crate) fn resolve(&self, address: SocketAddr) -> Option<Resolved> {
        let address = SyntheticAddr::from_socket_addr(address)?;
        let slot = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let resolved = slot.as_ref()?.resolve(address)?;
        let remote = canonical(resolved.remote);
        // One made-up address for another helps nobody.
        (is_possible_peer(remote) && !is_synthetic(remote.ip()))
            .then_some(Resolved { remote, ..resolved })
    }

    /// What the peer is told instead of `address`: no synthetic address ever leaves.
    pub(crate) fn correction(&self, address: SocketAddr) -> Correction {
        if !is_synthetic(address.ip()) {
            return Correction::Keep;
        }
        self.resolve(address)
            .map_or(Correction::Withhold, |resolved| {
                Correction::Tell(resolved.remote)
            })
    }
}

impl fmt::Debug for DirectorySlot {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirectorySlot")
    }
}
