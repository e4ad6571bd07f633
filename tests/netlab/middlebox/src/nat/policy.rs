//! What can be chosen about a NAT, in the terms of RFC 4787.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use crate::words::{Error, Words};

/// What a mapping or a filter depends on besides the internal endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Dependence {
    /// Nothing.
    EndpointIndependent,
    /// The remote address.
    Address,
    /// The remote address and port.
    AddressAndPort,
}

/// How the external port of a new mapping is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ports {
    /// The internal port, if it is free; otherwise a random one.
    Preserve,
    /// The next one.
    Sequential,
    /// Any.
    Random,
}

/// Everything that can be chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Policy {
    /// Section 4.1.
    pub(crate) mapping: Dependence,
    /// Section 5.
    pub(crate) filtering: Dependence,
    /// Section 4.2.
    pub(crate) ports: Ports,
    /// Section 6.
    pub(crate) hairpin: bool,
    /// Section 4.3: of UDP mappings and filters.
    pub(crate) timeout: Duration,
}

impl Policy {
    /// Reads `mapping`, `filtering` (`ei`, `ad`, `apd`), `ports` (`preserve`, `sequential`, `random`),
    /// `hairpin` (`true`, `false`), `timeout_ms`.
    pub(crate) fn parse(words: &Words) -> Result<Self, Error> {
        Ok(Self {
            mapping: words.need("mapping")?,
            filtering: words.need("filtering")?,
            ports: words.need("ports")?,
            hairpin: words.need("hairpin")?,
            timeout: Duration::from_millis(words.need("timeout_ms")?),
        })
    }
}

/// A word that means nothing here.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct UnknownWord;

impl fmt::Display for UnknownWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("unknown")
    }
}

impl FromStr for Dependence {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "ei" => Ok(Self::EndpointIndependent),
            "ad" => Ok(Self::Address),
            "apd" => Ok(Self::AddressAndPort),
            _ => Err(UnknownWord),
        }
    }
}

impl FromStr for Ports {
    type Err = UnknownWord;

    fn from_str(text: &str) -> Result<Self, UnknownWord> {
        match text {
            "preserve" => Ok(Self::Preserve),
            "sequential" => Ok(Self::Sequential),
            "random" => Ok(Self::Random),
            _ => Err(UnknownWord),
        }
    }
}
