//! How many bytes a client may have relayed: a bucket of its own, and its share of the total.
//!
//! Both only ever say yes or no. Nothing waits here, because what runs inside a tunnel is a
//! congestion-controlled connection that slows down when it sees loss, and only then.
//!
//! Each direction is counted by itself: a flood from outside towards a client's address cannot use
//! up what the client may send. Time is an argument, in nanoseconds since the relay began.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError, TryLockError, Weak,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
};

use anyreach_quic::PeerId;

use super::prefix::Prefix;

const NANOS_PER_SECOND: u128 = 1_000_000_000;

/// How often the total is shared out. Short against the round trips of what runs inside, so that
/// shares look like a rate; long enough that sharing out costs nothing.
const ROUND_NANOS: u64 = 5_000_000;

/// What a new client may use before the next round: a first flight, which must not be lost only
/// because others have just been given everything.
const FIRST_FLIGHT: u64 = 16 << 10;

/// Whose bytes are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum ClientKey {
    /// A node that proved who it is.
    Peer(PeerId),
    /// Everybody without an identity behind the same prefix.
    Anonymous(Prefix),
}

/// Which way a datagram goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Direction {
    FromClient,
    ToClient,
}

/// A rate with the burst that may exceed it. Made only for rates above 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Rate {
    bytes_per_second: u64,
    burst_bytes: u64,
}

impl Rate {
    /// `None` if `bytes_per_second` is 0, which means without limit.
    pub(crate) fn new(bytes_per_second: u64, burst_bytes: u64) -> Option<Self> {
        (bytes_per_second > 0).then_some(Self {
            bytes_per_second,
            burst_bytes,
        })
    }

    /// How long it takes for this many bytes to become available.
    fn nanos(self, bytes: u64) -> u64 {
        let nanos = u128::from(bytes) * NANOS_PER_SECOND / u128::from(self.bytes_per_second);
        u64::try_from(nanos).unwrap_or(u64::MAX)
    }

    /// How many bytes become available in this time.
    fn bytes(self, nanos: u64) -> i64 {
        let bytes = u128::from(self.bytes_per_second) * u128::from(nanos) / NANOS_PER_SECOND;
        i64::try_from(bytes).unwrap_or(i64::MAX)
    }
}

/// A token bucket in one number: the time at which it will be full again (the generic cell rate
/// algorithm). Never lets through more than burst + rate x time in any interval.
#[derive(Debug, Default)]
pub(crate) struct Bucket {
    full_at: AtomicU64,
}

impl Bucket {
    fn take(&self, rate: Rate, bytes: usize, now: u64) -> bool {
        let cost = rate.nanos(bytes as u64);
        let depth = rate.nanos(rate.burst_bytes);
        self.full_at
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |full_at| {
                let full_at = full_at.max(now).saturating_add(cost);
                (full_at - now <= depth).then_some(full_at)
            })
            .is_ok()
    }
}

/// One direction of one client.
#[derive(Debug, Default)]
struct Lane {
    bucket: Bucket,
    /// Bytes of the total given to this client and not yet used. Below zero by at most the one
    /// datagram that used it up.
    share: AtomicI64,
}

/// What a client may have relayed, over all its tunnels.
#[derive(Debug, Default)]
pub(crate) struct Account {
    from_client: Lane,
    to_client: Lane,
}

impl Account {
    fn lane(&self, direction: Direction) -> &Lane {
        match direction {
            Direction::FromClient => &self.from_client,
            Direction::ToClient => &self.to_client,
        }
    }
}

/// Why bytes are not relayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OverQuota {
    /// The client has used what one client may.
    Client,
    /// The relay is busy, and the client has used its share.
    Total,
}

/// The limits in force and everybody's accounts.
#[derive(Debug)]
pub(crate) struct Quotas {
    per_client: Option<Rate>,
    total: Option<Total>,
    accounts: Mutex<HashMap<ClientKey, Weak<Account>>>,
}

/// The total rate, and when it was last shared out: lanes by direction.
#[derive(Debug)]
struct Total {
    rate: Rate,
    next_round: AtomicU64,
}

impl Quotas {
    pub(crate) fn new(per_client: Option<Rate>, total: Option<Rate>) -> Self {
        Self {
            per_client,
            total: total.map(|rate| Total {
                rate,
                next_round: AtomicU64::new(0),
            }),
            accounts: Mutex::default(),
        }
    }

    /// Whether there is anything to count; otherwise callers need not even know the time.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.per_client.is_none() && self.total.is_none()
    }

    /// The account of a client, shared by all its tunnels.
    pub(crate) fn account(&self, key: ClientKey) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        if let Some(account) = accounts.get(&key).and_then(Weak::upgrade) {
            return account;
        }
        accounts.retain(|_, account| account.strong_count() > 0);
        let account = Arc::new(Account::default());
        if let Some(total) = &self.total {
            let first = total.rate.burst_bytes.min(FIRST_FLIGHT) as i64;
            account.from_client.share.store(first, Ordering::Relaxed);
            account.to_client.share.store(first, Ordering::Relaxed);
        }
        accounts.insert(key, Arc::downgrade(&account));
        account
    }

    /// Takes `bytes` from what the client may use.
    ///
    /// # Errors
    /// [`OverQuota`]: nothing was taken.
    pub(crate) fn take(
        &self,
        account: &Account,
        direction: Direction,
        bytes: usize,
        now: u64,
    ) -> Result<(), OverQuota> {
        let lane = account.lane(direction);
        if let Some(total) = &self.total {
            self.share_out(total, now);
            if lane.share.load(Ordering::Relaxed) <= 0 {
                return Err(OverQuota::Total);
            }
        }
        if let Some(rate) = self.per_client
            && !lane.bucket.take(rate, bytes, now)
        {
            return Err(OverQuota::Client);
        }
        if self.total.is_some() {
            let bytes = i64::try_from(bytes).unwrap_or(i64::MAX);
            lane.share.fetch_sub(bytes, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Gives out what has become available since the last round. Only one caller per round does
    /// it, and the others do not wait for it.
    fn share_out(&self, total: &Total, now: u64) {
        let due = total.next_round.load(Ordering::Relaxed);
        if now < due {
            return;
        }
        let accounts = match self.accounts.try_lock() {
            Ok(accounts) => accounts,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return,
        };
        // Under the lock: whoever came second sees the new time.
        if total.next_round.load(Ordering::Relaxed) != due {
            return;
        }
        let since = due.saturating_sub(ROUND_NANOS);
        total.next_round.store(now + ROUND_NANOS, Ordering::Relaxed);
        let live: Vec<_> = accounts.values().filter_map(Weak::upgrade).collect();
        drop(accounts);
        let available = total.rate.bytes(now.saturating_sub(since));
        for direction in [Direction::FromClient, Direction::ToClient] {
            let shares = live.iter().map(|account| &account.lane(direction).share);
            deal(
                &shares.collect::<Vec<_>>(),
                available,
                total.rate.burst_bytes,
            );
        }
    }
}

/// Deals `available` bytes evenly to those who can still take some: nobody holds more than his part
/// of `burst`. What one cannot take goes to the others, so a client that wants less than an even
/// share gets what it wants and those that want more divide the rest evenly (max-min fairness).
/// What nobody can take is lost.
///
/// All shares together therefore never exceed `burst`, and the bytes that pass in any time are at
/// most burst + rate x time, and one datagram and one first flight per client.
fn deal(shares: &[&AtomicI64], mut available: i64, burst: u64) {
    let mut takers = shares.to_vec();
    let parts = i64::try_from(shares.len().max(1)).unwrap_or(i64::MAX);
    let cap = (i64::try_from(burst).unwrap_or(i64::MAX) / parts).max(1);
    // With more clients than before everybody's part is smaller.
    for share in shares {
        share.fetch_min(cap, Ordering::Relaxed);
    }
    while available > 0 && !takers.is_empty() {
        let each = (available / i64::try_from(takers.len()).unwrap_or(i64::MAX)).max(1);
        takers.retain(|share| {
            // A datagram may leave meanwhile; that only makes room which is filled next time.
            let room = cap - share.load(Ordering::Relaxed);
            let given = room.min(each).min(available).max(0);
            share.fetch_add(given, Ordering::Relaxed);
            available -= given;
            given < room
        });
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A map of weak references is whole at every step.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
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
        let account = quotas.account(key(1));
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
        let (one, two) = (quotas.account(key(1)), quotas.account(key(1)));
        assert_eq!(quotas.take(&one, Direction::ToClient, 1000, 0), Ok(()));
        assert_eq!(
            quotas.take(&two, Direction::ToClient, 1, 0),
            Err(OverQuota::Client)
        );
        assert_eq!(quotas.take(&two, Direction::FromClient, 1000, 0), Ok(()));
        let other = quotas.account(key(2));
        assert_eq!(quotas.take(&other, Direction::ToClient, 1000, 0), Ok(()));
    }

    #[test]
    fn accounts_go_with_the_last_tunnel() {
        let quotas = Quotas::new(rate(1, 1), None);
        for last in 0..100 {
            let prefix = Prefix::source(IpAddr::from([10, 0, last, 1]));
            drop(quotas.account(ClientKey::Anonymous(prefix)));
        }
        assert!(lock(&quotas.accounts).len() <= 1);
    }

    #[test]
    fn a_quiet_relay_gives_one_client_everything() {
        let quotas = Quotas::new(None, rate(1_000_000, 100_000));
        let busy = quotas.account(key(1));
        let _idle: Vec<_> = (2..12).map(|number| quotas.account(key(number))).collect();
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
        let busy = quotas.account(key(1));
        while quotas.take(&busy, Direction::ToClient, 1000, SECOND) == Ok(()) {}
        let new = quotas.account(key(2));
        let taken = quotas.take(&new, Direction::ToClient, 1200, SECOND + 1);
        assert_eq!(taken, Ok(()));
    }

    #[test]
    fn a_busy_relay_divides_evenly_and_favours_those_who_want_little() {
        let quotas = Quotas::new(None, rate(1_000_000, 60_000));
        // One flood, one that wants 600 kB/s, one that wants 100 kB/s; every millisecond.
        let wants = [10_000, 600, 100];
        let accounts: Vec<_> = (0..3).map(|number| quotas.account(key(number))).collect();
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
            let accounts: Vec<_> = (0..clients).map(|number| quotas.account(key(number))).collect();
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
}
