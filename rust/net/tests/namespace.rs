//! Hosts that lack a family, and networks that refuse datagrams: each in a network namespace of
//! its own. Needs root on Linux; without, the tests say so on stderr and pass.

#![cfg(target_os = "linux")]

mod common;

use std::{
    future::{Future, poll_fn},
    io::IoSliceMut,
    net::{IpAddr, SocketAddr},
    pin::Pin,
    process::Command,
    task::Poll,
    thread,
};

use anyreach_net::{
    BindError, BindOptions, IpMode, NetworkWatch, NodeSocket, bind, interface_addresses,
};
use common::{Node, transfer, until};
use noq::{AsyncUdpSocket, UdpSender};
use noq_udp::{EcnCodepoint, RecvMeta, Transmit};

/// Runs `test` in a fresh network namespace with loopback up, after `commands`.
fn in_namespace<F>(commands: &[&str], test: impl FnOnce() -> F + Send)
where
    F: Future<Output = ()>,
{
    let run = || {
        // SAFETY: no pointers; affects this thread alone, which nothing else runs on.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            eprintln!("skipped: no privilege to make a network namespace");
            return;
        }
        system("ip link set lo up");
        commands.iter().for_each(|command| system(command));
        // Sockets belong to the namespace of the thread that makes them: stay on this one.
        tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .expect("runtime")
            .block_on(async {
                let limit = std::time::Duration::from_secs(60);
                tokio::time::timeout(limit, test()).await
            })
            .expect("finishes in time");
    };
    thread::scope(|scope| scope.spawn(run).join().expect("test passes"));
}

/// Runs a command in the namespace of this thread; whether it succeeded.
fn run_here(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let program = words.next().expect("a program");
    let status = Command::new(program).args(words).status();
    status.expect("iproute2 is there").success()
}

fn system(command: &str) {
    assert!(run_here(command), "{command}");
}

fn options(addr: &str) -> BindOptions {
    BindOptions::new(addr.parse().expect("literal"))
}

const IPV6_OFF: &[&str] = &["sysctl -q -w net.ipv6.conf.all.disable_ipv6=1"];

#[test]
fn ipv6_switched_off_degrades_to_ipv4() {
    in_namespace(IPV6_OFF, || async {
        let bound = bind(&options("[::]:0")).expect("degrades");
        assert_eq!(bound.mode(), IpMode::V4);
        assert!(bound.local_addr().is_ipv4());
        let (a, b) = (Node::over(bound), Node::bind("[::]:0"));
        let to = SocketAddr::from(([127, 0, 0, 1], b.addr.port()));
        let (out, inn) = a.connect(&b, to).await;
        transfer(&out, &inn, 100_000).await;

        let required = BindOptions {
            ip_mode: IpMode::V6,
            ..options("[::]:0")
        };
        for options in [required, options("[::1]:0")] {
            let error = bind(&options).expect_err("no IPv6");
            assert!(
                matches!(error, BindError::Ipv6Unavailable { .. }),
                "{error}"
            );
        }
        let all = interface_addresses().expect("listed");
        assert!(all.iter().all(|entry| entry.addr.is_ipv4()));
    });
}

#[test]
fn without_ipv4_it_is_an_ipv6_node() {
    in_namespace(&["ip addr del 127.0.0.1/8 dev lo"], || async {
        let bound = bind(&options("[::]:0")).expect("binds");
        assert_eq!(bound.mode(), IpMode::V6);
        let (a, b) = (Node::over(bound), Node::bind("[::]:0"));
        let to = format!("[::1]:{}", b.addr.port());
        let (out, inn) = a.connect(&b, to.parse().expect("literal")).await;
        transfer(&out, &inn, 100_000).await;
    });
}

#[test]
fn interfaces_that_are_not_up_yet_prove_nothing() {
    in_namespace(&["ip link set lo down"], || async {
        let bound = bind(&options("[::]:0")).expect("binds");
        assert_eq!(bound.mode(), IpMode::Dual);
        assert_eq!(interface_addresses().expect("listed"), []);
    });
}

#[test]
fn an_administrator_default_of_ipv6_only_does_not_matter() {
    in_namespace(&["sysctl -q -w net.ipv6.bindv6only=1"], || async {
        let (a, b) = (Node::bind("127.0.0.1:0"), Node::bind("[::]:0"));
        let to = SocketAddr::from(([127, 0, 0, 1], b.addr.port()));
        let (out, inn) = a.connect(&b, to).await;
        transfer(&out, &inn, 100_000).await;
    });
}

async fn send(sender: &mut Pin<Box<dyn UdpSender>>, transmit: &Transmit<'_>) {
    poll_fn(|cx| sender.as_mut().poll_send(transmit, cx))
        .await
        .expect("errors stay below");
}

#[test]
fn every_kind_of_refused_route_is_one_datagrams_problem() {
    let routes = [
        "ip route add unreachable 198.51.100.1",
        "ip route add prohibit 198.51.100.2",
        "ip route add blackhole 198.51.100.3",
        "ip -6 route add blackhole 2001:db8::3",
    ];
    in_namespace(&routes, || async {
        let socket = NodeSocket::new(bind(&options("[::]:0")).expect("binds")).expect("socket");
        let mut sender = socket.create_sender();
        let segments = sender.max_transmit_segments();
        let contents = [0x40; 6_000];
        for host in [
            "198.51.100.1",
            "198.51.100.2",
            "198.51.100.3",
            "[2001:db8::3]",
        ] {
            let transmit = Transmit {
                destination: format!("{host}:9").parse().expect("literal"),
                ecn: Some(EcnCodepoint::Ect0),
                contents: &contents,
                segment_size: Some(1_200),
                src_ip: None,
            };
            send(&mut sender, &transmit).await;
        }
        let seen = socket.counters().snapshot();
        assert_eq!(seen.send_unreachable, 1, "{seen:?}");
        assert_eq!(seen.send_not_permitted, 1, "{seen:?}");
        // The kernel says EINVAL for a blackhole: the trap that costs others their offloads.
        assert_eq!(seen.send_other, 2, "{seen:?}");
        assert_eq!(seen.offload_renewed, 2, "{seen:?}");
        assert_eq!(sender.max_transmit_segments(), segments);
    });
}

#[test]
fn an_address_that_leaves_is_reported_and_another_takes_over() {
    // Two addresses of one host, where the first is the one to use towards the second.
    let addresses = [
        "ip addr add 2001:db8::1/128 dev lo",
        "ip addr add 2001:db8::2/128 dev lo",
    ];
    in_namespace(&addresses, || async {
        // The kernel installs the local route of an address a moment after the address.
        until(|| run_here("ip -6 route del local 2001:db8::2 dev lo table local")).await;
        system("ip -6 route add local 2001:db8::2 dev lo table local src 2001:db8::1");
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        let to = format!("[2001:db8::2]:{}", b.addr.port());
        let (out, inn) = a.connect(&b, to.parse().expect("literal")).await;
        transfer(&out, &inn, 100_000).await;
        let path = out.path(noq::PathId::ZERO).expect("path");
        let source = path.local_ip().expect("open").expect("known");

        // The client's address goes; what it sends fails until the engine is told.
        assert_eq!(source, "2001:db8::1".parse::<IpAddr>().expect("literal"));
        system("ip addr del 2001:db8::1/128 dev lo");
        let notify = async {
            a.handle.source_gone().await.expect("open");
            a.endpoint.handle_network_change(None);
        };
        tokio::join!(transfer(&out, &inn, 100_000), notify);
        assert!(a.counters.snapshot().send_source_gone > 0);
    });
}

#[test]
fn senders_wait_for_a_full_socket_and_all_are_woken() {
    // Without shaping, loopback never fills a send buffer.
    let shaped = ["tc qdisc add dev lo root tbf rate 100mbit burst 16kb limit 64mb"];
    in_namespace(&shaped, || async {
        let small = BindOptions {
            buffer_bytes: 16 * 1024,
            ..options("127.0.0.1:0")
        };
        let a = NodeSocket::new(bind(&small).expect("binds")).expect("socket");
        let bound = bind(&options("127.0.0.1:0")).expect("binds");
        let to = bound.local_addr();
        let mut b = NodeSocket::new(bound).expect("socket");
        const SENDERS: usize = 8;
        const EACH: usize = 100;
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..SENDERS {
            let mut sender = a.create_sender();
            tasks.spawn(async move {
                let contents = [0x40; 1_200];
                let transmit = Transmit {
                    destination: to,
                    ecn: None,
                    contents: &contents,
                    segment_size: None,
                    src_ip: None,
                };
                let mut waits = 0;
                for _ in 0..EACH {
                    poll_fn(|cx| {
                        let polled = sender.as_mut().poll_send(&transmit, cx);
                        waits += usize::from(matches!(polled, Poll::Pending));
                        polled
                    })
                    .await
                    .expect("errors stay below");
                }
                waits
            });
        }
        let mut storage = vec![vec![0_u8; 64 * 1500]; noq_udp::BATCH_SIZE];
        let mut arrived = 0;
        while arrived < SENDERS * EACH {
            let mut bufs: Vec<_> = storage.iter_mut().map(|buf| IoSliceMut::new(buf)).collect();
            let mut meta = vec![RecvMeta::default(); bufs.len()];
            let count = poll_fn(|cx| b.poll_recv(cx, &mut bufs, &mut meta))
                .await
                .expect("errors stay below");
            let datagrams = meta.iter().take(count).map(|entry| entry.len / 1_200);
            arrived += datagrams.sum::<usize>();
        }
        let mut waits = 0;
        while let Some(done) = tasks.join_next().await {
            waits += done.expect("sent");
        }
        assert!(waits > 1, "the socket never filled");
    });
}

#[test]
fn changes_of_addresses_and_routes_are_noticed() {
    let pair = [
        "ip link add v0 type veth peer name v1",
        "ip link set v0 up",
        "ip link set v1 up",
    ];
    in_namespace(&pair, || async {
        let mut watch = NetworkWatch::new().expect("watches");
        assert_eq!(
            (watch.state().source_v4, watch.state().source_v6),
            (None, None)
        );

        system("ip addr add 192.0.2.1/24 dev v0");
        let added = "192.0.2.1".parse::<IpAddr>().expect("literal");
        while !watch
            .state()
            .addresses
            .iter()
            .any(|entry| entry.addr == added)
        {
            watch.changed().await;
        }

        // The addresses stay as they are: only the way out changes.
        system("ip addr add 198.51.100.1/24 dev v0");
        system("ip route add default via 192.0.2.254");
        while watch.state().source_v4 != Some([192, 0, 2, 1].into()) {
            watch.changed().await;
        }
        system("ip route replace default via 198.51.100.254");
        while watch.state().source_v4 != Some([198, 51, 100, 1].into()) {
            watch.changed().await;
        }

        system("ip addr del 192.0.2.1/24 dev v0");
        while watch
            .state()
            .addresses
            .iter()
            .any(|entry| entry.addr == added)
        {
            watch.changed().await;
        }
    });
}
