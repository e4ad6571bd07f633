//! Openers at the socket: who gets them, what answers leave by, what adopts; holding back, and
//! datagrams of the node's own.

mod common;

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr, UdpSocket},
    num::NonZeroU8,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use anyreach_net::{
    Arrival, ArrivedBy, ExtraOptions, ExtraSocket, Injector, MuxError, OpenerSink, SyntheticAddr,
    TunnelSend, TunnelSendError, canonical,
    hold::{MAX_HELD, MAX_HOLD},
};
use anyreach_wire::opener::{OPENER_FIRST_BYTE, OPENER_LEN};
use bytes::Bytes;
use common::{Node, run, transfer, until};
use noq::PathId;
use tokio::sync::mpsc;

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// What a [`Judge`] takes for authentic.
const GENUINE: u8 = 1;
const FORGED: u8 = 2;
const ANSWER: u8 = 3;

fn opener(what: u8) -> [u8; OPENER_LEN] {
    let mut datagram = [what; OPENER_LEN];
    datagram[0] = OPENER_FIRST_BYTE;
    datagram
}

/// Adopts for and answers what is genuine, and remembers all of it.
#[derive(Default)]
struct Judge(Mutex<Vec<(u8, SocketAddr, ArrivedBy)>>);

impl Judge {
    fn seen(&self) -> Vec<(u8, SocketAddr, ArrivedBy)> {
        self.0.lock().expect("not poisoned").clone()
    }
}

impl OpenerSink for Judge {
    fn received(&self, datagram: &[u8; OPENER_LEN], arrival: &Arrival<'_>) {
        let what = datagram[1];
        let mut seen = self.0.lock().expect("not poisoned");
        seen.push((what, arrival.from(), arrival.by()));
        if what == GENUINE && arrival.adopt() {
            arrival.reply(&opener(ANSWER));
        }
    }
}

fn judged(addr: &str) -> (Node, Arc<Judge>) {
    let (node, judge) = (Node::bind(addr), Arc::new(Judge::default()));
    node.handle.set_opener_sink(judge.clone()).expect("open");
    (node, judge)
}

/// Where `node` is reached from this host.
fn at(node: &Node) -> SocketAddr {
    SocketAddr::new(LOOPBACK, node.addr.port())
}

fn stranger() -> UdpSocket {
    let socket = UdpSocket::bind((LOOPBACK, 0)).expect("socket");
    let limit = Some(Duration::from_secs(10));
    socket.set_read_timeout(limit).expect("settable");
    socket
}

fn received(socket: &UdpSocket) -> (Vec<u8>, SocketAddr) {
    let mut buf = [0; 2048];
    let (len, from) = socket.recv_from(&mut buf).expect("in time");
    (buf[..len].to_vec(), from)
}

fn pool(node: &Node, size: usize, options: &ExtraOptions) -> Vec<ExtraSocket> {
    (0..size)
        .map(|_| {
            let spare = node.handle.spare_socket(at(node)).expect("a port");
            let added = node.handle.add_socket(spare.into_socket(), options.clone());
            added.expect("room")
        })
        .collect()
}

/// Where an extra socket of this host is reached.
fn local(socket: &ExtraSocket) -> SocketAddr {
    SocketAddr::new(LOOPBACK, socket.local_addr().port())
}

#[test]
fn openers_are_handed_on_and_answered_from_where_they_went() {
    run(async {
        let (node, judge) = judged("[::]:0");
        let peer = stranger();
        let from = peer.local_addr().expect("bound");
        peer.send_to(&opener(FORGED), at(&node)).expect("sent");
        // One byte more, and one less, is none.
        peer.send_to(&[OPENER_FIRST_BYTE; OPENER_LEN + 1], at(&node))
            .expect("sent");
        peer.send_to(&[OPENER_FIRST_BYTE; OPENER_LEN - 1], at(&node))
            .expect("sent");
        peer.send_to(&opener(GENUINE), at(&node)).expect("sent");
        assert_eq!(received(&peer), (opener(ANSWER).to_vec(), at(&node)));
        assert_eq!(
            judge.seen(),
            [
                (FORGED, from, ArrivedBy::Primary),
                (GENUINE, from, ArrivedBy::Primary)
            ]
        );
        let counted = node.counters.snapshot();
        assert_eq!((counted.recv_openers, counted.junk_other), (2, 2));
    });
}

#[test]
fn without_a_judge_openers_are_counted_and_dropped() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        for _ in 0..100 {
            a.handle
                .send_raw(&opener(GENUINE), at(&b), None)
                .expect("sent");
        }
        until(|| b.counters.snapshot().recv_openers == 100).await;
        let (out, inn) = a.connect(&b, at(&b)).await;
        transfer(&out, &inn, 100_000).await;
    });
}

#[test]
fn a_socket_of_the_pool_that_is_hit_becomes_the_path() {
    run(async {
        // B opens a pool towards A; A finds one of its ports and dials it.
        let (a, b) = (judged("[::]:0"), judged("[::]:0"));
        let ((a, a_judge), (b, b_judge)) = (a, b);
        let (adoptions, mut winners) = mpsc::channel(4);
        let options = ExtraOptions {
            expect: Some(LOOPBACK),
            adoptions: Some(adoptions),
        };
        let mut pool = pool(&b, 32, &options);
        for socket in &pool {
            socket
                .send_raw(&opener(FORGED), at(&a), None)
                .expect("sent");
        }
        until(|| a_judge.seen().len() == pool.len()).await;
        let hit = local(&pool[20]);
        // What is forged opens nothing, nor does what looks like QUIC.
        a.handle.send_raw(&opener(FORGED), hit, None).expect("sent");
        a.handle.send_raw(&[0xc0; 1200], hit, None).expect("sent");
        until(|| b.counters.snapshot().recv_extra_unexpected == 1).await;
        assert!(pool.iter().all(|socket| socket.adopted().is_empty()));

        a.handle
            .send_raw(&opener(GENUINE), hit, None)
            .expect("sent");
        let adoption = winners.recv().await.expect("told");
        assert_eq!(adoption.local.port(), hit.port());
        assert_eq!(adoption.remote, at(&a));
        until(|| a_judge.seen().contains(&(ANSWER, hit, ArrivedBy::Primary))).await;
        assert_eq!(
            b_judge.seen().last().map(|(_, from, by)| (*from, *by)),
            Some((at(&a), ArrivedBy::Extra(adoption.local)))
        );
        let (out, inn) = a.connect(&b, hit).await;
        let path = inn.path(PathId::ZERO).expect("open");
        assert_eq!(
            canonical(path.remote_address().expect("open")),
            at(&a),
            "the engine sees where it comes from, not by what"
        );
        transfer(&out, &inn, 4_000_000).await;
        transfer(&inn, &out, 4_000_000).await;

        // The others go, the winner stays and still works.
        let winner = pool.swap_remove(20);
        drop(pool);
        assert_eq!(winner.adopted(), [at(&a)]);
        transfer(&inn, &out, 1_000_000).await;
    });
}

#[test]
fn one_source_is_adopted_by_one_socket_and_the_others_keep_quiet() {
    run(async {
        let (b, judge) = judged("[::]:0");
        let options = ExtraOptions {
            expect: Some(LOOPBACK),
            adoptions: None,
        };
        let pool = pool(&b, 3, &options);
        let peer = stranger();
        for socket in &pool {
            peer.send_to(&opener(GENUINE), local(socket)).expect("sent");
        }
        until(|| judge.seen().len() == pool.len()).await;
        let (answer, from) = received(&peer);
        assert_eq!(answer, opener(ANSWER));
        let owners: Vec<_> = pool
            .iter()
            .filter(|socket| !socket.adopted().is_empty())
            .collect();
        assert_eq!(owners.len(), 1);
        assert_eq!(local(owners[0]), from);
        assert_eq!(b.counters.snapshot().recv_extra_unexpected, 2);
        // Its owner still answers it.
        peer.send_to(&opener(GENUINE), from).expect("sent");
        assert_eq!(received(&peer), (opener(ANSWER).to_vec(), from));
    });
}

#[test]
fn what_one_socket_adopts_is_bounded() {
    run(async {
        let (b, judge) = judged("[::]:0");
        let options = ExtraOptions {
            expect: Some(LOOPBACK),
            adoptions: None,
        };
        let pool = pool(&b, 1, &options);
        let many = 20;
        for _ in 0..many {
            let peer = stranger();
            peer.send_to(&opener(GENUINE), local(&pool[0]))
                .expect("sent");
        }
        until(|| judge.seen().len() == many).await;
        assert_eq!(pool[0].adopted().len(), 8);
    });
}

#[test]
fn a_full_batch_of_openers_hides_nothing_behind_it() {
    run(async {
        let ((a, _), (b, judge)) = (judged("[::]:0"), judged("[::]:0"));
        let (out, inn) = a.connect(&b, at(&b)).await;
        let flood = async {
            for _ in 0..20_000 {
                let _ = a.handle.send_raw(&opener(FORGED), at(&b), None);
                tokio::task::coop::consume_budget().await;
            }
        };
        tokio::join!(flood, transfer(&out, &inn, 1_000_000));
        assert!(!judge.seen().is_empty());
    });
}

/// A carrier that leads straight into the tunnel of another node.
#[derive(Default)]
struct Wire(Mutex<Option<Injector>>);

struct Carrier(Arc<Wire>);

impl TunnelSend for Carrier {
    fn try_send(&self, index: u32, datagram: &[u8]) -> Result<(), TunnelSendError> {
        let far = self.0.0.lock().expect("not poisoned");
        let far = far.as_ref().ok_or(TunnelSendError::Closed)?;
        far.inject(index, Bytes::copy_from_slice(datagram))
            .map_err(|_| TunnelSendError::Closed)
    }
}

#[test]
fn openers_go_through_tunnels_and_their_answers_back() {
    run(async {
        let ((a, a_judge), (b, b_judge)) = (judged("[::]:0"), judged("[::]:0"));
        let wires = [Arc::new(Wire::default()), Arc::new(Wire::default())];
        let add = |node: &Node, wire: &Arc<Wire>| {
            let carrier = Box::new(Carrier(wire.clone()));
            node.handle.add_tunnel(carrier).expect("tunnel")
        };
        let (at_a, at_b) = (add(&a, &wires[0]), add(&b, &wires[1]));
        *wires[0].0.lock().expect("not poisoned") = Some(at_b.injector());
        *wires[1].0.lock().expect("not poisoned") = Some(at_a.injector());

        let to = at_a.address(7).socket_addr();
        a.handle
            .send_raw(&opener(GENUINE), to, NonZeroU8::new(1))
            .expect("tunnels know no hops");
        until(|| !a_judge.seen().is_empty()).await;
        let from = at_b.address(7).socket_addr();
        let by = ArrivedBy::Tunnel(at_b.number());
        assert_eq!(b_judge.seen(), [(GENUINE, from, by)]);
        let by = ArrivedBy::Tunnel(at_a.number());
        assert_eq!(a_judge.seen(), [(ANSWER, to, by)]);

        // More than fit the engine's buffers at once, with a packet among them.
        for number in 0..200 {
            let injected = match number {
                100 => at_b.injector().inject(7, Bytes::from(vec![0x40; 40])),
                _ => at_b
                    .injector()
                    .inject(7, Bytes::copy_from_slice(&opener(FORGED))),
            };
            injected.expect("open");
        }
        until(|| b_judge.seen().len() == 200).await;
        // A tunnel that is gone takes none.
        a.handle
            .send_raw(
                &opener(GENUINE),
                SyntheticAddr::new(99, 0).socket_addr(),
                None,
            )
            .expect("dropped and counted");
        assert_eq!(a.counters.snapshot().send_no_tunnel, 1);
    });
}

#[test]
fn a_held_address_gets_nothing_until_it_says_something() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        a.handle.hold(&[at(&b)], MAX_HOLD).expect("open");
        let dial = a.endpoint.connect(at(&b), "node.test").expect("dialable");
        until(|| a.counters.snapshot().send_held > 0).await;
        assert_eq!(b.counters.snapshot().recv_openers, 0);
        // Own datagrams are not held, and what comes back ends it, long before the deadline.
        a.handle
            .send_raw(&opener(GENUINE), at(&b), None)
            .expect("sent");
        until(|| b.counters.snapshot().recv_openers == 1).await;
        let begin = Instant::now();
        b.handle
            .send_raw(&opener(GENUINE), at(&a), None)
            .expect("sent");
        let (out, inn) = tokio::join!(dial, async {
            b.endpoint.accept().await.expect("open").await
        });
        transfer(&out.expect("dialed"), &inn.expect("accepted"), 100_000).await;
        assert!(begin.elapsed() < MAX_HOLD);
    });
}

#[test]
fn holds_end_by_themselves_and_are_bounded() {
    run(async {
        let (a, b) = (Node::bind("[::]:0"), Node::bind("[::]:0"));
        let many: Vec<SocketAddr> = (0..MAX_HELD as u16)
            .map(|port| SocketAddr::from(([192, 0, 2, 1], 1 + port)))
            .collect();
        a.handle
            .hold(&many, Duration::from_millis(50))
            .expect("open");
        // There is room for this one only when the others have expired.
        a.handle.hold(&[at(&b)], MAX_HOLD).expect("open");
        let (out, inn) = a.connect(&b, at(&b)).await;
        assert_eq!(a.counters.snapshot().send_held, 0);
        transfer(&out, &inn, 1000).await;
        b.handle
            .hold(&[at(&a)], Duration::from_millis(50))
            .expect("open");
        let (out, inn) = b.connect(&a, at(&a)).await;
        assert!(b.counters.snapshot().send_held > 0);
        transfer(&out, &inn, 1000).await;
    });
}

#[test]
fn errors_of_own_datagrams_are_told_and_concern_nothing_else() {
    run(async {
        let (a, b) = (Node::bind("127.0.0.1:0"), Node::bind("[::]:0"));
        for (to, kind) in [
            ("[2001:db8::1]:9", std::io::ErrorKind::Unsupported),
            ("0.0.0.0:9", std::io::ErrorKind::InvalidInput),
            ("127.0.0.1:0", std::io::ErrorKind::InvalidInput),
            ("255.255.255.255:9", std::io::ErrorKind::InvalidInput),
        ] {
            let to = to.parse().expect("literal");
            let sent = a.handle.send_raw(&opener(GENUINE), to, None);
            let Err(MuxError::Io(error)) = sent else {
                panic!("{to} is refused")
            };
            assert_eq!(error.kind(), kind, "{to}");
        }
        let far = "[2001:db8::1]:9".parse().expect("literal");
        assert!(a.handle.spare_socket(far).is_err(), "bound to IPv4");
        let (out, inn) = a.connect(&b, at(&b)).await;
        transfer(&out, &inn, 1000).await;
    });
}

#[cfg(target_os = "linux")]
#[test]
fn hops_go_with_the_datagram_for_both_families_and_change_nothing_else() {
    run(async {
        let node = Node::bind("[::]:0");
        for (ip, v6) in [("127.0.0.1", false), ("::1", true)] {
            let ip: IpAddr = ip.parse().expect("literal");
            let Ok(peer) = UdpSocket::bind((ip, 0)) else {
                eprintln!("skipped: no {ip}");
                continue;
            };
            let to = peer.local_addr().expect("bound");
            let spare = node.handle.spare_socket(to).expect("a port");
            let added = node.handle.spare_socket(to).expect("a port").into_socket();
            let extra = node.handle.add_socket(added, ExtraOptions::default());
            let extra = extra.expect("room");
            let usual = hops::received(&peer, v6, || {
                node.handle.send_raw(b"usual", to, None).expect("sent");
            });
            for hops in [1, 3, 255] {
                let hops = NonZeroU8::new(hops);
                let seen = hops::received(&peer, v6, || {
                    node.handle.send_raw(b"few", to, hops).expect("sent");
                });
                assert_eq!(seen, hops.map(NonZeroU8::get));
                let seen = hops::received(&peer, v6, || {
                    spare.send_raw(b"few", to, hops).expect("sent");
                });
                assert_eq!(seen, hops.map(NonZeroU8::get));
                let seen = hops::received(&peer, v6, || {
                    extra.send_raw(b"few", to, hops).expect("sent");
                });
                assert_eq!(seen, hops.map(NonZeroU8::get));
                let seen = hops::received(&peer, v6, || {
                    node.handle.send_raw(b"usual", to, None).expect("sent");
                });
                assert_eq!(seen, usual);
            }
        }
    });
}

/// The time to live a datagram arrived with.
#[cfg(target_os = "linux")]
mod hops {
    use std::{net::UdpSocket, os::fd::AsRawFd, time::Duration};

    pub(crate) fn received(peer: &UdpSocket, v6: bool, send: impl FnOnce()) -> Option<u8> {
        let (level, option) = if v6 {
            (libc::IPPROTO_IPV6, libc::IPV6_RECVHOPLIMIT)
        } else {
            (libc::IPPROTO_IP, libc::IP_RECVTTL)
        };
        let on: libc::c_int = 1;
        let limit = Some(Duration::from_secs(10));
        peer.set_read_timeout(limit).expect("settable");
        let (mut data, mut control) = ([0_u8; 64], [0_u64; 16]);
        let mut part = libc::iovec {
            iov_base: data.as_mut_ptr().cast(),
            iov_len: data.len(),
        };
        switch_on(peer.as_raw_fd(), level, option, &on);
        send();
        // SAFETY: all-zero is a message without any part.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = &raw mut part;
        message.msg_iovlen = 1;
        message.msg_control = control.as_mut_ptr().cast();
        message.msg_controllen = size_of_val(&control);
        // SAFETY: the message describes live buffers of these lengths.
        let len = unsafe { libc::recvmsg(peer.as_raw_fd(), &raw mut message, 0) };
        assert!(len > 0, "received in time");
        // SAFETY: the kernel has filled in as many control messages as it says.
        let header = unsafe { libc::CMSG_FIRSTHDR(&raw const message).as_ref() }?;
        // SAFETY: both options deliver an integer.
        let value = unsafe {
            libc::CMSG_DATA(header)
                .cast::<libc::c_int>()
                .read_unaligned()
        };
        u8::try_from(value).ok()
    }

    fn switch_on(fd: i32, level: i32, option: i32, on: &libc::c_int) {
        // SAFETY: the pointer and the length describe one live integer.
        let result = unsafe {
            libc::setsockopt(
                fd,
                level,
                option,
                std::ptr::from_ref(on).cast(),
                size_of_val(on) as libc::socklen_t,
            )
        };
        assert_eq!(result, 0);
    }
}
