//! Peers that break the rules, or use more than their share.

use anyreach_masque::h3::{MAX_REQUESTS, connect};
use anyreach_wire::{capsule::Capsule, context::ContextId};
use bytes::Bytes;
use noq::{Connection, TransportConfig};
use proptest::{prelude::*, test_runner::TestRunner};

use crate::support::{
    Event, Pair, client_endpoint, connected, raw, server_endpoint, until, within,
};

async fn closed_with(connection: &Connection, code: u64) {
    let end = within(connection.closed()).await;
    match &end {
        noq::ConnectionError::ApplicationClosed(close) => {
            assert_eq!(close.error_code.into_inner(), code, "{end}");
        }
        _ => panic!("{end}"),
    }
}

#[tokio::test]
async fn impossible_stream_ids_end_the_connection() {
    for datagram in [&b""[..], &b"\x80\0\0"[..], &b"\xd0\0\0\0\0\0\0\0data"[..]] {
        let mut pair = Pair::new().await;
        let carrier = pair.carrier().await;
        let (_near, mut far) = pair.tunnel(&carrier).await;
        pair.dialed
            .send_datagram(Bytes::from_static(datagram))
            .unwrap();
        closed_with(&pair.dialed, 0x33).await;
        far.events.closed().await;
    }
}

#[tokio::test]
async fn datagrams_for_streams_that_are_gone_or_far_ahead_do_nothing() {
    let mut pair = Pair::new().await;
    let carrier = pair.carrier().await;
    let (near, mut far) = pair.tunnel(&carrier).await;
    let (gone, mut gone_far) = pair.tunnel(&carrier).await;
    gone.out.close(anyreach_masque::carrier::Close::Done);
    gone_far.events.closed().await;
    for id in [&b"\x01"[..], b"\x3f", b"\xcf\xff\xff\xff\xff\xff\xff\xff"] {
        for _ in 0..1000 {
            pair.dialed
                .send_datagram(Bytes::from([id, &[7; 1000]].concat()))
                .unwrap();
        }
    }
    until(|| {
        near.out.send_datagram(&[], b"alive").is_ok() && {
            matches!(
                poll(far.events.next()),
                Some(Some(Event::Datagram(datagram))) if datagram == b"alive"[..]
            )
        }
    })
    .await;
}

/// The result of a future that is ready.
fn poll<T>(future: impl Future<Output = T>) -> Option<T> {
    let mut future = std::pin::pin!(future);
    match future
        .as_mut()
        .poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
    {
        std::task::Poll::Ready(value) => Some(value),
        std::task::Poll::Pending => None,
    }
}

#[tokio::test]
async fn a_huge_unknown_capsule_is_stepped_over_and_not_kept() {
    const SENT: usize = 16 << 20;
    let mut pair = Pair::new().await;
    let _carrier = pair.carrier().await;
    let (mut send, _recv) = raw::stream(&pair.dialed, &raw::connect_udp("192.0.2.1")).await;
    let mut far = pair.opened().await;
    // Type 0x3f, 2^40 bytes announced, in DATA frames of 16 000.
    let head = [&[0x3f][..], &((3 << 62) | (1u64 << 40)).to_be_bytes()].concat();
    within(send.write_all(&raw::data(&head))).await.unwrap();
    let piece = raw::data(&[0; 16_000]);
    for _ in 0..SENT / 16_000 {
        // Flow control lets it pass only because it is read and thrown away.
        within(send.write_all(&piece)).await.unwrap();
    }
    assert!(poll(far.events.any()).is_none());
    send.reset(0x10cu32.into()).unwrap();
    far.events.closed().await;
}

#[tokio::test]
async fn a_frame_that_never_becomes_whole_takes_little() {
    let pair = Pair::new().await;
    let _carrier = pair.carrier().await;
    let mut streams = Vec::new();
    // HEADERS and an unknown frame of 2^40 bytes each, and tiny DATA frames in between.
    for (prefix, kind) in [
        (Vec::new(), 1u8),
        (raw::connect_udp("192.0.2.1"), 0x21),
        (raw::connect_udp("192.0.2.1"), 1),
    ] {
        let length = ((3 << 62) | (1u64 << 40)).to_be_bytes();
        let bytes = [&prefix[..], &[kind], &length].concat();
        let (mut send, recv) = raw::stream(&pair.dialed, &bytes).await;
        let zeros = [0; 4096];
        let mut sent = 0usize;
        // Until flow control stops it.
        while let Ok(result) = tokio::time::timeout(
            std::time::Duration::from_millis(300),
            send.write_all(&zeros),
        )
        .await
        {
            result.unwrap();
            sent += zeros.len();
            assert!(sent < 64 << 20, "nothing stops it");
        }
        streams.push((send, recv));
    }
}

#[tokio::test]
async fn tiny_frames_do_not_pile_up() {
    let mut pair = Pair::new().await;
    let _carrier = pair.carrier().await;
    let (mut send, _recv) = raw::stream(&pair.dialed, &raw::connect_udp("192.0.2.1")).await;
    let mut far = pair.opened().await;
    let frames = raw::data(&[])[..1]
        .iter()
        .chain(&[0u8])
        .copied()
        .cycle()
        .take(1 << 20)
        .collect::<Vec<u8>>();
    within(send.write_all(&frames)).await.unwrap();
    let ack = Capsule::CompressionAck(ContextId::from_u32(2));
    for byte in ack.to_bytes() {
        within(send.write_all(&[0, 1, byte])).await.unwrap();
    }
    assert_eq!(far.events.next().await, Some(Event::Capsule(ack)));
}

#[tokio::test]
async fn requests_are_limited() {
    let mut pair = Pair::new().await;
    let _carrier = pair.carrier().await;
    let mut streams = Vec::new();
    for _ in 0..MAX_REQUESTS {
        streams.push(raw::stream(&pair.dialed, &raw::connect_udp("192.0.2.1")).await);
        pair.opened().await;
    }
    let mut more = std::pin::pin!(pair.dialed.open_bi());
    // The relay has seen the last of them, and gives no leave for another.
    assert!(poll(&mut more).is_none());
    // Until some have ended.
    streams.drain(..MAX_REQUESTS as usize / 2);
    within(more).await.unwrap();
}

#[tokio::test]
async fn servers_without_connect_udp_are_told_apart() {
    let mut plain = TransportConfig::default();
    plain.datagram_receive_buffer_size(None);
    for (settings, transport, reason, detail) in [
        (
            &[][..],
            TransportConfig::default(),
            "no-connect-udp",
            "extended CONNECT",
        ),
        (
            &[0x08, 1],
            TransportConfig::default(),
            "no-connect-udp",
            "HTTP Datagrams",
        ),
        (&[0x08, 1, 0x33, 1], plain, "http", "QUIC DATAGRAM"),
    ] {
        let server = server_endpoint(transport);
        let client = client_endpoint(TransportConfig::default());
        let (dialed, accepted) = connected(&client, &server).await;
        let _control = raw::control(&accepted, settings).await;
        let error = within(connect(dialed, None)).await.unwrap_err();
        assert_eq!(error.reason, reason);
        assert!(error.detail.contains(detail), "{error}");
        within(accepted.closed()).await;
    }
}

#[tokio::test]
async fn servers_that_break_http_are_told_apart() {
    let server = server_endpoint(TransportConfig::default());
    let client = client_endpoint(TransportConfig::default());
    let (dialed, accepted) = connected(&client, &server).await;
    let mut control = within(accepted.open_uni()).await.unwrap();
    // DATA where the settings should be.
    within(control.write_all(&[0, 0, 1, 1])).await.unwrap();
    let error = within(connect(dialed, None)).await.unwrap_err();
    assert!(["http", "closed"].contains(&error.reason), "{error}");
    within(accepted.closed()).await;
}

/// Bytes of any kind on request streams, and datagrams of any kind: the relay stays what it is.
#[test]
fn noise_on_streams_and_in_datagrams_harms_nobody_else() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let config = ProptestConfig {
        cases: 64,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let piece = proptest::collection::vec(any::<u8>(), 0..64);
    let noise = (
        0..3u8,
        proptest::collection::vec(piece.clone(), 1..4),
        proptest::collection::vec(piece, 0..8),
    );
    TestRunner::new(config)
        .run(&noise, |(kind, streams, datagrams)| {
            runtime.block_on(async {
                let mut pair = Pair::new().await;
                let carrier = pair.carrier().await;
                let (near, mut far) = pair.tunnel(&carrier).await;
                for bytes in &streams {
                    let bytes = match kind {
                        0 => bytes.clone(),
                        1 => [raw::connect_udp("192.0.2.1"), bytes.clone()].concat(),
                        // A header section that refers to no table of this connection.
                        _ => raw::frame(1, &[&[0, 0], &bytes[..]].concat()),
                    };
                    let Ok((mut send, _)) = pair.dialed.open_bi().await else {
                        break;
                    };
                    let _ = send.write_all(&bytes).await;
                    let _ = send.finish();
                }
                for bytes in datagrams {
                    let _ = pair.dialed.send_datagram(bytes.into());
                }
                // Either all goes on, or the connection ends and everybody is told.
                let _ = near.out.send_datagram(&[], b"still there?");
                let ended = loop {
                    match far.events.next().await {
                        Some(Event::Datagram(datagram)) if datagram == b"still there?"[..] => {
                            break false;
                        }
                        Some(Event::Closed(_)) => break true,
                        Some(_) => {}
                        None => panic!("never told of the end"),
                    }
                };
                drop(carrier);
                if !ended {
                    far.events.closed().await;
                }
                within(pair.serving).await.unwrap();
            });
            Ok(())
        })
        .unwrap();
}
