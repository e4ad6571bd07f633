//! What nodes tell each other about where they, and nodes they know, can be reached.

use crate::address::Address;

/// A PeerId as it travels: the SHA-256 of a public key.
pub type PeerIdBytes = [u8; 32];

/// Most direct addresses in a message: interfaces and external addresses of a host, both families.
pub const MAX_DIRECT_ADDRESSES: usize = 32;

/// Most relays in a message: as many as a node has tunnels. It reserves at two and dials through
/// others, and an address that is left out would be taken for the node's own by who sees it.
pub const MAX_RELAYS: usize = 16;

/// Most addresses bound at one relay: two families, and twice that for a relay with two lines.
pub const MAX_BOUND_ADDRESSES: usize = 4;

/// Most addresses one node is observed under by another: one per path it commonly has.
pub const MAX_OBSERVED_ADDRESSES: usize = 4;

/// Where an address comes from, as its owner says. A hint for the order of attempts, not more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum AddressKind {
    /// Not said, or of a kind this version does not know.
    #[default]
    Unspecified,
    /// Of an interface of the host.
    Interface,
    /// Reported by peers: the outside of a NAT.
    Observed,
    /// Made on the router by a port-mapping protocol.
    Mapped,
    /// Named by the operator.
    Configured,
}

impl AddressKind {
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Unspecified => 0,
            Self::Interface => 1,
            Self::Observed => 2,
            Self::Mapped => 3,
            Self::Configured => 4,
        }
    }

    pub(super) const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Interface,
            2 => Self::Observed,
            3 => Self::Mapped,
            4 => Self::Configured,
            _ => Self::Unspecified,
        }
    }
}

/// An address at which a node may be dialed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DirectAddress {
    /// The address.
    pub address: Address,
    /// Where it comes from.
    pub kind: AddressKind,
}

/// Addresses at a relay that lead to a node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BoundAt {
    /// The relay.
    pub relay: PeerIdBytes,
    /// Addresses bound there, at most [`MAX_BOUND_ADDRESSES`].
    pub addresses: Vec<Address>,
}

/// How a node can be reached, as it says itself. Each one replaces the one before.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Reach {
    /// Addresses to dial, best first; at most [`MAX_DIRECT_ADDRESSES`].
    pub direct: Vec<DirectAddress>,
    /// Addresses at relays; at most [`MAX_RELAYS`].
    pub bound: Vec<BoundAt>,
    /// Whether the receiver may tell all this to others that look for the sender.
    pub findable: bool,
    /// How busy the sender is as a relay, in percent of what it takes on; `None` if it does not say.
    pub load: Option<u8>,
}

/// Asks where a node is, which the receiver may be connected to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Find {
    /// Chosen by the asker, repeated in the answer.
    pub request: u64,
    /// Who is looked for.
    pub peer: PeerIdBytes,
}

/// How a search ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FindStatus {
    /// The node asked is connected to the one looked for, which may be found.
    Found,
    /// The node asked is not connected to it.
    Unknown,
    /// It is, but the one looked for does not want to be found.
    NotFindable,
    /// Too many searches; later ones may be answered.
    Limit,
    /// A status of a later version. Not found, in any case.
    Other(u64),
}

impl FindStatus {
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Found => 0,
            Self::Unknown => 1,
            Self::NotFindable => 2,
            Self::Limit => 3,
            Self::Other(number) => number,
        }
    }

    pub(super) const fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Found,
            1 => Self::Unknown,
            2 => Self::NotFindable,
            3 => Self::Limit,
            other => Self::Other(other),
        }
    }
}

/// The answer to [`Find`]. All but `Found` leave the addresses empty.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// As in the question.
    pub request: u64,
    /// How the search ended.
    pub status: FindStatus,
    /// What the node found says of itself; at most [`MAX_DIRECT_ADDRESSES`].
    pub direct: Vec<DirectAddress>,
    /// The same of its relays; at most [`MAX_RELAYS`].
    pub bound: Vec<BoundAt>,
    /// Under which addresses the answering node sees it; at most [`MAX_OBSERVED_ADDRESSES`].
    pub observed: Vec<Address>,
}

impl Found {
    /// An answer without addresses.
    pub const fn nothing(request: u64, status: FindStatus) -> Self {
        Self {
            request,
            status,
            direct: Vec::new(),
            bound: Vec::new(),
            observed: Vec::new(),
        }
    }
}

/// Tells a node that another one looks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sought {
    /// Who looks.
    pub peer: PeerIdBytes,
    /// Under which addresses the sender sees it; at most [`MAX_OBSERVED_ADDRESSES`].
    pub observed: Vec<Address>,
}
