//! What may be open, waiting and remembered: the draft, security considerations.

use super::*;

/// The draft, security considerations: endpoints MUST place a limit on how many context IDs
/// can be open and reject registrations beyond it.
#[test]
fn registrations_beyond_the_limit_are_rejected() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    let mut client = open_client(now);
    for n in 0..MAX_CONTEXTS as u16 {
        let even = u64::from(n) * 2 + 4;
        let reply = tell(&mut proxy, assign(even, Some(remote(n))), now);
        assert_eq!(reply, Ok(vec![ack(even)]));
        let reply = client.on_capsule(assign(even + 1, Some(remote(n))), now);
        assert_eq!(reply.expect("accepted").capsules, [ack(even + 1)]);
    }
    assert_eq!((proxy.len(), client.len()), (MAX_CONTEXTS, MAX_CONTEXTS));
    let reply = tell(&mut proxy, assign(5000, Some(remote(5000))), now);
    assert_eq!(reply, Ok(vec![close(5000)]));
    let reply = client.on_capsule(assign(5001, Some(remote(5000))), now);
    assert_eq!(reply.expect("rejected").rejected, Some(id(5001)));
    // The contexts of the peer are not closed for it, however long they are idle.
    let later = now + IDLE * 10;
    let reply = tell(&mut proxy, assign(5002, Some(remote(5000))), later);
    assert_eq!(reply, Ok(vec![close(5002)]));
    // A remote without one uses the uncompressed context.
    let routed = proxy.route(remote(5000), later).expect("uncompressed");
    assert_eq!(routed.head, bound_head(id(2), remote(5000)));
    assert_eq!(client.open(remote(5000), later), []);
    assert_eq!(proxy.remotes().count(), MAX_CONTEXTS);
    assert!(client.remotes().any(|open| open == remote(7)));
}

/// Strangers may not take the room of the client.
#[test]
fn the_proxy_leaves_room_for_the_client() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    for n in 0..200_u16 {
        let routed = proxy.route(remote(n), now).expect("takes any");
        for capsule in routed.capsules {
            tell(&mut proxy, ack(capsule.context().get()), now).expect("registered");
        }
    }
    assert_eq!(proxy.len(), MAX_OPENED_BY_PROXY);
    for n in 200..200 + (MAX_CONTEXTS - MAX_OPENED_BY_PROXY) as u16 {
        let even = u64::from(n) * 2;
        let reply = tell(&mut proxy, assign(even, Some(remote(n))), now);
        assert_eq!(reply, Ok(vec![ack(even)]));
    }
    assert_eq!(proxy.len(), MAX_CONTEXTS);
}

/// A flood of new remotes does not fill the queue of capsules.
#[test]
fn few_registrations_wait_for_an_answer() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    let mut flood = (0..60_000_u16).map(remote);
    let mut opened = Vec::new();
    for remote in flood.by_ref().take(1000) {
        let routed = proxy.route(remote, now).expect("takes any");
        opened.extend(routed.capsules);
    }
    assert_eq!(opened.len(), MAX_UNANSWERED);
    // An answer of either kind, or our own change of mind, makes place for another.
    tell(&mut proxy, ack(1), now).expect("registered");
    tell(&mut proxy, ack(1), now).expect("not counted twice");
    proxy.close(remote(0)).expect("open");
    proxy.close(remote(1)).expect("open");
    let opened: usize = flood
        .map(|remote| proxy.route(remote, now).expect("any").capsules.len())
        .sum();
    assert_eq!(opened, 2);
}

/// A second flood, which finds the contexts of the first one idle, leaves room for answers in the
/// queue of 64 capsules a carrier has: a stranger must not be able to end a tunnel.
#[test]
fn replacing_idle_contexts_does_not_fill_the_queue_of_capsules() {
    let mut now = Instant::now();
    let mut proxy = open_proxy(now);
    let mut number = 0;
    let mut flood = |proxy: &mut ProxyContexts, now| {
        let mut capsules = Vec::new();
        for _ in 0..1000 {
            number += 1;
            capsules.extend(proxy.route(remote(number), now).expect("any").capsules);
        }
        capsules
    };
    for _ in 0..MAX_OPENED_BY_PROXY.div_ceil(MAX_UNANSWERED) {
        for capsule in flood(&mut proxy, now) {
            let Capsule::CompressionAssign { context, .. } = capsule else {
                panic!("nothing to close yet: {capsule:?}");
            };
            let ack = Capsule::CompressionAck(context);
            tell(&mut proxy, ack, now).expect("registered");
        }
    }
    assert_eq!(proxy.len(), MAX_OPENED_BY_PROXY);
    now += IDLE;
    let capsules = flood(&mut proxy, now);
    assert_eq!(capsules.len(), 2 * MAX_UNANSWERED);
    assert!(capsules.len() <= 64 - 16, "{} capsules", capsules.len());
}

/// A peer that closes what we open is not asked again with every packet.
#[test]
fn after_a_close_nothing_is_registered_for_a_while() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    proxy.route(remote(0), now).expect("opened");
    tell(&mut proxy, close(1), now).expect("rejected");
    let routed = proxy.route(remote(0), now).expect("uncompressed");
    assert_eq!(routed.head, bound_head(id(2), remote(0)));
    assert_eq!(routed.capsules, []);
    let later = now + PAUSE_AFTER_CLOSE;
    let routed = proxy.route(remote(0), later).expect("opened");
    assert_eq!(routed.capsules, [assign(3, Some(remote(0)))]);

    let mut client = open_client(now);
    client.open(remote(0), now);
    client.on_capsule(close(4), now).expect("rejected");
    assert_eq!(client.open(remote(1), now), []);
    assert_eq!(client.open(remote(1), later).len(), 1);
    // Without the uncompressed context there is no other way to reach anyone.
    client.on_capsule(close(6), later).expect("rejected");
    client.close_uncompressed().expect("open");
    assert_eq!(client.open(remote(2), later).len(), 1);
}

/// The draft, section 3.3: closing is useful when a mapping is unused for a long time.
#[test]
fn the_longest_idle_context_makes_room() {
    let start = Instant::now();
    let mut proxy = open_proxy(start);
    for n in 0..MAX_OPENED_BY_PROXY as u16 {
        let routed = proxy.route(remote(n), start).expect("opened");
        let context = routed.capsules[0].context().get();
        tell(&mut proxy, ack(context), start).expect("registered");
    }
    // Those used since, in either direction, stay.
    let later = start + IDLE;
    proxy.route(remote(0), later).expect("open");
    proxy.on_datagram(datagram(&[3]), later).expect("fine");
    let routed = proxy.route(remote(999), later).expect("opened");
    let new = 2 * MAX_OPENED_BY_PROXY as u64 + 1;
    assert_eq!(routed.capsules, [close(5), assign(new, Some(remote(999)))]);
    for n in [0, 1, 3] {
        assert_eq!(proxy.route(remote(n), later).expect("open").capsules, []);
    }
    assert_eq!(proxy.len(), MAX_OPENED_BY_PROXY);
    assert_eq!(
        proxy.on_datagram(datagram(&[5]), later),
        Ok(Incoming::Dropped(DropReason::ClosedContext))
    );
    // Not before they are idle.
    let mut client = open_client(start);
    for n in 0..MAX_CONTEXTS as u16 {
        let capsules = client.open(remote(n), start);
        client
            .on_capsule(ack(capsules[0].context().get()), start)
            .expect("registered");
    }
    assert_eq!(
        client.open(remote(999), later - Duration::from_millis(1)),
        []
    );
    assert_eq!(
        client.open(remote(999), later),
        [close(4), assign(4 + 2 * 128, Some(remote(999)))]
    );
    // For the proxy's too.
    let changed = client.on_capsule(assign(1, Some(remote(1000))), later);
    assert_eq!(changed.expect("accepted").capsules, [close(6), ack(1)]);
}
