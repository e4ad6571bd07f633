//! Punching as soon as there are keys: together with the hello, a round trip before the two sides
//! know more of each other.

use std::{
    net::SocketAddr,
    sync::{Arc, PoisonError},
    time::Duration,
};

use super::Endpoint;
use crate::{Connection, PathOptions};

/// How long the first packet of the peer is waited for: its probes of one round come within four
/// seconds.
const MEETING_TIME: Duration = Duration::from_secs(4);

impl Endpoint {
    /// Addresses of ours that are told at once to every peer that is reached through a relay, in
    /// place of those given before: when we have dialed, by a [round](Connection::start_round) of
    /// which the peer's probes are back with its hello, else as
    /// [candidates](Connection::set_candidates). None by default, and none is right where a NAT
    /// shows every peer another address.
    pub fn set_early_candidates(&self, candidates: impl IntoIterator<Item = SocketAddr>) {
        let candidates: Arc<[SocketAddr]> = candidates.into_iter().collect();
        *self.0.early.lock().unwrap_or_else(PoisonError::into_inner) = candidates;
    }

    /// The handshake of a connection is through.
    pub(super) fn punch_early(&self, connection: &Connection) {
        let early = self.0.early.lock();
        let early = early.unwrap_or_else(PoisonError::into_inner).clone();
        if early.is_empty() || !is_relayed(connection) {
            return;
        }
        if !connection.outbound() {
            connection.set_candidates(&early);
            return;
        }
        // The answer may overtake the hello, which takes the longer way.
        connection.take_openers(&self.0.desk, &self.0.journal);
        match connection.start_early_round(&early) {
            Ok(_) => {
                let connection = connection.clone();
                tokio::spawn(async move { meet(&connection).await });
            }
            Err(error) => tracing::debug!(%error, "no round with the hello"),
        }
    }
}

/// Opens a path to where the peer is first heard from.
async fn meet(connection: &Connection) {
    let path = async {
        let address = connection.heard_at().await?;
        // The peer answers no probes before.
        connection.engine().handshake_confirmed().await.ok()?;
        let opening = connection.open_path(address, PathOptions::default(), MEETING_TIME);
        Some(opening.await)
    };
    let met = tokio::time::timeout(MEETING_TIME, path).await;
    if let Ok(Some(Err(error))) = met {
        tracing::debug!(%error, "no path with the hello");
    }
}

fn is_relayed(connection: &Connection) -> bool {
    let paths = connection.paths();
    paths.iter().all(|path| path.method == "relayed")
}
