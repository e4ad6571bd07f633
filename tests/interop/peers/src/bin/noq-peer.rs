//! Stock noq as a peer of our nodes, with address discovery both ways and multipath; see
//! `shared/peer.rs`. Prints an `observed` line for each address it is told.

use std::process::ExitCode;

use noq as quic;
use peers::line::Line;

#[path = "../shared/peer.rs"]
mod peer;

/// What is noq's own.
mod engine {
    use std::{future::poll_fn, net::SocketAddr, pin::Pin};

    use futures_core::Stream as _;
    use noq::{Connection, PathId, TransportConfig};
    use peers::line::Line;

    /// Paths of one connection the peer allows: as many as a node.
    const MAX_PATHS: u32 = 8;

    pub(crate) fn transport() -> TransportConfig {
        let mut config = TransportConfig::default();
        config
            .send_observed_address_reports(true)
            .receive_observed_address_reports(true)
            .max_concurrent_multipath_paths(MAX_PATHS);
        config
    }

    pub(crate) fn watch(connection: &Connection) {
        Line::event("multipath")
            .value("enabled", connection.is_multipath_enabled())
            .print();
        let mut observed = connection.observed_external_addr();
        tokio::spawn(async move {
            while let Some(address) = poll_fn(|cx| Pin::new(&mut observed).poll_next(cx)).await {
                Line::event("observed").text("address", address).print();
            }
        });
    }

    pub(crate) fn remote(connection: &Connection) -> SocketAddr {
        connection
            .path(PathId::ZERO)
            .and_then(|path| path.remote_address().ok())
            .unwrap_or_else(|| SocketAddr::from(([0; 4], 0)))
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match peer::main("noq-peer").await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Line::event("error")
                .text("error", peers::describe(&error))
                .print();
            ExitCode::FAILURE
        }
    }
}
