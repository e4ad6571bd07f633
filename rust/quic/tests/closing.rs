//! A connection is closed while its line loses packets: the peer hears of it all the same.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::Duration;

use anyreach_quic::{Connection, Endpoint, code};
use common::{LONG, endpoint, line::Line, within};

async fn connected(alice: &Endpoint, bob: &Endpoint, line: &Line) -> (Connection, Connection) {
    let dial = alice.dial(line.address(), Some(bob.identity().peer_id()), LONG);
    let (out, inn) = within(async { tokio::join!(dial, bob.accept()) }).await;
    let ends = (out.unwrap().connection, inn.unwrap());
    within(silence(&ends.0)).await;
    within(silence(&ends.1)).await;
    ends
}

/// Until there has been nothing to send for a while: whatever the peer sends has a close repeated.
async fn silence(connection: &Connection) {
    let sent = || connection.stats().udp_tx.datagrams;
    let mut before = u64::MAX;
    while before != sent() {
        before = sent();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_close_that_gets_lost_is_repeated() {
    let (alice, bob) = (endpoint(), endpoint());
    let line = Line::new(bob.local_addr(), Duration::from_millis(2)).await;
    for lost in 0..=2 {
        let (out, inn) = connected(&alice, &bob, &line).await;
        line.switch().lose(lost);
        out.close(7, b"bye");
        // Not by the idle timeout.
        let reason = within(inn.closed()).await;
        assert_eq!((reason.kind, reason.code), ("closed", 7), "{lost} lost");
        line.switch().lose(0);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_goes_says_so_more_than_once() {
    let bob = endpoint();
    for lost in 0..=2 {
        let alice = endpoint();
        let line = Line::new(bob.local_addr(), Duration::from_millis(2)).await;
        let (_out, inn) = connected(&alice, &bob, &line).await;
        line.switch().lose(lost);
        alice.close(code::NODE_CLOSED, b"done");
        within(alice.closed()).await;
        assert_eq!(within(inn.closed()).await.kind, "closed", "{lost} lost");
    }
}
