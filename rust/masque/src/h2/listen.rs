//! Accepting HTTP/2 connections: bounded in number, per source and during the handshake.

use std::{io, sync::Arc, time::Duration};

use anyreach_net::canonical;
use anyreach_quic::PeerId;
use tokio::{
    net::{TcpListener, TcpStream},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;

use super::{HANDSHAKE_TIMEOUT, serve};
use crate::{
    carrier::{CarrierKind, Client, Service},
    https::tcp,
    places::{Limits, Place, Places},
};

/// Tells from a finished handshake who the client proved to be, if anybody:
/// [`anyreach_quic::https::peer_id`] between nodes, `|_| None` with X.509.
pub type Authenticate = fn(&rustls::CommonState) -> Option<PeerId>;

/// Pause after an error of `accept` that is the system's and not the connection's, such as no more
/// file descriptors: others may be closed meanwhile.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Accepts connections and serves them until the future is dropped, which closes them all.
pub async fn serve_listener(
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    authenticate: Authenticate,
    service: Arc<dyn Service>,
    limits: Limits,
) {
    let acceptor = TlsAcceptor::from(tls);
    let places = Places::new(limits);
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((stream, remote)) => {
                let Some(place) = places.take(remote.ip()) else {
                    tracing::debug!(%remote, "TCP connection refused: too many");
                    continue;
                };
                let (acceptor, service) = (acceptor.clone(), service.clone());
                connections.spawn(async move {
                    connection(stream, acceptor, authenticate, service, place).await;
                });
            }
            Err(error) if concerns_connection(&error) => {
                tracing::debug!(%error, "TCP connection lost before it was accepted");
            }
            Err(error) => {
                tracing::warn!(%error, "TCP connections cannot be accepted now");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Errors of `accept` that are about the one connection (accept(2)).
fn concerns_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
            | io::ErrorKind::NetworkDown
            | io::ErrorKind::NetworkUnreachable
            | io::ErrorKind::HostUnreachable
    )
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    authenticate: Authenticate,
    service: Arc<dyn Service>,
    mut place: Place,
) {
    let (Ok(remote), local) = (stream.peer_addr(), stream.local_addr()) else {
        return;
    };
    tcp::configure(&stream);
    let stream = match timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%remote, %error, "TLS handshake failed");
            return;
        }
        Err(_) => {
            tracing::debug!(%remote, "TLS handshake not finished in time");
            return;
        }
    };
    place.handshake_done();
    let client = Client {
        peer_id: authenticate(stream.get_ref().1),
        remote: canonical(remote),
        local: local.ok().map(canonical),
        carrier: CarrierKind::H2,
    };
    serve(stream, client, service).await;
}
