//! Attempts to open one more path of a connection.

use anyreach_quic::DialError;
use pyo3::prelude::*;
use tokio::runtime::Handle;
use tokio::task::AbortHandle;

use crate::bridge::Bridge;
use crate::errors::Failure;
use crate::runtime::{Deferred, PerProcess};
use crate::wake::Slot;

/// A path in the making. Dropping it ends the attempt, not the path it has made.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct PathAttempt(PerProcess<Deferred<Attempt>>);

struct Attempt {
    task: AbortHandle,
    outcome: Slot<Result<u32, DialError>>,
}

#[pymethods]
impl PathAttempt {
    /// The number of the path, once it is validated.
    fn poll(&self, py: Python<'_>, bridge: &Bridge, token: u64) -> Result<Option<u32>, Failure> {
        let attempt = self.0.get()?;
        let queue = bridge.queue()?;
        let outcome = py.detach(|| {
            attempt.outcome.poll(queue, token, || {
                Box::pin(std::future::ready(Err(given_up())))
            })
        })?;
        outcome.transpose().map_err(Failure::Dial)
    }
}

impl PathAttempt {
    pub(crate) fn new(
        runtime: &Handle,
        opening: impl Future<Output = Result<u32, DialError>> + Send + 'static,
    ) -> Self {
        // A task of its own, so that it makes progress whether it is polled or not.
        let task = runtime.spawn(opening);
        let abort = task.abort_handle();
        let outcome = async move { task.await.unwrap_or_else(|_| Err(given_up())) };
        Self(PerProcess::deferred(Attempt {
            task: abort,
            outcome: Slot::with(Box::pin(outcome)),
        }))
    }
}

impl Drop for Attempt {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn given_up() -> DialError {
    DialError {
        reason: "cancelled",
        detail: "the attempt was given up".to_owned(),
        actual: None,
    }
}
