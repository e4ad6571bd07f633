//! Datagrams and capsules in both directions, and what happens when they are not taken.

use std::time::Duration;

use anyreach_masque::carrier::{CapsuleError, DatagramError};
use anyreach_wire::{
    capsule::{Capsule, Decoder, Item, encode_datagram_header},
    context::{ContextId, MAX_DATAGRAM},
};
use bytes::{Bytes, BytesMut};

use crate::support::{RawClient, Recorder, Relay, pair, request, within};

fn ack(context: u32) -> Capsule {
    Capsule::CompressionAck(ContextId::from_u32(context))
}

fn numbered(n: u32, length: usize) -> Vec<u8> {
    let mut datagram = vec![0; length];
    datagram[..4].copy_from_slice(&n.to_be_bytes());
    datagram
}

fn number(datagram: &[u8]) -> u32 {
    u32::from_be_bytes(datagram[..4].try_into().unwrap())
}

#[tokio::test]
async fn datagrams_of_every_size_arrive_in_order_in_both_directions() {
    let pair = pair().await;
    let sizes = [0, 1, 63, 64, 1200, 16_383, 16_384, 40_000, MAX_DATAGRAM];
    assert_eq!(pair.out.max_datagram(), MAX_DATAGRAM);
    for (out, input) in [
        (&pair.out, &pair.relay_side.input),
        (&pair.relay_side.out, &pair.input),
    ] {
        for size in sizes {
            let datagram: Vec<u8> = (0..size).map(|n| n as u8).collect();
            let (head, payload) = datagram.split_at(size.min(3));
            out.send_datagram(head, payload).unwrap();
        }
        let heard = input
            .until(|heard| heard.datagrams.len() == sizes.len())
            .await;
        for (datagram, size) in heard.datagrams.iter().zip(sizes) {
            assert_eq!(datagram.len(), size);
            assert!(
                datagram
                    .iter()
                    .enumerate()
                    .all(|(n, byte)| n as u8 == *byte)
            );
        }
        assert_eq!(out.dropped(), 0);
        input.until(|heard| heard.flushes > 0).await;
        let too_large = vec![0; MAX_DATAGRAM];
        assert_eq!(
            out.send_datagram(b"x", &too_large),
            Err(DatagramError::TooLarge)
        );
    }
}

#[tokio::test]
async fn capsules_arrive_in_order_in_both_directions() {
    let pair = pair().await;
    for (out, input) in [
        (&pair.out, &pair.relay_side.input),
        (&pair.relay_side.out, &pair.input),
    ] {
        let sent: Vec<Capsule> = (1..=60).map(ack).collect();
        for capsule in &sent {
            out.send_capsule(capsule.to_bytes()).unwrap();
        }
        let heard = input.until(|heard| heard.capsules.len() == 60).await;
        assert_eq!(heard.capsules, sent);
    }
}

#[tokio::test]
async fn what_the_relay_sends_before_its_answer_comes_after_it() {
    let relay = Relay::start().await;
    let carrier = relay.dial().await;
    let input = Recorder::new();
    let (response, _out) = within(carrier.open(request("/early"), input.clone()))
        .await
        .unwrap();
    assert_eq!(response.headers()["x-test"], "yes");
    let heard = input.until(|heard| !heard.datagrams.is_empty()).await;
    assert_eq!(heard.datagrams, ["before the answer"]);
}

#[tokio::test]
async fn tunnels_of_one_connection_are_apart() {
    let relay = Relay::start().await;
    let carrier = relay.dial().await;
    let mut tunnels = Vec::new();
    for n in 0..5_usize {
        let input = Recorder::new();
        let path = format!("/{n}");
        let (_, out) = within(carrier.open(request(&path), input.clone()))
            .await
            .unwrap();
        let opened = relay.service.opened(n).await;
        assert_eq!(opened.path, path);
        assert_eq!(opened.headers["capsule-protocol"], "?1");
        tunnels.push((input, out, opened));
    }
    for (n, (_, out, opened)) in tunnels.iter().enumerate() {
        out.send_datagram(b"up", &[n as u8]).unwrap();
        opened.out.send_datagram(b"down", &[n as u8]).unwrap();
    }
    for (n, (input, _, opened)) in tunnels.iter().enumerate() {
        let up = opened
            .input
            .until(|heard| !heard.datagrams.is_empty())
            .await;
        assert_eq!(up.datagrams, [[b"up", &[n as u8][..]].concat()]);
        let down = input.until(|heard| !heard.datagrams.is_empty()).await;
        assert_eq!(down.datagrams, [[b"down", &[n as u8][..]].concat()]);
    }
}

#[tokio::test]
async fn many_datagrams_share_a_frame() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (mut recv, _send) = client.open().await;
    let opened = relay.service.opened(0).await;
    // All in the queue before the task that writes has its turn: there is no await in between, and
    // the runtime of this test has one thread.
    for n in 0..100 {
        opened.out.send_datagram(&[], &numbered(n, 100)).unwrap();
    }
    let mut frames = 0;
    let mut decoder = Decoder::new();
    let mut next = 0;
    while next < 100 {
        let mut chunk = within(recv.data()).await.unwrap().unwrap();
        frames += 1;
        while let Some(item) = decoder.next(&mut chunk).unwrap() {
            let Item::Datagram(datagram) = item else {
                panic!("{item:?}");
            };
            assert_eq!(number(&datagram), next);
            next += 1;
        }
        // Whole capsules in each frame.
        decoder.finish().unwrap();
    }
    assert!(frames <= 2, "{frames} frames");
}

#[tokio::test]
async fn a_reader_that_stalls_loses_the_oldest_and_no_capsules() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    // 64 KiB of window, of which nothing is given back until the end.
    let (mut recv, _send) = client.open().await;
    let out = relay.service.opened(0).await.out.clone();
    let sent = 4000;
    for n in 0..sent {
        out.send_datagram(&[], &numbered(n, 1200)).unwrap();
        if n % 50 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let kept = u64::from(sent) - out.dropped();
    // What waits in the queue, in HTTP, and what the peer has taken into its window.
    assert!((300..=650).contains(&kept), "{kept} kept");
    let capsules = 64;
    for n in 1..=capsules {
        out.send_capsule(ack(n).to_bytes()).unwrap();
    }
    assert_eq!(
        out.send_capsule(ack(99).to_bytes()),
        Err(CapsuleError::QueueFull)
    );

    let mut decoder = Decoder::new();
    let (mut datagrams, mut acks) = (Vec::new(), Vec::new());
    while datagrams.last() != Some(&u32::MAX) {
        let mut chunk = within(recv.data()).await.unwrap().unwrap();
        recv.flow_control().release_capacity(chunk.len()).unwrap();
        while let Some(item) = decoder.next(&mut chunk).unwrap() {
            match item {
                Item::Datagram(datagram) => datagrams.push(number(&datagram)),
                Item::Capsule(capsule) => acks.push(capsule),
            }
        }
        if acks.len() == capsules as usize && datagrams.last() != Some(&u32::MAX) {
            out.send_datagram(&[], &numbered(u32::MAX, 4)).unwrap();
        }
    }
    assert_eq!(acks, (1..=capsules).map(ack).collect::<Vec<_>>());
    assert!(datagrams.is_sorted(), "in order");
    assert_eq!(datagrams[0], 0, "what HTTP had taken is not lost");
    assert!(datagrams.len() <= 650);
}

#[tokio::test]
async fn datagrams_that_waited_too_long_are_not_sent() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (mut recv, _send) = client.open().await;
    let out = relay.service.opened(0).await.out.clone();
    for n in 0..200 {
        out.send_datagram(&[], &numbered(n, 1200)).unwrap();
        tokio::task::yield_now().await;
    }
    assert_eq!(out.dropped(), 0);
    // The passing of time is what this is about.
    tokio::time::sleep(Duration::from_millis(300)).await;
    out.send_datagram(&[], &numbered(u32::MAX, 4)).unwrap();
    let mut decoder = Decoder::new();
    let mut datagrams = Vec::new();
    while datagrams.last() != Some(&u32::MAX) {
        let mut chunk = within(recv.data()).await.unwrap().unwrap();
        recv.flow_control().release_capacity(chunk.len()).unwrap();
        while let Some(item) = decoder.next(&mut chunk).unwrap() {
            let Item::Datagram(datagram) = item else {
                panic!("{item:?}");
            };
            datagrams.push(number(&datagram));
        }
    }
    assert_eq!(datagrams.len() as u64 + out.dropped(), 201);
    assert!(out.dropped() > 50, "{} dropped", out.dropped());
}

#[tokio::test]
async fn capsules_cut_anywhere_and_unknown_ones_in_between() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (_recv, mut send) = client.open().await;
    let opened = relay.service.opened(0).await;
    let mut stream = BytesMut::new();
    // Type 0x2a, 300 bytes nobody knows.
    stream.extend_from_slice(&[0x2a, 0x41, 0x2c]);
    stream.extend_from_slice(&[7; 300]);
    stream.extend_from_slice(&encode_datagram_header(5));
    stream.extend_from_slice(b"hello");
    stream.extend_from_slice(&ack(3).to_bytes());
    stream.extend_from_slice(&encode_datagram_header(0));
    for byte in stream {
        send.send_data(Bytes::from(vec![byte]), false).unwrap();
    }
    let heard = opened
        .input
        .until(|heard| heard.datagrams.len() == 2 && heard.capsules.len() == 1)
        .await;
    assert_eq!(heard.datagrams, [&b"hello"[..], b""]);
    assert_eq!(heard.capsules, [ack(3)]);
    assert!(heard.closed.is_empty());
}

#[tokio::test]
async fn an_unknown_capsule_larger_than_any_memory_is_stepped_over() {
    let relay = Relay::start().await;
    let client = RawClient::new(&relay).await;
    let (_recv, mut send) = client.open().await;
    let opened = relay.service.opened(0).await;
    // 2^40 bytes are announced; 8 MiB of them come, more than the window.
    let announced = [0x2a, 0xc0, 0, 1, 0, 0, 0, 0, 0];
    send.send_data(Bytes::copy_from_slice(&announced), false)
        .unwrap();
    let piece = Bytes::from(vec![0; 64 << 10]);
    for _ in 0..128 {
        let mut left = piece.clone();
        while !left.is_empty() {
            send.reserve_capacity(left.len());
            let capacity = within(std::future::poll_fn(|cx| send.poll_capacity(cx)))
                .await
                .unwrap()
                .unwrap();
            let now = left.split_to(capacity.min(left.len()));
            send.send_data(now, false).unwrap();
        }
    }
    assert!(opened.input.heard().closed.is_empty());
    assert!(opened.input.heard().datagrams.is_empty());
}

#[tokio::test]
async fn the_round_trip_time_is_known_from_the_start() {
    let pair = pair().await;
    let rtt = pair.carrier.rtt().unwrap();
    assert!(rtt < Duration::from_secs(5), "{rtt:?}");
    assert_eq!(pair.out.rtt(), Some(rtt));
    assert!(format!("{:?} {:?}", pair.carrier, pair.out).contains("Outgoing"));
}
