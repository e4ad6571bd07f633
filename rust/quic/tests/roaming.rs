//! Addresses of the host come and go while connections are busy: each test in a network namespace of
//! its own. Needs root on Linux; without, the tests say so on stderr and pass.
#![cfg(target_os = "linux")]
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    net::{IpAddr, SocketAddr},
    process::Command,
    sync::{Arc, OnceLock},
    thread,
    time::{Duration, Instant},
};

use anyreach_net::{Injector, Tunnel, TunnelSend, TunnelSendError};
use anyreach_quic::{Connection, Endpoint, Event, PathOptions};
use bytes::Bytes;
use common::{LONG, endpoint_with, within};

/// Within which a transfer must go on after a change.
const TARGET: Duration = Duration::from_secs(2);

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
            .unwrap()
            .block_on(within(test()));
    };
    thread::scope(|scope| scope.spawn(run).join().unwrap());
}

fn run(command: &str) -> bool {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().unwrap()).args(words).status();
    status.expect("iproute2 is there").success()
}

fn system(command: &str) {
    assert!(run(command), "{command}");
}

fn node(bind: &str) -> Endpoint {
    endpoint_with(|config| config.bind_addr = bind.parse().unwrap())
}

/// Dials from `from` to `to` at `ip`.
async fn connected(from: &Endpoint, to: &Endpoint, ip: &str) -> (Connection, Connection) {
    let to_addr = SocketAddr::new(ip.parse().unwrap(), to.local_addr().port());
    let dial = from.dial(to_addr, Some(to.identity().peer_id()), LONG);
    let (dialed, accepted) = tokio::join!(dial, to.accept());
    (dialed.unwrap().connection, accepted.unwrap())
}

/// Sends `amount` bytes and waits until they are there; the longest time without a byte.
async fn transfer(from: &Connection, to: &Connection, amount: usize) -> Duration {
    let send = async {
        let (mut stream, _) = from.open_stream(false).await.unwrap();
        stream.write_all(&vec![7; amount]).await.unwrap();
        stream.finish().unwrap();
        let _ = stream.stopped().await;
    };
    let receive = async {
        let (_, mut stream) = to.accept_stream(false).await.unwrap();
        let (mut got, mut longest, mut last) = (0, Duration::ZERO, Instant::now());
        while let Some(chunk) = stream.read_chunk(1 << 16).await.unwrap() {
            got += chunk.len();
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
        assert_eq!(got, amount);
        longest
    };
    tokio::join!(send, receive).1
}

/// Waits for a network event with this reason.
async fn network_event(endpoint: &Endpoint, wanted: &str) {
    loop {
        for event in endpoint.events().await.unwrap() {
            if let Event::Network { reason } = event
                && reason == wanted
            {
                return;
            }
        }
    }
}

/// Two addresses, of which the first is the one to send from to the second, and a third to fall back
/// on.
async fn three_addresses() {
    for n in 1..=3 {
        system(&format!("ip addr add 2001:db8::{n}/128 dev lo nodad"));
    }
    // The kernel installs the local route of an address a moment after the address.
    while !run("ip -6 route del local 2001:db8::2 dev lo table local") {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    system("ip -6 route add local 2001:db8::2 dev lo table local src 2001:db8::1");
}

fn lose_first_address() {
    system("ip addr del 2001:db8::1/128 dev lo");
}

/// A tunnel that is a function call.
#[derive(Clone, Default)]
struct Wire(Arc<OnceLock<Injector>>);

impl TunnelSend for Wire {
    fn try_send(&self, index: u32, datagram: &[u8]) -> Result<(), TunnelSendError> {
        let far_end = self.0.get().expect("tied together");
        let _ = far_end.inject(index, Bytes::copy_from_slice(datagram));
        Ok(())
    }
}

fn tunnel_between(one: &Endpoint, other: &Endpoint) -> [Tunnel; 2] {
    let wires = [Wire::default(), Wire::default()];
    let add = |node: &Endpoint, wire: &Wire| {
        let tunnel = node.socket().add_tunnel(Box::new(wire.clone()));
        tunnel.unwrap()
    };
    let tunnels = [add(one, &wires[0]), add(other, &wires[1])];
    assert!(wires[0].0.set(tunnels[1].injector()).is_ok());
    assert!(wires[1].0.set(tunnels[0].injector()).is_ok());
    tunnels
}

#[test]
fn transfers_go_on_from_another_address_both_ways() {
    in_namespace(&[], || async {
        three_addresses().await;
        let (alice, bob) = (node("[::]:0"), node("[::]:0"));
        let (dialed, accepted) = connected(&alice, &bob, "2001:db8::2").await;
        transfer(&dialed, &accepted, 1_000_000).await;
        assert_eq!(
            dialed.paths()[0].local_ip,
            Some("2001:db8::1".parse::<IpAddr>().unwrap())
        );
        let path = dialed.paths()[0].id;
        lose_first_address();
        let told = tokio::join!(
            transfer(&dialed, &accepted, 2_000_000),
            network_event(&alice, "interfaces"),
        );
        assert!(told.0 < TARGET, "{:?}", told.0);
        let back = transfer(&accepted, &dialed, 2_000_000).await;
        assert!(back < TARGET, "{back:?}");
        // The same path, which was the only one.
        assert_eq!(dialed.paths()[0].id, path);
        assert_ne!(
            dialed.paths()[0].local_ip,
            Some("2001:db8::1".parse::<IpAddr>().unwrap())
        );
    });
}

/// Data waits in the sender and the receiver has nothing to say: nobody sends but the one whose
/// address is gone.
#[test]
fn an_accepting_side_that_sends_goes_on_as_well() {
    in_namespace(&[], || async {
        three_addresses().await;
        let (alice, bob) = (node("[::]:0"), node("[::]:0"));
        let (dialed, accepted) = connected(&alice, &bob, "2001:db8::2").await;
        let sending = transfer(&accepted, &dialed, 40_000_000);
        let change = async {
            while dialed.stats().udp_rx.bytes < 5_000_000 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            lose_first_address();
        };
        let (longest, ()) = tokio::join!(sending, change);
        assert!(longest < TARGET, "{longest:?}");
    });
}

#[test]
fn no_network_for_a_while_ends_nothing() {
    let pair = [
        "ip addr add 192.0.2.1/32 dev lo",
        "ip addr add 192.0.2.2/32 dev lo",
    ];
    in_namespace(&pair, || async {
        let (alice, bob) = (node("[::]:0"), node("[::]:0"));
        let (dialed, accepted) = connected(&alice, &bob, "192.0.2.2").await;
        system("ip addr del 192.0.2.2/32 dev lo");
        // The sender asks again and again, less and less often.
        let sending = transfer(&dialed, &accepted, 1_000_000);
        let change = async {
            tokio::time::sleep(Duration::from_secs(3)).await;
            system("ip addr add 192.0.2.2/32 dev lo");
            system("ip addr del 192.0.2.1/32 dev lo");
            Instant::now()
        };
        let done = async {
            sending.await;
            Instant::now()
        };
        let (done, changed) = tokio::join!(done, change);
        let after = done.saturating_duration_since(changed);
        assert!(after < TARGET, "{after:?}");
        assert_eq!(dialed.paths().len(), 1);
    });
}

#[test]
fn a_socket_whose_address_is_gone_moves_and_comes_back() {
    let pair = [
        "ip link add v0 type veth peer name v1",
        "ip link set v0 up",
        "ip link set v1 up",
        "ip addr add 192.0.2.1/24 dev v0",
        "ip addr add 198.51.100.1/24 dev v1",
    ];
    in_namespace(&pair, || async {
        let (alice, bob) = (node("192.0.2.1:0"), node("198.51.100.1:0"));
        let port = alice.local_addr().port();
        let (dialed, accepted) = connected(&alice, &bob, "198.51.100.1").await;
        for (gone, new) in [("192.0.2.1", "192.0.2.9"), ("192.0.2.9", "192.0.2.1")] {
            system(&format!("ip addr del {gone}/24 dev v0"));
            system(&format!("ip addr add {new}/24 dev v0"));
            let longest = transfer(&dialed, &accepted, 1_000_000).await;
            assert!(longest < TARGET, "{longest:?}");
            let expected = SocketAddr::new(new.parse().unwrap(), port);
            assert_eq!(alice.local_addr(), expected);
            network_event(&alice, "interfaces").await;
        }
        // The one that listens as well; the other side cannot know where it is now.
        system("ip addr del 198.51.100.1/24 dev v1");
        system("ip addr add 198.51.100.9/24 dev v1");
        let moved = SocketAddr::new("198.51.100.9".parse().unwrap(), bob.local_addr().port());
        while bob.local_addr() != moved {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let options = PathOptions::default();
        dialed.open_path(moved, options, LONG).await.unwrap();
        transfer(&dialed, &accepted, 1_000_000).await;
        transfer(&accepted, &dialed, 1_000_000).await;
    });
}

/// What happens to addresses outside does not touch what goes through a tunnel.
#[test]
fn relayed_paths_survive_and_take_over() {
    in_namespace(&[], || async {
        three_addresses().await;
        let (alice, bob) = (node("[::]:0"), node("[::]:0"));
        let tunnels = tunnel_between(&alice, &bob);
        let address = tunnels[0].address(0);
        let dial = alice.dial_through(address, Some(bob.identity().peer_id()), LONG);
        let (dialed, accepted) = tokio::join!(dial, bob.accept());
        let (dialed, accepted) = (dialed.unwrap().connection, accepted.unwrap());
        // The only path there is.
        lose_first_address();
        let (longest, ()) = tokio::join!(
            transfer(&dialed, &accepted, 1_000_000),
            network_event(&alice, "interfaces"),
        );
        assert!(longest < TARGET, "{longest:?}");
        let paths = dialed.paths();
        assert!(
            paths.len() == 1 && paths[0].id == 0 && paths[0].tunnelled,
            "{paths:?}"
        );

        // Beside a direct one, whose other end then leaves for good.
        let direct = SocketAddr::new("2001:db8::2".parse().unwrap(), bob.local_addr().port());
        let opened = dialed.open_path(direct, PathOptions::default(), LONG).await;
        opened.unwrap();
        while dialed.paths()[0].tunnelled {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        transfer(&dialed, &accepted, 100_000).await;
        system("ip addr del 2001:db8::2/128 dev lo");
        // Made by hand, so it does not go with the address.
        system("ip -6 route del local 2001:db8::2 dev lo table local");
        let longest = transfer(&dialed, &accepted, 1_000_000).await;
        assert!(longest < TARGET, "{longest:?}");
        assert!(dialed.paths()[0].tunnelled);
        let longest = transfer(&accepted, &dialed, 1_000_000).await;
        assert!(longest < TARGET, "{longest:?}");
    });
}

/// A machine on which something else starts and stops all the time.
#[test]
fn addresses_that_concern_nobody_are_told_and_nothing_else() {
    in_namespace(&["ip addr add 192.0.2.1/32 dev lo"], || async {
        let (alice, bob) = (node("[::]:0"), node("[::]:0"));
        let (dialed, accepted) = connected(&alice, &bob, "192.0.2.1").await;
        transfer(&dialed, &accepted, 100_000).await;
        for turn in 0..20 {
            system(&format!("ip addr add 10.0.0.{}/32 dev lo", turn + 1));
            network_event(&alice, "interfaces").await;
            system(&format!("ip addr del 10.0.0.{}/32 dev lo", turn + 1));
            network_event(&alice, "interfaces").await;
        }
        let longest = transfer(&dialed, &accepted, 100_000).await;
        assert!(longest < TARGET, "{longest:?}");
        assert_eq!((dialed.paths().len(), dialed.paths()[0].id), (1, 0));
    });
}
