//! Which request stream an HTTP/3 Datagram belongs to (RFC 9297, section 2.1). Sans-I/O.

use std::{
    collections::{HashMap, VecDeque},
    time::{Duration, Instant},
};

use anyreach_wire::varint::VarInt;
use bytes::{Buf, Bytes};

/// Largest quarter stream ID: that of the largest stream ID of QUIC.
const MAX_QUARTER_ID: u64 = VarInt::MAX.get() >> 2;

/// Datagrams kept for streams that are still to come. The first flight of a client that does not
/// wait for the response is a few packets for each of its tunnels.
const MAX_HELD: usize = 64;

/// Bytes of the same, so that many connections cannot make much of it.
const MAX_HELD_BYTES: usize = 64 << 10;

/// How long they are kept: some round trips of a bad line. What runs inside repeats itself later.
const HOLD_TIME: Duration = Duration::from_secs(1);

/// The peer broke RFC 9297 section 2.1: the connection ends with H3_DATAGRAM_ERROR.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum BadDatagram {
    /// It ends before its quarter stream ID does.
    #[error("an HTTP/3 Datagram without a quarter stream ID")]
    NoId,
    /// There is no stream of this number.
    #[error("an HTTP/3 Datagram for the impossible quarter stream ID {0}")]
    ImpossibleId(u64),
}

/// Takes an HTTP/3 Datagram apart: the quarter stream ID, and the payload, which shares memory.
pub(super) fn split(mut datagram: Bytes) -> Result<(u64, Bytes), BadDatagram> {
    let mut rest = &datagram[..];
    let id = VarInt::decode(&mut rest).map_err(|_| BadDatagram::NoId)?;
    if id.get() > MAX_QUARTER_ID {
        return Err(BadDatagram::ImpossibleId(id.get()));
    }
    let consumed = datagram.len() - rest.len();
    datagram.advance(consumed);
    Ok((id.get(), datagram))
}

/// The request streams of one connection by quarter stream ID.
#[derive(Debug)]
pub(super) struct Dispatch<T> {
    streams: HashMap<u64, Option<T>>,
    /// Above every stream there has been: absent ones from here on are to come, the others gone.
    next: u64,
    held: VecDeque<Held>,
    held_bytes: usize,
}

#[derive(Debug)]
struct Held {
    id: u64,
    payload: Bytes,
    until: Instant,
}

impl<T> Default for Dispatch<T> {
    fn default() -> Self {
        Self {
            streams: HashMap::new(),
            next: 0,
            held: VecDeque::new(),
            held_bytes: 0,
        }
    }
}

impl<T> Dispatch<T> {
    /// A request has been made, and its datagrams are to be kept until it is answered.
    pub(super) fn announce(&mut self, id: u64) {
        self.next = self.next.max(id + 1);
        self.streams.entry(id).or_insert(None);
    }

    /// The tunnel of `id` is there. Returns the datagrams kept for it, in the order they came.
    pub(super) fn open(&mut self, id: u64, tunnel: T, now: Instant) -> Vec<Bytes> {
        self.announce(id);
        self.streams.insert(id, Some(tunnel));
        let mut kept = Vec::new();
        self.held.retain_mut(|held| {
            if held.id != id {
                return true;
            }
            self.held_bytes -= held.payload.len();
            if held.until > now {
                kept.push(std::mem::take(&mut held.payload));
            }
            false
        });
        kept
    }

    /// The tunnel of `id` has ended, or there will be none.
    pub(super) fn close(&mut self, id: u64) {
        self.streams.remove(&id);
        self.held.retain(|held| {
            if held.id == id {
                self.held_bytes -= held.payload.len();
            }
            held.id != id
        });
    }

    /// Whether there is neither tunnel nor request.
    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// The tunnel `payload` is for. Without one it is kept for a while, or dropped if the stream
    /// is gone.
    pub(super) fn route(&mut self, id: u64, payload: &Bytes, now: Instant) -> Option<&T> {
        match self.streams.get(&id) {
            Some(Some(_)) => {}
            Some(None) => self.hold(id, payload, now),
            None if id >= self.next => self.hold(id, payload, now),
            None => {}
        }
        self.streams.get(&id).and_then(Option::as_ref)
    }

    fn hold(&mut self, id: u64, payload: &Bytes, now: Instant) {
        let full = |this: &Self| {
            this.held.len() >= MAX_HELD || this.held_bytes + payload.len() > MAX_HELD_BYTES
        };
        while let Some(oldest) = self.held.front()
            && (oldest.until <= now || full(self))
        {
            self.held_bytes -= oldest.payload.len();
            self.held.pop_front();
        }
        self.held_bytes += payload.len();
        self.held.push_back(Held {
            id,
            // Not the whole packet for a few bytes of it.
            payload: Bytes::copy_from_slice(payload),
            until: now + HOLD_TIME,
        });
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn payload(number: u8) -> Bytes {
        Bytes::from(vec![number])
    }

    #[test]
    fn splits_every_length_of_id() {
        for (encoded, id) in [
            (&b"\x05abc"[..], 5),
            (&b"\x40\x05abc"[..], 5),
            (&b"\x80\0\0\x05abc"[..], 5),
            (&b"\xcf\xff\xff\xff\xff\xff\xff\xffabc"[..], MAX_QUARTER_ID),
        ] {
            let (found, rest) = split(Bytes::from_static(encoded)).unwrap();
            assert_eq!((found, &rest[..]), (id, &b"abc"[..]));
        }
    }

    #[test]
    fn refuses_impossible_ids() {
        assert_eq!(split(Bytes::new()), Err(BadDatagram::NoId));
        assert_eq!(split(Bytes::from_static(b"\x40")), Err(BadDatagram::NoId));
        assert_eq!(
            split(Bytes::from_static(b"\xd0\0\0\0\0\0\0\0")),
            Err(BadDatagram::ImpossibleId(1 << 60))
        );
    }

    #[test]
    fn keeps_datagrams_until_the_stream_is_there() {
        let now = Instant::now();
        let mut dispatch = Dispatch::default();
        assert_eq!(dispatch.route(1, &payload(0), now), None);
        dispatch.announce(0);
        dispatch.announce(1);
        assert_eq!(dispatch.route(1, &payload(1), now), None);
        assert_eq!(dispatch.route(0, &payload(2), now), None);
        assert_eq!(dispatch.open(1, 'b', now), [payload(0), payload(1)]);
        assert_eq!(dispatch.route(1, &payload(3), now), Some(&'b'));
        assert_eq!(dispatch.open(0, 'a', now), [payload(2)]);
        assert_eq!(dispatch.held_bytes, 0);
    }

    #[test]
    fn drops_what_came_too_early_or_too_late() {
        let now = Instant::now();
        let mut dispatch = Dispatch::default();
        dispatch.route(0, &payload(0), now);
        assert!(dispatch.open(0, 'a', now + HOLD_TIME).is_empty());
        dispatch.close(0);
        assert!(dispatch.is_empty());
        assert_eq!(dispatch.route(0, &payload(1), now), None);
        assert!(dispatch.held.is_empty());
    }

    #[test]
    fn the_newest_datagrams_are_kept() {
        let now = Instant::now();
        let mut dispatch = Dispatch::default();
        for number in 0..=MAX_HELD as u8 {
            dispatch.route(0, &payload(number), now);
        }
        let kept = dispatch.open(0, 'a', now);
        assert_eq!(kept.len(), MAX_HELD);
        assert_eq!(kept.last(), Some(&payload(MAX_HELD as u8)));
    }

    #[derive(Debug, Clone)]
    enum Step {
        Announce(u64),
        Open(u64),
        Close(u64),
        Datagram(u64, usize),
        Wait(u64),
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            (0..8u64).prop_map(Step::Announce),
            (0..8u64).prop_map(Step::Open),
            (0..8u64).prop_map(Step::Close),
            (0..10u64, 0..70_000usize).prop_map(|(id, length)| Step::Datagram(id, length)),
            (0..2000u64).prop_map(Step::Wait),
        ]
    }

    proptest! {
        #[test]
        fn any_bytes_split_or_are_refused(bytes in proptest::collection::vec(any::<u8>(), 0..32)) {
            let datagram = Bytes::from(bytes);
            if let Ok((id, rest)) = split(datagram.clone()) {
                prop_assert!(id <= MAX_QUARTER_ID);
                prop_assert!(datagram.ends_with(&rest));
                prop_assert!(rest.len() < datagram.len());
            }
        }

        #[test]
        fn what_is_held_stays_bounded_and_counted(steps in proptest::collection::vec(step(), 0..200)) {
            let mut now = Instant::now();
            let mut dispatch = Dispatch::<u64>::default();
            for step in steps {
                match step {
                    Step::Announce(id) => dispatch.announce(id),
                    Step::Open(id) => {
                        for kept in dispatch.open(id, id, now) {
                            prop_assert!(kept.len() < 70_000);
                        }
                        prop_assert_eq!(dispatch.route(id, &Bytes::new(), now), Some(&id));
                    }
                    Step::Close(id) => {
                        dispatch.close(id);
                        prop_assert_eq!(dispatch.route(id, &Bytes::new(), now), None);
                    }
                    Step::Datagram(id, length) => {
                        let bytes = Bytes::from(vec![0; length]);
                        if let Some(found) = dispatch.route(id, &bytes, now) {
                            prop_assert_eq!(*found, id);
                        }
                    }
                    Step::Wait(millis) => now += Duration::from_millis(millis),
                }
                let bytes: usize = dispatch.held.iter().map(|held| held.payload.len()).sum();
                prop_assert_eq!(bytes, dispatch.held_bytes);
                prop_assert!(dispatch.held.len() <= MAX_HELD);
                // One that is larger than all is kept alone.
                prop_assert!(bytes <= MAX_HELD_BYTES || dispatch.held.len() == 1);
            }
        }
    }
}
