//! Happy Eyeballs (RFC 8305): several ways to one end, each with a head start over the next. Knows
//! nothing of what is tried.

use std::{
    collections::VecDeque,
    future::{Future, poll_fn},
    net::SocketAddr,
    pin::Pin,
    task::Poll,
    time::Duration,
};

use tokio::time::{Instant, sleep_until};

/// Head start of one address over the next: the Connection Attempt Delay (section 5).
pub(crate) const ATTEMPT_DELAY: Duration = Duration::from_millis(250);

/// Addresses of one relay tried at most: two families, a few each. More are a sign of nothing good.
const MAX_ADDRESSES: usize = 8;

/// The families in turn, that of the first address first (section 4); at most [`MAX_ADDRESSES`].
pub(crate) fn interleaved(addresses: &[SocketAddr]) -> Vec<SocketAddr> {
    let first_is_v4 = addresses.first().is_some_and(SocketAddr::is_ipv4);
    let of = |v4: bool| addresses.iter().filter(move |addr| addr.is_ipv4() == v4);
    let (mut first, mut second) = (of(first_is_v4), of(!first_is_v4));
    let mut order = Vec::new();
    loop {
        let pair = [first.next(), second.next()];
        order.extend(pair.into_iter().flatten());
        if pair == [None, None] || order.len() >= MAX_ADDRESSES {
            order.truncate(MAX_ADDRESSES);
            return order;
        }
    }
}

/// What came of it.
#[derive(Debug)]
pub(crate) struct Outcome<T, E> {
    /// The first lane that succeeded, by its place in the list.
    pub(crate) won: Option<(usize, T)>,
    /// Lanes that had failed by then, in the order in which they did.
    pub(crate) failed: Vec<(usize, E)>,
}

/// Starts the lanes one after the other, at their offsets from the beginning, until one succeeds.
///
/// A lane that fails starts the next at once, and those after it as much earlier; so does an offset
/// of the first one, since nothing is gained by waiting while nothing runs. What has not finished
/// when another succeeds, or when this future is dropped, is dropped.
pub(crate) async fn first_success<F, T, E>(lanes: Vec<(Duration, F)>) -> Outcome<T, E>
where
    F: Future<Output = Result<T, E>>,
{
    let mut waiting: VecDeque<(usize, Duration, F)> = lanes
        .into_iter()
        .enumerate()
        .map(|(lane, (offset, future))| (lane, offset, future))
        .collect();
    let mut running: Vec<(usize, Pin<Box<F>>)> = Vec::with_capacity(waiting.len());
    let mut failed = Vec::new();
    // When the last lane was started, and what its offset was.
    let mut last = (Instant::now(), Duration::ZERO);
    let mut start_now = true;
    loop {
        let due = waiting
            .front()
            .map(|(_, offset, _)| last.0 + offset.saturating_sub(last.1));
        let is_due = due.is_some_and(|due| start_now || due <= Instant::now());
        if is_due && let Some((lane, offset, future)) = waiting.pop_front() {
            running.push((lane, Box::pin(future)));
            last = (Instant::now(), offset);
            start_now = false;
            continue;
        }
        if running.is_empty() {
            return Outcome { won: None, failed };
        }
        tokio::select! {
            biased;
            (lane, result) = any_of(&mut running) => match result {
                Ok(value) => return Outcome { won: Some((lane, value)), failed },
                Err(error) => {
                    failed.push((lane, error));
                    start_now = true;
                }
            },
            () = sleep_until(due.unwrap_or(last.0)), if due.is_some() => {}
        }
    }
}

/// The first of these futures that is ready, the earlier one if there are several; takes it out.
async fn any_of<F: Future>(running: &mut Vec<(usize, Pin<Box<F>>)>) -> (usize, F::Output) {
    poll_fn(|context| {
        for place in 0..running.len() {
            if let Poll::Ready(output) = running[place].1.as_mut().poll(context) {
                let (lane, _) = running.remove(place);
                return Poll::Ready((lane, output));
            }
        }
        Poll::Pending
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn families_take_turns() {
        let order = |list: &[&str]| -> Vec<String> {
            let addresses: Vec<SocketAddr> = list
                .iter()
                .map(|text| text.parse().expect("an address"))
                .collect();
            interleaved(&addresses)
                .iter()
                .map(ToString::to_string)
                .collect()
        };
        let (six, four) = (["[::1]:1", "[::2]:1", "[::3]:1"], "192.0.2.1:1");
        assert_eq!(
            order(&[six[0], six[1], six[2], four]),
            [six[0], four, six[1], six[2]]
        );
        assert_eq!(order(&[four, six[0]]), [four, six[0]]);
        assert!(order(&[]).is_empty());
        assert_eq!(order(&[four; 20]).len(), MAX_ADDRESSES);
    }

    const MS: Duration = Duration::from_millis(1);

    /// Ends after `ms` and tells when it began and ended, in ms.
    async fn lane(begun: Instant, ms: u32, good: bool) -> Result<(u128, u128), (u128, u128)> {
        let started = begun.elapsed().as_millis();
        tokio::time::sleep(ms * MS).await;
        let times = (started, begun.elapsed().as_millis());
        if good { Ok(times) } else { Err(times) }
    }

    async fn run(lanes: &[(u32, u32, bool)]) -> Outcome<(u128, u128), (u128, u128)> {
        let begun = Instant::now();
        let lanes = lanes
            .iter()
            .map(|&(offset, ms, good)| (offset * MS, lane(begun, ms, good)))
            .collect();
        first_success(lanes).await
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_to_succeed_wins_whenever_it_was_started() {
        let outcome = run(&[(0, 1000, true), (250, 100, true), (500, 1, true)]).await;
        assert_eq!(outcome.won, Some((1, (250, 350))));
        assert!(outcome.failed.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn a_head_start_is_enough_for_who_is_fast() {
        let outcome = run(&[(0, 200, true), (250, 1, true)]).await;
        assert_eq!(outcome.won, Some((0, (0, 200))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_failure_starts_the_next_at_once_and_the_others_earlier() {
        let outcome = run(&[(0, 50, false), (250, 900, true), (350, 10, true)]).await;
        assert_eq!(outcome.failed, [(0, (0, 50))]);
        assert_eq!(outcome.won, Some((2, (150, 160))));
    }

    #[tokio::test(start_paused = true)]
    async fn every_failure_is_told_in_its_order() {
        let outcome = run(&[(0, 500, false), (100, 50, false), (900, 10, false)]).await;
        assert_eq!(outcome.won, None);
        let lanes: Vec<usize> = outcome.failed.iter().map(|(lane, _)| *lane).collect();
        assert_eq!(lanes, [1, 2, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_waits_while_nothing_runs() {
        let outcome = run(&[(5000, 10, false), (9000, 10, true)]).await;
        assert_eq!(outcome.won, Some((1, (10, 20))));
        let outcome = run(&[]).await;
        assert!(outcome.won.is_none() && outcome.failed.is_empty());
    }
}
