//! The side of the relay: takes requests, and has the [`Service`] decide about them.

use std::{fmt, pin::pin, sync::Arc, time::Duration};

use anyreach_wire::uri_template::WELL_KNOWN_PREFIX;
use bytes::Bytes;
use h3::{
    error::Code,
    ext::Protocol,
    quic::SendStream as _,
    server::{RequestResolver, RequestStream},
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode, header, uri::Scheme};
use tokio::{
    task::JoinSet,
    time::{Instant, timeout},
};

use super::{
    CAPSULE_PROTOCOL, MAX_FIELDS,
    adapter::{self, RecvState, Requests},
    link::{self, Link},
    outgoing::Outgoing,
    stream::{self, Halves, Sending, body},
    tunnel::{Out, Tunnel},
};
use crate::{
    carrier::{Accepted, Client, Close, Decision, Refused, Service},
    pace::Pace,
};

/// Requests of one connection at once. RFC 9114 section 6.1 wants 100 to be possible; a client
/// needs one for all its peers, or one per target without the bind extension.
pub const MAX_REQUESTS: u32 = 128;

/// Requests at once before the pace sets in.
const REQUEST_BURST: u32 = 2 * MAX_REQUESTS;

/// One more every so often. Making requests and resetting them at a rate nobody needs is an attack
/// (CVE-2023-44487), also where each of them is accepted: sockets are bound for them.
const REQUEST_PERIOD: Duration = Duration::from_millis(100);

/// For the header section of a request to arrive, and for the peer to take that of the response.
const HEADER_TIME: Duration = Duration::from_secs(10);

/// Bytes of capsules taken before the request is decided: the contexts an optimistic client opens,
/// and a first flight that does not fit into datagrams.
const MAX_EARLY: usize = 16 << 10;

type Resolver = RequestResolver<adapter::Connection, Bytes>;
type Whole = RequestStream<adapter::BidiStream, Bytes>;
type SendHalf = RequestStream<adapter::SendStream, Bytes>;
type RecvHalf = RequestStream<adapter::RecvStream, Bytes>;

/// Serves one HTTP/3 connection of `client` to its end: extended CONNECT requests for UDP are put
/// to `service`, all others are answered with an error.
///
/// The connection is closed when this returns, or is dropped; every tunnel has then been told.
pub async fn serve(connection: noq::Connection, client: Client, service: Arc<dyn Service>) {
    if let Some(greeted) = greet(connection).await {
        greeted.serve(client, service).await;
    }
}

/// Says what this relay can do, which needs no knowledge of the client. Where the engine may send
/// before the handshake is complete (`into_0rtt` of an accepted connection), the client can make
/// its first request together with the end of the handshake, and so saves a round trip.
///
/// `None` if the connection ended.
pub async fn greet(connection: noq::Connection) -> Option<Greeted> {
    connection.set_max_concurrent_bi_streams(MAX_REQUESTS.into());
    let adapter = adapter::Connection::new(connection.clone());
    let requests = adapter.requests();
    let built = h3::server::builder()
        .max_field_section_size(MAX_FIELDS)
        .enable_extended_connect(true)
        .enable_datagram(true)
        // One stream more than a client with few of them expects, for nothing here.
        .send_grease(false)
        .build(adapter)
        .await;
    match built {
        Ok(http) => {
            let link = Arc::new(Link::new(connection, http.inner.shared.clone()));
            Some(Greeted {
                http,
                link,
                requests,
            })
        }
        Err(error) => {
            tracing::debug!(%error, "HTTP/3 did not start");
            None
        }
    }
}

/// An HTTP/3 connection on which the relay has introduced itself; see [`greet`]. Closed when
/// dropped.
pub struct Greeted {
    http: h3::server::Connection<adapter::Connection, Bytes>,
    link: Arc<Link>,
    requests: Requests,
}

impl fmt::Debug for Greeted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Greeted")
            .field("link", &self.link)
            .finish_non_exhaustive()
    }
}

impl Greeted {
    /// The rest of [`serve`], for which the handshake must be complete: requests are taken.
    pub async fn serve(self, client: Client, service: Arc<dyn Service>) {
        let Self {
            mut http,
            link,
            requests,
        } = self;
        let server = Arc::new(Server {
            link: link.clone(),
            requests,
            client,
            service,
        });
        let mut pace = Pace::new(REQUEST_BURST, REQUEST_PERIOD, Instant::now());
        let mut tasks = JoinSet::new();
        // Ends with the connection only, or ends it.
        tasks.spawn(link.clone().receive_or_close());
        loop {
            tokio::select! {
                accepted = http.accept() => match accepted {
                    Ok(Some(_)) if !pace.take(Instant::now()) => {
                        link.close(Code::H3_EXCESSIVE_LOAD, "more requests than anybody needs");
                        break;
                    }
                    Ok(Some(resolver)) => {
                        let id = resolver.frame_stream.id().index();
                        // In order, before a datagram could be taken for one that came too late.
                        let request = link.announce(id);
                        let room = tasks.len() <= MAX_REQUESTS as usize;
                        tasks.spawn(server.clone().answer(resolver, request, room));
                    }
                    Ok(None) => break,
                    Err(error) => {
                        tracing::debug!(%error, "HTTP/3 connection ended");
                        break;
                    }
                },
                Some(ended) = tasks.join_next() => report(ended),
            }
        }
        // Closes the connection, and with it ends what is left.
        drop(http);
        while let Some(ended) = tasks.join_next().await {
            report(ended);
        }
    }
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        tracing::error!(%error, "an HTTP/3 request failed");
    }
}

/// What the requests of one connection share.
struct Server {
    link: Arc<Link>,
    requests: Requests,
    client: Client,
    service: Arc<dyn Service>,
}

impl Server {
    /// Answers one request, and serves the tunnel it makes.
    async fn answer(self: Arc<Self>, mut resolver: Resolver, place: link::Request, room: bool) {
        if !room {
            resolver
                .frame_stream
                .reset(Code::H3_REQUEST_REJECTED.value());
            return;
        }
        let state = self.requests.take(place.id);
        let (request, stream) = match timeout(HEADER_TIME, resolver.resolve_request()).await {
            Ok(Ok(resolved)) => resolved,
            Ok(Err(error)) => {
                tracing::debug!(%error, "bad HTTP/3 request");
                return;
            }
            // Dropped, and so reset.
            Err(_) => return,
        };
        if self.link.settings_contradict() {
            return;
        }
        if let Err(refused) = check(&request) {
            return respond(stream, refused).await;
        }
        self.tunnel(request, stream, state, place).await;
    }

    async fn tunnel(
        &self,
        request: Request<()>,
        stream: Whole,
        state: RecvState,
        place: link::Request,
    ) {
        let (mut send, mut recv) = stream.split();
        let outgoing = Arc::new(Outgoing::default());
        // Whatever comes, nobody goes on sending to a stream that is no more.
        let _closed = CloseOnDrop(&outgoing);
        let out = Arc::new(Out::new(self.link.clone(), place.id, outgoing.clone()));
        let mut early = Vec::new();
        let decision = {
            let opening = self.service.open(&self.client, &request, out);
            decide(opening, &mut recv, &state, &mut early).await
        };
        match decision {
            None => send.reset(Code::H3_REQUEST_CANCELLED),
            Some(Err(refused)) => {
                respond_half(&mut send, refused).await;
                recv.stop_sending(Code::H3_NO_ERROR);
            }
            Some(Ok((accepted, input))) => {
                let tunnel = stream::Served::new(Tunnel::new(input, outgoing.clone()));
                place.open(&tunnel);
                match timeout(HEADER_TIME, send.send_response(success(accepted))).await {
                    Ok(Ok(())) => {
                        let halves = Halves { send, recv, state };
                        stream::run(halves, place, tunnel, early).await;
                    }
                    failed => {
                        tracing::debug!(?failed, "the response was not taken");
                        tunnel.end("the client did not take the response");
                        send.reset(Code::H3_INTERNAL_ERROR);
                    }
                }
            }
        }
    }
}

/// Waits for the decision as long as the client is there; `None` if it is not.
async fn decide(
    opening: impl Future<Output = Decision>,
    recv: &mut RecvHalf,
    state: &RecvState,
    early: &mut Vec<Bytes>,
) -> Option<Decision> {
    let mut opening = pin!(opening);
    let mut length = 0;
    loop {
        tokio::select! {
            biased;
            decided = &mut opening => return Some(decided),
            piece = body(recv, state), if length < MAX_EARLY => match piece {
                Ok(Some(piece)) => {
                    length += piece.len();
                    early.push(piece);
                }
                // Without its sending half there is no tunnel.
                Ok(None) | Err(_) => return None,
            },
        }
    }
}

struct CloseOnDrop<'a>(&'a Outgoing);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close(Close::Done);
    }
}

fn success(accepted: Accepted) -> Response<()> {
    let mut response = Response::new(());
    *response.headers_mut() = accepted.headers;
    response
        .headers_mut()
        .entry(CAPSULE_PROTOCOL)
        .or_insert(HeaderValue::from_static("?1"));
    response
}

/// Whether this is a request for a tunnel at all. What it asks for is for the service to judge.
fn check(request: &Request<()>) -> Result<(), Refused> {
    let refuse = |status, headers| Err(Refused { status, headers });
    let ours = request.uri().path().starts_with(WELL_KNOWN_PREFIX);
    if request.method() != Method::CONNECT {
        if !ours {
            return refuse(StatusCode::NOT_FOUND, HeaderMap::new());
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::ALLOW, HeaderValue::from_static("CONNECT"));
        return refuse(StatusCode::METHOD_NOT_ALLOWED, headers);
    }
    // RFC 9220 section 3 has 501 for protocols that are not known, too; those `h3` does not know
    // it calls malformed.
    if request.extensions().get::<Protocol>() != Some(&Protocol::CONNECT_UDP) {
        return refuse(StatusCode::NOT_IMPLEMENTED, HeaderMap::new());
    }
    // RFC 9298, section 3.4; the scheme and the path of an extended CONNECT are not empty.
    if request.uri().scheme() != Some(&Scheme::HTTPS) || request.uri().path_and_query().is_none() {
        return refuse(StatusCode::BAD_REQUEST, HeaderMap::new());
    }
    if !ours {
        return refuse(StatusCode::NOT_FOUND, HeaderMap::new());
    }
    Ok(())
}

/// Sends a whole response.
async fn respond(mut stream: Whole, refused: Refused) {
    let sent = timeout(HEADER_TIME, async {
        stream.send_response(refusal(refused)).await?;
        stream.finish().await
    });
    if !matches!(sent.await, Ok(Ok(()))) {
        stream.stop_stream(Code::H3_INTERNAL_ERROR);
    }
    // What else the request may bring is of no interest (RFC 9114, section 4.1).
    stream.stop_sending(Code::H3_NO_ERROR);
}

/// The same where the halves are apart already.
async fn respond_half(send: &mut SendHalf, refused: Refused) {
    let sent = timeout(HEADER_TIME, async {
        send.send_response(refusal(refused)).await?;
        send.finish().await
    });
    if !matches!(sent.await, Ok(Ok(()))) {
        send.reset(Code::H3_INTERNAL_ERROR);
    }
}

fn refusal(refused: Refused) -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = refused.status;
    *response.headers_mut() = refused.headers;
    response
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn status(method: &str, uri: &str, protocol: Option<Protocol>) -> u16 {
        let mut request = Request::builder().method(method).uri(uri).body(()).unwrap();
        if let Some(protocol) = protocol {
            request.extensions_mut().insert(protocol);
        }
        match check(&request) {
            Ok(()) => 200,
            Err(refused) => refused.status.as_u16(),
        }
    }

    #[test]
    fn only_requests_for_udp_get_through() {
        let udp = Some(Protocol::CONNECT_UDP);
        let uri = "https://relay/.well-known/masque/udp/192.0.2.1/53/";
        assert_eq!(status("CONNECT", uri, udp), 200);
        assert_eq!(status("GET", uri, None), 405);
        assert_eq!(status("GET", "https://relay/", None), 404);
        assert_eq!(status("CONNECT", "https://relay/other", udp), 404);
        assert_eq!(status("CONNECT", uri, Some(Protocol::WEB_TRANSPORT)), 501);
        assert_eq!(status("CONNECT", "relay:443", None), 501);
        assert_eq!(status("CONNECT", "relay:443", udp), 400);
        assert_eq!(
            status("CONNECT", "http://relay/.well-known/masque/udp/a/1/", udp),
            400
        );
    }
}
