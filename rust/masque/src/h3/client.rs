//! The side of the client: an HTTP/3 connection to a relay, and requests on it.

use std::{
    fmt,
    future::poll_fn,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::Poll,
    time::{Duration, Instant},
};

use anyreach_quic::PeerId;
use bytes::Bytes;
use h3::{
    client::{RequestStream, SendRequest},
    error::{Code, StreamError},
    ext::Protocol,
    quic::StreamId,
};
use http::{HeaderValue, Request, Response};
use tokio::{
    runtime::Handle,
    sync::Mutex,
    time::{sleep, timeout},
};

use super::{
    CAPSULE_PROTOCOL, MAX_FIELDS,
    adapter::{self, Requests},
    link::{Link, describe, paths},
    outgoing::Outgoing,
    stream::{self, Halves, Served},
    tunnel::{Out, Tunnel},
};
use crate::carrier::{BoxFuture, CarrierError, CarrierKind, ClientCarrier, Opening, TunnelIn};

/// For the settings of the relay to arrive. They come with the end of the handshake, so that a
/// relay that takes longer has lost more packets than a tunnel could bear.
const SETTINGS_TIME: Duration = Duration::from_secs(10);

/// How long a connection that is probed may be silent: three round trips and what the peer may
/// delay an acknowledgement, within bounds for lines not measured yet.
const PROBE_RTTS: u32 = 3;
const PROBE_EXTRA: Duration = Duration::from_millis(100);
const PROBE_MIN: Duration = Duration::from_millis(500);
const PROBE_MAX: Duration = Duration::from_secs(3);

/// What had arrived before a line broke is read within this time, on a busy machine too.
const PROBE_SETTLE: Duration = Duration::from_millis(50);

/// An HTTP/3 connection to a relay. Dropping it closes the connection.
pub struct H3Carrier {
    engine: Engine,
    peer_id: Option<PeerId>,
    link: Arc<Link>,
    /// One request at a time goes out, so that they are known in the order of their streams.
    sender: Mutex<SendRequest<adapter::Opener, Bytes>>,
    requests: Requests,
    runtime: Handle,
    probing: Arc<AtomicBool>,
}

impl fmt::Debug for H3Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("H3Carrier")
            .field(
                "remote",
                &self
                    .engine
                    .0
                    .path(noq::PathId::ZERO)
                    .map(|path| path.remote_address()),
            )
            .field("peer_id", &self.peer_id)
            .finish_non_exhaustive()
    }
}

/// A connection that is closed when nobody wants it any more.
struct Engine(noq::Connection);

impl Drop for Engine {
    fn drop(&mut self) {
        adapter::close(&self.0, Code::H3_NO_ERROR, b"no longer needed");
    }
}

/// Speaks HTTP/3 on `connection`, whose handshake is done and proved `peer_id`. Returns when the
/// relay has said that it does CONNECT-UDP; requests can then be made at once. The connection is
/// closed if that fails, or the future is dropped.
///
/// Tasks are spawned on the runtime this is called in; they end with the connection.
///
/// # Errors
/// `no-connect-udp` if the other end speaks HTTP/3 without it, `closed` if the connection ended,
/// `http` if the other end broke HTTP/3 or said nothing.
pub async fn connect(
    connection: noq::Connection,
    peer_id: Option<PeerId>,
) -> Result<H3Carrier, CarrierError> {
    let engine = Engine(connection.clone());
    let adapter = adapter::Connection::new(connection.clone());
    let requests = adapter.requests();
    let (mut driver, sender) = h3::client::builder()
        .max_field_section_size(MAX_FIELDS)
        .enable_datagram(true)
        .send_grease(false)
        .build::<_, _, Bytes>(adapter)
        .await
        .map_err(|error| failed(&connection, error))?;
    // The first frame is that of the settings, or `h3` makes it an error.
    match timeout(SETTINGS_TIME, poll_fn(|cx| driver.inner.poll_control(cx))).await {
        Ok(Ok(_settings)) => {}
        Ok(Err(error)) => return Err(failed(&connection, error)),
        Err(_) => {
            let detail = "the relay answered, but did not start to speak HTTP/3";
            return Err(CarrierError::new("http", detail));
        }
    }
    let link = Arc::new(Link::new(connection, driver.inner.shared.clone()));
    let missing = match (link.takes_extended_connect(), link.sends_datagrams()) {
        (true, true) => None,
        (false, _) => Some("extended CONNECT (RFC 9220)"),
        (true, false) => Some("HTTP Datagrams (RFC 9297)"),
    };
    if let Some(missing) = missing {
        return Err(CarrierError::new(
            "no-connect-udp",
            format!("the other end speaks HTTP/3, but does not offer {missing}; it is no relay"),
        ));
    }
    if link.settings_contradict() {
        return Err(CarrierError::new(
            "http",
            "the other end offers HTTP Datagrams, but no QUIC DATAGRAM frames",
        ));
    }
    tokio::spawn(drive(driver, link.clone()));
    tokio::spawn(link.clone().receive_or_close());
    Ok(H3Carrier {
        engine,
        peer_id,
        link,
        sender: Mutex::new(sender),
        requests,
        runtime: Handle::current(),
        probing: Arc::default(),
    })
}

/// Keeps HTTP/3 going to the end of the connection, which it is after GOAWAY and the last tunnel.
async fn drive(mut driver: h3::client::Connection<adapter::Connection, Bytes>, link: Arc<Link>) {
    let error = poll_fn(|cx| {
        let ended = driver.poll_close(cx);
        if ended.is_pending() && link.is_done() {
            link.close(Code::H3_NO_ERROR, "GOAWAY was obeyed");
        }
        match ended {
            Poll::Ready(error) => Poll::Ready(error),
            Poll::Pending => Poll::Pending,
        }
    })
    .await;
    tracing::debug!(%error, "HTTP/3 connection ended");
}

impl H3Carrier {
    async fn request(&self, mut request: Request<()>, input: Arc<dyn TunnelIn>) -> Opening {
        request.extensions_mut().insert(Protocol::CONNECT_UDP);
        request
            .headers_mut()
            .entry(CAPSULE_PROTOCOL)
            .or_insert(HeaderValue::from_static("?1"));
        let (mut stream, place) = {
            let mut sender = self.sender.lock().await;
            let stream = sender
                .send_request(request)
                .await
                .map_err(|error| self.refused(error))?;
            let stream = Cancel(Some(stream));
            let place = self.link.announce(stream.id().index());
            (stream, place)
        };
        let state = self.requests.take(place.id);
        let response = loop {
            let response = stream
                .get()
                .recv_response()
                .await
                .map_err(|error| self.refused(error))?;
            if !response.status().is_informational() {
                break response;
            }
        };
        if !response.status().is_success() {
            return Err(CarrierError::new("refused", reason(&response)));
        }
        let outgoing = Arc::new(Outgoing::default());
        let out = Arc::new(Out::new(self.link.clone(), place.id, outgoing.clone()));
        let tunnel = Served::new(Tunnel::new(input, outgoing));
        place.open(&tunnel);
        let (send, recv) = stream.take().split();
        let halves = Halves { send, recv, state };
        self.runtime
            .spawn(stream::run(halves, place, tunnel, Vec::new()));
        Ok((response, out))
    }

    /// Why a request came to nothing.
    fn refused(&self, error: StreamError) -> CarrierError {
        match error {
            StreamError::ConnectionError(error) => failed(&self.engine.0, error),
            StreamError::RemoteClosing => CarrierError::new(
                "closed",
                "the relay takes no further requests on this connection (GOAWAY)",
            ),
            StreamError::RemoteTerminate { code } => {
                CarrierError::new("refused", format!("the relay reset the request ({code})"))
            }
            other => CarrierError::new("http", other.to_string()),
        }
    }
}

/// A request that is cancelled if nobody waits for it any more.
struct Cancel(Option<RequestStream<adapter::BidiStream, Bytes>>);

impl Cancel {
    /// Why the request is there whenever it is asked for.
    const THERE: &str = "made with a request, and only `take` leaves none: it consumes the value";

    fn get(&mut self) -> &mut RequestStream<adapter::BidiStream, Bytes> {
        self.0.as_mut().expect(Self::THERE)
    }

    fn id(&self) -> StreamId {
        self.0.as_ref().expect(Self::THERE).id()
    }

    fn take(mut self) -> RequestStream<adapter::BidiStream, Bytes> {
        self.0.take().expect(Self::THERE)
    }
}

impl Drop for Cancel {
    fn drop(&mut self) {
        if let Some(stream) = &mut self.0 {
            stream.stop_stream(Code::H3_REQUEST_CANCELLED);
            stream.stop_sending(Code::H3_REQUEST_CANCELLED);
        }
    }
}

impl ClientCarrier for H3Carrier {
    fn kind(&self) -> CarrierKind {
        CarrierKind::H3
    }

    fn peer_id(&self) -> Option<PeerId> {
        self.peer_id
    }

    fn open<'a>(
        &'a self,
        request: Request<()>,
        input: Arc<dyn TunnelIn>,
    ) -> BoxFuture<'a, Opening> {
        Box::pin(self.request(request, input))
    }

    fn closed(&self) -> BoxFuture<'_, String> {
        Box::pin(async { describe(&self.engine.0.closed().await) })
    }

    fn rtt(&self) -> Option<Duration> {
        self.link.rtt()
    }

    fn probe(&self) {
        // One answer is for all who ask.
        if !self.probing.swap(true, Ordering::AcqRel) {
            let (engine, probing) = (self.engine.0.clone(), self.probing.clone());
            self.runtime.spawn(async move {
                probe(&engine).await;
                probing.store(false, Ordering::Release);
            });
        }
    }
}

/// Closes the connection if it does not answer.
async fn probe(engine: &noq::Connection) {
    let mut alive = answers(engine).await;
    if alive {
        // That may have been in the socket already when the line broke.
        sleep(PROBE_SETTLE).await;
        alive = answers(engine).await;
    }
    if !alive {
        let reason = b"no answer after a change of network";
        adapter::close(engine, Code::H3_NO_ERROR, reason);
    }
}

/// Whether an acknowledgement arrives within about three round trips.
async fn answers(engine: &noq::Connection) -> bool {
    let acknowledged = || {
        let frames = engine.stats().frame_rx;
        frames.acks + frames.path_acks
    };
    let before = acknowledged();
    let mut rtt = Duration::ZERO;
    for path in paths(engine) {
        rtt = rtt.max(path.stats().rtt);
        // Fails for a path that was closed just now.
        let _ = path.ping();
    }
    let patience = (rtt * PROBE_RTTS + PROBE_EXTRA).clamp(PROBE_MIN, PROBE_MAX);
    let deadline = Instant::now() + patience;
    // The engine tells nobody of acknowledgements, so they are looked for.
    let step = (rtt / 4).clamp(Duration::from_millis(1), Duration::from_millis(20));
    while engine.close_reason().is_none() && acknowledged() == before {
        if Instant::now() >= deadline {
            return false;
        }
        sleep(step).await;
    }
    true
}

/// The connection failed, or the other end does not speak HTTP/3 as it should.
fn failed(engine: &noq::Connection, error: h3::error::ConnectionError) -> CarrierError {
    match engine.close_reason() {
        // Not by us: that is how `h3` ends a connection with its own error.
        Some(reason) if reason != noq::ConnectionError::LocallyClosed => {
            CarrierError::new("closed", describe(&reason))
        }
        _ => CarrierError::new("http", error.to_string()),
    }
}

/// Why the relay refused, in its own words where there are any.
fn reason(response: &Response<()>) -> String {
    let said: Vec<_> = response
        .headers()
        .get_all("proxy-status")
        .iter()
        .filter_map(|value| value.to_str().ok())
        .collect();
    let status = response.status();
    if said.is_empty() {
        format!("the relay answered {status}")
    } else {
        format!(
            "the relay answered {status}; proxy-status: {}",
            said.join(", ")
        )
    }
}
