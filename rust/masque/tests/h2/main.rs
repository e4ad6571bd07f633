//! HTTP/2 carriers over real TCP on loopback, with a service that writes down what it is told, and
//! peers that break the rules.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

#[path = "../shared/answering.rs"]
mod answering;
mod answers;
mod endings;
mod hostile;
mod limits;
mod proxies;
mod requests;
mod security;
mod support;
mod tunnels;
mod x509;
