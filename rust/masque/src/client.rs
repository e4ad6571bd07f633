//! The client side of relays: tunnels that bring the engine's datagrams to a relay and back, and
//! stay while the connections that carry them come and go.
//!
//! A [`Tunnel`] is a way under the node's socket (`anyreach_net::Tunnel`) whose remotes are dialed
//! by synthetic addresses. Its supervisor races carriers ([`race`]) for the request of
//! RFC 9298 with the bind extension, or without it towards a single target, and gets another one
//! whenever one is lost. Which relay, which carriers and when is policy, in Python; who opens which
//! context is in [`crate::contexts`].

mod backoff;
mod bridge;
mod control;
mod counters;
mod dialers;
mod directory;
mod race;
mod remotes;
mod request;
mod session;
pub(crate) mod stagger;
mod state;
mod supervisor;
mod target;
mod tunnel;

pub use self::{
    backoff::{FIRST_DELAY, MAX_DELAY, STABLE_AFTER},
    bridge::RemoteError,
    counters::TunnelCounters,
    dialers::Dialers,
    directory::TunnelDirectory,
    race::{CARRIER_TIMEOUT, Won, race},
    remotes::{MAX_REMOTES, REMOTE_IDLE, RemotesFull},
    state::{Closed, Down, State, Up},
    target::{Attempt, CarrierDialer, Credentials, Dialed, Plan, RelayTarget, Trust},
    tunnel::{Purpose, Tunnel, TunnelOptions, Tunnels},
};
