//! Context IDs, and the HTTP Datagrams of UDP proxying that start with one (RFC 9298, sections 4
//! and 5).
//!
//! What an ID means within a tunnel is not known here; that is the context tables of
//! `anyreach-masque`.

use std::{fmt, ops::Deref};

use bytes::{Buf, BufMut, Bytes};
use thiserror::Error;

use crate::varint::{UnexpectedEnd, VarInt};

/// Largest UDP payload: what the 16-bit length of the UDP header leaves (RFC 9298, section 5).
pub const MAX_UDP_PAYLOAD: usize = 65_527;

/// Most bytes before the UDP payload: an uncompressed context's ID, IP version, IPv6 address and
/// port.
pub const MAX_HEAD: usize = VarInt::MAX_LEN + 1 + 16 + 2;

/// Largest HTTP Datagram of UDP proxying that can be of use.
pub const MAX_DATAGRAM: usize = MAX_HEAD + MAX_UDP_PAYLOAD;

/// One of the two ends of a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Side {
    /// The one that made the request.
    Client,
    /// The one that answers it.
    Proxy,
}

impl Side {
    /// The other end.
    pub const fn peer(self) -> Self {
        match self {
            Self::Client => Self::Proxy,
            Self::Proxy => Self::Client,
        }
    }
}

/// Identifies the meaning of an HTTP Datagram within one tunnel.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContextId(VarInt);

impl ContextId {
    /// UDP payloads of the one target the request named.
    pub const PAYLOAD: Self = Self(VarInt::from_u32(0));

    /// An ID known to fit, for constants and small counters.
    pub const fn from_u32(id: u32) -> Self {
        Self(VarInt::from_u32(id))
    }

    /// The ID, or `None` if it needs more than 62 bits.
    pub const fn from_u64(id: u64) -> Option<Self> {
        match VarInt::from_u64(id) {
            Some(id) => Some(Self(id)),
            None => None,
        }
    }

    /// The plain integer.
    pub const fn get(self) -> u64 {
        self.0.get()
    }

    /// Which end allocates this ID: even ones the client, odd ones the proxy. `None` for
    /// [`PAYLOAD`](Self::PAYLOAD), which nobody allocates.
    pub const fn allocator(self) -> Option<Side> {
        match self.0.get() {
            0 => None,
            id if id % 2 == 0 => Some(Side::Client),
            _ => Some(Side::Proxy),
        }
    }

    /// Bytes of the shortest encoding: 1, 2, 4 or 8.
    pub const fn encoded_len(self) -> usize {
        self.0.encoded_len()
    }

    /// Reads an ID from the front of `input` and moves `input` behind it. Every length of encoding
    /// is legal (RFC 9297, section 1.1).
    ///
    /// # Errors
    /// [`UnexpectedEnd`]; `input` then stays where it was.
    pub fn decode(input: &mut &[u8]) -> Result<Self, UnexpectedEnd> {
        VarInt::decode(input).map(Self)
    }

    /// Appends the shortest encoding.
    ///
    /// # Panics
    /// If `out` has a fixed size and less room than [`encoded_len`](Self::encoded_len).
    pub fn encode(self, out: &mut impl BufMut) {
        self.0.encode(out);
    }

    /// What comes before the UDP payload in a datagram of a compressed context, and of
    /// [`PAYLOAD`](Self::PAYLOAD).
    pub fn head(self) -> Head {
        let mut head = Head::EMPTY;
        head.put(self.encoded_len(), |mut out| self.encode(&mut out));
        head
    }
}

impl fmt::Debug for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContextId({})", self.0)
    }
}

impl fmt::Display for ContextId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an HTTP Datagram breaks RFC 9298. The request stream is to be aborted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum DatagramError {
    /// It ends before its context ID does.
    #[error("HTTP Datagram without a context ID")]
    NoContextId,
    /// Section 5: an endpoint that receives more than [`MAX_UDP_PAYLOAD`] in context 0 aborts.
    #[error("UDP payload of {0} bytes, more than {MAX_UDP_PAYLOAD}")]
    PayloadTooLong(usize),
}

/// Takes an HTTP Datagram apart: its context ID and what follows, which shares its memory.
///
/// # Errors
/// [`DatagramError`].
pub fn split_datagram(mut datagram: Bytes) -> Result<(ContextId, Bytes), DatagramError> {
    let mut rest = &datagram[..];
    let id = ContextId::decode(&mut rest).map_err(|UnexpectedEnd| DatagramError::NoContextId)?;
    let payload = rest.len();
    if id == ContextId::PAYLOAD && payload > MAX_UDP_PAYLOAD {
        return Err(DatagramError::PayloadTooLong(payload));
    }
    datagram.advance(datagram.len() - payload);
    Ok((id, datagram))
}

/// The few bytes that come before a UDP payload, held in place: the hot path allocates nothing.
#[derive(Clone, Copy)]
pub struct Head {
    bytes: [u8; MAX_HEAD],
    len: u8,
}

impl Head {
    pub(crate) const EMPTY: Self = Self {
        bytes: [0; MAX_HEAD],
        len: 0,
    };

    /// Appends exactly `len` bytes, which `write` is to fill.
    pub(crate) fn put(&mut self, len: usize, write: impl FnOnce(&mut [u8])) {
        let start = usize::from(self.len);
        write(&mut self.bytes[start..start + len]);
        self.len += len as u8;
    }
}

impl Deref for Head {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl fmt::Debug for Head {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Head({:02x?})", &self[..])
    }
}

impl PartialEq for Head {
    fn eq(&self, other: &Self) -> bool {
        self[..] == other[..]
    }
}

impl Eq for Head {}
