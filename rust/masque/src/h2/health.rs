//! Whether the peer of an HTTP/2 connection still answers, by PING (RFC 9113, section 6.7).

use std::time::Duration;

use ::h2::{Ping, PingPong};
use tokio::time::{Instant, sleep, sleep_until};

use super::link::Link;

/// How often a client asks. Shorter than the idle time of common proxies (60 s) and of the NATs of
/// mobile networks, longer than what wakes radios all the time (RFC 8085, section 3.5: 15 s).
pub(super) const CLIENT_INTERVAL: Duration = Duration::from_secs(20);

/// How often a relay asks: only to let go of clients that are gone, or take nothing.
pub(super) const SERVER_INTERVAL: Duration = Duration::from_secs(45);

/// How long an answer may take when there is no hurry: a line may be busy for a while.
const PATIENCE: Duration = Duration::from_secs(20);

/// Least time for an answer when there is: below, a scheduling delay would look like a dead line.
const PROBE_FLOOR: Duration = Duration::from_millis(500);

/// Round trips an answer may take when there is.
const PROBE_RTTS: u32 = 3;

/// What an unknown round-trip time counts as (RFC 6298: start with a second).
const UNKNOWN_RTT: Duration = Duration::from_secs(1);

/// Asks now and then, or when told to, until there is no answer; returns why the connection is to
/// be closed. Its PINGs also measure the round-trip time.
pub(super) async fn watch(mut pings: PingPong, link: &Link, interval: Duration) -> String {
    loop {
        let mut window = tokio::select! {
            () = sleep(interval) => PATIENCE,
            () = link.probe_requested() => probe_window(link),
        };
        let sent = Instant::now();
        let pong = pings.ping(Ping::opaque());
        tokio::pin!(pong);
        let mut deadline = sent + window;
        loop {
            tokio::select! {
                biased;
                answer = &mut pong => match answer {
                    Ok(_) => {
                        link.sample_rtt(sent.elapsed());
                        break;
                    }
                    // The connection's own error says more.
                    Err(error) => return super::describe(&error),
                },
                () = link.probe_requested() => {
                    window = probe_window(link);
                    deadline = deadline.min(Instant::now() + window);
                }
                () = sleep_until(deadline) => {
                    // The answer may be behind much else. What came in lately shows that the
                    // connection lives; what came in early may have been on its way already.
                    let silent_since = (deadline - window / 2).into_std();
                    if link.last_received() <= silent_since {
                        return format!(
                            "no answer to an HTTP/2 PING for {} ms",
                            sent.elapsed().as_millis()
                        );
                    }
                    deadline += window;
                }
            }
        }
    }
}

fn probe_window(link: &Link) -> Duration {
    (link.rtt().unwrap_or(UNKNOWN_RTT) * PROBE_RTTS).max(PROBE_FLOOR)
}

/// Asks once and waits for the answer, which comes after the peer's SETTINGS.
pub(super) async fn first_answer(pings: &mut PingPong, link: &Link) -> Result<(), ::h2::Error> {
    let sent = Instant::now();
    pings.ping(Ping::opaque()).await?;
    link.sample_rtt(sent.elapsed());
    Ok(())
}
