//! What a request asks for, and the answers to it (RFC 9298, section 3; the bind draft, sections 2,
//! 5 and 6; RFC 9209).

use std::net::SocketAddr;

use anyreach_wire::{
    proxy_fields::{
        ANYREACH_NODE, CAPSULE_PROTOCOL, CONNECT_UDP_BIND, PROXY_PUBLIC_ADDRESS, PROXY_STATUS,
        ProxyError, TRUE, read_boolean, write_addresses, write_proxy_status,
    },
    uri_template::{Target, TargetError},
};
use http::{HeaderMap, HeaderValue, Request, StatusCode};

use super::table::Token;
use crate::carrier::{Accepted, Refused};

/// Asks for the same bound address as before: 32 hexadecimal digits the client has chosen at
/// random. Without it a client gets back an address it has left, if there is one.
pub const ANYREACH_LEASE: &str = "anyreach-lease";

/// What the relay calls itself in Proxy-Status.
const PROXY_NAME: &str = "anyreach";

/// A request that can be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Wanted {
    pub(crate) target: Target,
    /// Whether any remote is wanted.
    pub(crate) bind: bool,
    pub(crate) token: Option<Token>,
}

impl Wanted {
    /// Reads path and header fields. That it is an extended CONNECT for connect-udp is the
    /// carrier's to see.
    pub(crate) fn read(request: &Request<()>) -> Result<Self, Refusal> {
        let path = request.uri().path_and_query();
        let path = path.map_or("", |path| path.as_str());
        let target = Target::from_well_known_path(path).map_err(|error| {
            let status = match error {
                TargetError::OtherPath => StatusCode::NOT_FOUND,
                _ => StatusCode::BAD_REQUEST,
            };
            Refusal::malformed(status, error.to_string())
        })?;
        let fields = request.headers();
        let bind = read_boolean(lines(fields, CONNECT_UDP_BIND));
        if target == Target::Any && !bind {
            return Err(Refusal::malformed(
                StatusCode::BAD_REQUEST,
                "target `*` without connect-udp-bind",
            ));
        }
        Ok(Self {
            target,
            bind,
            token: token(fields)?,
        })
    }
}

fn lines<'a>(fields: &'a HeaderMap, name: &str) -> impl Iterator<Item = &'a [u8]> {
    fields.get_all(name).iter().map(HeaderValue::as_bytes)
}

fn token(fields: &HeaderMap) -> Result<Option<Token>, Refusal> {
    let Some(value) = fields.get(ANYREACH_LEASE) else {
        return Ok(None);
    };
    parse_token(value.as_bytes()).map(Some).ok_or_else(|| {
        Refusal::malformed(
            StatusCode::BAD_REQUEST,
            "anyreach-lease is not 32 hexadecimal digits",
        )
    })
}

fn parse_token(text: &[u8]) -> Option<Token> {
    let mut token = Token::default();
    let pairs = text.chunks_exact(2);
    if text.len() != 2 * token.len() {
        return None;
    }
    for (byte, pair) in token.iter_mut().zip(pairs) {
        for digit in pair {
            let digit = char::from(*digit).to_digit(16)?;
            // Below 16.
            *byte = *byte << 4 | digit as u8;
        }
    }
    Some(token)
}

/// Why a request is not granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal {
    /// For counters: one of [`RelayStats::REFUSALS`](super::RelayStats::REFUSALS).
    pub(crate) reason: &'static str,
    status: StatusCode,
    error: ProxyError,
    details: String,
}

impl Refusal {
    /// With the status RFC 9209 recommends for the error.
    pub(crate) fn new(reason: &'static str, error: ProxyError, details: impl Into<String>) -> Self {
        let status = StatusCode::from_u16(error.recommended_status());
        Self {
            reason,
            // All of them are status codes.
            status: status.unwrap_or(StatusCode::BAD_GATEWAY),
            error,
            details: details.into(),
        }
    }

    fn malformed(status: StatusCode, details: impl Into<String>) -> Self {
        Self {
            status,
            ..Self::new("malformed", ProxyError::HttpRequestError, details)
        }
    }

    /// The target is one the policy refuses.
    pub(crate) fn prohibited(refusal: super::policy::Refusal) -> Self {
        Self {
            status: StatusCode::FORBIDDEN,
            ..Self::new(
                "target",
                ProxyError::DestinationIpProhibited,
                format!("this relay does not send there: {}", refusal.as_str()),
            )
        }
    }

    /// The answer.
    pub(crate) fn into_response(self) -> Refused {
        let mut headers = HeaderMap::new();
        let value = write_proxy_status(PROXY_NAME, self.error, &self.details);
        insert(&mut headers, PROXY_STATUS, &value);
        Refused {
            status: self.status,
            headers,
        }
    }
}

/// The answer to a request that is granted. `bound` is empty for a tunnel to one target.
pub(crate) fn accept(bind: bool, bound: &[SocketAddr], node: &[SocketAddr]) -> Accepted {
    let mut headers = HeaderMap::new();
    insert(&mut headers, CAPSULE_PROTOCOL, TRUE);
    if bind {
        insert(&mut headers, CONNECT_UDP_BIND, TRUE);
        insert(&mut headers, PROXY_PUBLIC_ADDRESS, &write_addresses(bound));
        if !node.is_empty() {
            insert(&mut headers, ANYREACH_NODE, &write_addresses(node));
        }
    }
    Accepted { headers }
}

fn insert(headers: &mut HeaderMap, name: &'static str, value: &str) {
    // Structured fields are printable ASCII.
    if let Ok(value) = HeaderValue::from_str(value) {
        headers.insert(name, value);
    }
}

#[cfg(test)]
mod tests {
    use anyreach_wire::proxy_fields::{ProxyStatus, read_addresses};
    use anyreach_wire::uri_template::Host;

    use super::*;

    fn request(path: &str, fields: &[(&'static str, &str)]) -> Request<()> {
        let mut request = Request::builder()
            .method("CONNECT")
            .uri(format!("https://relay.example{path}"))
            .body(())
            .expect("well-formed");
        for (name, value) in fields {
            let value = HeaderValue::from_str(value).expect("well-formed");
            request.headers_mut().append(*name, value);
        }
        request
    }

    const ANY: &str = "/.well-known/masque/udp/%2A/%2A/";
    const ONE: &str = "/.well-known/masque/udp/192.0.2.6/443/";
    const BIND: (&str, &str) = (CONNECT_UDP_BIND, TRUE);

    #[test]
    fn the_three_kinds_of_request() {
        let bound = Wanted::read(&request(ANY, &[BIND])).expect("granted");
        assert_eq!((bound.bind, bound.target), (true, Target::Any));
        let plain = Wanted::read(&request(ONE, &[])).expect("granted");
        let host = Host::Ip("192.0.2.6".parse().expect("literal"));
        let one = Target::Remote { host, port: 443 };
        assert_eq!((plain.bind, &plain.target), (false, &one));
        let both = Wanted::read(&request(ONE, &[BIND])).expect("granted");
        assert_eq!((both.bind, both.target), (true, one));
    }

    #[test]
    fn what_cannot_be_understood() {
        for (path, fields, status) in [
            ("/", &[BIND][..], 404),
            ("/.well-known/masque/udp/%2A/443/", &[BIND], 400),
            ("/.well-known/masque/udp/192.0.2.6/%2A/", &[BIND], 400),
            ("/.well-known/masque/udp/192.0.2.6/0/", &[BIND], 400),
            (ANY, &[], 400),
            (ANY, &[(CONNECT_UDP_BIND, "?0")], 400),
            (ANY, &[BIND, BIND], 400),
            (ANY, &[BIND, (ANYREACH_LEASE, "00")], 400),
            (
                ANY,
                &[BIND, (ANYREACH_LEASE, "zz112233445566778899aabbccddeeff")],
                400,
            ),
            (
                ANY,
                &[BIND, (ANYREACH_LEASE, "0112233445566778899aabbccddeeff")],
                400,
            ),
            (
                ANY,
                &[BIND, (ANYREACH_LEASE, "00112233445566778899aabbccddeeff00")],
                400,
            ),
        ] {
            let refusal = Wanted::read(&request(path, fields)).expect_err(path);
            let response = refusal.into_response();
            assert_eq!(response.status, status, "{path} {fields:?}");
            let read = ProxyStatus::read(lines(&response.headers, PROXY_STATUS));
            assert_eq!(
                read.expect("says why").known,
                Some(ProxyError::HttpRequestError)
            );
        }
    }

    #[test]
    fn lease() {
        let value = "00112233445566778899aAbBcCdDeEfF";
        let wanted = Wanted::read(&request(ANY, &[BIND, (ANYREACH_LEASE, value)]));
        let token: Token = std::array::from_fn(|at| at as u8 * 0x11);
        assert_eq!(wanted.expect("granted").token, Some(token));
    }

    #[test]
    fn answers_can_be_read_back() {
        let addresses =
            ["203.0.113.1:54321", "[2001:db8::1]:54321"].map(|text| text.parse().expect("literal"));
        let headers = accept(true, &addresses, &addresses[..1]).headers;
        assert_eq!(
            read_addresses(lines(&headers, PROXY_PUBLIC_ADDRESS)),
            addresses
        );
        assert_eq!(
            read_addresses(lines(&headers, ANYREACH_NODE)),
            addresses[..1]
        );
        assert!(read_boolean(lines(&headers, CONNECT_UDP_BIND)));
        assert!(read_boolean(lines(&headers, CAPSULE_PROTOCOL)));
        let headers = accept(false, &[], &[]).headers;
        assert_eq!(headers.len(), 1);
    }
}
