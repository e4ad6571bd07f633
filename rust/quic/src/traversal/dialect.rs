//! The engine's frames of NAT traversal and those of draft-seemann-quic-nat-traversal-02.
//!
//! ADD_ADDRESS and REMOVE_ADDRESS differ in nothing but the type. The engine's REACH_OUT is a
//! PUNCH_ME_NOW without the number of the address it is paired with.

use std::ops::Range;

use anyreach_wire::{
    address::{Address, Family},
    frames::{AddAddress, Frame, RemoveAddress},
    varint::VarInt,
    walk::{PADDING, PING, RawFrame, frame_at},
};

/// The engine's frame types; each is the draft's plus [`OFFSET`].
pub(super) const ENGINE_TYPES: Range<u64> = 0x3d_7f90..0x3d_7f95;
pub(super) const DRAFT_TYPES: Range<u64> = 0x3d_7e90..0x3d_7e95;
pub(super) const OFFSET: u64 = ENGINE_TYPES.start - DRAFT_TYPES.start;

pub(super) const ENGINE_ADD_ADDRESS: Range<u64> = 0x3d_7f90..0x3d_7f92;
pub(super) const ENGINE_REACH_OUT: Range<u64> = 0x3d_7f92..0x3d_7f94;
pub(super) const ENGINE_REMOVE_ADDRESS: u64 = 0x3d_7f94;

/// What a walk over a payload has found.
pub(super) struct Survey {
    /// Frames that ask for an acknowledgement.
    pub(super) eliciting: usize,
    /// Frames of interest.
    pub(super) interesting: bool,
    /// Whether there is nothing but what probes paths (RFC 9000, section 9.1).
    pub(super) probing: bool,
}

impl Survey {
    /// Walks over a payload; `None` if that is not possible to its end.
    #[inline]
    pub(super) fn of(payload: &[u8], interesting: impl Fn(&RawFrame) -> bool) -> Option<Self> {
        let mut survey = Self {
            eliciting: 0,
            interesting: false,
            probing: true,
        };
        let mut at = 0;
        while let Some(frame) = frame_at(payload, at).ok()? {
            at = frame.range.end;
            survey.eliciting += usize::from(frame.is_ack_eliciting());
            survey.interesting |= interesting(&frame);
            survey.probing &= is_probing(frame.frame_type);
        }
        Some(survey)
    }
}

/// PADDING, NEW_CONNECTION_ID, PATH_CHALLENGE, PATH_RESPONSE; and OBSERVED_ADDRESS by its draft.
const fn is_probing(frame_type: u64) -> bool {
    matches!(
        frame_type,
        PADDING | 0x18 | 0x1a | 0x1b | 0x9f_81a6 | 0x9f_81a7
    )
}

/// The number and the address of an ADD_ADDRESS or REACH_OUT of the engine; what comes first of a
/// REMOVE_ADDRESS, too.
pub(super) fn number(payload: &[u8], frame: &RawFrame) -> Option<VarInt> {
    VarInt::decode(&mut &payload[frame.body..frame.range.end]).ok()
}

/// The number and the address of a REACH_OUT of the engine.
pub(super) fn reach_out(payload: &[u8], frame: &RawFrame) -> Option<(VarInt, Address)> {
    let mut body = &payload[frame.body..frame.range.end];
    let round = VarInt::decode(&mut body).ok()?;
    let family = match frame.frame_type & 1 {
        0 => Family::V4,
        _ => Family::V6,
    };
    Some((round, Address::decode(&mut body, family).ok()?))
}

/// Replaces the type of a frame, in the length it has.
pub(super) fn set_type(payload: &mut [u8], frame: &RawFrame, frame_type: u64) {
    let space = &mut payload[frame.range.start..frame.body];
    match space.len() {
        4 => space.copy_from_slice(&(frame_type as u32 | 0b10 << 30).to_be_bytes()),
        8 => space.copy_from_slice(&(frame_type | 0b11 << 62).to_be_bytes()),
        _ => unreachable!("these types do not fit less than four bytes"),
    }
}

/// Leaves PADDING in the place of a frame.
pub(super) fn blank(payload: &mut [u8], frame: &RawFrame) {
    payload[frame.range.clone()].fill(0);
}

/// Leaves a PING in the place of a frame, as eliciting and as little probing as that was.
pub(super) fn replace_by_ping(payload: &mut [u8], frame: &RawFrame) {
    blank(payload, frame);
    payload[frame.range.start] = PING as u8;
}

/// Makes a REACH_OUT of a PUNCH_ME_NOW. PADDING fills the gap.
pub(super) fn shrink_to_reach_out(payload: &mut [u8], frame: &RawFrame) {
    let body = &payload[frame.body..frame.range.end];
    let mut rest = body;
    let skipped = |rest: &mut &[u8]| {
        // Walked over already.
        let _ = VarInt::decode(rest);
        body.len() - rest.len()
    };
    let paired_with = frame.body + skipped(&mut rest);
    let address = frame.body + skipped(&mut rest);
    payload.copy_within(address..frame.range.end, paired_with);
    payload[frame.range.end - (address - paired_with)..frame.range.end].fill(0);
    set_type(payload, frame, frame.frame_type + OFFSET);
}

/// Makes of a PUNCH_ME_NOW what a server has to refuse as a violation of the protocol: a frame of
/// the other direction.
pub(super) fn turn_into_violation(payload: &mut [u8], frame: &RawFrame) {
    let mut rest = &payload[frame.body..frame.range.end];
    // Walked over already.
    let _ = VarInt::decode(&mut rest);
    let end = frame.range.end;
    let from = end - rest.len();
    payload[from..end].fill(0);
    set_type(payload, frame, ENGINE_REMOVE_ADDRESS);
}

/// Appends a frame in the words of the engine, if it has words for it.
pub(super) fn encode(frame: Frame, out: &mut Vec<u8>) {
    let family = |address: Address| match address.family() {
        Family::V4 => 0,
        Family::V6 => 1,
    };
    let (frame_type, number, address) = match frame {
        Frame::AddAddress(AddAddress { sequence, address }) => {
            let frame_type = ENGINE_ADD_ADDRESS.start + family(address);
            (frame_type, sequence, Some(address))
        }
        Frame::RemoveAddress(RemoveAddress { sequence }) => (ENGINE_REMOVE_ADDRESS, sequence, None),
        Frame::PunchMeNow(_) | Frame::ObservedAddress(_) => return,
    };
    out.extend_from_slice(&(frame_type as u32 | 0b10 << 30).to_be_bytes());
    number.encode(out);
    if let Some(address) = address {
        address.encode(out);
    }
}
