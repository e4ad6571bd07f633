//! The uncompressed context: the draft, section 4.

use super::*;

/// The draft, section 4: its datagrams carry the remote.
#[test]
fn carries_the_remote() {
    let now = Instant::now();
    let head = bound_head(id(2), remote(0));
    let mut proxy = open_proxy(now);
    assert_eq!(
        proxy.on_datagram(datagram(&head), now),
        Ok(from(remote(0), true))
    );
    let mut client = open_client(now);
    assert_eq!(client.route(remote(0), now), Some(head));
    assert_eq!(
        client.on_datagram(datagram(&head), now),
        Ok(from(remote(0), true))
    );
}

/// The draft, section 4: the IP version MUST be 4 or 6. What cannot be read is dropped.
#[test]
fn what_cannot_be_read_is_dropped() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    for (payload, error) in [
        (&[2][..], BoundError::Truncated),
        (&[2, 5, 1, 2, 3, 4, 0, 9], BoundError::IpVersion(5)),
        (&[2, 4, 1, 2, 3, 4, 0], BoundError::Truncated),
    ] {
        assert_eq!(
            proxy.on_datagram(Bytes::copy_from_slice(payload), now),
            Ok(Incoming::Dropped(DropReason::Unreadable(error)))
        );
    }
    let mut too_long = bound_head(id(2), remote(0)).to_vec();
    too_long.resize(too_long.len() + MAX_UDP_PAYLOAD + 1, 0);
    assert_eq!(
        proxy.on_datagram(too_long.into(), now),
        Ok(Incoming::Dropped(DropReason::TooLong))
    );
}

/// The draft, section 4: a client MUST NOT open one if one is open.
#[test]
fn is_opened_once() {
    let now = Instant::now();
    let mut client = ClientContexts::new(Mode::Bound, IDLE);
    assert_eq!(client.open_uncompressed(), Some(assign(2, None)));
    assert_eq!(client.open_uncompressed(), None, "not answered yet");
    client.on_capsule(ack(2), now).expect("registered");
    assert_eq!(client.open_uncompressed(), None);
}

/// The draft, section 4: a server MUST treat a second one as malformed.
#[test]
fn a_second_one_is_malformed() {
    let now = Instant::now();
    assert_eq!(
        tell(&mut open_proxy(now), assign(4, None), now),
        Err(Violation::SecondUncompressed(id(4)))
    );
}

/// The draft, section 4: it is possible to close it and reopen it with a different ID.
#[test]
fn can_be_reopened_with_another_id() {
    let now = Instant::now();
    let mut client = open_client(now);
    let mut proxy = open_proxy(now);
    assert_eq!(client.close_uncompressed(), Some(close(2)));
    assert_eq!(client.close_uncompressed(), None);
    assert_eq!(tell(&mut proxy, close(2), now), Ok(vec![]));
    assert!(!proxy.takes_unknown());
    assert_eq!(client.open_uncompressed(), Some(assign(4, None)));
    assert_eq!(tell(&mut proxy, assign(4, None), now), Ok(vec![ack(4)]));
    assert!(proxy.takes_unknown());
    let head = client.route(remote(0), now).expect("open");
    assert_eq!(
        proxy.on_datagram(datagram(&head), now),
        Ok(from(remote(0), true))
    );
}

/// The draft, section 4: a client MUST treat one by the proxy as malformed.
#[test]
fn by_the_proxy_is_malformed() {
    let now = Instant::now();
    assert_eq!(
        open_client(now).on_capsule(assign(1, None), now),
        Err(Violation::UncompressedByProxy(id(1)))
    );
}

/// The draft, section 3.1: if it is closed, the proxy MUST NOT open new contexts; those
/// established before are not impacted. Section 7.1: nor if it was never opened.
#[test]
fn without_it_the_proxy_opens_no_contexts() {
    let now = Instant::now();
    let mut proxy = ProxyContexts::bound(None, IDLE);
    assert_eq!(proxy.route(remote(0), now), None);
    let mut proxy = open_proxy(now);
    proxy.route(remote(0), now).expect("opened");
    tell(&mut proxy, assign(4, Some(remote(1))), now).expect("accepted");
    tell(&mut proxy, close(2), now).expect("closed");
    assert_eq!(proxy.route(remote(0), now).expect("before").head[..], [1]);
    assert_eq!(proxy.route(remote(1), now).expect("before").head[..], [4]);
    assert_eq!(proxy.route(remote(2), now), None);
    // The client can still let in others by name.
    tell(&mut proxy, assign(6, Some(remote(2))), now).expect("accepted");
    assert_eq!(proxy.route(remote(2), now).expect("named").head[..], [6]);
}

/// The other end of that: one the proxy opened before it knew is rejected, not malformed.
#[test]
fn without_it_the_client_rejects_what_was_on_its_way() {
    let now = Instant::now();
    let mut client = open_client(now);
    client.close_uncompressed().expect("open");
    let changed = client
        .on_capsule(assign(1, Some(remote(0))), now)
        .expect("no violation");
    assert_eq!(changed.capsules, [close(1)]);
    assert_eq!(changed.rejected, Some(id(1)));
    assert_eq!(client.route(remote(0), now), None);
}
