//! The remotes of one tunnel and the numbers the engine knows them by. Sans-I/O: time is an
//! argument.

use std::{
    collections::HashMap,
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyreach_net::canonical;
use rustc_hash::FxHashMap;

/// Remotes one tunnel remembers: twice the contexts it may have, so that those beyond (which cost
/// 19 bytes more a datagram) are not forgotten at once. At 100 bytes each, cheap.
pub const MAX_REMOTES: usize = 256;

/// A remote that counts as in use is kept for this long after its last datagram: above the idle
/// timeout of connections (50 s), so that nothing that lives is silent for so long.
pub const REMOTE_IDLE: Duration = Duration::from_secs(60);

/// Datagrams with a short header (RFC 9000, section 17.3) sent to a remote that make it one in use.
/// A server sends few of them before the client has proved that it is where it says (section 8.1
/// leaves no room for more), so a flood of forged sources never gets that far.
const PROVEN_AFTER: u8 = 8;

/// How often the context table is asked for a context on behalf of a remote that sends: a context
/// that was lost is back before the larger header has cost anything to speak of.
const ASK_INTERVAL: Duration = Duration::from_secs(1);

/// What one index stands for.
#[derive(Debug)]
pub(super) struct Remote {
    pub(super) addr: SocketAddr,
    /// Somebody here asked for it by address.
    dialed: bool,
    /// Datagrams with a short header sent there, up to [`PROVEN_AFTER`].
    spoken: u8,
    last: Instant,
    /// When a context for it was last asked for on sending.
    asked: Option<Instant>,
}

impl Remote {
    /// Whether a connection goes there, as far as can be told from outside.
    pub(super) fn proven(&self) -> bool {
        self.dialed || self.spoken == PROVEN_AFTER
    }

    /// Whether to ask for a context of its own, if it has none. Not with every packet: who was
    /// told no is told so again.
    pub(super) fn wants_context(&mut self, now: Instant) -> bool {
        let wants = self.proven()
            && self
                .asked
                .is_none_or(|asked| now.saturating_duration_since(asked) >= ASK_INTERVAL);
        if wants {
            self.asked = Some(now);
        }
        wants
    }

    /// Whether something was sent or received lately.
    pub(super) fn is_active(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.last) < REMOTE_IDLE
    }
}

/// Every remote that could make room for another is in use.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{MAX_REMOTES} remotes of this tunnel are in use")]
pub struct RemotesFull;

/// What adding a remote did.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) index: u32,
    /// It was not there before.
    pub(super) added: bool,
    /// This number had to go for it.
    pub(super) evicted: Option<u32>,
}

/// Remotes by number and by address. Numbers are not used twice, so a late datagram for a remote
/// that was forgotten cannot reach another one.
#[derive(Debug, Default)]
pub(super) struct Remotes {
    /// The numbers are ours, so that nobody can make them collide.
    by_index: FxHashMap<u32, Remote>,
    by_addr: HashMap<SocketAddr, u32>,
    next: u32,
}

impl Remotes {
    /// The number for a remote somebody here wants to talk to.
    pub(super) fn dialed(&mut self, addr: SocketAddr, now: Instant) -> Result<Found, RemotesFull> {
        let found = self.source(addr, now)?;
        if let Some(remote) = self.by_index.get_mut(&found.index) {
            remote.dialed = true;
        }
        Ok(found)
    }

    /// The number for a remote something came from.
    pub(super) fn source(&mut self, addr: SocketAddr, now: Instant) -> Result<Found, RemotesFull> {
        let addr = canonical(addr);
        if let Some(&index) = self.by_addr.get(&addr) {
            if let Some(remote) = self.by_index.get_mut(&index) {
                remote.last = now;
            }
            return Ok(Found {
                index,
                added: false,
                evicted: None,
            });
        }
        let evicted = match self.by_index.len() < MAX_REMOTES {
            true => None,
            false => Some(self.evict(now).ok_or(RemotesFull)?),
        };
        let index = self.next;
        // 2^32 remotes of one tunnel: at one every microsecond, after 71 minutes of a flood.
        self.next = self.next.checked_add(1).ok_or(RemotesFull)?;
        self.by_addr.insert(addr, index);
        self.by_index.insert(
            index,
            Remote {
                addr,
                dialed: false,
                spoken: 0,
                last: now,
                asked: None,
            },
        );
        Ok(Found {
            index,
            added: true,
            evicted,
        })
    }

    /// The remote a datagram is about to be sent to.
    pub(super) fn sending(
        &mut self,
        index: u32,
        datagram: &[u8],
        now: Instant,
    ) -> Option<&mut Remote> {
        let remote = self.by_index.get_mut(&index)?;
        remote.last = now;
        let short_header = datagram.first().is_some_and(|first| first & 0x80 == 0);
        if short_header && remote.spoken < PROVEN_AFTER {
            remote.spoken += 1;
        }
        Some(remote)
    }

    #[cfg(test)]
    fn addr(&self, index: u32) -> Option<SocketAddr> {
        Some(self.by_index.get(&index)?.addr)
    }

    /// Those with a connection that may live, the one used last first.
    pub(super) fn in_use(&self, now: Instant) -> Vec<SocketAddr> {
        let mut remotes: Vec<&Remote> = self
            .by_index
            .values()
            .filter(|remote| remote.proven() && remote.is_active(now))
            .collect();
        remotes.sort_unstable_by_key(|remote| std::cmp::Reverse(remote.last));
        remotes.into_iter().map(|remote| remote.addr).collect()
    }

    pub(super) fn len(&self) -> usize {
        self.by_index.len()
    }

    /// Forgets the one that was used least recently, of those not in use.
    fn evict(&mut self, now: Instant) -> Option<u32> {
        let (&index, _) = self
            .by_index
            .iter()
            .filter(|(_, remote)| !(remote.proven() && remote.is_active(now)))
            .min_by_key(|(_, remote)| remote.last)?;
        let remote = self.by_index.remove(&index)?;
        self.by_addr.remove(&remote.addr);
        Some(index)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Op {
        Source(usize),
        Dial(usize),
        /// To the remote that was numbered so many before the last.
        Send(u32, u8),
        Wait(u16),
    }

    fn op() -> impl Strategy<Value = Op> {
        let remote = 0..3 * MAX_REMOTES;
        prop_oneof![
            8 => remote.clone().prop_map(Op::Source),
            1 => remote.prop_map(Op::Dial),
            4 => (0..64_u32, 0..12_u8).prop_map(|(back, times)| Op::Send(back, times)),
            1 => (0..2_000_u16).prop_map(Op::Wait),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn numbers_mean_one_remote_for_ever_and_nobody_in_use_is_forgotten(
            ops in proptest::collection::vec(op(), 0..2_000),
        ) {
            let mut now = Instant::now();
            let mut remotes = Remotes::default();
            let mut given: HashMap<u32, SocketAddr> = HashMap::new();
            let mut gone: HashSet<u32> = HashSet::new();
            for op in ops {
                let in_use = remotes.in_use(now);
                let (found, number) = match op {
                    Op::Source(number) => (remotes.source(addr(number), now), number),
                    Op::Dial(number) => (remotes.dialed(addr(number), now), number),
                    Op::Send(back, times) => {
                        if let Some(index) = (given.len() as u32).checked_sub(back + 1) {
                            for _ in 0..times {
                                let there = remotes.sending(index, SHORT, now).is_some();
                                prop_assert_eq!(there, !gone.contains(&index));
                            }
                        }
                        continue;
                    }
                    Op::Wait(ms) => {
                        now += Duration::from_millis(ms.into());
                        continue;
                    }
                };
                prop_assert!(remotes.len() <= MAX_REMOTES);
                match found {
                    Ok(found) => {
                        prop_assert_eq!(remotes.addr(found.index), Some(addr(number)));
                        let before = given.insert(found.index, addr(number));
                        prop_assert_eq!(before.is_none(), found.added);
                        if let Some(index) = found.evicted {
                            prop_assert!(!in_use.contains(&given[&index]));
                            prop_assert!(gone.insert(index));
                        }
                        prop_assert!(!gone.contains(&found.index));
                    }
                    Err(RemotesFull) => prop_assert_eq!(in_use.len(), MAX_REMOTES),
                }
            }
        }
    }

    const SHORT: &[u8] = &[0x40; 30];
    const LONG: &[u8] = &[0xc0; 30];

    fn addr(number: usize) -> SocketAddr {
        let number = u16::try_from(number).expect("a port");
        ([203, 0, 113, 7], 1000 + number).into()
    }

    fn full(now: Instant) -> Remotes {
        let mut remotes = Remotes::default();
        for number in 0..MAX_REMOTES {
            let now = now + Duration::from_millis(number as u64);
            let found = remotes.source(addr(number), now).expect("room");
            assert_eq!((found.index as usize, found.added), (number, true));
            assert_eq!(found.evicted, None);
        }
        remotes
    }

    #[test]
    fn a_remote_has_one_number_in_either_form() {
        let now = Instant::now();
        let mut remotes = Remotes::default();
        let first = remotes.source(addr(1), now).expect("room");
        let mapped = SocketAddr::new("::ffff:203.0.113.7".parse().expect("an address"), 1001);
        let again = remotes.dialed(mapped, now).expect("room");
        assert_eq!((again.index, again.added), (first.index, false));
        assert_eq!(remotes.addr(first.index), Some(addr(1)));
        assert_eq!(remotes.len(), 1);
    }

    #[test]
    fn past_the_limit_the_oldest_stranger_goes_and_its_number_is_not_used_again() {
        let now = Instant::now();
        let mut remotes = full(now);
        let later = now + Duration::from_secs(1);
        // The oldest three: dialed, spoken with, and heard of again.
        remotes.dialed(addr(0), now).expect("there");
        for _ in 0..PROVEN_AFTER {
            remotes.sending(1, SHORT, now);
        }
        remotes.source(addr(2), later).expect("there");
        // Handshakes alone prove nothing.
        for _ in 0..100 {
            remotes.sending(3, LONG, now);
        }
        let found = remotes.source(addr(MAX_REMOTES), later).expect("room");
        assert_eq!(found.index as usize, MAX_REMOTES);
        assert_eq!(found.evicted, Some(3));
        assert_eq!(remotes.addr(3), None);
        assert!(remotes.sending(3, SHORT, later).is_none());
        let back = remotes.source(addr(3), later).expect("room");
        assert_eq!(back.index as usize, MAX_REMOTES + 1);
        assert_eq!(remotes.len(), MAX_REMOTES);
    }

    #[test]
    fn who_is_in_use_is_not_forgotten_for_strangers() {
        let now = Instant::now();
        let mut remotes = full(now);
        for number in 0..MAX_REMOTES {
            remotes.dialed(addr(number), now).expect("there");
        }
        assert_eq!(remotes.source(addr(MAX_REMOTES), now), Err(RemotesFull));
        assert_eq!(remotes.dialed(addr(MAX_REMOTES), now), Err(RemotesFull));
        assert_eq!(remotes.in_use(now).len(), MAX_REMOTES);
        // But for long silence.
        let later = now + REMOTE_IDLE;
        remotes.sending(0, SHORT, later);
        let found = remotes
            .dialed(addr(MAX_REMOTES), later + Duration::from_millis(1))
            .expect("room");
        assert_ne!(found.evicted.expect("one had to go"), 0);
        assert_eq!(remotes.in_use(later), [addr(MAX_REMOTES), addr(0)]);
    }
}
