//! The seam between HTTP and the tunnels: a request stream that carries HTTP Datagrams and
//! capsules (RFC 9297), whatever the version of HTTP below it.
//!
//! A carrier calls [`TunnelIn`] for what arrives, on its own task, and offers [`TunnelOut`] for
//! what is to go out. Neither ever waits: queues are short and drop the oldest datagram, because
//! what runs inside is a congestion-controlled connection that needs to see loss, not delay.

use std::{fmt, future::Future, net::SocketAddr, pin::Pin, sync::Arc, time::Duration};

use anyreach_quic::PeerId;
use bytes::Bytes;
use http::{HeaderMap, Request, Response, StatusCode};

/// A boxed future, so that the traits here can be used as objects.
pub type BoxFuture<'a, T> = Pin<Box<dyn Future<Output = T> + Send + 'a>>;

/// Which HTTP carries a tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum CarrierKind {
    /// HTTP/3 over UDP.
    H3,
    /// HTTP/2 over TLS over TCP.
    H2,
    /// HTTP/2 over TLS through an HTTP proxy (CONNECT, RFC 9110 section 9.3.6).
    H2Proxy,
}

impl CarrierKind {
    /// The name used in events and metrics.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::H3 => "h3",
            Self::H2 => "h2",
            Self::H2Proxy => "h2-proxy",
        }
    }
}

impl fmt::Display for CarrierKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why a datagram was not taken. It is dropped; the tunnel goes on unless it is `Closed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum DatagramError {
    /// Larger than what the carrier takes now.
    #[error("the datagram is too large for the carrier")]
    TooLarge,
    /// The queue is full and this one would be the first to be dropped.
    #[error("the carrier's queue is full")]
    Full,
    /// The request stream or its connection has ended.
    #[error("the tunnel is closed")]
    Closed,
}

/// Why a capsule was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum CapsuleError {
    /// As many wait for the peer as may wait: the tunnel must be aborted (bind draft, security
    /// considerations).
    #[error("the peer does not take capsules")]
    QueueFull,
    /// The request stream or its connection has ended.
    #[error("the tunnel is closed")]
    Closed,
}

/// The outgoing half of a tunnel. Usable from any thread; never blocks.
pub trait TunnelOut: Send + Sync + fmt::Debug + 'static {
    /// Sends one HTTP Datagram, made of `head` (context ID, and what else comes before the UDP
    /// payload) and `payload`. When the queue is full the oldest datagram is dropped for this one.
    ///
    /// # Errors
    /// [`DatagramError`].
    fn send_datagram(&self, head: &[u8], payload: &[u8]) -> Result<(), DatagramError>;

    /// Most bytes of head and payload together that pass now.
    fn max_datagram(&self) -> usize;

    /// Sends one whole encoded capsule, reliably and in order.
    ///
    /// # Errors
    /// [`CapsuleError`].
    fn send_capsule(&self, capsule: Bytes) -> Result<(), CapsuleError>;

    /// Ends the request stream: in good order, or with an error after a violation of the protocol.
    /// Doing it again does nothing.
    fn close(&self, end: Close);

    /// Smoothed round-trip time of the carrier's connection, as far as it is known.
    fn rtt(&self) -> Option<Duration>;

    /// Datagrams this carrier has dropped because its queue was full.
    fn dropped(&self) -> u64;
}

/// How a side ends a request stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Close {
    /// Nothing more to say.
    Done,
    /// The peer broke the Capsule Protocol or the rules of its extension (RFC 9297 section 3.3).
    DatagramError,
}

/// The peer broke the rules of the tunnel: the carrier resets the request stream.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ProtocolViolation(pub String);

/// The incoming half of a tunnel, implemented by the relay and the client. Called from one task
/// of the carrier at a time; must not block.
pub trait TunnelIn: Send + Sync + 'static {
    /// An HTTP Datagram arrived, starting with its context ID.
    ///
    /// # Errors
    /// [`ProtocolViolation`]: the carrier aborts the request stream.
    fn datagram(&self, datagram: Bytes) -> Result<(), ProtocolViolation>;

    /// No more datagrams are waiting right now: time to send what was collected.
    fn flush(&self) {}

    /// A capsule arrived, in order. DATAGRAM capsules come through [`datagram`](Self::datagram)
    /// instead, and capsules of unknown types not at all.
    ///
    /// # Errors
    /// [`ProtocolViolation`]: the carrier aborts the request stream.
    fn capsule(&self, capsule: anyreach_wire::capsule::Capsule) -> Result<(), ProtocolViolation>;

    /// The request stream has ended, for this reason. Nothing is called afterwards.
    fn closed(&self, reason: String);
}

/// Who made a request to the relay.
#[derive(Debug, Clone)]
pub struct Client {
    /// Who it is: proved by the TLS handshake, or by a token in the request. `None` for an
    /// ordinary HTTP client.
    pub peer_id: Option<PeerId>,
    /// Where it comes from, canonical.
    pub remote: SocketAddr,
    /// Our address it came to, where that is known, canonical.
    pub local: Option<SocketAddr>,
    /// How.
    pub carrier: CarrierKind,
}

/// What the relay says to a request it accepts.
#[derive(Debug)]
pub struct Accepted {
    /// Header fields of the 200 response.
    pub headers: HeaderMap,
}

/// What the relay says to a request it refuses.
#[derive(Debug, Clone)]
pub struct Refused {
    /// Status code.
    pub status: StatusCode,
    /// Header fields, `proxy-status` (RFC 9209) among them.
    pub headers: HeaderMap,
}

/// What a relay decides about a request: a tunnel, or what to answer instead.
pub type Decision = Result<(Accepted, Arc<dyn TunnelIn>), Refused>;

/// A relay as the carriers see it: decides about requests, then is called for what arrives.
pub trait Service: Send + Sync + 'static {
    /// Decides about one extended CONNECT request. `out` may be used at once; what is sent before
    /// the response goes out after it. The future is dropped if the client goes away meanwhile.
    fn open<'a>(
        &'a self,
        client: &'a Client,
        request: &'a Request<()>,
        out: Arc<dyn TunnelOut>,
    ) -> BoxFuture<'a, Decision>;
}

/// Why a carrier to a relay, or a request on it, came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}: {detail}")]
pub struct CarrierError {
    /// A short stable word: those of `DialError`, and `proxy-refused`, `proxy-auth`, `tls`,
    /// `http`, `no-connect-udp`, `refused`, `closed`.
    pub reason: &'static str,
    /// What happened, and where possible what to do about it.
    pub detail: String,
    /// Who answered instead of the relay that was wanted.
    pub actual: Option<PeerId>,
}

impl CarrierError {
    /// An error nobody's identity is part of.
    pub fn new(reason: &'static str, detail: impl Into<String>) -> Self {
        Self {
            reason,
            detail: detail.into(),
            actual: None,
        }
    }
}

/// What came of a request to a relay: its answer and the way into the tunnel, or why not.
pub type Opening = Result<(Response<()>, Arc<dyn TunnelOut>), CarrierError>;

/// An open HTTP connection to a relay. Dropping the last handle closes it.
pub trait ClientCarrier: Send + Sync + fmt::Debug + 'static {
    /// Which HTTP it is.
    fn kind(&self) -> CarrierKind;

    /// Who the relay proved to be; `None` for a proxy with an ordinary certificate.
    fn peer_id(&self) -> Option<PeerId>;

    /// Makes one extended CONNECT request with `:protocol` connect-udp. `input` is called for what
    /// arrives, possibly before this returns. Dropping the future cancels the request.
    ///
    /// # Errors
    /// [`CarrierError`]; a response outside 2xx is `refused` with its status and `proxy-status`.
    fn open<'a>(&'a self, request: Request<()>, input: Arc<dyn TunnelIn>)
    -> BoxFuture<'a, Opening>;

    /// Waits until the connection has ended, and says why.
    fn closed(&self) -> BoxFuture<'_, String>;

    /// Smoothed round-trip time, as far as it is known.
    fn rtt(&self) -> Option<Duration>;

    /// Looks at once whether the relay still answers, as after a change of network: the connection
    /// is closed if it does not within about three round trips, at least 500 ms.
    fn probe(&self);
}
