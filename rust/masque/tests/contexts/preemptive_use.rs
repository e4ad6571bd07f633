//! Contexts used before their registration is acknowledged, or has arrived.

use super::*;

/// The draft, section 3.1: endpoints MAY use IDs not yet acknowledged.
#[test]
fn contexts_are_used_before_they_are_acknowledged() {
    let now = Instant::now();
    let mut proxy = open_proxy(now);
    let routed = proxy.route(remote(0), now).expect("opened");
    assert_eq!(routed.head[..], [1]);
    assert_eq!(routed.capsules, [assign(1, Some(remote(0)))]);
    let again = proxy.route(remote(0), now).expect("opened");
    assert_eq!((&again.head[..], again.capsules), (&[1][..], vec![]));

    let mut client = ClientContexts::new(Mode::Bound, IDLE);
    client.open(remote(0), now);
    assert_eq!(client.route(remote(0), now).expect("opened")[..], [2]);
    // The peer can answer before its ACK arrives.
    assert_eq!(
        client.on_datagram(datagram(&[2]), now),
        Ok(from(remote(0), false))
    );
}

/// RFC 9298, section 5: a datagram in an unknown context is dropped, or buffered for a moment.
/// Only one the peer can still register is worth that.
#[test]
fn datagrams_can_overtake_their_registration() {
    let now = Instant::now();
    let early = |context| Incoming::Early {
        context: id(context),
        payload: Bytes::from_static(PAYLOAD),
    };
    let unknown = Ok(Incoming::Dropped(DropReason::UnknownContext));
    let mut client = open_client(now);
    assert_eq!(client.on_datagram(datagram(&[7]), now), Ok(early(7)));
    assert_eq!(client.on_datagram(datagram(&[8]), now), unknown);
    let mut proxy = open_proxy(now);
    assert_eq!(proxy.on_datagram(datagram(&[8]), now), Ok(early(8)));
    assert_eq!(proxy.on_datagram(datagram(&[7]), now), unknown);

    let mut waiting = EarlyDatagrams::default();
    assert_eq!(waiting.push(id(7), PAYLOAD, now), 0);
    assert_eq!(waiting.push(id(9), b"other", now), 0);
    let changed = client.on_capsule(assign(7, Some(remote(0))), now);
    let (context, _) = changed.expect("fine").opened.expect("accepted");
    assert_eq!(waiting.take(context, now), [PAYLOAD]);
    assert!(waiting.take(context, now).is_empty());
    assert!(!waiting.is_empty());
}

#[test]
fn early_datagrams_wait_briefly_and_are_few() {
    let start = Instant::now();
    let mut waiting = EarlyDatagrams::default();
    for n in 0..MAX_EARLY_DATAGRAMS {
        assert_eq!(waiting.push(id(1), &[n as u8], start), 0);
    }
    let later = start + EARLY_LIFETIME / 2;
    assert_eq!(waiting.push(id(1), b"last", later), 1, "the oldest");
    let expired = start + EARLY_LIFETIME;
    assert_eq!(waiting.take(id(1), expired), [&b"last"[..]]);

    let half = vec![0; MAX_EARLY_BYTES / 2];
    assert_eq!(waiting.push(id(1), &half, start), 0);
    assert_eq!(waiting.push(id(3), &half, start), 0);
    assert_eq!(waiting.push(id(5), b"more", start), 1);
    assert!(waiting.take(id(1), start).is_empty());
    assert_eq!(waiting.push(id(1), &vec![0; MAX_EARLY_BYTES + 1], start), 1);
    assert_eq!(waiting.expire(expired), 2);
    assert!(waiting.is_empty());
}
