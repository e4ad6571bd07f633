//! The queue by itself: time is an argument, and nothing waits.

use anyreach_wire::capsule::{Decoder, Item};
use proptest::prelude::*;

use super::*;

const HEADER: usize = 3;

fn numbered(n: u32, length: usize) -> Vec<u8> {
    let mut payload = vec![0; length.max(4)];
    payload[..4].copy_from_slice(&n.to_be_bytes());
    payload
}

/// The numbers of the datagrams in these bytes, which must be whole capsules.
fn numbers(bytes: Bytes) -> Vec<u32> {
    let (mut bytes, mut decoder, mut numbers) = (bytes, Decoder::new(), Vec::new());
    while let Some(item) = decoder.next(&mut bytes).unwrap() {
        let Item::Datagram(datagram) = item else {
            panic!("{item:?}");
        };
        numbers.push(u32::from_be_bytes(datagram[..4].try_into().unwrap()));
    }
    decoder.finish().unwrap();
    numbers
}

#[test]
fn datagrams_are_cut_where_they_end() {
    let mut queue = Queue::default();
    let now = Instant::now();
    for n in 0..10 {
        queue.append(&[], &numbered(n, 1000), now);
    }
    let whole = 1000 + HEADER;
    // Less than one is one, exactly three are three, a byte less are two.
    for (most, expected) in [(1, 1), (3 * whole, 3), (3 * whole - 1, 2), (usize::MAX, 4)] {
        let taken = queue.take(most, now, MAX_AGE).unwrap();
        assert_eq!(numbers(taken).len(), expected);
    }
    assert_eq!(queue.take(usize::MAX, now, MAX_AGE), None);
    assert_eq!((queue.cost, queue.dropped), (0, 0));
    assert!(queue.segments.is_empty() && queue.datagrams.is_empty());
}

#[test]
fn age_is_judged_when_there_is_room_to_send() {
    let mut queue = Queue::default();
    let start = Instant::now();
    for n in 0..10 {
        queue.append(
            &[],
            &numbered(n, 100),
            start + n * Duration::from_millis(10),
        );
    }
    let now = start + Duration::from_millis(150);
    let taken = queue
        .take(usize::MAX, now, Duration::from_millis(100))
        .unwrap();
    assert_eq!(numbers(taken), [5, 6, 7, 8, 9]);
    assert_eq!((queue.cost, queue.dropped), (0, 5));
    queue.append(&[], &numbered(10, 100), now);
    let later = now + Duration::from_secs(1);
    assert_eq!(queue.take(usize::MAX, later, MAX_AGE), None);
    assert_eq!((queue.cost, queue.dropped), (0, 6));
}

#[test]
fn empty_datagrams_are_bounded_too() {
    let mut queue = Queue::default();
    let now = Instant::now();
    for _ in 0..1_000_000 {
        queue.append(&[], &[], now);
    }
    assert!(queue.datagrams.len() <= MAX_BYTES / OVERHEAD);
    assert!(queue.dropped > 900_000);
}

#[test]
fn capsules_go_first_and_together_as_far_as_they_fit() {
    let mut queue = Queue::default();
    let now = Instant::now();
    queue.append(&[], &numbered(7, 10), now);
    for n in 0..5_u8 {
        queue.capsules.push_back(Bytes::copy_from_slice(&[n; 10]));
    }
    for (most, expected) in [(35, 30), (1, 10), (1000, 10)] {
        assert_eq!(queue.take(most, now, MAX_AGE).unwrap().len(), expected);
    }
    assert_eq!(numbers(queue.take(1, now, MAX_AGE).unwrap()), [7]);
}

#[test]
fn a_tunnel_that_is_shut_forgets_and_refuses() {
    let out = Outgoing::new(Link::new());
    out.send_datagram(b"head", b"payload").unwrap();
    out.shut();
    assert_eq!(out.take(usize::MAX, Instant::now()), None);
    assert_eq!(out.send_datagram(b"", b""), Err(DatagramError::Closed));
    assert_eq!(out.send_capsule(Bytes::new()), Err(CapsuleError::Closed));
    let cx = &mut Context::from_waker(Waker::noop());
    assert_eq!(out.next(cx), Next::Finished);
}

#[test]
fn the_end_comes_after_what_waits_and_a_violation_before() {
    let out = Outgoing::new(Link::new());
    let cx = &mut Context::from_waker(Waker::noop());
    assert_eq!(out.next(cx), Next::Wait);
    out.send_datagram(b"", b"last words").unwrap();
    out.close(Close::Done);
    assert!(matches!(out.next(cx), Next::Send(_)));
    assert_eq!(out.send_datagram(b"", b""), Err(DatagramError::Closed));
    out.take(usize::MAX, Instant::now()).unwrap();
    assert_eq!(out.next(cx), Next::Finished);
    out.close(Close::DatagramError);
    assert_eq!(out.next(cx), Next::Abort);
    out.close(Close::Done);
    assert_eq!(out.next(cx), Next::Abort);
}

proptest! {
    /// Whatever is put in and taken out in whatever pieces: whole datagrams, in order, none twice,
    /// none lost without being counted, and no more than may wait.
    #[test]
    fn order_and_bounds(steps in prop::collection::vec(
        prop_oneof![
            4 => (1_usize..9000).prop_map(Step::Append),
            1 => (40_000_usize..MAX_DATAGRAM).prop_map(Step::Append),
            2 => (0_usize..100_000).prop_map(Step::Take),
            1 => (0_u64..80).prop_map(Step::Pass),
        ],
        0..400,
    )) {
        let mut queue = Queue::default();
        let mut now = Instant::now();
        let (mut sent, mut received) = (0, Vec::new());
        let mut take = |queue: &mut Queue, most, now| match queue.take(most, now, MAX_AGE) {
            Some(bytes) => {
                let length = bytes.len();
                let taken = numbers(bytes);
                assert!(length <= most || taken.len() == 1);
                received.extend(taken);
                true
            }
            None => false,
        };
        for step in steps {
            match step {
                Step::Append(length) => {
                    queue.append(&[], &numbered(sent, length), now);
                    sent += 1;
                }
                Step::Take(most) => {
                    take(&mut queue, most, now);
                }
                Step::Pass(ms) => now += Duration::from_millis(ms),
            }
            prop_assert!(queue.cost <= MAX_BYTES);
            let held: usize = queue.segments.iter().map(BytesMut::len).sum();
            let waiting: usize = queue.datagrams.iter().map(|waiting| waiting.length).sum();
            prop_assert_eq!(held, waiting);
            let reserved: usize = queue.segments.iter().map(BytesMut::capacity).sum();
            prop_assert!(reserved <= 2 * MAX_BYTES + 2 * SEGMENT, "{} reserved", reserved);
        }
        while take(&mut queue, usize::MAX, now) {}
        prop_assert_eq!(queue.cost, 0);
        prop_assert!(received.is_sorted_by(|a, b| a < b));
        prop_assert_eq!(received.len() as u64 + queue.dropped, u64::from(sent));
    }
}

#[derive(Debug, Clone)]
enum Step {
    Append(usize),
    Take(usize),
    Pass(u64),
}
