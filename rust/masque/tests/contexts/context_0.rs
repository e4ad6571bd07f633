//! Context 0, the target of the request.

use super::*;

/// The draft, section 3: with `*` as the target, context 0 MUST NOT be used, and a recipient
/// MUST abort the request stream.
#[test]
fn must_not_be_used_without_a_target() {
    let now = Instant::now();
    assert_eq!(
        open_proxy(now).on_datagram(datagram(&[0]), now),
        Err(Violation::ContextZero)
    );
    assert_eq!(
        open_client(now).on_datagram(datagram(&[0]), now),
        Err(Violation::ContextZero)
    );
}

/// The draft, section 3: otherwise it has the same semantics as in unextended UDP proxying.
#[test]
fn is_the_target_where_there_is_one() {
    let now = Instant::now();
    let payload = Incoming::Target(Bytes::from_static(PAYLOAD));
    for mut proxy in [
        ProxyContexts::plain(remote(0)),
        ProxyContexts::bound(Some(remote(0)), IDLE),
    ] {
        assert_eq!(proxy.on_datagram(datagram(&[0]), now), Ok(payload.clone()));
        let routed = proxy.route(remote(0), now).expect("the target");
        assert_eq!(routed.head[..], [0]);
        assert_eq!(routed.capsules, []);
        assert_eq!(proxy.route(remote(1), now), None);
    }
    let mut client = ClientContexts::new(Mode::BoundWithTarget, IDLE);
    assert_eq!(client.on_datagram(datagram(&[0]), now), Ok(payload));
}

/// RFC 9298, section 5: more than 65,527 bytes in context 0 MUST abort the stream.
#[test]
fn too_long_a_payload_aborts() {
    let now = Instant::now();
    let datagram = Bytes::from(vec![0; 2 + MAX_UDP_PAYLOAD]);
    let too_long = DatagramError::PayloadTooLong(MAX_UDP_PAYLOAD + 1);
    assert_eq!(
        ProxyContexts::plain(remote(0)).on_datagram(datagram, now),
        Err(Violation::Datagram(too_long))
    );
}

/// Without bind the extension's capsules are of unknown types, to be dropped silently
/// (RFC 9297, section 3.2), and other contexts are unknown.
#[test]
fn is_all_there_is_without_bind() {
    let now = Instant::now();
    let mut proxy = ProxyContexts::plain(remote(0));
    let mut client = ClientContexts::new(Mode::Plain, IDLE);
    for capsule in [assign(2, None), assign(1, None), ack(77), close(77)] {
        assert_eq!(tell(&mut proxy, capsule, now), Ok(vec![]));
        assert_eq!(client.on_capsule(capsule, now), Ok(Changed::default()));
    }
    for context in [1, 2] {
        let dropped = Ok(Incoming::Dropped(DropReason::UnknownContext));
        assert_eq!(proxy.on_datagram(datagram(&[context]), now), dropped);
        assert_eq!(client.on_datagram(datagram(&[context]), now), dropped);
    }
    assert_eq!(client.open_uncompressed(), None);
    assert_eq!(client.open(remote(1), now), []);
    assert_eq!(client.route(remote(1), now), None);
}
