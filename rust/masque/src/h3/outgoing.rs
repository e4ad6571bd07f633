//! What waits to be written to a request stream: capsules, and the datagrams that are too large
//! for a QUIC DATAGRAM frame.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::Notify;

use crate::carrier::{CapsuleError, Close};

/// Capsules that may wait for the peer. One that opens contexts and does not read the answers
/// would fill our memory otherwise (bind draft, security considerations).
pub(super) const MAX_CAPSULES: usize = 64;

/// Datagrams that may wait on the stream. They are few: first flights of connections inside.
pub(super) const MAX_DATAGRAMS: usize = 32;

/// The queue of one request stream: any number of producers, one writer.
#[derive(Debug, Default)]
pub(super) struct Outgoing {
    state: Mutex<State>,
    /// Something to write, or the end.
    changed: Notify,
    /// The end, told to the one who watches both directions.
    ended: Notify,
}

#[derive(Debug, Default)]
struct State {
    capsules: VecDeque<Bytes>,
    datagrams: VecDeque<Bytes>,
    end: Option<Close>,
}

impl Outgoing {
    /// Appends a capsule.
    pub(super) fn capsule(&self, capsule: Bytes) -> Result<(), CapsuleError> {
        let mut state = self.lock();
        if state.end.is_some() {
            return Err(CapsuleError::Closed);
        }
        if state.capsules.len() >= MAX_CAPSULES {
            return Err(CapsuleError::QueueFull);
        }
        state.capsules.push_back(capsule);
        drop(state);
        self.changed.notify_one();
        Ok(())
    }

    /// Appends a DATAGRAM capsule, for which the oldest is dropped if need be. True if one was.
    pub(super) fn datagram(&self, capsule: Bytes) -> bool {
        let mut state = self.lock();
        let full = state.datagrams.len() >= MAX_DATAGRAMS;
        if full {
            state.datagrams.pop_front();
        }
        state.datagrams.push_back(capsule);
        drop(state);
        self.changed.notify_one();
        full
    }

    /// Nothing is to come any more. The first reason stands, except that an error overtakes the
    /// good order of what is still waiting.
    pub(super) fn close(&self, end: Close) {
        let mut state = self.lock();
        match state.end {
            None => state.end = Some(end),
            Some(Close::Done) if end == Close::DatagramError => state.end = Some(end),
            Some(_) => return,
        }
        if end == Close::DatagramError {
            state.capsules.clear();
            state.datagrams.clear();
        }
        drop(state);
        self.changed.notify_one();
        self.ended.notify_one();
    }

    /// Whether anything more is taken.
    pub(super) fn is_closed(&self) -> bool {
        self.lock().end.is_some()
    }

    /// The next to write, or `None` when all is written before an end in good order; never again
    /// after one that is not. Nothing is lost if the future is dropped.
    pub(super) async fn next(&self) -> Option<Bytes> {
        loop {
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                // Control first: a datagram may need the context its capsule opens.
                let next = state.capsules.pop_front();
                if let Some(capsule) = next.or_else(|| state.datagrams.pop_front()) {
                    return Some(capsule);
                }
                if state.end == Some(Close::Done) {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// Waits for [`close`](Self::close).
    pub(super) async fn closed(&self) -> Close {
        loop {
            let ended = self.ended.notified();
            if let Some(end) = self.lock().end {
                return end;
            }
            ended.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::{future::poll_fn, task::Poll};

    use super::*;

    fn item(number: usize) -> Bytes {
        Bytes::from(number.to_be_bytes().to_vec())
    }

    #[tokio::test]
    async fn takes_64_capsules_and_not_65() {
        let queue = Outgoing::default();
        for number in 0..MAX_CAPSULES {
            queue.capsule(item(number)).unwrap();
        }
        assert_eq!(queue.capsule(item(64)), Err(CapsuleError::QueueFull));
        assert_eq!(queue.next().await, Some(item(0)));
        queue.capsule(item(65)).unwrap();
    }

    #[tokio::test]
    async fn drops_the_oldest_datagram() {
        let queue = Outgoing::default();
        for number in 0..MAX_DATAGRAMS {
            assert!(!queue.datagram(item(number)));
        }
        assert!(queue.datagram(item(99)));
        queue.capsule(item(1000)).unwrap();
        assert_eq!(queue.next().await, Some(item(1000)));
        assert_eq!(queue.next().await, Some(item(1)));
    }

    #[tokio::test]
    async fn what_waits_is_written_before_a_good_end() {
        let queue = Outgoing::default();
        queue.capsule(item(1)).unwrap();
        queue.close(Close::Done);
        queue.close(Close::Done);
        assert_eq!(queue.capsule(item(2)), Err(CapsuleError::Closed));
        assert_eq!(queue.closed().await, Close::Done);
        assert_eq!(queue.next().await, Some(item(1)));
        assert_eq!(queue.next().await, None);
    }

    #[tokio::test]
    async fn nothing_is_written_before_a_bad_end() {
        let queue = Outgoing::default();
        queue.capsule(item(1)).unwrap();
        queue.close(Close::Done);
        queue.close(Close::DatagramError);
        assert_eq!(queue.closed().await, Close::DatagramError);
        let mut next = std::pin::pin!(queue.next());
        let pending = poll_fn(|cx| Poll::Ready(next.as_mut().poll(cx).is_pending())).await;
        assert!(pending);
    }
}
