//! COMPRESSION_ACK and COMPRESSION_CLOSE: the draft, sections 3.2 and 3.3.

use super::*;

/// The draft, section 3.2: an ACK for an ID the receiver did not attempt to register is
/// malformed.
#[test]
fn ack_for_what_was_not_registered_is_malformed() {
    let now = Instant::now();
    let malformed = |context| {
        let kind = Kind::Ack;
        let id = id(context);
        Violation::NotRegistered { kind, id }
    };
    // One we did not allocate yet, and those of the peer.
    for context in [1, 2, 4] {
        assert_eq!(
            tell(&mut open_proxy(now), ack(context), now),
            Err(malformed(context))
        );
    }
    for context in [1, 4, 6] {
        assert_eq!(
            open_client(now).on_capsule(ack(context), now),
            Err(malformed(context))
        );
    }
    // Nothing forbids to say it twice, and we may have closed it meanwhile.
    let mut client = open_client(now);
    assert_eq!(client.on_capsule(ack(2), now), Ok(Changed::default()));
    client.close_uncompressed().expect("open");
    assert_eq!(client.on_capsule(ack(2), now), Ok(Changed::default()));
}

/// The draft, section 3.3: a CLOSE answers an ASSIGN or ends a registration. One for an ID we
/// have not registered would forbid us to use it later.
#[test]
fn close_for_what_was_not_registered_is_malformed() {
    let now = Instant::now();
    let malformed = |context| {
        let kind = Kind::Close;
        let id = id(context);
        Violation::NotRegistered { kind, id }
    };
    assert_eq!(tell(&mut open_proxy(now), close(1), now), Err(malformed(1)));
    assert_eq!(
        open_client(now).on_capsule(close(4), now),
        Err(malformed(4))
    );
}

/// The draft, section 3.3: after a CLOSE, sent or received, an endpoint MUST NOT send
/// datagrams with that ID.
#[test]
fn nothing_is_sent_in_a_closed_context() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    tell(&mut proxy, assign(4, Some(remote(0))), now).expect("accepted");
    tell(&mut proxy, assign(6, Some(remote(1))), now).expect("accepted");
    tell(&mut proxy, close(4), now).expect("closed");
    assert_eq!(proxy.close(remote(1)), Some(close(6)));
    assert_eq!(proxy.close(remote(1)), None);
    for n in [0, 1] {
        let head = proxy.route(remote(n), now).expect("a new one").head;
        assert!(![4, 6].contains(&head[0]), "{head:?}");
    }

    let mut client = open_client(now);
    client.open(remote(0), now);
    client
        .on_capsule(assign(1, Some(remote(1))), now)
        .expect("accepted");
    let closed = client.on_capsule(close(4), now).expect("rejected").closed;
    let closed = closed.expect("it was ours");
    assert_eq!(closed.context, id(4));
    assert_eq!(closed.remote, Some(remote(0)));
    assert_eq!(
        (closed.opened_by, closed.acknowledged),
        (Side::Client, false)
    );
    assert_eq!(client.close(remote(1)), Some(close(1)));
    for n in [0, 1] {
        // Section 3.3: they can instead use the uncompressed context.
        let head = client.route(remote(n), now).expect("uncompressed");
        assert_eq!(head, bound_head(id(2), remote(n)));
    }
    client.close_uncompressed().expect("open");
    assert_eq!(client.route(remote(0), now), None);
}

/// The draft, section 3.3: datagrams in contexts that were closed MUST be discarded silently.
#[test]
fn late_datagrams_are_dropped_silently() {
    let now = Instant::now();
    let late = Ok(Incoming::Dropped(DropReason::ClosedContext));
    let mut proxy = open_proxy(now);
    tell(&mut proxy, assign(4, Some(remote(0))), now).expect("accepted");
    proxy.route(remote(1), now).expect("opened");
    for capsule in [close(2), close(4), close(1)] {
        tell(&mut proxy, capsule, now).expect("closed");
        let context = capsule.context().get() as u8;
        assert_eq!(proxy.on_datagram(datagram(&[context]), now), late);
        assert_eq!(tell(&mut proxy, capsule, now), Ok(vec![]), "twice");
    }

    let mut client = open_client(now);
    client.open(remote(0), now);
    client
        .on_capsule(assign(1, Some(remote(1))), now)
        .expect("accepted");
    for context in [2, 4, 1] {
        client
            .on_capsule(close(context.into()), now)
            .expect("closed");
        assert_eq!(client.on_datagram(datagram(&[context]), now), late);
    }
}

/// The draft, section 3.3 and RFC 9298, section 4: an ID that was closed cannot be reused.
#[test]
fn our_ids_are_never_used_again() {
    let now = Instant::now();
    let mut client = open_client(now);
    for n in 0..1000_u64 {
        let context = 4 + 2 * n;
        assert_eq!(
            client.open(remote(0), now),
            [assign(context, Some(remote(0)))]
        );
        assert_eq!(client.close(remote(0)), Some(close(context)));
    }
    let mut proxy = open_proxy(now);
    for n in 0..1000_u64 {
        let routed = proxy.route(remote(0), now).expect("opened");
        assert_eq!(routed.capsules, [assign(1 + 2 * n, Some(remote(0)))]);
        proxy.close(remote(0)).expect("open");
    }
}

/// The draft, section 3.3: endpoints MAY close any context regardless of who registered it.
#[test]
fn either_side_closes_what_either_side_opened() {
    let now = Instant::now();
    let mut client = open_client(now);
    client
        .on_capsule(assign(1, Some(remote(0))), now)
        .expect("accepted");
    let closed = client.on_capsule(close(1), now).expect("fine").closed;
    assert_eq!(closed.map(|closed| closed.opened_by), Some(Side::Proxy));
    let closed = client.on_capsule(close(2), now).expect("fine").closed;
    assert_eq!(closed.map(|closed| closed.remote), Some(None));
    assert_eq!(client.uncompressed(), None);
}
