//! A tunnel and the carriers that come and go below it.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use anyreach_masque::{
    carrier::{CarrierKind, Close},
    client::{
        ANYREACH_LEASE, Closed, Down, FIRST_DELAY, MAX_DELAY, Purpose, STABLE_AFTER, State, Tunnel,
        TunnelOptions, Tunnels, Up,
    },
};
use anyreach_net::{BindOptions, IpMode, NodeSocket, bind};
use tokio::{
    sync::mpsc,
    time::{Instant, timeout},
};

use crate::fake::{FakeDialer, Log, RELAY, RelayEnd, Sent, Way, relay_address, target};

/// A socket without an engine, and tunnels on it.
pub(crate) struct Scene {
    pub(crate) tunnels: Tunnels,
    _socket: NodeSocket,
}

impl Scene {
    pub(crate) fn new() -> Self {
        let bound = bind(&BindOptions {
            addr: ([127, 0, 0, 1], 0).into(),
            ip_mode: IpMode::Dual,
            allow_ipv4_mapped: true,
            buffer_bytes: 1 << 20,
        });
        let socket = NodeSocket::new(bound.unwrap()).unwrap();
        Self {
            tunnels: Tunnels::new(socket.handle()),
            _socket: socket,
        }
    }

    pub(crate) fn open(
        &self,
        dialer: Arc<FakeDialer>,
        adjust: impl FnOnce(&mut TunnelOptions),
    ) -> Tunnel {
        let mut options = TunnelOptions {
            target: target(),
            plan: vec![(CarrierKind::H3, Duration::ZERO)],
            purpose: Purpose::Bind,
            persist: false,
        };
        adjust(&mut options);
        self.tunnels.open(dialer, options).unwrap()
    }
}

/// A tunnel that is up, and the relay's end of it.
pub(crate) async fn up(
    ways: impl IntoIterator<Item = Way>,
) -> (Scene, Tunnel, mpsc::UnboundedReceiver<RelayEnd>, Log) {
    let (dialer, log, opened) = FakeDialer::in_turn(ways);
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |_| ());
    is_up(&tunnel).await;
    (scene, tunnel, opened, log)
}

async fn state(tunnel: &Tunnel, wanted: impl FnMut(&State) -> bool) -> State {
    let mut states = tunnel.states();
    let state = timeout(Duration::from_secs(120), states.wait_for(wanted)).await;
    state.expect("in time").unwrap().clone()
}

pub(crate) async fn is_up(tunnel: &Tunnel) -> Arc<Up> {
    match state(tunnel, |state| matches!(state, State::Up(_))).await {
        State::Up(up) => up,
        _ => unreachable!(),
    }
}

pub(crate) async fn is_down(tunnel: &Tunnel) -> Arc<Down> {
    match state(tunnel, |state| matches!(state, State::Down(_))).await {
        State::Down(down) => down,
        _ => unreachable!(),
    }
}

pub(crate) async fn is_closed(tunnel: &Tunnel) -> Arc<Closed> {
    match state(tunnel, |state| matches!(state, State::Closed(_))).await {
        State::Closed(closed) => closed,
        _ => unreachable!(),
    }
}

/// Up for the time `carriers`.
pub(crate) async fn is_up_again(tunnel: &Tunnel, carriers: u32) -> Arc<Up> {
    match state(
        tunnel,
        |state| matches!(state, State::Up(up) if up.carriers >= carriers),
    )
    .await
    {
        State::Up(up) => up,
        _ => unreachable!(),
    }
}

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
    let ways = [
        Way::good(),
        Way::dead(0),
        Way::dead(0),
        Way::dead(0),
        Way::good(),
    ];
    let (scene, tunnel, mut opened, _) = up(ways).await;
    let end = opened.recv().await.unwrap();
    scene.tunnels.probe();
    assert_eq!(end.line.probes(), 1);
    end.line.cut("gone");
    let mut states = tunnel.states();
    let tried = |state: &State| matches!(state, State::Down(down) if !down.attempts.is_empty());
    states.wait_for(tried).await.unwrap();
    let begun = Instant::now();
    while tunnel.up().is_none() {
        tunnel.probe();
        states.changed().await.unwrap();
    }
    assert!(
        begun.elapsed() <= Duration::from_millis(5),
        "{:?}",
        begun.elapsed()
    );
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

#[tokio::test(start_paused = true)]
async fn a_better_carrier_takes_over_while_the_other_goes_on() {
    let (dialer, log, mut opened) = FakeDialer::new(|kind, _| match kind {
        CarrierKind::H3 => Way::after(100, 100),
        _ => Way::good(),
    });
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |options| options.plan[0].0 = CarrierKind::H2);
    is_up(&tunnel).await;
    let mut former = opened.recv().await.unwrap();
    assert_eq!(former.capsule().await.context().get(), 2);
    let remote = "198.51.100.5:700".parse().unwrap();
    let synthetic = tunnel.synthetic(remote).unwrap();
    log.take();

    tunnel.improve(vec![(CarrierKind::H3, Duration::ZERO)]);
    let up = is_up_again(&tunnel, 2).await;
    assert_eq!((up.carrier, up.lost.clone()), (CarrierKind::H3, None));
    let mut better = opened.recv().await.unwrap();
    assert_eq!(former.field(ANYREACH_LEASE), better.field(ANYREACH_LEASE));
    // The remotes move over, then the former request is ended and its connection closed.
    assert_eq!(better.capsule().await.context().get(), 2);
    assert_eq!(better.capsule().await.context().get(), 4);
    assert_eq!(tunnel.synthetic(remote), Ok(synthetic));
    assert_eq!(former.line.ended().await, "closed by the client");
    assert_eq!(former.drain().last(), Some(&Sent::End(Close::Done)));
    let what: Vec<String> = log.take().into_iter().map(|(_, what)| what).collect();
    assert_eq!(what, ["h3 dial", "h3 request", "h2 closed"]);
    assert!(!better.line.is_cut());
    // Its end is the end of the carrier from now on.
    better.line.cut("gone");
    assert_eq!(is_up_again(&tunnel, 3).await.carrier, CarrierKind::H2);
}

#[tokio::test(start_paused = true)]
async fn the_relay_may_end_the_former_carrier_first() {
    let (dialer, log, mut opened) = FakeDialer::new(|kind, _| match kind {
        CarrierKind::H3 => Way::after(0, 100),
        _ => Way::good(),
    });
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |options| options.plan[0].0 = CarrierKind::H2);
    is_up(&tunnel).await;
    let former = opened.recv().await.unwrap();
    tunnel.improve(vec![(CarrierKind::H3, Duration::ZERO)]);
    log.until("h3 request").await;
    let mut states = tunnel.states();
    former.input.closed("taken over".into());
    states.changed().await.unwrap();
    let State::Up(up) = states.borrow().clone() else {
        panic!("it was never down");
    };
    assert_eq!((up.carrier, up.carriers), (CarrierKind::H3, 2));
}

#[tokio::test(start_paused = true)]
async fn looking_for_a_better_carrier_in_vain_changes_nothing() {
    let (dialer, log, mut opened) = FakeDialer::new(|kind, _| match kind {
        CarrierKind::H3 => Way::dead(50),
        _ => Way::good(),
    });
    let scene = Scene::new();
    let tunnel = scene.open(dialer, |options| options.plan[0].0 = CarrierKind::H2);
    is_up(&tunnel).await;
    let end = opened.recv().await.unwrap();
    for _ in 0..3 {
        log.take();
        tunnel.improve(vec![(CarrierKind::H3, Duration::ZERO)]);
        log.until("h3 dial").await;
        tokio::time::sleep(Duration::from_millis(60)).await;
    }
    assert_eq!(tunnel.up().unwrap().carriers, 1);
    assert!(!end.line.is_cut());
    // And without a better one in sight, the end is the end.
    tunnel.improve(vec![(CarrierKind::H3, Duration::ZERO)]);
    end.line.cut("gone");
    let up = is_up_again(&tunnel, 2).await;
    assert_eq!(
        (up.carrier, up.lost.as_deref()),
        (CarrierKind::H2, Some("gone"))
    );
}
