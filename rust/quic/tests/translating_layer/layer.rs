//! The translating layer: the engine's NAT traversal frames become those of
//! draft-seemann-quic-nat-traversal-02 on their way out, and the engine's again on their way in.
//!
//! ADD_ADDRESS and REMOVE_ADDRESS differ in nothing but the type. REACH_OUT becomes the longer
//! PUNCH_ME_NOW, for which the sealed packet has no room: it travels in a *carrier*, a DATAGRAM the
//! layer asks the engine to send and overwrites while it is sealed. The engine knows nothing of
//! that frame, so its loss is found out and repaired here.

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    hash::{Hash, Hasher},
    mem,
    ops::Range,
    sync::{Mutex, MutexGuard},
    time::{Duration, Instant},
};

use anyreach_quic::PacketTap;
use anyreach_wire::{
    address::{Address, Family},
    frames::{Frame, MAX_FRAME_BYTES, PunchMeNow},
    transport_parameters::{ConcurrencyLimit, NAT_TRAVERSAL, NatTraversal, Parameters, Sender},
    varint::VarInt,
    walk::{PING, RawFrame, acknowledged, frame_at},
};
use bytes::{Bytes, BytesMut};
use noq_proto::{PathId, Side};
use tokio::sync::Notify;

/// The engine's own transport parameter: one byte, the number of addresses it takes.
pub const ENGINE_PARAMETER: VarInt = match VarInt::from_u64(0x3d7f_9112_0401) {
    Some(id) => id,
    None => unreachable!(),
};

/// The engine's frame types; each is the draft's plus this.
pub const ENGINE_TYPES: Range<u64> = 0x3d_7f90..0x3d_7f95;
const DRAFT_TYPES: Range<u64> = 0x3d_7e90..0x3d_7e95;
const OFFSET: u64 = ENGINE_TYPES.start - DRAFT_TYPES.start;

/// The client's parameter is empty, so it cannot say how many addresses it takes; this many are
/// offered to any client.
const ADDRESSES_OF_ANY_CLIENT: u8 = 32;

/// RFC 9002, section 6.1.1: kPacketThreshold.
const PACKET_THRESHOLD: u64 = 3;

/// Frames not acknowledged after this are sent again. A layer in earnest takes it from the path's
/// round-trip time; on loopback this is ages.
const RESEND_AFTER: Duration = Duration::from_millis(100);

const MARKER_BYTES: usize = 12;

pub struct Layer {
    side: Side,
    /// Random, so that nobody's datagram is taken for a carrier.
    marker: [u8; MARKER_BYTES],
    state: Mutex<State>,
    wanted: Notify,
}

#[derive(Default)]
struct State {
    /// Addresses the server advertised: PUNCH_ME_NOW has to name one.
    advertised: BTreeMap<VarInt, Address>,
    round: VarInt,
    /// Addresses of this round; the engine repeats a REACH_OUT it believes lost.
    reached_out: HashSet<Address>,
    /// Frames waiting for a carrier, and how many carriers are still to be asked for.
    outbox: VecDeque<PunchMeNow>,
    carriers_wanted: usize,
    in_flight: Vec<InFlight>,
    /// Sequence numbers that were withdrawn, by us as server, by the server else. An ADD_ADDRESS
    /// that comes late, or that the engine repeats in spite of a REMOVE_ADDRESS sent since, would
    /// bring the address back for good.
    withdrawn: BTreeSet<VarInt>,
    resent: u64,
}

/// Withdrawn sequence numbers remembered, the largest: more than can be under way at once.
const MAX_WITHDRAWN: usize = 256;

struct InFlight {
    path: u32,
    packet: u64,
    sent: Instant,
    frame: PunchMeNow,
}

impl Layer {
    pub fn new(side: Side) -> Self {
        let mut marker = [0; MARKER_BYTES];
        aws_lc_rs::rand::fill(&mut marker).unwrap();
        Self {
            side,
            marker,
            state: Mutex::default(),
            wanted: Notify::new(),
        }
    }

    /// How many carried frames were sent again.
    pub fn resent(&self) -> u64 {
        self.state().resent
    }

    pub fn in_flight(&self) -> usize {
        let state = self.state();
        state.in_flight.len() + state.outbox.len()
    }

    /// The datagram that is overwritten by a frame; long enough for each.
    pub fn carrier(&self) -> Bytes {
        let mut carrier = self.marker.to_vec();
        carrier.resize(MARKER_BYTES.max(MAX_FRAME_BYTES), 0);
        carrier.into()
    }

    /// Whether data of a DATAGRAM is a carrier of this layer.
    pub fn is_carrier(&self, data: &[u8]) -> bool {
        data.starts_with(&self.marker)
    }

    /// Gives the layer what it cannot have while the engine seals: the engine. Ends with the
    /// connection.
    pub async fn drive(&self, connection: noq::Connection) {
        let carrier = self.carrier();
        let mut tick = tokio::time::interval(RESEND_AFTER / 4);
        loop {
            tokio::select! {
                () = self.wanted.notified() => {}
                _ = tick.tick() => self.state().resend_overdue(Instant::now()),
                _ = connection.closed() => return,
            }
            for _ in 0..mem::take(&mut self.state().carriers_wanted) {
                // What the engine does not take or drops under congestion is asked for again.
                let _ = connection.send_datagram(carrier.clone());
            }
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    /// Data of a DATAGRAM frame, if it is one of our carriers.
    fn carries(&self, payload: &[u8], frame: &RawFrame) -> bool {
        let mut data = &payload[frame.body..frame.range.end];
        match frame.frame_type {
            0x30 => {}
            0x31 => drop(VarInt::decode(&mut data)),
            _ => return false,
        }
        self.is_carrier(data)
    }
}

impl PacketTap for Layer {
    fn outgoing_parameters(&self, encoded: &mut Vec<u8>) {
        let copy = encoded.clone();
        let mut parameters = Parameters::parse(&copy).expect("the engine's parameters");
        let Some(&[addresses]) = parameters.get(ENGINE_PARAMETER) else {
            return;
        };
        let ours = match self.side {
            Side::Client => NatTraversal::Client,
            Side::Server => NatTraversal::Server {
                limit: ConcurrencyLimit::new(addresses.into()).expect("the engine's are not 0"),
            },
        };
        parameters
            .rewrite(ENGINE_PARAMETER, NAT_TRAVERSAL, ours.encode())
            .expect("not there yet");
        *encoded = parameters.encode();
    }

    fn incoming_parameters(&self, encoded: &mut Vec<u8>) -> Result<(), String> {
        let sender = match self.side {
            Side::Client => Sender::Server,
            Side::Server => Sender::Client,
        };
        let copy = encoded.clone();
        let mut parameters = Parameters::parse(&copy).map_err(|error| error.to_string())?;
        // Who speaks the engine's dialect is not understood, as the draft has it.
        parameters.remove(ENGINE_PARAMETER);
        let theirs = parameters
            .nat_traversal(sender)
            .map_err(|error| error.to_string())?;
        if let Some(theirs) = theirs {
            let addresses = match theirs {
                NatTraversal::Client => ADDRESSES_OF_ANY_CLIENT,
                NatTraversal::Server { limit } => limit.get().get().min(255) as u8,
            };
            parameters
                .rewrite(NAT_TRAVERSAL, ENGINE_PARAMETER, vec![addresses])
                .map_err(|error| error.to_string())?;
        }
        *encoded = parameters.encode();
        Ok(())
    }

    fn sealing(&self, path: PathId, packet: u64, payload: &mut [u8]) {
        let Some(frames) = all_frames(payload) else {
            return;
        };
        let is_eliciting = |frame: &&RawFrame| frame.is_ack_eliciting();
        let mut eliciting = frames.iter().filter(is_eliciting).count();
        let mut blanked = None;
        for frame in &frames {
            let mut state = self.state();
            let carried = if self.carries(payload, frame) {
                state.outbox.pop_front()
            } else if !ENGINE_TYPES.contains(&frame.frame_type) {
                continue;
            } else {
                let mut body = &payload[frame.body..frame.range.end];
                let number = VarInt::decode(&mut body).expect("walked");
                match frame.frame_type {
                    0x3d_7f92 | 0x3d_7f93 => {
                        let address = Address::decode(&mut body, family(frame)).expect("walked");
                        state.reach_out(number, address);
                        self.wanted.notify_one();
                        None
                    }
                    0x3d_7f90 | 0x3d_7f91 if state.withdrawn.contains(&number) => None,
                    remove_or_add => {
                        if remove_or_add == 0x3d_7f94 {
                            state.withdraw(number);
                        }
                        set_type(payload, frame, remove_or_add - OFFSET);
                        continue;
                    }
                }
            };
            let space = &mut payload[frame.range.clone()];
            space.fill(0);
            if let Some(frame) = carried {
                Frame::PunchMeNow(frame).encode(&mut &mut *space);
                let (path, sent) = (path_number(path), Instant::now());
                state.in_flight.push(InFlight {
                    path,
                    packet,
                    sent,
                    frame,
                });
            } else {
                eliciting -= 1;
                blanked.get_or_insert(frame.range.start);
            }
        }
        // The engine waits for an acknowledgement of this packet, so it has to elicit one. Only
        // then: a PING would make a probing packet a non-probing one.
        if let Some(at) = blanked.filter(|_| eliciting == 0) {
            payload[at] = PING as u8;
        }
    }

    /// The engine opens a packet before it looks whether it had it already, so a replay comes by
    /// here: everything noted is noted twice without harm.
    fn opened(&self, _path: PathId, _packet: u64, payload: &mut BytesMut) {
        // What cannot be walked is left for the engine to refuse.
        let Some(frames) = all_frames(payload) else {
            return;
        };
        let mut state = self.state();
        for frame in &frames {
            match frame.frame_type {
                0x02 | 0x03 | 0x3e | 0x3f => {
                    if let Ok(Some(ack)) = acknowledged(payload, frame) {
                        let path = ack.path as u32;
                        state.acknowledged(path, ack.largest(), |packet| ack.contains(packet));
                        self.wanted.notify_one();
                    }
                }
                // Only the draft's dialect is understood: another one is an unknown frame.
                theirs if ENGINE_TYPES.contains(&theirs) => {
                    set_type(payload, frame, theirs - OFFSET);
                }
                ours if DRAFT_TYPES.contains(&ours) => {
                    // Refuses what is not canonical: the engine then meets an unknown frame.
                    let Ok(read) = Frame::decode(&mut &payload[frame.range.clone()]) else {
                        continue;
                    };
                    state.learn(read);
                    match read {
                        Frame::AddAddress(add) if state.withdrawn.contains(&add.sequence) => {
                            // As eliciting and as little probing as what it replaces.
                            payload[frame.range.clone()].fill(0);
                            payload[frame.range.start] = PING as u8;
                            continue;
                        }
                        Frame::PunchMeNow(_) => drop_paired_with(payload, frame),
                        _ => {}
                    }
                    set_type(payload, frame, ours + OFFSET);
                }
                _ => {}
            }
        }
    }
}

impl State {
    fn learn(&mut self, frame: Frame) {
        match frame {
            Frame::AddAddress(add)
                if !self.withdrawn.contains(&add.sequence)
                    && self.advertised.len() < usize::from(ADDRESSES_OF_ANY_CLIENT) =>
            {
                self.advertised.insert(add.sequence, add.address);
            }
            Frame::RemoveAddress(remove) => self.withdraw(remove.sequence),
            _ => {}
        }
    }

    fn withdraw(&mut self, sequence: VarInt) {
        self.advertised.remove(&sequence);
        self.withdrawn.insert(sequence);
        if self.withdrawn.len() > MAX_WITHDRAWN {
            self.withdrawn.pop_first();
        }
    }

    fn reach_out(&mut self, round: VarInt, address: Address) {
        if round > self.round {
            // A new round ends the others; what they still had to say is moot.
            self.round = round;
            self.reached_out.clear();
            self.outbox.clear();
            self.in_flight.clear();
        }
        if round < self.round || !self.reached_out.insert(address) {
            return;
        }
        // The engine has no pairs: any address of the same family stands for all of them.
        let paired_with = self
            .advertised
            .iter()
            .find(|(_, theirs)| theirs.family() == address.family())
            .map_or(VarInt::default(), |(sequence, _)| *sequence);
        self.queue(PunchMeNow {
            round,
            paired_with,
            address,
        });
    }

    fn queue(&mut self, frame: PunchMeNow) {
        self.outbox.push_back(frame);
        self.carriers_wanted += 1;
    }

    fn acknowledged(&mut self, path: u32, largest: u64, received: impl Fn(u64) -> bool) {
        self.in_flight
            .retain(|sent| sent.path != path || !received(sent.packet));
        self.resend(|sent| sent.path == path && sent.packet + PACKET_THRESHOLD <= largest);
    }

    fn resend_overdue(&mut self, now: Instant) {
        self.resend(|sent| now - sent.sent >= RESEND_AFTER);
        // Carriers the engine has dropped; one too many is blanked.
        self.carriers_wanted = self.carriers_wanted.max(self.outbox.len());
    }

    fn resend(&mut self, is_lost: impl Fn(&InFlight) -> bool) {
        for lost in self
            .in_flight
            .extract_if(.., |sent| is_lost(sent))
            .collect::<Vec<_>>()
        {
            self.resent += 1;
            self.queue(lost.frame);
        }
    }
}

/// All frames, or `None` if the payload cannot be walked or has nothing to do with us.
fn all_frames(payload: &[u8]) -> Option<Vec<RawFrame>> {
    let mut frames = Vec::new();
    let mut at = 0;
    while let Some(frame) = frame_at(payload, at).ok()? {
        at = frame.range.end;
        frames.push(frame);
    }
    Some(frames)
}

fn family(frame: &RawFrame) -> Family {
    if frame.frame_type & 1 == 0 {
        Family::V4
    } else {
        Family::V6
    }
}

/// Replaces the type in the length it has.
fn set_type(payload: &mut [u8], frame: &RawFrame, frame_type: u64) {
    let space = &mut payload[frame.range.start..frame.body];
    match space.len() {
        4 => space.copy_from_slice(&(frame_type as u32 | 0b10 << 30).to_be_bytes()),
        8 => space.copy_from_slice(&(frame_type | 0b11 << 62).to_be_bytes()),
        _ => unreachable!("the types do not fit less than four bytes"),
    }
}

/// PUNCH_ME_NOW without its second field is REACH_OUT but for the type. PADDING fills the gap.
fn drop_paired_with(payload: &mut [u8], frame: &RawFrame) {
    let mut rest = &payload[frame.body..frame.range.end];
    VarInt::decode(&mut rest).expect("walked");
    let paired_with = frame.range.end - rest.len();
    VarInt::decode(&mut rest).expect("walked");
    let address = frame.range.end - rest.len();
    payload.copy_within(address..frame.range.end, paired_with);
    payload[frame.range.end - (address - paired_with)..frame.range.end].fill(0);
}

/// The number inside a [`PathId`], which it shows to hashers only.
pub fn path_number(path: PathId) -> u32 {
    struct Number(u32);
    impl Hasher for Number {
        fn write(&mut self, _: &[u8]) {
            unreachable!("a path id is one u32")
        }
        fn write_u32(&mut self, number: u32) {
            self.0 = number;
        }
        fn finish(&self) -> u64 {
            self.0.into()
        }
    }
    let mut number = Number(0);
    path.hash(&mut number);
    number.0
}
