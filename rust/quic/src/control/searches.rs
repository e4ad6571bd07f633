//! Questions put to a peer and not answered yet.

use std::{
    collections::HashMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyreach_wire::control::{Find, Found, PeerIdBytes};
use tokio::sync::{Semaphore, oneshot};

use super::outbox::{MAX_ANSWERS, Outbox};

/// Questions at once to one peer; further ones wait. As many as a peer like us keeps answers for.
pub(crate) const MAX_SEARCHES: usize = MAX_ANSWERS;

#[derive(Debug)]
pub(crate) struct Searches {
    state: Mutex<State>,
    places: Semaphore,
}

#[derive(Debug, Default)]
struct State {
    last_request: u64,
    /// By request. Dropping a sender tells its asker that there will be no answer.
    waiting: HashMap<u64, oneshot::Sender<Found>>,
    closed: bool,
}

impl Default for Searches {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            places: Semaphore::new(MAX_SEARCHES),
        }
    }
}

impl Searches {
    fn lock(&self) -> MutexGuard<'_, State> {
        // The table is never left half changed.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks for `peer` and waits for the answer; `None` if there will be none. Dropping the future
    /// takes the question back.
    pub(crate) async fn ask(&self, outbox: &Outbox, peer: PeerIdBytes) -> Option<Found> {
        // Closed together with the table.
        let _place = self.places.acquire().await.ok()?;
        let (sender, receiver) = oneshot::channel();
        let request = {
            let mut state = self.lock();
            if state.closed {
                return None;
            }
            state.last_request += 1;
            let request = state.last_request;
            state.waiting.insert(request, sender);
            request
        };
        let _question = Question {
            searches: self,
            outbox,
            request,
        };
        outbox.ask(Find { request, peer });
        receiver.await.ok()
    }

    /// The peer answered. Answers nobody waits for are of no interest.
    pub(crate) fn answered(&self, found: Found) {
        let asker = self.lock().waiting.remove(&found.request);
        if let Some(asker) = asker {
            let _ = asker.send(found);
        }
    }

    /// There will be no more answers.
    pub(crate) fn close(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        self.places.close();
    }
}

/// Takes a question back when nobody waits for its answer any more.
struct Question<'a> {
    searches: &'a Searches,
    outbox: &'a Outbox,
    request: u64,
}

impl Drop for Question<'_> {
    fn drop(&mut self) {
        self.searches.lock().waiting.remove(&self.request);
        self.outbox.withdraw(self.request);
    }
}
