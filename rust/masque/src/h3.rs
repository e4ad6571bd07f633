//! Tunnels over HTTP/3 (RFC 9114): HTTP Datagrams in QUIC DATAGRAM frames, capsules on the request
//! stream (RFC 9297), extended CONNECT (RFC 9220).
//!
//! Requests, header fields and settings are the business of the `h3` crate, which runs on the
//! engine through [`adapter`]. Datagrams do not pass through it: one task per connection reads
//! them from the engine and hands them out by stream ([`link`], [`dispatch`]). A request stream
//! that has become a tunnel has a task of its own ([`mod@stream`]).
//!
//! What a tunnel is for is not known here; see [`crate::carrier`].

mod adapter;
mod client;
mod dispatch;
mod link;
mod outgoing;
mod server;
mod stream;
mod tunnel;

use anyreach_wire::proxy_fields;
use http::HeaderName;

pub use client::{H3Carrier, connect};
pub use server::{Greeted, MAX_REQUESTS, greet, serve};

/// Most bytes in the header section of a request or response, counted as RFC 9114 section 4.2.2
/// has it. Ours have less than one thousand; this is what common servers take.
const MAX_FIELDS: u64 = 16 << 10;

/// Says that the body is made of capsules (RFC 9297, section 3.4).
const CAPSULE_PROTOCOL: HeaderName = HeaderName::from_static(proxy_fields::CAPSULE_PROTOCOL);
