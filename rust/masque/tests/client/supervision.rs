//! A tunnel and the carriers that come and go below it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use anyreach_masque::{
    carrier::{CarrierKind, Close},
    client::{FIRST_DELAY, MAX_DELAY, STABLE_AFTER, State},
    relay::ANYREACH_LEASE,
};
use tokio::time::Instant;

use crate::{
    fake::{FakeDialer, RELAY, Sent, Way, relay_address, target},
    scene::{Scene, is_closed, is_down, is_up, is_up_again, up},
};

fn addresses(of: &[&str]) -> Vec<SocketAddr> {
    of.iter().map(|one| one.parse().unwrap()).collect()
}

#[tokio::test(start_paused = true)]
async fn an_answered_request_is_a_tunnel_and_says_where_it_is() {
    let mut way = Way::with_addresses("\"192.0.2.1:5000\", \"[2001:db8::1]:5000\"");
    let fields = way.answers.as_mut().unwrap();
    fields.push(("anyreach-node", "\"203.0.113.1:9000\"".into()));
    let (scene, tunnel, mut opened, _) = up([way]).await;
    let up = tunnel.up().unwrap();
    assert_eq!(up.carrier, CarrierKind::H3);
    assert_eq!(up.address, Some(relay_address()));
    assert_eq!((tunnel.relay(), up.relay), (Some(RELAY), Some(RELAY)));
    assert_eq!(
        tunnel.public_addresses(),
        addresses(&["192.0.2.1:5000", "[2001:db8::1]:5000"])
    );
    assert_eq!(tunnel.node_addresses(), addresses(&["203.0.113.1:9000"]));
    assert_eq!((up.moves, up.moved_from.clone()), (0, None));
    assert_eq!(tunnel.rtt(), Some(Duration::from_millis(10)));

    let end = opened.recv().await.unwrap();
    assert_eq!(end.request.method(), "CONNECT");
    assert_eq!(
        end.request.uri(),
        "https://203.0.113.1/.well-known/masque/udp/%2A/%2A/"
    );
    assert_eq!(end.field("connect-udp-bind"), Some("?1"));
    assert_eq!(end.field("capsule-protocol"), Some("?1"));
    assert_eq!(end.field(ANYREACH_LEASE).unwrap().len(), 32);
    assert_eq!(end.field("authorization"), None);
    assert_eq!(scene.tunnels.all().len(), 1);
    assert_eq!(
        scene.tunnels.get(tunnel.number()).unwrap().number(),
        tunnel.number()
    );
}

#[tokio::test(start_paused = true)]
async fn a_tunnel_that_never_came_up_says_what_was_tried_and_ends() {
    let (dialer, _, _open) = FakeDialer::in_turn([Way::dead(20)]);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |options| {
        let second = (CarrierKind::H2, Duration::from_millis(250));
        options.plan.push(second);
    });
    let closed = is_closed(&tunnel).await;
    let tried: Vec<_> = closed
        .attempts
        .iter()
        .map(|attempt| (attempt.carrier, attempt.reason))
        .collect();
    assert_eq!(
        tried,
        [(CarrierKind::H3, "refused"), (CarrierKind::H2, "refused")]
    );
    assert!(closed.error.contains("as told"), "{}", closed.error);
    assert!(tunnel.synthetic(relay_address()).is_err());
    assert_eq!(tunnel.carrier(), None);
}

#[tokio::test(start_paused = true)]
async fn a_proxy_that_does_not_lend_addresses_is_no_relay() {
    let way = Way {
        answers: Ok(Vec::new()),
        ..Way::good()
    };
    let (dialer, log, mut opened) = FakeDialer::in_turn([way]);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |_| ());
    assert_eq!(is_closed(&tunnel).await.attempts[0].reason, "no-bind");
    let mut end = opened.recv().await.unwrap();
    assert_eq!(end.drain(), [Sent::End(Close::Done)]);
    assert_eq!(log.take().last().unwrap().1, "h3 closed");
}

#[tokio::test(start_paused = true)]
async fn retries_come_at_once_and_then_less_and_less_often() {
    let ways = [Way::good()]
        .into_iter()
        .chain((0..12).map(|_| Way::dead(0)))
        .chain([Way::good()]);
    let (_scene, tunnel, mut opened, log) = up(ways).await;
    let end = opened.recv().await.unwrap();
    tokio::time::sleep(STABLE_AFTER).await;
    log.take();
    let begun = Instant::now();
    end.line.cut("the cable");
    let down = is_down(&tunnel).await;
    assert_eq!(down.error, "the cable");
    assert_eq!(down.attempts[0].reason, "refused");
    assert_eq!(tunnel.public_addresses(), []);
    let up = is_up_again(&tunnel, 2).await;
    assert_eq!(up.lost.as_deref(), Some("the cable"));
    let dials: Vec<u128> = log
        .take()
        .into_iter()
        .filter(|(_, what)| what == "h3 dial")
        .map(|(at, _)| at - STABLE_AFTER.as_millis())
        .collect();
    assert_eq!(dials.len(), 13);
    // The first two are the one at once, and its retry.
    assert_eq!(dials[0], 0);
    let waits: Vec<u128> = dials.windows(2).map(|pair| pair[1] - pair[0]).collect();
    let mut due = FIRST_DELAY.as_millis();
    for wait in &waits {
        assert!((due / 2..=due + 2).contains(wait), "{waits:?}");
        due = (due * 2).min(MAX_DELAY.as_millis());
    }
    assert!(begun.elapsed() > MAX_DELAY);
    assert_eq!(tunnel.counters().sessions, 2);
}

#[tokio::test(start_paused = true)]
async fn a_carrier_that_does_not_last_is_part_of_the_outage() {
    let (_scene, tunnel, mut opened, log) = up([Way::good()]).await;
    let mut lost = Vec::new();
    for _ in 0..6 {
        let end = opened.recv().await.unwrap();
        end.line.cut("again");
        lost.push(log.now());
    }
    // At once the first time, then later and later.
    let waits: Vec<u128> = lost.windows(2).map(|pair| pair[1] - pair[0]).collect();
    assert!(waits[0] <= 2, "{waits:?}");
    assert!(waits[4] >= FIRST_DELAY.as_millis() * 4, "{waits:?}");
    drop(tunnel);
}

#[tokio::test(start_paused = true)]
async fn the_lease_and_the_number_stay_and_a_move_is_told() {
    let moved = Way::with_addresses("\"192.0.2.1:6000\"");
    let (_scene, tunnel, mut opened, _) = up([Way::good(), Way::good(), moved]).await;
    let remote = "198.51.100.5:700".parse().unwrap();
    let synthetic = tunnel.synthetic(remote).unwrap();
    let number = tunnel.number();

    let first = opened.recv().await.unwrap();
    let lease = first.field(ANYREACH_LEASE).unwrap().to_owned();
    first.line.cut("restart");
    let second = opened.recv().await.unwrap();
    is_up_again(&tunnel, 2).await;
    assert_eq!(second.field(ANYREACH_LEASE), Some(&*lease));
    assert_eq!(tunnel.number(), number);
    assert_eq!(tunnel.synthetic(remote), Ok(synthetic));
    assert_eq!(tunnel.up().unwrap().moves, 0);

    second.line.cut("restart");
    let third = opened.recv().await.unwrap();
    let up = is_up_again(&tunnel, 3).await;
    assert_eq!(third.field(ANYREACH_LEASE), Some(&*lease));
    assert_eq!(up.moves, 1);
    assert_eq!(up.moved_from, Some(addresses(&["192.0.2.1:5000"])));
    assert_eq!(up.public, addresses(&["192.0.2.1:6000"]));
    assert_eq!(tunnel.synthetic(remote), Ok(synthetic));
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_request_alone_is_the_end_of_the_carrier() {
    let (_scene, tunnel, mut opened, log) = up([Way::good()]).await;
    let end = opened.recv().await.unwrap();
    end.input.closed("the relay wants no more".into());
    let up = is_up_again(&tunnel, 2).await;
    assert_eq!(up.lost.as_deref(), Some("the relay wants no more"));
    let closed = log
        .take()
        .iter()
        .filter(|(_, what)| what == "h3 closed")
        .count();
    assert_eq!(closed, 1);
}

#[tokio::test(start_paused = true)]
async fn persistence_is_for_who_asks() {
    let ways = [Way::dead(0), Way::dead(0), Way::good()];
    let (dialer, _, _open) = FakeDialer::in_turn(ways);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |options| options.persist = true);
    let down = is_down(&tunnel).await;
    assert_eq!(down.attempts.len(), 1);
    assert_eq!(tunnel.relay(), None);
    is_up(&tunnel).await;
}

#[tokio::test(start_paused = true)]
async fn a_probe_asks_the_carrier_and_ends_the_wait_for_one() {
    let works = Arc::new(AtomicBool::new(true));
    let now = works.clone();
    let (dialer, log, mut opened) = FakeDialer::new(move |_, _| match now.load(Relaxed) {
        true => Way::good(),
        false => Way::dead(0),
    });
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |_| ());
    is_up(&tunnel).await;
    let end = opened.recv().await.unwrap();
    scene.tunnels.probe();
    assert_eq!(end.line.probes(), 1);

    works.store(false, Relaxed);
    end.line.cut("gone");
    tokio::time::sleep(Duration::from_secs(300)).await;
    assert!(tunnel.up().is_none());
    works.store(true, Relaxed);
    let begun = Instant::now();
    tunnel.probe();
    is_up_again(&tunnel, 2).await;
    assert!(begun.elapsed() <= Duration::from_millis(5));

    // If that was too early, the next tries come soon.
    works.store(false, Relaxed);
    opened.recv().await.unwrap().line.cut("gone");
    tokio::time::sleep(Duration::from_secs(300)).await;
    log.take();
    tunnel.probe();
    tokio::time::sleep(FIRST_DELAY * 7).await;
    assert!(log.take().len() >= 3);
}

#[tokio::test(start_paused = true)]
async fn a_probe_begins_a_race_anew() {
    let ways = [Way::after(9_000, 0), Way::good()];
    let (dialer, log, _opened) = FakeDialer::in_turn(ways);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |_| ());
    log.until("h3 dial").await;
    tunnel.probe();
    is_up(&tunnel).await;
    assert!(log.now() < 10);
}

#[tokio::test(start_paused = true)]
async fn closing_ends_the_request_first_and_waits_for_it_a_moment() {
    let (scene, tunnel, mut opened, log) = up([Way::good()]).await;
    let mut end = opened.recv().await.unwrap();
    end.capsule().await;
    let address = tunnel
        .synthetic("198.51.100.5:700".parse().unwrap())
        .unwrap();
    tunnel.close();
    tunnel.close();
    loop {
        if let Sent::End(how) = end.sent.recv().await.unwrap() {
            assert_eq!(how, Close::Done);
            break;
        }
    }
    end.input.closed("the relay has freed it".into());
    let closed = is_closed(&tunnel).await;
    assert_eq!(closed.attempts, []);
    assert_eq!(log.take().last().unwrap().1, "h3 closed");
    let directory = scene.tunnels.directory();
    assert!(anyreach_quic::Directory::resolve(&*directory, address).is_none());
    // What is late is dropped without harm.
    end.input
        .datagram(bytes::Bytes::from_static(&[2, 4, 1]))
        .unwrap();
    assert_eq!(tunnel.counters().received, 0);
}

#[tokio::test(start_paused = true)]
async fn a_relay_that_does_not_answer_the_end_is_not_waited_for_long() {
    let (_scene, tunnel, _opened, _) = up([Way::good()]).await;
    let begun = Instant::now();
    tunnel.close();
    is_closed(&tunnel).await;
    assert!(begun.elapsed() <= Duration::from_secs(1));
}

#[tokio::test(start_paused = true)]
async fn the_last_handle_closes_the_tunnel() {
    let (scene, tunnel, mut opened, _) = up([Way::good()]).await;
    let end = opened.recv().await.unwrap();
    let mut states = tunnel.states();
    drop(tunnel.clone());
    assert!(!end.line.is_cut());
    drop(tunnel);
    let closed = |state: &State| matches!(state, State::Closed(_));
    states.wait_for(closed).await.unwrap();
    assert!(end.line.is_cut());
    assert!(scene.tunnels.all().is_empty());
}

#[tokio::test(start_paused = true)]
async fn closing_interrupts_a_race_and_a_wait() {
    let (dialer, log, _open) = FakeDialer::in_turn([Way::after(5_000, 0)]);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |_| ());
    log.until("h3 dial").await;
    let begun = Instant::now();
    tunnel.close();
    is_closed(&tunnel).await;
    assert!(begun.elapsed() < Duration::from_millis(5));

    let (dialer, _, _open) = FakeDialer::in_turn([Way::dead(0)]);
    let tunnel = scene.open(dialer, |options| options.persist = true);
    tokio::time::sleep(Duration::from_secs(300)).await;
    is_down(&tunnel).await;
    let begun = Instant::now();
    tunnel.close();
    is_closed(&tunnel).await;
    assert!(begun.elapsed() < Duration::from_millis(5));
}

#[tokio::test(start_paused = true)]
async fn a_new_route_counts_from_the_next_carrier_and_the_relay_stays_who_it_is() {
    let (dialer, _, mut opened) = FakeDialer::new(|kind, target| {
        assert_eq!(target.peer, Some(RELAY));
        match kind {
            CarrierKind::H3 => Way::good(),
            _ => Way::with_addresses("\"192.0.2.9:1\""),
        }
    });
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |_| ());
    is_up(&tunnel).await;
    let mut elsewhere = target();
    elsewhere.peer = None;
    tunnel.reroute(elsewhere, vec![(CarrierKind::H2, Duration::ZERO)]);
    opened.recv().await.unwrap().line.cut("gone");
    let up = is_up_again(&tunnel, 2).await;
    assert_eq!(up.carrier, CarrierKind::H2);
}
