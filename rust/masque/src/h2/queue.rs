//! What one tunnel has to say and HTTP has not taken yet.
//!
//! Datagrams are written as capsules the moment they come, into segments that are handed to HTTP as
//! they are: one copy from the caller to the cipher. The oldest are dropped when there are too many
//! bytes, and when they have become too old to be of use. Capsules wait apart, are sent first and
//! are never dropped.

use std::{
    collections::VecDeque,
    fmt,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Waker},
    time::{Duration, Instant},
};

use anyreach_wire::{capsule::encode_datagram_header, context::MAX_DATAGRAM};
use bytes::{Buf, Bytes, BytesMut};

use super::link::Link;
use crate::carrier::{CapsuleError, Close, DatagramError, TunnelOut};

/// Bytes of datagrams that may wait: 4 ms at 1 Gbit/s, so that a burst of what runs inside fits.
/// What bounds the delay on slower lines is their age.
pub(super) const MAX_BYTES: usize = 512 << 10;

/// How long a datagram may wait, or two round trips if that is longer: a packet later than this has
/// been declared lost by who sent it, and TCP that starts slowly after a pause is not punished.
pub(super) const MAX_AGE: Duration = Duration::from_millis(100);

/// How long it may wait whatever the round trip seems to be.
const MAX_AGE_EVER: Duration = Duration::from_secs(1);

/// Capsules that may wait (bind draft, security considerations: they must be bounded).
pub(super) const MAX_CAPSULES: usize = 64;

/// What a waiting datagram costs besides its bytes, so that empty ones are not free.
const OVERHEAD: usize = 32;

/// Datagrams written side by side: one DATA frame, one write to TLS.
pub(super) const SEGMENT: usize = super::MAX_FRAME as usize;

/// The outgoing half of a tunnel.
pub(super) struct Outgoing {
    link: Arc<Link>,
    queue: Mutex<Queue>,
}

#[derive(Default)]
struct Queue {
    /// DATAGRAM capsules, oldest first; the first segment may have lost some from its front.
    segments: VecDeque<BytesMut>,
    /// The same one by one.
    datagrams: VecDeque<Waiting>,
    /// What they cost together.
    cost: usize,
    capsules: VecDeque<Bytes>,
    dropped: u64,
    end: Option<Close>,
    /// The stream is gone: nothing is taken any more.
    closed: bool,
    /// Of the tunnel's task, while it waits for something to write.
    waker: Option<Waker>,
    /// Of the same, whatever it waits for: the end cannot wait for a peer that takes nothing.
    end_waker: Option<Waker>,
}

struct Waiting {
    /// Bytes of the whole capsule.
    length: usize,
    since: Instant,
}

/// What the queue is up to, for the task that writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// At least this many bytes wait.
    Send(usize),
    /// Nothing waits; the waker given will be woken.
    Wait,
    /// Nothing waits and nothing will come.
    Finished,
    /// The stream is to be reset.
    Abort,
}

impl Outgoing {
    pub(super) fn new(link: Arc<Link>) -> Arc<Self> {
        Arc::new(Self {
            link,
            queue: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        // Nothing panics while holding the lock.
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds something to be written, and wakes the task that does, outside of the lock.
    fn push<E>(&self, change: impl FnOnce(&mut Queue) -> Result<(), E>) -> Result<(), E> {
        let mut queue = self.lock();
        let result = change(&mut queue);
        let waker = queue.waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
        result
    }

    /// What is to be done now.
    pub(super) fn next(&self, cx: &Context<'_>) -> Next {
        let mut queue = self.lock();
        register(&mut queue.end_waker, cx);
        if queue.end == Some(Close::DatagramError) {
            return Next::Abort;
        }
        let capsules: usize = queue.capsules.iter().map(Bytes::len).sum();
        let waiting = queue.cost + capsules;
        if waiting > 0 {
            return Next::Send(waiting);
        }
        if queue.end.is_some() {
            return Next::Finished;
        }
        register(&mut queue.waker, cx);
        Next::Wait
    }

    /// Whether this side has asked for an orderly end.
    pub(super) fn ending(&self) -> bool {
        self.lock().end == Some(Close::Done)
    }

    /// Takes nothing more; what waits is still to be sent.
    pub(super) fn finish(&self) {
        self.close(Close::Done);
    }

    /// The next bytes of the stream: whole capsules, and no more than `most` bytes unless the first
    /// one alone is longer. `None` if nothing waits, as when all was too old.
    pub(super) fn take(&self, most: usize, now: Instant) -> Option<Bytes> {
        let rtt = self.link.rtt().unwrap_or_default();
        let max_age = (2 * rtt).clamp(MAX_AGE, MAX_AGE_EVER);
        self.lock().take(most, now, max_age)
    }

    /// The stream has ended: forgets what waits and takes nothing more.
    pub(super) fn shut(&self) {
        let mut queue = self.lock();
        *queue = Queue {
            closed: true,
            dropped: queue.dropped,
            end: queue.end.or(Some(Close::Done)),
            ..Queue::default()
        };
    }
}

fn register(slot: &mut Option<Waker>, cx: &Context<'_>) {
    match slot {
        Some(waker) => waker.clone_from(cx.waker()),
        None => *slot = Some(cx.waker().clone()),
    }
}

impl Queue {
    fn append(&mut self, head: &[u8], payload: &[u8], now: Instant) {
        let prefix = encode_datagram_header(head.len() + payload.len());
        let length = prefix.len() + head.len() + payload.len();
        while self.cost + length + OVERHEAD > MAX_BYTES && self.drop_oldest() {}
        let room = |segment: &BytesMut| segment.capacity() - segment.len() >= length;
        let segment = match self.segments.back_mut() {
            Some(last) if room(last) => last,
            _ => {
                self.segments
                    .push_back(BytesMut::with_capacity(SEGMENT.max(length)));
                self.segments.back_mut().expect("just pushed")
            }
        };
        segment.extend_from_slice(&prefix);
        segment.extend_from_slice(head);
        segment.extend_from_slice(payload);
        self.datagrams.push_back(Waiting { length, since: now });
        self.cost += length + OVERHEAD;
    }

    fn drop_oldest(&mut self) -> bool {
        let Some(oldest) = self.datagrams.pop_front() else {
            return false;
        };
        self.cost -= oldest.length + OVERHEAD;
        self.dropped += 1;
        if let Some(segment) = self.segments.front_mut() {
            segment.advance(oldest.length);
            if segment.is_empty() {
                self.segments.pop_front();
            }
        }
        true
    }

    fn take(&mut self, most: usize, now: Instant, max_age: Duration) -> Option<Bytes> {
        if let Some(first) = self.capsules.pop_front() {
            return Some(self.join_capsules(first, most));
        }
        while let Some(oldest) = self.datagrams.front()
            && now.saturating_duration_since(oldest.since) > max_age
        {
            self.drop_oldest();
        }
        let available = self.segments.front()?.len();
        let mut length = 0;
        while length < available
            && let Some(next) = self.datagrams.front()
            && (length == 0 || length + next.length <= most)
        {
            length += next.length;
            self.cost -= next.length + OVERHEAD;
            self.datagrams.pop_front();
        }
        if length == available {
            return self.segments.pop_front().map(BytesMut::freeze);
        }
        Some(self.segments.front_mut()?.split_to(length).freeze())
    }

    fn join_capsules(&mut self, first: Bytes, most: usize) -> Bytes {
        let fits = |length: usize, next: Option<&Bytes>| {
            next.is_some_and(|capsule| length + capsule.len() <= most)
        };
        if !fits(first.len(), self.capsules.front()) {
            return first;
        }
        let mut joined = BytesMut::from(first);
        while fits(joined.len(), self.capsules.front())
            && let Some(capsule) = self.capsules.pop_front()
        {
            joined.extend_from_slice(&capsule);
        }
        joined.freeze()
    }
}

impl TunnelOut for Outgoing {
    fn send_datagram(&self, head: &[u8], payload: &[u8]) -> Result<(), DatagramError> {
        if head.len() + payload.len() > MAX_DATAGRAM {
            return Err(DatagramError::TooLarge);
        }
        let now = Instant::now();
        self.push(|queue| {
            if queue.closed || queue.end.is_some() {
                return Err(DatagramError::Closed);
            }
            queue.append(head, payload, now);
            Ok(())
        })
    }

    fn max_datagram(&self) -> usize {
        MAX_DATAGRAM
    }

    fn send_capsule(&self, capsule: Bytes) -> Result<(), CapsuleError> {
        self.push(|queue| {
            if queue.closed || queue.end.is_some() {
                return Err(CapsuleError::Closed);
            }
            if queue.capsules.len() >= MAX_CAPSULES {
                return Err(CapsuleError::QueueFull);
            }
            queue.capsules.push_back(capsule);
            Ok(())
        })
    }

    fn close(&self, end: Close) {
        let mut queue = self.lock();
        // A violation may still follow an orderly end, not the other way round.
        if queue.closed || queue.end == Some(Close::DatagramError) {
            return;
        }
        queue.end = Some(end);
        let waker = queue.end_waker.take();
        drop(queue);
        if let Some(waker) = waker {
            waker.wake();
        }
    }

    fn rtt(&self) -> Option<Duration> {
        self.link.rtt()
    }

    fn dropped(&self) -> u64 {
        self.lock().dropped
    }
}

impl fmt::Debug for Outgoing {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let queue = self.lock();
        f.debug_struct("h2::Outgoing")
            .field("datagrams", &queue.datagrams.len())
            .field("capsules", &queue.capsules.len())
            .field("dropped", &queue.dropped)
            .field("closed", &queue.closed)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
