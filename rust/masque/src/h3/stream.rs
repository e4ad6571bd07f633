//! The life of one request stream that is a tunnel: capsules both ways, and how it ends.

use std::{
    future::Future,
    ops::Deref,
    pin::pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use anyreach_wire::capsule::{Decoder, Item};
use bytes::{Buf, Bytes};
use h3::{
    error::{Code, StreamError},
    quic,
};
use tokio::time::timeout;

use super::{adapter::RecvState, link::Request, outgoing::Outgoing, tunnel::Tunnel};
use crate::carrier::Close;

/// How long a good end may take: the rest of the queue has to go out, and the peer has to say
/// that it ends, too.
const LINGER: Duration = Duration::from_secs(3);

/// Capsules read before the answers to them get their turn to be written. Fewer than may wait in
/// the queue: a peer that registers many contexts at once does listen, and only one that does not
/// is to find the queue full.
const CAPSULES_PER_TURN: usize = 16;

/// The sending half of a request stream, of a client or a server.
pub(super) trait Sending: Send {
    /// Writes one DATA frame.
    fn write(&mut self, data: Bytes) -> impl Future<Output = Result<(), StreamError>> + Send;

    /// Ends the stream in good order.
    fn end(&mut self) -> impl Future<Output = Result<(), StreamError>> + Send;

    /// Ends the stream at once.
    fn reset(&mut self, code: Code);
}

/// The receiving half of a request stream, of a client or a server.
pub(super) trait Receiving: Send {
    /// More of the body. `None` when it has ended, but after an empty DATA frame, too.
    fn poll_body(&mut self, cx: &mut Context<'_>) -> Poll<Result<Option<Bytes>, StreamError>>;

    /// Tells the peer that nothing more is read.
    fn stop(&mut self, code: Code);
}

macro_rules! halves {
    ($side:ident) => {
        impl<S: quic::SendStream<Bytes> + Send> Sending for h3::$side::RequestStream<S, Bytes> {
            async fn write(&mut self, data: Bytes) -> Result<(), StreamError> {
                self.send_data(data).await
            }

            async fn end(&mut self) -> Result<(), StreamError> {
                self.finish().await
            }

            fn reset(&mut self, code: Code) {
                self.stop_stream(code);
            }
        }

        impl<S: quic::RecvStream + Send> Receiving for h3::$side::RequestStream<S, Bytes> {
            fn poll_body(
                &mut self,
                cx: &mut Context<'_>,
            ) -> Poll<Result<Option<Bytes>, StreamError>> {
                let data = std::task::ready!(self.poll_recv_data(cx))?;
                // Copied, so that what is kept of it does not hold up the reading of the stream.
                Poll::Ready(Ok(data.map(|data| Bytes::copy_from_slice(data.chunk()))))
            }

            fn stop(&mut self, code: Code) {
                self.stop_sending(code);
            }
        }
    };
}

halves!(client);
halves!(server);

/// The next piece of the body, or `None` at its end.
pub(super) async fn body(
    recv: &mut impl Receiving,
    state: &RecvState,
) -> Result<Option<Bytes>, StreamError> {
    loop {
        let piece = std::future::poll_fn(|cx| recv.poll_body(cx)).await?;
        if piece.is_some() || state.ended() {
            return Ok(piece);
        }
        // An empty frame, or fields after the body, which mean nothing here.
        tokio::task::yield_now().await;
    }
}

/// Both halves of a request stream.
pub(super) struct Halves<S, R> {
    pub(super) send: S,
    pub(super) recv: R,
    pub(super) state: RecvState,
}

/// How reading ended.
enum Read {
    /// The peer ended the stream in good order.
    End,
    /// The peer broke the rules.
    Violation(String),
    /// The peer reset the stream, or the connection is gone.
    Lost(StreamError),
}

/// A tunnel that is told of its end whatever becomes of the task that serves it.
pub(super) struct Served(Arc<Tunnel>);

impl Served {
    pub(super) fn new(tunnel: Tunnel) -> Self {
        Self(Arc::new(tunnel))
    }
}

impl Deref for Served {
    type Target = Arc<Tunnel>;

    fn deref(&self) -> &Arc<Tunnel> {
        &self.0
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        self.0.end("the HTTP/3 connection was given up");
    }
}

/// Serves a tunnel to its end. `early` is what was read of the body before.
pub(super) async fn run<S: Sending, R: Receiving>(
    halves: Halves<S, R>,
    request: Request,
    served: Served,
    early: Vec<Bytes>,
) {
    let Halves {
        mut send,
        mut recv,
        state,
    } = halves;
    let tunnel = &**served;
    let outgoing = &*tunnel.outgoing;
    let code = {
        let mut reading = pin!(read(&mut recv, &state, tunnel, early));
        let mut writing = pin!(write(&mut send, outgoing));
        tokio::select! {
            read = &mut reading => match read {
                Read::End => {
                    tunnel.end("the peer closed the tunnel");
                    outgoing.close(Close::Done);
                    match timeout(LINGER, writing).await {
                        Ok(Ok(())) => None,
                        _ => Some(Code::H3_REQUEST_CANCELLED),
                    }
                }
                Read::Violation(reason) => {
                    tunnel.abort(reason);
                    Some(Code::H3_DATAGRAM_ERROR)
                }
                Read::Lost(error) => {
                    tunnel.end(lost(&request, &error));
                    Some(Code::H3_REQUEST_CANCELLED)
                }
            },
            written = &mut writing => match written {
                Ok(()) => {
                    tunnel.end(CLOSED_HERE);
                    // Whether the peer ends as well, or not in time, this side is done.
                    let _ = timeout(LINGER, reading).await;
                    None
                }
                Err(error) => {
                    tunnel.end(lost(&request, &error));
                    Some(Code::H3_REQUEST_CANCELLED)
                }
            },
            end = outgoing.closed() => {
                // For an abort because of what arrived, the tunnel has been told the reason.
                tunnel.end(CLOSED_HERE);
                match end {
                    Close::DatagramError => Some(Code::H3_DATAGRAM_ERROR),
                    Close::Done => {
                        let both = tokio::join!(timeout(LINGER, reading), timeout(LINGER, writing));
                        match both.1 {
                            Ok(Ok(())) => None,
                            _ => Some(Code::H3_REQUEST_CANCELLED),
                        }
                    }
                }
            },
        }
    };
    // Nobody may send any more.
    outgoing.close(Close::Done);
    if let Some(code) = code {
        send.reset(code);
    }
    recv.stop(code.unwrap_or(Code::H3_NO_ERROR));
    drop(request);
}

const CLOSED_HERE: &str = "the tunnel was closed by this side";

fn lost(request: &Request, error: &StreamError) -> String {
    match error {
        StreamError::RemoteTerminate { code } => format!("the peer reset the tunnel ({code})"),
        StreamError::ConnectionError(_) => request.link.end(),
        other => format!("the tunnel failed: {other}"),
    }
}

/// Reads capsules to the end of the stream.
async fn read(
    recv: &mut impl Receiving,
    state: &RecvState,
    tunnel: &Tunnel,
    early: Vec<Bytes>,
) -> Read {
    let mut decoder = Decoder::new();
    for piece in early {
        if let Err(violation) = decode(&mut decoder, piece, tunnel).await {
            return violation;
        }
    }
    loop {
        match body(recv, state).await {
            Ok(Some(piece)) => {
                if let Err(violation) = decode(&mut decoder, piece, tunnel).await {
                    return violation;
                }
            }
            Ok(None) => {
                return match decoder.finish() {
                    Ok(()) => Read::End,
                    Err(error) => Read::Violation(error.to_string()),
                };
            }
            Err(error) => return Read::Lost(error),
        }
    }
}

async fn decode(decoder: &mut Decoder, mut piece: Bytes, tunnel: &Tunnel) -> Result<(), Read> {
    let (mut datagrams, mut capsules) = (false, 0);
    loop {
        match decoder.next(&mut piece) {
            Ok(Some(Item::Datagram(datagram))) => {
                tunnel.datagram(datagram);
                datagrams = true;
            }
            Ok(Some(Item::Capsule(capsule))) => {
                tunnel.capsule(capsule);
                capsules += 1;
                if capsules % CAPSULES_PER_TURN == 0 {
                    tokio::task::yield_now().await;
                }
            }
            Ok(None) => break,
            Err(error) => return Err(Read::Violation(error.to_string())),
        }
    }
    if datagrams {
        tunnel.flush();
    }
    Ok(())
}

/// Writes what is queued, and ends the stream after the last of it.
async fn write(send: &mut impl Sending, outgoing: &Outgoing) -> Result<(), StreamError> {
    while let Some(capsule) = outgoing.next().await {
        send.write(capsule).await?;
    }
    send.end().await
}
