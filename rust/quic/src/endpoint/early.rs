//! Meeting as soon as the hello is said, a round trip before the two sides have told each other
//! their candidates.
//!
//! Who dials through a relay says with the hello where it can be reached, and often has tried to
//! reach the peer directly just before, so that its NAT lets the peer in. The peer sends openers
//! there; where one gets through there is a path to be had.

use std::{net::SocketAddr, time::Duration};

use super::Endpoint;
use crate::{Connection, PathOptions, Reach};

/// Addresses of the hello that are tried: the best ones. The others are for the rounds.
const MAX_TRIED: usize = 8;

/// How long openers are waited for: they come with the answer to the hello, or never.
const MEETING_TIME: Duration = Duration::from_secs(2);

impl Endpoint {
    /// We have dialed: opens a path to where the peer is first heard from.
    pub(super) fn expect_openers(&self, connection: &Connection) {
        if !connection.is_relayed() {
            return;
        }
        // They may overtake the answer to the hello, which takes the longer way.
        connection.take_openers(&self.0.desk, &self.0.journal);
        let connection = connection.clone();
        tokio::spawn(async move { meet(&connection).await });
    }
}

impl Connection {
    /// The peer has dialed, and said where it can be reached.
    pub(super) fn open_early(&self, reach: &Reach) {
        if self.outbound() || !self.is_relayed() {
            return;
        }
        let addresses = reach.direct.iter().map(|direct| direct.address);
        let addresses: Vec<SocketAddr> = addresses.take(MAX_TRIED).collect();
        for address in &addresses {
            // Its own first packet may be let in by these openers before its answer to one comes.
            self.coordinated(*address);
        }
        self.openers(&addresses, 0);
    }
}

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
