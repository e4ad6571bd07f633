//! A datagram that waits for room to be sent.

use bytes::Bytes;
use noq::SendDatagramError;
use pyo3::prelude::*;

use crate::bridge::Bridge;
use crate::errors::Failure;
use crate::runtime::{Deferred, PerProcess};
use crate::wake::Slot;

/// A datagram that waits for room. Dropping it before it was queued gives it up.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct DatagramSend(PerProcess<Deferred<Inner>>);

struct Inner {
    connection: anyreach_quic::Connection,
    sending: Slot<Result<(), SendDatagramError>>,
}

#[pymethods]
impl DatagramSend {
    /// True once it is queued; not to be polled again after that.
    fn poll(&self, py: Python<'_>, bridge: &Bridge, token: u64) -> Result<Option<bool>, Failure> {
        let inner = self.0.get()?;
        let queue = bridge.queue()?;
        let sent = py.detach(|| {
            inner
                .sending
                .poll(queue, token, || Box::pin(std::future::ready(Ok(()))))
        })?;
        match sent {
            None => Ok(None),
            Some(Ok(())) => Ok(Some(true)),
            Some(Err(error)) => Err(Failure::datagram(error, &inner.connection)),
        }
    }
}

impl DatagramSend {
    pub(crate) fn new(connection: anyreach_quic::Connection, data: Bytes) -> Self {
        let engine = connection.engine().clone();
        let sending = async move { engine.send_datagram_wait(data).await };
        Self(PerProcess::deferred(Inner {
            connection,
            sending: Slot::with(Box::pin(sending)),
        }))
    }
}
