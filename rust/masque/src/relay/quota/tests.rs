use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const MS: u64 = 1_000_000;
const SECOND: u64 = 1000 * MS;

fn key(number: u8) -> ClientKey {
    ClientKey::Peer(PeerId([number; 32]))
}

fn rate(bytes_per_second: u64, burst: u64) -> Option<Rate> {
    Some(Rate::new(bytes_per_second, burst).expect("above 0"))
}

#[test]
fn without_limits_nothing_is_counted() {
    let quotas = Quotas::new(Rate::new(0, 9), None);
    assert!(quotas.is_unlimited());
    let account = quotas.account(key(1), 0);
    for _ in 0..1000 {
        assert_eq!(
            quotas.take(&account, Direction::ToClient, 1 << 16, 0),
            Ok(())
        );
    }
}

#[test]
fn a_client_has_one_account_however_many_tunnels() {
    let quotas = Quotas::new(rate(1000, 1000), None);
    let (one, two) = (quotas.account(key(1), 0), quotas.account(key(1), 0));
    assert_eq!(quotas.take(&one, Direction::ToClient, 1000, 0), Ok(()));
    assert_eq!(
        quotas.take(&two, Direction::ToClient, 1, 0),
        Err(OverQuota::Client)
    );
    assert_eq!(quotas.take(&two, Direction::FromClient, 1000, 0), Ok(()));
    let other = quotas.account(key(2), 0);
    assert_eq!(quotas.take(&other, Direction::ToClient, 1000, 0), Ok(()));
}

#[test]
fn accounts_go_with_the_last_tunnel() {
    let quotas = Quotas::new(rate(1, 1), None);
    for last in 0..100 {
        let prefix = Prefix::source(IpAddr::from([10, 0, last, 1]));
        drop(quotas.account(ClientKey::Anonymous(prefix), 0));
    }
    assert!(lock(&quotas.accounts).len() <= 1);
}

/// A bucket that was full again with every new tunnel would be no limit: a tunnel costs a
/// round trip.
#[test]
fn coming_back_does_not_fill_the_bucket() {
    let quotas = Quotas::new(rate(1000, 1000), None);
    let mut passed = 0;
    for visit in 0..100 {
        let now = visit * 10 * MS;
        let account = quotas.account(key(1), now);
        while quotas
            .take(&account, Direction::FromClient, 10, now)
            .is_ok()
        {
            passed += 10;
        }
    }
    assert!(
        (1000..=2000).contains(&passed),
        "{passed} bytes in a second"
    );
    let others = quotas.account(key(2), 3 * SECOND);
    assert_eq!(lock(&quotas.accounts).len(), 1, "it owes nothing any more");
    drop(others);
}

#[test]
fn new_clients_have_their_share_of_the_total_together() {
    let quotas = Quotas::new(None, rate(1_000_000, 800_000));
    let mut passed = 0;
    for visit in 0..1000 {
        // Within one round.
        let account = quotas.account(key((visit % 250) as u8), 0);
        while quotas
            .take(&account, Direction::FromClient, 1000, 0)
            .is_ok()
        {
            passed += 1000;
        }
    }
    assert!(
        passed <= 800_000 / 8 + 1_000_000 / 100 + 250_000,
        "{passed}"
    );
}

#[test]
fn what_is_kept_of_clients_that_have_gone_is_bounded() {
    let quotas = Quotas::new(rate(1, 1_000_000), None);
    for number in 0..MAX_KEPT + 100 {
        let mut id = [0; 32];
        id[..8].copy_from_slice(&number.to_be_bytes());
        let account = quotas.account(ClientKey::Peer(PeerId(id)), 0);
        assert!(
            quotas
                .take(&account, Direction::FromClient, 1 + number, 0)
                .is_ok()
        );
    }
    assert!(lock(&quotas.accounts).len() <= MAX_KEPT + 1);
}

#[test]
fn a_quiet_relay_gives_one_client_everything() {
    let quotas = Quotas::new(None, rate(1_000_000, 100_000));
    let busy = quotas.account(key(1), 0);
    let _idle: Vec<_> = (2..12)
        .map(|number| quotas.account(key(number), 0))
        .collect();
    let mut passed = 0;
    for step in 0..10_000 {
        let now = step * SECOND / 1000;
        if quotas.take(&busy, Direction::FromClient, 1000, now).is_ok() {
            passed += 1000;
        }
    }
    // Offered 1 MB/s for ten seconds at a total of 1 MB/s.
    assert!(passed >= 9_000_000, "{passed}");
}

#[test]
fn a_new_client_is_heard_between_rounds() {
    let quotas = Quotas::new(None, rate(1_000_000, 60_000));
    let busy = quotas.account(key(1), 0);
    while quotas.take(&busy, Direction::ToClient, 1000, SECOND) == Ok(()) {}
    let new = quotas.account(key(2), SECOND + 1);
    let taken = quotas.take(&new, Direction::ToClient, 1200, SECOND + 1);
    assert_eq!(taken, Ok(()));
}

#[test]
fn a_busy_relay_divides_evenly_and_favours_those_who_want_little() {
    let quotas = Quotas::new(None, rate(1_000_000, 60_000));
    // One flood, one that wants 600 kB/s, one that wants 100 kB/s; every millisecond.
    let wants = [10_000, 600, 100];
    let accounts: Vec<_> = (0..3)
        .map(|number| quotas.account(key(number), 0))
        .collect();
    let mut passed = [0_usize; 3];
    for step in 0..10_000 {
        for (client, want) in wants.into_iter().enumerate() {
            for _ in 0..want / 100 {
                let taken = quotas.take(&accounts[client], Direction::ToClient, 100, step * MS);
                passed[client] += usize::from(taken.is_ok()) * 100;
            }
        }
    }
    let per_second = passed.map(|bytes| bytes / 10);
    assert!(
        (98_000..=100_000).contains(&per_second[2]),
        "{per_second:?}"
    );
    assert!(
        (430_000..=470_000).contains(&per_second[1]),
        "{per_second:?}"
    );
    assert!(
        (430_000..=470_000).contains(&per_second[0]),
        "{per_second:?}"
    );
}

proptest! {
    #[test]
    fn a_bucket_never_exceeds_burst_and_rate(
        bytes_per_second in 1_u64..10_000_000,
        burst in 1_u64..1_000_000,
        steps in prop::collection::vec((0_u64..50_000_000, 0_usize..70_000), 1..200),
    ) {
        let rate = Rate::new(bytes_per_second, burst).expect("above 0");
        let bucket = Bucket::default();
        let (mut now, mut passed) = (0, 0_u128);
        for (pause, bytes) in steps {
            now += pause;
            if bucket.take(rate, bytes, now) {
                passed += bytes as u128;
            }
            let earned = u128::from(bytes_per_second) * u128::from(now) / NANOS_PER_SECOND;
            // Each cost is rounded down to a nanosecond.
            let rounding = u128::from(bytes_per_second) * 200 / NANOS_PER_SECOND + 1;
            prop_assert!(passed <= u128::from(burst) + earned + rounding);
        }
    }

    #[test]
    fn the_total_is_never_exceeded(
        clients in 1_u8..20,
        burst in 1_u64..200_000,
        steps in prop::collection::vec((0_u64..20 * MS, 0_u8..20, 1_usize..2_000), 1..400),
    ) {
        let bytes_per_second = 500_000;
        let quotas = Quotas::new(None, rate(bytes_per_second, burst));
        let accounts: Vec<_> = (0..clients).map(|number| quotas.account(key(number), 0)).collect();
        let (mut now, mut passed) = (0, 0);
        for (pause, client, bytes) in steps {
            now += pause;
            let account = &accounts[usize::from(client % clients)];
            if quotas.take(account, Direction::FromClient, bytes, now).is_ok() {
                passed += bytes as u64;
            }
            let earned = bytes_per_second * (now + ROUND_NANOS) / SECOND;
            let overdrawn = u64::from(clients) * (2_001 + FIRST_FLIGHT);
            prop_assert!(passed <= burst + earned + overdrawn);
        }
    }

    #[test]
    fn dealing_is_fair(
        held in prop::collection::vec(-2_000_i64..50_000, 1..30),
        available in 0_i64..500_000,
        burst in 1_u64..1_000_000,
    ) {
        let shares: Vec<_> = held.iter().map(|bytes| AtomicI64::new(*bytes)).collect();
        deal(&shares.iter().collect::<Vec<_>>(), available, burst);
        let cap = (burst as i64 / held.len() as i64).max(1);
        let after: Vec<_> = shares.iter().map(|share| share.load(Ordering::Relaxed)).collect();
        let given: Vec<_> =
            held.iter().zip(&after).map(|(before, after)| after - before.min(&cap)).collect();
        prop_assert!(given.iter().all(|bytes| *bytes >= 0));
        prop_assert!(given.iter().sum::<i64>() <= available);
        prop_assert!(after.iter().all(|bytes| *bytes <= cap));
        // Whoever is not full got no less than anybody else, but for the odd byte.
        let most = given.iter().max().copied().unwrap_or(0);
        for (after, given) in after.iter().zip(&given) {
            prop_assert!(*after == cap || most - given <= 1);
        }
    }
}
