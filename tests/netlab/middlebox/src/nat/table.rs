//! Mappings and filters.

use std::collections::{HashMap, HashSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use super::packet::Protocol;
use super::policy::{Dependence, Policy, Ports};
use crate::random::Random;

/// External ports of new mappings that do not keep the internal one.
const FIRST_PORT: u16 = 20_000;
const LAST_PORT: u16 = 65_535;

/// RFC 5382 REQ-5 wants 2 h 4 min for established connections; tests have no need to tell them from
/// others.
const TCP_TIMEOUT: Duration = Duration::from_secs(7440);

/// RFC 5508 REQ-1.
const ICMP_TIMEOUT: Duration = Duration::from_secs(60);

/// Attempts at a random free port before a NAT that is nearly full gives up.
const RANDOM_ATTEMPTS: usize = 1000;

/// An endpoint behind the NAT.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Internal {
    /// Protocols have separate port spaces.
    pub(crate) protocol: Protocol,
    /// Its private address and port.
    pub(crate) endpoint: SocketAddrV4,
}

/// The part of a remote endpoint that a mapping or filter depends on.
type Remote = (Option<Ipv4Addr>, Option<u16>);

#[derive(Debug)]
struct Mapping {
    internal: Internal,
    remote: Remote,
    expires: Instant,
}

/// All mappings and filters.
#[derive(Debug)]
pub(crate) struct Table {
    policy: Policy,
    random: Random,
    next_port: u16,
    by_external: HashMap<(Protocol, u16), Mapping>,
    by_internal: HashMap<(Internal, Remote), u16>,
    /// To whom an internal endpoint has sent, and until when that counts.
    permitted: HashMap<(Internal, Remote), Instant>,
    insiders: HashSet<Ipv4Addr>,
}

impl Table {
    /// An empty table.
    pub(crate) fn new(policy: Policy, seed: u64) -> Self {
        Self {
            policy,
            random: Random::new(seed),
            next_port: FIRST_PORT,
            by_external: HashMap::new(),
            by_internal: HashMap::new(),
            permitted: HashMap::new(),
            insiders: HashSet::new(),
        }
    }

    /// Forgets everything. The sequence of ports goes on: after a reboot nobody gets the old ones.
    pub(crate) fn flush(&mut self) {
        self.by_external.clear();
        self.by_internal.clear();
        self.permitted.clear();
    }

    /// Forgets what has expired.
    pub(crate) fn expire(&mut self, now: Instant) {
        let by_internal = &mut self.by_internal;
        self.by_external.retain(|_, mapping| {
            let lives = mapping.expires > now;
            if !lives {
                by_internal.remove(&(mapping.internal, mapping.remote));
            }
            lives
        });
        self.permitted.retain(|_, until| *until > now);
    }

    /// Whether packets from this address come from the inside: it is private, or was seen there.
    pub(crate) fn is_internal(&self, address: Ipv4Addr) -> bool {
        address.is_private() || is_shared(address) || self.insiders.contains(&address)
    }

    /// The external port for a packet that goes out, which keeps mapping and filter alive.
    pub(crate) fn map(
        &mut self,
        internal: Internal,
        to: SocketAddrV4,
        now: Instant,
    ) -> Option<u16> {
        self.insiders.insert(*internal.endpoint.ip());
        let expires = now + self.timeout(internal.protocol);
        let permit = depends(self.policy.filtering, to);
        self.permitted.insert((internal, permit), expires);
        let remote = depends(self.policy.mapping, to);
        if let Some(port) = self.by_internal.get(&(internal, remote)).copied() {
            if let Some(mapping) = self.by_external.get_mut(&(internal.protocol, port))
                && mapping.expires > now
            {
                mapping.expires = expires;
                return Some(port);
            }
            self.by_internal.remove(&(internal, remote));
            self.by_external.remove(&(internal.protocol, port));
        }
        let port = self.choose(internal)?;
        self.by_internal.insert((internal, remote), port);
        self.by_external.insert(
            (internal.protocol, port),
            Mapping {
                internal,
                remote,
                expires,
            },
        );
        Some(port)
    }

    /// The internal endpoint for a packet that comes in, if the filter lets it.
    pub(crate) fn admit(
        &self,
        protocol: Protocol,
        port: u16,
        from: SocketAddrV4,
        now: Instant,
    ) -> Option<SocketAddrV4> {
        let endpoint = self.find(protocol, port, now)?;
        let key = (
            Internal { protocol, endpoint },
            depends(self.policy.filtering, from),
        );
        let until = self.permitted.get(&key)?;
        (*until > now).then_some(endpoint)
    }

    /// The internal endpoint behind an external port.
    pub(crate) fn find(&self, protocol: Protocol, port: u16, now: Instant) -> Option<SocketAddrV4> {
        let mapping = self.by_external.get(&(protocol, port))?;
        (mapping.expires > now).then_some(mapping.internal.endpoint)
    }

    /// The external port an internal endpoint has towards a remote one.
    pub(crate) fn find_internal(
        &self,
        internal: Internal,
        remote: SocketAddrV4,
        now: Instant,
    ) -> Option<u16> {
        let port = *self
            .by_internal
            .get(&(internal, depends(self.policy.mapping, remote)))?;
        self.find(internal.protocol, port, now).map(|_| port)
    }

    fn timeout(&self, protocol: Protocol) -> Duration {
        match protocol {
            Protocol::Udp => self.policy.timeout,
            Protocol::Tcp => TCP_TIMEOUT,
            Protocol::Icmp => ICMP_TIMEOUT,
        }
    }

    fn choose(&mut self, internal: Internal) -> Option<u16> {
        let taken = |port: u16| self.by_external.contains_key(&(internal.protocol, port));
        let wanted = internal.endpoint.port();
        match self.policy.ports {
            Ports::Preserve if !taken(wanted) => Some(wanted),
            Ports::Sequential => {
                let rest = self.next_port..=LAST_PORT;
                let port = rest
                    .chain(FIRST_PORT..self.next_port)
                    .find(|port| !taken(*port))?;
                self.next_port = if port == LAST_PORT {
                    FIRST_PORT
                } else {
                    port + 1
                };
                Some(port)
            }
            Ports::Preserve | Ports::Random => {
                let random = &mut self.random;
                std::iter::repeat_with(|| random.between(FIRST_PORT, LAST_PORT))
                    .take(RANDOM_ATTEMPTS)
                    .find(|port| !taken(*port))
            }
        }
    }
}

fn depends(on: Dependence, remote: SocketAddrV4) -> Remote {
    match on {
        Dependence::EndpointIndependent => (None, None),
        Dependence::Address => (Some(*remote.ip()), None),
        Dependence::AddressAndPort => (Some(*remote.ip()), Some(remote.port())),
    }
}

/// Carriers' 100.64.0.0/10 (RFC 6598).
fn is_shared(address: Ipv4Addr) -> bool {
    let [first, second, ..] = address.octets();
    first == 100 && second & 0xc0 == 64
}
