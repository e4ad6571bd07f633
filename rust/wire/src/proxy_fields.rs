//! Header fields of UDP proxying: Capsule-Protocol (RFC 9297), Connect-UDP-Bind and
//! Proxy-Public-Address (draft-ietf-masque-connect-udp-listen), Proxy-Status (RFC 9209), and one
//! of ours.
//!
//! All are structured fields (RFC 9651). Readers take the lines of a field as they came, as an
//! iterator of bytes: a field sent in several lines is one list, which the Boolean fields must
//! treat as if they were not there. Which fields a request must have is not decided here.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use sfv::{
    BareItem, Item, KeyRef, List, ListEntry, ListSerializer, Parser, StringRef, TokenRef, key_ref,
    token_ref,
};

use crate::address::Address;

/// Whether the Capsule Protocol is in use (RFC 9297, section 3.4). A Boolean.
pub const CAPSULE_PROTOCOL: &str = "capsule-protocol";

/// Whether bind is asked for, or granted (the bind draft, section 5). A Boolean.
pub const CONNECT_UDP_BIND: &str = "connect-udp-bind";

/// The addresses a proxy has bound for a request (the bind draft, section 6). See
/// [`read_addresses`].
pub const PROXY_PUBLIC_ADDRESS: &str = "proxy-public-address";

/// The addresses of a relay's own node, for a client that reaches it through its bound address
/// since it cannot send UDP itself. Ours; in the form of [`PROXY_PUBLIC_ADDRESS`].
pub const ANYREACH_NODE: &str = "anyreach-node";

/// Why a proxy refused a request (RFC 9209). See [`ProxyStatus`].
pub const PROXY_STATUS: &str = "proxy-status";

/// A true Boolean.
pub const TRUE: &str = "?1";

/// Longest field that is read, all its lines together: 16 addresses take less than 1 KiB.
pub const MAX_FIELD_BYTES: usize = 4096;

/// Most addresses read from a field. A proxy binds one per family and network it is in.
pub const MAX_ADDRESSES: usize = 16;

/// Longest details of a Proxy-Status, in bytes: a sentence or two for the user.
pub const MAX_DETAILS: usize = 256;

/// The value of one field, its lines joined as RFC 9110, section 5.3 says. `None` if there is no
/// line, or too much of it.
fn joined<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Option<Vec<u8>> {
    let mut value: Option<Vec<u8>> = None;
    for line in lines {
        let value = match &mut value {
            Some(value) => {
                value.extend_from_slice(b", ");
                value
            }
            None => value.insert(Vec::new()),
        };
        if value.len() + line.len() > MAX_FIELD_BYTES {
            return None;
        }
        value.extend_from_slice(line);
    }
    value
}

/// Reads a Boolean field, [`CAPSULE_PROTOCOL`] or [`CONNECT_UDP_BIND`]: `true` if it is `?1`.
///
/// Parameters are ignored. Everything else, a list, another type or bytes that are no structured
/// field, is as if the field were not there, which is as if it were false.
pub fn read_boolean<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> bool {
    let item = joined(lines).and_then(|value| Parser::new(&value).parse::<Item>().ok());
    item.is_some_and(|item| item.bare_item == BareItem::Boolean(true))
}

/// Reads a list of addresses, [`PROXY_PUBLIC_ADDRESS`] or [`ANYREACH_NODE`].
///
/// Members of it that are no address a packet could be sent to are left out: other types and
/// forms (future IP versions, zones), port 0, the unspecified address. So are repetitions, and
/// what comes after [`MAX_ADDRESSES`]. What is no list at all is empty. The result is canonical:
/// IPv4-mapped IPv6 is IPv4.
pub fn read_addresses<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Vec<SocketAddr> {
    let list = joined(lines).and_then(|value| Parser::new(&value).parse::<List>().ok());
    let mut addresses = Vec::new();
    for member in list.unwrap_or_default() {
        let ListEntry::Item(Item {
            bare_item: BareItem::String(text),
            ..
        }) = member
        else {
            continue;
        };
        let Some(address) = ip_port(text.as_str()) else {
            continue;
        };
        if !addresses.contains(&address) {
            addresses.push(address);
        }
        if addresses.len() == MAX_ADDRESSES {
            break;
        }
    }
    addresses
}

/// Reads `( IP-literal / IPv4address ) ":" port` of RFC 3986, without future IP versions.
fn ip_port(text: &str) -> Option<SocketAddr> {
    let (host, port) = text.rsplit_once(':')?;
    let ip = match host.strip_prefix('[') {
        // Ipv6Addr knows no zones, SocketAddr would.
        Some(literal) => IpAddr::V6(literal.strip_suffix(']')?.parse::<Ipv6Addr>().ok()?),
        None => IpAddr::V4(host.parse().ok()?),
    };
    let port = parse_port(port)?;
    let address = Address::new(ip, port);
    (!address.ip().is_unspecified()).then(|| address.into())
}

/// Reads a port as RFC 3986 writes it, from 1 to 65535.
pub(crate) fn parse_port(text: &str) -> Option<u16> {
    // `parse` would take a plus sign.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok().filter(|port| *port != 0)
}

/// Writes a list of addresses; an empty string for none, which stands for no field.
pub fn write_addresses(addresses: &[SocketAddr]) -> String {
    let mut list = ListSerializer::new();
    for address in addresses {
        let text = Address::from(*address).to_string();
        let text = StringRef::from_str(&text).expect("an address is ASCII");
        let _ = list.bare_item(text);
    }
    list.finish().unwrap_or_default()
}

/// A type of error of RFC 9209, section 2.3, as far as a proxy of UDP has use for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ProxyError {
    /// No answer to a DNS query in time.
    DnsTimeout,
    /// A DNS query failed.
    DnsError,
    /// The proxy does not know this target.
    DestinationNotFound,
    /// The target is known not to be reachable for now.
    DestinationUnavailable,
    /// Policy forbids this address.
    DestinationIpProhibited,
    /// There is no route to this address.
    DestinationIpUnroutable,
    /// As many as may be are in use.
    ConnectionLimitReached,
    /// The request cannot be understood.
    HttpRequestError,
    /// Policy forbids the request.
    HttpRequestDenied,
    /// The proxy failed.
    ProxyInternalError,
    /// The proxy cannot do this as it is configured.
    ProxyConfigurationError,
    /// The request has come back to the proxy.
    ProxyLoopDetected,
}

impl ProxyError {
    const ALL: [Self; 12] = [
        Self::DnsTimeout,
        Self::DnsError,
        Self::DestinationNotFound,
        Self::DestinationUnavailable,
        Self::DestinationIpProhibited,
        Self::DestinationIpUnroutable,
        Self::ConnectionLimitReached,
        Self::HttpRequestError,
        Self::HttpRequestDenied,
        Self::ProxyInternalError,
        Self::ProxyConfigurationError,
        Self::ProxyLoopDetected,
    ];

    fn token(self) -> &'static TokenRef {
        match self {
            Self::DnsTimeout => token_ref("dns_timeout"),
            Self::DnsError => token_ref("dns_error"),
            Self::DestinationNotFound => token_ref("destination_not_found"),
            Self::DestinationUnavailable => token_ref("destination_unavailable"),
            Self::DestinationIpProhibited => token_ref("destination_ip_prohibited"),
            Self::DestinationIpUnroutable => token_ref("destination_ip_unroutable"),
            Self::ConnectionLimitReached => token_ref("connection_limit_reached"),
            Self::HttpRequestError => token_ref("http_request_error"),
            Self::HttpRequestDenied => token_ref("http_request_denied"),
            Self::ProxyInternalError => token_ref("proxy_internal_error"),
            Self::ProxyConfigurationError => token_ref("proxy_configuration_error"),
            Self::ProxyLoopDetected => token_ref("proxy_loop_detected"),
        }
    }

    /// The name in the registry.
    pub fn as_str(self) -> &'static str {
        self.token().as_str()
    }

    /// The status code RFC 9209 recommends. For a request that cannot be understood it is "the
    /// applicable 4xx"; this says 400.
    pub const fn recommended_status(self) -> u16 {
        match self {
            Self::HttpRequestError => 400,
            Self::HttpRequestDenied => 403,
            Self::DestinationNotFound
            | Self::ProxyInternalError
            | Self::ProxyConfigurationError => 500,
            Self::DnsError
            | Self::DestinationIpProhibited
            | Self::DestinationIpUnroutable
            | Self::ProxyLoopDetected => 502,
            Self::DestinationUnavailable | Self::ConnectionLimitReached => 503,
            Self::DnsTimeout => 504,
        }
    }
}

/// Writes [`PROXY_STATUS`] of the proxy that calls itself `proxy`: the type of error, and details
/// for people. Characters a structured field cannot have become `?`, and what exceeds
/// [`MAX_DETAILS`] is left out.
pub fn write_proxy_status(proxy: &str, error: ProxyError, details: &str) -> String {
    let proxy = printable(proxy);
    let details = printable(details);
    let mut list = ListSerializer::new();
    let member = list
        .bare_item(StringRef::from_str(&proxy).expect("only printable ASCII"))
        .parameter(key_ref("error"), error.token());
    if !details.is_empty() {
        let details = StringRef::from_str(&details).expect("only printable ASCII");
        let _ = member.parameter(key_ref("details"), details);
    }
    list.finish().unwrap_or_default()
}

/// The start of a text, as a structured field can have it.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if matches!(c, ' '..='~') { c } else { '?' })
        .take(MAX_DETAILS)
        .collect()
}

/// What a proxy says about a request it refused.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ProxyStatus {
    /// The type of error, as it was written: a token of any kind.
    pub error: String,
    /// The type of error, if it is one we know.
    pub known: Option<ProxyError>,
    /// Details for people, at most [`MAX_DETAILS`] bytes of printable ASCII. May be empty.
    pub details: String,
}

impl ProxyStatus {
    /// Reads [`PROXY_STATUS`]: the error of the proxy nearest to the client, which is the last
    /// one. `None` if the field has no error or cannot be read.
    pub fn read<'a>(lines: impl IntoIterator<Item = &'a [u8]>) -> Option<Self> {
        let list: List = Parser::new(&joined(lines)?).parse().ok()?;
        list.iter().rev().find_map(|member| {
            let ListEntry::Item(item) = member else {
                return None;
            };
            let parameter = |name: &KeyRef| item.params.get(name);
            let BareItem::Token(error) = parameter(key_ref("error"))? else {
                return None;
            };
            let details = match parameter(key_ref("details")) {
                Some(BareItem::String(details)) => printable(details.as_str()),
                _ => String::new(),
            };
            let known = ProxyError::ALL.into_iter();
            Some(Self {
                error: error.as_str().to_owned(),
                known: known
                    .into_iter()
                    .find(|known| known.as_str() == error.as_str()),
                details,
            })
        })
    }
}
