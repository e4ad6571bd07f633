//! One request stream after its response: both directions in one task.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use ::h2::{Reason, RecvStream, SendStream};
use anyreach_wire::capsule::{Decoder, Item};
use bytes::Bytes;
use tokio::time::{Sleep, sleep};

use super::{
    SEND_BUFFER, describe,
    link::Link,
    queue::{Next, Outgoing},
};
use crate::carrier::{ProtocolViolation, TunnelIn};

/// DATA frames read before other tasks have their turn.
const READ_BUDGET: usize = 32;

/// Capsules read before the answers to them get their turn to be written. Fewer than may wait in
/// the queue: a peer that registers many contexts at once does listen, and only one that does not
/// is to find the queue full.
const CAPSULES_PER_TURN: usize = 16;

/// How long the peer may take to end its half of the stream after we have ended ours.
const LINGER: Duration = Duration::from_secs(2);

/// Receives for a tunnel, and is told of its end exactly once, whatever happens.
pub(super) struct Input(Option<Arc<dyn TunnelIn>>);

impl Input {
    pub(super) fn new(input: Arc<dyn TunnelIn>) -> Self {
        Self(Some(input))
    }

    fn take(&mut self, item: Item) -> Result<(), ProtocolViolation> {
        match (&self.0, item) {
            (Some(input), Item::Datagram(datagram)) => input.datagram(datagram),
            (Some(input), Item::Capsule(capsule)) => input.capsule(capsule),
            (None, _) => Ok(()),
        }
    }

    fn flush(&self) {
        if let Some(input) = &self.0 {
            input.flush();
        }
    }

    pub(super) fn close(&mut self, reason: &str) {
        if let Some(input) = self.0.take() {
            input.closed(reason.to_owned());
        }
    }
}

impl Drop for Input {
    fn drop(&mut self) {
        self.close("the connection was closed by this side");
    }
}

/// A running tunnel; ends when the stream has.
pub(super) struct Tunnel {
    send: SendStream<Bytes>,
    recv: RecvStream,
    out: Arc<Outgoing>,
    input: Input,
    link: Arc<Link>,
    decoder: Decoder,
    /// We hold some of the connection's window.
    reserved: bool,
    /// We have said that nothing more comes.
    send_ended: bool,
    /// So has the peer.
    recv_ended: bool,
    /// Until when both must have, once one has.
    linger: Option<Pin<Box<Sleep>>>,
}

impl Tunnel {
    pub(super) fn new(
        send: SendStream<Bytes>,
        recv: RecvStream,
        out: Arc<Outgoing>,
        input: Input,
        link: Arc<Link>,
    ) -> Self {
        Self {
            send,
            recv,
            out,
            input,
            link,
            decoder: Decoder::new(),
            reserved: false,
            send_ended: false,
            recv_ended: false,
            linger: None,
        }
    }

    /// The tunnel is over, but the stream may still have to say so.
    fn wind_up(&mut self, reason: &str) {
        self.input.close(reason);
        if self.linger.is_none() {
            self.linger = Some(Box::pin(sleep(LINGER)));
        }
    }

    /// The peer broke the rules (RFC 9297, section 3.3: a stream error of type PROTOCOL_ERROR).
    fn violate(&mut self, reason: &str) -> Poll<()> {
        self.send.send_reset(Reason::PROTOCOL_ERROR);
        self.input.close(reason);
        Poll::Ready(())
    }

    fn fail(&mut self, error: Option<&::h2::Error>) -> Poll<()> {
        let reason = match (self.link.reason(), error) {
            // A reset concerns this stream alone.
            (_, Some(error)) if error.is_reset() => describe(error),
            (Some(reason), _) => reason.to_owned(),
            (None, Some(error)) => describe(error),
            (None, None) => "the stream was reset".to_owned(),
        };
        self.input.close(&reason);
        Poll::Ready(())
    }

    /// Ready when the stream is over in a bad way.
    fn poll_send(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        while !self.send_ended {
            let waiting = match self.out.next(cx) {
                Next::Wait => {
                    if self.reserved {
                        // What is reserved and not used is missing from other tunnels.
                        self.send.reserve_capacity(0);
                        self.reserved = false;
                    }
                    return Poll::Pending;
                }
                Next::Abort => return self.violate("closed by this side after a violation"),
                Next::Finished => {
                    self.send_ended = true;
                    if let Err(error) = self.send.send_data(Bytes::new(), true) {
                        return self.fail(Some(&error));
                    }
                    break;
                }
                Next::Send(waiting) => waiting,
            };
            self.send.reserve_capacity(waiting.min(SEND_BUFFER));
            self.reserved = true;
            let mut capacity = self.send.capacity();
            if capacity == 0 {
                // Tells of additions only, so that what is there has to be asked for first.
                capacity = match ready!(self.send.poll_capacity(cx)) {
                    Some(Ok(capacity)) => capacity,
                    Some(Err(error)) => return self.fail(Some(&error)),
                    None => return self.fail(None),
                };
            }
            if capacity == 0 {
                continue;
            }
            if let Some(bytes) = self.out.take(capacity.min(SEND_BUFFER), Instant::now())
                && let Err(error) = self.send.send_data(bytes, false)
            {
                return self.fail(Some(&error));
            }
        }
        Poll::Pending
    }

    /// Ready when the stream is over in a bad way.
    fn poll_recv(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let mut delivered = false;
        for _ in 0..READ_BUDGET {
            if self.recv_ended {
                return Poll::Pending;
            }
            let polled = self.recv.poll_data(cx);
            if delivered && !matches!(polled, Poll::Ready(Some(Ok(_)))) {
                self.input.flush();
                delivered = false;
            }
            match ready!(polled) {
                Some(Ok(mut chunk)) => {
                    // Nothing waits here: the window is for the line.
                    let _ = self.recv.flow_control().release_capacity(chunk.len());
                    delivered = true;
                    let mut capsules = 0;
                    loop {
                        let taken = match self.decoder.next(&mut chunk) {
                            Ok(Some(item)) => {
                                capsules += usize::from(matches!(item, Item::Capsule(_)));
                                self.input.take(item)
                            }
                            Ok(None) => break,
                            Err(malformed) => Err(ProtocolViolation(malformed.to_string())),
                        };
                        if let Err(violation) = taken {
                            return self.violate(&violation.0);
                        }
                        if capsules == CAPSULES_PER_TURN {
                            capsules = 0;
                            if self.poll_send(cx).is_ready() {
                                return Poll::Ready(());
                            }
                        }
                    }
                }
                Some(Err(error)) => return self.fail(Some(&error)),
                None => {
                    self.recv_ended = true;
                    if let Err(malformed) = self.decoder.finish() {
                        return self.violate(&malformed.to_string());
                    }
                    self.wind_up("the peer ended the tunnel");
                    self.out.finish();
                }
            }
        }
        if delivered {
            self.input.flush();
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Future for Tunnel {
    type Output = ();

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        let this = self.get_mut();
        if this.linger.is_none() && this.out.ending() {
            this.wind_up("closed by this side");
        }
        if this.poll_recv(cx).is_ready() || this.poll_send(cx).is_ready() {
            return Poll::Ready(());
        }
        if this.send_ended && this.recv_ended {
            return Poll::Ready(());
        }
        if let Some(linger) = &mut this.linger {
            ready!(linger.as_mut().poll(cx));
            this.send.send_reset(Reason::CANCEL);
            return Poll::Ready(());
        }
        Poll::Pending
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.out.shut();
    }
}
