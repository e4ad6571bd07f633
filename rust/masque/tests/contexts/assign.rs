//! COMPRESSION_ASSIGN: the draft, section 3.1.

use super::*;

/// The draft, section 3.1: an endpoint that accepts MUST save the mapping and MUST return an
/// ACK.
#[test]
fn accepted_is_saved_and_acknowledged() {
    let now = Instant::now();
    let mut proxy = ProxyContexts::bound(None, IDLE);
    assert_eq!(
        tell(&mut proxy, assign(4, Some(remote(0))), now),
        Ok(vec![ack(4)])
    );
    assert_eq!(
        proxy.on_datagram(datagram(&[4]), now),
        Ok(from(remote(0), false))
    );
    assert_eq!(proxy.route(remote(0), now).expect("known").head[..], [4]);

    let mut client = open_client(now);
    let changed = Changed {
        opened: Some((id(1), remote(0))),
        ..answers(vec![ack(1)])
    };
    assert_eq!(
        client.on_capsule(assign(1, Some(remote(0))), now),
        Ok(changed)
    );
    assert_eq!(
        client.on_datagram(datagram(&[1]), now),
        Ok(from(remote(0), false))
    );
    assert_eq!(client.route(remote(0), now).expect("known")[..], [1]);
}

/// The draft, section 3.1: an endpoint that rejects MUST send a CLOSE. Security
/// considerations: the proxy checks the address of every registration.
#[test]
fn rejected_is_closed() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    let asked = remote(0);
    let reply = proxy.on_capsule(assign(4, Some(asked)), now, |target| {
        assert_eq!(target, asked);
        false
    });
    assert_eq!(reply, Ok(vec![close(4)]));
    assert_eq!(
        proxy.on_datagram(datagram(&[4]), now),
        Ok(Incoming::Dropped(DropReason::ClosedContext))
    );
    assert!(proxy.is_empty());
}

/// RFC 9298, section 4: clients allocate even context IDs, proxies odd ones.
#[test]
fn of_the_wrong_parity_is_malformed() {
    let now = Instant::now();
    for target in [None, Some(remote(0))] {
        assert_eq!(
            tell(&mut open_proxy(now), assign(3, target), now),
            Err(Violation::NotTheirs(id(3)))
        );
    }
    assert_eq!(
        open_client(now).on_capsule(assign(4, Some(remote(0))), now),
        Err(Violation::NotTheirs(id(4)))
    );
}

/// The draft, section 3.1: a repeated context ID MUST be treated as malformed. Section 3.3
/// and RFC 9298, section 4: also if it was closed or rejected meanwhile.
#[test]
fn with_a_repeated_id_is_malformed() {
    let now = Instant::now();
    let repeated = Err(Violation::Repeated(id(4)));
    let mut proxy = open_proxy(now);
    tell(&mut proxy, assign(4, Some(remote(0))), now).expect("accepted");
    assert_eq!(
        tell(&mut proxy, assign(4, Some(remote(1))), now),
        repeated,
        "open"
    );
    tell(&mut proxy, close(4), now).expect("closed");
    assert_eq!(
        tell(&mut proxy, assign(4, Some(remote(1))), now),
        repeated,
        "closed"
    );
    proxy
        .on_capsule(assign(6, Some(remote(2))), now, |_| false)
        .expect("rejected");
    assert_eq!(
        tell(&mut proxy, assign(6, Some(remote(2))), now),
        Err(Violation::Repeated(id(6)))
    );
    assert_eq!(
        tell(&mut proxy, assign(2, Some(remote(2))), now),
        Err(Violation::Repeated(id(2))),
        "the uncompressed one"
    );

    let mut client = open_client(now);
    client
        .on_capsule(assign(1, Some(remote(0))), now)
        .expect("accepted");
    client.close(remote(0)).expect("open");
    assert_eq!(
        client.on_capsule(assign(1, Some(remote(0))), now),
        Err(Violation::Repeated(id(1)))
    );
}

/// RFC 9298, section 4: IDs MAY be allocated in any order.
#[test]
fn ids_may_come_in_any_order() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    for (n, context) in [1000, 4, (1 << 62) - 2, 998, 6].into_iter().enumerate() {
        assert_eq!(
            tell(&mut proxy, assign(context, Some(remote(n as u16))), now),
            Ok(vec![ack(context)])
        );
    }
    assert_eq!(
        tell(&mut proxy, assign(998, Some(remote(9))), now),
        Err(Violation::Repeated(id(998)))
    );
}

/// What a peer makes us remember is bounded: IDs strewn about are rejected in the end.
#[test]
fn ids_strewn_about_are_rejected_in_the_end() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    let strewn = |n: usize| 4 * n as u64 + 6;
    for n in 0..MAX_GAPS - 1 {
        tell(&mut proxy, assign(strewn(n), Some(remote(0))), now).expect("accepted");
        tell(&mut proxy, close(strewn(n)), now).expect("closed");
    }
    for n in MAX_GAPS..2 * MAX_GAPS {
        for target in [None, Some(remote(0))] {
            if target.is_none() {
                tell(&mut proxy, close(2), now).expect("closed, or not open");
            }
            let rejected = Ok(vec![close(strewn(n))]);
            assert_eq!(tell(&mut proxy, assign(strewn(n), target), now), rejected);
        }
    }
    // Counting on from the last one still works.
    let next = strewn(MAX_GAPS - 2) + 2;
    assert_eq!(
        tell(&mut proxy, assign(next, Some(remote(0))), now),
        Ok(vec![ack(next)])
    );
}

/// The draft, section 3.1: a second context by the same peer for one (address, port) MUST be
/// treated as malformed.
#[test]
fn for_a_remote_the_peer_has_a_context_for_is_malformed() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    tell(&mut proxy, assign(4, Some(remote(0))), now).expect("accepted");
    let violation = Violation::SameRemote {
        id: id(6),
        existing: id(4),
    };
    assert_eq!(
        tell(&mut proxy, assign(6, Some(remote(0))), now),
        Err(violation)
    );

    let mut client = open_client(now);
    client
        .on_capsule(assign(1, Some(remote(0))), now)
        .expect("accepted");
    let violation = Violation::SameRemote {
        id: id(3),
        existing: id(1),
    };
    assert_eq!(
        client.on_capsule(assign(3, Some(remote(0))), now),
        Err(violation)
    );
}

/// The same, once the first one is closed, is fine.
#[test]
fn for_a_remote_whose_context_was_closed_is_accepted() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    tell(&mut proxy, assign(4, Some(remote(0))), now).expect("accepted");
    tell(&mut proxy, close(4), now).expect("closed");
    assert_eq!(
        tell(&mut proxy, assign(6, Some(remote(0))), now),
        Ok(vec![ack(6)])
    );
}

/// The draft, section 3.1: endpoints MUST NOT register an ID for a tuple that has one.
#[test]
fn is_not_sent_for_a_remote_that_has_a_context() {
    let now = Instant::now();
    let mut client = open_client(now);
    assert_eq!(
        client.open(remote(0), now),
        [crate::assign(4, Some(remote(0)))]
    );
    assert_eq!(client.open(remote(0), now), []);
    client
        .on_capsule(crate::assign(1, Some(remote(1))), now)
        .expect("accepted");
    assert_eq!(client.open(remote(1), now), [], "the proxy has one");

    let mut proxy = open_proxy(now);
    tell(&mut proxy, crate::assign(4, Some(remote(0))), now).expect("accepted");
    assert_eq!(proxy.route(remote(0), now).expect("known").capsules, []);
    let mapped = SocketAddr::from((Ipv4Addr::new(203, 0, 113, 11).to_ipv6_mapped(), 1000));
    let routed = proxy.route(mapped, now).expect("the same one");
    assert_eq!((&routed.head[..], routed.capsules), (&[4][..], vec![]));
}
