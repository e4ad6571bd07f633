//! Stock quinn as a peer of our nodes; see `shared/peer.rs`.

use std::process::ExitCode;

use peers::line::Line;
use quinn as quic;

#[path = "../shared/peer.rs"]
mod peer;

/// What is quinn's own.
mod engine {
    use std::net::SocketAddr;

    use quinn::{Connection, TransportConfig};

    pub(crate) fn transport() -> TransportConfig {
        TransportConfig::default()
    }

    /// quinn has no address discovery.
    pub(crate) fn watch(_connection: &Connection) {}

    pub(crate) fn remote(connection: &Connection) -> SocketAddr {
        connection.remote_address()
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match peer::main("quinn-peer").await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            Line::event("error")
                .text("error", peers::describe(&error))
                .print();
            ExitCode::FAILURE
        }
    }
}
