//! How nodes can be reached, as they say themselves, and how others are found through them.
//!
//! The addresses are what a peer claims: canonical, and possible for a host, but proved by nothing.
//! Whether to dial them is decided in Python.

use std::net::SocketAddr;

use anyreach_net::{canonical, is_possible_peer, is_synthetic};
pub use anyreach_wire::control::AddressKind;
use anyreach_wire::{address::Address, control as wire};

use crate::{CloseReason, PeerId};

/// An address at which a node may be dialed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirectAddress {
    /// The address.
    pub address: SocketAddr,
    /// Where it comes from: a hint.
    pub kind: AddressKind,
}

/// Addresses at a relay that lead to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundAt {
    /// The relay.
    pub relay: PeerId,
    /// Addresses bound there.
    pub addresses: Vec<SocketAddr>,
}

/// How a node can be reached, as it says itself.
///
/// Sent are at most [`MAX_DIRECT_ADDRESSES`](wire::MAX_DIRECT_ADDRESSES) direct addresses and
/// [`MAX_RELAYS`](wire::MAX_RELAYS) relays with [`MAX_BOUND_ADDRESSES`](wire::MAX_BOUND_ADDRESSES)
/// each; what is beyond is left out.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Addresses to dial, best first.
    pub direct: Vec<DirectAddress>,
    /// Addresses at relays.
    pub bound: Vec<BoundAt>,
    /// Whether the receiver may tell all this to others that look for the sender.
    pub findable: bool,
    /// How busy the node is as a relay, in percent of what it takes on, if it says so.
    pub load: Option<u8>,
}

impl Reach {
    /// The relay at which `address` is bound, if it is one of these.
    pub fn relay_of(&self, address: SocketAddr) -> Option<PeerId> {
        self.bound
            .iter()
            .find(|bound| bound.addresses.contains(&address))
            .map(|bound| bound.relay)
    }

    pub(crate) fn to_wire(&self) -> wire::Reach {
        wire::Reach {
            direct: self
                .direct
                .iter()
                .filter_map(|direct| {
                    Some(wire::DirectAddress {
                        address: sayable(direct.address)?.into(),
                        kind: direct.kind,
                    })
                })
                .collect(),
            bound: self
                .bound
                .iter()
                .map(|bound| wire::BoundAt {
                    relay: bound.relay.0,
                    addresses: addresses_to_wire(&bound.addresses),
                })
                .collect(),
            findable: self.findable,
            load: self.load,
        }
    }

    pub(crate) fn from_wire(reach: &wire::Reach) -> Self {
        Self {
            direct: direct_from_wire(&reach.direct),
            bound: bound_from_wire(&reach.bound),
            findable: reach.findable,
            load: reach.load,
        }
    }
}

/// What a peer knows of a node it is connected to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// Addresses to dial, as the node found says itself, best first.
    pub direct: Vec<DirectAddress>,
    /// Addresses at relays, as the node found says itself.
    pub bound: Vec<BoundAt>,
    /// Under which addresses the peer asked sees it.
    pub observed: Vec<SocketAddr>,
}

impl Found {
    pub(crate) fn from_wire(found: &wire::Found) -> Self {
        Self {
            direct: direct_from_wire(&found.direct),
            bound: bound_from_wire(&found.bound),
            observed: addresses_from_wire(&found.observed),
        }
    }
}

/// Why a node was not found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FindError {
    /// The peer asked is not connected to it.
    #[error("the peer asked does not know that node")]
    Unknown,
    /// The peer asked is connected to it, but it does not want to be found.
    #[error("that node does not want to be found")]
    NotFindable,
    /// Too many questions to one peer; later ones may be answered.
    #[error("the peer answers no more questions for now")]
    Limit,
    /// The peer asked gave a reason this version does not know.
    #[error("the peer asked refused with status {0}")]
    Refused(u64),
    /// The peer asked has ended the control stream, and with it all answers.
    #[error("the peer asked answers no questions")]
    Silent,
    /// The connection to the peer asked ended first.
    #[error("the connection to the peer asked ended: {}", .0.message)]
    Closed(CloseReason),
}

impl FindError {
    pub(crate) fn from_status(status: wire::FindStatus) -> Result<(), Self> {
        match status {
            wire::FindStatus::Found => Ok(()),
            wire::FindStatus::Unknown => Err(Self::Unknown),
            wire::FindStatus::NotFindable => Err(Self::NotFindable),
            wire::FindStatus::Limit => Err(Self::Limit),
            wire::FindStatus::Other(status) => Err(Self::Refused(status)),
        }
    }
}

/// The canonical form of an address another host can make something of.
pub(crate) fn sayable(address: SocketAddr) -> Option<SocketAddr> {
    let address = canonical(address);
    (is_possible_peer(address) && !is_synthetic(address.ip())).then_some(address)
}

pub(crate) fn addresses_to_wire(addresses: &[SocketAddr]) -> Vec<Address> {
    addresses
        .iter()
        .filter_map(|address| sayable(*address).map(Address::from))
        .collect()
}

pub(crate) fn addresses_from_wire(addresses: &[Address]) -> Vec<SocketAddr> {
    addresses
        .iter()
        .filter_map(|address| sayable((*address).into()))
        .collect()
}

fn direct_from_wire(direct: &[wire::DirectAddress]) -> Vec<DirectAddress> {
    direct
        .iter()
        .filter_map(|direct| {
            Some(DirectAddress {
                address: sayable(direct.address.into())?,
                kind: direct.kind,
            })
        })
        .collect()
}

fn bound_from_wire(bound: &[wire::BoundAt]) -> Vec<BoundAt> {
    bound
        .iter()
        .map(|bound| BoundAt {
            relay: PeerId(bound.relay),
            addresses: addresses_from_wire(&bound.addresses),
        })
        .collect()
}
