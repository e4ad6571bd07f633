//! The HTTP/2 carrier: extended CONNECT (RFC 8441) over TLS over TCP, with the Capsule Protocol in
//! the data stream, for networks where UDP does not pass.
//!
//! TCP delivers late rather than not at all, which is the opposite of what runs inside wants. So
//! nothing waits where it cannot be dropped: the kernel, TLS and HTTP hold little, and in front of
//! them each tunnel has a short queue of datagrams that loses the oldest ([`queue`]).

mod client;
mod dial;
mod health;
mod link;
mod listen;
mod queue;
mod server;
mod tunnel;

pub use crate::places::Limits;
pub use client::connect;
pub use dial::{Route, Security, Target, dial};
pub use listen::{Authenticate, serve_listener};
pub use server::serve;

use std::time::Duration;

use ::h2::{Error, client as http_client, server as http_server};

/// Flow-control window of a tunnel and of a connection: what is received is taken at once, so it
/// only has to cover the line. 4 MiB is 330 Mbit/s at 100 ms.
const WINDOW: u32 = 4 << 20;

/// Largest DATA frame taken: as much as TLS and TCP are given at a time.
const MAX_FRAME: u32 = 64 << 10;

/// Most bytes of header fields in a request or response. A token is 7 kB.
const MAX_HEADER_LIST: u32 = 16 << 10;

/// Tunnels on one connection. A node has one or two; an ordinary client has one for each of its
/// UDP targets.
const MAX_STREAMS: u32 = 64;

/// Streams reset by us whose last frames may still be on their way.
const MAX_RESET_STREAMS: usize = 32;

/// Resets we may be made to send by protocol errors before the connection is closed.
const MAX_ERROR_RESETS: usize = 64;

/// Streams the peer may have reset before we looked at them (CVE-2023-44487).
const MAX_PENDING_RESETS: usize = 16;

/// Bytes of one tunnel that wait inside HTTP, where they cannot be dropped any more: one write. As
/// much again may wait in TLS (its own default; half of it costs a third more time per byte).
const SEND_BUFFER: usize = 64 << 10;

/// For TLS and the HTTP/2 preface together, after TCP has connected: several round trips of a bad
/// line, as ML-KEM and ML-DSA make flights of 5 kB.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);

/// The same limits for both roles; the builders share no trait.
macro_rules! configure {
    ($builder:expr) => {
        $builder
            .initial_window_size(WINDOW)
            .initial_connection_window_size(WINDOW)
            .max_frame_size(MAX_FRAME)
            .max_header_list_size(MAX_HEADER_LIST)
            .max_concurrent_reset_streams(MAX_RESET_STREAMS)
            .max_local_error_reset_streams(Some(MAX_ERROR_RESETS))
            .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
            .max_send_buffer_size(SEND_BUFFER)
    };
}

fn server_builder() -> http_server::Builder {
    let mut builder = http_server::Builder::new();
    configure!(builder)
        .max_concurrent_streams(MAX_STREAMS)
        .enable_connect_protocol();
    builder
}

fn client_builder() -> http_client::Builder {
    let mut builder = http_client::Builder::new();
    // A relay has nothing to push.
    configure!(builder)
        .max_concurrent_streams(0)
        .enable_push(false);
    builder
}

/// An error of the HTTP library in words.
fn describe(error: &Error) -> String {
    let who = if error.is_remote() {
        "the peer"
    } else {
        "this side"
    };
    match (error.get_io(), error.reason()) {
        (Some(io), _) => format!("the TCP connection failed: {io}"),
        (None, Some(reason)) if error.is_reset() => {
            format!("{who} reset the stream: {}", reason.description())
        }
        (None, Some(reason)) => {
            format!(
                "{who} ended the HTTP/2 connection: {}",
                reason.description()
            )
        }
        (None, None) => format!("HTTP/2 failed: {error}"),
    }
}
