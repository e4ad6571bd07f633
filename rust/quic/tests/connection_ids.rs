//! Two connection IDs per path are enough (`active_connection_id_limit`, and section 4.4.1 of
//! draft-seemann-quic-nat-traversal-02): neither probes nor further paths ever wait for one.
#![allow(missing_docs, unreachable_pub, clippy::unwrap_used, reason = "tests")]
#![allow(dead_code, reason = "the laboratory of another test")]

mod common;
#[path = "traversal/lab.rs"]
mod lab;

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyreach_quic::PathOptions;
use anyreach_wire::transport_parameters::Parameters;
use common::{LONG, connected, endpoint, line::Line, within};
use lab::{End, Relay, until};

/// RFC 9000, section 18.2.
const ACTIVE_CONNECTION_ID_LIMIT: u32 = 0x0e;

/// Longest time for what takes a few round trips on loopback, on a busy machine.
const SOON: Duration = Duration::from_secs(2);

/// An address nobody answers at.
fn nowhere(port: u16) -> SocketAddr {
    ([127, 9, 9, 9], port).into()
}

/// More validations at once than there are connection IDs: the engine probes with that of a path it
/// has, and only the path that is opened in the end takes one of its own.
#[tokio::test]
async fn many_addresses_are_probed_at_once() {
    let (a, b) = (End::new(), End::new());
    let relay = Relay::to(b.address()).await;
    let (client, server) = a.connect(&b, relay.address).await;
    let limit = a.log(|log| {
        let parameters = Parameters::parse(&log.parameters_sent).unwrap();
        parameters
            .get(ACTIVE_CONNECTION_ID_LIMIT.into())
            .map(<[u8]>::to_vec)
    });
    assert_eq!(limit, Some(vec![2]));
    // The one that answers comes last.
    let mut candidates: Vec<_> = (1..=8).map(|n| nowhere(1_000 + n)).collect();
    candidates.push(b.address());
    server.set_candidates(&candidates);
    until(|| client.peer_candidates().len() == candidates.len()).await;
    let pairs: Vec<_> = candidates
        .iter()
        .map(|remote| (a.address(), *remote))
        .collect();
    let started = Instant::now();
    client.start_round(&pairs).unwrap();
    until(|| client.paths()[0].method == "punched").await;
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    until(|| server.paths()[0].method == "punched").await;
}

/// Numbers of paths and their connection IDs come back as paths end.
#[tokio::test]
async fn paths_can_be_opened_and_closed_without_end() {
    let (alice, bob) = (endpoint(), endpoint());
    let (dialed, _accepted) = connected(&alice, &bob).await;
    for turn in 0..24 {
        let line = Line::new(bob.local_addr(), Duration::from_millis(1)).await;
        let started = Instant::now();
        let options = PathOptions::default();
        let opening = dialed.open_path(line.address(), options, LONG);
        let id = within(opening).await.unwrap();
        assert!(started.elapsed() < SOON, "{turn}: {:?}", started.elapsed());
        assert!(dialed.close_path(id));
        until(|| dialed.paths().len() == 1).await;
    }
}

/// As many as may be, all at once.
#[tokio::test]
async fn all_paths_there_may_be_have_theirs_at_once() {
    let (alice, bob) = (endpoint(), endpoint());
    let (dialed, accepted) = connected(&alice, &bob).await;
    let mut lines = Vec::new();
    let started = Instant::now();
    for _ in 1..8 {
        let line = Line::new(bob.local_addr(), Duration::from_millis(1)).await;
        let options = PathOptions::default();
        within(dialed.open_path(line.address(), options, LONG))
            .await
            .unwrap();
        lines.push(line);
    }
    assert!(started.elapsed() < SOON, "{:?}", started.elapsed());
    until(|| dialed.paths().len() == 8 && accepted.paths().len() == 8).await;
}
