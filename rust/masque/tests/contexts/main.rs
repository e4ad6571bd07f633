//! The context tables: one test for each MUST of draft-ietf-masque-connect-udp-listen ("the draft")
//! and RFC 9298 that concerns contexts, then both sides against each other.

use std::{
    net::{Ipv4Addr, SocketAddr},
    time::{Duration, Instant},
};

use anyreach_masque::contexts::{
    Changed, ClientContexts, DropReason, EARLY_LIFETIME, EarlyDatagrams, Families, Incoming,
    MAX_CONTEXTS, MAX_EARLY_BYTES, MAX_EARLY_DATAGRAMS, MAX_GAPS, MAX_OPENED_BY_PROXY,
    MAX_UNANSWERED, Mode, PAUSE_AFTER_CLOSE, ProxyContexts, Violation,
};
use anyreach_wire::{
    bound::{BoundError, bound_head},
    capsule::{Capsule, Kind},
    context::{ContextId, DatagramError, MAX_UDP_PAYLOAD, Side},
};
use bytes::Bytes;

mod acks_and_closes;
mod assign;
mod both_sides;
mod collision;
mod context_0;
mod limits;
mod preemptive_use;
mod uncompressed;

const IDLE: Duration = Duration::from_secs(30);
const PAYLOAD: &[u8] = b"payload";

fn id(id: u64) -> ContextId {
    ContextId::from_u64(id).expect("fits")
}

fn remote(n: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::new(203, 0, 113, 11), 1000 + n))
}

fn assign(context: u64, target: Option<SocketAddr>) -> Capsule {
    Capsule::CompressionAssign {
        context: id(context),
        target,
    }
}

fn ack(context: u64) -> Capsule {
    Capsule::CompressionAck(id(context))
}

fn close(context: u64) -> Capsule {
    Capsule::CompressionClose(id(context))
}

fn datagram(head: &[u8]) -> Bytes {
    [head, PAYLOAD].concat().into()
}

fn from(remote: SocketAddr, uncompressed: bool) -> Incoming {
    Incoming::Remote {
        remote,
        payload: Bytes::from_static(PAYLOAD),
        uncompressed,
    }
}

/// A proxy whose client has opened context 2 as uncompressed.
fn open_proxy(now: Instant) -> ProxyContexts {
    let mut proxy = ProxyContexts::bound(None, IDLE);
    assert_eq!(tell(&mut proxy, assign(2, None), now), Ok(vec![ack(2)]));
    proxy
}

/// A client that has opened context 2 as uncompressed.
fn open_client(now: Instant) -> ClientContexts {
    let mut client = ClientContexts::new(Mode::Bound, IDLE);
    assert_eq!(client.open_uncompressed(), Some(assign(2, None)));
    assert_eq!(client.on_capsule(ack(2), now), Ok(Changed::default()));
    client
}

fn tell(
    proxy: &mut ProxyContexts,
    capsule: Capsule,
    now: Instant,
) -> Result<Vec<Capsule>, Violation> {
    proxy.on_capsule(capsule, now, |_| true)
}

fn answers(capsules: Vec<Capsule>) -> Changed {
    Changed {
        capsules,
        ..Changed::default()
    }
}

/// The draft, section 6: the client SHOULD NOT use targets of families the proxy has no address
/// of.
#[test]
fn only_families_of_the_proxy_are_used() {
    let now = Instant::now();
    let v6: SocketAddr = "[2001:db8::1]:9".parse().expect("an address");
    assert_eq!(Families::of(&[]), Families::ANY);
    assert_eq!(Families::of(&[v6, remote(0)]), Families::ANY);
    for (public, usable, unusable) in [(remote(0), remote(1), v6), (v6, v6, remote(1))] {
        let mut client = open_client(now);
        client.set_families(Families::of(&[public]));
        assert_eq!(client.route(unusable, now), None);
        assert_eq!(client.open(unusable, now), []);
        assert!(client.route(usable, now).is_some());
        assert_eq!(client.open(usable, now).len(), 1);
    }
}
