//! The relay's side of an HTTP/2 connection.

use std::{future::poll_fn, sync::Arc, time::Duration};

use ::h2::{RecvStream, ext::Protocol, server::SendResponse};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, Response, StatusCode};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    task::JoinSet,
    time::{Instant, sleep, timeout},
};

use super::{
    HANDSHAKE_TIMEOUT, describe, health,
    link::{Link, Watched},
    queue::Outgoing,
    server_builder,
    tunnel::{Input, Tunnel},
};
use crate::{
    carrier::{Client, Refused, Service},
    pace::Pace,
};

/// How long a connection may be without a tunnel: time for a client to make its request, and to
/// make the next one after it has lost one.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Requests at once before the pace sets in.
const REQUEST_BURST: u32 = 128;

/// One more every so often. Making and resetting requests at a rate nobody needs is an attack
/// (CVE-2023-44487), also where each of them is accepted.
const REQUEST_PERIOD: Duration = Duration::from_millis(100);

/// Serves one connection, which has finished TLS or whatever else is below HTTP, until it ends.
/// Dropping the future closes it; every tunnel is told.
pub async fn serve<S>(stream: S, client: Client, service: Arc<dyn Service>)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let remote = client.remote;
    let reason = match timeout(HANDSHAKE_TIMEOUT, Session::start(stream, client, service)).await {
        Ok(Ok(session)) => session.run().await,
        Ok(Err(error)) => describe(&error),
        Err(_) => "no HTTP/2 preface in time".to_owned(),
    };
    tracing::debug!(%remote, reason, "HTTP/2 connection ended");
}

struct Session<S> {
    connection: ::h2::server::Connection<Watched<S>, Bytes>,
    context: Arc<Context>,
    requests: Pace,
}

/// What every request of a connection needs.
struct Context {
    client: Client,
    service: Arc<dyn Service>,
    link: Arc<Link>,
}

impl<S> Session<S>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    async fn start(
        stream: S,
        client: Client,
        service: Arc<dyn Service>,
    ) -> Result<Self, ::h2::Error> {
        let link = Link::new();
        let stream = Watched::new(stream, link.clone());
        Ok(Self {
            connection: server_builder().handshake(stream).await?,
            context: Arc::new(Context {
                client,
                service,
                link,
            }),
            requests: Pace::new(REQUEST_BURST, REQUEST_PERIOD, Instant::now()),
        })
    }

    async fn run(mut self) -> String {
        let link = self.context.link.clone();
        let pings = self
            .connection
            .ping_pong()
            .expect("nobody else has asked for it");
        let health = health::watch(pings, &link, health::SERVER_INTERVAL);
        let idle = sleep(IDLE_TIMEOUT);
        tokio::pin!(health, idle);
        let mut leaving = false;
        let mut requests = JoinSet::new();
        let reason = loop {
            tokio::select! {
                biased;
                accepted = self.connection.accept() => match accepted {
                    Some(Ok((request, respond))) => {
                        if !self.requests.take(Instant::now()) {
                            self.connection.abrupt_shutdown(::h2::Reason::ENHANCE_YOUR_CALM);
                            continue;
                        }
                        requests.spawn(answer(self.context.clone(), request, respond));
                    }
                    Some(Err(error)) => break describe(&error),
                    None => break "the peer closed the connection".to_owned(),
                },
                Some(_) = requests.join_next() => {
                    idle.as_mut().reset(Instant::now() + IDLE_TIMEOUT);
                }
                reason = &mut health => break reason,
                () = &mut idle, if requests.is_empty() => {
                    if leaving {
                        break "idle".to_owned();
                    }
                    leaving = true;
                    self.connection.graceful_shutdown();
                    idle.as_mut().reset(Instant::now() + HANDSHAKE_TIMEOUT);
                }
            }
        };
        link.ended(reason.clone());
        // The streams learn of the end from the connection, and have their say before they go.
        drop(self.connection);
        while requests.join_next().await.is_some() {}
        reason
    }
}

/// One request from its arrival to the end of its tunnel.
async fn answer(
    context: Arc<Context>,
    request: Request<RecvStream>,
    mut respond: SendResponse<Bytes>,
) {
    let (parts, recv) = request.into_parts();
    let request = Request::from_parts(parts, ());
    if let Err(refused) = check(&request) {
        return refuse(&mut respond, refused);
    }
    let out = Outgoing::new(context.link.clone());
    let opened = tokio::select! {
        biased;
        opened = context.service.open(&context.client, &request, out.clone()) => opened,
        _ = poll_fn(|cx| respond.poll_reset(cx)) => return out.shut(),
    };
    match opened {
        Err(refused) => {
            out.shut();
            refuse(&mut respond, refused);
        }
        Ok((accepted, input)) => {
            let mut input = Input::new(input);
            let mut response = Response::new(());
            *response.headers_mut() = accepted.headers;
            match respond.send_response(response, false) {
                Ok(send) => Tunnel::new(send, recv, out, input, context.link.clone()).await,
                Err(error) => {
                    out.shut();
                    input.close(&describe(&error));
                }
            }
        }
    }
}

/// Only extended CONNECT for connect-udp is for the service.
fn check(request: &Request<()>) -> Result<(), Refused> {
    let refused = |status, details: &str| {
        let mut headers = HeaderMap::new();
        // RFC 9209, section 2.3.
        let value = format!("anyreach; error=http_request_error; details=\"{details}\"");
        if let Ok(value) = HeaderValue::try_from(value) {
            headers.insert("proxy-status", value);
        }
        Err(Refused { status, headers })
    };
    if request.method() != Method::CONNECT {
        return refused(StatusCode::NOT_FOUND, "only UDP is proxied here, RFC 9298");
    }
    match request.extensions().get::<Protocol>() {
        Some(protocol) if protocol.as_str() == "connect-udp" => Ok(()),
        // RFC 9220, section 3, says 501 for a protocol that is not known.
        Some(_) => refused(StatusCode::NOT_IMPLEMENTED, "only connect-udp is supported"),
        None => refused(StatusCode::NOT_IMPLEMENTED, "TCP is not proxied here"),
    }
}

fn refuse(respond: &mut SendResponse<Bytes>, refused: Refused) {
    let mut response = Response::new(());
    *response.status_mut() = refused.status;
    *response.headers_mut() = refused.headers;
    // A stream that is gone needs no answer.
    let _ = respond.send_response(response, true);
}
