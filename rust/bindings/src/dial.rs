//! Attempts to reach a peer at one address.
//!
//! An attempt may make its connection at the very moment it is given up. So the connection stays
//! the attempt's, which closes it with itself, until somebody keeps it.

use std::sync::{Arc, Mutex};

use anyreach_quic::{DialError, DialOutcome};
use pyo3::prelude::*;
use tokio::runtime::Handle;
use tokio::task::{AbortHandle, JoinHandle};

use crate::bridge::Bridge;
use crate::connection::{Connection, Connections};
use crate::errors::Failure;
use crate::runtime::{Deferred, PerProcess};
use crate::wake::{Slot, lock};

/// One attempt in progress. Dropping or cancelling it ends the attempt, and closes the connection
/// it has made unless that was kept.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Dial(PerProcess<Deferred<Attempt>>);

struct Attempt {
    task: AbortHandle,
    outcome: Slot<Outcome>,
    connections: Arc<Connections>,
    made: Arc<Made>,
}

type Outcome = Result<DialOutcome, DialError>;

/// The connection an attempt has made, from the moment it exists.
#[derive(Default)]
struct Made(Mutex<MadeState>);

#[derive(Default)]
struct MadeState {
    given_up: bool,
    connection: Option<anyreach_quic::Connection>,
}

impl Made {
    /// The attempt has an outcome. Hands the connection on, unless nobody wants it any more.
    fn completed(&self, outcome: DialOutcome) -> Outcome {
        let mut state = lock(&self.0);
        if outcome.made_here {
            if state.given_up {
                outcome.connection.close_unclaimed();
                return Err(given_up());
            }
            state.connection = Some(outcome.connection.clone());
        }
        Ok(outcome)
    }

    fn keep(&self) {
        if let Some(connection) = lock(&self.0).connection.take() {
            connection.claim();
        }
    }

    fn give_up(&self) {
        let mut state = lock(&self.0);
        state.given_up = true;
        if let Some(connection) = state.connection.take() {
            connection.close_unclaimed();
        }
    }
}

#[pymethods]
impl Dial {
    /// The connection, once the handshake proved the peer. It is still the attempt's: see `keep`.
    fn poll(
        &self,
        py: Python<'_>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<Connection>, Failure> {
        let attempt = self.0.get()?;
        let queue = bridge.queue()?;
        let outcome = py.detach(|| {
            attempt.outcome.poll(queue, token, || {
                Box::pin(std::future::ready(Err(given_up())))
            })
        })?;
        let Some(outcome) = outcome.transpose().map_err(Failure::Dial)? else {
            return Ok(None);
        };
        if !outcome.made_here {
            // Another attempt made it, and may be given up now that this one has it.
            outcome.connection.claim();
        }
        Ok(Some(attempt.connections.wrap(outcome.connection)))
    }

    /// From now on the connection that `poll` returned outlives the attempt.
    fn keep(&self, py: Python<'_>) -> Result<(), Failure> {
        let attempt = self.0.get()?;
        py.detach(|| attempt.made.keep());
        Ok(())
    }

    /// Gives the attempt up; `poll` then fails with the reason "cancelled", and the connection it
    /// has made is closed unless it was kept, or given out by the endpoint.
    fn cancel(&self, py: Python<'_>) -> Result<(), Failure> {
        let attempt = self.0.get()?;
        py.detach(|| attempt.give_up());
        Ok(())
    }
}

impl Dial {
    pub(crate) fn new(
        runtime: &Handle,
        connections: Arc<Connections>,
        dial: impl Future<Output = Result<DialOutcome, DialError>> + Send + 'static,
    ) -> Self {
        let made = Arc::new(Made::default());
        let task: JoinHandle<Outcome> = runtime.spawn({
            let made = made.clone();
            async move { made.completed(dial.await?) }
        });
        Self(PerProcess::deferred(Attempt {
            task: task.abort_handle(),
            outcome: Slot::with(Box::pin(async move {
                match task.await {
                    Ok(outcome) => outcome,
                    Err(error) if error.is_cancelled() => Err(given_up()),
                    Err(error) => Err(DialError {
                        reason: "internal",
                        detail: error.to_string(),
                        actual: None,
                    }),
                }
            })),
            connections,
            made,
        }))
    }
}

impl Attempt {
    fn give_up(&self) {
        self.task.abort();
        self.made.give_up();
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.give_up();
    }
}

fn given_up() -> DialError {
    DialError {
        reason: "cancelled",
        detail: "the attempt was given up".to_owned(),
        actual: None,
    }
}
