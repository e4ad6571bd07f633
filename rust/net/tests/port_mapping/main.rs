//! Mappings are made, renewed and taken back by each protocol, with a router in a network namespace
//! of its own. Needs root on Linux; without, the tests say so on stderr and pass.

#![cfg(target_os = "linux")]

mod router;

use std::{
    net::{Ipv4Addr, SocketAddr},
    process::Command,
    sync::{Arc, mpsc},
    thread,
    time::Duration,
};

use anyreach_net::{MappingProtocol, MappingState, PortMapping};
use router::{Manners, Router, serve};
use tokio::sync::{oneshot, watch};

/// The address the router has outside.
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);

/// The router, seen from the host, and the host.
const GATEWAY: &str = "10.7.0.1";
const HOST: &str = "10.7.0.2";

/// More than any of the tests needs.
const LONG: Duration = Duration::from_secs(60);

fn run(command: &str) {
    let mut words = command.split_whitespace();
    let status = Command::new(words.next().expect("a program"))
        .args(words)
        .status();
    assert!(status.expect("iproute2 is there").success(), "{command}");
}

/// Puts this thread into a network namespace of its own. False without the privilege.
fn enter_namespace() -> bool {
    // SAFETY: no pointers; affects this thread alone, which nothing else runs on.
    let entered = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
    if entered {
        run("ip link set lo up");
    } else {
        eprintln!("skipped: no privilege to make a network namespace");
    }
    entered
}

fn block_on(future: impl Future<Output = ()>) {
    // Sockets belong to the namespace of the thread that makes them: stay on this one.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("runtime");
    runtime
        .block_on(async { tokio::time::timeout(LONG, future).await })
        .expect("finishes in time");
    // What was left to itself gets a moment, as in a program that goes on.
    runtime.shutdown_timeout(Duration::from_millis(10));
}

/// Runs `test` on a host behind a router with such manners.
fn behind<F>(manners: Manners, test: impl FnOnce(Arc<Router>) -> F + Send)
where
    F: Future<Output = ()>,
{
    let router = Arc::new(Router::new(OUTSIDE, manners));
    let (ready, tid) = mpsc::channel();
    let (connected, link) = mpsc::channel();
    let (up, started) = mpsc::channel();
    let (stop, stopped) = oneshot::channel::<()>();
    let serving = router.clone();
    let other_side = move || {
        if !enter_namespace() {
            return;
        }
        // SAFETY: no arguments, never fails.
        ready.send(unsafe { libc::gettid() }).expect("awaited");
        link.recv().expect("the host connects or fails");
        run(&format!("ip addr add {GATEWAY}/24 dev v1"));
        run("ip link set v1 up");
        block_on(async {
            tokio::select! {
                () = serve(serving, up) => {}
                _ = stopped => {}
            }
        });
    };
    let host = move || {
        let Ok(tid) = tid.recv() else {
            return;
        };
        assert!(enter_namespace());
        run("ip link add v0 type veth peer name v1");
        run(&format!("ip link set v1 netns {tid}"));
        run(&format!("ip addr add {HOST}/24 dev v0"));
        run("ip link set v0 up");
        run(&format!("ip route add default via {GATEWAY}"));
        connected.send(()).expect("awaited");
        started.recv().expect("the router starts");
        block_on(test(router));
        let _ = stop.send(());
    };
    thread::scope(|scope| {
        let router = scope.spawn(other_side);
        let host = scope.spawn(host);
        let host = host.join();
        router.join().expect("the router works");
        host.expect("test passes");
    });
}

fn bound() -> SocketAddr {
    "[::]:4433".parse().expect("literal")
}

async fn until(
    mapping: &mut watch::Receiver<MappingState>,
    wanted: impl FnMut(&MappingState) -> bool,
) -> MappingState {
    mapping
        .wait_for(wanted)
        .await
        .expect("the keeper runs")
        .clone()
}

fn external(port: u16) -> Option<SocketAddr> {
    Some((OUTSIDE, port).into())
}

async fn until_seen(mut seen: impl FnMut() -> bool) {
    while !seen() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Made, renewed, changed by a renewal, and taken back.
async fn a_life(router: Arc<Router>, protocol: MappingProtocol) {
    let mapping = PortMapping::start(bound());
    let mut state = mapping.subscribe();
    let made = until(&mut state, |state| state.external.is_some()).await;
    assert_eq!(
        (made.external, made.protocol),
        (external(4433), Some(protocol))
    );
    assert_eq!(made.error, None);
    assert_eq!(router.mapped(), [(4433, 4433)]);

    let before = router.requests();
    until_seen(|| router.requests() > before).await;
    assert_eq!(mapping.state(), made);
    // The provider has given the router another address.
    let other = Ipv4Addr::new(203, 0, 113, 77);
    router.set_outside(other);
    let moved = until(&mut state, |state| *state != made).await;
    assert_eq!(moved.external, Some((other, 4433).into()));

    mapping.close();
    let closed = until(&mut state, |state| state.closed).await;
    assert_eq!(closed.external, None);
    assert_eq!(router.mapped(), []);
}

#[test]
fn by_pcp() {
    let router = Manners {
        pcp: true,
        natpmp: true,
        upnp: true,
        ..Manners::default()
    };
    behind(router, |router| a_life(router, MappingProtocol::Pcp));
}

#[test]
fn by_nat_pmp() {
    let router = Manners {
        natpmp: true,
        ..Manners::default()
    };
    behind(router, |router| a_life(router, MappingProtocol::NatPmp));
}

#[test]
fn by_upnp() {
    let router = Manners {
        upnp: true,
        ..Manners::default()
    };
    behind(router, |router| async move {
        let mapping = PortMapping::start(bound());
        let mut state = mapping.subscribe();
        let made = until(&mut state, |state| state.external.is_some()).await;
        assert_eq!(made.external, external(4433));
        assert_eq!(made.protocol, Some(MappingProtocol::Upnp));
        assert_eq!(router.mapped(), [(4433, 4433)]);
        // Dropping is as good as closing.
        drop(mapping);
        until(&mut state, |state| state.closed).await;
        assert_eq!(router.mapped(), []);
    });
}

#[test]
fn another_port_if_that_one_is_taken_and_for_ever_if_it_must_be() {
    let router = Manners {
        upnp: true,
        permanent_only: true,
        taken: vec![4433],
        ..Manners::default()
    };
    behind(router, |router| async move {
        let mapping = PortMapping::start(bound());
        let mut state = mapping.subscribe();
        let made = until(&mut state, |state| state.external.is_some()).await;
        let port = made.external.expect("made").port();
        assert_ne!(port, 4433);
        assert_eq!(router.mapped(), [(4433, port)]);
        mapping.close();
        until(&mut state, |state| state.closed).await;
        assert_eq!(router.mapped(), []);
    });
}

#[test]
fn without_such_a_router_it_says_so_and_tries_again_elsewhere() {
    behind(Manners::default(), |router| async move {
        let mapping = PortMapping::start(bound());
        let mut state = mapping.subscribe();
        let failed = until(&mut state, |state| state.error.is_some()).await;
        assert_eq!((failed.external, failed.protocol), (None, None));
        let error = failed.error.expect("there");
        for word in ["PCP", "NAT-PMP", "UPnP"] {
            assert!(error.contains(word), "{error}");
        }
        // Another network, as far as the host can tell: no waiting.
        router.answer_pcp();
        run(&format!("ip addr del {HOST}/24 dev v0"));
        run("ip addr add 10.7.0.3/24 dev v0");
        run(&format!("ip route add default via {GATEWAY}"));
        until(&mut state, |state| state.external.is_some()).await;
    });
}

#[test]
fn a_router_that_is_left_is_asked_again_where_the_host_is_now() {
    let router = Manners {
        pcp: true,
        ..Manners::default()
    };
    behind(router, |router| async move {
        let mapping = PortMapping::start(bound());
        let mut state = mapping.subscribe();
        until(&mut state, |state| state.external.is_some()).await;
        run("ip route del default");
        let lost = until(&mut state, |state| state.external.is_none()).await;
        assert!(!lost.closed);
        until(&mut state, |state| state.error.is_some()).await;
        let before = router.requests();
        run(&format!("ip route add default via {GATEWAY}"));
        until(&mut state, |state| state.external.is_some()).await;
        assert!(router.requests() > before);
    });
}

#[test]
fn junk_makes_no_mapping() {
    let router = Manners {
        junk: true,
        ..Manners::default()
    };
    behind(router, |_| async {
        let mapping = PortMapping::start(bound());
        let mut state = mapping.subscribe();
        let failed = until(&mut state, |state| state.error.is_some()).await;
        assert_eq!(failed.external, None);
        mapping.close();
        until(&mut state, |state| state.closed).await;
    });
}

#[test]
fn hosts_that_need_none_ask_nobody() {
    let router = Manners {
        pcp: true,
        ..Manners::default()
    };
    behind(router, |router| async move {
        for address in ["127.0.0.1:4433", "[2001:db8::1]:4433", "10.9.9.9:4433"] {
            let mapping = PortMapping::start(address.parse().expect("literal"));
            let mut state = mapping.subscribe();
            until(&mut state, |state| state.error.is_some()).await;
        }
        assert_eq!(router.requests(), 0);
    });
}
