//! The Capsule Protocol (RFC 9297, section 3) with the capsules of UDP proxying: DATAGRAM, and the
//! three of the bind extension (draft-ietf-masque-connect-udp-listen, section 3).
//!
//! A [`Decoder`] cuts a data stream into [`Item`]s. It looks at type and length before it keeps
//! anything: capsules of unknown types are stepped over whatever their length, those of known
//! types have the length their fields allow or are malformed, and a DATAGRAM too large to be of use
//! is discarded as it arrives (section 3.5). Integers may be longer than necessary: RFC 9297,
//! section 1.1, says so, and only the length of the whole value is checked.
//!
//! Who may send which capsule, and when, is not known here; nor is the reset that must follow
//! [`Malformed`].
//!
//! ```
//! use anyreach_wire::capsule::{Capsule, Decoder, Item};
//! use anyreach_wire::context::ContextId;
//! use bytes::Bytes;
//!
//! let ack = Capsule::CompressionAck(ContextId::from_u32(2));
//! let mut decoder = Decoder::new();
//! let mut chunk: Bytes = ack.to_bytes();
//! assert_eq!(decoder.next(&mut chunk)?, Some(Item::Capsule(ack)));
//! assert_eq!(decoder.next(&mut chunk)?, None); // more bytes, please
//! decoder.finish()?; // the stream may end here: no capsule is half received
//! # Ok::<(), anyreach_wire::capsule::Malformed>(())
//! ```

use std::{fmt, net::SocketAddr};

use bytes::{Buf, BufMut, Bytes, BytesMut};
use thiserror::Error;

use crate::address::{Address, Family};
use crate::context::{ContextId, Head, MAX_DATAGRAM};
use crate::varint::{UnexpectedEnd, VarInt};

/// Type of DATAGRAM (RFC 9297, section 3.5).
pub const DATAGRAM: VarInt = VarInt::from_u32(0x00);
/// Type of COMPRESSION_ASSIGN (bind draft, section 3.1).
pub const COMPRESSION_ASSIGN: VarInt = VarInt::from_u32(0x11);
/// Type of COMPRESSION_ACK (bind draft, section 3.2).
pub const COMPRESSION_ACK: VarInt = VarInt::from_u32(0x12);
/// Type of COMPRESSION_CLOSE (bind draft, section 3.3).
pub const COMPRESSION_CLOSE: VarInt = VarInt::from_u32(0x13);

/// Most bytes of type and length, as we accept them.
const MAX_PREFIX: usize = 2 * VarInt::MAX_LEN;

/// Most bytes in the value of a control capsule: an ASSIGN with a long context ID and IPv6.
const MAX_CONTROL_VALUE: usize = VarInt::MAX_LEN + 1 + 16 + 2;

/// Most bytes [`Capsule::encode`] writes: type and length take one each.
pub const MAX_ENCODED: usize = 2 + MAX_CONTROL_VALUE;

/// A capsule that controls contexts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Capsule {
    /// COMPRESSION_ASSIGN: registers the meaning of a context ID.
    CompressionAssign {
        /// Never 0.
        context: ContextId,
        /// The one remote of the context; `None` for the uncompressed context, whose datagrams
        /// each carry theirs. Canonical: IPv4-mapped IPv6 is IPv4, see [`crate::bound`].
        target: Option<SocketAddr>,
    },
    /// COMPRESSION_ACK: accepts a registration. Never 0.
    CompressionAck(ContextId),
    /// COMPRESSION_CLOSE: rejects a registration, or ends it. Never 0.
    CompressionClose(ContextId),
}

/// What a data stream is made of, as far as it is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Item {
    /// An HTTP Datagram that came in a DATAGRAM capsule, at most [`MAX_DATAGRAM`] bytes. It shares
    /// the memory of the chunk it came in, if it came in one.
    Datagram(Bytes),
    /// A control capsule.
    Capsule(Capsule),
}

/// The known types whose values are a few bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// COMPRESSION_ASSIGN.
    Assign,
    /// COMPRESSION_ACK.
    Ack,
    /// COMPRESSION_CLOSE.
    Close,
}

impl Kind {
    /// Whether a value of this many bytes can hold exactly the fields.
    fn admits(self, length: u64) -> bool {
        match self {
            Self::Assign => (2..=MAX_CONTROL_VALUE as u64).contains(&length),
            Self::Ack | Self::Close => (1..=VarInt::MAX_LEN as u64).contains(&length),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Assign => "COMPRESSION_ASSIGN",
            Self::Ack => "COMPRESSION_ACK",
            Self::Close => "COMPRESSION_CLOSE",
        })
    }
}

/// Why a data stream breaks the Capsule Protocol. The request stream is to be aborted (RFC 9297,
/// section 3.3); nothing after the error can be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum Malformed {
    /// The value is shorter or longer than its fields.
    #[error("{kind} capsule of {length} bytes does not hold exactly its fields")]
    WrongLength {
        /// Which capsule.
        kind: Kind,
        /// What its length field says.
        length: u64,
    },
    /// Context ID 0 cannot be registered, accepted or closed.
    #[error("{0} capsule for context 0")]
    ContextZero(Kind),
    /// The IP version of an ASSIGN is none of 0, 4 and 6.
    #[error("COMPRESSION_ASSIGN capsule with IP version {0}")]
    IpVersion(u8),
    /// A UDP payload in context 0 that no UDP packet can hold (RFC 9298, section 5).
    #[error("UDP payload in a DATAGRAM capsule of {0} bytes, more than a UDP packet holds")]
    PayloadTooLong(u64),
    /// The stream ended inside a capsule.
    #[error("the stream ended inside a capsule")]
    Truncated,
}

impl Capsule {
    /// Which capsule it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::CompressionAssign { .. } => Kind::Assign,
            Self::CompressionAck(_) => Kind::Ack,
            Self::CompressionClose(_) => Kind::Close,
        }
    }

    /// The context it is about.
    pub const fn context(&self) -> ContextId {
        match *self {
            Self::CompressionAssign { context, .. }
            | Self::CompressionAck(context)
            | Self::CompressionClose(context) => context,
        }
    }

    /// Appends the whole capsule, at most [`MAX_ENCODED`] bytes.
    ///
    /// # Panics
    /// If `out` has a fixed size and less room.
    pub fn encode(&self, out: &mut impl BufMut) {
        let (capsule_type, target) = match *self {
            Self::CompressionAssign { target, .. } => (COMPRESSION_ASSIGN, Some(target)),
            Self::CompressionAck(_) => (COMPRESSION_ACK, None),
            Self::CompressionClose(_) => (COMPRESSION_CLOSE, None),
        };
        let target = target.map(|target| target.map(Address::from));
        let target_len = match target {
            None => 0,
            Some(None) => 1,
            Some(Some(address)) => 1 + address.encoded_len(),
        };
        capsule_type.encode(out);
        // At most MAX_CONTROL_VALUE, so that it takes one byte.
        out.put_u8((self.context().encoded_len() + target_len) as u8);
        self.context().encode(out);
        match target {
            None => {}
            Some(None) => out.put_u8(0),
            Some(Some(address)) => {
                out.put_u8(ip_version(address));
                address.encode(out);
            }
        }
    }

    /// The whole capsule.
    pub fn to_bytes(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(MAX_ENCODED);
        self.encode(&mut out);
        out.freeze()
    }

    /// Reads the value of a capsule of a known type.
    fn decode_value(kind: Kind, value: &[u8]) -> Result<Self, Malformed> {
        let wrong_length = Malformed::WrongLength {
            kind,
            length: value.len() as u64,
        };
        let cut = |_: UnexpectedEnd| wrong_length;
        let mut rest = value;
        let context = ContextId::decode(&mut rest).map_err(cut)?;
        if context == ContextId::PAYLOAD {
            return Err(Malformed::ContextZero(kind));
        }
        let capsule = match kind {
            Kind::Ack => Self::CompressionAck(context),
            Kind::Close => Self::CompressionClose(context),
            Kind::Assign => {
                let (version, after) = rest.split_first().ok_or(wrong_length)?;
                rest = after;
                let target = match version {
                    0 => None,
                    4 => Some(Address::decode(&mut rest, Family::V4).map_err(cut)?),
                    6 => Some(Address::decode(&mut rest, Family::V6).map_err(cut)?),
                    other => return Err(Malformed::IpVersion(*other)),
                };
                let target = target.map(SocketAddr::from);
                Self::CompressionAssign { context, target }
            }
        };
        // RFC 9297, section 3.3: exactly the fields.
        if !rest.is_empty() {
            return Err(wrong_length);
        }
        Ok(capsule)
    }
}

/// The IP version field of an address.
pub(crate) const fn ip_version(address: Address) -> u8 {
    match address.family() {
        Family::V4 => 4,
        Family::V6 => 6,
    }
}

/// What comes before an HTTP Datagram of `length` bytes, context ID included, in a DATAGRAM
/// capsule: type and length.
///
/// # Panics
/// If `length` needs more than 62 bits, which nothing in memory does.
pub fn encode_datagram_header(length: usize) -> Head {
    let length = VarInt::try_from(length as u64).expect("a length in memory");
    let mut head = Head::EMPTY;
    head.put(DATAGRAM.encoded_len(), |mut out| DATAGRAM.encode(&mut out));
    head.put(length.encoded_len(), |mut out| length.encode(&mut out));
    head
}

/// Cuts a data stream into [`Item`]s, holding at most one unfinished capsule.
///
/// After an error every further call returns the same error.
#[derive(Debug, Default)]
pub struct Decoder {
    state: State,
}

/// What the next bytes belong to.
#[derive(Debug)]
enum State {
    /// Type and length, or between capsules.
    Prefix(Partial<MAX_PREFIX>),
    /// The value of a control capsule of `length` bytes.
    Control {
        kind: Kind,
        length: usize,
        value: Partial<MAX_CONTROL_VALUE>,
    },
    /// The value of a DATAGRAM, of which `remaining` bytes are to come.
    Datagram { value: BytesMut, remaining: usize },
    /// The context ID of a DATAGRAM that is too long to be of use.
    TooLong {
        id: Partial<{ VarInt::MAX_LEN }>,
        length: u64,
    },
    /// This many bytes nobody wants.
    Skip(u64),
    /// The stream broke the rules.
    Failed(Malformed),
}

impl Default for State {
    fn default() -> Self {
        Self::Prefix(Partial::default())
    }
}

/// Bytes of something short, of which the rest is to come.
#[derive(Debug)]
struct Partial<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Default for Partial<N> {
    fn default() -> Self {
        Self {
            bytes: [0; N],
            len: 0,
        }
    }
}

impl<const N: usize> Partial<N> {
    /// Moves bytes from the front of `chunk` until there are `length`, at most `N`.
    fn fill(&mut self, length: usize, chunk: &mut Bytes) -> Option<&[u8]> {
        let taken = chunk.len().min(length - self.len);
        self.bytes[self.len..self.len + taken].copy_from_slice(&chunk[..taken]);
        self.len += taken;
        chunk.advance(taken);
        (self.len == length).then(|| &self.bytes[..length])
    }

    /// Moves bytes from the front of `chunk` until `read` can make something of what is there.
    ///
    /// `read` must succeed on `N` bytes at the latest.
    fn read<T>(
        &mut self,
        chunk: &mut Bytes,
        read: impl Fn(&mut &[u8]) -> Result<T, UnexpectedEnd>,
    ) -> Option<T> {
        if self.len == 0 {
            // Nearly always all of it is there.
            let mut rest = &chunk[..];
            if let Ok(value) = read(&mut rest) {
                let taken = chunk.len() - rest.len();
                chunk.advance(taken);
                return Some(value);
            }
        }
        while self.len < N && !chunk.is_empty() {
            self.bytes[self.len] = chunk.get_u8();
            self.len += 1;
            if let Ok(value) = read(&mut &self.bytes[..self.len]) {
                return Some(value);
            }
        }
        None
    }
}

/// Reads type and length.
fn prefix(input: &mut &[u8]) -> Result<(VarInt, u64), UnexpectedEnd> {
    Ok((VarInt::decode(input)?, VarInt::decode(input)?.get()))
}

impl State {
    /// What follows a prefix.
    fn after_prefix(capsule_type: VarInt, length: u64) -> Self {
        let kind = match capsule_type {
            COMPRESSION_ASSIGN => Kind::Assign,
            COMPRESSION_ACK => Kind::Ack,
            COMPRESSION_CLOSE => Kind::Close,
            DATAGRAM if length <= MAX_DATAGRAM as u64 => {
                return Self::Datagram {
                    value: BytesMut::new(),
                    remaining: length as usize,
                };
            }
            DATAGRAM => {
                return Self::TooLong {
                    id: Partial::default(),
                    length,
                };
            }
            _ => return Self::Skip(length),
        };
        if kind.admits(length) {
            Self::Control {
                kind,
                length: length as usize,
                value: Partial::default(),
            }
        } else {
            Self::Failed(Malformed::WrongLength { kind, length })
        }
    }
}

impl Decoder {
    /// A decoder at the start of a data stream. It allocates nothing until a DATAGRAM comes in
    /// several chunks.
    pub fn new() -> Self {
        Self::default()
    }

    /// The next item in `chunk`, the next bytes of the stream, which is moved behind it. Call it
    /// until it returns `None`: `chunk` is then empty, and the next one may follow.
    ///
    /// # Errors
    /// [`Malformed`], as soon as the bytes cannot become an acceptable capsule: a length that is
    /// not possible is refused before the value arrives.
    pub fn next(&mut self, chunk: &mut Bytes) -> Result<Option<Item>, Malformed> {
        loop {
            let next = match &mut self.state {
                State::Prefix(partial) => match partial.read(chunk, prefix) {
                    Some((capsule_type, length)) => State::after_prefix(capsule_type, length),
                    None => return Ok(None),
                },
                State::Control {
                    kind,
                    length,
                    value,
                } => {
                    let kind = *kind;
                    let Some(value) = value.fill(*length, chunk) else {
                        return Ok(None);
                    };
                    match Capsule::decode_value(kind, value) {
                        Ok(capsule) => {
                            self.state = State::default();
                            return Ok(Some(Item::Capsule(capsule)));
                        }
                        Err(error) => State::Failed(error),
                    }
                }
                State::Datagram { value, remaining } => {
                    let taken = chunk.split_to(chunk.len().min(*remaining));
                    *remaining -= taken.len();
                    let whole = value.is_empty() && *remaining == 0;
                    if !whole {
                        // Grows with what arrives, never with what is announced.
                        value.extend_from_slice(&taken);
                    }
                    if *remaining > 0 {
                        return Ok(None);
                    }
                    let datagram = if whole { taken } else { value.split().freeze() };
                    self.state = State::default();
                    return Ok(Some(Item::Datagram(datagram)));
                }
                State::TooLong { id, length } => {
                    let before = chunk.len();
                    let held = id.len;
                    match id.read(chunk, ContextId::decode) {
                        Some(ContextId::PAYLOAD) => {
                            State::Failed(Malformed::PayloadTooLong(*length))
                        }
                        Some(_) => State::Skip(*length - (held + before - chunk.len()) as u64),
                        None => return Ok(None),
                    }
                }
                State::Skip(remaining) => {
                    let skipped = chunk
                        .len()
                        .min(usize::try_from(*remaining).unwrap_or(usize::MAX));
                    chunk.advance(skipped);
                    *remaining -= skipped as u64;
                    if *remaining > 0 {
                        return Ok(None);
                    }
                    State::default()
                }
                State::Failed(error) => return Err(*error),
            };
            self.state = next;
        }
    }

    /// To be called when the stream has ended and [`next`](Self::next) returned `None`.
    ///
    /// # Errors
    /// [`Truncated`](Malformed::Truncated) if it ended inside a capsule, or the error of before.
    pub fn finish(&self) -> Result<(), Malformed> {
        match &self.state {
            State::Prefix(partial) if partial.len == 0 => Ok(()),
            State::Failed(error) => Err(*error),
            _ => Err(Malformed::Truncated),
        }
    }

    /// Bytes of the unfinished DATAGRAM held, at most [`MAX_DATAGRAM`].
    pub fn buffered(&self) -> usize {
        match &self.state {
            State::Datagram { value, .. } => value.len(),
            _ => 0,
        }
    }
}
