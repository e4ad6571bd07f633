//! The sending half of a stream.

use std::future::Future;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};

use anyreach_quic::Connection;
use bytes::Bytes;
use noq::VarInt;
use pyo3::prelude::*;
use pyo3::pybacked::PyBackedBytes;
use pyo3::types::PyBytes;

use crate::bridge::Bridge;
use crate::buffers::{contiguous, copy_out};
use crate::errors::Failure;
use crate::runtime::{Deferred, PerProcess};
use crate::varint;
use crate::wake::{Operation, Slot, lock};

/// The sending half of a stream.
///
/// Dropped before `finish()` it is reset with code 0, so that a peer never takes a truncated
/// stream for a whole one.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct SendStream(PerProcess<Deferred<Inner>>);

struct Inner {
    id: u64,
    connection: Connection,
    stream: Mutex<noq::SendStream>,
    /// `finish` was called: dropping the stream then leaves the delivery to the engine.
    finished: AtomicBool,
    writable: Operation,
    stopped: Slot<Result<Option<VarInt>, noq::StoppedError>>,
}

#[pymethods]
impl SendStream {
    #[getter]
    fn id(&self) -> Result<u64, Failure> {
        Ok(self.0.get()?.id)
    }

    /// Hands `data[offset:]` to the engine, as much as it takes now; how many bytes that was.
    fn poll_write(
        &self,
        py: Python<'_>,
        data: &Bound<'_, PyAny>,
        offset: usize,
        bridge: &Bridge,
        token: u64,
    ) -> PyResult<Option<usize>> {
        let inner = self.0.get()?;
        let queue = bridge.queue()?;
        let data = outgoing(data, offset)?;
        let written = py.detach(|| {
            let mut stream = lock(&inner.stream);
            inner.writable.poll(queue, token, |cx| {
                let mut data = [data];
                // The engine keeps the waker of a blocked writer when the future is dropped.
                pin!(stream.write_many_chunks(&mut &mut data[..])).poll(cx)
            })
        });
        Ok(written
            .transpose()
            .map_err(|error| Failure::write(error, &inner.connection))?)
    }

    /// No more data will follow; what was written is still delivered.
    fn finish(&self, py: Python<'_>) -> Result<(), Failure> {
        let inner = self.0.get()?;
        py.detach(|| {
            let mut stream = lock(&inner.stream);
            inner.finished.store(true, Ordering::Relaxed);
            stream.finish()
        })
        .map_err(|_| Failure::StreamClosed("the stream was finished or reset before"))
    }

    /// Abandons the stream: what was not delivered yet may never be. Harmless after the end.
    fn reset(&self, py: Python<'_>, code: u64) -> Result<(), Failure> {
        let inner = self.0.get()?;
        let code = varint(code)?;
        // The only error says that the stream has ended, which is what is wanted.
        let _ = py.detach(|| lock(&inner.stream).reset(code));
        Ok(())
    }

    /// Data of streams with a higher priority is sent first; 0 at the start.
    fn set_priority(&self, py: Python<'_>, priority: i32) -> Result<(), Failure> {
        let inner = self.0.get()?;
        py.detach(|| lock(&inner.stream).set_priority(priority))
            .map_err(|_| Failure::StreamClosed("the stream has ended"))
    }

    /// The code with which the peer asked us to stop, -1 once it has everything up to the finish.
    fn poll_stopped(
        &self,
        py: Python<'_>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<i64>, Failure> {
        let inner = self.0.get()?;
        let queue = bridge.queue()?;
        let outcome = py.detach(|| {
            inner.stopped.poll(queue, token, || {
                let stopped = lock(&inner.stream).stopped();
                Box::pin(stopped)
            })
        })?;
        outcome
            .transpose()
            .map_err(|error| Failure::stopped(error, &inner.connection))
            // A code is a QUIC varint, below 2^62.
            .map(|outcome| outcome.map(|code| code.map_or(-1, |code| code.into_inner() as i64)))
    }
}

impl SendStream {
    pub(crate) fn new(connection: Connection, stream: noq::SendStream) -> Self {
        Self(PerProcess::deferred(Inner {
            id: VarInt::from(stream.id()).into_inner(),
            connection,
            stream: Mutex::new(stream),
            finished: AtomicBool::new(false),
            writable: Operation::new(),
            stopped: Slot::new(),
        }))
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if !*self.finished.get_mut() {
            // Fails for a stream that was reset, or whose connection is gone: fine.
            let stream = self
                .stream
                .get_mut()
                .unwrap_or_else(PoisonError::into_inner);
            let _ = stream.reset(VarInt::from_u32(0));
        }
    }
}

/// `data[offset:]` in the engine's currency: shared with Python where that is possible and pays.
fn outgoing(data: &Bound<'_, PyAny>, offset: usize) -> PyResult<Bytes> {
    let out_of_range = || Failure::Value(format!("offset {offset} is beyond the data"));
    if let Ok(bytes) = data.cast::<PyBytes>() {
        let slice = bytes.as_bytes().get(offset..).ok_or_else(out_of_range)?;
        if slice.len() < SHARE_FROM {
            return Ok(Bytes::copy_from_slice(slice));
        }
        let owner = PyBackedBytes::from(bytes.clone());
        return Ok(Bytes::from_owner(owner).slice(offset..));
    }
    // Mutable memory has to be copied, but no more of it than the engine can take at once.
    let buffer = contiguous(data)?;
    let length = buffer
        .len_bytes()
        .checked_sub(offset)
        .ok_or_else(out_of_range)?;
    Ok(copy_out(&buffer, offset, length.min(COPY_AT_MOST)))
}

/// Below this a copy is cheaper than sharing: an owner costs an allocation, two atomic counters
/// and a deferred release of the Python object.
const SHARE_FROM: usize = 4096;

/// What is copied and then not taken by the engine is copied again at the next poll: about as much
/// as the acknowledgements between two polls make room for.
const COPY_AT_MOST: usize = 64 * 1024;
