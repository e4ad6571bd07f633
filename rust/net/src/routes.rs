//! The table of ways a datagram can take, shared by the socket, its senders and the handles.
//!
//! Copy-on-write: whoever changes it publishes a new table and bumps a generation; readers keep the
//! table they have until one atomic load tells them that there is a newer one. So the path of a
//! datagram takes no lock, and costs that one load while there is nothing but the primary socket.

use std::{
    collections::HashMap,
    fmt,
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, Weak,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::Instant,
};

use atomic_waker::AtomicWaker;
use tokio::sync::Notify;

use crate::{
    counters::Counters,
    extra::Extra,
    opener::SinkSlot,
    port::Port,
    tunnel::{Numbers, TunnelEntry},
    unreachable::Dialed,
};

/// One state of the table.
#[derive(Debug, Clone)]
pub(crate) struct Routes {
    /// The node's own socket: everything that has no other way. Weak, so that it can be closed
    /// although idle connections hold on to old tables.
    primary: Weak<Port>,
    /// Its address, canonical.
    pub(crate) local_addr: SocketAddr,
    /// In ascending order of their numbers.
    pub(crate) tunnels: Vec<Arc<TunnelEntry>>,
    pub(crate) extras: Vec<Arc<Extra>>,
    /// Canonical remote addresses that are reached through an extra socket.
    pub(crate) overrides: HashMap<SocketAddr, Arc<Extra>>,
    /// Canonical remote addresses nothing is sent to yet, and until when at most.
    pub(crate) held: HashMap<SocketAddr, Instant>,
}

impl Routes {
    /// How many sources there are besides the primary socket.
    #[inline]
    pub(crate) fn sides(&self) -> usize {
        self.tunnels.len() + self.extras.len()
    }

    pub(crate) fn tunnel(&self, number: u32) -> Option<&Arc<TunnelEntry>> {
        let at = self
            .tunnels
            .binary_search_by_key(&number, |entry| entry.number)
            .ok()?;
        self.tunnels.get(at)
    }

    pub(crate) fn add_tunnel(&mut self, entry: Arc<TunnelEntry>) {
        // Two threads may get here in the other order than they drew their numbers.
        let at = self
            .tunnels
            .partition_point(|other| other.number < entry.number);
        self.tunnels.insert(at, entry);
    }

    pub(crate) fn remove_tunnel(&mut self, entry: &Arc<TunnelEntry>) -> bool {
        let before = self.tunnels.len();
        self.tunnels.retain(|other| !Arc::ptr_eq(other, entry));
        self.tunnels.len() != before
    }

    pub(crate) fn remove_extra(&mut self, extra: &Arc<Extra>) -> bool {
        let before = self.extras.len();
        self.extras.retain(|other| !Arc::ptr_eq(other, extra));
        self.overrides.retain(|_, owner| !Arc::ptr_eq(owner, extra));
        self.extras.len() != before
    }

    pub(crate) fn adopted_by(&self, extra: &Arc<Extra>) -> Vec<SocketAddr> {
        self.overrides
            .iter()
            .filter(|(_, owner)| Arc::ptr_eq(owner, extra))
            .map(|(remote, _)| *remote)
            .collect()
    }
}

/// What the parts of one [`NodeSocket`](crate::NodeSocket) share.
#[derive(Debug)]
pub(crate) struct Shared {
    generation: AtomicU64,
    routes: Mutex<Arc<Routes>>,
    /// What keeps the node's own socket open.
    primary: Slot<Port>,
    /// `max_transmit_segments` of the primary port, where a sender can read it without its table.
    segments: AtomicUsize,
    pub(crate) numbers: Numbers,
    pub(crate) counters: Arc<Counters>,
    /// The engine's receive task.
    pub(crate) receiver: Arc<AtomicWaker>,
    /// Told when a datagram could not be sent because its source address is gone.
    pub(crate) source_gone: Arc<Notify>,
    /// Told which addresses could not be sent to.
    pub(crate) dialed: Arc<Dialed>,
    /// Who judges openers.
    pub(crate) openers: SinkSlot,
}

impl Shared {
    pub(crate) fn new(primary: Port, local_addr: SocketAddr) -> Self {
        let segments = primary.max_transmit_segments().get();
        let primary = Arc::new(primary);
        Self {
            generation: AtomicU64::new(0),
            segments: AtomicUsize::new(segments),
            routes: Mutex::new(Arc::new(Routes {
                primary: Arc::downgrade(&primary),
                local_addr,
                tunnels: Vec::new(),
                extras: Vec::new(),
                overrides: HashMap::new(),
                held: HashMap::new(),
            })),
            primary: Slot::new(primary),
            numbers: Numbers::default(),
            counters: Arc::default(),
            receiver: Arc::default(),
            source_gone: Arc::default(),
            dialed: Arc::default(),
            openers: SinkSlot::default(),
        }
    }

    pub(crate) fn max_transmit_segments(&self) -> usize {
        self.segments.load(Ordering::Relaxed)
    }

    /// The node's own socket, found without a lock; `None` once it was closed.
    #[inline]
    pub(crate) fn primary(&self, routes: &Routes) -> Option<Arc<Port>> {
        // A table read just before a renewal leads to the old port, which may be gone.
        routes.primary.upgrade().or_else(|| self.newest_primary())
    }

    /// [`Self::primary`] for who has no table at hand.
    #[cold]
    pub(crate) fn newest_primary(&self) -> Option<Arc<Port>> {
        self.primary.get()
    }

    /// Puts `renewed` where `old` is; false if somebody has replaced or closed that meanwhile.
    pub(crate) fn renew_primary(&self, old: &Port, renewed: Port) -> bool {
        self.install(renewed, |port| self.primary.replace(old, port), |_| {})
    }

    /// Takes another socket as the node's own. False if it was closed.
    pub(crate) fn rebind_primary(&self, port: Port, local_addr: SocketAddr) -> bool {
        let install = |port| self.primary.set(port);
        self.install(port, install, |routes| routes.local_addr = local_addr)
    }

    /// Publishes `port`, if `install` can put it into the slot.
    fn install(
        &self,
        port: Port,
        install: impl FnOnce(Arc<Port>) -> bool,
        change: impl FnOnce(&mut Routes),
    ) -> bool {
        let segments = port.max_transmit_segments().get();
        let port = Arc::new(port);
        let mut installed = false;
        self.update(|routes| {
            installed = install(port.clone());
            if installed {
                self.segments.store(segments, Ordering::Relaxed);
                routes.primary = Arc::downgrade(&port);
                change(routes);
            }
            installed
        });
        installed
    }

    /// Closes the node's own socket. What is still sent goes nowhere.
    pub(crate) fn close_primary(&self) -> Option<Arc<Port>> {
        let port = self.newest_primary();
        self.primary.close();
        self.receiver.wake();
        port
    }

    /// The newest table.
    pub(crate) fn current(&self) -> Arc<Routes> {
        self.lock().clone()
    }

    /// Changes the table, if `change` says so by returning `true`.
    pub(crate) fn update(&self, change: impl FnOnce(&mut Routes) -> bool) {
        let mut current = self.lock();
        let mut next = Routes::clone(&current);
        if !change(&mut next) {
            return;
        }
        let old = std::mem::replace(&mut *current, Arc::new(next));
        // Release: a reader that sees the new generation finds the new table behind the lock.
        self.generation.fetch_add(1, Ordering::Release);
        drop(current);
        // Not under the lock: it may be the last to hold a socket.
        drop(old);
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

    /// The table at hand, which need not be the newest.
    pub(crate) fn cached(&self) -> &Routes {
        &self.routes
    }

    #[inline]
    pub(crate) fn is_stale(&self, shared: &Shared) -> bool {
        self.generation != shared.generation.load(Ordering::Acquire)
    }

    /// The present table.
    #[inline]
    pub(crate) fn get(&mut self, shared: &Shared) -> &Routes {
        if self.is_stale(shared) {
            *self = Self::new(shared);
        }
        &self.routes
    }
}

/// Something a table entry uses until its owner closes it.
///
/// Readers hold on to old tables, an idle connection for as long as it is idle. What is in a slot
/// goes when its owner says so, not when the last old table does.
pub(crate) struct Slot<T: ?Sized>(Mutex<Option<Arc<T>>>);

impl<T: ?Sized> Slot<T> {
    pub(crate) fn new(content: Arc<T>) -> Self {
        Self(Mutex::new(Some(content)))
    }

    fn lock(&self) -> MutexGuard<'_, Option<Arc<T>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The content; `None` once closed.
    pub(crate) fn get(&self) -> Option<Arc<T>> {
        self.lock().clone()
    }

    pub(crate) fn close(&self) {
        // Dropped outside the lock: the content may be anything.
        let content = self.lock().take();
        drop(content);
    }
}

impl<T> Slot<T> {
    /// Puts `new` where `old` is; false if that has been closed or replaced meanwhile.
    pub(crate) fn replace(&self, old: &T, new: Arc<T>) -> bool {
        self.swap(new, |present| std::ptr::eq(present, old))
    }

    /// Puts `new` in; false if the slot is closed.
    pub(crate) fn set(&self, new: Arc<T>) -> bool {
        self.swap(new, |_| true)
    }

    fn swap(&self, new: Arc<T>, wanted: impl FnOnce(&T) -> bool) -> bool {
        let mut content = self.lock();
        if !content.as_deref().is_some_and(wanted) {
            return false;
        }
        let old = content.replace(new);
        drop(content);
        // Outside the lock, as in `close`.
        drop(old);
        true
    }
}

impl<T: ?Sized> fmt::Debug for Slot<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = if self.lock().is_some() {
            "open"
        } else {
            "closed"
        };
        f.write_str(state)
    }
}
