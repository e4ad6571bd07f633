//! Lines that drop large packets without a word: a path over one is found out, and goes on carrying
//! data in smaller packets.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::time::{Duration, Instant};

use anyreach_quic::{Connection, Endpoint, PathOptions, PathSnapshot};
use common::{LONG, endpoint, line::Line, within};

/// Longest time without progress.
const TARGET: Duration = Duration::from_secs(2);

/// What the narrow lines let pass: less than the engine finds on loopback, more than an Initial.
const NARROW: usize = 1_300;

const ONE_WAY: Duration = Duration::from_millis(10);

/// From a dialing side to an accepting one, by the line.
async fn connected(line: &Line, from: &Endpoint, to: &Endpoint) -> [Connection; 2] {
    let dial = from.dial(line.address(), Some(to.identity().peer_id()), LONG);
    let (dialed, accepted) = within(async { tokio::join!(dial, to.accept()) }).await;
    [dialed.unwrap().connection, accepted.unwrap()]
}

/// Moves data for as long as `during` takes and returns the longest time without any arriving.
async fn longest_stall(
    from: &Connection,
    to: &Connection,
    during: impl Future<Output = ()>,
) -> Duration {
    let (mut send, _) = from.open_stream(false).await.unwrap();
    send.write_all(b"begin").await.unwrap();
    let (_, mut receive) = within(to.accept_stream(false)).await.unwrap();
    let sending = async {
        let data = vec![7; 100_000];
        while send.write_all(&data).await.is_ok() {}
    };
    let (mut longest, mut last) = (Duration::ZERO, Instant::now());
    let receiving = async {
        while receive.read_chunk(1 << 16).await.unwrap().is_some() {
            longest = longest.max(last.elapsed());
            last = Instant::now();
        }
    };
    within(async {
        tokio::select! {
            () = sending => panic!("there is always more to send"),
            () = receiving => panic!("the stream does not end"),
            () = during => {}
        }
    })
    .await;
    // Silence that has not ended counts as well.
    longest.max(last.elapsed())
}

async fn until(condition: impl Fn() -> bool) {
    while !condition() {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

fn mtu(connection: &Connection) -> usize {
    connection.paths()[0].mtu.into()
}

/// Long enough for a stall that is too long to show.
async fn a_while() {
    tokio::time::sleep(TARGET + TARGET / 4).await;
}

#[tokio::test]
async fn narrow_from_the_start() {
    let (alice, bob) = (endpoint(), endpoint());
    let line = Line::new(bob.local_addr(), ONE_WAY).await;
    line.switch().squeeze(NARROW);
    let [dialed, accepted] = connected(&line, &alice, &bob).await;
    for [from, to] in [[&dialed, &accepted], [&accepted, &dialed]] {
        let stall = longest_stall(from, to, a_while()).await;
        assert!(stall < TARGET, "{stall:?}");
        assert!((1_200..=NARROW).contains(&mtu(from)), "{}", mtu(from));
    }
}

/// When a line becomes narrow.
#[derive(Clone, Copy)]
enum When {
    Busy,
    Idle,
}

/// Two nodes on a wide line that becomes narrow, in one direction of the data or the other, and
/// maybe with another path, slower and wide. Returns the paths in the end, the one in use first.
async fn narrowed(
    other_path: bool,
    when: When,
    longest: usize,
    reverse: bool,
) -> Vec<PathSnapshot> {
    let (alice, bob) = (endpoint(), endpoint());
    let line = Line::new(bob.local_addr(), ONE_WAY).await;
    let [dialed, accepted] = connected(&line, &alice, &bob).await;
    let other = Line::new(bob.local_addr(), ONE_WAY * 4).await;
    if other_path {
        let standby = PathOptions {
            standby: true,
            ..PathOptions::default()
        };
        let opening = dialed.open_path(other.address(), standby, LONG);
        within(opening).await.unwrap();
    }
    let [from, to] = match reverse {
        false => [&dialed, &accepted],
        true => [&accepted, &dialed],
    };
    let wide = until(|| mtu(from) > NARROW);
    let stall = match when {
        When::Busy => {
            let event = async {
                wide.await;
                line.switch().squeeze(longest);
                a_while().await;
            };
            longest_stall(from, to, event).await
        }
        When::Idle => {
            longest_stall(from, to, wide).await;
            line.switch().squeeze(longest);
            longest_stall(from, to, a_while()).await
        }
    };
    assert!(stall < TARGET, "{stall:?}, reverse: {reverse}");
    from.paths()
}

#[tokio::test]
async fn narrowed_under_way_it_goes_on_with_smaller_packets() {
    for reverse in [false, true] {
        for when in [When::Busy, When::Idle] {
            let paths = narrowed(false, when, NARROW, reverse).await;
            assert!(usize::from(paths[0].mtu) <= NARROW, "{paths:?}");
        }
    }
}

/// Packets that are too large are no reason to leave a good path.
#[tokio::test]
async fn narrowed_beside_another_path_it_is_kept() {
    for reverse in [false, true] {
        let paths = narrowed(true, When::Busy, NARROW, reverse).await;
        assert_eq!((paths.len(), paths[0].id), (2, 0), "{paths:?}");
        assert!(usize::from(paths[0].mtu) <= NARROW, "{paths:?}");
    }
}

/// Too narrow for QUIC: only acknowledgements and pings pass, as if all were well.
#[tokio::test]
async fn a_path_that_carries_no_data_is_left() {
    for reverse in [false, true] {
        for when in [When::Busy, When::Idle] {
            let paths = narrowed(true, when, 1_000, reverse).await;
            assert_eq!(paths[0].id, 1, "{paths:?}");
        }
    }
}
