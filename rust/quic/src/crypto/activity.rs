//! Wakes whoever watches a connection when packets are sealed or opened, and costs next to nothing
//! while nobody sleeps.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

#[derive(Debug, Default)]
pub(crate) struct Activity {
    asleep: AtomicBool,
    stirred: Notify,
}

impl Activity {
    /// A packet goes out or came in.
    #[inline]
    pub(super) fn stir(&self) {
        if self.asleep.load(Ordering::Relaxed) && self.asleep.swap(false, Ordering::AcqRel) {
            self.stirred.notify_one();
        }
    }

    /// Waits for the next packet; for one watcher. It may return without one.
    pub(crate) async fn stirred(&self) {
        self.asleep.store(true, Ordering::Release);
        self.stirred.notified().await;
    }
}
