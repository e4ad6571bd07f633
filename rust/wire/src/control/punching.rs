//! What two nodes tell each other to make a direct path between them: what their NATs do, and
//! which steps of a punch one asks of the other.

use crate::address::Address;

/// Most addresses in a step and in its answer: one per family, and as much again for a second line.
pub const MAX_STEP_ADDRESSES: usize = 4;

/// Largest distance between two ports a NAT gives out one after the other; no two ports are further
/// apart.
pub const MAX_PORT_STEP: i32 = u16::MAX as i32;

/// How far a NAT looks at the other end: when it reuses a mapping, or what it lets in
/// (RFC 4787, sections 4.1 and 5).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum NatBehaviour {
    /// Not known, or of a kind this version does not know.
    #[default]
    Unknown,
    /// There is no NAT, or no filter.
    None,
    /// The other end does not matter.
    EndpointIndependent,
    /// The address of the other end matters.
    AddressDependent,
    /// Its port matters as well.
    AddressAndPortDependent,
}

impl NatBehaviour {
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::None => 1,
            Self::EndpointIndependent => 2,
            Self::AddressDependent => 3,
            Self::AddressAndPortDependent => 4,
        }
    }

    pub(super) const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::None,
            2 => Self::EndpointIndependent,
            3 => Self::AddressDependent,
            4 => Self::AddressAndPortDependent,
            _ => Self::Unknown,
        }
    }
}

/// How a NAT chooses the external port of a new mapping (RFC 4787, section 4.2).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum PortAllocation {
    /// Not known, or of a kind this version does not know.
    #[default]
    Unknown,
    /// The internal port, as long as it is free.
    Preserving,
    /// One after the other; see [`Nat::step`].
    Sequential,
    /// Without a pattern.
    Random,
}

impl PortAllocation {
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Unknown => 0,
            Self::Preserving => 1,
            Self::Sequential => 2,
            Self::Random => 3,
        }
    }

    pub(super) const fn from_number(number: u64) -> Self {
        match number {
            1 => Self::Preserving,
            2 => Self::Sequential,
            3 => Self::Random,
            _ => Self::Unknown,
        }
    }
}

/// What the NAT in front of a node does, as the node has found out. Each one replaces the one
/// before.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Nat {
    /// When a mapping is reused for another destination.
    pub mapping: NatBehaviour,
    /// Whose packets a mapping lets in.
    pub filtering: NatBehaviour,
    /// How ports are given out.
    pub ports: PortAllocation,
    /// From one port to the next if they are sequential, else 0; at most [`MAX_PORT_STEP`] either
    /// way.
    pub step: i32,
}

/// What the receiver of a [`Prepare`] is to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum PrepareMethod {
    /// Find out which ports its NAT will give out next, and offer those as candidates.
    Predict,
    /// Open many sockets towards the first address.
    Pool,
    /// Try many ports at the first address.
    Spray,
    /// A method of a later version, which cannot be done.
    Other(u64),
}

impl PrepareMethod {
    pub(super) const fn number(self) -> u64 {
        match self {
            Self::Predict => 0,
            Self::Pool => 1,
            Self::Spray => 2,
            Self::Other(number) => number,
        }
    }

    pub(super) const fn from_number(number: u64) -> Self {
        match number {
            0 => Self::Predict,
            1 => Self::Pool,
            2 => Self::Spray,
            other => Self::Other(other),
        }
    }
}

/// Asks for one step of a punch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepare {
    /// Chosen by the asker, repeated in the answer.
    pub request: u64,
    /// What is to be done.
    pub method: PrepareMethod,
    /// Towards which addresses, those of the asker; at most [`MAX_STEP_ADDRESSES`].
    pub addresses: Vec<Address>,
    /// How many candidates, sockets or ports. The receiver keeps to its own limits.
    pub count: u16,
}

/// The answer to [`Prepare`]: the step is done, or will not be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prepared {
    /// As in the question.
    pub request: u64,
    /// Whether it was done.
    pub done: bool,
    /// Where the sender is to be expected now, if that is news; at most [`MAX_STEP_ADDRESSES`].
    pub addresses: Vec<Address>,
}

impl Prepared {
    /// A refusal.
    pub const fn refused(request: u64) -> Self {
        Self {
            request,
            done: false,
            addresses: Vec::new(),
        }
    }
}
