//! A path dies under a connection that has another: how long until data moves again, and that
//! nothing is lost. The lines are forwarders in this process, with the delays of a short direct path
//! and a relayed one.
#![allow(missing_docs, clippy::unwrap_used, reason = "tests")]

mod common;

use std::{
    sync::{
        Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

use anyreach_quic::{Connection, Endpoint, Event, PathOptions, RelayHint};
use common::{LONG, endpoint, endpoint_with, line::Line, within};

const DIRECT: Duration = Duration::from_millis(2);
const RELAYED: Duration = Duration::from_millis(20);

/// The most a failover may take here. On a quiet machine it is a third of a second; these tests
/// share theirs with others.
const GAP: Duration = Duration::from_secs(2);

/// Two nodes with two lines between them, and both paths up.
struct Lab {
    alice: Endpoint,
    bob: Endpoint,
    direct: Line,
    relayed: Line,
    /// The ends at Alice, who dialed, and at Bob.
    ends: [Connection; 2],
}

impl Lab {
    async fn new() -> Self {
        Self::between(endpoint(), endpoint()).await
    }

    async fn between(alice: Endpoint, bob: Endpoint) -> Self {
        let direct = Line::new(bob.local_addr(), DIRECT).await;
        let relayed = Line::new(bob.local_addr(), RELAYED).await;
        let peer = bob.identity().peer_id();
        let dial = alice.dial(direct.address(), Some(peer), LONG);
        let (dialed, accepted) = within(async { tokio::join!(dial, bob.accept()) }).await;
        let ends = [dialed.unwrap().connection, accepted.unwrap()];
        let hint = RelayHint {
            relayed: true,
            via: None,
        };
        let options = PathOptions {
            hint,
            standby: true,
        };
        let opening = ends[0].open_path(relayed.address(), options, LONG);
        assert_eq!(within(opening).await.unwrap(), 1);
        for end in &ends {
            paths(end, &[0, 1]).await;
        }
        Self {
            alice,
            bob,
            direct,
            relayed,
            ends,
        }
    }
}

/// Waits until a connection has these paths, the one in use first.
async fn paths(connection: &Connection, expected: &[u32]) {
    within(async {
        loop {
            let ids: Vec<u32> = connection.paths().iter().map(|path| path.id).collect();
            if ids == expected {
                return;
            }
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    })
    .await;
}

/// What a transfer saw.
struct Seen {
    /// The longest time without new data.
    gap: Duration,
    /// What arrived.
    bytes: usize,
}

/// Sends a pattern from one end to the other until `until` bytes have arrived, checked; `midway` runs
/// when a quarter of them has, and the gap counts from there.
async fn transfer(from: &Connection, to: &Connection, until: usize, midway: impl FnOnce()) -> Seen {
    let act = Mutex::new(Some(midway));
    let meanwhile = |at: usize| {
        let mut act = act.lock().unwrap();
        let due = at > until / 4 && act.is_some();
        if due && let Some(act) = act.take() {
            act();
        }
        (due, at >= until)
    };
    pour(from, to, meanwhile).await
}

/// Sends a pattern until `meanwhile`, asked with each chunk, says so (the second); the gap counts
/// anew when it says so (the first).
async fn pour(
    from: &Connection,
    to: &Connection,
    meanwhile: impl Fn(usize) -> (bool, bool),
) -> Seen {
    let byte = |at: usize| (at % 251) as u8;
    let block: Vec<u8> = (0..251 * 256).map(byte).collect();
    let (mut send, _) = from.open_stream(false).await.unwrap();
    let sending = tokio::spawn(async move {
        // Until the other side has enough.
        while send.write_all(&block).await.is_ok() {}
    });
    let (_, mut recv) = to.accept_stream(false).await.unwrap();
    let mut at = 0;
    let (mut last, mut gap) = (Instant::now(), Duration::ZERO);
    loop {
        let chunk = within(recv.read_chunk(usize::MAX)).await.unwrap().unwrap();
        assert!(
            chunk
                .iter()
                .enumerate()
                .all(|(offset, b)| *b == byte(at + offset))
        );
        at += chunk.len();
        gap = gap.max(last.elapsed());
        last = Instant::now();
        let (anew, enough) = meanwhile(at);
        if anew {
            gap = Duration::ZERO;
        }
        if enough {
            break;
        }
    }
    let _ = recv.stop(0u32.into());
    within(sending).await.unwrap();
    Seen { gap, bytes: at }
}

/// Waits for the news of a failover; how long the dead path had been silent.
async fn failover_told(endpoint: &Endpoint) -> Option<Duration> {
    within(async {
        let mut silent = None;
        loop {
            for event in endpoint.events().await.unwrap() {
                if let Event::PathsChanged {
                    reason, silent: s, ..
                } = event
                {
                    silent = silent.max(s);
                    if reason == "failover" {
                        return silent;
                    }
                }
            }
        }
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_sender_moves_to_the_other_path() {
    for sender in [0, 1] {
        let lab = Lab::new().await;
        let [from, to] = [&lab.ends[sender], &lab.ends[1 - sender]];
        let seen = transfer(from, to, 24 << 20, || lab.direct.cut()).await;
        println!("sender {sender}: {:?} without data", seen.gap);
        assert!(seen.gap < GAP, "{:?}", seen.gap);
        assert_eq!(seen.bytes >> 20, 24);
        for end in &lab.ends {
            paths(end, &[1]).await;
            assert!(end.close_reason().is_none());
        }
        let teller = [&lab.alice, &lab.bob][sender];
        let silent = failover_told(teller).await.unwrap();
        assert!(silent >= Duration::from_millis(100), "{silent:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn both_directions_at_once() {
    let lab = Lab::new().await;
    let [alice, bob] = &lab.ends;
    let over = AtomicBool::new(false);
    let forth = async {
        let seen = transfer(alice, bob, 16 << 20, || lab.direct.cut()).await;
        over.store(true, Ordering::Relaxed);
        seen
    };
    let back = pour(bob, alice, |_| (false, over.load(Ordering::Relaxed)));
    let (forth, back) = tokio::join!(forth, back);
    println!("both: {:?} and {:?} without data", forth.gap, back.gap);
    assert!(forth.gap < GAP && back.gap < GAP);
    for end in &lab.ends {
        paths(end, &[1]).await;
    }
}

/// The news that one of them is dead must not be sent by the other, nor what was under way on it: that
/// would wait for the peer, which would wait for acknowledgements.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_paths_that_die_together_neither_is_moved_to() {
    // About as long as the first one, and so long that it is asked late whether it lives.
    for twin_one_way in [3, 35] {
        for sender in [0, 1] {
            let lab = Lab::new().await;
            let one_way = Duration::from_millis(twin_one_way);
            let twin = Line::new(lab.bob.local_addr(), one_way).await;
            let opening = lab.ends[0].open_path(twin.address(), PathOptions::default(), LONG);
            assert_eq!(within(opening).await.unwrap(), 2);
            for end in &lab.ends {
                paths(end, &[0, 1, 2]).await;
            }
            let [from, to] = [&lab.ends[sender], &lab.ends[1 - sender]];
            let seen = transfer(from, to, 16 << 20, || {
                lab.direct.cut();
                twin.cut();
            })
            .await;
            println!("{one_way:?}, sender {sender}: {:?} without data", seen.gap);
            assert!(seen.gap < GAP, "{:?}", seen.gap);
            for end in &lab.ends {
                paths(end, &[1]).await;
            }
        }
    }
}

/// One way only: what is sent arrives, and no acknowledgement does.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_path_that_is_dead_one_way_is_dead() {
    for cut in [[true, false], [false, true]] {
        let lab = Lab::new().await;
        let [alice, bob] = &lab.ends;
        let seen = transfer(alice, bob, 16 << 20, || lab.direct.switch().set(cut)).await;
        println!("cut {cut:?}: {:?} without data", seen.gap);
        assert!(seen.gap < GAP, "{:?}", seen.gap);
        for end in &lab.ends {
            paths(end, &[1]).await;
        }
    }
}

/// With nothing but keep-alives, too, and then there is no hurry.
#[tokio::test]
async fn an_idle_connection_notices_with_its_next_keep_alive() {
    let keen =
        endpoint_with(|config| config.keep_alive_interval = Some(Duration::from_millis(300)));
    let lab = Lab::between(keen, endpoint()).await;
    lab.direct.cut();
    for end in &lab.ends {
        paths(end, &[1]).await;
    }
    // And a dead standby is noticed as well.
    let lab = Lab::between(
        endpoint_with(|config| config.keep_alive_interval = Some(Duration::from_millis(300))),
        endpoint(),
    )
    .await;
    lab.relayed.cut();
    for end in &lab.ends {
        paths(end, &[0]).await;
    }
}

/// When nothing answers it is not the path: nothing is closed, and all goes on when the line is
/// back.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_peer_that_is_silent_on_all_paths_keeps_them() {
    let lab = Lab::new().await;
    let [alice, bob] = &lab.ends;
    let outage = Duration::from_secs(1);
    let seen = transfer(alice, bob, 24 << 20, || {
        lab.direct.cut();
        lab.relayed.cut();
        let lines = [lab.direct.switch(), lab.relayed.switch()];
        tokio::spawn(async move {
            tokio::time::sleep(outage).await;
            lines.iter().for_each(|line| line.set([false, false]));
        });
    })
    .await;
    println!("outage: {:?} without data", seen.gap);
    for end in &lab.ends {
        let mut ids: Vec<u32> = end.paths().iter().map(|path| path.id).collect();
        ids.sort_unstable();
        assert_eq!(ids, [0, 1]);
    }
}

/// The relayed path comes first, as it often does; the direct one takes over, and the relayed one
/// takes over again when that dies.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn from_relayed_to_direct_and_back() {
    let (alice, bob) = (endpoint(), endpoint());
    let direct = Line::new(bob.local_addr(), DIRECT).await;
    let relayed = Line::new(bob.local_addr(), RELAYED).await;
    let hint = RelayHint {
        relayed: true,
        via: None,
    };
    let peer = bob.identity().peer_id();
    let dial = alice.dial_hinted(relayed.address(), Some(peer), LONG, hint);
    let (dialed, accepted) = within(async { tokio::join!(dial, bob.accept()) }).await;
    let ends = [dialed.unwrap().connection, accepted.unwrap()];
    assert_eq!(ends[0].first_path().unwrap().method, "relayed");
    let options = PathOptions::default();
    let opening = alice.open_path(&ends[0], direct.address(), options, LONG);
    assert_eq!(within(opening).await.unwrap(), 1);
    for end in &ends {
        paths(end, &[1, 0]).await;
    }
    let seen = transfer(&ends[0], &ends[1], 16 << 20, || direct.cut()).await;
    println!("back to the relayed path: {:?} without data", seen.gap);
    assert!(seen.gap < GAP);
    for end in &ends {
        paths(end, &[0]).await;
    }
    // The line comes back, and with it the path, under a new number.
    direct.mend();
    let opening = alice.open_path(&ends[0], direct.address(), options, LONG);
    let again = within(opening).await.unwrap();
    for end in &ends {
        paths(end, &[again, 0]).await;
    }
}
