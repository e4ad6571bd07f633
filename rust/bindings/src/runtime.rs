//! The process-wide tokio runtime, and what a `fork()` means for everything that lives on it.
//!
//! Threads do not survive a fork. In the child the runtime is gone, and any lock one of its
//! threads held at that instant stays locked for ever. So every object handed to Python
//! remembers the process it was made in: used in another one it raises `ForkError`, dropped
//! there it is leaked instead of touched. The child may start anew: it gets its own runtime.

use std::mem::ManuallyDrop;
use std::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use std::thread::available_parallelism;

use tokio::runtime::{Builder, EnterGuard, Handle, Runtime};

use crate::errors::Failure;

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

impl<T> Drop for PerProcess<T> {
    fn drop(&mut self) {
        if self.is_ours() {
            // SAFETY: `value` is dropped here and nowhere else, and `self` is not used again.
            unsafe { ManuallyDrop::drop(&mut self.value) }
        }
    }
}

/// The runtime of this process, started by the first caller.
pub(crate) fn handle() -> Result<Handle, Failure> {
    Ok(started()?.handle().clone())
}

/// Makes the runtime current for this thread: futures of sockets and timers need it when polled.
pub(crate) fn enter() -> Result<EnterGuard<'static>, Failure> {
    Ok(started()?.enter())
}

/// Arranges for forks to be noticed. Called once, when the module is imported.
pub(crate) fn watch_forks() {
    #[cfg(unix)]
    {
        extern "C" fn in_child() {
            FORKS.fetch_add(1, Ordering::Relaxed);
            // The old runtime is leaked: its threads are gone and its locks may be held.
            RUNTIME.store(std::ptr::null_mut(), Ordering::Release);
        }
        // SAFETY: the handler only stores to atomics, which is allowed after a fork, and the
        // module that contains it is never unloaded. Failure means no memory at import time;
        // forks then go unnoticed, as they would without this call.
        unsafe { libc::pthread_atfork(None, None, Some(in_child)) };
    }
}

fn started() -> Result<&'static Runtime, Failure> {
    let current = RUNTIME.load(Ordering::Acquire);
    if !current.is_null() {
        // SAFETY: a non-null pointer comes from `Box::into_raw` below and is never freed.
        return Ok(unsafe { &*current });
    }
    // No lock: one held by another thread during a fork would be held in the child for ever.
    // Two threads may build a runtime at once; the loser's is shut down.
    let new = Box::into_raw(Box::new(build()?));
    match RUNTIME.compare_exchange(
        std::ptr::null_mut(),
        new,
        Ordering::AcqRel,
        Ordering::Acquire,
    ) {
        // SAFETY: `new` was just leaked and is now owned by `RUNTIME`, which never frees it.
        Ok(_) => Ok(unsafe { &*new }),
        Err(winner) => {
            // SAFETY: `new` was never published, so this is its only owner.
            unsafe { Box::from_raw(new) }.shutdown_background();
            // SAFETY: as above, a published runtime is never freed.
            Ok(unsafe { &*winner })
        }
    }
}

fn build() -> Result<Runtime, Failure> {
    let cores = available_parallelism().map_or(1, std::num::NonZero::get);
    Builder::new_multi_thread()
        .worker_threads(cores.min(MAX_WORKERS))
        .thread_name("anyreach-io")
        .enable_all()
        .build()
        .map_err(Failure::Runtime)
}

/// Counts the forks between the first process and this one.
static FORKS: AtomicU32 = AtomicU32::new(0);

static RUNTIME: AtomicPtr<Runtime> = AtomicPtr::new(std::ptr::null_mut());

/// One connection is driven by one task and a socket by another, so a node gains little from more
/// threads than this, while each costs a stack and cache misses when work is stolen.
const MAX_WORKERS: usize = 4;
