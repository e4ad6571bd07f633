//! The QUIC frames of NAT traversal and address discovery.
//!
//! Layouts of draft-seemann-quic-nat-traversal-02, section 4.6, and
//! draft-ietf-quic-address-discovery-00, section 4.1. Who may send which frame, and whether the
//! extension was negotiated, is the connection's business, not that of this module.

use bytes::BufMut;
use thiserror::Error;

use crate::address::{Address, Family};
use crate::varint::{UnexpectedEnd, VarInt};

/// Type of ADD_ADDRESS with an IPv4 address; with IPv6 it is one more.
pub const ADD_ADDRESS: VarInt = VarInt::from_u32(0x3d_7e90);
/// Type of PUNCH_ME_NOW with an IPv4 address; with IPv6 it is one more.
pub const PUNCH_ME_NOW: VarInt = VarInt::from_u32(0x3d_7e92);
/// Type of REMOVE_ADDRESS.
pub const REMOVE_ADDRESS: VarInt = VarInt::from_u32(0x3d_7e94);
/// Type of OBSERVED_ADDRESS with an IPv4 address; with IPv6 it is one more.
pub const OBSERVED_ADDRESS: VarInt = VarInt::from_u32(0x9f_81a6);

/// Largest encoding of any of these frames: a PUNCH_ME_NOW with IPv6 and two long integers.
pub const MAX_FRAME_BYTES: usize = 4 + 8 + 8 + 18;

/// One of the extension frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Frame {
    /// Server to client: an address to try.
    AddAddress(AddAddress),
    /// Client to server: probe this address now.
    PunchMeNow(PunchMeNow),
    /// Server to client: an address is stale.
    RemoveAddress(RemoveAddress),
    /// Either way, on the path it speaks of: the address the sender sees.
    ObservedAddress(ObservedAddress),
}

/// Advertises an address candidate of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AddAddress {
    /// Number of this advertisement within the connection.
    pub sequence: VarInt,
    /// The candidate.
    pub address: Address,
}

/// Asks the server to probe an address of the client.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PunchMeNow {
    /// Number of the attempt. A higher one than before ends all probing of earlier rounds.
    pub round: VarInt,
    /// The [`AddAddress::sequence`] of the server's address this one is paired with.
    pub paired_with: VarInt,
    /// The address of the client.
    pub address: Address,
}

/// Withdraws an address candidate of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RemoveAddress {
    /// The [`AddAddress::sequence`] of the candidate.
    pub sequence: VarInt,
}

/// Reports the address the sender sees packets of this path come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ObservedAddress {
    /// Grows with every report; one with a lower number than seen on a path is out of date.
    pub sequence: VarInt,
    /// The receiver's address as the sender sees it.
    pub address: Address,
}

/// Why bytes are not one of these frames.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum FrameError {
    /// The packet ends inside the frame: FRAME_ENCODING_ERROR.
    #[error(transparent)]
    UnexpectedEnd(#[from] UnexpectedEnd),
    /// The type is not in its shortest encoding (RFC 9000, section 12.4): PROTOCOL_VIOLATION.
    #[error("frame type {0:#x} is not in its shortest encoding")]
    TypeNotShortest(u64),
    /// A frame of another type, which others may understand.
    #[error("frame type {0:#x} is none of NAT traversal or address discovery")]
    OtherType(u64),
}

impl Frame {
    /// Whether a frame type is one of those read here.
    pub const fn is_extension_type(frame_type: u64) -> bool {
        matches!(frame_type, 0x3d_7e90..=0x3d_7e94 | 0x9f_81a6..=0x9f_81a7)
    }

    /// Reads one frame with its type from the front of `input` and moves `input` behind it.
    ///
    /// # Errors
    /// Those of [`FrameError`]; `input` then stays where it was.
    pub fn decode(input: &mut &[u8]) -> Result<Self, FrameError> {
        let mut rest = *input;
        let frame_type = VarInt::decode(&mut rest)?;
        let type_len = input.len() - rest.len();
        let family = if frame_type.get() & 1 == 0 {
            Family::V4
        } else {
            Family::V6
        };
        // The type is checked for its length only if it is ours: others decide about theirs.
        let mut first_integer = || {
            if type_len != frame_type.encoded_len() {
                return Err(FrameError::TypeNotShortest(frame_type.get()));
            }
            Ok(VarInt::decode(&mut rest)?)
        };
        let frame = match frame_type.get() {
            0x3d_7e90 | 0x3d_7e91 => Self::AddAddress(AddAddress {
                sequence: first_integer()?,
                address: Address::decode(&mut rest, family)?,
            }),
            0x3d_7e92 | 0x3d_7e93 => Self::PunchMeNow(PunchMeNow {
                round: first_integer()?,
                paired_with: VarInt::decode(&mut rest)?,
                address: Address::decode(&mut rest, family)?,
            }),
            0x3d_7e94 => Self::RemoveAddress(RemoveAddress {
                sequence: first_integer()?,
            }),
            0x9f_81a6 | 0x9f_81a7 => Self::ObservedAddress(ObservedAddress {
                sequence: first_integer()?,
                address: Address::decode(&mut rest, family)?,
            }),
            other => return Err(FrameError::OtherType(other)),
        };
        *input = rest;
        Ok(frame)
    }

    /// Bytes of the encoding with its type, at most [`MAX_FRAME_BYTES`].
    pub fn encoded_len(&self) -> usize {
        let body = match self {
            Self::AddAddress(frame) => frame.sequence.encoded_len() + frame.address.encoded_len(),
            Self::PunchMeNow(frame) => {
                frame.round.encoded_len()
                    + frame.paired_with.encoded_len()
                    + frame.address.encoded_len()
            }
            Self::RemoveAddress(frame) => frame.sequence.encoded_len(),
            Self::ObservedAddress(frame) => {
                frame.sequence.encoded_len() + frame.address.encoded_len()
            }
        };
        self.frame_type().encoded_len() + body
    }

    /// Appends the frame with its type.
    ///
    /// # Panics
    /// If `out` has a fixed size and less room than [`encoded_len`](Self::encoded_len).
    pub fn encode(&self, out: &mut impl BufMut) {
        self.frame_type().encode(out);
        match self {
            Self::AddAddress(AddAddress { sequence, address })
            | Self::ObservedAddress(ObservedAddress { sequence, address }) => {
                sequence.encode(out);
                address.encode(out);
            }
            Self::PunchMeNow(PunchMeNow {
                round,
                paired_with,
                address,
            }) => {
                round.encode(out);
                paired_with.encode(out);
                address.encode(out);
            }
            Self::RemoveAddress(RemoveAddress { sequence }) => sequence.encode(out),
        }
    }

    /// The type this frame is written with.
    pub fn frame_type(&self) -> VarInt {
        match self {
            Self::AddAddress(frame) => for_family(ADD_ADDRESS, frame.address),
            Self::PunchMeNow(frame) => for_family(PUNCH_ME_NOW, frame.address),
            Self::RemoveAddress(_) => REMOVE_ADDRESS,
            Self::ObservedAddress(frame) => for_family(OBSERVED_ADDRESS, frame.address),
        }
    }
}

/// The least significant bit of the type tells the address family.
fn for_family(v4: VarInt, address: Address) -> VarInt {
    match address.family() {
        Family::V4 => v4,
        Family::V6 => VarInt::from_u32(v4.get() as u32 | 1),
    }
}
