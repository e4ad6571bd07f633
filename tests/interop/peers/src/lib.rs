//! What the peer programs share: arguments, JSON lines, TLS, sockets, and the hello of a node.
//!
//! Written from the protocol document and the RFCs, *not* on the crates of this workspace: a peer
//! that used our codecs would agree with our mistakes. Nothing here is for users.

pub mod args;
pub mod hello;
pub mod identity;
pub mod line;
pub mod socket;
pub mod tls;

/// The error of programs: whatever went wrong, as text.
pub type Failure = Box<dyn std::error::Error + Send + Sync>;

/// The application protocol between nodes.
pub const NODE_ALPN: &str = "anyreach/1";

/// The error and what caused it, in one line.
pub fn describe(error: &Failure) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let detail = error.to_string();
        // Many errors already repeat their cause.
        if !text.contains(&detail) {
            text = format!("{text}: {detail}");
        }
        cause = error.source();
    }
    text
}
