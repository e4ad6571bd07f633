//! The receiving half of a stream.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};

use anyreach_quic::Connection;
use bytes::Bytes;
use noq::VarInt;
use pyo3::buffer::PyBuffer;
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::bridge::{Bridge, Queue};
use crate::errors::Failure;
use crate::runtime::PerProcess;
use crate::varint;
use crate::wake::{Operation, lock};

/// The receiving half of a stream. Dropped before its end, it asks the peer to stop (code 0).
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct RecvStream(PerProcess<Inner>);

struct Inner {
    id: u64,
    connection: Connection,
    reader: Mutex<Reader>,
    readable: Operation,
}

/// What a read changes.
struct Reader {
    stream: noq::RecvStream,
    /// Taken from the engine, not yet by the application: the engine hands out whole segments.
    /// At most one batch, so the flow-control credit it stands for is bounded.
    segments: VecDeque<Bytes>,
    /// `stop` was called; the engine would report a clean end from then on.
    stopped: bool,
}

#[pymethods]
impl RecvStream {
    #[getter]
    fn id(&self) -> Result<u64, Failure> {
        Ok(self.0.get()?.id)
    }

    /// At least one and at most `max` bytes, as many as are there; empty at the end of the stream.
    fn poll_read<'py>(
        &self,
        py: Python<'py>,
        max: usize,
        bridge: &Bridge,
        token: u64,
    ) -> PyResult<Option<Bound<'py, PyBytes>>> {
        let Some(segments) = self.poll(py, max, bridge, token)? else {
            return Ok(None);
        };
        let length = segments.iter().map(Bytes::len).sum();
        PyBytes::new_with(py, length, |mut buffer| {
            for segment in &segments {
                let (head, tail) = buffer.split_at_mut(segment.len());
                head.copy_from_slice(segment);
                buffer = tail;
            }
            Ok(())
        })
        .map(Some)
    }

    /// Fills `buffer` with what is there; how many bytes, 0 at the end of the stream.
    fn poll_readinto(
        &self,
        py: Python<'_>,
        buffer: PyBuffer<u8>,
        bridge: &Bridge,
        token: u64,
    ) -> PyResult<Option<usize>> {
        if buffer.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        let Some(target) = buffer.as_slice_ptr() else {
            return Err(PyBufferError::new_err("the buffer is not contiguous"));
        };
        if target.is_empty() {
            return Err(PyValueError::new_err("the buffer is empty"));
        }
        let Some(segments) = self.poll(py, target.len(), bridge, token)? else {
            return Ok(None);
        };
        let mut filled = 0;
        for segment in &segments {
            // SAFETY: together the segments are no longer than `target`, which `buffer` keeps
            // exported, hence allocated and of constant size. No reference to it is formed, so
            // Python code that holds the same memory may do with it what it likes.
            unsafe {
                std::ptr::copy_nonoverlapping(
                    segment.as_ptr(),
                    target.cast::<u8>().as_ptr().add(filled),
                    segment.len(),
                );
            }
            filled += segment.len();
        }
        Ok(Some(filled))
    }

    /// Asks the peer to stop sending and throws away what was not read.
    fn stop(&self, py: Python<'_>, code: u64) -> Result<(), Failure> {
        let inner = self.0.get()?;
        let code = varint(code)?;
        py.detach(|| {
            let mut reader = lock(&inner.reader);
            reader.stopped = true;
            reader.segments.clear();
            // The end of the stream may have been read already: then there is nothing to stop.
            let _ = reader.stream.stop(code);
        });
        Ok(())
    }
}

impl RecvStream {
    pub(crate) fn new(connection: Connection, stream: noq::RecvStream) -> Self {
        Self(PerProcess::new(Inner {
            id: VarInt::from(stream.id()).into_inner(),
            connection,
            reader: Mutex::new(Reader {
                stream,
                segments: VecDeque::new(),
                stopped: false,
            }),
            readable: Operation::new(),
        }))
    }

    /// Segments of `max` bytes in total, fewer if there is not more; none at the end.
    fn poll(
        &self,
        py: Python<'_>,
        max: usize,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<Vec<Bytes>>, Failure> {
        let inner = self.0.get()?;
        let queue = bridge.queue()?;
        if max == 0 {
            return Err(Failure::Value("cannot read 0 bytes".to_owned()));
        }
        py.detach(|| inner.poll(max, queue, token))
    }
}

impl Inner {
    fn poll(
        &self,
        max: usize,
        queue: &Arc<Queue>,
        token: u64,
    ) -> Result<Option<Vec<Bytes>>, Failure> {
        let mut reader = lock(&self.reader);
        if reader.stopped {
            return Err(Failure::StreamClosed("the stream was stopped by this side"));
        }
        self.readable
            .poll(queue, token, |cx| reader.gather(cx, max))
            .transpose()
            .map_err(|error| Failure::read(error, &self.connection))
    }
}

impl Reader {
    fn gather(
        &mut self,
        cx: &mut Context<'_>,
        max: usize,
    ) -> Poll<Result<Vec<Bytes>, noq::ReadError>> {
        let mut taken = Vec::new();
        let mut missing = max;
        loop {
            while missing > 0
                && let Some(segment) = self.segments.front_mut()
            {
                if segment.len() > missing {
                    taken.push(segment.split_to(missing));
                    missing = 0;
                } else {
                    missing -= segment.len();
                    taken.extend(self.segments.pop_front());
                }
            }
            if missing == 0 {
                return Poll::Ready(Ok(taken));
            }
            match self.refill(cx) {
                Poll::Ready(Ok(true)) => {}
                // The end, an error or a pause after some bytes: bytes first. The engine reports
                // the end and errors again at the next poll.
                _ if !taken.is_empty() => return Poll::Ready(Ok(taken)),
                Poll::Ready(Ok(false)) => return Poll::Ready(Ok(taken)),
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
                Poll::Pending => return Poll::Pending,
            }
        }
    }

    /// Takes a batch of segments from the engine; false at the end of the stream.
    fn refill(&mut self, cx: &mut Context<'_>) -> Poll<Result<bool, noq::ReadError>> {
        let mut batch = [const { Bytes::new() }; BATCH];
        // The engine keeps the waker of a blocked reader when the future is dropped.
        let read = std::pin::pin!(self.stream.read_many_chunks(&mut batch)).poll(cx)?;
        read.map(|count| {
            let count = count.unwrap_or(0);
            self.segments.extend(batch.into_iter().take(count));
            Ok(count > 0)
        })
    }
}

/// Segments taken per lock of the engine. One is a packet's payload, so this is about 40 KiB:
/// larger batches no longer pay, smaller ones show up as lock traffic in bulk transfers.
const BATCH: usize = 32;
