//! An established connection to a peer: streams, datagrams, paths, its end.

use std::collections::{HashMap, VecDeque};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::task::Poll;

use anyreach_quic::CloseReason;
use bytes::Bytes;
use noq::ConnectionError;
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};

use crate::bridge::{Bridge, Queue};
use crate::buffers::{contiguous, copy_out};
use crate::datagram::DatagramSend;
use crate::errors::Failure;
use crate::find::{Find, PyReach, reach_to_python};
use crate::path::PathInfo;
use crate::recv::RecvStream;
use crate::runtime::{Deferred, PerProcess};
use crate::send::SendStream;
use crate::wake::{Operation, Slot, lock};

/// An established connection to a peer. Several of these objects may stand for one connection;
/// `id` tells.
#[pyclass(frozen, module = "anyreach._core")]
pub(crate) struct Connection(PerProcess<Arc<Deferred<Inner>>>);

/// What all Python objects of one connection share.
pub(crate) struct Inner {
    id: u64,
    connection: anyreach_quic::Connection,
    /// `[uni, bidi]`
    opening: [Slot<Result<Opened, CloseReason>>; 2],
    /// `[uni, bidi]`
    accepting: [Slot<Result<Accepted, CloseReason>>; 2],
    datagrams: Mutex<VecDeque<Bytes>>,
    receiving: Slot<Result<Vec<Bytes>, ConnectionError>>,
    closing: Slot<CloseReason>,
    answering: Slot<bool>,
    path_change: Mutex<PathChange>,
    path_changed: Operation,
}

/// The latest change of the connection's paths that the endpoint's events told of.
#[derive(Default)]
struct PathChange {
    /// How many there were.
    number: u64,
    reason: &'static str,
}

type Opened = (noq::SendStream, Option<noq::RecvStream>);

type Accepted = (Option<noq::SendStream>, noq::RecvStream);

/// Why, code and message.
type PyCloseReason = (&'static str, u64, String);

#[pymethods]
impl Connection {
    /// Unique within the process.
    #[getter]
    fn id(&self) -> Result<u64, Failure> {
        Ok(self.inner()?.id)
    }

    /// The PeerId the handshake proved.
    #[getter]
    fn peer_id<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyBytes>, Failure> {
        Ok(PyBytes::new(py, &self.inner()?.connection.peer_id().0))
    }

    /// The peer's public key as DER SubjectPublicKeyInfo.
    #[getter]
    fn public_key<'py>(&self, py: Python<'py>) -> Result<Bound<'py, PyBytes>, Failure> {
        Ok(PyBytes::new(py, self.inner()?.connection.public_key()))
    }

    /// Whether this side dialed.
    #[getter]
    fn outbound(&self) -> Result<bool, Failure> {
        Ok(self.inner()?.connection.outbound())
    }

    /// The negotiated key-exchange group.
    #[getter]
    fn key_exchange_group(&self) -> Result<&'static str, Failure> {
        Ok(self.inner()?.connection.group())
    }

    /// What the peer says it offers.
    #[getter]
    fn capabilities(&self) -> Result<Vec<String>, Failure> {
        Ok(self.inner()?.connection.capabilities().to_vec())
    }

    /// How the peer says it can be reached, directly and at relays.
    #[getter]
    fn reach<'py>(&self, py: Python<'py>) -> Result<Option<PyReach<'py>>, Failure> {
        let reach = self.inner()?.connection.reach();
        Ok(reach.map(|reach| reach_to_python(py, &reach)))
    }

    /// How busy the peer says it is as a relay, from 0 to 1.
    #[getter]
    fn relay_load(&self) -> Result<Option<f64>, Failure> {
        let reach = self.inner()?.connection.reach();
        Ok(reach
            .and_then(|reach| reach.load)
            .map(|percent| f64::from(percent) / 100.0))
    }

    /// Asks the peer where another node is.
    fn find(&self, peer_id: [u8; 32]) -> Result<Find, Failure> {
        let connection = self.inner()?.connection.clone();
        Ok(Find::new(connection, anyreach_quic::PeerId(peer_id)))
    }

    /// From the first packet to the proven peer.
    #[getter]
    fn handshake_seconds(&self) -> Result<f64, Failure> {
        Ok(self.inner()?.connection.handshake_time().as_secs_f64())
    }

    /// The open paths; none once the connection has ended.
    fn paths(&self, py: Python<'_>) -> Result<Vec<PathInfo>, Failure> {
        let connection = &self.inner()?.connection;
        let paths = py.detach(|| match connection.close_reason() {
            None => connection.paths(),
            Some(_) => Vec::new(),
        });
        Ok(paths.into_iter().map(PathInfo::from).collect())
    }

    /// The path the handshake was made on, as it was then; also when the connection has ended.
    #[getter]
    fn first_path(&self) -> Result<Option<PathInfo>, Failure> {
        Ok(self.inner()?.connection.first_path().map(PathInfo::from))
    }

    /// How often the paths have changed so far.
    #[getter]
    fn path_changes(&self) -> Result<u64, Failure> {
        Ok(lock(&self.inner()?.path_change).number)
    }

    /// The number and the reason of the latest change of the paths, once it is not `seen`.
    ///
    /// Changes are told by the endpoint's events: somebody must poll those. The end is not.
    fn poll_path_change(
        &self,
        py: Python<'_>,
        seen: u64,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<(u64, &'static str)>, Failure> {
        let inner = self.inner()?;
        let queue = bridge.queue()?;
        py.detach(|| {
            let change = inner.path_changed.poll(queue, token, |_| {
                let change = lock(&inner.path_change);
                if change.number != seen {
                    return Poll::Ready((change.number, change.reason));
                }
                Poll::Pending
            });
            if change.is_some() {
                return Ok(change);
            }
            match inner.poll_closed(queue, token)? {
                Some(reason) => Err(Failure::Lost(reason)),
                None => Ok(None),
            }
        })
    }

    /// Counters of the engine for this connection, over all its paths.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let connection = &self.inner()?.connection;
        let stats = py.detach(|| connection.stats());
        let dict = PyDict::new(py);
        dict.set_item("sent_bytes", stats.udp_tx.bytes)?;
        dict.set_item("sent_packets", stats.udp_tx.datagrams)?;
        dict.set_item("received_bytes", stats.udp_rx.bytes)?;
        dict.set_item("received_packets", stats.udp_rx.datagrams)?;
        dict.set_item("lost_packets", stats.lost_packets)?;
        dict.set_item("lost_bytes", stats.lost_bytes)?;
        Ok(dict)
    }

    /// A new stream, as soon as the peer's limit allows one more.
    fn poll_open(
        &self,
        py: Python<'_>,
        bidi: bool,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<(SendStream, Option<RecvStream>)>, Failure> {
        let inner = self.inner()?;
        let queue = bridge.queue()?;
        let opened = py.detach(|| {
            inner.opening[usize::from(bidi)].poll(queue, token, || {
                let connection = inner.connection.clone();
                Box::pin(async move { connection.open_stream(bidi).await })
            })
        })?;
        let Some((send, recv)) = opened.transpose().map_err(Failure::Lost)? else {
            return Ok(None);
        };
        Ok(Some((
            SendStream::new(inner.connection.clone(), send),
            recv.map(|stream| RecvStream::new(inner.connection.clone(), stream)),
        )))
    }

    /// The next stream the peer opened.
    fn poll_accept(
        &self,
        py: Python<'_>,
        bidi: bool,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<(Option<SendStream>, RecvStream)>, Failure> {
        let inner = self.inner()?;
        let queue = bridge.queue()?;
        let accepted = py.detach(|| {
            inner.accepting[usize::from(bidi)].poll(queue, token, || {
                let connection = inner.connection.clone();
                Box::pin(async move { connection.accept_stream(bidi).await })
            })
        })?;
        let Some((send, recv)) = accepted.transpose().map_err(Failure::Lost)? else {
            return Ok(None);
        };
        Ok(Some((
            send.map(|stream| SendStream::new(inner.connection.clone(), stream)),
            RecvStream::new(inner.connection.clone(), recv),
        )))
    }

    /// Queues datagrams, as many as there is room for; how many. Nothing queued is dropped.
    fn send_datagrams(&self, py: Python<'_>, datagrams: Vec<Bound<'_, PyAny>>) -> PyResult<usize> {
        let inner = self.inner()?;
        // The engine makes room by dropping the oldest; whoever sends knows better what to drop.
        let mut room = py.detach(|| inner.connection.engine().datagram_send_buffer_space());
        let mut batch = Vec::with_capacity(datagrams.len());
        for datagram in &datagrams {
            let buffer = contiguous(datagram)?;
            let length = buffer.len_bytes();
            if length > room {
                break;
            }
            room -= length;
            batch.push(copy_out(&buffer, 0, length));
        }
        Ok(py.detach(|| inner.send_datagrams(&batch))?)
    }

    /// A datagram that waits for room behind those that are queued.
    fn send_datagram_wait(&self, data: &Bound<'_, PyAny>) -> PyResult<DatagramSend> {
        let inner = self.inner()?;
        let buffer = contiguous(data)?;
        let data = copy_out(&buffer, 0, buffer.len_bytes());
        Ok(DatagramSend::new(inner.connection.clone(), data))
    }

    /// The largest datagram the current path and the peer take now; `None` if it takes none, or
    /// the connection has ended.
    #[getter]
    fn max_datagram_size(&self, py: Python<'_>) -> Result<Option<usize>, Failure> {
        let connection = &self.inner()?.connection;
        Ok(py.detach(|| match connection.close_reason() {
            None => connection.engine().max_datagram_size(),
            Some(_) => None,
        }))
    }

    /// Received datagrams, at least one, at most `max`, oldest first.
    fn poll_datagrams<'py>(
        &self,
        py: Python<'py>,
        max: usize,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<Vec<Bound<'py, PyBytes>>>, Failure> {
        let inner = self.inner()?;
        let queue = bridge.queue()?;
        if max == 0 {
            return Err(Failure::Value("cannot receive 0 datagrams".to_owned()));
        }
        let datagrams = py.detach(|| -> Result<_, Failure> {
            let mut waiting = lock(&inner.datagrams);
            if waiting.is_empty() {
                let received = inner.receiving.poll(queue, token, || {
                    let engine = inner.connection.engine().clone();
                    Box::pin(async move {
                        // Waits without room for a batch: on most connections none ever comes.
                        let first = engine.read_datagram().await?;
                        let mut batch = vec![Bytes::new(); DATAGRAM_BATCH];
                        batch[0] = first;
                        let count = {
                            let mut more = pin!(engine.read_many_datagrams(&mut batch[1..]));
                            match poll_fn(|cx| Poll::Ready(more.as_mut().poll(cx))).await {
                                Poll::Ready(count) => count.unwrap_or(0),
                                Poll::Pending => 0,
                            }
                        };
                        batch.truncate(1 + count);
                        Ok(batch)
                    })
                })?;
                match received.transpose().map_err(|error| inner.lost(&error))? {
                    Some(batch) => waiting.extend(batch),
                    None => return Ok(None),
                }
            }
            let count = max.min(waiting.len());
            Ok(Some(waiting.drain(..count).collect::<Vec<_>>()))
        })?;
        Ok(datagrams.map(|list| list.iter().map(|data| PyBytes::new(py, data)).collect()))
    }

    /// Ranks paths: data takes the one with the lowest rank, those without one come last. An empty
    /// ranking leaves it to the rule.
    fn rank_paths(&self, py: Python<'_>, ranks: Vec<(u32, u32)>) -> Result<(), Failure> {
        let connection = &self.inner()?.connection;
        py.detach(|| connection.rank_paths(ranks));
        Ok(())
    }

    /// Closes a path; false if there is none of that number, or no other.
    fn close_path(&self, py: Python<'_>, id: u32) -> Result<bool, Failure> {
        let connection = &self.inner()?.connection;
        Ok(py.detach(|| connection.close_path(id)))
    }

    /// Whether the peer answers, once that is known: a question and a few round trips at most.
    fn poll_answers(
        &self,
        py: Python<'_>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<bool>, Failure> {
        let inner = self.inner()?;
        let queue = bridge.queue()?;
        py.detach(|| {
            inner.answering.poll(queue, token, || {
                let connection = inner.connection.clone();
                Box::pin(async move { connection.answers().await })
            })
        })
    }

    /// Ends the connection at once; the peer is told the code and the reason.
    fn close(&self, py: Python<'_>, code: u32, reason: &[u8]) -> Result<(), Failure> {
        let connection = &self.inner()?.connection;
        py.detach(|| connection.close(code, reason));
        Ok(())
    }

    /// Why the connection ended, once it has.
    fn poll_closed(
        &self,
        py: Python<'_>,
        bridge: &Bridge,
        token: u64,
    ) -> Result<Option<PyCloseReason>, Failure> {
        let inner = self.inner()?;
        let queue = bridge.queue()?;
        let reason = py.detach(|| inner.poll_closed(queue, token))?;
        Ok(reason.map(close_reason))
    }

    /// Why the connection ended, `None` while it lives.
    #[getter]
    fn close_reason(&self, py: Python<'_>) -> Result<Option<PyCloseReason>, Failure> {
        let connection = &self.inner()?.connection;
        Ok(py.detach(|| connection.close_reason()).map(close_reason))
    }
}

impl Connection {
    /// Tells everybody who awaits a change of the paths that there is one.
    pub(crate) fn paths_changed(self, reason: &'static str) -> Self {
        if let Ok(inner) = self.inner() {
            let mut change = lock(&inner.path_change);
            change.number += 1;
            change.reason = reason;
            drop(change);
            inner.path_changed.wake();
        }
        self
    }

    /// A handle to it of the core's.
    pub(crate) fn core(&self) -> Result<anyreach_quic::Connection, Failure> {
        Ok(self.inner()?.connection.clone())
    }

    #[inline]
    fn inner(&self) -> Result<&Inner, Failure> {
        self.0.get().map(|shared| &***shared)
    }
}

/// Makes the Python objects of one endpoint's connections.
pub(crate) struct Connections {
    endpoint: u64,
    known: Mutex<HashMap<u64, Weak<Deferred<Inner>>>>,
}

impl Connections {
    pub(crate) fn new() -> Self {
        static ENDPOINTS: AtomicU64 = AtomicU64::new(0);
        Self {
            endpoint: ENDPOINTS.fetch_add(1, Ordering::Relaxed),
            known: Mutex::default(),
        }
    }

    /// A Python object for `connection`, sharing its state with those made before.
    pub(crate) fn wrap(&self, connection: anyreach_quic::Connection) -> Connection {
        let mut known = lock(&self.known);
        let key = connection.id();
        if let Some(inner) = known.get(&key).and_then(Weak::upgrade) {
            return Connection(PerProcess::new(inner));
        }
        if known.len() == known.capacity() {
            known.retain(|_, inner| inner.strong_count() > 0);
        }
        let inner = Arc::new(Deferred::new(Inner {
            // Numbers of connections start anew at each endpoint.
            id: self.endpoint << 40 | key,
            connection,
            opening: [Slot::new(), Slot::new()],
            accepting: [Slot::new(), Slot::new()],
            datagrams: Mutex::default(),
            receiving: Slot::new(),
            closing: Slot::new(),
            answering: Slot::new(),
            path_change: Mutex::default(),
            path_changed: Operation::new(),
        }));
        known.insert(key, Arc::downgrade(&inner));
        Connection(PerProcess::new(inner))
    }
}

impl Inner {
    fn lost(&self, error: &ConnectionError) -> Failure {
        Failure::Lost(self.connection.reason(error))
    }

    fn send_datagrams(&self, batch: &[Bytes]) -> Result<usize, Failure> {
        if batch.is_empty() {
            return match self.connection.close_reason() {
                Some(reason) => Err(Failure::Lost(reason)),
                None => Ok(0),
            };
        }
        self.connection
            .engine()
            .send_many_datagrams(batch)
            .map_err(|error| Failure::datagram(error, &self.connection))
    }

    fn poll_closed(&self, queue: &Arc<Queue>, token: u64) -> Result<Option<CloseReason>, Failure> {
        match self.connection.close_reason() {
            Some(reason) => Ok(Some(reason)),
            None => self.closing.poll(queue, token, || {
                let connection = self.connection.clone();
                Box::pin(async move { connection.closed().await })
            }),
        }
    }
}

fn close_reason(reason: CloseReason) -> PyCloseReason {
    (reason.kind, reason.code, reason.message)
}

/// Datagrams taken from the engine at once: about one GRO burst.
const DATAGRAM_BATCH: usize = 64;
