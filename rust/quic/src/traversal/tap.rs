//! Where payloads and transport parameters pass by, in clear.
//!
//! Nearly no packet has to do with any of this, and each of them comes by here: one walk over the
//! frames tells, without allocating, and for what is sent not even that before NAT traversal was
//! used. What cannot be walked is left as it is, for the engine to refuse.

use std::{net::SocketAddr, sync::atomic::Ordering, time::Instant};

use anyreach_wire::{
    frames::Frame,
    varint::VarInt,
    walk::{PING, RawFrame, acknowledged, frame_at},
};
use bytes::{BufMut, BytesMut};
use noq_proto::PathId;

use super::{
    Client, Counts, Layer, Role, State, any_pair,
    dialect::{
        self, DRAFT_TYPES, ENGINE_ADD_ADDRESS, ENGINE_REACH_OUT, ENGINE_TYPES, OFFSET, Survey,
        blank, replace_by_ping, set_type,
    },
    filter, offers, parameters, rounds,
};
use crate::connection::path_number;

/// Type of PATH_CHALLENGE.
const PATH_CHALLENGE: u8 = 0x1a;

/// A probe of the engine is a PATH_CHALLENGE alone. Others are padded: those of a path in use.
const PROBE_PAYLOAD: usize = 32;

impl Layer {
    /// Rewrites the transport parameters this side is about to send.
    pub(crate) fn outgoing_parameters(&self, encoded: &mut Vec<u8>) {
        // The engine's own block can be read.
        let offered = parameters::outgoing(self.side, encoded) == Ok(true);
        self.offered[0].store(offered, Ordering::Relaxed);
    }

    /// Rewrites the transport parameters of the peer before the engine reads them.
    ///
    /// # Errors
    /// A sentence for the peer; the connection ends with TRANSPORT_PARAMETER_ERROR.
    pub(crate) fn incoming_parameters(&self, encoded: &mut Vec<u8>) -> Result<(), String> {
        let offer = parameters::incoming(self.side, encoded).map_err(|error| error.to_string())?;
        self.offered[1].store(offer.traversal, Ordering::Relaxed);
        self.multipath.store(offer.multipath, Ordering::Relaxed);
        Ok(())
    }

    /// The peer is not to be spoken to about NAT traversal on this connection.
    pub(crate) fn withhold_parameters(encoded: &mut Vec<u8>) {
        parameters::withhold(encoded);
    }

    /// Whether both sides have offered NAT traversal.
    pub(crate) fn is_negotiated(&self) -> bool {
        self.offered
            .iter()
            .all(|offered| offered.load(Ordering::Relaxed))
    }

    /// Rewrites the payload of a 1-RTT packet before it is sealed.
    #[inline]
    pub(crate) fn sealing(&self, path: PathId, packet: u64, payload: &mut [u8]) {
        if self.armed.load(Ordering::Acquire) {
            self.rewrite(path, packet, payload);
        }
    }

    fn rewrite(&self, path: PathId, packet: u64, payload: &mut [u8]) {
        if payload.len() < PROBE_PAYLOAD && payload.first() == Some(&PATH_CHALLENGE) {
            self.budget.probe_sent();
            return;
        }
        let concerns = |frame: &RawFrame| {
            ENGINE_TYPES.contains(&frame.frame_type) || self.is_carrier(payload, frame)
        };
        let Some(survey) = Survey::of(payload, concerns).filter(|survey| survey.interesting) else {
            return;
        };
        let now = Instant::now();
        let mut state = self.state();
        let mut eliciting = survey.eliciting;
        let (mut at, mut blanked) = (0, None);
        while let Ok(Some(frame)) = frame_at(payload, at) {
            at = frame.range.end;
            let carried = match &mut state.role {
                Role::Client(client) if self.is_carrier(payload, &frame) => {
                    let loaded = client.outbox.load(now, path_number(path), packet);
                    self.awaiting
                        .store(client.outbox.awaits(), Ordering::Relaxed);
                    loaded
                }
                _ if !ENGINE_TYPES.contains(&frame.frame_type) => continue,
                Role::Client(client) if ENGINE_REACH_OUT.contains(&frame.frame_type) => {
                    if let Some((round, address)) = dialect::reach_out(payload, &frame) {
                        let Client { offers, outbox, .. } = &mut **client;
                        let default = any_pair(offers.known(), address);
                        outbox.reach_out(now, round, address, default);
                        self.stirred.notify_one();
                    }
                    None
                }
                Role::Server(server) if !ENGINE_REACH_OUT.contains(&frame.frame_type) => {
                    let number = dialect::number(payload, &frame).unwrap_or_default();
                    let adds = ENGINE_ADD_ADDRESS.contains(&frame.frame_type);
                    if !adds {
                        server.withdrawn.insert(number);
                    }
                    if !adds || !server.withdrawn.contains(number) {
                        set_type(payload, &frame, frame.frame_type - OFFSET);
                        continue;
                    }
                    None
                }
                // Clients advertise nothing, servers ask for nothing; the engine knows that.
                Role::Client(_) | Role::Server(_) => None,
            };
            blank(payload, &frame);
            if let Some(punch) = carried {
                // A carrier has room for each frame.
                Frame::PunchMeNow(punch).encode(&mut &mut payload[frame.range]);
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

    /// Whether a frame is one of our carriers.
    fn is_carrier(&self, payload: &[u8], frame: &RawFrame) -> bool {
        let mut data = &payload[frame.body..frame.range.end];
        match frame.frame_type {
            0x30 => {}
            0x31 => drop(VarInt::decode(&mut data)),
            _ => return false,
        }
        data.starts_with(&self.marker)
    }

    /// Rewrites the payload of a 1-RTT packet after it was opened. The engine looks only afterwards
    /// whether it had the packet already, so replays come by here: whatever is noted is noted twice
    /// without harm.
    #[inline]
    pub(crate) fn opened(&self, payload: &mut BytesMut) {
        self.budget.received(payload.len());
        let awaiting = self.awaiting.load(Ordering::Relaxed);
        let concerns = |frame: &RawFrame| {
            is_traversal(frame.frame_type) || awaiting && is_ack(frame.frame_type)
        };
        let Some(survey) = Survey::of(payload, concerns) else {
            return;
        };
        if survey.interesting {
            self.translate(payload);
        }
        if !survey.probing && self.correcting.load(Ordering::Relaxed) {
            self.correct(payload);
        }
    }

    fn translate(&self, payload: &mut BytesMut) {
        let mut state = self.state();
        let (mut at, mut asked) = (0, Vec::new());
        while let Ok(Some(frame)) = frame_at(payload, at) {
            at = frame.range.end;
            match frame.frame_type {
                of_engine if ENGINE_TYPES.contains(&of_engine) => {
                    // Only the draft's dialect is understood: another one is an unknown frame.
                    set_type(payload, &frame, of_engine - OFFSET);
                }
                of_draft if DRAFT_TYPES.contains(&of_draft) => {
                    // Refuses what is not canonical: the engine then meets an unknown frame.
                    if let Ok(read) = Frame::decode(&mut &payload[frame.range.clone()]) {
                        self.take_in(&mut state, payload, &frame, read, &mut asked);
                    }
                }
                ack if is_ack(ack) => self.acknowledged(&mut state, payload, &frame),
                _ => {}
            }
        }
        drop(state);
        // The engine has yet to hear of it, so these go first.
        self.open_round(&asked);
    }

    /// Deals with a frame of the draft; `asked` gets what is to be probed.
    fn take_in(
        &self,
        state: &mut State,
        payload: &mut [u8],
        frame: &RawFrame,
        read: Frame,
        asked: &mut Vec<SocketAddr>,
    ) {
        let State {
            role, near, news, ..
        } = state;
        let judge = |address| filter::check(address, &[&self.near.get(), near]);
        let translate = frame.frame_type + OFFSET;
        match (role, read) {
            // Nothing of this was agreed on, which the engine knows as well: it ends the connection.
            _ if !self.is_negotiated() => match read {
                Frame::PunchMeNow(_) => dialect::shrink_to_reach_out(payload, frame),
                _ => set_type(payload, frame, translate),
            },
            // The draft does not require multipath, the engine does: without it the peer may say
            // this, and nothing comes of it.
            (Role::Client(_), Frame::AddAddress(_) | Frame::RemoveAddress(_))
            | (Role::Server(_), Frame::PunchMeNow(_))
                if !self.multipath.load(Ordering::Relaxed) =>
            {
                replace_by_ping(payload, frame);
            }
            (Role::Client(client), Frame::AddAddress(add)) => {
                match client.offers.add(add, judge(add.address)) {
                    offers::Verdict::Pass(new) => {
                        news.candidates |= new;
                        self.stirred.notify_one();
                        set_type(payload, frame, translate);
                    }
                    offers::Verdict::Refuse(refused) => {
                        self.counts.offer(&refused);
                        replace_by_ping(payload, frame);
                    }
                    offers::Verdict::Stale => replace_by_ping(payload, frame),
                }
            }
            (Role::Client(client), Frame::RemoveAddress(remove)) => {
                news.candidates |= client.offers.remove(remove.sequence);
                self.correct_offers(&client.offers);
                self.stirred.notify_one();
                set_type(payload, frame, translate);
            }
            (Role::Server(server), Frame::PunchMeNow(punch)) => {
                let judged = judge(punch.address);
                match server
                    .rounds
                    .punch(Instant::now(), punch, judged, &self.budget)
                {
                    rounds::Verdict::Probe { begins } => {
                        // From now on the engine probes.
                        self.arm();
                        asked.push(punch.address.into());
                        if begins {
                            Counts::bump(&self.counts.rounds);
                            news.round = Some(punch.round.get());
                            self.stirred.notify_one();
                        }
                        dialect::shrink_to_reach_out(payload, frame);
                    }
                    rounds::Verdict::Refuse(refused) => {
                        self.counts.punch(&refused);
                        replace_by_ping(payload, frame);
                    }
                    rounds::Verdict::Stale => replace_by_ping(payload, frame),
                    rounds::Verdict::TooMany => dialect::turn_into_violation(payload, frame),
                }
            }
            // In the wrong direction, which the engine does not put up with.
            (_, Frame::PunchMeNow(_)) => dialect::shrink_to_reach_out(payload, frame),
            _ => set_type(payload, frame, translate),
        }
    }

    fn acknowledged(&self, state: &mut State, payload: &[u8], frame: &RawFrame) {
        if let (Role::Client(client), Ok(Some(ack))) =
            (&mut state.role, acknowledged(payload, frame))
            && let Ok(path) = u32::try_from(ack.path)
        {
            let outbox = &mut client.outbox;
            outbox.acknowledged(path, ack.largest(), |packet| ack.contains(packet));
            self.awaiting.store(outbox.awaits(), Ordering::Relaxed);
            self.stirred.notify_one();
        }
    }

    /// Tells the engine what it was not told when it came. If it has had the packet already it takes
    /// no notice, so this is repeated until it [has](Layer::confirm).
    #[cold]
    fn correct(&self, payload: &mut BytesMut) {
        let mut told = Vec::new();
        if let Role::Client(client) = &self.state().role {
            for frame in client.offers.corrections() {
                dialect::encode(frame, &mut told);
            }
        }
        // In front: what is behind may reach to the end of the packet.
        let mut longer = BytesMut::with_capacity(told.len() + payload.len());
        longer.put_slice(&told);
        longer.put_slice(payload);
        *payload = longer;
        self.stirred.notify_one();
    }
}

/// Frames of NAT traversal, whoever's.
#[inline]
fn is_traversal(frame_type: u64) -> bool {
    DRAFT_TYPES.contains(&frame_type) || ENGINE_TYPES.contains(&frame_type)
}

/// ACK and PATH_ACK.
#[inline]
const fn is_ack(frame_type: u64) -> bool {
    matches!(frame_type, 0x02 | 0x03 | 0x3e | 0x3f)
}
