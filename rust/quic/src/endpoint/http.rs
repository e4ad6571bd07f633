//! HTTP/3 connections on the endpoint's socket: the carriers of MASQUE. They prove the same
//! identities as connections between nodes, but are none: no hello, no registry, no events.

use std::{
    net::{IpAddr, SocketAddr},
    sync::{MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use anyreach_net::{canonical, is_possible_peer, is_synthetic};
use noq::VarInt;
use tokio::sync::{
    Mutex,
    mpsc::{self, error::TrySendError},
};

use super::{Endpoint, admission::Permit};
use crate::{PeerId, crypto::tls, error::DialError};

/// HTTP/3 connections accepted and not yet taken: taking one is a matter of microseconds.
const MAX_WAITING: usize = 64;

/// H3_NO_ERROR (RFC 9114, section 8.1): nobody here serves HTTP.
const H3_NO_ERROR: VarInt = VarInt::from_u32(0x100);

/// An HTTP/3 connection between two nodes, before anything was said on it.
#[derive(Debug)]
pub struct HttpConnection {
    /// The engine's connection.
    pub engine: noq::Connection,
    /// Who is at the other end, proved by the handshake.
    pub peer_id: PeerId,
    /// Where it is, canonical.
    pub remote: SocketAddr,
    /// Our address it came to or went out from, where the system tells it, canonical.
    pub local_ip: Option<IpAddr>,
    /// Its place among the connections of the endpoint.
    #[expect(dead_code, reason = "it is there to be dropped")]
    permit: Option<Permit>,
}

/// Accepted HTTP/3 connections on their way to whoever serves them.
#[derive(Debug)]
pub(super) struct HttpArrivals {
    /// Gone once the endpoint is closed.
    send: std::sync::Mutex<Option<mpsc::Sender<HttpConnection>>>,
    receive: Mutex<mpsc::Receiver<HttpConnection>>,
}

impl Default for HttpArrivals {
    fn default() -> Self {
        let (send, receive) = mpsc::channel(MAX_WAITING);
        Self {
            send: std::sync::Mutex::new(Some(send)),
            receive: Mutex::new(receive),
        }
    }
}

impl HttpArrivals {
    fn sender(&self) -> MutexGuard<'_, Option<mpsc::Sender<HttpConnection>>> {
        // Nothing panics while holding the lock.
        self.send.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// No more are taken in.
    pub(super) fn close(&self) {
        *self.sender() = None;
    }
}

impl Endpoint {
    /// The next HTTP/3 connection a node made to this endpoint; `None` once it is closed. Only with
    /// [`EndpointConfig::serve_h3`](crate::EndpointConfig::serve_h3).
    pub async fn accept_http(&self) -> Option<HttpConnection> {
        self.0.http_arrivals.receive.lock().await.recv().await
    }

    pub(super) fn http_arrived(&self, engine: noq::Connection, permit: Permit) {
        let connection = match self.identify(&engine) {
            Ok(identified) => http_connection(engine, identified.peer_id, Some(permit)),
            Err(_) => return,
        };
        if is_synthetic(connection.remote.ip()) {
            // Where it comes from is known to a relay only. What is lent by the address of who asks
            // cannot be lent there, and tunnels in tunnels can be made to lead into themselves.
            let reason = b"no relaying through a relay";
            connection.engine.close(H3_NO_ERROR, reason);
            return;
        }
        let send = self.0.http_arrivals.sender().clone();
        let refused = match send {
            Some(send) => send
                .try_send(connection)
                .err()
                .map(TrySendError::into_inner),
            None => Some(connection),
        };
        if let Some(refused) = refused {
            let reason = b"nobody takes this connection";
            refused.engine.close(H3_NO_ERROR, reason);
        }
    }

    /// Connects to the node at `addr` for HTTP/3, and if `expected` is given, to nobody else.
    /// Dropping the future ends the attempt.
    ///
    /// # Errors
    /// As [`dial`](Self::dial).
    pub async fn dial_http(
        &self,
        addr: SocketAddr,
        expected: Option<PeerId>,
        timeout: Duration,
    ) -> Result<HttpConnection, DialError> {
        let name = expected.map_or_else(|| tls::ANY_PEER.to_owned(), |peer| peer.to_string());
        let engine = self
            .connect_http(self.0.http_client.clone(), addr, &name, timeout)
            .await?;
        let peer_id = self.identify(&engine)?.peer_id;
        if peer_id == self.0.identity.peer_id() {
            engine.close(H3_NO_ERROR, b"");
            return Err(DialError::self_dial());
        }
        Ok(http_connection(engine, peer_id, None))
    }

    /// Connects by QUIC with a TLS configuration of the caller's, as to an HTTP/3 proxy that is no
    /// node.
    ///
    /// # Errors
    /// As [`dial`](Self::dial).
    pub async fn connect_http(
        &self,
        mut config: noq::ClientConfig,
        addr: SocketAddr,
        server_name: &str,
        timeout: Duration,
    ) -> Result<noq::Connection, DialError> {
        let addr = canonical(addr);
        if !is_possible_peer(addr) || is_synthetic(addr.ip()) {
            let detail = format!("{addr} is not the address of a host");
            return Err(DialError::new("unreachable", detail));
        }
        config.transport_config(self.0.config.http_transport());
        let begun = Instant::now();
        let connected = self.connect_engine(config, addr, server_name);
        match tokio::time::timeout(timeout, connected).await {
            Ok(connected) => connected,
            Err(_) => {
                tracing::debug!(%addr, after = ?begun.elapsed(), "no HTTP/3 there");
                Err(DialError::timeout(false))
            }
        }
    }
}

fn http_connection(
    engine: noq::Connection,
    peer_id: PeerId,
    permit: Option<Permit>,
) -> HttpConnection {
    let path = engine.path(noq::PathId::ZERO);
    let network = path.and_then(|path| path.network_path().ok());
    HttpConnection {
        peer_id,
        remote: network.map_or_else(
            || SocketAddr::from(([0, 0, 0, 0], 0)),
            |network| canonical(network.remote()),
        ),
        local_ip: network
            .and_then(|network| network.local_ip())
            .map(|ip| ip.to_canonical()),
        engine,
        permit,
    }
}
