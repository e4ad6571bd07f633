//! From one carrier to a better one.

use std::time::Duration;

use anyreach_masque::{
    carrier::{CarrierKind, Close},
    client::State,
    relay::ANYREACH_LEASE,
};

use crate::{
    fake::{FakeDialer, Sent, Way},
    scene::{Scene, is_up, is_up_again},
};

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
