//! Where the frames of a 1-RTT packet begin and end, and which packets an ACK names.
//!
//! For those who look for a few frames among all the others: frames of RFC 9000, datagrams
//! (RFC 9221), acknowledgement frequency, multipath, address discovery, and NAT traversal in the
//! code points of the draft as well as those of the engine. Contents are not judged, the engine
//! does that. A type this module does not know ends the walk with an error, because where the
//! next frame begins is then unknown.

use std::ops::{Range, RangeInclusive};

use thiserror::Error;

use crate::varint::{UnexpectedEnd, VarInt};

/// Type of PADDING.
pub const PADDING: u64 = 0x00;
/// Type of PING.
pub const PING: u64 = 0x01;

/// One frame in a payload, or a run of PADDING.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawFrame {
    /// The type.
    pub frame_type: u64,
    /// Where in the payload the frame is, with its type.
    pub range: Range<usize>,
    /// Where its contents begin, behind the type.
    pub body: usize,
}

impl RawFrame {
    /// Whether a packet with this frame is to be acknowledged (RFC 9000, section 13.2.1, and the
    /// multipath draft for PATH_ACK).
    pub const fn is_ack_eliciting(&self) -> bool {
        !matches!(
            self.frame_type,
            PADDING | 0x02 | 0x03 | 0x1c | 0x1d | 0x3e | 0x3f
        )
    }
}

/// Why a payload cannot be walked to its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum WalkError {
    /// The payload ends inside a frame.
    #[error(transparent)]
    UnexpectedEnd(#[from] UnexpectedEnd),
    /// A type whose layout is not known.
    #[error("unknown frame type {0:#x}")]
    UnknownType(u64),
    /// An ACK that names packets below zero.
    #[error("acknowledgement ranges below zero")]
    BadRanges,
}

/// The frame that begins at `at`, or `None` at the end of the payload. The next one begins at
/// `range.end`.
///
/// # Errors
/// Those of [`WalkError`] but [`BadRanges`](WalkError::BadRanges).
#[inline]
pub fn frame_at(payload: &[u8], at: usize) -> Result<Option<RawFrame>, WalkError> {
    let Some(start) = payload.get(at..).filter(|rest| !rest.is_empty()) else {
        return Ok(None);
    };
    let frame = |frame_type, body, end| {
        Ok(Some(RawFrame {
            frame_type,
            range: at..at + end,
            body: at + body,
        }))
    };
    if start[0] == 0 {
        return frame(PADDING, 1, leading_zeros(start));
    }
    let mut rest = start;
    let frame_type = VarInt::decode(&mut rest)?.get();
    let body = start.len() - rest.len();
    skip_contents(&mut rest, frame_type)?;
    frame(frame_type, body, start.len() - rest.len())
}

/// The acknowledgement in an ACK or PATH_ACK frame; `None` for a frame of another type.
///
/// # Errors
/// Those of [`WalkError`]; a frame that [`frame_at`] found in the same payload can only have
/// [`BadRanges`](WalkError::BadRanges).
pub fn acknowledged(payload: &[u8], frame: &RawFrame) -> Result<Option<Acknowledged>, WalkError> {
    let mut rest = payload
        .get(frame.body..frame.range.end)
        .ok_or(UnexpectedEnd)?;
    let path = match frame.frame_type {
        0x02 | 0x03 => 0,
        0x3e | 0x3f => VarInt::decode(&mut rest)?.get(),
        _ => return Ok(None),
    };
    let mut largest = VarInt::decode(&mut rest)?.get();
    VarInt::decode(&mut rest)?;
    let further = VarInt::decode(&mut rest)?.get();
    let mut ranges = Vec::new();
    for _ in 0..further {
        let smallest = below(largest, VarInt::decode(&mut rest)?.get())?;
        ranges.push(smallest..=largest);
        // RFC 9000, section 19.3.1: the gap counts one less than the packets it leaves out.
        largest = below(smallest, VarInt::decode(&mut rest)?.get() + 2)?;
    }
    ranges.push(below(largest, VarInt::decode(&mut rest)?.get())?..=largest);
    Ok(Some(Acknowledged { path, ranges }))
}

/// What an ACK or PATH_ACK frame says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Acknowledged {
    /// Number of the path whose packets are meant; 0 in an ACK.
    pub path: u64,
    /// Packet numbers received, largest first; at least one range.
    pub ranges: Vec<RangeInclusive<u64>>,
}

impl Acknowledged {
    /// The largest packet number received.
    pub fn largest(&self) -> u64 {
        self.ranges.first().map_or(0, |range| *range.end())
    }

    /// Whether a packet was received.
    pub fn contains(&self, packet: u64) -> bool {
        self.ranges.iter().any(|range| range.contains(&packet))
    }
}

/// An MTU probe is more than a thousand bytes of PADDING, so they are compared in blocks.
#[inline]
fn leading_zeros(bytes: &[u8]) -> usize {
    const BLOCK: [u8; 32] = [0; 32];
    let blocks = bytes
        .chunks_exact(BLOCK.len())
        .take_while(|block| *block == BLOCK)
        .count();
    let blocks = blocks * BLOCK.len();
    blocks
        + bytes[blocks..]
            .iter()
            .take_while(|byte| **byte == 0)
            .count()
}

fn below(number: u64, by: u64) -> Result<u64, WalkError> {
    number.checked_sub(by).ok_or(WalkError::BadRanges)
}

#[inline]
fn skip_contents(rest: &mut &[u8], frame_type: u64) -> Result<(), WalkError> {
    match frame_type {
        // PADDING with a type longer than need be; PING, HANDSHAKE_DONE, IMMEDIATE_ACK
        PADDING | PING | 0x1e | 0x1f => {}
        // ACK, ACK with ECN counts
        0x02 => acknowledgement(rest, 0)?,
        0x03 => acknowledgement(rest, 3)?,
        // MAX_DATA, MAX_STREAMS, DATA_BLOCKED, STREAMS_BLOCKED, RETIRE_CONNECTION_ID
        0x10 | 0x12..=0x14 | 0x16 | 0x17 | 0x19 => integers(rest, 1)?,
        // STOP_SENDING, MAX_STREAM_DATA, STREAM_DATA_BLOCKED
        0x05 | 0x11 | 0x15 => integers(rest, 2)?,
        // RESET_STREAM
        0x04 => integers(rest, 3)?,
        // CRYPTO: offset, data
        0x06 => {
            integers(rest, 1)?;
            prefixed(rest)?;
        }
        // NEW_TOKEN
        0x07 => prefixed(rest)?,
        // STREAM: OFF 0x04, LEN 0x02
        0x08..=0x0f => {
            integers(rest, if frame_type & 0x04 == 0 { 1 } else { 2 })?;
            to_end_or_prefixed(rest, frame_type & 0x02 != 0)?;
        }
        // NEW_CONNECTION_ID
        0x18 => connection_id(rest)?,
        // PATH_CHALLENGE, PATH_RESPONSE
        0x1a | 0x1b => bytes(rest, 8)?,
        // CONNECTION_CLOSE: of the transport with a frame type, of the application without
        0x1c | 0x1d => {
            integers(rest, if frame_type == 0x1c { 2 } else { 1 })?;
            prefixed(rest)?;
        }
        // DATAGRAM
        0x30 | 0x31 => to_end_or_prefixed(rest, frame_type == 0x31)?,
        // PATH_ACK, and with ECN counts
        0x3e | 0x3f => {
            integers(rest, 1)?;
            acknowledgement(rest, if frame_type == 0x3e { 0 } else { 3 })?;
        }
        // ACK_FREQUENCY
        0xaf => integers(rest, 4)?,
        // PATH_ABANDON, PATH_STATUS_*, PATH_RETIRE_CONNECTION_ID, PATH_CIDS_BLOCKED
        0x3e75..=0x3e77 | 0x3e79 | 0x3e7c => integers(rest, 2)?,
        // PATH_NEW_CONNECTION_ID
        0x3e78 => {
            integers(rest, 1)?;
            connection_id(rest)?;
        }
        // MAX_PATH_ID, PATHS_BLOCKED
        0x3e7a | 0x3e7b => integers(rest, 1)?,
        // ADD_ADDRESS, OBSERVED_ADDRESS, and the engine's ADD_ADDRESS and REACH_OUT
        0x3d_7e90 | 0x3d_7e91 | 0x9f_81a6 | 0x9f_81a7 | 0x3d_7f90..=0x3d_7f93 => {
            integers(rest, 1)?;
            address(rest, frame_type)?;
        }
        // PUNCH_ME_NOW
        0x3d_7e92 | 0x3d_7e93 => {
            integers(rest, 2)?;
            address(rest, frame_type)?;
        }
        // REMOVE_ADDRESS, and that of the engine
        0x3d_7e94 | 0x3d_7f94 => integers(rest, 1)?,
        unknown => return Err(WalkError::UnknownType(unknown)),
    }
    Ok(())
}

#[inline]
fn integers(rest: &mut &[u8], count: usize) -> Result<(), UnexpectedEnd> {
    for _ in 0..count {
        VarInt::decode(rest)?;
    }
    Ok(())
}

#[inline]
fn bytes(rest: &mut &[u8], count: usize) -> Result<(), UnexpectedEnd> {
    *rest = rest.get(count..).ok_or(UnexpectedEnd)?;
    Ok(())
}

#[inline]
fn prefixed(rest: &mut &[u8]) -> Result<(), UnexpectedEnd> {
    let length = VarInt::decode(rest)?.get();
    bytes(rest, usize::try_from(length).map_err(|_| UnexpectedEnd)?)
}

#[inline]
fn to_end_or_prefixed(rest: &mut &[u8], has_length: bool) -> Result<(), UnexpectedEnd> {
    if has_length {
        return prefixed(rest);
    }
    *rest = &[];
    Ok(())
}

/// Largest, delay, count, first range, two integers per further range, ECN counts.
fn acknowledgement(rest: &mut &[u8], ecn_counts: usize) -> Result<(), UnexpectedEnd> {
    integers(rest, 2)?;
    let further = VarInt::decode(rest)?.get();
    VarInt::decode(rest)?;
    // Ends with the payload at the latest, whatever the count says.
    for _ in 0..further {
        integers(rest, 2)?;
    }
    integers(rest, ecn_counts)
}

/// Sequence, retire prior to, length, connection id, reset token.
fn connection_id(rest: &mut &[u8]) -> Result<(), UnexpectedEnd> {
    integers(rest, 2)?;
    let (length, after) = rest.split_first().ok_or(UnexpectedEnd)?;
    *rest = after;
    bytes(rest, usize::from(*length) + 16)
}

/// IPv4 if the least significant bit of the type is 0, else IPv6; and a port.
fn address(rest: &mut &[u8], frame_type: u64) -> Result<(), UnexpectedEnd> {
    bytes(rest, if frame_type & 1 == 0 { 4 } else { 16 } + 2)
}
