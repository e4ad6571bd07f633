//! The client side of relays: races and reconnects against carriers that exist in memory only,
//! tunnels under real sockets.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod fake;
mod inner;
mod loopback;
mod races;
mod supervision;
mod switch;
mod tunnels;
