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
        Arc, Mutex, MutexGuard, PoisonError, TryLockError,
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

/// What all new clients together may use like this: one in so many of burst and rate, so that
/// sessions begun again and again bring nobody more than his share.
const NEWCOMERS: u64 = 8;

/// Accounts of clients that have gone, kept until what they have used is theirs again. Beyond it
/// those that owe least are forgotten. At 200 bytes each, and filled only by clients that each use
/// a good part of their burst.
const MAX_KEPT: usize = 4096;

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

    /// How long it takes until it is full, in nanoseconds.
    fn fills_in(&self, now: u64) -> u64 {
        self.full_at.load(Ordering::Relaxed).saturating_sub(now)
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

    /// How long it takes until nothing is left of what was used.
    fn fills_in(&self, now: u64) -> u64 {
        let lanes = [&self.from_client, &self.to_client];
        lanes
            .map(|lane| lane.bucket.fills_in(now))
            .into_iter()
            .fold(0, u64::max)
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
    /// Of clients with a tunnel, and of those that had one and have used much. Whoever ends his
    /// tunnels and comes back must not find his bucket full.
    accounts: Mutex<HashMap<ClientKey, Arc<Account>>>,
}

/// The total rate, and when it was last shared out: lanes by direction.
#[derive(Debug)]
struct Total {
    rate: Rate,
    next_round: AtomicU64,
    /// What new clients may use before their first round.
    newcomers: Bucket,
}

impl Total {
    /// The first flight of a new client.
    fn first_flight(&self, now: u64) -> u64 {
        let first = self.rate.burst_bytes.min(FIRST_FLIGHT);
        let rate = Rate {
            bytes_per_second: (self.rate.bytes_per_second / NEWCOMERS).max(1),
            burst_bytes: (self.rate.burst_bytes / NEWCOMERS).max(first),
        };
        let bytes = usize::try_from(first).unwrap_or(usize::MAX);
        if self.newcomers.take(rate, bytes, now) {
            first
        } else {
            0
        }
    }
}

impl Quotas {
    pub(crate) fn new(per_client: Option<Rate>, total: Option<Rate>) -> Self {
        Self {
            per_client,
            total: total.map(|rate| Total {
                rate,
                next_round: AtomicU64::new(0),
                newcomers: Bucket::default(),
            }),
            accounts: Mutex::default(),
        }
    }

    /// Whether there is anything to count; otherwise callers need not even know the time.
    pub(crate) fn is_unlimited(&self) -> bool {
        self.per_client.is_none() && self.total.is_none()
    }

    /// The account of a client, shared by all its tunnels, those before it among them.
    pub(crate) fn account(&self, key: ClientKey, now: u64) -> Arc<Account> {
        let mut accounts = lock(&self.accounts);
        if let Some(account) = accounts.get(&key) {
            return account.clone();
        }
        forget(&mut accounts, now);
        let account = Arc::new(Account::default());
        if let Some(total) = &self.total {
            let first = i64::try_from(total.first_flight(now)).unwrap_or(i64::MAX);
            account.from_client.share.store(first, Ordering::Relaxed);
            account.to_client.share.store(first, Ordering::Relaxed);
        }
        accounts.insert(key, account.clone());
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
        let live: Vec<_> = accounts
            .values()
            .filter(|account| is_used(account))
            .cloned()
            .collect();
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

/// Whether a client has a tunnel now.
fn is_used(account: &Arc<Account>) -> bool {
    Arc::strong_count(account) > 1
}

/// Forgets clients that have gone: those who owe nothing, and of the others those who owe least.
fn forget(accounts: &mut HashMap<ClientKey, Arc<Account>>, now: u64) {
    accounts.retain(|_, account| is_used(account) || account.fills_in(now) > 0);
    let mut gone: Vec<_> = accounts
        .iter()
        .filter(|(_, account)| !is_used(account))
        .map(|(key, account)| (account.fills_in(now), *key))
        .collect();
    if gone.len() > MAX_KEPT {
        gone.sort_unstable_by_key(|(owed, _)| *owed);
        for (_, key) in &gone[..gone.len() - MAX_KEPT] {
            accounts.remove(key);
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
mod tests;
