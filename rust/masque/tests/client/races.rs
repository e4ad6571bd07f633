//! Which carrier wins, when each starts, and what becomes of the others.

use std::{sync::Arc, time::Duration};

use anyreach_masque::{
    carrier::{CarrierError, CarrierKind, ClientCarrier, TunnelIn},
    client::{Attempt, CARRIER_TIMEOUT, Plan, Won, race},
};
use http::Request;
use tokio::time::Instant;

use crate::fake::{FakeDialer, Log, Way, relay_address, target};

struct Nobody;

impl TunnelIn for Nobody {
    fn datagram(&self, _: bytes::Bytes) -> Result<(), anyreach_masque::carrier::ProtocolViolation> {
        Ok(())
    }

    fn capsule(
        &self,
        _: anyreach_wire::capsule::Capsule,
    ) -> Result<(), anyreach_masque::carrier::ProtocolViolation> {
        Ok(())
    }

    fn closed(&self, _: String) {}
}

fn plan(lanes: &[(CarrierKind, u64)]) -> Plan {
    lanes
        .iter()
        .map(|&(kind, ms)| (kind, Duration::from_millis(ms)))
        .collect()
}

/// Races ways given in the order of the plan.
async fn run(lanes: &[(CarrierKind, u64, Way)]) -> (Result<Won<()>, Vec<Attempt>>, Log) {
    let ways = lanes.to_vec();
    let (dialer, log, _open) = FakeDialer::new(move |kind, _| {
        let lane = ways.iter().find(|(of, ..)| *of == kind);
        lane.expect("in the plan").2.clone()
    });
    let lanes: Vec<_> = lanes.iter().map(|(kind, ms, _)| (*kind, *ms)).collect();
    let open = |carrier: Arc<dyn ClientCarrier>| {
        Box::pin(async move {
            let request = Request::new(());
            carrier.open(request, Arc::new(Nobody)).await?;
            Ok::<_, CarrierError>(())
        }) as anyreach_masque::carrier::BoxFuture<'static, _>
    };
    let result = race(&*dialer, &target(), &plan(&lanes), open).await;
    (result, log)
}

fn log(log: &Log) -> Vec<(u128, String)> {
    log.take()
}

fn entries(expected: &[(u128, &str)]) -> Vec<(u128, String)> {
    let own = |(at, what): &(u128, &str)| (*at, (*what).to_owned());
    expected.iter().map(own).collect()
}

use CarrierKind::{H2, H2Proxy, H3};

#[tokio::test(start_paused = true)]
async fn who_answers_within_the_head_start_is_alone() {
    let (won, events) = run(&[(H3, 0, Way::after(40, 20)), (H2, 250, Way::good())]).await;
    let won = won.unwrap();
    assert_eq!((won.kind, won.address), (H3, Some(relay_address())));
    assert!(won.failed.is_empty());
    assert_eq!(log(&events), entries(&[(0, "h3 dial"), (40, "h3 request")]));
    drop(won);
    assert_eq!(log(&events), entries(&[(60, "h3 closed")]));
}

#[tokio::test(start_paused = true)]
async fn silence_costs_the_head_start_and_the_loser_is_closed() {
    let lanes = [
        (H3, 0, Way::after(9_000, 0)),
        (H2Proxy, 250, Way::after(100, 9_000)),
        (H2, 500, Way::after(50, 50)),
    ];
    // The second is connected and waits for its answer; the third leaves it some time for that.
    let begun = Instant::now();
    let (won, events) = run(&lanes).await;
    assert_eq!(won.unwrap().kind, H2);
    assert_eq!(begun.elapsed().as_millis(), 550 + 2_000 + 50);
    let expected = [
        (0, "h3 dial"),
        (250, "h2-proxy dial"),
        (350, "h2-proxy request"),
        (500, "h2 dial"),
        (2_550, "h2 request"),
        (2_600, "h2-proxy closed"),
        (2_600, "h2 closed"),
    ];
    let mut seen = log(&events);
    seen.sort();
    let mut expected = entries(&expected);
    expected.sort();
    assert_eq!(seen, expected);
}

#[tokio::test(start_paused = true)]
async fn a_failure_starts_the_next_at_once() {
    let lanes = [(H3, 0, Way::dead(30)), (H2, 250, Way::after(20, 10))];
    let begun = Instant::now();
    let (won, _) = run(&lanes).await;
    let won = won.unwrap();
    assert_eq!(won.kind, H2);
    assert_eq!(begun.elapsed().as_millis(), 60);
    let [failed] = &won.failed[..] else {
        panic!("{:?}", won.failed);
    };
    assert_eq!((failed.carrier, failed.reason), (H3, "refused"));
    assert_eq!(failed.address, Some(relay_address()));
    assert_eq!(failed.elapsed.as_millis(), 30);
}

#[tokio::test(start_paused = true)]
async fn a_connection_without_an_answer_does_not_win() {
    // The relay takes the connection by HTTP/3 and refuses the request.
    let lanes = [
        (H3, 0, Way::refusing(10, 10)),
        (H2, 250, Way::after(10, 10)),
    ];
    let (won, events) = run(&lanes).await;
    assert_eq!(won.unwrap().kind, H2);
    assert!(log(&events).contains(&(20, "h3 closed".into())));
}

#[tokio::test(start_paused = true)]
async fn only_one_request_is_made_at_a_time() {
    let lanes = [(H3, 0, Way::after(100, 60)), (H2, 50, Way::after(60, 60))];
    let (won, events) = run(&lanes).await;
    assert_eq!(won.unwrap().kind, H3);
    assert!(!log(&events).iter().any(|(_, what)| what == "h2 request"));
}

#[tokio::test(start_paused = true)]
async fn what_was_tried_is_told_if_all_fail() {
    let lanes = [
        (H3, 0, Way::after(60_000, 0)),
        (H2, 250, Way::dead(20)),
        (H2Proxy, 500, Way::refusing(20, 20)),
    ];
    let (lost, events) = run(&lanes).await;
    let attempts = lost.unwrap_err();
    let told: Vec<_> = attempts
        .iter()
        .map(|attempt| (attempt.carrier, attempt.reason, attempt.elapsed.as_millis()))
        .collect();
    let limit = CARRIER_TIMEOUT.as_millis();
    assert_eq!(
        told,
        [
            (H2, "refused", 20),
            (H2Proxy, "refused", 40),
            (H3, "handshake-timeout", limit),
        ]
    );
    assert_eq!(attempts[0].to_string(), "h2 to 203.0.113.1:443: as told");
    assert!(!log(&events).contains(&(0, "h3 request".into())));
}

#[tokio::test(start_paused = true)]
async fn an_answer_that_does_not_come_ends_the_attempt() {
    let (lost, _) = run(&[(H3, 0, Way::after(1_000, 60_000))]).await;
    let [attempt] = &lost.unwrap_err()[..] else {
        panic!("one attempt");
    };
    assert_eq!(attempt.reason, "request-timeout");
    assert_eq!(attempt.elapsed, CARRIER_TIMEOUT);
    assert_eq!(attempt.address, Some(relay_address()));
}

#[tokio::test(start_paused = true)]
async fn an_empty_plan_fails_at_once() {
    let (lost, _) = run(&[]).await;
    assert_eq!(lost.unwrap_err(), []);
}
