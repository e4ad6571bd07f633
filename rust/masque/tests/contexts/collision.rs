//! Both sides registering the same remote: the draft, section 3.1.

use super::*;

/// The draft, section 3.1: if both have opened a context for the same tuple, an endpoint MUST
/// close the one that was opened by the proxy.
#[test]
fn the_proxy_closes_its_own() {
    let now = Instant::now();
    for acknowledged in [false, true] {
        let mut proxy = open_proxy(now);
        let routed = proxy.route(remote(0), now).expect("opened");
        assert_eq!(routed.capsules, [assign(1, Some(remote(0)))]);
        if acknowledged {
            tell(&mut proxy, ack(1), now).expect("registered");
        }
        assert_eq!(
            tell(&mut proxy, assign(4, Some(remote(0))), now),
            Ok(vec![close(1), ack(4)])
        );
        assert_eq!(proxy.route(remote(0), now).expect("known").head[..], [4]);
        // The client's answers to the first one are on their way.
        assert_eq!(tell(&mut proxy, ack(1), now), Ok(vec![]));
        assert_eq!(tell(&mut proxy, close(1), now), Ok(vec![]));
        assert_eq!(
            proxy.on_datagram(datagram(&[1]), now),
            Ok(Incoming::Dropped(DropReason::ClosedContext))
        );
        // And it is no reason to open no others.
        let routed = proxy.route(remote(1), now).expect("opened");
        assert_eq!(routed.capsules, [assign(3, Some(remote(1)))]);
    }
}

#[test]
fn the_client_closes_that_of_the_proxy() {
    let now = Instant::now();
    for acknowledged in [false, true] {
        let mut client = open_client(now);
        assert_eq!(client.open(remote(0), now), [assign(4, Some(remote(0)))]);
        if acknowledged {
            client.on_capsule(ack(4), now).expect("registered");
        }
        let changed = Changed {
            rejected: Some(id(1)),
            ..answers(vec![close(1)])
        };
        assert_eq!(
            client.on_capsule(assign(1, Some(remote(0))), now),
            Ok(changed)
        );
        assert_eq!(client.route(remote(0), now).expect("known")[..], [4]);
        assert_eq!(
            client.on_capsule(close(1), now),
            Ok(Changed::default()),
            "the proxy's, on its way"
        );
        assert_eq!(
            client.on_datagram(datagram(&[1]), now),
            Ok(Incoming::Dropped(DropReason::ClosedContext))
        );
    }
}

/// The rejection may leave the client's own context to be rejected by the proxy's policy.
#[test]
fn of_a_registration_that_is_rejected_leaves_none() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    proxy.route(remote(0), now).expect("opened");
    let reply = proxy.on_capsule(assign(4, Some(remote(0))), now, |_| false);
    assert_eq!(reply, Ok(vec![close(1), close(4)]));
    assert!(proxy.is_empty());
}
