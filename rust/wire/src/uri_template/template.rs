//! Templates of UDP proxies, as their operators give them to users.

use std::{fmt, net::IpAddr};

use thiserror::Error;

use super::{Host, Target, WELL_KNOWN_PREFIX, parse_authority, percent_encode};

/// Longest template: what fits a URI of the length every recipient should take (RFC 9110, section
/// 4.1), with room for the longest host.
const MAX_TEMPLATE: usize = 4096;

/// The port of `https` (RFC 9110, section 4.2.2).
const HTTPS_PORT: u16 = 443;

const TARGET_HOST: &str = "target_host";
const TARGET_PORT: &str = "target_port";

/// A checked URI Template of a UDP proxy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    host: Host,
    port: u16,
    /// `:authority` of requests.
    authority: String,
    /// Path and query.
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Literal(String),
    Expression {
        operator: Operator,
        variables: Vec<String>,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Operator {
    /// `{a,b}`: values with commas between them.
    Simple,
    /// `{?a,b}`: `?a=1&b=2`.
    Query,
    /// `{&a,b}`: `&a=1&b=2`.
    Continuation,
}

/// Why a text is not the template of a UDP proxy (RFC 9298, section 2).
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TemplateError {
    /// Longer than any URI should be.
    #[error("the template is longer than {MAX_TEMPLATE} bytes")]
    TooLong,
    /// A character outside 0x21 to 0x7E, or one that URI Templates do not have.
    #[error("the template has the character {0:?}, which must be percent-encoded")]
    Character(char),
    /// A percent sign without two hexadecimal digits.
    #[error("the template has a percent sign without two hexadecimal digits")]
    PercentEncoding,
    /// Not an absolute `https` URI.
    #[error("the template does not start with https://")]
    Scheme,
    /// Host and port are missing or wrong, or have variables or user information in them.
    #[error("the template has no host, or one with a port, variable or user that cannot be")]
    Authority,
    /// The path is empty, or does not start with a slash.
    #[error("the path of the template does not start with a slash")]
    Path,
    /// An operator of a higher level, or one RFC 9298 forbids.
    #[error("the template uses {{{0}...}}, which UDP proxying does not allow")]
    Operator(char),
    /// Braces that do not match, or names in them that cannot be.
    #[error("the template has a malformed expression {0:?}")]
    Expression(String),
    /// One of the two variables is missing.
    #[error("the template lacks the variable {{{0}}}")]
    Missing(&'static str),
}

impl Template {
    /// The default template of a proxy.
    pub fn well_known(host: Host, port: u16) -> Self {
        let literal = |text: &str| Part::Literal(text.to_owned());
        let variable = |name: &str| Part::Expression {
            operator: Operator::Simple,
            variables: vec![name.to_owned()],
        };
        Self {
            authority: authority(&host, port),
            host,
            port,
            parts: vec![
                literal(WELL_KNOWN_PREFIX),
                variable(TARGET_HOST),
                literal("/"),
                variable(TARGET_PORT),
                literal("/"),
            ],
        }
    }

    /// Checks a template.
    ///
    /// # Errors
    /// [`TemplateError`]: the configuration is to be rejected.
    pub fn parse(text: &str) -> Result<Self, TemplateError> {
        if text.len() > MAX_TEMPLATE {
            return Err(TemplateError::TooLong);
        }
        if let Some(other) = text.chars().find(|c| !matches!(c, '!'..='~')) {
            return Err(TemplateError::Character(other));
        }
        let (scheme, rest) = text.split_once("://").ok_or(TemplateError::Scheme)?;
        if !scheme.eq_ignore_ascii_case("https") {
            return Err(TemplateError::Scheme);
        }
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let (host, port) = parse_authority(&rest[..end]).ok_or(TemplateError::Authority)?;
        let port = port.unwrap_or(HTTPS_PORT);
        let path = &rest[end..];
        if !path.starts_with('/') {
            return Err(TemplateError::Path);
        }
        let parts = parse_parts(path)?;
        for name in [TARGET_HOST, TARGET_PORT] {
            let has = |part: &Part| match part {
                Part::Expression { variables, .. } => variables.iter().any(|v| v == name),
                Part::Literal(_) => false,
            };
            if !parts.iter().any(has) {
                return Err(TemplateError::Missing(name));
            }
        }
        Ok(Self {
            authority: authority(&host, port),
            host,
            port,
            parts,
        })
    }

    /// The host of the proxy.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// The port of the proxy.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// `:authority` of requests: the host, in brackets if it is IPv6, and the port unless it is
    /// that of `https`.
    pub fn authority(&self) -> &str {
        &self.authority
    }

    /// `:path` of a request for this target: path and query.
    pub fn expand(&self, target: &Target) -> String {
        let (host, port) = target.variables();
        let mut out = String::new();
        for part in &self.parts {
            match part {
                Part::Literal(text) => out.push_str(text),
                Part::Expression {
                    operator,
                    variables,
                } => {
                    // Others are undefined, and left out (RFC 6570, section 3.2.1).
                    let defined = variables.iter().filter_map(|name| match name.as_str() {
                        TARGET_HOST => Some((name, &host)),
                        TARGET_PORT => Some((name, &port)),
                        _ => None,
                    });
                    for (count, (name, value)) in defined.enumerate() {
                        operator.separate(count == 0, name, &mut out);
                        percent_encode(value, &mut out);
                    }
                }
            }
        }
        out
    }
}

impl Operator {
    /// What comes before a value.
    fn separate(self, first: bool, name: &str, out: &mut String) {
        match (self, first) {
            (Self::Simple, true) => return,
            (Self::Simple, false) => return out.push(','),
            (Self::Query, true) => out.push('?'),
            (Self::Continuation, _) | (Self::Query, false) => out.push('&'),
        }
        out.push_str(name);
        out.push('=');
    }
}

impl fmt::Display for Template {
    /// Writes the template, normalised.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "https://{}", self.authority)?;
        for part in &self.parts {
            match part {
                Part::Literal(text) => f.write_str(text)?,
                Part::Expression {
                    operator,
                    variables,
                } => {
                    let operator = match operator {
                        Operator::Simple => "",
                        Operator::Query => "?",
                        Operator::Continuation => "&",
                    };
                    write!(f, "{{{operator}{}}}", variables.join(","))?;
                }
            }
        }
        Ok(())
    }
}

impl std::str::FromStr for Template {
    type Err = TemplateError;

    fn from_str(text: &str) -> Result<Self, TemplateError> {
        Self::parse(text)
    }
}

fn authority(host: &Host, port: u16) -> String {
    let host = match host {
        Host::Ip(IpAddr::V6(ip)) => format!("[{ip}]"),
        other => other.to_string(),
    };
    match port {
        HTTPS_PORT => host,
        port => format!("{host}:{port}"),
    }
}

fn parse_parts(path: &str) -> Result<Vec<Part>, TemplateError> {
    let mut parts = Vec::new();
    let mut rest = path;
    while !rest.is_empty() {
        let end = rest.find('{').unwrap_or(rest.len());
        let (literal, after) = rest.split_at(end);
        if !literal.is_empty() {
            check_literal(literal)?;
            parts.push(Part::Literal(literal.to_owned()));
        }
        rest = after;
        if let Some(expression) = after.strip_prefix('{') {
            let malformed = || TemplateError::Expression(after.to_owned());
            let (expression, after) = expression.split_once('}').ok_or_else(malformed)?;
            parts.push(parse_expression(expression)?);
            rest = after;
        }
    }
    Ok(parts)
}

/// Literals are characters of a URI (RFC 6570, section 2.1). A fragment is none of the path or
/// query, where the variables must be, and would not be sent.
fn check_literal(text: &str) -> Result<(), TemplateError> {
    check_percent(text)?;
    match text.chars().find(|c| "\"'<>\\^`{|}#".contains(*c)) {
        Some(other) => Err(TemplateError::Character(other)),
        None => Ok(()),
    }
}

fn check_percent(text: &str) -> Result<(), TemplateError> {
    let encoded = |after: &str| {
        let mut bytes = after.bytes();
        let mut digit = || bytes.next().is_some_and(|byte| byte.is_ascii_hexdigit());
        digit() && digit()
    };
    if text.split('%').skip(1).all(encoded) {
        Ok(())
    } else {
        Err(TemplateError::PercentEncoding)
    }
}

fn parse_expression(text: &str) -> Result<Part, TemplateError> {
    let (operator, names) = match text.chars().next() {
        Some('?') => (Operator::Query, &text[1..]),
        Some('&') => (Operator::Continuation, &text[1..]),
        // Those RFC 9298 forbids, and those RFC 6570 reserves.
        Some(operator @ ('+' | '#' | '.' | '/' | ';' | '=' | ',' | '!' | '@' | '|')) => {
            return Err(TemplateError::Operator(operator));
        }
        _ => (Operator::Simple, text),
    };
    let variables: Vec<String> = names.split(',').map(str::to_owned).collect();
    for name in &variables {
        // Modifiers of level 4.
        if let Some(modifier) = name.chars().find(|c| matches!(c, ':' | '*')) {
            return Err(TemplateError::Operator(modifier));
        }
        if !is_variable(name) {
            return Err(TemplateError::Expression(text.to_owned()));
        }
    }
    Ok(Part::Expression {
        operator,
        variables,
    })
}

/// RFC 6570, section 2.3: `varname = varchar *( ["."] varchar )`.
fn is_variable(name: &str) -> bool {
    let word = |word: &str| {
        let varchar = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'%';
        !word.is_empty() && word.bytes().all(varchar) && check_percent(word).is_ok()
    };
    name.split('.').all(word)
}
