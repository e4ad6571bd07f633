//! The engine's connection and streams as the `h3` crate wants them.
//!
//! `h3` speaks HTTP/3 over the traits of `h3::quic`; this is their implementation for `noq`. What
//! it adds to plain translation is a bound: `h3` keeps frames until they are whole whatever their
//! announced length, so a [`RecvStream`] hands out no more than [`STREAM_BUFFER`] bytes that are
//! not used up yet. Datagrams do not come through here, they are read straight from the engine.
//!
//! [`STREAM_BUFFER`]: recv::STREAM_BUFFER

mod recv;
mod send;

use std::{
    collections::HashMap,
    future::Future,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    task::{Context, Poll, ready},
};

use bytes::Bytes;
use h3::quic::{self, ConnectionErrorIncoming, StreamErrorIncoming, StreamId};
use noq::{ConnectionError, VarInt};

use recv::Budget;
pub(super) use recv::RecvStream;
pub(super) use send::SendStream;

/// A future of the engine that outlives one call of `poll`. It borrows the connection, so it
/// comes with a handle of its own.
type Pending<T> = Option<Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + Send>>>;

/// An HTTP error code, as the engine wants it. Codes are below 2^62 (RFC 9114, section 8.1).
fn code(code: u64) -> VarInt {
    VarInt::from_u64(code).unwrap_or(VarInt::MAX)
}

/// Closes a connection, unless it is closed: the engine would forget why.
pub(super) fn close(engine: &noq::Connection, error: h3::error::Code, reason: &[u8]) {
    if engine.close_reason().is_none() {
        engine.close(code(error.value()), reason);
    }
}

/// A connection of the engine for `h3`.
pub(super) struct Connection {
    engine: noq::Connection,
    bidi: Pending<(noq::SendStream, noq::RecvStream)>,
    uni: Pending<noq::RecvStream>,
    opener: Opener,
}

/// What `h3` opens streams with.
pub(super) struct Opener {
    engine: noq::Connection,
    bidi: Pending<(noq::SendStream, noq::RecvStream)>,
    uni: Pending<noq::SendStream>,
    requests: Requests,
}

/// The receiving sides of the request streams by quarter stream ID, for what `h3` does not tell:
/// whether a stream has really ended, or only a DATA frame was empty.
#[derive(Debug, Clone, Default)]
pub(super) struct Requests(Arc<Mutex<HashMap<u64, Weak<Budget>>>>);

impl Requests {
    /// How the receiving side of a stream fares. Takes it off the list.
    pub(super) fn take(&self, quarter_id: u64) -> RecvState {
        RecvState(self.lock().remove(&quarter_id).and_then(|it| it.upgrade()))
    }

    fn note(&self, stream: &RecvStream) {
        let mut requests = self.lock();
        // Requests that came to nothing before anybody asked.
        requests.retain(|_, budget| budget.strong_count() > 0);
        requests.insert(stream.quarter_id(), Arc::downgrade(stream.budget()));
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u64, Weak<Budget>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// See [`Requests::take`].
#[derive(Debug)]
pub(super) struct RecvState(Option<Arc<Budget>>);

impl RecvState {
    /// Whether all of the stream has been read, its end included. A stream nobody knows has ended.
    pub(super) fn ended(&self) -> bool {
        self.0.as_ref().is_none_or(|budget| budget.drained())
    }
}

impl Connection {
    /// Puts `engine` behind the traits of `h3`.
    pub(super) fn new(engine: noq::Connection) -> Self {
        Self {
            opener: Opener::new(engine.clone(), Requests::default()),
            engine,
            bidi: None,
            uni: None,
        }
    }

    /// The request streams of this connection.
    pub(super) fn requests(&self) -> Requests {
        self.opener.requests.clone()
    }
}

impl Opener {
    fn new(engine: noq::Connection, requests: Requests) -> Self {
        Self {
            engine,
            bidi: None,
            uni: None,
            requests,
        }
    }
}

/// Polls the future in `slot`, made by `start` if there is none.
fn poll_slot<T>(
    slot: &mut Pending<T>,
    cx: &mut Context<'_>,
    start: impl FnOnce() -> Pin<Box<dyn Future<Output = Result<T, ConnectionError>> + Send>>,
) -> Poll<Result<T, ConnectionErrorIncoming>> {
    let result = ready!(slot.get_or_insert_with(start).as_mut().poll(cx));
    *slot = None;
    Poll::Ready(result.map_err(connection_error))
}

impl quic::Connection<Bytes> for Connection {
    type RecvStream = RecvStream;
    type OpenStreams = Opener;

    fn poll_accept_recv(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::RecvStream, ConnectionErrorIncoming>> {
        let engine = &self.engine;
        let recv = ready!(poll_slot(&mut self.uni, cx, || {
            let engine = engine.clone();
            Box::pin(async move { engine.accept_uni().await })
        }))?;
        Poll::Ready(Ok(RecvStream::new(recv)))
    }

    fn poll_accept_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, ConnectionErrorIncoming>> {
        let engine = &self.engine;
        let streams = ready!(poll_slot(&mut self.bidi, cx, || {
            let engine = engine.clone();
            Box::pin(async move { engine.accept_bi().await })
        }))?;
        Poll::Ready(Ok(BidiStream::new(streams, &self.opener.requests)))
    }

    fn opener(&self) -> Self::OpenStreams {
        Opener::new(self.engine.clone(), self.requests())
    }
}

impl quic::OpenStreams<Bytes> for Opener {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        let engine = &self.engine;
        let opened = ready!(poll_slot(&mut self.bidi, cx, || {
            let engine = engine.clone();
            Box::pin(async move { engine.open_bi().await })
        }));
        let streams = opened.map_err(lost)?;
        Poll::Ready(Ok(BidiStream::new(streams, &self.requests)))
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        let engine = &self.engine;
        let opened = ready!(poll_slot(&mut self.uni, cx, || {
            let engine = engine.clone();
            Box::pin(async move { engine.open_uni().await })
        }));
        Poll::Ready(opened.map(SendStream::new).map_err(lost))
    }

    fn close(&mut self, code: h3::error::Code, reason: &[u8]) {
        close(&self.engine, code, reason);
    }
}

impl quic::OpenStreams<Bytes> for Connection {
    type BidiStream = BidiStream;
    type SendStream = SendStream;

    fn poll_open_bidi(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::BidiStream, StreamErrorIncoming>> {
        self.opener.poll_open_bidi(cx)
    }

    fn poll_open_send(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Self::SendStream, StreamErrorIncoming>> {
        self.opener.poll_open_send(cx)
    }

    fn close(&mut self, code: h3::error::Code, reason: &[u8]) {
        self.opener.close(code, reason);
    }
}

/// Both halves of a request stream.
pub(super) struct BidiStream {
    send: SendStream,
    recv: RecvStream,
}

impl BidiStream {
    fn new((send, recv): (noq::SendStream, noq::RecvStream), requests: &Requests) -> Self {
        let recv = RecvStream::new(recv);
        requests.note(&recv);
        Self {
            send: SendStream::new(send),
            recv,
        }
    }
}

impl quic::BidiStream<Bytes> for BidiStream {
    type SendStream = SendStream;
    type RecvStream = RecvStream;

    fn split(self) -> (Self::SendStream, Self::RecvStream) {
        (self.send, self.recv)
    }
}

impl quic::RecvStream for BidiStream {
    type Buf = Bytes;

    fn poll_data(
        &mut self,
        cx: &mut Context<'_>,
    ) -> Poll<Result<Option<Self::Buf>, StreamErrorIncoming>> {
        self.recv.poll_data(cx)
    }

    fn stop_sending(&mut self, error_code: u64) {
        self.recv.stop_sending(error_code);
    }

    fn recv_id(&self) -> StreamId {
        self.recv.recv_id()
    }
}

impl quic::SendStream<Bytes> for BidiStream {
    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_ready(cx)
    }

    fn send_data<T: Into<quic::WriteBuf<Bytes>>>(
        &mut self,
        data: T,
    ) -> Result<(), StreamErrorIncoming> {
        self.send.send_data(data)
    }

    fn poll_finish(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), StreamErrorIncoming>> {
        self.send.poll_finish(cx)
    }

    fn reset(&mut self, reset_code: u64) {
        self.send.reset(reset_code);
    }

    fn send_id(&self) -> StreamId {
        self.send.send_id()
    }
}

/// A stream ID of the engine as one of `h3`.
fn stream_id(id: noq::StreamId) -> StreamId {
    // Both hold 62 bits.
    StreamId::try_from(u64::from(id)).expect("a QUIC stream ID")
}

fn connection_error(error: ConnectionError) -> ConnectionErrorIncoming {
    match error {
        ConnectionError::ApplicationClosed(close) => ConnectionErrorIncoming::ApplicationClose {
            error_code: close.error_code.into_inner(),
        },
        ConnectionError::TimedOut => ConnectionErrorIncoming::Timeout,
        other => ConnectionErrorIncoming::Undefined(Arc::new(other)),
    }
}

/// The stream went with its connection.
fn lost(connection_error: ConnectionErrorIncoming) -> StreamErrorIncoming {
    StreamErrorIncoming::ConnectionErrorIncoming { connection_error }
}
