//! MASQUE for anyreach: proxying UDP in HTTP (RFC 9298) with the bind extension
//! (draft-ietf-masque-connect-udp-listen), as client and as relay, over HTTP/3 and HTTP/2.
//!
//! One relay and one client stand behind [`carrier`]: what differs between HTTP/3, HTTP/2 and
//! HTTP/2 through an HTTP proxy is hidden there. Not here: which relay to use, and when; that is
//! policy, in Python. Nor how bytes are laid out; that is `anyreach-wire`.

pub mod carrier;
pub mod client;
pub mod contexts;
pub mod h2;
pub mod h3;
pub mod https;
mod pace;
mod places;
pub mod relay;
pub mod server;
