//! The relay behind a carrier that ends in the test, with real sockets on loopback.

#![allow(clippy::unwrap_used, reason = "tests")]

mod data;
mod hostile;
mod kit;
mod leases;
mod requests;
