//! What an endpoint tells whoever drives it, and the bounded queues that carry it.

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::Notify;

use crate::{CloseReason, Connection};

/// Something that happened at an endpoint.
#[derive(Debug, Clone)]
pub enum Event {
    /// A connection is established, dialed or accepted.
    Connected(Connection),
    /// An established connection ended.
    Disconnected {
        /// Which.
        connection: Connection,
        /// Why.
        reason: CloseReason,
    },
    /// The peer reported the address it sees us under (OBSERVED_ADDRESS).
    Observed {
        /// From whom.
        connection: Connection,
        /// On which path.
        path_id: u32,
        /// Our address as seen by the peer.
        address: SocketAddr,
        /// From the start of the path, or from the report before, to this report.
        after: Duration,
    },
    /// A path came or went.
    PathsChanged {
        /// Of which connection.
        connection: Connection,
        /// `established` or `abandoned`.
        reason: &'static str,
    },
}

/// A queue that never grows beyond its capacity: the oldest item makes room, and is counted.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    state: Mutex<State<T>>,
    changed: Notify,
    capacity: usize,
    dropped: AtomicU64,
}

#[derive(Debug)]
struct State<T> {
    items: VecDeque<T>,
    closed: bool,
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Self {
            state: Mutex::new(State {
                items: VecDeque::new(),
                closed: false,
            }),
            changed: Notify::new(),
            capacity,
            dropped: AtomicU64::new(0),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        // Nothing panics while holding the lock; if it did, the items are still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, item: T) {
        let evicted = {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            let evicted = (state.items.len() >= self.capacity)
                .then(|| state.items.pop_front())
                .flatten();
            state.items.push_back(item);
            evicted
        };
        if evicted.is_some() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        self.changed.notify_waiters();
    }

    /// The oldest item; `None` once the queue is closed and empty.
    pub(crate) async fn pop(&self) -> Option<T> {
        self.take_with(|items| items.pop_front()).await
    }

    /// All items, at least one; `None` once the queue is closed and empty.
    pub(crate) async fn pop_all(&self) -> Option<Vec<T>> {
        self.take_with(|items| (!items.is_empty()).then(|| items.drain(..).collect()))
            .await
    }

    async fn take_with<R>(&self, take: impl Fn(&mut VecDeque<T>) -> Option<R>) -> Option<R> {
        loop {
            // From here on no wake-up is missed, although it is awaited only below.
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if let Some(taken) = take(&mut state.items) {
                    return Some(taken);
                }
                if state.closed {
                    return None;
                }
            }
            changed.await;
        }
    }

    /// No more items are taken in; those inside can still be taken out.
    pub(crate) fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    pub(crate) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_oldest_makes_room() {
        let queue = Queue::new(2);
        for item in 0..5 {
            queue.push(item);
        }
        assert_eq!(queue.dropped(), 3);
        assert_eq!(queue.pop_all().await, Some(vec![3, 4]));
        queue.push(5);
        queue.close();
        queue.push(6);
        assert_eq!(queue.pop().await, Some(5));
        assert_eq!(queue.pop().await, None);
    }

    #[tokio::test]
    async fn a_waiter_is_woken_by_an_item_and_by_the_end() {
        let queue = std::sync::Arc::new(Queue::new(2));
        let waiting = tokio::spawn({
            let queue = queue.clone();
            async move { (queue.pop().await, queue.pop().await) }
        });
        tokio::task::yield_now().await;
        queue.push(1);
        tokio::task::yield_now().await;
        queue.close();
        assert_eq!(waiting.await.unwrap(), (Some(1), None));
    }
}
