//! What the packet keys of a connection share with whoever watches over it: they wake it when
//! packets are sealed or opened, which costs next to nothing while nobody sleeps.

use std::sync::atomic::{AtomicBool, Ordering};

use tokio::sync::Notify;

use super::{hushed::Hushed, last_words::LastWords, responses::Responses, statuses::Statuses};

#[derive(Debug, Default)]
pub(crate) struct Activity {
    asleep: AtomicBool,
    stirred: Notify,
    /// Paths about which nothing is acknowledged any more.
    pub(crate) hushed: Hushed,
    /// What this side has closed the connection with.
    pub(crate) last_words: LastWords,
    /// Responses to challenges the peer has paid for.
    pub(super) responses: Responses,
    /// What the peer wants of its paths.
    pub(crate) statuses: Statuses,
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
