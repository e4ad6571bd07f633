//! Where a relay is, how it may be reached, and what one try to do so came to.

use std::{fmt, net::SocketAddr, sync::Arc, time::Duration};

use anyreach_quic::{Identity, PeerId};
use anyreach_wire::uri_template::{Host, Template};
use http::HeaderValue;

use crate::{
    carrier::{BoxFuture, CarrierError, CarrierKind, ClientCarrier},
    https::proxy::Proxy,
};

/// A relay: who it should be, and where.
#[derive(Debug, Clone)]
pub struct RelayTarget {
    /// Who it has to prove to be. `None`: whoever answers, and the same from then on.
    pub peer: Option<PeerId>,
    /// Where its requests go, its host and port among it.
    pub template: Template,
    /// How it proves who it is.
    pub trust: Trust,
    /// Addresses for HTTP/3, the best first.
    pub udp: Vec<SocketAddr>,
    /// Addresses for HTTP/2 over TCP, the best first.
    pub tcp: Vec<SocketAddr>,
    /// The HTTP proxy on the way, for [`CarrierKind::H2Proxy`]; the relay's name is left for it to
    /// resolve.
    pub proxy: Option<Proxy>,
    /// What goes into the `authorization` field.
    pub credentials: Credentials,
}

impl RelayTarget {
    /// A node that relays, at these addresses for UDP and TCP.
    pub fn node(peer: Option<PeerId>, host: Host, port: u16, addresses: &[SocketAddr]) -> Self {
        Self {
            peer,
            template: Template::well_known(host, port),
            trust: Trust::Node,
            udp: addresses.to_vec(),
            tcp: addresses.to_vec(),
            proxy: None,
            credentials: Credentials::None,
        }
    }
}

/// How a relay proves who it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trust {
    /// With the raw public key of a node, as we do to it.
    Node,
    /// With an X.509 certificate for its name.
    Web,
    /// As a node; where that fails, as a proxy that ends TLS on the way makes it fail, with a
    /// certificate. For users who allow it by name.
    NodeOrWeb,
}

/// What goes into the `authorization` field of a request.
#[derive(Clone, Default)]
pub enum Credentials {
    /// Nothing.
    #[default]
    None,
    /// This, as an operator of a proxy gave it.
    Field(HeaderValue),
    /// A token signed by this identity, where TLS has not proved it: behind a proxy that ends TLS,
    /// or to the listener of a relay for ordinary clients.
    Token(Arc<Identity>),
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::None => "None",
            Self::Field(_) => "Field(..)",
            Self::Token(_) => "Token(..)",
        })
    }
}

/// The carriers to race, each with the time it starts after the beginning. A failure starts the
/// next at once.
pub type Plan = Vec<(CarrierKind, Duration)>;

/// One try to reach a relay that came to nothing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attempt {
    /// The carrier tried.
    pub carrier: CarrierKind,
    /// Where: of the relay, or of the HTTP proxy on the way to it. `None` if it did not come to
    /// dialing one.
    pub address: Option<SocketAddr>,
    /// A short stable word, see [`CarrierError::reason`].
    pub reason: &'static str,
    /// What happened, for people.
    pub detail: String,
    /// Who answered instead of the relay that was wanted.
    pub actual: Option<PeerId>,
    /// How long it took.
    pub elapsed: Duration,
}

impl Attempt {
    pub(super) fn new(
        carrier: CarrierKind,
        address: Option<SocketAddr>,
        error: CarrierError,
        elapsed: Duration,
    ) -> Self {
        Self {
            carrier,
            address,
            reason: error.reason,
            detail: error.detail,
            actual: error.actual,
            elapsed,
        }
    }
}

impl fmt::Display for Attempt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{} to {address}: {}", self.carrier, self.detail),
            None => write!(f, "{}: {}", self.carrier, self.detail),
        }
    }
}

/// A connection to a relay, before any request.
#[derive(Debug, Clone)]
pub struct Dialed {
    /// The connection.
    pub carrier: Arc<dyn ClientCarrier>,
    /// Where it goes: the relay's address, or that of the HTTP proxy on the way to it.
    pub address: Option<SocketAddr>,
}

/// Makes connections to relays.
pub trait CarrierDialer: Send + Sync + 'static {
    /// Connects by one kind of carrier, to whichever of the target's addresses answers first.
    /// Dropping the future ends the attempt.
    ///
    /// # Errors
    /// What was tried, at least one.
    fn dial<'a>(
        &'a self,
        kind: CarrierKind,
        target: &'a RelayTarget,
    ) -> BoxFuture<'a, Result<Dialed, Vec<Attempt>>>;
}
