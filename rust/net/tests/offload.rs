//! Batches of datagrams through the socket, below the engine: segmentation and coalescing.

mod common;

use std::{
    future::poll_fn,
    io::IoSliceMut,
    net::{IpAddr, SocketAddr, UdpSocket},
    pin::Pin,
};

use anyreach_net::{BindOptions, Counters, NodeSocket, bind, canonical};
use common::run;
use noq::{AsyncUdpSocket, UdpSender};
use noq_udp::{EcnCodepoint, RecvMeta, Transmit};

const SEGMENT: usize = 1_200;
const SEGMENTS: usize = 10;

fn node(addr: &str) -> (NodeSocket, SocketAddr) {
    let bound = bind(&BindOptions::new(addr.parse().expect("literal"))).expect("binds");
    let local = bound.local_addr();
    (NodeSocket::new(bound).expect("socket"), local)
}

/// Ten datagrams, the last one shorter, each filled with its own number.
fn batch() -> Vec<u8> {
    let mut bytes: Vec<u8> = (0..SEGMENTS)
        .flat_map(|number| {
            let mut datagram = vec![number as u8; SEGMENT];
            datagram[0] = 0x40;
            datagram
        })
        .collect();
    bytes.truncate(bytes.len() - 100);
    bytes
}

async fn send(sender: &mut Pin<Box<dyn UdpSender>>, transmit: &Transmit<'_>) {
    poll_fn(|cx| sender.as_mut().poll_send(transmit, cx))
        .await
        .expect("errors stay below");
}

/// One received buffer: where from, and its datagrams.
type Received = (RecvMeta, Vec<Vec<u8>>);

/// Receives until `count` datagrams have arrived.
async fn receive(socket: &mut NodeSocket, count: usize) -> Vec<Received> {
    let mut storage = vec![vec![0_u8; 64 * 1500]; noq_udp::BATCH_SIZE];
    let mut all: Vec<Received> = Vec::new();
    while all
        .iter()
        .map(|(_, datagrams)| datagrams.len())
        .sum::<usize>()
        < count
    {
        let mut bufs: Vec<_> = storage.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
        let mut meta = vec![RecvMeta::default(); bufs.len()];
        let batches = poll_fn(|cx| socket.poll_recv(cx, &mut bufs, &mut meta))
            .await
            .expect("errors stay below");
        for (entry, buf) in meta.iter().zip(&bufs).take(batches) {
            let datagrams = buf[..entry.len].chunks(entry.stride);
            all.push((*entry, datagrams.map(<[u8]>::to_vec).collect()));
        }
    }
    all
}

/// Makes the sender of a fresh connection that of one with much to send.
async fn send_much(sender: &mut Pin<Box<dyn UdpSender>>, host: IpAddr) {
    let sink = UdpSocket::bind((host, 0)).expect("loopback");
    let contents = batch();
    for _ in 0..SEGMENTS {
        let transmit = Transmit {
            destination: sink.local_addr().expect("bound"),
            ecn: None,
            contents: &contents[..2 * SEGMENT],
            segment_size: Some(SEGMENT),
            src_ip: None,
        };
        send(sender, &transmit).await;
    }
}

#[test]
fn a_batch_leaves_in_one_call_and_arrives_whole() {
    run(async {
        for (from, to, host) in [
            ("[::]:0", "[::]:0", "127.0.0.1"),
            ("[::]:0", "[::]:0", "::1"),
            ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
        ] {
            let ((a, a_addr), (mut b, b_addr)) = (node(from), node(to));
            let host: IpAddr = host.parse().expect("literal");
            let mut sender = a.create_sender();
            let contents = batch();
            assert!(
                sender.max_transmit_segments().get() < SEGMENTS,
                "the engine keeps a buffer of so many for an idle connection"
            );
            send_much(&mut sender, host).await;
            let segments = sender.max_transmit_segments().get();
            if cfg!(target_os = "linux") {
                assert!(segments >= SEGMENTS, "no segmentation offload");
                assert!(b.max_receive_segments().get() > 1, "no coalescing");
                assert!(!a.may_fragment());
            }
            let transmit = Transmit {
                destination: SocketAddr::new(host, b_addr.port()),
                ecn: Some(EcnCodepoint::Ect0),
                contents: &contents,
                segment_size: Some(SEGMENT),
                src_ip: Some(host),
            };
            send(&mut sender, &transmit).await;
            let received = receive(&mut b, SEGMENTS).await;
            for (entry, _) in &received {
                assert!(entry.addr.is_ipv6(), "engine form");
                assert_eq!(canonical(entry.addr), SocketAddr::new(host, a_addr.port()));
                assert_eq!(entry.dst_ip, Some(host), "canonical");
                assert_eq!(entry.ecn, Some(EcnCodepoint::Ect0));
            }
            if cfg!(target_os = "linux") {
                assert!(received.len() < SEGMENTS, "arrived one by one");
            }
            let datagrams: Vec<_> = received.into_iter().flat_map(|(_, list)| list).collect();
            assert_eq!(datagrams.concat(), contents);
            assert_eq!(datagrams.len(), SEGMENTS);
            assert_eq!(a.counters().snapshot(), Counters::default().snapshot());
        }
    });
}

#[test]
fn impossible_transmits_are_counted_and_leave_the_offload_alone() {
    run(async {
        let ((a, _), (mut b, b_addr)) = (node("[::]:0"), node("[::]:0"));
        let mut sender = a.create_sender();
        let contents = batch();
        let before = sender.max_transmit_segments();
        let good = SocketAddr::new([127, 0, 0, 1].into(), b_addr.port());
        let to = |destination: &str, src_ip: Option<&str>| Transmit {
            destination: destination.parse().expect("literal"),
            ecn: None,
            contents: &contents,
            segment_size: Some(SEGMENT),
            src_ip: src_ip.map(|ip| ip.parse().expect("literal")),
        };
        // Port 0 and the source of the other family are EINVAL to the kernel.
        send(&mut sender, &to("127.0.0.1:0", None)).await;
        send(&mut sender, &to("[::]:9", None)).await;
        send(&mut sender, &to("127.0.0.1:9", Some("::1"))).await;
        let seen = a.counters().snapshot();
        assert_eq!((seen.send_bad_destination, seen.send_wrong_family), (2, 1));
        assert_eq!(seen.offload_renewed, 0);

        // A source that has left this host is EINVAL as well (IPv6), or unreachable (IPv4).
        send(&mut sender, &to("[::1]:9", Some("2001:db8::dead"))).await;
        send(&mut sender, &to("127.0.0.1:9", Some("192.0.2.250"))).await;
        let seen = a.counters().snapshot();
        if cfg!(target_os = "linux") {
            assert_eq!((seen.send_source_gone, seen.offload_renewed), (2, 1));
            a.handle().source_gone().await.expect("open");
        }
        assert_eq!(
            sender.max_transmit_segments(),
            before,
            "segmentation is kept"
        );

        let transmit = Transmit {
            destination: good,
            ecn: Some(EcnCodepoint::Ect0),
            contents: &contents,
            segment_size: Some(SEGMENT),
            src_ip: None,
        };
        send(&mut sender, &transmit).await;
        let received = receive(&mut b, SEGMENTS).await;
        let ecn = received.iter().map(|(entry, _)| entry.ecn);
        assert!(
            ecn.into_iter().all(|ecn| ecn == Some(EcnCodepoint::Ect0)),
            "ECN is kept"
        );
    });
}

#[test]
fn a_datagram_beyond_the_mtu_is_its_own_problem() {
    run(async {
        let ((a, _), (mut b, b_addr)) = (node("127.0.0.1:0"), node("127.0.0.1:0"));
        let mut sender = a.create_sender();
        let mut transmit = Transmit {
            destination: b_addr,
            ecn: None,
            contents: &[0x40; 65_600],
            segment_size: None,
            src_ip: None,
        };
        send(&mut sender, &transmit).await;
        assert_eq!(a.counters().snapshot().send_too_large, 1);
        transmit.contents = &[0x40; 1_200];
        send(&mut sender, &transmit).await;
        assert_eq!(receive(&mut b, 1).await.len(), 1);
    });
}

#[test]
fn many_senders_wait_for_one_full_socket() {
    run(async {
        let bound = bind(&BindOptions {
            // As small as the system allows, so that the socket fills.
            buffer_bytes: 1,
            ..BindOptions::new("127.0.0.1:0".parse().expect("literal"))
        })
        .expect("binds");
        let a = NodeSocket::new(bound).expect("socket");
        let (mut b, b_addr) = node("127.0.0.1:0");
        let mut tasks = tokio::task::JoinSet::new();
        const SENDERS: usize = 16;
        const EACH: usize = 200;
        for _ in 0..SENDERS {
            let mut sender = a.create_sender();
            tasks.spawn(async move {
                let contents = [0x40; 1_200];
                let transmit = Transmit {
                    destination: b_addr,
                    ecn: None,
                    contents: &contents,
                    segment_size: None,
                    src_ip: None,
                };
                for _ in 0..EACH {
                    send(&mut sender, &transmit).await;
                }
            });
        }
        receive(&mut b, SENDERS * EACH).await;
        while let Some(done) = tasks.join_next().await {
            done.expect("sent");
        }
    });
}
