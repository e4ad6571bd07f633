//! From tokio to one asyncio event loop: a queue of tokens and a bell.
//!
//! A token stands for one awaiter in Python. Whatever thread finds that an operation can make
//! progress appends the token and rings; the loop thread takes all tokens at once and polls the
//! operations again. Nothing here, and nothing that calls in here, needs the GIL, so no runtime
//! thread ever waits for Python.

use std::collections::HashSet;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use crate::bell::Bell;
use crate::errors::Failure;
use crate::runtime::PerProcess;

/// Queue of wake-up tokens for one event loop; a descriptor tells when it is not empty.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Bridge(PerProcess<Arc<Queue>>);

#[pymethods]
impl Bridge {
    #[new]
    fn new() -> Result<Self, Failure> {
        Ok(Self(PerProcess::new(Arc::new(Queue {
            state: Mutex::default(),
            filled: Condvar::new(),
            bell: Bell::new().map_err(Failure::Runtime)?,
        }))))
    }

    /// The descriptor to watch for reading, -1 where the platform has none: use `wait()` there.
    fn fileno(&self) -> Result<i32, Failure> {
        Ok(self.0.get()?.bell.fileno())
    }

    /// All tokens that fired since the last call, oldest first.
    fn take(&self) -> Result<Vec<u64>, Failure> {
        Ok(self.0.get()?.take())
    }

    /// Waits until a token fires, `timeout` seconds passed or the bridge is closed; whether there
    /// is anything to take. Releases the GIL.
    fn wait(&self, py: Python<'_>, timeout: f64) -> Result<bool, Failure> {
        let queue = self.0.get()?;
        let timeout = Duration::try_from_secs_f64(timeout).unwrap_or(Duration::ZERO);
        Ok(py.detach(|| queue.wait(timeout)))
    }

    /// Nobody awaits `token` any more.
    fn forget(&self, token: u64) -> Result<(), Failure> {
        self.0.get()?.lock().awaited.remove(&token);
        Ok(())
    }

    /// Forgets every token; later ones are dropped. For a loop that has ended.
    fn close(&self) -> Result<(), Failure> {
        let queue = self.0.get()?;
        let mut state = queue.lock();
        *state = State {
            closed: true,
            waiting: state.waiting,
            ..State::default()
        };
        drop(state);
        queue.filled.notify_all();
        Ok(())
    }
}

impl Bridge {
    /// The queue behind it, for operations that want to be told.
    #[inline]
    pub(crate) fn queue(&self) -> Result<&Arc<Queue>, Failure> {
        self.0.get()
    }
}

/// The shared half of a [`Bridge`].
pub(crate) struct Queue {
    state: Mutex<State>,
    /// For `wait()`.
    filled: Condvar,
    bell: Bell,
}

#[derive(Default)]
struct State {
    /// Tokens somebody awaits. Others are not worth waking the loop for.
    awaited: HashSet<u64>,
    /// Tokens that fired and were not taken yet.
    fired: Vec<u64>,
    /// Threads in [`Queue::wait`]; waking nobody would still be a system call.
    waiting: usize,
    closed: bool,
}

impl Queue {
    /// From now on `token` is awaited: [`fire`](Self::fire) will deliver it, once.
    pub(crate) fn expect(&self, token: u64) {
        let mut state = self.lock();
        if !state.closed {
            state.awaited.insert(token);
        }
    }

    /// Delivers `token` if it is still awaited.
    pub(crate) fn fire(&self, token: u64) {
        let mut state = self.lock();
        if !state.awaited.remove(&token) {
            return;
        }
        let was_empty = state.fired.is_empty();
        state.fired.push(token);
        let waiting = state.waiting > 0;
        drop(state);
        // Whoever filled the empty queue rings; the others' tokens travel along.
        if was_empty {
            self.bell.ring();
            if waiting {
                self.filled.notify_one();
            }
        }
    }

    /// Whether [`fire`](Self::fire) would still deliver `token`.
    pub(crate) fn awaits(&self, token: u64) -> bool {
        self.lock().awaited.contains(&token)
    }

    fn take(&self) -> Vec<u64> {
        let mut state = self.lock();
        // Before the tokens: a bell that rings in between then costs one empty round, where the
        // other order could lose it.
        self.bell.silence();
        std::mem::take(&mut state.fired)
    }

    fn wait(&self, timeout: Duration) -> bool {
        let mut state = self.lock();
        state.waiting += 1;
        let (mut state, _) = self
            .filled
            .wait_timeout_while(state, timeout, |state| {
                state.fired.is_empty() && !state.closed
            })
            .unwrap_or_else(PoisonError::into_inner);
        state.waiting -= 1;
        !state.fired.is_empty()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Each critical section leaves the state consistent at every point it could panic at.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
