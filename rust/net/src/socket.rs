//! [`NodeSocket`]: what the engine takes for a UDP socket.

use std::{
    fmt,
    future::Future,
    io::{self, IoSliceMut},
    net::SocketAddr,
    num::NonZeroUsize,
    pin::Pin,
    slice,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use noq::{AsyncUdpSocket, UdpSender};
use noq_udp::RecvMeta;
use tokio::time::{Sleep, sleep};

use crate::{
    addr::engine_form,
    bind::BoundSocket,
    counters::Counters,
    mux::MuxHandle,
    opener::Entrance,
    port::Port,
    receive::accept,
    routes::{Reader, Routes, Shared},
    sender::NodeSender,
};

/// Batches in a row without one datagram for the engine, after which the receive task yields.
///
/// Without a bound a flood of empty datagrams keeps one poll busy for ever (CVE-2026-11352). Eight
/// batches of 32 datagrams take well under a millisecond.
const FRUITLESS_BATCHES: usize = 8;

/// Receive errors in a row after which the socket pauses. Errors queued by ICMP are taken one per
/// call, so a few dozen in a row are plausible; more mean that the error stays.
const ERRORS_IN_A_ROW: u32 = 64;

/// How long it pauses then: short against any QUIC timer, long against a busy loop.
const ERROR_PAUSE: Duration = Duration::from_millis(10);

/// The node's UDP socket as the engine sees it.
///
/// Errors of single datagrams never reach the engine, in neither direction: they are in
/// [`NodeSocket::counters`]. The only errors it can see are a closed descriptor and a runtime that
/// is shutting down.
///
/// The engine's endpoint *must* be configured with `grease_quic_bit(false)`. With the engine's
/// default it invites its peers to send packets that look like anything (RFC 9287), and this socket
/// drops half of what they send: transfers crawl, and the `junk_*` counters say why.
pub struct NodeSocket {
    shared: Arc<Shared>,
    reader: Reader,
    receiving: Receiving,
    /// Which side source (tunnel or extra socket) is next, so that none starves the others.
    next_side: usize,
    /// Whether the side sources are asked before the primary socket.
    sides_first: bool,
}

impl NodeSocket {
    /// Takes over a bound socket. Must be called within a tokio runtime with I/O and time enabled.
    ///
    /// # Errors
    ///
    /// What the system reports if the socket refuses the options the engine needs (packet
    /// information, ECN), or if it cannot be registered with the runtime.
    ///
    /// # Panics
    ///
    /// Outside a tokio runtime.
    pub fn new(bound: BoundSocket) -> io::Result<Self> {
        let local_addr = bound.local_addr();
        let port = Port::new(bound.socket, bound.family)?;
        let shared = Arc::new(Shared::new(port, local_addr));
        Ok(Self {
            reader: Reader::new(&shared),
            shared,
            receiving: Receiving::default(),
            next_side: 0,
            sides_first: false,
        })
    }

    /// The counters of everything this socket dropped, refused or failed to send. They outlive the
    /// socket, which the engine takes.
    pub fn counters(&self) -> Arc<Counters> {
        self.shared.counters.clone()
    }

    /// The handle through which tunnels and further sockets are added once the engine has taken
    /// this one.
    pub fn handle(&self) -> MuxHandle {
        MuxHandle::new(&self.shared)
    }

    /// Asks tunnels and extra sockets, each in its turn; 0 if none has anything.
    fn receive_from_sides(&mut self, bufs: &mut [IoSliceMut<'_>], meta: &mut [RecvMeta]) -> usize {
        let routes = self.reader.cached();
        let sides = routes.sides();
        for offset in 0..sides {
            let side = (self.next_side + offset) % sides;
            let count = match routes.tunnels.get(side) {
                Some(tunnel) => tunnel.receive(&self.shared, routes, bufs, meta),
                None => routes.extras[side - routes.tunnels.len()].receive(
                    &self.shared,
                    routes,
                    bufs,
                    meta,
                ),
            };
            if count > 0 {
                self.next_side = side + 1;
                return count;
            }
        }
        0
    }
}

impl fmt::Debug for NodeSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("NodeSocket")
            .field("local_addr", &self.reader.cached().local_addr)
            .finish_non_exhaustive()
    }
}

impl AsyncUdpSocket for NodeSocket {
    fn create_sender(&self) -> Pin<Box<dyn UdpSender>> {
        Box::pin(NodeSender::new(self.shared.clone()))
    }

    fn poll_recv(
        &mut self,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let has_sides = self.reader.get(&self.shared).sides() > 0;
        if has_sides {
            // Before looking, so that what is queued after the look finds somebody to wake.
            self.shared.receiver.register(cx.waker());
        }
        // Whoever was served is asked last next time.
        if has_sides && self.sides_first {
            self.sides_first = false;
            let count = self.receive_from_sides(bufs, meta);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
        }
        let polled = match self.shared.primary(self.reader.cached()) {
            Some(primary) => {
                self.receiving
                    .poll(&self.shared, self.reader.cached(), &primary, cx, bufs, meta)
            }
            None => Poll::Pending,
        };
        if polled.is_ready() {
            self.sides_first = has_sides;
            return polled;
        }
        if has_sides {
            let count = self.receive_from_sides(bufs, meta);
            if count > 0 {
                return Poll::Ready(Ok(count));
            }
        } else {
            self.shared.receiver.register(cx.waker());
        }
        // A table published since it was read has woken whoever was registered then.
        if self.reader.is_stale(&self.shared) {
            cx.waker().wake_by_ref();
        }
        Poll::Pending
    }

    /// The bound address in engine form, whatever the family of the socket: see the crate
    /// documentation.
    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(engine_form(self.shared.current().local_addr))
    }

    fn max_receive_segments(&self) -> NonZeroUsize {
        self.shared
            .newest_primary()
            .map_or(NonZeroUsize::MIN, |port| port.max_receive_segments())
    }

    fn may_fragment(&self) -> bool {
        self.shared
            .newest_primary()
            .is_none_or(|port| port.may_fragment())
    }
}

/// The receive loop's memory of errors.
#[derive(Default)]
struct Receiving {
    errors_in_a_row: u32,
    pause: Option<Pin<Box<Sleep>>>,
}

impl Receiving {
    /// Receives what `port` has, until something is for the engine, nothing is left, or the budget
    /// is spent.
    fn poll(
        &mut self,
        shared: &Shared,
        routes: &Routes,
        port: &Port,
        cx: &mut Context<'_>,
        bufs: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let counters = &*shared.counters;
        for _ in 0..FRUITLESS_BATCHES {
            ready!(self.poll_pause(cx));
            // Fails only when the runtime is shutting down.
            ready!(port.io.poll_recv_ready(cx))?;
            match port.try_recv(bufs, meta) {
                Ok(received) => {
                    self.errors_in_a_row = 0;
                    let kept = accept(counters, bufs, meta, received, |datagram, entry| {
                        shared.heard(routes, slice::from_ref(entry));
                        Entrance::Primary(port).opener(shared, routes, datagram, entry);
                    });
                    shared.heard(routes, &meta[..kept]);
                    if kept > 0 {
                        return Poll::Ready(Ok(kept));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.errors_in_a_row = 0;
                }
                Err(error) => self.failed(counters, error)?,
            }
        }
        cx.waker().wake_by_ref();
        Poll::Pending
    }

    fn poll_pause(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if let Some(pause) = &mut self.pause {
            ready!(pause.as_mut().poll(cx));
            self.pause = None;
        }
        Poll::Ready(())
    }

    /// Counts a receive error; an error only if the descriptor itself is unusable.
    fn failed(&mut self, counters: &Counters, error: io::Error) -> io::Result<()> {
        if is_descriptor_gone(&error) {
            return Err(error);
        }
        Counters::bump(&counters.recv_errors);
        tracing::trace!(%error, "receive error");
        self.errors_in_a_row += 1;
        if self.errors_in_a_row >= ERRORS_IN_A_ROW {
            tracing::debug!(%error, "receive errors do not end, pausing");
            self.errors_in_a_row = 0;
            self.pause = Some(Box::pin(sleep(ERROR_PAUSE)));
        }
        Ok(())
    }
}

#[cfg(unix)]
fn is_descriptor_gone(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EBADF | libc::ENOTSOCK))
}

/// `WSAENOTSOCK`.
#[cfg(windows)]
fn is_descriptor_gone(error: &io::Error) -> bool {
    error.raw_os_error() == Some(10038)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime")
    }

    #[test]
    fn errors_that_do_not_end_make_it_pause_not_spin() {
        runtime().block_on(async {
            let (mut receiving, counters) = (Receiving::default(), Counters::default());
            for _ in 0..ERRORS_IN_A_ROW {
                assert!(receiving.pause.is_none());
                let refused = io::Error::from(io::ErrorKind::ConnectionRefused);
                receiving
                    .failed(&counters, refused)
                    .expect("of one datagram");
            }
            assert_eq!(counters.snapshot().recv_errors, u64::from(ERRORS_IN_A_ROW));
            let before = tokio::time::Instant::now();
            poll_fn(|cx| receiving.poll_pause(cx)).await;
            assert!(before.elapsed() >= ERROR_PAUSE);
            assert!(receiving.pause.is_none());
        });
    }

    #[cfg(unix)]
    #[test]
    fn a_closed_descriptor_is_the_engines_business() {
        runtime().block_on(async {
            let (mut receiving, counters) = (Receiving::default(), Counters::default());
            let closed = io::Error::from_raw_os_error(libc::EBADF);
            assert!(receiving.failed(&counters, closed).is_err());
        });
    }
}
