//! Datagrams and capsules through tunnels that work.

use anyreach_masque::carrier::{CapsuleError, DatagramError};
use anyreach_wire::{capsule::Capsule, context::ContextId};
use bytes::Bytes;
use noq::TransportConfig;

use crate::support::{Event, Events, Pair, raw, until, within};

/// Reads `count` datagrams, whatever their order.
async fn sorted(events: &mut Events, count: usize) -> Vec<Bytes> {
    let mut found = Vec::new();
    while found.len() < count {
        found.push(events.datagram().await);
    }
    found.sort();
    found
}

#[tokio::test]
async fn datagrams_go_both_ways() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let (mut near, mut far) = pair.tunnel(&carrier).await;
    near.out.send_datagram(&[0], b"there").unwrap();
    assert_eq!(far.events.datagram().await, b"\0there"[..]);
    assert_eq!(far.events.any().await, Some(Event::Flush));
    far.out.send_datagram(&[2, 3], b"back").unwrap();
    assert_eq!(near.events.datagram().await, b"\x02\x03back"[..]);
    near.out.send_datagram(&[], &[]).unwrap();
    assert_eq!(far.events.datagram().await, b""[..]);
    assert_eq!(near.out.dropped(), 0);
}

#[tokio::test]
async fn capsules_arrive_in_order() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let (mut near, mut far) = pair.tunnel(&carrier).await;
    for number in 1..=32 {
        let context = ContextId::from_u32(number * 2);
        near.out
            .send_capsule(Capsule::CompressionAck(context).to_bytes())
            .unwrap();
        far.out
            .send_capsule(Capsule::CompressionClose(context).to_bytes())
            .unwrap();
    }
    for number in 1..=32 {
        let context = ContextId::from_u32(number * 2);
        let ack = Capsule::CompressionAck(context);
        assert_eq!(far.events.next().await, Some(Event::Capsule(ack)));
        let close = Capsule::CompressionClose(context);
        assert_eq!(near.events.next().await, Some(Event::Capsule(close)));
    }
}

#[tokio::test]
async fn an_inner_initial_passes_whatever_the_mtu() {
    let mut small = TransportConfig::default();
    small.mtu_discovery_config(None);
    let mut pair = Pair::with(small, TransportConfig::default()).await;
    let carrier = pair.carrier().await;
    let (near, mut far) = pair.tunnel(&carrier).await;
    // No frame takes it in packets of 1200 bytes.
    assert!(pair.dialed.max_datagram_size().unwrap() < 1200);
    let initial = vec![7; 1200];
    assert!(near.out.max_datagram() >= 1232);
    near.out.send_datagram(&[0; 32], &initial).unwrap();
    let arrived = far.events.datagram().await;
    assert_eq!(arrived.len(), 1232);
    assert!(arrived.ends_with(&initial));
    assert_eq!(pair.dialed.stats().frame_tx.datagram, 0);
    assert_eq!(
        near.out.send_datagram(&[0; 33], &initial),
        Err(DatagramError::TooLarge)
    );
}

#[tokio::test]
async fn without_datagram_frames_the_stream_carries_small_ones() {
    let mut pair = Pair::new().await;
    // A client that speaks HTTP/3 without HTTP Datagrams, as old curl does.
    let _control = raw::control(&pair.dialed, &[]).await;
    let (_send, mut recv) = raw::stream(&pair.dialed, &raw::connect_udp("192.0.2.1")).await;
    let opened = pair.opened().await;
    opened.out.send_datagram(&[0], b"hello").unwrap();
    let mut seen = Vec::new();
    let expected = raw::data(b"\0\x06\0hello");
    let expected = [&[0, 8], &expected[3..]].concat();
    within(async {
        while !seen.ends_with(&expected) {
            seen.extend_from_slice(&recv.read_chunk(1000).await.unwrap().unwrap());
        }
    })
    .await;
    assert_eq!(opened.out.max_datagram(), 1232);
    assert_eq!(pair.accepted.stats().frame_tx.datagram, 0);
}

#[tokio::test]
async fn datagrams_ahead_of_their_stream_are_kept() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    // Stream 0 is the first request to come.
    pair.dialed
        .send_datagram(Bytes::from_static(b"\0first"))
        .unwrap();
    until(|| pair.accepted.stats().frame_rx.datagram == 1).await;
    let (_near, mut far) = pair.tunnel(&carrier).await;
    assert_eq!(far.events.datagram().await, b"first"[..]);
}

#[tokio::test]
async fn capsules_ahead_of_the_response_are_kept() {
    let mut pair = Pair::new().await;
    let _carrier = pair.carrier().await;
    let ack = Capsule::CompressionAck(ContextId::from_u32(2));
    let bytes = [
        raw::connect_udp("192.0.2.1"),
        // An empty frame is not the end.
        vec![0, 0],
        raw::data(&ack.to_bytes()),
    ];
    let _stream = raw::stream(&pair.dialed, &bytes.concat()).await;
    let mut far = pair.opened().await;
    assert_eq!(far.events.next().await, Some(Event::Capsule(ack)));
}

#[tokio::test]
async fn many_tunnels_share_a_connection() {
    const TUNNELS: usize = 100;
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let mut tunnels = Vec::new();
    for _ in 0..TUNNELS {
        tunnels.push(pair.tunnel(&carrier).await);
    }
    for (number, (near, far)) in tunnels.iter().enumerate() {
        near.out.send_datagram(&[number as u8], b"there").unwrap();
        far.out.send_datagram(&[number as u8], b"back").unwrap();
    }
    for (number, (near, far)) in tunnels.iter_mut().enumerate() {
        assert_eq!(
            far.events.datagram().await[..],
            [&[number as u8], &b"there"[..]].concat()
        );
        assert_eq!(
            near.events.datagram().await[..],
            [&[number as u8], &b"back"[..]].concat()
        );
    }
}

#[tokio::test]
async fn a_burst_is_delivered_in_batches() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let (near, mut far) = pair.tunnel(&carrier).await;
    for number in 0..50u8 {
        near.out.send_datagram(&[], &[number]).unwrap();
    }
    let found = sorted(&mut far.events, 50).await;
    assert_eq!(
        found,
        (0..50u8).map(|n| Bytes::from(vec![n])).collect::<Vec<_>>()
    );
}

#[tokio::test]
async fn a_peer_that_does_not_read_gets_64_capsules_at_most() {
    let mut narrow = TransportConfig::default();
    narrow.stream_receive_window(512u32.into());
    let mut pair = Pair::with(narrow, TransportConfig::default()).await;
    let _carrier = pair.carrier().await;
    let (_send, mut recv) = raw::stream(&pair.dialed, &raw::connect_udp("192.0.2.1")).await;
    let opened = pair.opened().await;
    // An unknown capsule of 100 bytes.
    let capsule = Bytes::from([&[0x3f, 98][..], &[7; 98]].concat());
    let mut taken = 0;
    // The line takes a few before it stands still; then it is 64 in the queue and one on its way.
    let mut refused = 0;
    until(|| {
        match opened.out.send_capsule(capsule.clone()) {
            Ok(()) => {
                taken += 1;
                refused = 0;
            }
            Err(CapsuleError::QueueFull) => refused += 1,
            Err(CapsuleError::Closed) => panic!("closed"),
        }
        refused > 100
    })
    .await;
    assert!((65..=70).contains(&taken), "{taken}");
    // Once it reads, all of them come.
    let mut seen = Vec::new();
    within(async {
        while seen.iter().filter(|byte| **byte == 7).count() < taken * 98 {
            seen.extend_from_slice(&recv.read_chunk(1000).await.unwrap().unwrap());
        }
    })
    .await;
    until(|| opened.out.send_capsule(capsule.clone()).is_ok()).await;
}

#[tokio::test]
async fn what_the_line_does_not_take_is_dropped_and_counted() {
    for (room, oldest) in [(4 << 10, true), (1 << 20, false)] {
        let mut transport = TransportConfig::default();
        transport.datagram_send_buffer_size(room);
        let mut pair = Pair::with(transport, TransportConfig::default()).await;
        let carrier = pair.carrier().await;
        let (near, mut far) = pair.tunnel(&carrier).await;
        // Nothing is sent meanwhile: this task does not wait.
        let mut full = 0;
        for number in 0..300u16 {
            let payload = [&number.to_be_bytes()[..], &[0; 1000]].concat();
            match near.out.send_datagram(&[], &payload) {
                Ok(()) => {}
                Err(DatagramError::Full) => full += 1,
                Err(error) => panic!("{error}"),
            }
        }
        let kept = 300 - near.out.dropped();
        assert_eq!(full, if oldest { 0 } else { near.out.dropped() });
        let first = far.events.datagram().await;
        let number = u16::from_be_bytes([first[0], first[1]]);
        if oldest {
            assert!(kept < 5 && number > 290, "{kept} kept, {number} first");
        } else {
            // 128 KiB.
            assert!((125..135).contains(&kept) && number == 0, "{kept} kept");
        }
    }
}
