//! The client's side of an HTTP/2 connection.

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError, Weak},
    time::Duration,
};

use ::h2::{client::SendRequest, ext::Protocol};
use anyreach_quic::PeerId;
use bytes::Bytes;
use http::{Method, Request, Response, Version};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    sync::watch,
    time::{sleep, timeout},
};

use super::{
    HANDSHAKE_TIMEOUT, client_builder, describe, health,
    link::{Link, Watched},
    queue::Outgoing,
    tunnel::{Input, Tunnel},
};
use crate::carrier::{
    BoxFuture, CarrierError, CarrierKind, ClientCarrier, Close, TunnelIn, TunnelOut,
};

/// How long a connection may take to end in good order once its last handle is gone.
const FAREWELL: Duration = Duration::from_secs(3);

/// A connection to a relay over HTTP/2.
pub(super) struct Carrier {
    kind: CarrierKind,
    peer_id: Option<PeerId>,
    requests: SendRequest<Bytes>,
    link: Arc<Link>,
    tunnels: Mutex<Vec<Weak<Outgoing>>>,
    /// Why the connection has ended, once it has.
    ended: watch::Receiver<Option<String>>,
    /// Dropped with the last handle: the connection then has to come to its end.
    _handle: watch::Sender<()>,
}

/// Speaks HTTP/2 over `stream`, at the other end of which TLS has proved `peer_id`. Returns when
/// the relay has answered and turned out to take extended CONNECT. Must be called within a tokio
/// runtime; the connection runs on a task of its own.
///
/// # Errors
/// `http` if it does not speak HTTP/2, `no-connect-udp`, `closed` or `handshake-timeout`.
pub async fn connect<S>(
    stream: S,
    kind: CarrierKind,
    peer_id: Option<PeerId>,
) -> Result<impl ClientCarrier, CarrierError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    timeout(HANDSHAKE_TIMEOUT, start(stream, kind, peer_id))
        .await
        .unwrap_or_else(|_| {
            Err(CarrierError::new(
                "handshake-timeout",
                "the relay did not answer over HTTP/2",
            ))
        })
}

async fn start<S>(
    stream: S,
    kind: CarrierKind,
    peer_id: Option<PeerId>,
) -> Result<Carrier, CarrierError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let link = Link::new();
    let stream = Watched::new(stream, link.clone());
    let (requests, mut connection) = client_builder()
        .handshake(stream)
        .await
        .map_err(|error| http_error(&error))?;
    let mut pings = connection
        .ping_pong()
        .expect("nobody else has asked for it");
    // The server's SETTINGS precede its answer, so this costs no round trip more.
    tokio::select! {
        biased;
        ended = &mut connection => {
            return Err(ended.map_or_else(
                |error| http_error(&error),
                |()| CarrierError::new("closed", "the relay closed the connection"),
            ));
        }
        answered = health::first_answer(&mut pings, &link) => {
            answered.map_err(|error| http_error(&error))?;
        }
    }
    if !requests.is_extended_connect_protocol_enabled() {
        return Err(CarrierError::new(
            "no-connect-udp",
            "the server does not do extended CONNECT (RFC 8441): it is no relay, or a proxy in \
             between is too old",
        ));
    }
    let (ended_tx, ended) = watch::channel(None);
    let (handle, mut handles) = watch::channel(());
    let task_link = link.clone();
    tokio::spawn(async move {
        let link = task_link;
        let reason = {
            let dropped = async {
                // Ends with an error, when the sender is gone.
                while handles.changed().await.is_ok() {}
                sleep(FAREWELL).await;
            };
            tokio::select! {
                biased;
                ended = connection => match ended {
                    Ok(()) => "the relay closed the connection".to_owned(),
                    Err(error) => describe(&error),
                },
                reason = health::watch(pings, &link, health::CLIENT_INTERVAL) => reason,
                () = dropped => "closed by this side".to_owned(),
            }
        };
        link.ended(reason.clone());
        let _ = ended_tx.send(Some(reason));
    });
    Ok(Carrier {
        kind,
        peer_id,
        requests,
        link,
        tunnels: Mutex::default(),
        ended,
        _handle: handle,
    })
}

fn http_error(error: &::h2::Error) -> CarrierError {
    if error.is_io() {
        CarrierError::new("closed", describe(error))
    } else {
        CarrierError::new("http", describe(error))
    }
}

impl Carrier {
    async fn request(
        &self,
        mut request: Request<()>,
        input: Arc<dyn TunnelIn>,
    ) -> Result<(Response<()>, Arc<dyn TunnelOut>), CarrierError> {
        *request.method_mut() = Method::CONNECT;
        *request.version_mut() = Version::HTTP_2;
        request
            .extensions_mut()
            .insert(Protocol::from_static("connect-udp"));
        let failed = |error: ::h2::Error| match self.link.reason() {
            Some(reason) if !error.is_reset() => CarrierError::new("closed", reason),
            _ if error.is_reset() => CarrierError::new("http", describe(&error)),
            _ => CarrierError::new("closed", describe(&error)),
        };
        let mut requests = self.requests.clone().ready().await.map_err(failed)?;
        let (response, send) = requests.send_request(request, false).map_err(failed)?;
        drop(requests);
        let response = response.await.map_err(failed)?;
        let (parts, recv) = response.into_parts();
        let response = Response::from_parts(parts, ());
        if !response.status().is_success() {
            return Err(refusal(&response));
        }
        let out = Outgoing::new(self.link.clone());
        self.register(&out);
        let tunnel = Tunnel::new(
            send,
            recv,
            out.clone(),
            Input::new(input),
            self.link.clone(),
        );
        tokio::spawn(tunnel);
        Ok((response, out))
    }

    fn register(&self, out: &Arc<Outgoing>) {
        // Nothing panics while holding the lock.
        let mut tunnels = self.tunnels.lock().unwrap_or_else(PoisonError::into_inner);
        tunnels.retain(|tunnel| tunnel.strong_count() > 0);
        tunnels.push(Arc::downgrade(out));
    }
}

/// A response that is none of success, in words.
fn refusal(response: &Response<()>) -> CarrierError {
    let mut detail = format!("the relay answered {}", response.status());
    for value in response.headers().get_all("proxy-status") {
        detail.push_str("; proxy-status: ");
        detail.extend(
            String::from_utf8_lossy(value.as_bytes())
                .chars()
                .filter(|c| !c.is_control()),
        );
    }
    CarrierError::new("refused", detail)
}

impl ClientCarrier for Carrier {
    fn kind(&self) -> CarrierKind {
        self.kind
    }

    fn peer_id(&self) -> Option<PeerId> {
        self.peer_id
    }

    fn open<'a>(
        &'a self,
        request: Request<()>,
        input: Arc<dyn TunnelIn>,
    ) -> BoxFuture<'a, Result<(Response<()>, Arc<dyn TunnelOut>), CarrierError>> {
        Box::pin(self.request(request, input))
    }

    fn closed(&self) -> BoxFuture<'_, String> {
        let mut ended = self.ended.clone();
        Box::pin(async move {
            match ended.wait_for(Option::is_some).await {
                Ok(reason) => reason.clone().unwrap_or_default(),
                // The runtime has ended and taken the task with it.
                Err(_) => "closed by this side".to_owned(),
            }
        })
    }

    fn rtt(&self) -> Option<Duration> {
        self.link.rtt()
    }

    fn probe(&self) {
        self.link.request_probe();
    }
}

impl Drop for Carrier {
    fn drop(&mut self) {
        let tunnels = self
            .tunnels
            .get_mut()
            .unwrap_or_else(PoisonError::into_inner);
        for tunnel in tunnels.iter().filter_map(Weak::upgrade) {
            tunnel.close(Close::Done);
        }
    }
}

impl fmt::Debug for Carrier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("h2::Carrier")
            .field("kind", &self.kind)
            .field("peer_id", &self.peer_id)
            .field("rtt", &self.link.rtt())
            .finish_non_exhaustive()
    }
}
