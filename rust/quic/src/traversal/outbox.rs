//! The PUNCH_ME_NOW frames of a client, until the server has them.
//!
//! Sans-I/O. The engine knows nothing of these frames: they travel in *carriers*, datagrams the
//! engine is asked to send and that are overwritten while they are sealed. So their loss is found
//! out and repaired here, by the rules of RFC 9002: three packets later, or a probe timeout.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    time::{Duration, Instant},
};

use anyreach_wire::{address::Address, frames::PunchMeNow, varint::VarInt};

/// RFC 9002, section 6.1.1: kPacketThreshold.
const PACKET_THRESHOLD: u64 = 3;

/// A round probes for some four seconds. What has not arrived by then would come for nothing, and
/// soon be overtaken by the next round.
const LIFETIME: Duration = Duration::from_secs(5);

/// RFC 9002, section 6.2.1 doubles the timeout each time; not beyond this, as a frame lives shortly.
const MAX_DOUBLINGS: u32 = 4;

/// Frames that are to go out, or may have to once more.
#[derive(Debug, Default)]
pub(super) struct Outbox {
    round: VarInt,
    begun: Option<Instant>,
    /// Addresses of this round; the engine repeats a frame it believes lost.
    told: BTreeSet<Address>,
    /// What each address of ours is paired with, as the number of the server's address.
    pairs: BTreeMap<Address, VarInt>,
    waiting: VecDeque<Waiting>,
    /// Carriers still to be asked for.
    wanted: usize,
    /// When carriers were asked for last.
    asked: Option<Instant>,
    in_flight: Vec<InFlight>,
    resent: u64,
}

#[derive(Debug)]
struct Waiting {
    frame: PunchMeNow,
    /// How often it was sent.
    sent: u32,
}

#[derive(Debug)]
struct InFlight {
    path: u32,
    packet: u64,
    at: Instant,
    frame: PunchMeNow,
    sent: u32,
}

impl Outbox {
    /// The next round, with these addresses of ours, in this order, and what each is paired with.
    pub(super) fn begin(&mut self, now: Instant, pairs: &[(Address, VarInt)]) -> VarInt {
        // The engine counts its rounds from 1, and so does this.
        let next = VarInt::from_u64(self.round.get() + 1).unwrap_or(self.round);
        self.turn_to(next, now);
        self.pairs = pairs.iter().copied().collect();
        for (address, _) in pairs {
            self.reach_out(now, next, *address, None);
        }
        next
    }

    fn turn_to(&mut self, round: VarInt, now: Instant) {
        // What the others still had to say is moot.
        *self = Self {
            round,
            begun: Some(now),
            pairs: std::mem::take(&mut self.pairs),
            resent: self.resent,
            ..Self::default()
        };
    }

    /// The engine asks the server to reach out. `default` is what an address is paired with of which
    /// [`begin`](Self::begin) was not told.
    pub(super) fn reach_out(
        &mut self,
        now: Instant,
        round: VarInt,
        address: Address,
        default: Option<VarInt>,
    ) {
        if round > self.round {
            self.turn_to(round, now);
        }
        if round < self.round || !self.told.insert(address) {
            return;
        }
        let paired_with = self.pairs.get(&address).copied().or(default);
        let frame = PunchMeNow {
            round,
            paired_with: paired_with.unwrap_or_default(),
            address,
        };
        self.queue(Waiting { frame, sent: 0 });
    }

    fn queue(&mut self, waiting: Waiting) {
        self.waiting.push_back(waiting);
        self.wanted += 1;
    }

    /// Whether there was a round.
    pub(super) fn has_begun(&self) -> bool {
        self.round > VarInt::default()
    }

    /// Carriers to ask the engine for now.
    pub(super) fn take_wanted(&mut self, now: Instant) -> usize {
        if self.wanted > 0 {
            self.asked = Some(now);
        }
        std::mem::take(&mut self.wanted)
    }

    /// A carrier is sealed in this packet: what it carries.
    pub(super) fn load(&mut self, now: Instant, path: u32, packet: u64) -> Option<PunchMeNow> {
        let Waiting { frame, sent } = self.waiting.pop_front()?;
        self.in_flight.push(InFlight {
            path,
            packet,
            at: now,
            frame,
            sent: sent + 1,
        });
        Some(frame)
    }

    /// The peer has acknowledged packets of a path.
    pub(super) fn acknowledged(&mut self, path: u32, largest: u64, received: impl Fn(u64) -> bool) {
        self.in_flight
            .retain(|sent| sent.path != path || !received(sent.packet));
        self.resend(|sent| {
            let behind = largest.checked_sub(sent.packet);
            sent.path == path && behind.is_some_and(|behind| behind >= PACKET_THRESHOLD)
        });
    }

    /// When to look for what is overdue; `timeout` is that of a path.
    pub(super) fn due(&self, timeout: impl Fn(u32) -> Duration) -> Option<Instant> {
        let frames = self.in_flight.iter();
        let frames = frames.map(|sent| sent.at + doubled(timeout(sent.path), sent.sent));
        // Carriers the engine has dropped, as it drops datagrams.
        let carriers = self.asked.filter(|_| !self.waiting.is_empty());
        frames.chain(carriers.map(|asked| asked + timeout(0))).min()
    }

    /// Queues again what is overdue, and forgets what is too old.
    pub(super) fn look(&mut self, now: Instant, timeout: impl Fn(u32) -> Duration) {
        if self.begun.is_some_and(|begun| now >= begun + LIFETIME) {
            self.waiting.clear();
            self.in_flight.clear();
            self.wanted = 0;
            return;
        }
        self.resend(|sent| now >= sent.at + doubled(timeout(sent.path), sent.sent));
        if self.asked.is_some_and(|asked| now >= asked + timeout(0)) {
            // One too many is blanked.
            self.wanted = self.wanted.max(self.waiting.len());
        }
    }

    fn resend(&mut self, is_lost: impl Fn(&InFlight) -> bool) {
        let mut at = 0;
        while at < self.in_flight.len() {
            if is_lost(&self.in_flight[at]) {
                let InFlight { frame, sent, .. } = self.in_flight.swap_remove(at);
                self.resent += 1;
                self.queue(Waiting { frame, sent });
            } else {
                at += 1;
            }
        }
    }

    /// Whether acknowledgements matter.
    pub(super) fn awaits(&self) -> bool {
        !self.in_flight.is_empty()
    }

    /// Frames the server is not known to have.
    #[cfg(test)]
    pub(super) fn pending(&self) -> usize {
        self.in_flight.len() + self.waiting.len()
    }

    /// Frames sent once more, ever.
    pub(super) fn resent(&self) -> u64 {
        self.resent
    }
}

fn doubled(timeout: Duration, sent: u32) -> Duration {
    timeout * (1 << sent.saturating_sub(1).min(MAX_DOUBLINGS))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(100);

    fn timeout(_: u32) -> Duration {
        TIMEOUT
    }

    fn address(host: u8) -> Address {
        Address::new([203, 0, 113, host].into(), 9000)
    }

    fn begun(now: Instant, hosts: u8) -> Outbox {
        let mut outbox = Outbox::default();
        let pair = |host| (address(host), VarInt::from_u32(host.into()));
        let pairs: Vec<_> = (0..hosts).map(pair).collect();
        let round = outbox.begin(now, &pairs);
        assert_eq!(round, VarInt::from_u32(1));
        outbox
    }

    #[test]
    fn each_address_is_told_once_with_its_pair() {
        let now = Instant::now();
        let mut outbox = begun(now, 3);
        assert_eq!(outbox.take_wanted(now), 3);
        assert_eq!(outbox.take_wanted(now), 0);
        for host in 0..3 {
            // By the engine, a little later.
            outbox.reach_out(now, VarInt::from_u32(1), address(host), None);
            let frame = outbox.load(now, 0, host.into()).unwrap();
            assert_eq!(frame.address, address(host));
            assert_eq!(frame.paired_with, VarInt::from_u32(host.into()));
        }
        assert_eq!(outbox.load(now, 0, 9), None);
        assert_eq!(outbox.take_wanted(now), 0);
        // The engine knows more.
        let default = Some(VarInt::from_u32(77));
        outbox.reach_out(now, VarInt::from_u32(1), address(9), default);
        assert_eq!(outbox.load(now, 0, 9).unwrap().paired_with.get(), 77);
        outbox.reach_out(now, VarInt::from_u32(5), address(9), default);
        assert_eq!(outbox.pending(), 1);
        outbox.reach_out(now, VarInt::from_u32(4), address(8), default);
        assert_eq!(outbox.pending(), 1);
    }

    #[test]
    fn losses_are_repaired_by_packets_and_by_time() {
        let now = Instant::now();
        let mut outbox = begun(now, 1);
        outbox.load(now, 1, 10).unwrap();
        assert!(outbox.awaits());
        // Another path, and too few packets later.
        outbox.acknowledged(0, 90, |_| true);
        outbox.acknowledged(1, 12, |packet| packet == 12);
        assert_eq!((outbox.pending(), outbox.resent()), (1, 0));
        outbox.take_wanted(now);
        outbox.acknowledged(1, 13, |packet| packet > 11);
        assert_eq!((outbox.resent(), outbox.take_wanted(now)), (1, 1));
        outbox.load(now, 1, 14).unwrap();
        // The timeout is doubled.
        assert_eq!(outbox.due(timeout), Some(now + TIMEOUT * 2));
        outbox.look(now + TIMEOUT, timeout);
        assert_eq!(outbox.resent(), 1);
        outbox.look(now + TIMEOUT * 2, timeout);
        assert_eq!(outbox.resent(), 2);
        outbox.load(now, 2, 3).unwrap();
        outbox.acknowledged(2, 3, |packet| packet == 3);
        assert_eq!((outbox.pending(), outbox.awaits()), (0, false));
        // A replay of an old acknowledgement.
        outbox.acknowledged(1, 13, |packet| packet > 11);
        assert_eq!((outbox.pending(), outbox.resent()), (0, 2));
    }

    #[test]
    fn dropped_carriers_are_asked_for_again() {
        let now = Instant::now();
        let mut outbox = begun(now, 2);
        assert_eq!(outbox.take_wanted(now), 2);
        assert_eq!(outbox.due(timeout), Some(now + TIMEOUT));
        outbox.load(now, 0, 1).unwrap();
        outbox.look(now + TIMEOUT / 2, timeout);
        assert_eq!(outbox.take_wanted(now), 0);
        outbox.acknowledged(0, 1, |packet| packet == 1);
        let later = now + TIMEOUT;
        outbox.look(later, timeout);
        assert_eq!(outbox.take_wanted(later), 1);
        assert_eq!(outbox.due(timeout), Some(later + TIMEOUT));
    }

    #[test]
    fn a_round_ends() {
        let now = Instant::now();
        let mut outbox = begun(now, 4);
        outbox.take_wanted(now);
        outbox.load(now, 0, 1).unwrap();
        outbox.look(now + LIFETIME, timeout);
        assert_eq!((outbox.pending(), outbox.due(timeout)), (0, None));
        assert_eq!(outbox.begin(now, &[]).get(), 2);
    }
}
