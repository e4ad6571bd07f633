//! How the network sees this node, by what it sends itself.

use std::{net::SocketAddr, num::NonZeroU8};

use anyreach_net::{SyntheticAddr, canonical, is_possible_peer, is_synthetic};

use super::Endpoint;
use crate::openers::{ReflectError, Reflection};

impl Endpoint {
    /// Sends a datagram to an address of this node, as others reach it, from the node's own socket or
    /// from one made for it (`fresh`).
    ///
    /// # Errors
    /// [`ReflectError`].
    pub fn reflect(&self, to: SocketAddr, fresh: bool) -> Result<Reflection, ReflectError> {
        let to = canonical(to);
        // An address somebody supplied must never choose a tunnel.
        if !is_possible_peer(to) || is_synthetic(to.ip()) {
            return Err(ReflectError::Io(std::io::ErrorKind::InvalidInput.into()));
        }
        let mirror = self.0.desk.mirror();
        mirror.reflect(&self.0.socket, to, fresh)
    }

    /// Sends a datagram to each of `addresses` that ends `hops` routers away: our own NATs then let
    /// in what comes from there, and those of the peer get to see nothing. How many were sent; those
    /// nobody can be at are left out.
    pub fn prime(&self, addresses: &[SocketAddr], hops: NonZeroU8) -> usize {
        let mirror = self.0.desk.mirror();
        let sent = |to: &SocketAddr| {
            // An address somebody supplied must never choose a tunnel.
            is_possible_peer(*to)
                && !is_synthetic(to.ip())
                && mirror.prime(&self.0.socket, *to, hops).is_ok()
        };
        addresses
            .iter()
            .copied()
            .map(canonical)
            .filter(sent)
            .count()
    }

    /// As [`reflect`](Self::reflect), through a tunnel of this node.
    ///
    /// # Errors
    /// [`ReflectError`].
    pub fn reflect_through(&self, tunnelled: SyntheticAddr) -> Result<Reflection, ReflectError> {
        let mirror = self.0.desk.mirror();
        mirror.reflect(&self.0.socket, tunnelled.socket_addr(), false)
    }
}
