//! Raw noq as a baseline of the benchmarks; see `shared/bench.rs`.

use std::process::ExitCode;

use noq as quic;

#[path = "../shared/bench.rs"]
mod bench;

/// What is noq's own.
mod engine {
    use std::net::SocketAddr;

    use bytes::Bytes;
    use noq::{Connection, PathId, ReadError, RecvStream};

    pub(crate) async fn next_chunk(recv: &mut RecvStream) -> Result<Option<Bytes>, ReadError> {
        recv.read_chunk(usize::MAX).await
    }

    pub(crate) fn remote(connection: &Connection) -> SocketAddr {
        connection
            .path(PathId::ZERO)
            .and_then(|path| path.remote_address().ok())
            .unwrap_or_else(|| SocketAddr::from(([0; 4], 0)))
    }
}

fn main() -> ExitCode {
    bench::main()
}
