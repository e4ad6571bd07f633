//! Further paths of a connection to addresses of which nobody knows yet whether they lead anywhere.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyreach_net::{SyntheticAddr, canonical, is_possible_peer, is_synthetic};

use super::Endpoint;
use crate::{Connection, DialError, PathOptions, RelayHint, code};

/// How long a path may take to an address that has just answered.
const FOLD_TIMEOUT: Duration = Duration::from_secs(3);

impl Endpoint {
    /// Opens a further path of `connection`, to `remote`, and waits until it is validated; returns
    /// its number.
    ///
    /// Different from [`Connection::open_path`] it makes sure first that the peer answers there, by
    /// a handshake that proves who it is and comes to nothing: the engine cannot take back the
    /// number of a path the peer has never seen, and has but a few. So it can be repeated as often
    /// as one likes, for one round trip more.
    ///
    /// # Errors
    /// Those of [`Endpoint::dial`] and [`Connection::open_path`].
    pub async fn open_path(
        &self,
        connection: &Connection,
        remote: SocketAddr,
        options: PathOptions,
        timeout: Duration,
    ) -> Result<u32, DialError> {
        let remote = canonical(remote);
        // An address a user or a peer supplied must never choose a tunnel.
        if !is_possible_peer(remote) || is_synthetic(remote.ip()) {
            let detail = format!("{remote} is not the address of a host");
            return Err(DialError::new("unreachable", detail));
        }
        let deadline = self.prove(connection, remote, timeout).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        connection.open_path(remote, options, left).await
    }

    /// Opens a further path through a tunnel of this node, as [`open_path`](Self::open_path) does
    /// to an address of the network.
    ///
    /// # Errors
    /// As [`open_path`](Self::open_path).
    pub async fn open_path_through(
        &self,
        connection: &Connection,
        tunnelled: SyntheticAddr,
        options: PathOptions,
        timeout: Duration,
    ) -> Result<u32, DialError> {
        let remote = tunnelled.socket_addr();
        let deadline = self.prove(connection, remote, timeout).await?;
        let left = deadline.saturating_duration_since(Instant::now());
        connection.open_path_through(tunnelled, options, left).await
    }

    /// Makes sure that the peer of `connection` answers at `remote`; the end of `timeout`.
    async fn prove(
        &self,
        connection: &Connection,
        remote: SocketAddr,
        timeout: Duration,
    ) -> Result<Instant, DialError> {
        let now = Instant::now();
        let deadline = now.checked_add(timeout).unwrap_or(now);
        connection.can_open_paths()?;
        if connection.has_path_to(remote) {
            return Ok(deadline);
        }
        let proof = self.handshake(remote, Some(connection.peer_id()));
        let proof = tokio::select! {
            proof = tokio::time::timeout_at(deadline.into(), proof) => proof,
            reason = connection.closed() => return Err(DialError::new("closed", reason.message)),
        };
        let proof = proof.unwrap_or_else(|_| Err(DialError::timeout(false)))?;
        proof.close_as("replaced", code::DUPLICATE, b"");
        Ok(deadline)
    }

    /// A dial has reached a peer to which there is a connection: its way becomes a path of that.
    pub(super) fn fold_in(&self, connection: &Connection, remote: SocketAddr, hint: RelayHint) {
        if connection.can_open_paths().is_err() || connection.has_path_to(remote) {
            return;
        }
        if connection.is_relayed() {
            // What was dialed in vain before answers because the peer has opened its NAT by now.
            connection.coordinated(remote);
        }
        let connection = connection.clone();
        tokio::spawn(async move {
            let options = PathOptions {
                hint,
                standby: false,
            };
            let opened = match SyntheticAddr::from_socket_addr(remote) {
                Some(through) => {
                    let opening = connection.open_path_through(through, options, FOLD_TIMEOUT);
                    opening.await
                }
                None => connection.open_path(remote, options, FOLD_TIMEOUT).await,
            };
            if let Err(error) = opened {
                tracing::debug!(%error, "the way of a lost race did not become a path");
            }
        });
    }
}
