//! Connections made by peers, until the application takes them.
//!
//! Holds those that live and nothing else: a peer that connects and closes again leaves nothing
//! behind, so the endpoint's limit of connections is the limit here.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

use crate::{Connection, registry::ConnectionKey};

#[derive(Debug, Default)]
pub(crate) struct Arrivals {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    waiting: VecDeque<Connection>,
    closed: bool,
}

impl Arrivals {
    fn lock(&self) -> MutexGuard<'_, State> {
        // Nothing panics while holding the lock; if it did, the entries are still good.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn push(&self, connection: Connection) {
        {
            let mut state = self.lock();
            if state.closed {
                return;
            }
            state.waiting.push_back(connection);
        }
        self.changed.notify_waiters();
    }

    /// The connection has ended.
    pub(crate) fn forget(&self, key: ConnectionKey) {
        let forgotten = {
            let mut state = self.lock();
            let at = state.waiting.iter().position(|waiting| waiting.id() == key);
            at.and_then(|at| state.waiting.remove(at))
        };
        // Outside the lock: it may be the last handle.
        drop(forgotten);
    }

    /// The oldest; `None` once closed.
    pub(crate) async fn pop(&self) -> Option<Connection> {
        loop {
            // From here on no wake-up is missed, although it is awaited only below.
            let changed = self.changed.notified();
            {
                let mut state = self.lock();
                if state.closed {
                    return None;
                }
                if let Some(connection) = state.waiting.pop_front() {
                    return Some(connection);
                }
            }
            changed.await;
        }
    }

    pub(crate) fn close(&self) {
        let waiting = {
            let mut state = self.lock();
            state.closed = true;
            std::mem::take(&mut state.waiting)
        };
        drop(waiting);
        self.changed.notify_waiters();
    }
}
