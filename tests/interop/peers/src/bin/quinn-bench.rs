//! Raw quinn as a baseline of the benchmarks; see `shared/bench.rs`.

use std::process::ExitCode;

use quinn as quic;

#[path = "../shared/bench.rs"]
mod bench;

/// What is quinn's own.
mod engine {
    use std::net::SocketAddr;

    use bytes::Bytes;
    use quinn::{Connection, ReadError, RecvStream};

    pub(crate) async fn next_chunk(recv: &mut RecvStream) -> Result<Option<Bytes>, ReadError> {
        let chunk = recv.read_chunk(usize::MAX, true).await?;
        Ok(chunk.map(|chunk| chunk.bytes))
    }

    pub(crate) fn remote(connection: &Connection) -> SocketAddr {
        connection.remote_address()
    }
}

fn main() -> ExitCode {
    bench::main()
}
