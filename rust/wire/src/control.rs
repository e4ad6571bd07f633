//! Control messages between two nodes, on one bidirectional stream of their connection.
//!
//! A message is a length (QUIC variable-length integer) and that many bytes of CBOR (RFC 8949): one
//! map with small unsigned keys, whose first key, 0, is the kind of message. Lengths of strings,
//! arrays and maps are definite. Kinds and keys this version does not know are stepped over, so a
//! later version may add both; a known key with a wrong type, twice, or beyond its limit is an
//! error, and the connection should be closed with it.
//!
//! This module does not read streams and knows no order of messages. Feed a [`Decoder`] from the
//! stream and take messages until it wants more:
//!
//! ```
//! use anyreach_wire::control::{self, Decoder, Hello, Message};
//!
//! let hello = Message::Hello(Hello::new(7, 1));
//! let mut decoder = Decoder::new();
//! for chunk in control::encode(&hello).chunks(5) {
//!     decoder.push(chunk)?;
//! }
//! assert_eq!(decoder.next()?, Some(hello));
//! assert_eq!(decoder.next()?, None);
//! decoder.finish()?; // the stream may end here: no message is half received
//! # Ok::<(), control::ControlError>(())
//! ```

use thiserror::Error;

use crate::varint::{UnexpectedEnd, VarInt};

mod cbor;
mod notices;
mod punching;

pub use notices::{
    AddressKind, BoundAt, DirectAddress, Find, FindStatus, Found, MAX_BOUND_ADDRESSES,
    MAX_DIRECT_ADDRESSES, MAX_OBSERVED_ADDRESSES, MAX_RELAYS, PeerIdBytes, Reach, Sought,
};
pub use punching::{
    MAX_PORT_STEP, MAX_STEP_ADDRESSES, Nat, NatBehaviour, PortAllocation, Prepare, PrepareMethod,
    Prepared,
};

/// Version of the control protocol this crate writes.
///
/// Raised when a peer must know more than "skip what is unknown" to talk to us.
pub const VERSION: u16 = 1;

/// Longest message, without its length prefix: 64 KiB.
///
/// A hello takes about a hundred bytes and the longest [`Found`] about three thousand; the rest is
/// room for later versions. A peer can make us hold this much per connection.
pub const MAX_MESSAGE_BYTES: usize = 64 * 1024;

/// Most bytes a [`Decoder`] holds: an unfinished message and one chunk of the stream of the same
/// size. More means the caller pushes without taking.
pub const MAX_BUFFERED_BYTES: usize = 2 * MAX_MESSAGE_BYTES;

/// Most capabilities in a hello. We define fewer than ten; hints are not worth more of a peer's
/// memory.
pub const MAX_CAPABILITIES: usize = 32;

/// Longest capability in bytes; they are short tokens ("relay", "coordinate").
pub const MAX_CAPABILITY_BYTES: usize = 64;

/// Longest agent text in bytes; room for a name, a version and a platform.
pub const MAX_AGENT_BYTES: usize = 128;

/// A control message.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Message {
    /// The first message of the node that dialled.
    Hello(Hello),
    /// The answer to [`Hello`](Message::Hello) by the node that was dialled.
    Accept(Hello),
    /// How the sender can be reached.
    Reach(Reach),
    /// The sender looks for a node.
    Find(Find),
    /// The answer to [`Find`](Message::Find).
    Found(Found),
    /// Somebody looks for the receiver.
    Sought(Sought),
    /// What the sender's NAT does.
    Nat(Nat),
    /// The sender asks for a step of a punch.
    Prepare(Prepare),
    /// The answer to [`Prepare`](Message::Prepare).
    Prepared(Prepared),
    /// So many bytes that say nothing. A node sends a peer's addresses three bytes for each byte the
    /// peer has sent, and who asks for more pays first.
    Filler(u16),
    /// A kind this version does not know, from a later one. To be ignored.
    Unknown(u64),
}

/// What a node says about itself, once per connection.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hello {
    /// Version of the control protocol the sender speaks; see [`VERSION`].
    pub version: u16,
    /// Random number drawn when the node started: another one means the peer was restarted and
    /// has forgotten everything but its key.
    pub instance: u64,
    /// Larger than in every hello this instance sent before, to any peer. Of two connections
    /// between the same two nodes, both ends can thus tell the later one.
    pub serial: u64,
    /// What the sender offers, as short tokens. Hints: believe what was achieved, not what was
    /// announced. Tokens nobody knows are to be ignored.
    pub capabilities: Vec<String>,
    /// Name and version of the software, for logs. May be empty.
    pub agent: String,
}

impl Hello {
    /// A hello of this version without capabilities and agent.
    pub fn new(instance: u64, serial: u64) -> Self {
        Self {
            version: VERSION,
            instance,
            serial,
            capabilities: Vec::new(),
            agent: String::new(),
        }
    }
}

/// Why a peer's control bytes are refused. The stream is unusable afterwards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum ControlError {
    /// The length prefix announces more than [`MAX_MESSAGE_BYTES`].
    #[error("control message of {0} bytes, more than {MAX_MESSAGE_BYTES}")]
    TooLong(u64),
    /// More than [`MAX_BUFFERED_BYTES`] were pushed without taking messages: a fault of the caller.
    #[error("more than {MAX_BUFFERED_BYTES} bytes of control messages not taken")]
    NotTaken,
    /// The message or the stream ended inside a message.
    #[error("control message is cut short")]
    Truncated,
    /// Not CBOR, or CBOR outside our profile (a map; definite lengths; kind first).
    #[error("control message is not well-formed")]
    Malformed,
    /// Bytes follow the map inside one message.
    #[error("bytes after the end of a control message")]
    TrailingBytes,
    /// A known field has a value of another type.
    #[error("control field {0} has the wrong type")]
    WrongType(Field),
    /// A field is there twice.
    #[error("control field {0} appears twice")]
    Duplicate(Field),
    /// A required field is not there.
    #[error("control field {0} is missing")]
    Missing(Field),
    /// A field is longer or larger than allowed, or has control characters in its text.
    #[error("control field {0} is out of its limits")]
    OutOfLimits(Field),
}

/// A field of a control message, with its CBOR map key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Field {
    /// The kind of message.
    Kind = 0,
    /// [`Hello::version`].
    Version = 1,
    /// [`Hello::instance`].
    Instance = 2,
    /// [`Hello::serial`].
    Serial = 3,
    /// [`Hello::capabilities`].
    Capabilities = 4,
    /// [`Hello::agent`].
    Agent = 5,
    /// Direct addresses: [`Reach::direct`], [`Found::direct`].
    Direct = 6,
    /// Addresses at relays: [`Reach::bound`], [`Found::bound`].
    Bound = 7,
    /// [`Reach::findable`].
    Findable = 8,
    /// [`Find::request`], [`Found::request`], [`Prepare::request`], [`Prepared::request`].
    Request = 9,
    /// [`Find::peer`], [`Sought::peer`].
    Peer = 10,
    /// [`Found::status`].
    Status = 11,
    /// [`Found::observed`], [`Sought::observed`].
    Observed = 12,
    /// [`Nat::mapping`].
    Mapping = 13,
    /// [`Nat::filtering`].
    Filtering = 14,
    /// [`Nat::ports`].
    Ports = 15,
    /// [`Nat::step`].
    Step = 16,
    /// [`Prepare::method`].
    Method = 17,
    /// [`Prepare::addresses`], [`Prepared::addresses`].
    Addresses = 18,
    /// [`Prepare::count`].
    Count = 19,
    /// [`Prepared::done`].
    Done = 20,
    /// [`Reach::load`].
    Load = 21,
    /// [`Message::Filler`].
    Filler = 22,
}

impl std::fmt::Display for Field {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Kind => "kind",
            Self::Version => "version",
            Self::Instance => "instance",
            Self::Serial => "serial",
            Self::Capabilities => "capabilities",
            Self::Agent => "agent",
            Self::Direct => "direct",
            Self::Bound => "bound",
            Self::Findable => "findable",
            Self::Request => "request",
            Self::Peer => "peer",
            Self::Status => "status",
            Self::Observed => "observed",
            Self::Mapping => "mapping",
            Self::Filtering => "filtering",
            Self::Ports => "ports",
            Self::Step => "step",
            Self::Method => "method",
            Self::Addresses => "addresses",
            Self::Count => "count",
            Self::Done => "done",
            Self::Load => "load",
            Self::Filler => "filler",
        })
    }
}

/// Writes a message with its length prefix.
///
/// What exceeds the limits is left out (whole capabilities and addresses, the end of the agent), so
/// the result is always acceptable to a [`Decoder`].
pub fn encode(message: &Message) -> Vec<u8> {
    let body = cbor::encode(message);
    let length = VarInt::try_from(body.len() as u64).expect("the fields are limited");
    let mut out = Vec::with_capacity(length.encoded_len() + body.len());
    length.encode(&mut out);
    out.extend_from_slice(&body);
    out
}

/// Cuts a stream of bytes into messages.
///
/// After an error every further call returns the same error: where the next message starts is no
/// longer known.
#[derive(Debug, Default)]
pub struct Decoder {
    /// Bytes received and not yet taken; those before `start` are done with.
    buffer: Vec<u8>,
    start: usize,
    failed: Option<ControlError>,
}

impl Decoder {
    /// A decoder at the start of a stream. It allocates nothing until bytes arrive.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds the next bytes of the stream. Call [`next`](Self::next) until it returns `None`
    /// before pushing again.
    ///
    /// # Errors
    /// [`NotTaken`](ControlError::NotTaken) beyond [`MAX_BUFFERED_BYTES`], which cannot happen to
    /// a caller who does so with chunks of less than [`MAX_MESSAGE_BYTES`].
    pub fn push(&mut self, bytes: &[u8]) -> Result<(), ControlError> {
        self.check()?;
        self.buffer.drain(..self.start);
        self.start = 0;
        if self.buffer.len() + bytes.len() > MAX_BUFFERED_BYTES {
            return self.fail(ControlError::NotTaken);
        }
        self.buffer.extend_from_slice(bytes);
        Ok(())
    }

    /// Whether there are bytes that were not taken: a part of a message, once
    /// [`next`](Self::next) has returned `None`.
    pub fn has_begun(&self) -> bool {
        self.start < self.buffer.len()
    }

    /// The next complete message, or `None` if more bytes are needed.
    ///
    /// # Errors
    /// A [`ControlError`] as soon as the bytes cannot become an acceptable message; a length
    /// beyond the limit is refused before its message arrives.
    #[expect(
        clippy::should_implement_trait,
        reason = "no iterator: `None` is not the end, and an error is"
    )]
    pub fn next(&mut self) -> Result<Option<Message>, ControlError> {
        self.check()?;
        let mut rest = &self.buffer[self.start..];
        let length = match VarInt::decode(&mut rest) {
            Ok(length) if length.get() <= MAX_MESSAGE_BYTES as u64 => length.get() as usize,
            Ok(length) => return self.fail(ControlError::TooLong(length.get())),
            Err(UnexpectedEnd) => return Ok(None),
        };
        let Some((body, rest)) = rest.split_at_checked(length) else {
            return Ok(None);
        };
        let start = self.buffer.len() - rest.len();
        match cbor::decode(body) {
            Ok(message) => {
                self.start = start;
                Ok(Some(message))
            }
            Err(error) => self.fail(error),
        }
    }

    /// To be called when the stream has ended and [`next`](Self::next) returned `None`.
    ///
    /// # Errors
    /// [`Truncated`](ControlError::Truncated) if it ended inside a message.
    pub fn finish(&self) -> Result<(), ControlError> {
        self.check()?;
        if self.start < self.buffer.len() {
            return Err(ControlError::Truncated);
        }
        Ok(())
    }

    fn check(&self) -> Result<(), ControlError> {
        self.failed.map_or(Ok(()), Err)
    }

    fn fail<T>(&mut self, error: ControlError) -> Result<T, ControlError> {
        self.buffer = Vec::new();
        self.start = 0;
        self.failed = Some(error);
        Err(error)
    }
}
