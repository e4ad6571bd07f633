//! Polling Rust futures from Python: who is told when it is worth polling again.
//!
//! An operation is polled on the caller's thread. If it is not ready, the engine keeps our waker,
//! and every awaiter that was told "not yet" is told "try again" when the waker fires. Results
//! never leave the operation before a poll takes them, so an awaiter that went away in the
//! meantime loses nothing, and telling one awaiter too many costs one poll.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::task::{Context, Poll, Wake, Waker};

use crate::bridge::Queue;
use crate::errors::Failure;
use crate::runtime;

/// One direction of one object that Python may await.
pub(crate) struct Operation {
    waiters: Arc<Waiters>,
    /// `waiters` once more, in the form futures take.
    waker: Waker,
}

impl Operation {
    pub(crate) fn new() -> Self {
        let waiters = Arc::new(Waiters {
            wakes: AtomicU64::new(0),
            list: Mutex::default(),
        });
        Self {
            waker: Waker::from(Arc::clone(&waiters)),
            waiters,
        }
    }

    /// Has everybody who was told "not yet" poll again.
    pub(crate) fn wake(&self) {
        self.waker.wake_by_ref();
    }

    /// Polls once; if the answer is pending, `token` will fire on `queue` when it may no longer be.
    pub(crate) fn poll<T>(
        &self,
        queue: &Arc<Queue>,
        token: u64,
        poll: impl FnOnce(&mut Context<'_>) -> Poll<T>,
    ) -> Option<T> {
        let before = self.waiters.wakes.load(Ordering::Acquire);
        match poll(&mut Context::from_waker(&self.waker)) {
            Poll::Ready(value) => Some(value),
            Poll::Pending => {
                self.waiters.add(before, queue, token);
                None
            }
        }
    }
}

/// An operation whose future lives on between polls, for what the engine forgets when its future
/// is dropped.
pub(crate) struct Slot<T> {
    operation: Operation,
    future: Mutex<Option<Pending<T>>>,
}

/// A future a [`Slot`] can keep.
pub(crate) type Pending<T> = Pin<Box<dyn Future<Output = T> + Send>>;

impl<T> Slot<T> {
    /// An empty slot.
    pub(crate) fn new() -> Self {
        Self {
            operation: Operation::new(),
            future: Mutex::new(None),
        }
    }

    /// A slot with its first future.
    pub(crate) fn with(future: Pending<T>) -> Self {
        Self {
            operation: Operation::new(),
            future: Mutex::new(Some(future)),
        }
    }

    /// Polls the future in the slot, made by `start` if there is none; see [`Operation::poll`].
    pub(crate) fn poll(
        &self,
        queue: &Arc<Queue>,
        token: u64,
        start: impl FnOnce() -> Pending<T>,
    ) -> Result<Option<T>, Failure> {
        let _runtime = runtime::enter()?;
        let mut slot = lock(&self.future);
        // Taken out while it is polled: one that panics must not be polled a second time.
        let mut future = slot.take().unwrap_or_else(start);
        let outcome = self
            .operation
            .poll(queue, token, |cx| future.as_mut().poll(cx));
        if outcome.is_none() {
            *slot = Some(future);
        }
        Ok(outcome)
    }
}

/// Everybody who was told "not yet" since the waker fired last.
struct Waiters {
    /// How often the waker fired. Written under the lock of `list`.
    wakes: AtomicU64,
    list: Mutex<List>,
}

#[derive(Default)]
struct List {
    waiters: Vec<(Weak<Queue>, u64)>,
    /// Length at which awaiters that gave up are weeded out.
    weed_at: usize,
}

impl Waiters {
    fn add(&self, before: u64, queue: &Arc<Queue>, token: u64) {
        queue.expect(token);
        let mut list = lock(&self.list);
        if self.wakes.load(Ordering::Acquire) != before {
            // The waker fired between the poll's answer and now: that wake was for this awaiter.
            drop(list);
            queue.fire(token);
            return;
        }
        if list.waiters.len() >= list.weed_at.max(WEED_FROM) {
            list.waiters
                .retain(|(queue, token)| queue.upgrade().is_some_and(|q| q.awaits(*token)));
            list.weed_at = list.waiters.len() * 2;
        }
        list.waiters.push((Arc::downgrade(queue), token));
    }
}

impl Wake for Waiters {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        let mut list = lock(&self.list);
        self.wakes.fetch_add(1, Ordering::Release);
        for (queue, token) in list.waiters.drain(..) {
            if let Some(queue) = queue.upgrade() {
                queue.fire(token);
            }
        }
    }
}

/// Locks where a panic cannot leave the value half-changed.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Awaiters that give up (timeouts on an idle stream) leave entries behind. Below this many they
/// are not worth a search; above, each search at least halves the next one's rate.
const WEED_FROM: usize = 16;
