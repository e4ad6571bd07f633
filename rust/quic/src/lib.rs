//! anyreach over QUIC: who a node is, how its connections are secured, and which
//! connection to a peer counts.
//!
//! This crate drives the `noq` engine: it supplies the TLS session (raw ML-DSA-65 public
//! keys both ways, key exchange with ML-KEM-768 only), one connection per peer, and typed
//! events. It holds no policy: which address to dial, when, and what to do about a lost
//! peer is decided in Python. It knows neither Python nor the layout of the socket.

mod arrivals;
mod config;
mod connection;
mod control;
mod crypto;
mod directory;
mod endpoint;
mod error;
mod events;
mod first_flight;
mod identity;
mod openers;
mod paths;
mod reach;
mod registry;
mod steps;
mod throttle;
mod traversal;

pub use anyreach_net::{BindError, IpMode, ParsePrefixError, Prefix};
pub use anyreach_wire::control::{Nat, NatBehaviour, PortAllocation};
pub use config::EndpointConfig;
pub use connection::{Connection, PathOptions, PathSnapshot, RelayHint};
pub use crypto::{PacketTap, SessionConfig, TapFactory, https, tls};
pub use directory::{Directory, Resolved};
pub use endpoint::{DialOutcome, Endpoint, EndpointError, HttpConnection};
pub use error::{CloseReason, DialError, code};
pub use events::Event;
pub use identity::{Identity, IdentityError, PUBLIC_KEY_LEN, PeerId, SIGNATURE_LEN, verify_signed};
pub use openers::{
    MAX_POOL, MAX_REFLECTIONS, MAX_SPRAY, Pool, ReflectError, Reflected, Reflection, Spray, Sprayed,
};
pub use reach::{AddressKind, BoundAt, DirectAddress, FindError, Found, Reach};
pub use steps::{PrepareMethod, Step, StepResult};
