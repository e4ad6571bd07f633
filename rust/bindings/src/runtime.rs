//! The process-wide tokio runtime, and what a `fork()` means for everything that lives on it.
//!
//! Threads do not survive a fork. In the child the runtime is gone, and any lock one of its
//! threads held at that instant stays locked for ever. So every object handed to Python
//! remembers the process it was made in: used in another one it raises `ForkError`, dropped
//! there it is leaked instead of touched. Sockets and bells are closed in the child at once, so
//! that a port is free when the parent closes it. The child may start anew: it gets its own runtime.

use std::any::Any;
use std::mem::ManuallyDrop;
use std::ops::Deref;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Mutex;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::thread::available_parallelism;

use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};

use crate::errors::Failure;
use crate::wake::lock;

/// A value that belongs to the process (in the sense of `fork()`) that made it.
pub(crate) struct PerProcess<T> {
    forks: u32,
    value: ManuallyDrop<T>,
}

impl<T> PerProcess<T> {
    pub(crate) fn new(value: T) -> Self {
        Self {
            forks: FORKS.load(Ordering::Relaxed),
            value: ManuallyDrop::new(value),
        }
    }

    /// The value, or [`Failure::Forked`] in a child of the process that made it.
    #[inline]
    pub(crate) fn get(&self) -> Result<&T, Failure> {
        if self.is_ours() {
            Ok(&self.value)
        } else {
            Err(Failure::Forked)
        }
    }

    #[inline]
    fn is_ours(&self) -> bool {
        self.forks == FORKS.load(Ordering::Relaxed)
    }
}

impl<T: Send + 'static> PerProcess<Deferred<T>> {
    pub(crate) fn deferred(value: T) -> Self {
        Self::new(Deferred::new(value))
    }
}

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: `value` is dropped here and nowhere else, and `self` is not used again.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

/// A value that is dropped by the runtime. Python drops its objects while it holds the GIL, and
/// what is in here takes locks of the engine then.
pub(crate) struct Deferred<T: Send + 'static>(ManuallyDrop<T>);

impl<T: Send + 'static> Deferred<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(ManuallyDrop::new(value))
    }
}

impl<T: Send + 'static> Deref for Deferred<T> {
    type Target = T;

    #[inline]
    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Send + 'static> Drop for Deferred<T> {
    fn drop(&mut self) {
        // SAFETY: `self` is not used again.
        let value = unsafe { ManuallyDrop::take(&mut self.0) };
        // A process without a runtime has nothing to wait for.
        if let Some(process) = current() {
            process.discard(Box::new(value));
        }
    }
}

/// The runtime, and what it is to drop.
struct Process {
    runtime: Runtime,
    discarded: Mutex<Discarded>,
}

#[derive(Default)]
struct Discarded {
    values: Vec<Box<dyn Any + Send>>,
    /// A task is at it. Only ever one, so that values are dropped in the order they came in.
    dropping: bool,
}

impl Process {
    fn discard(&'static self, value: Box<dyn Any + Send>) {
        let mut discarded = lock(&self.discarded);
        discarded.values.push(value);
        if !std::mem::replace(&mut discarded.dropping, true) {
            self.runtime.spawn(self.drop_discarded());
        }
    }

    async fn drop_discarded(&'static self) {
        loop {
            let mut batch = {
                let mut discarded = lock(&self.discarded);
                if discarded.values.is_empty() {
                    discarded.dropping = false;
                    return;
                }
                std::mem::take(&mut discarded.values).into_iter()
            };
            while batch.len() > 0 {
                // A thousand streams collected at once must not hold up a thread that moves data.
                for value in batch.by_ref().take(DROPS_IN_A_ROW) {
                    // One that panics must not keep all others from being dropped. The panic was
                    // reported by the hook.
                    let _ = catch_unwind(AssertUnwindSafe(|| drop(value)));
                }
                tokio::task::yield_now().await;
            }
        }
    }
}

/// Each takes a lock of the engine and may make a packet: well below a millisecond together.
const DROPS_IN_A_ROW: usize = 64;

/// The runtime of this process, started by the first caller.
pub(crate) fn handle() -> Result<Handle, Failure> {
    Ok(started()?.runtime.handle().clone())
}

/// Makes the runtime current for this thread: futures of sockets and timers need it when polled.
pub(crate) fn enter() -> Result<EnterGuard<'static>, Failure> {
    Ok(started()?.runtime.enter())
}

/// Arranges for forks to be noticed. Called once, when the module is imported.
pub(crate) fn watch_forks() {
    #[cfg(unix)]
    {
        extern "C" fn in_child() {
            FORKS.fetch_add(1, Ordering::Relaxed);
            // The old runtime is leaked: its threads are gone and its locks may be held.
            PROCESS.store(std::ptr::null_mut(), Ordering::Release);
            anyreach_net::inherit::close_inherited();
        }
        // SAFETY: the handler only stores to atomics and closes descriptors, which is allowed after
        // a fork, and the module that contains it is never unloaded. Failure means no memory at import time;
        // forks then go unnoticed, as they would without this call.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
}

fn current() -> Option<&'static Process> {
    // SAFETY: a non-null pointer comes from `Box::into_raw` below and is never freed.
    unsafe { PROCESS.load(Ordering::Acquire).as_ref() }
}

fn started() -> Result<&'static Process, Failure> {
    if let Some(process) = current() {
        return Ok(process);
    }
    // No lock: one held by another thread during a fork would be held in the child for ever.
    // Two threads may build a runtime at once; the loser's is shut down.
    let new = Box::into_raw(Box::new(Process {
        runtime: build()?,
        discarded: Mutex::default(),
    }));
    match PROCESS.compare_exchange(
        std::ptr::null_mut(),
        new,
        Ordering::AcqRel,
        Ordering::Acquire,
    ) {
        // SAFETY: `new` was just leaked and is now owned by `PROCESS`, which never frees it.
        Ok(_) => Ok(unsafe { &*new }),
        Err(winner) => {
            // SAFETY: `new` was never published, so this is its only owner.
            let loser = unsafe { Box::from_raw(new) };
            loser.runtime.shutdown_background();
            // SAFETY: as above, what was published is never freed.
            Ok(unsafe { &*winner })
        }
    }
}

fn build() -> Result<Runtime, Failure> {
    let cores = available_parallelism().map_or(1, std::num::NonZero::get);
    Builder::new_multi_thread()
        // One core is left for Python's loop.
        .worker_threads(cores.saturating_sub(1).clamp(1, MAX_WORKERS))
        .thread_name("anyreach-io")
        .enable_all()
        .build()
        .map_err(Failure::Runtime)
}

/// Counts the forks between the first process and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

static PROCESS: AtomicPtr<Process> = AtomicPtr::new(std::ptr::null_mut());

/// One connection is driven by one task and a socket by another, so a node gains little from more
/// threads than this, while each costs a stack and cache misses when work is stolen.
const MAX_WORKERS: usize = 4;
