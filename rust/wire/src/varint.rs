//! Variable-length integers of QUIC (RFC 9000, section 16).
//!
//! Not the prefixed integers of QPACK, nor CBOR heads.

use bytes::BufMut;
use thiserror::Error;

/// An integer a QUIC variable-length integer can carry: `0 ..= 2^62 - 1`.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VarInt(u64);

impl VarInt {
    /// The largest value, 2^62 - 1.
    pub const MAX: Self = Self((1 << 62) - 1);

    /// The longest encoding in bytes.
    pub const MAX_LEN: usize = 8;

    /// A value known to fit, for constants and small counters.
    pub const fn from_u32(value: u32) -> Self {
        Self(value as u64)
    }

    /// The value, or `None` if it needs more than 62 bits.
    pub const fn from_u64(value: u64) -> Option<Self> {
        if value <= Self::MAX.0 {
            Some(Self(value))
        } else {
            None
        }
    }

    /// The plain integer.
    #[inline]
    pub const fn get(self) -> u64 {
        self.0
    }

    /// Bytes of the shortest encoding: 1, 2, 4 or 8.
    pub const fn encoded_len(self) -> usize {
        match self.0 {
            0..=0x3f => 1,
            0x40..=0x3fff => 2,
            0x4000..=0x3fff_ffff => 4,
            _ => 8,
        }
    }

    /// Reads one integer from the front of `input` and moves `input` behind it.
    ///
    /// Every length is accepted for every value: only frame types have to be shortest
    /// (RFC 9000, section 12.4). On error `input` stays where it was.
    #[inline]
    pub fn decode(input: &mut &[u8]) -> Result<Self, UnexpectedEnd> {
        let first = *input.first().ok_or(UnexpectedEnd)?;
        // By the two bits in front: this is most of what reading a packet costs.
        let value = match first >> 6 {
            0b00 => u64::from(u8::from_be_bytes(take(input)?)),
            0b01 => u64::from(u16::from_be_bytes(take(input)?) & 0x3fff),
            0b10 => u64::from(u32::from_be_bytes(take(input)?) & 0x3fff_ffff),
            _ => u64::from_be_bytes(take(input)?) & Self::MAX.0,
        };
        Ok(Self(value))
    }

    /// Appends the shortest encoding.
    ///
    /// # Panics
    /// If `out` has a fixed size and less room than [`encoded_len`](Self::encoded_len).
    pub fn encode(self, out: &mut impl BufMut) {
        match self.encoded_len() {
            1 => out.put_u8(self.0 as u8),
            2 => out.put_u16(0b01 << 14 | self.0 as u16),
            4 => out.put_u32(0b10 << 30 | self.0 as u32),
            _ => out.put_u64(0b11 << 62 | self.0),
        }
    }
}

impl From<u8> for VarInt {
    fn from(value: u8) -> Self {
        Self(value.into())
    }
}

impl From<u16> for VarInt {
    fn from(value: u16) -> Self {
        Self(value.into())
    }
}

impl From<u32> for VarInt {
    fn from(value: u32) -> Self {
        Self(value.into())
    }
}

impl TryFrom<u64> for VarInt {
    type Error = VarIntTooLarge;

    fn try_from(value: u64) -> Result<Self, VarIntTooLarge> {
        Self::from_u64(value).ok_or(VarIntTooLarge(value))
    }
}

impl From<VarInt> for u64 {
    fn from(value: VarInt) -> Self {
        value.0
    }
}

impl std::fmt::Display for VarInt {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[inline]
fn take<const N: usize>(input: &mut &[u8]) -> Result<[u8; N], UnexpectedEnd> {
    let (taken, rest) = input.split_first_chunk().ok_or(UnexpectedEnd)?;
    *input = rest;
    Ok(*taken)
}

/// The input ended inside a field. Where more may follow, try again with more bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("input ended inside a field")]
pub struct UnexpectedEnd;

/// A number above [`VarInt::MAX`]: QUIC has no way to write it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
#[error("{0} does not fit a 62-bit variable-length integer")]
pub struct VarIntTooLarge(pub u64);
