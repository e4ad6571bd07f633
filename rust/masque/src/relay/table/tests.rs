use std::net::IpAddr;

use anyreach_quic::PeerId;
use proptest::prelude::*;

use super::*;

fn peer(number: u8) -> ClientKey {
    ClientKey::Peer(PeerId([number; 32]))
}

fn source(number: u8) -> Prefix {
    Prefix::source(IpAddr::from([198, 51, number, 1]))
}

fn claim(client: u8, token: Option<u8>) -> Claim {
    Claim {
        kind: Kind::Reservation,
        client: peer(client),
        source: source(client),
        token: token.map(|byte| [byte; 16]),
    }
}

fn small() -> RelayConfig {
    RelayConfig {
        max_reservations: 4,
        reservations_per_client: 2,
        max_tunnels: 3,
        tunnels_per_client: 2,
        sessions_per_prefix: 8,
        lease_time: Duration::from_secs(10),
        ..RelayConfig::default()
    }
}

/// A table whose sockets are numbers, driven like the relay does it.
struct Driver {
    table: Table<u32>,
    config: RelayConfig,
    now: Instant,
    next: u32,
}

impl Driver {
    fn new(config: RelayConfig) -> Self {
        Self {
            table: Table::default(),
            config,
            now: Instant::now(),
            next: 0,
        }
    }

    /// Returns the entry and its socket.
    fn open(&mut self, claim: Claim) -> Result<(EntryId, u32), Limit> {
        match self.table.plan(&claim, &self.config)? {
            Plan::Reuse(id) => {
                let slot = *self.table.attach(id, claim).expect("planned");
                Ok((id, slot))
            }
            Plan::New { evict } => {
                for id in evict {
                    self.table.remove(id).expect("planned");
                }
                self.next += 1;
                Ok((self.table.insert(claim, self.next), self.next))
            }
        }
    }

    fn close(&mut self, id: EntryId) {
        self.table.detach(id, self.now, &self.config);
    }

    fn pass(&mut self, seconds: u64) {
        self.now += Duration::from_secs(seconds);
        self.table.expire(self.now, self.config.lease_time);
    }

    fn len(&self) -> usize {
        self.table.iter().count()
    }
}

#[test]
fn an_address_comes_back_within_the_lease_and_not_after() {
    for (pause, same) in [(0, true), (9, true), (10, false)] {
        let mut relay = Driver::new(small());
        let (id, socket) = relay.open(claim(1, Some(7))).expect("free");
        relay.close(id);
        relay.pass(pause);
        let (_, again) = relay.open(claim(1, Some(7))).expect("free");
        assert_eq!(again == socket, same, "{pause} s");
    }
}

#[test]
fn the_token_takes_over_and_nothing_else_does() {
    let mut relay = Driver::new(small());
    let (_, first) = relay.open(claim(1, Some(7))).expect("free");
    let (_, taken) = relay.open(claim(1, Some(7))).expect("its own");
    assert_eq!(taken, first);
    let (_, other_token) = relay.open(claim(1, Some(8))).expect("free");
    let (_, other_peer) = relay.open(claim(2, Some(7))).expect("free");
    assert!(other_token != first && other_peer != first);
}

#[test]
fn without_a_token_what_was_left_comes_back_but_nobody_is_displaced() {
    let mut relay = Driver::new(small());
    let (id, first) = relay.open(claim(1, None)).expect("free");
    let (_, second) = relay.open(claim(1, None)).expect("free");
    assert_ne!(second, first);
    relay.close(id);
    let (_, third) = relay.open(claim(1, None)).expect("free");
    assert_eq!(third, first);
}

#[test]
fn the_newest_of_a_client_wins() {
    let mut relay = Driver::new(small());
    let (oldest, _) = relay.open(claim(1, Some(1))).expect("free");
    let (second, _) = relay.open(claim(1, Some(2))).expect("free");
    let (third, _) = relay.open(claim(1, Some(3))).expect("displaces");
    assert!(relay.table.get(oldest).is_none());
    assert!(relay.table.get(second).is_some());
    // What nobody uses goes first, although it is newer.
    relay.close(third);
    relay.open(claim(1, Some(4))).expect("displaces");
    assert!(relay.table.get(second).is_some());
    assert!(relay.table.get(third).is_none());
}

#[test]
fn a_full_relay_gives_up_the_oldest_lease_and_then_refuses() {
    let mut relay = Driver::new(small());
    let held: Vec<_> = (0..4)
        .map(|client| relay.open(claim(client, None)).expect("at the limit"))
        .collect();
    assert_eq!(relay.open(claim(9, None)), Err(Limit::Relay));
    relay.close(held[2].0);
    relay.pass(1);
    relay.close(held[0].0);
    relay.open(claim(9, None)).expect("the place of a lease");
    assert!(relay.table.get(held[2].0).is_none(), "left first");
    assert!(relay.table.get(held[0].0).is_some());
    relay.open(claim(10, None)).expect("the other lease");
    assert_eq!(relay.open(claim(11, None)), Err(Limit::Relay));
}

#[test]
fn tunnels_have_limits_of_their_own_and_displace_nobody() {
    let mut relay = Driver::new(small());
    let tunnel = |client| Claim {
        kind: Kind::Tunnel,
        ..claim(client, None)
    };
    for client in 0..4 {
        relay.open(claim(client, None)).expect("at the limit");
    }
    let (first, _) = relay.open(tunnel(1)).expect("free");
    relay.open(tunnel(1)).expect("at the client's limit");
    assert_eq!(relay.open(tunnel(1)), Err(Limit::Client));
    relay.open(tunnel(2)).expect("at the relay's limit");
    assert_eq!(relay.open(tunnel(3)), Err(Limit::Relay));
    relay.close(first);
    relay.open(tunnel(3)).expect("not kept");
}

#[test]
fn a_network_of_made_up_identities_gets_what_a_network_may() {
    let mut relay = Driver::new(RelayConfig {
        max_reservations: 100,
        ..small()
    });
    let from = |client, token| Claim {
        source: source(200),
        ..claim(client, token)
    };
    let held: Vec<_> = (0..8)
        .map(|client| relay.open(from(client, Some(1))).expect("at the limit"))
        .collect();
    assert_eq!(relay.open(from(100, None)), Err(Limit::Source));
    assert!(relay.open(claim(101, None)).is_ok(), "another network");
    // Its own place is no further one.
    assert_eq!(relay.open(from(3, Some(1))), Ok(held[3]));
    // Leases do not count, but coming back does.
    relay.close(held[0].0);
    relay.open(from(100, None)).expect("one has gone");
    assert_eq!(relay.open(from(0, Some(1))), Err(Limit::Source));
}

/// Identities cost nothing: one network that comes and goes with ever new ones must not push out
/// what is kept for others.
#[test]
fn a_network_of_made_up_identities_pushes_out_its_own_leases() {
    let mut relay = Driver::new(RelayConfig {
        max_reservations: 20,
        ..small()
    });
    let (honest, socket) = relay.open(claim(1, Some(1))).expect("free");
    relay.close(honest);
    for client in 2..200 {
        let from = Claim {
            source: source(200),
            ..claim(client, None)
        };
        let (id, _) = relay.open(from).expect("in place of its own");
        relay.close(id);
    }
    assert_eq!(relay.len(), 1 + 8);
    assert_eq!(relay.open(claim(1, Some(1))), Ok((honest, socket)));
}

#[test]
fn clients_without_identity_keep_nothing_and_displace_nobody() {
    let mut relay = Driver::new(small());
    let anonymous = Claim {
        client: ClientKey::Anonymous(source(5)),
        ..claim(5, Some(1))
    };
    let (id, first) = relay.open(anonymous).expect("free");
    let (_, second) = relay.open(anonymous).expect("free");
    assert_ne!(first, second);
    assert_eq!(relay.open(anonymous), Err(Limit::Client));
    relay.close(id);
    assert!(relay.table.get(id).is_none());
    assert_eq!(relay.len(), 1);
}

#[test]
fn limits_of_zero_lend_nothing() {
    for config in [
        RelayConfig {
            max_reservations: 0,
            ..small()
        },
        RelayConfig {
            reservations_per_client: 0,
            ..small()
        },
        RelayConfig {
            sessions_per_prefix: 0,
            ..small()
        },
    ] {
        assert!(Driver::new(config).open(claim(1, None)).is_err());
    }
    let mut relay = Driver::new(RelayConfig {
        lease_time: Duration::ZERO,
        ..small()
    });
    let (id, _) = relay.open(claim(1, Some(1))).expect("free");
    relay.close(id);
    assert_eq!(relay.len(), 0, "no leases");
}

#[derive(Debug, Clone)]
enum Op {
    Open {
        client: u8,
        token: Option<u8>,
        tunnel: bool,
        source: u8,
        anonymous: bool,
    },
    Close(prop::sample::Index),
    Pass(u64),
}

fn any_op() -> impl Strategy<Value = Op> {
    let open = (
        0..6_u8,
        prop::option::of(0..3_u8),
        any::<bool>(),
        0..3_u8,
        any::<bool>(),
    )
        .prop_map(|(client, token, tunnel, source, anonymous)| Op::Open {
            client,
            token,
            tunnel,
            source,
            anonymous,
        });
    prop_oneof![
        4 => open,
        2 => any::<prop::sample::Index>().prop_map(Op::Close),
        1 => (0..12_u64).prop_map(Op::Pass),
    ]
}

proptest! {
    /// Whatever happens, no limit is exceeded, and a socket has one client.
    #[test]
    fn limits_hold(ops in prop::collection::vec(any_op(), 0..80)) {
        let mut relay = Driver::new(RelayConfig { sessions_per_prefix: 4, ..small() });
        for op in ops {
            match op {
                Op::Open { client, token, tunnel, source: from, anonymous } => {
                    let kind = if tunnel { Kind::Tunnel } else { Kind::Reservation };
                    let client = if anonymous { ClientKey::Anonymous(source(from)) } else { peer(client) };
                    let wanted = Claim { kind, client, source: source(from), ..claim(0, token) };
                    if let Ok((id, _)) = relay.open(wanted) {
                        let entry = relay.table.get(id).expect("just opened");
                        prop_assert!(!entry.is_free() && entry.claim == wanted);
                    }
                }
                Op::Close(index) => {
                    let attached: Vec<_> = relay.table.iter()
                        .filter(|(_, entry)| !entry.is_free()).map(|(id, _)| id).collect();
                    if !attached.is_empty() {
                        relay.close(attached[index.index(attached.len())]);
                    }
                }
                Op::Pass(seconds) => relay.pass(seconds),
            }
            let entries: Vec<_> = relay.table.iter().map(|(_, entry)| entry).collect();
            let count = |wanted: &dyn Fn(&Entry<u32>) -> bool| {
                entries.iter().filter(|entry| wanted(entry)).count()
            };
            prop_assert!(count(&|entry| entry.kind() == Kind::Reservation) <= 4);
            prop_assert!(count(&|entry| entry.kind() == Kind::Tunnel) <= 3);
            for one in &entries {
                let (client, from) = (one.claim.client, one.claim.source);
                for kind in [Kind::Reservation, Kind::Tunnel] {
                    prop_assert!(count(&|entry| entry.kind() == kind && entry.claim.client == client) <= 2);
                }
                prop_assert!(count(&|entry| !entry.is_free() && entry.claim.source == from) <= 4);
                prop_assert!(!one.is_free() || one.claim.may_be_kept());
                prop_assert_eq!(count(&|entry| entry.slot == one.slot), 1);
            }
        }
    }
}
