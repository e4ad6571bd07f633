//! The client side of relays: races and reconnects against carriers that exist in memory only,
//! tunnels under real sockets.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod fake;
mod handover;
mod inner;
mod lab;
mod loopback;
mod middle;
mod races;
mod scene;
mod supervision;
mod switch;
mod tunnels;
