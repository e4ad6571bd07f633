//! Two engine endpoints over loopback, in all combinations of families, and among junk.

mod common;

use std::{
    net::{SocketAddr, UdpSocket},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use anyreach_net::{BindOptions, IpMode, MuxError, bind, canonical};
use common::{Node, run, transfer, until};
use noq::{Connection, PathId};

/// Enough for several congestion windows and full segmentation batches.
const BULK: usize = 16 * 1024 * 1024;

fn at(host: &str, port: u16) -> SocketAddr {
    format!("{host}:{port}").parse().expect("literal")
}

#[test]
fn every_pair_of_families_that_can_talk_does() {
    // (client, server, address the client dials, what each sees of the other)
    let table = [
        ("127.0.0.1:0", "127.0.0.1:0", "127.0.0.1"),
        ("[::1]:0", "[::1]:0", "[::1]"),
        ("[::]:0", "[::]:0", "127.0.0.1"),
        ("[::]:0", "[::]:0", "[::1]"),
        ("[::]:0", "[::]:0", "[::ffff:127.0.0.1]"),
        ("127.0.0.1:0", "[::]:0", "127.0.0.1"),
        ("0.0.0.0:0", "[::]:0", "127.0.0.1"),
        ("[::1]:0", "[::]:0", "[::1]"),
        ("[::]:0", "127.0.0.1:0", "127.0.0.1"),
        ("[::]:0", "[::1]:0", "[::1]"),
    ];
    run(async {
        for (client, server, host) in table {
            let (client, server) = (Node::bind(client), Node::bind(server));
            let dialled = at(host, server.addr.port());
            let (out, inn) = client.connect(&server, dialled).await;
            assert_eq!(canonical(remote(&out)), canonical(dialled));
            let seen = SocketAddr::new(canonical(dialled).ip(), client.addr.port());
            assert_eq!(canonical(remote(&inn)), seen);
            let local = inn.path(PathId::ZERO).expect("path").local_ip();
            assert_eq!(
                local.expect("open"),
                Some(canonical(dialled).ip()),
                "canonical"
            );
            transfer(&out, &inn, 100_000).await;
            transfer(&inn, &out, 100_000).await;
        }
    });
}

/// The remote address of a connection's first path, in engine form.
fn remote(connection: &Connection) -> SocketAddr {
    let path = connection.path(PathId::ZERO).expect("path");
    path.remote_address().expect("open")
}

#[test]
fn bulk_is_intact_both_ways() {
    run(async {
        for host in ["127.0.0.1", "[::1]"] {
            let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
            let (out, inn) = a.connect(&b, at(host, b.addr.port())).await;
            transfer(&out, &inn, BULK).await;
            transfer(&inn, &out, BULK).await;
        }
    });
}

#[test]
fn many_connections_share_one_socket() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        let mut pairs = Vec::new();
        for host in ["127.0.0.1", "[::1]"].repeat(8) {
            pairs.push(a.connect(&b, at(host, b.addr.port())).await);
        }
        let mut tasks = tokio::task::JoinSet::new();
        for (out, inn) in pairs {
            tasks.spawn(async move {
                tokio::join!(
                    transfer(&out, &inn, 1_000_000),
                    transfer(&inn, &out, 1_000_000)
                );
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.expect("transferred");
        }
    });
}

#[test]
fn junk_is_counted_by_kind_and_harms_nobody() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        let (out, inn) = a.connect(&b, at("127.0.0.1", b.addr.port())).await;
        let noise = UdpSocket::bind("127.0.0.1:0").expect("socket");
        let target = at("127.0.0.1", b.addr.port());
        let kinds: [&[u8]; 6] = [&[], &[0x40], &[0; 64], &[17; 64], &[22; 64], &[0x80; 64]];
        let mut rounds = 0;
        // Kernels may drop some, so it is repeated until every kind has been seen often enough.
        loop {
            for junk in kinds {
                noise.send_to(junk, target).expect("sent");
            }
            rounds += 1;
            tokio::task::yield_now().await;
            let seen = b.counters.snapshot();
            let kinds = [
                seen.junk_empty,
                seen.junk_runt,
                seen.junk_stun,
                seen.junk_zrtp,
                seen.junk_dtls,
                seen.junk_other,
            ];
            assert!(kinds.iter().all(|kind| *kind <= rounds), "{seen:?}");
            if kinds.iter().all(|kind| *kind >= 200) {
                break;
            }
        }
        transfer(&out, &inn, 100_000).await;
        transfer(&inn, &out, 100_000).await;
    });
}

#[test]
fn a_flood_of_empty_datagrams_does_not_stop_a_transfer() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        let (out, inn) = a.connect(&b, at("127.0.0.1", b.addr.port())).await;
        let target = at("127.0.0.1", b.addr.port());
        let stop = Arc::new(AtomicBool::new(false));
        let flood = {
            let stop = stop.clone();
            std::thread::spawn(move || {
                let socket = UdpSocket::bind("127.0.0.1:0").expect("socket");
                while !stop.load(Ordering::Relaxed) {
                    // ENOBUFS and the like are welcome here.
                    let _ = socket.send_to(&[], target);
                }
            })
        };
        until(|| b.counters.snapshot().junk_empty > 1_000).await;
        transfer(&out, &inn, 1_000_000).await;
        transfer(&inn, &out, 1_000_000).await;
        stop.store(true, Ordering::Relaxed);
        flood.join().expect("flooder");
    });
}

#[test]
fn an_unreachable_destination_harms_no_other_connection() {
    run(async {
        let (a, b) = (Node::bind("127.0.0.1:0"), Node::bind("[::]:0"));
        let (out, inn) = a.connect(&b, at("127.0.0.1", b.addr.port())).await;
        // An IPv4 socket has no way to IPv6 at all, and nobody listens on port 1.
        let hopeless: Vec<_> = ["[2001:db8::1]:9", "[::1]:9", "127.0.0.1:1", "224.0.0.1:9"]
            .into_iter()
            .map(|addr| {
                a.endpoint
                    .connect(addr.parse().expect("literal"), "node.test")
            })
            .collect();
        until(|| {
            let seen = a.counters.snapshot();
            seen.send_wrong_family >= 2 && seen.send_bad_destination >= 1
        })
        .await;
        transfer(&out, &inn, 100_000).await;
        drop(hopeless);
    });
}

#[test]
fn the_port_is_free_again_once_the_endpoint_is_gone() {
    run(async {
        let node = Node::bind("[::]:0");
        let port = node.addr.port();
        let options = BindOptions::new(at("[::]", port));
        bind(&options).expect_err("in use");
        // A handle must not keep the socket open.
        let handle = node.handle.clone();
        node.endpoint.close(0_u8.into(), b"");
        node.endpoint.wait_idle().await;
        drop(node);
        until(|| bind(&options).is_ok()).await;
        assert!(handle.local_addr().is_err());
    });
}

#[test]
fn modes_are_what_the_socket_does() {
    for (addr, mode) in [
        ("[::]:0", IpMode::Dual),
        ("[::1]:0", IpMode::V6),
        ("127.0.0.1:0", IpMode::V4),
    ] {
        let bound = bind(&BindOptions::new(addr.parse().expect("literal"))).expect("binds");
        assert_eq!(bound.mode(), mode, "{addr}");
    }
}

#[test]
fn the_primary_socket_can_be_replaced_under_a_connection() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        let (out, inn) = a.connect(&b, at("127.0.0.1", b.addr.port())).await;
        transfer(&out, &inn, 100_000).await;
        let before = a.handle.local_addr().expect("open");
        let bound = bind(&BindOptions::new(at("[::]", 0))).expect("binds");
        let after = bound.local_addr();
        a.handle.rebind(bound).expect("rebinds");
        assert_ne!(before, after);
        assert_eq!(a.handle.local_addr().expect("open"), after);
        transfer(&out, &inn, 1_000_000).await;
        transfer(&inn, &out, 1_000_000).await;
        assert_eq!(
            remote(&inn).port(),
            after.port(),
            "the server followed the migration"
        );
    });
}

#[test]
fn closing_frees_the_port_under_a_living_endpoint() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        let pair = a.connect(&b, at("127.0.0.1", b.addr.port())).await;
        let options = BindOptions::new(at("[::]", a.addr.port()));
        bind(&options).expect_err("in use");
        a.handle.close().await;
        let spare = bind(&options).expect("free, although idle connections remember the socket");
        assert!(matches!(a.handle.rebind(spare), Err(MuxError::Closed)));
        drop(pair);
    });
}
