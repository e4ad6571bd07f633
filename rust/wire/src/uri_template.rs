//! Where a request for a UDP proxy goes: URI Templates (RFC 6570) as RFC 9298, section 2 allows
//! them, expanded by the client, and the default one taken apart again by the proxy.
//!
//! Templates are of level 3 at most. This is no general implementation of RFC 6570: the operators
//! RFC 9298 forbids are refused, and variables other than its two are undefined. Nothing is
//! resolved or contacted here.

use std::{
    fmt,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use thiserror::Error;

use crate::proxy_fields::parse_port;

mod template;

pub use template::{Template, TemplateError};

/// The path of the default template up to the target (RFC 9298, section 2).
pub const WELL_KNOWN_PREFIX: &str = "/.well-known/masque/udp/";

/// Longest name in DNS, as text with its final dot.
pub const MAX_HOST: usize = 254;

/// Longest part of a name between two dots in DNS.
const MAX_LABEL: usize = 63;

/// Stands for host and port of a request that binds without a target (the bind draft, section 2).
const ANY: &str = "*";

/// What a request for a UDP proxy is about.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Target {
    /// Every remote: bind without fallback.
    Any,
    /// This one.
    Remote {
        /// Its address or name.
        host: Host,
        /// Its port, never 0.
        port: u16,
    },
}

/// An IP address, or a name to be resolved.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Host {
    /// In canonical form: IPv4-mapped IPv6 is IPv4, for the reasons in [`crate::bound`].
    Ip(IpAddr),
    /// A name as DNS has them: letters, digits, `-`, `_` and dots, in lower case. Never one that a
    /// resolver would take for a number (`127.1`, `0x7f000001`), as rules about addresses would
    /// not see what it means.
    Name(String),
}

/// Why a request has no target. The proxy answers it with 404 or 400.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Error)]
pub enum TargetError {
    /// The path is not of the default template: 404.
    #[error("not the path of a UDP proxying request")]
    OtherPath,
    /// Percent signs that are not followed by two hexadecimal digits: 400.
    #[error("wrong percent-encoding in the path")]
    PercentEncoding,
    /// Neither an IP address nor a name: 400.
    #[error("the target host is neither an IP address nor a name")]
    Host,
    /// Not an integer from 1 to 65535: 400.
    #[error("the target port is not an integer from 1 to 65535")]
    Port,
    /// Only one of host and port is `*`: 400 (the bind draft, section 2).
    #[error("only one of target host and port is `*`")]
    HalfAny,
}

impl Host {
    /// Reads a host as RFC 9298, section 3 has it, not percent-encoded: an IPv6 address without
    /// brackets or zone, an IPv4 address, or a name.
    ///
    /// # Errors
    /// [`TargetError::Host`].
    pub fn parse(text: &str) -> Result<Self, TargetError> {
        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::Ip(ip.to_canonical()));
        }
        let labels = text.strip_suffix('.').unwrap_or(text);
        let last = labels.rsplit('.').next().unwrap_or_default();
        if text.len() > MAX_HOST || !labels.split('.').all(is_label) || is_number(last) {
            return Err(TargetError::Host);
        }
        Ok(Self::Name(text.to_ascii_lowercase()))
    }
}

fn is_label(label: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    (1..=MAX_LABEL).contains(&label.len()) && label.bytes().all(allowed)
}

/// Whether inet_aton(3), and resolvers that use it, would take this last part of a name for a part
/// of an IPv4 address.
fn is_number(label: &str) -> bool {
    let hexadecimal = label.strip_prefix("0x").or(label.strip_prefix("0X"));
    match hexadecimal {
        Some(digits) => digits.bytes().all(|byte| byte.is_ascii_hexdigit()),
        None => label.bytes().all(|byte| byte.is_ascii_digit()),
    }
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ip(ip) => ip.fmt(f),
            Self::Name(name) => name.fmt(f),
        }
    }
}

impl Target {
    /// The target with an address.
    pub fn address(address: SocketAddr) -> Self {
        Self::Remote {
            host: Host::Ip(address.ip().to_canonical()),
            port: address.port(),
        }
    }

    /// Takes the target out of `:path`, if that is of the default template.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn from_well_known_path(path: &str) -> Result<Self, TargetError> {
        let target = path
            .strip_prefix(WELL_KNOWN_PREFIX)
            .and_then(|rest| rest.strip_suffix('/'))
            .and_then(|rest| rest.split_once('/'));
        match target {
            Some((host, port)) if !port.contains(['/', '?']) && !host.contains('?') => {
                Self::from_variables(&percent_decode(host)?, &percent_decode(port)?)
            }
            _ => Err(TargetError::OtherPath),
        }
    }

    /// The target that two variables, `target_host` and `target_port`, mean.
    ///
    /// # Errors
    /// [`TargetError`].
    pub fn from_variables(host: &str, port: &str) -> Result<Self, TargetError> {
        match (host, port) {
            (ANY, ANY) => Ok(Self::Any),
            (ANY, _) | (_, ANY) => Err(TargetError::HalfAny),
            (host, port) => Ok(Self::Remote {
                host: Host::parse(host)?,
                port: parse_port(port).ok_or(TargetError::Port)?,
            }),
        }
    }

    /// The variables `target_host` and `target_port`, not percent-encoded.
    fn variables(&self) -> (String, String) {
        match self {
            Self::Any => (ANY.to_owned(), ANY.to_owned()),
            Self::Remote { host, port } => (host.to_string(), port.to_string()),
        }
    }

    /// The path of a request for this target with the default template.
    pub fn well_known_path(&self) -> String {
        let (host, port) = self.variables();
        let mut path = WELL_KNOWN_PREFIX.to_owned();
        percent_encode(&host, &mut path);
        path.push('/');
        percent_encode(&port, &mut path);
        path.push('/');
        path
    }
}

/// Appends a value as RFC 6570, section 3.2.1 has it: everything but unreserved characters is
/// percent-encoded, `:` of IPv6 and `*` among it.
fn percent_encode(value: &str, out: &mut String) {
    use fmt::Write;
    for byte in value.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            write!(out, "%{byte:02X}").expect("a String takes everything");
        }
    }
}

/// Decodes once. Text that is no UTF-8 then is no host either.
fn percent_decode(value: &str) -> Result<String, TargetError> {
    let mut decoded = Vec::with_capacity(value.len());
    let mut bytes = value.bytes();
    while let Some(byte) = bytes.next() {
        decoded.push(match byte {
            b'%' => {
                let mut digit = || char::from(bytes.next()?).to_digit(16);
                let (high, low) = (digit(), digit());
                high.zip(low)
                    .map(|(high, low)| (high << 4 | low) as u8)
                    .ok_or(TargetError::PercentEncoding)?
            }
            plain => plain,
        });
    }
    String::from_utf8(decoded).map_err(|_| TargetError::Host)
}

/// Reads `host[:port]` of a URI: IPv6 in brackets.
fn parse_authority(text: &str) -> Option<(Host, Option<u16>)> {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => {
            let (literal, port) = rest.split_once(']')?;
            let ip: Ipv6Addr = literal.parse().ok()?;
            (Host::Ip(IpAddr::V6(ip).to_canonical()), port)
        }
        None => {
            let end = text.find(':').unwrap_or(text.len());
            (Host::parse(&text[..end]).ok()?, &text[end..])
        }
    };
    match port.strip_prefix(':') {
        Some(port) => Some((host, Some(parse_port(port)?))),
        None if port.is_empty() => Some((host, None)),
        None => None,
    }
}
