//! What a stranger, or a peer with good keys, can make a node spend.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    net::{Ipv4Addr, SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::Duration,
};

use anyreach_quic::{EndpointConfig, Event, PacketTap};
use bytes::BytesMut;
use common::{LONG, connected, endpoint, endpoint_with, loopback, within};
use noq::PathId;

/// The first datagram of a handshake, which holds half a ClientHello.
fn first_datagram() -> Vec<u8> {
    let sink = UdpSocket::bind(loopback()).unwrap();
    sink.set_read_timeout(Some(LONG)).unwrap();
    let target = sink.local_addr().unwrap();
    let dialing = std::thread::spawn(move || {
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap()
            .block_on(async {
                let _ = endpoint()
                    .dial(target, None, Duration::from_millis(200))
                    .await;
            });
    });
    let mut datagram = vec![0; 1500];
    let (length, _) = sink.recv_from(&mut datagram).unwrap();
    dialing.join().unwrap();
    datagram.truncate(length);
    datagram
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_flood_of_first_packets_shuts_nobody_out() {
    let node = endpoint_with(|config| config.max_connections = 128);
    let to = node.local_addr();
    let datagram = first_datagram();
    tokio::task::spawn_blocking(move || {
        let mut datagram = datagram;
        for n in 0..1000u16 {
            let [b, c] = n.to_be_bytes();
            let source = SocketAddr::from((Ipv4Addr::new(127, 1 + b, c, 1), 0));
            let socket = UdpSocket::bind(source).unwrap();
            // Another connection id each time, so that each is a connection of its own. The
            // packet can no longer be opened then, so both kinds are sent.
            let _ = socket.send_to(&datagram, to);
            datagram[6] = datagram[6].wrapping_add(1);
        }
    })
    .await
    .unwrap();
    let honest = endpoint();
    let (out, _inn) = connected(&honest, &node).await;
    assert_eq!(out.close_reason(), None);
}

/// Overwrites what it sends with OBSERVED_ADDRESS frames that change all the time.
#[derive(Default)]
struct Liar {
    at_it: AtomicBool,
    serial: AtomicU32,
}

impl PacketTap for Liar {
    fn sealing(&self, _: PathId, _: u64, payload: &mut [u8]) {
        // Only packets with a datagram of 1100 bytes, which is there to be overwritten; MTU probes
        // are larger.
        if !self.at_it.load(Ordering::Relaxed) || !(1100..1200).contains(&payload.len()) {
            return;
        }
        for frame in payload.chunks_mut(14) {
            if frame.len() < 14 {
                frame.fill(0);
                continue;
            }
            let serial = self.serial.fetch_add(1, Ordering::Relaxed) + 1;
            frame[..4].copy_from_slice(&[0x80, 0x9f, 0x81, 0xa6]);
            frame[4..8].copy_from_slice(&(serial | 0x8000_0000).to_be_bytes());
            frame[8..12].copy_from_slice(&[198, 51, 100, serial as u8]);
            frame[12..14].copy_from_slice(&(serial as u16).to_be_bytes());
        }
    }

    fn opened(&self, _: PathId, _: u64, _: &mut BytesMut) {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_liar_about_addresses_makes_little_news() {
    let node = endpoint();
    let tap = Arc::new(Liar::default());
    let liar = endpoint_with(|config: &mut EndpointConfig| {
        let tap = tap.clone();
        config.tap = Some(Arc::new(move |_| tap.clone()));
    });
    let (out, _inn) = connected(&liar, &node).await;
    tap.at_it.store(true, Ordering::Relaxed);
    let sending = tokio::spawn(async move {
        let until = tokio::time::Instant::now() + Duration::from_secs(2);
        while tokio::time::Instant::now() < until && out.close_reason().is_none() {
            let _ = out.engine().send_datagram(vec![0; 1100].into());
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        out.close_reason()
    });
    let mut events = Vec::new();
    let mut last = None;
    while !sending.is_finished() {
        let waited = tokio::time::timeout(Duration::from_millis(100), node.events()).await;
        for event in waited.ok().flatten().unwrap_or_default() {
            if let Event::Observed { address, .. } = &event {
                last = Some(*address);
            }
            events.push(event);
        }
    }
    assert_eq!(sending.await.unwrap(), None, "the frames were well-formed");
    assert!(
        last.is_some_and(|address| address.ip() != loopback().ip()),
        "{last:?}"
    );
    // Eight at once, then four a second.
    assert!(events.len() < 40, "{} events", events.len());
    let dropped = node
        .counters()
        .into_iter()
        .find(|(name, _)| *name == "events_dropped");
    assert_eq!(dropped, Some(("events_dropped", 0)));
}

#[tokio::test]
async fn connections_that_ended_untaken_leave_nothing() {
    let node = endpoint_with(|config| config.max_connections = 8);
    for _ in 0..50 {
        let guest = endpoint();
        let made = within(guest.dial(node.local_addr(), None, LONG))
            .await
            .unwrap();
        let (mut send, _) = made.connection.open_stream(false).await.unwrap();
        send.write_all(&[1; 100_000]).await.unwrap();
        guest.close(0, b"");
        within(guest.closed()).await;
        within(async {
            while !node.connections().is_empty() {
                tokio::task::yield_now().await;
            }
        })
        .await;
    }
    // Nothing waits to be accepted but who is still there.
    let guest = endpoint();
    let (_out, inn) = connected(&guest, &node).await;
    assert_eq!(inn.close_reason(), None);
    // And of connections nobody holds only the latest few are told.
    let events = within(node.events()).await.unwrap();
    assert!(events.len() <= 2 * 16 + 1, "{} events", events.len());
}

#[tokio::test]
async fn a_dropped_endpoint_closes_its_connections_and_its_port() {
    let node = endpoint();
    let guest = endpoint();
    let address = guest.local_addr();
    let (out, inn) = connected(&guest, &node).await;
    drop(out);
    drop(guest);
    assert_eq!(within(inn.closed()).await.kind, "closed");
    within(async {
        while UdpSocket::bind(address).is_err() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
}
