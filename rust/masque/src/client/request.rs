//! The request for a tunnel, and what its answer says (RFC 9298, section 3;
//! draft-ietf-masque-connect-udp-listen, sections 2, 5 and 6).

use std::{fmt, net::SocketAddr, time::SystemTime};

use anyreach_quic::tls::crypto_provider;
use anyreach_wire::{
    proxy_fields::{
        ANYREACH_NODE, CAPSULE_PROTOCOL, CONNECT_UDP_BIND, PROXY_PUBLIC_ADDRESS, TRUE,
        read_addresses, read_boolean,
    },
    uri_template::Target,
};
use http::{HeaderMap, HeaderValue, Method, Request, Response, header};

use super::target::{Credentials, RelayTarget};
use crate::{
    carrier::{CarrierError, ClientCarrier},
    contexts::Mode,
    https::token::{Audience, issue},
    relay::ANYREACH_LEASE,
};

/// Bytes of a lease: enough that nobody guesses another's.
const LEASE_LEN: usize = 16;

/// Under which name a relay keeps a tunnel's bound socket while the tunnel has no carrier.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Lease([u8; LEASE_LEN]);

impl Lease {
    /// A fresh one; `None` if the system gives no randomness.
    pub(super) fn random() -> Option<Self> {
        let mut bytes = [0; LEASE_LEN];
        crypto_provider().secure_random.fill(&mut bytes).ok()?;
        Some(Self(bytes))
    }

    fn to_value(self) -> HeaderValue {
        let hex: String = self.0.iter().map(|byte| format!("{byte:02x}")).collect();
        let mut value = HeaderValue::try_from(hex).expect("hexadecimal digits");
        // Who knows it may get our packets.
        value.set_sensitive(true);
        value
    }
}

impl fmt::Debug for Lease {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Lease(..)")
    }
}

/// What the tunnel is asked for with.
#[derive(Debug, Clone)]
pub(super) enum TunnelRequest {
    /// A bound address for any remote.
    Bind(Option<Lease>),
    /// One target.
    Target(SocketAddr),
}

/// What a 2xx response says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    pub(super) mode: Mode,
    pub(super) public: Vec<SocketAddr>,
    pub(super) node: Vec<SocketAddr>,
}

impl TunnelRequest {
    /// The request, for this carrier. Credentials may be good once only, so it is made anew for
    /// each.
    pub(super) fn to_http(
        &self,
        target: &RelayTarget,
        carrier: &dyn ClientCarrier,
    ) -> Result<Request<()>, CarrierError> {
        let path = target.template.expand(&match self {
            Self::Bind(_) => Target::Any,
            Self::Target(remote) => Target::address(*remote),
        });
        let authority = target.template.authority();
        let mut request = Request::builder()
            .method(Method::CONNECT)
            .uri(format!("https://{authority}{path}"))
            .body(())
            .map_err(|error| CarrierError::new("http", format!("no request: {error}")))?;
        let fields = request.headers_mut();
        let yes = HeaderValue::from_static(TRUE);
        fields.insert(CAPSULE_PROTOCOL, yes.clone());
        if let Self::Bind(lease) = self {
            fields.insert(CONNECT_UDP_BIND, yes);
            if let Some(lease) = lease {
                fields.insert(ANYREACH_LEASE, lease.to_value());
            }
        }
        if let Some(value) = authorization(target, carrier)? {
            fields.insert(header::AUTHORIZATION, value);
        }
        Ok(request)
    }

    /// Reads the answer.
    pub(super) fn answer(&self, response: &Response<()>) -> Result<Answer, CarrierError> {
        let fields = response.headers();
        match self {
            Self::Target(_) => Ok(Answer {
                mode: Mode::Plain,
                public: Vec::new(),
                node: Vec::new(),
            }),
            Self::Bind(_) if !read_boolean(lines(fields, CONNECT_UDP_BIND)) => {
                Err(CarrierError::new(
                    "no-bind",
                    "the proxy does not lend addresses (no connect-udp-bind in its answer)",
                ))
            }
            Self::Bind(_) => Ok(Answer {
                mode: Mode::Bound,
                public: read_addresses(lines(fields, PROXY_PUBLIC_ADDRESS)),
                node: read_addresses(lines(fields, ANYREACH_NODE)),
            }),
        }
    }
}

fn authorization(
    target: &RelayTarget,
    carrier: &dyn ClientCarrier,
) -> Result<Option<HeaderValue>, CarrierError> {
    match &target.credentials {
        Credentials::None => Ok(None),
        Credentials::Field(value) => Ok(Some(value.clone())),
        // TLS has proved who we are to whoever proved who it is.
        Credentials::Token(_) if carrier.peer_id().is_some() => Ok(None),
        Credentials::Token(identity) => {
            let audience = match target.peer {
                Some(peer) => Some(Audience::peer(peer)),
                None => Audience::authority(target.template.authority()),
            };
            let audience = audience
                .ok_or_else(|| CarrierError::new("http", "the relay's name is too long"))?;
            issue(identity, &audience, SystemTime::now())
                .map(Some)
                .map_err(|error| CarrierError::new("internal", error.to_string()))
        }
    }
}

fn lines<'a>(fields: &'a HeaderMap, name: &'static str) -> impl Iterator<Item = &'a [u8]> {
    fields.get_all(name).into_iter().map(HeaderValue::as_bytes)
}
