//! The receiving half of a stream.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, ready};

use anyreach_quic::Connection;
use bytes::Bytes;
use noq::{ReadError, VarInt};
use pyo3::exceptions::{PyBufferError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::bridge::{Bridge, Queue};
use crate::buffers::contiguous;
use crate::errors::Failure;
use crate::runtime::{Deferred, PerProcess};
use crate::varint;
use crate::wake::{Operation, lock};

/// The receiving half of a stream. Dropped before its end, it asks the peer to stop (code 0).
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct RecvStream(PerProcess<Deferred<Inner>>);

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
    /// How the stream ended. The engine reports an error once, and a clean end from then on.
    end: Option<End>,
}

/// How a stream ended, as far as its reader is concerned.
#[derive(Clone)]
enum End {
    /// The peer finished it and everything was read.
    Finished,
    /// This side stopped it.
    Stopped,
    /// The peer reset it, or the connection was lost.
    Failed(ReadError),
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
        // Zeroed before it is filled: without, bulk transfers are not measurably faster.
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
        buffer: &Bound<'_, PyAny>,
        bridge: &Bridge,
        token: u64,
    ) -> PyResult<Option<usize>> {
        let buffer = contiguous(buffer)?;
        if buffer.readonly() {
            return Err(PyBufferError::new_err("the buffer is read-only"));
        }
        if buffer.len_bytes() == 0 {
            return Err(PyValueError::new_err("the buffer is empty"));
        }
        let Some(segments) = self.poll(py, buffer.len_bytes(), bridge, token)? else {
            return Ok(None);
        };
        let target = buffer.buf_ptr().cast::<u8>();
        let mut filled = 0;
        for segment in &segments {
            // SAFETY: together the segments are no longer than the memory at `target`, which
            // `buffer` keeps exported, hence allocated and of constant size. No reference to it is
            // formed, so Python code that holds the same memory may do with it what it likes.
            unsafe {
                std::ptr::copy_nonoverlapping(segment.as_ptr(), target.add(filled), segment.len());
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
            reader.end = Some(End::Stopped);
            reader.segments.clear();
            // The end of the stream may have been read already: then there is nothing to stop.
            let _ = reader.stream.stop(code);
        });
        Ok(())
    }
}

impl RecvStream {
    pub(crate) fn new(connection: Connection, stream: noq::RecvStream) -> Self {
        Self(PerProcess::deferred(Inner {
            id: VarInt::from(stream.id()).into_inner(),
            connection,
            reader: Mutex::new(Reader {
                stream,
                segments: VecDeque::new(),
                end: None,
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
        self.readable
            .poll(queue, token, |cx| reader.gather(cx, max))
            .map(|end| match end {
                Ok(segments) => Ok(segments),
                Err(End::Finished) => Ok(Vec::new()),
                Err(End::Stopped) => {
                    Err(Failure::StreamClosed("the stream was stopped by this side"))
                }
                Err(End::Failed(error)) => Err(Failure::read(error, &self.connection)),
            })
            .transpose()
    }
}

impl Reader {
    /// Up to `max` bytes, at least one; else how the stream ended.
    fn gather(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Result<Vec<Bytes>, End>> {
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
            if self.end.is_none() {
                let refilled = match missing {
                    BULK.. => self.refill::<BULK_BATCH>(cx),
                    _ => self.refill::<BATCH>(cx),
                };
                if refilled.is_ready() {
                    continue;
                }
            }
            // Bytes come before the end.
            return match &self.end {
                _ if !taken.is_empty() => Poll::Ready(Ok(taken)),
                Some(end) => Poll::Ready(Err(end.clone())),
                None => Poll::Pending,
            };
        }
    }

    /// Takes a batch of segments, or the end, from the engine.
    fn refill<const N: usize>(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut batch = [const { Bytes::new() }; N];
        let outcome = {
            // The engine keeps the waker of a blocked reader when the future is dropped.
            let read = pin!(self.stream.read_many_chunks(&mut batch));
            ready!(read.poll(cx))
        };
        match outcome {
            Ok(Some(count)) => self.segments.extend(batch.into_iter().take(count)),
            Ok(None) => self.end = Some(End::Finished),
            Err(error) => self.end = Some(End::Failed(error)),
        }
        Poll::Ready(())
    }
}

/// Segments taken per lock of the engine. One is a packet's payload, so this is about 10 KiB.
const BATCH: usize = 8;

/// The same for a read of at least [`BULK`] bytes, about 256 KiB. Whoever drives the connection
/// wants the same lock, so a bulk transfer goes faster the less often it is taken.
const BULK_BATCH: usize = 192;

/// Bytes still missing from which a read is a bulk read.
const BULK: usize = 16 * 1024;
