//! Endpoints on loopback for the tests of this crate.
#![allow(
    missing_docs,
    unreachable_pub,
    clippy::unwrap_used,
    dead_code,
    reason = "test helpers, of which each test uses some"
)]

pub mod line;
pub mod stranger;

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyreach_quic::{Connection, Endpoint, EndpointConfig, Identity};

/// More than any test needs, so that a hang is a failure and not a hang.
pub const LONG: Duration = Duration::from_secs(20);

pub fn loopback() -> SocketAddr {
    ([127, 0, 0, 1], 0).into()
}

pub fn identity() -> Arc<Identity> {
    Arc::new(Identity::generate().unwrap())
}

pub fn endpoint() -> Endpoint {
    endpoint_with(|_| ())
}

pub fn endpoint_with(adjust: impl FnOnce(&mut EndpointConfig)) -> Endpoint {
    let mut config = EndpointConfig::new(loopback());
    adjust(&mut config);
    Endpoint::bind(identity(), config).unwrap()
}

pub async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future)
        .await
        .expect("done in time")
}

/// Dials `to` from `from`; both ends of the connection.
pub async fn connected(from: &Endpoint, to: &Endpoint) -> (Connection, Connection) {
    let dial = from.dial(to.local_addr(), Some(to.identity().peer_id()), LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, to.accept()) }).await;
    (dialed.unwrap().connection, accepted.unwrap())
}
