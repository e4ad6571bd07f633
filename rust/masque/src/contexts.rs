//! The context tables of a tunnel, as pure state machines: which context ID means which remote,
//! under the rules of draft-ietf-masque-connect-udp-listen ("the draft" below) and RFC 9298.
//!
//! [`ClientContexts`] and [`ProxyContexts`] are told of capsules, datagrams and packets, and say
//! what to send; they do no I/O and read no clock. An error is a [`Violation`] by the peer, after
//! which the request stream is to be aborted. Whether a remote may be contacted is asked of the
//! caller.
//!
//! Lookups cost one hash of a table of at most [`MAX_CONTEXTS`] entries, since every packet needs
//! one. What is remembered of contexts that have ended is bounded too; see [`MAX_GAPS`].

use std::{net::SocketAddr, time::Duration};

use anyreach_wire::{
    bound::BoundError,
    capsule::{Capsule, Kind},
    context::{ContextId, DatagramError, Side},
};
use bytes::Bytes;

use crate::carrier::ProtocolViolation;

mod client;
mod early;
mod ids;
mod proxy;
mod table;

pub use client::{Changed, ClientContexts, Families};
pub use early::{EARLY_LIFETIME, EarlyDatagrams, MAX_EARLY_BYTES, MAX_EARLY_DATAGRAMS};
pub use proxy::{ProxyContexts, Routed};

/// Most compressed contexts open in one tunnel, whoever opened them: the limit the draft demands
/// in its security considerations. Two dozen kilobytes per tunnel, and more remotes at a time
/// than a node has peers behind one relay; those beyond it use the uncompressed context.
pub const MAX_CONTEXTS: usize = 128;

/// Most of them the proxy opens: packets from addresses made up by a stranger may not take the
/// room for those the client asks for.
pub const MAX_OPENED_BY_PROXY: usize = MAX_CONTEXTS * 3 / 4;

/// Most registrations of ours that wait for an answer. A flood of new remotes thus makes this many
/// capsules per round trip at most, and as many that close idle contexts to make room: well under
/// the 64 a carrier queues before it gives up the tunnel, with room for answers. The others use the
/// uncompressed context meanwhile.
pub const MAX_UNANSWERED: usize = 24;

/// For how long we register nothing after the peer rejected a registration of ours, or closed it:
/// it has reached its limit or does not want more, and asking again with every packet would only
/// make it repeat itself.
pub const PAUSE_AFTER_CLOSE: Duration = Duration::from_secs(10);

/// Most separate stretches of IDs the peer has used that we remember. IDs may be allocated in any
/// order (RFC 9298, section 4), but those of every known implementation count upwards, which is
/// one stretch. Beyond it, registrations that would begin another one are rejected.
pub const MAX_GAPS: usize = 256;

/// What a request was for, which decides about context 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// One target, without the bind extension: only context 0 exists, and compression capsules
    /// are of an unknown type.
    Plain,
    /// Any remote; `*` was the target. Context 0 must not be used.
    Bound,
    /// Any remote, and context 0 for the target.
    BoundWithTarget,
}

/// What a datagram that arrived means.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Incoming {
    /// A UDP payload to or from the target of the request.
    Target(Bytes),
    /// A UDP payload to or from this remote.
    Remote {
        /// Canonical.
        remote: SocketAddr,
        /// The UDP payload.
        payload: Bytes,
        /// Whether the remote is in the datagram itself. A proxy then has yet to check it; the
        /// remote of a compressed context was checked when it was registered.
        uncompressed: bool,
    },
    /// A context the peer has not registered, but may yet: the capsule can come after the
    /// datagram (RFC 9298, section 5). To be dropped, or kept in [`EarlyDatagrams`].
    Early {
        /// Allocated by the peer.
        context: ContextId,
        /// What follows the context ID.
        payload: Bytes,
    },
    /// To be dropped silently.
    Dropped(DropReason),
}

/// Why a datagram is dropped, for counters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DropReason {
    /// Its context has been closed; reordering makes this happen.
    ClosedContext,
    /// Its context is one of ours that we never opened, or one that cannot be.
    UnknownContext,
    /// The remote in it cannot be read.
    Unreadable(BoundError),
    /// No UDP packet can hold it.
    TooLong,
}

/// The peer broke a rule of the draft or of RFC 9298.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Violation {
    /// RFC 9298, sections 4 and 5.
    #[error(transparent)]
    Datagram(#[from] DatagramError),
    /// The draft, section 3: not with `*` as the target.
    #[error("HTTP Datagram in context 0 without a target")]
    ContextZero,
    /// An ASSIGN for an ID the other side allocates (RFC 9298, section 4), or for 0.
    #[error("context {0} is not the peer's to register")]
    NotTheirs(ContextId),
    /// An ASSIGN for an ID that was registered before (the draft, section 3.1).
    #[error("context {0} was registered before")]
    Repeated(ContextId),
    /// An ASSIGN for a remote the peer has a context for (the draft, section 3.1).
    #[error("context {id} repeats the remote of context {existing}")]
    SameRemote {
        /// The second one.
        id: ContextId,
        /// The first one.
        existing: ContextId,
    },
    /// An ASSIGN for an uncompressed context while one is open (the draft, section 4).
    #[error("a second uncompressed context {0}")]
    SecondUncompressed(ContextId),
    /// An ASSIGN for an uncompressed context by the proxy (the draft, section 4).
    #[error("an uncompressed context {0} of the proxy")]
    UncompressedByProxy(ContextId),
    /// An ACK or CLOSE for an ID we never registered (the draft, sections 3.2 and 3.3).
    #[error("{kind} for context {id}, which was not registered")]
    NotRegistered {
        /// Which capsule.
        kind: Kind,
        /// Of which context.
        id: ContextId,
    },
}

impl From<Violation> for ProtocolViolation {
    fn from(violation: Violation) -> Self {
        Self(violation.to_string())
    }
}

/// A context that has ended, or a registration that was rejected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Closed {
    /// Its ID.
    pub context: ContextId,
    /// Its remote; `None` for the uncompressed context.
    pub remote: Option<SocketAddr>,
    /// Who had registered it.
    pub opened_by: Side,
    /// Whether the other side had accepted it.
    pub acknowledged: bool,
}

/// The capsules an operation wants sent, in order. Empty most of the time, which costs nothing.
pub type Capsules = Vec<Capsule>;
