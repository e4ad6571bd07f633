//! The cryptographic side of a connection: TLS configuration, the session the engine
//! drives, and the place where packets can be seen in clear.

mod activity;
mod finished;
pub mod https;
mod hushed;
mod last_words;
mod parameters;
mod responses;
mod retry;
mod session;
mod statuses;
mod tap;
pub mod tls;
mod token_key;

pub(crate) use activity::Activity;
pub(crate) use finished::ProvedKey;
pub(crate) use last_words::Route;
pub(crate) use session::HandshakeInfo;
pub use session::SessionConfig;
pub use tap::{PacketTap, TapFactory};
pub(crate) use token_key::TokenKey;
