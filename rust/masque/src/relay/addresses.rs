//! Which of its addresses the relay tells a client. Pure.

use std::net::{IpAddr, SocketAddr};

use super::policy::{Own, Policy, Scope, is_global};

/// Most addresses of the node told to a client; more than any host of ours has families and
/// networks.
const MAX_NODE_ADDRESSES: usize = 8;

/// The two ends of a client's connection, as IP addresses.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Ends {
    pub(crate) remote: IpAddr,
    pub(crate) local: Option<IpAddr>,
}

impl Ends {
    /// Our address the client came to, if the client is on the same private network or host. An
    /// address translated on the way means nothing outside.
    fn inside(self) -> Option<IpAddr> {
        self.local
            .filter(|local| !is_global(*local) && !is_global(self.remote))
    }
}

/// What the relay knows about itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Surroundings {
    /// Of its interfaces, in the system's order.
    pub(crate) interfaces: Vec<IpAddr>,
    /// What it is known by outside, best first.
    pub(crate) public: Vec<IpAddr>,
    /// Of its node's UDP socket. One with an unspecified IP stands for all own addresses.
    pub(crate) node: Vec<SocketAddr>,
}

impl Surroundings {
    /// What the policy needs of this.
    pub(crate) fn own(&self) -> Own {
        Own {
            addresses: self
                .interfaces
                .iter()
                .chain(&self.public)
                .copied()
                .collect(),
            node: self.node.clone(),
            ..Own::default()
        }
    }

    /// The IP addresses a bound port is reachable at, for this client to tell others.
    ///
    /// Per family, the address the client came to is proved to work; failing that, what the node
    /// believes to be its external address; failing that, a global one of an interface. Addresses
    /// inside are told only to clients that came to them from inside.
    pub(crate) fn advertised(&self, ends: Ends) -> Vec<IpAddr> {
        let mut advertised: Vec<IpAddr> = ends.inside().into_iter().collect();
        for v4 in [true, false] {
            let came_to = ends.local.iter();
            let known = came_to.chain(&self.public).chain(&self.interfaces);
            let best = known
                .copied()
                .find(|ip| ip.is_ipv4() == v4 && is_global(*ip));
            advertised.extend(best);
        }
        advertised
    }

    /// From which address packets to remotes of a family are to come: the advertised one, where
    /// this host has it. Elsewhere the system chooses.
    pub(crate) fn source(&self, advertised: &[IpAddr], v4: bool) -> Option<IpAddr> {
        let of_family = |ip: &&IpAddr| ip.is_ipv4() == v4;
        let ip = *advertised.iter().find(of_family)?;
        (is_global(ip) && self.interfaces.contains(&ip)).then_some(ip)
    }

    /// The node's own addresses this client may send to from its bound address, those of this
    /// host before those that lead around a NAT.
    pub(crate) fn node_addresses(
        &self,
        ends: Ends,
        advertised: &[IpAddr],
        policy: &Policy,
        scope: Scope,
    ) -> Vec<SocketAddr> {
        let mut found = Vec::new();
        let ips = || ends.local.iter().chain(advertised).chain(&self.interfaces);
        for node in &self.node {
            for ip in ips().chain(&self.public) {
                let is_meant = node.ip().is_unspecified() || node.ip() == *ip;
                let family = advertised.iter().any(|own| own.is_ipv4() == ip.is_ipv4());
                let address = SocketAddr::from((*ip, node.port()));
                if is_meant
                    && family
                    && !found.contains(&address)
                    && policy.check(address, scope).is_ok()
                {
                    found.push(address);
                }
            }
        }
        found.sort_by_key(|address| {
            (
                ends.local != Some(address.ip()),
                !self.interfaces.contains(&address.ip()),
            )
        });
        found.truncate(MAX_NODE_ADDRESSES);
        found
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(text: &str) -> IpAddr {
        text.parse().expect("literal")
    }

    fn at(text: &str) -> SocketAddr {
        text.parse().expect("literal")
    }

    fn ips<const N: usize>(texts: [&str; N]) -> Vec<IpAddr> {
        texts.map(ip).into()
    }

    fn ends(remote: &str, local: &str) -> Ends {
        Ends {
            remote: ip(remote),
            local: Some(ip(local)),
        }
    }

    /// A host with a public and a private network.
    fn host() -> Surroundings {
        Surroundings {
            interfaces: ips([
                "127.0.0.1",
                "::1",
                "10.0.0.5",
                "203.0.113.10",
                "203.0.113.11",
                "fe80::1",
                "2001:db8::10",
            ]),
            public: Vec::new(),
            node: vec![at("[::]:9000")],
        }
    }

    /// A virtual machine behind a one-to-one NAT.
    fn cloud() -> Surroundings {
        Surroundings {
            interfaces: ips(["127.0.0.1", "::1", "10.0.0.5"]),
            public: ips(["203.0.113.10"]),
            node: vec![at("0.0.0.0:9000")],
        }
    }

    #[test]
    fn the_address_the_client_came_to_is_best() {
        let client = ends("198.51.100.7", "203.0.113.11");
        assert_eq!(
            host().advertised(client),
            ips(["203.0.113.11", "2001:db8::10"])
        );
        let v6 = ends("2001:db8:1::7", "2001:db8::10");
        assert_eq!(host().advertised(v6), ips(["203.0.113.10", "2001:db8::10"]));
    }

    #[test]
    fn what_observers_say_comes_before_interfaces() {
        let known = Surroundings {
            public: ips(["192.0.2.9"]),
            ..host()
        };
        let unknown = Ends {
            remote: ip("198.51.100.7"),
            local: None,
        };
        assert_eq!(
            known.advertised(unknown),
            ips(["192.0.2.9", "2001:db8::10"])
        );
    }

    #[test]
    fn inside_is_for_those_inside() {
        assert_eq!(
            host().advertised(ends("10.0.0.77", "10.0.0.5")),
            ips(["10.0.0.5", "203.0.113.10", "2001:db8::10"])
        );
        assert_eq!(
            cloud().advertised(ends("127.0.0.1", "127.0.0.1")),
            ips(["127.0.0.1", "203.0.113.10"])
        );
        assert_eq!(
            cloud().advertised(ends("198.51.100.7", "10.0.0.5")),
            ips(["203.0.113.10"])
        );
        let nothing = Surroundings {
            public: Vec::new(),
            ..cloud()
        };
        assert!(
            nothing
                .advertised(ends("198.51.100.7", "10.0.0.5"))
                .is_empty()
        );
    }

    #[test]
    fn packets_come_from_the_advertised_address_if_the_host_has_it() {
        let known = host();
        let advertised = known.advertised(ends("198.51.100.7", "203.0.113.11"));
        assert_eq!(known.source(&advertised, true), Some(ip("203.0.113.11")));
        assert_eq!(known.source(&advertised, false), Some(ip("2001:db8::10")));
        assert_eq!(cloud().source(&ips(["203.0.113.10"]), true), None);
        assert_eq!(known.source(&ips(["127.0.0.1"]), true), None);
    }

    #[test]
    fn the_node_is_named_where_the_client_may_send() {
        let node = |known: &Surroundings, client: Ends| {
            let policy = Policy {
                own: known.own(),
                ..Policy::default()
            };
            let scope = Scope::of(client.remote, client.local);
            known.node_addresses(client, &known.advertised(client), &policy, scope)
        };
        assert_eq!(
            node(&host(), ends("198.51.100.7", "203.0.113.11")),
            [
                "203.0.113.11:9000",
                "[2001:db8::10]:9000",
                "203.0.113.10:9000"
            ]
            .map(at)
        );
        // Past the NAT, which need not lead back, comes last.
        assert_eq!(
            node(&cloud(), ends("198.51.100.7", "10.0.0.5")),
            ["10.0.0.5:9000", "203.0.113.10:9000"].map(at)
        );
        assert_eq!(
            node(&cloud(), ends("127.0.0.1", "127.0.0.1")),
            ["127.0.0.1:9000", "10.0.0.5:9000", "203.0.113.10:9000"].map(at)
        );
        let exact = Surroundings {
            node: vec![at("203.0.113.10:9000"), at("10.0.0.5:9000")],
            ..host()
        };
        assert_eq!(
            node(&exact, ends("198.51.100.7", "203.0.113.11")),
            ["203.0.113.10:9000"].map(at)
        );
    }
}
