//! The table of ways a datagram can take, shared by the socket, its senders and the handles.
//!
//! Copy-on-write: whoever changes it publishes a new table and bumps a generation; readers keep the
//! table they have until one atomic load tells them that there is a newer one. So the path of a
//! datagram takes no lock, and costs that one load while there is nothing but the primary socket.

use std::sync::{
    Arc, Mutex, MutexGuard, PoisonError,
    atomic::{AtomicU64, AtomicUsize, Ordering},
};

use atomic_waker::AtomicWaker;

use crate::{counters::Counters, port::Port};

/// One state of the table.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    /// The node's own socket: everything that has no other way.
    pub(crate) primary: Arc<Port>,
}

impl Routes {
    /// Puts `renewed` where `old` is; `false` if somebody else has replaced it meanwhile.
    pub(crate) fn replace_port(&mut self, old: &Arc<Port>, renewed: Port) -> bool {
        let found = Arc::ptr_eq(&self.primary, old);
        if found {
            self.primary = Arc::new(renewed);
        }
        found
    }
}

/// What the parts of one [`NodeSocket`](crate::NodeSocket) share.
#[derive(Debug)]
pub(crate) struct Shared {
    generation: AtomicU64,
    routes: Mutex<Arc<Routes>>,
    /// `max_transmit_segments` of the primary port, where a sender can read it without its table.
    segments: AtomicUsize,
    pub(crate) counters: Arc<Counters>,
    /// The engine's receive task.
    pub(crate) receiver: AtomicWaker,
}

impl Shared {
    pub(crate) fn new(primary: Port) -> Self {
        Self {
            generation: AtomicU64::new(0),
            segments: AtomicUsize::new(primary.max_transmit_segments().get()),
            routes: Mutex::new(Arc::new(Routes {
                primary: Arc::new(primary),
            })),
            counters: Arc::default(),
            receiver: AtomicWaker::new(),
        }
    }

    pub(crate) fn max_transmit_segments(&self) -> usize {
        self.segments.load(Ordering::Relaxed)
    }

    /// Changes the table, if `change` says so by returning `true`.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Routes) -> bool) {
        let mut current = self.lock();
        let mut next = Routes::clone(&current);
        if !change(&mut next) {
            return;
        }
        let segments = next.primary.max_transmit_segments().get();
        self.segments.store(segments, Ordering::Relaxed);
        *current = Arc::new(next);
        // Release: a reader that sees the new generation finds the new table behind the lock.
        self.generation.fetch_add(1, Ordering::Release);
        drop(current);
        self.receiver.wake();
    }

    fn lock(&self) -> MutexGuard<'_, Arc<Routes>> {
        // Nothing panics while holding the lock in a half-changed state: the table is swapped whole.
        self.routes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A reader's copy of the table.
#[derive(Debug)]
pub(crate) struct Reader {
    generation: u64,
    routes: Arc<Routes>,
}

impl Reader {
    pub(crate) fn new(shared: &Shared) -> Self {
        let routes = shared.lock();
        Self {
            generation: shared.generation.load(Ordering::Acquire),
            routes: routes.clone(),
        }
    }

    /// The primary port of the table at hand, which need not be the newest.
    pub(crate) fn primary(&self) -> &Port {
        &self.routes.primary
    }

    /// The present table.
    #[inline]
    pub(crate) fn get(&mut self, shared: &Shared) -> &Arc<Routes> {
        if self.generation != shared.generation.load(Ordering::Acquire) {
            *self = Self::new(shared);
        }
        &self.routes
    }
}
