//! What a relay has done: counters of traffic and of everything dropped, and snapshots of them.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyreach_quic::PeerId;

use crate::carrier::CarrierKind;

macro_rules! drops {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Why a datagram was dropped.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason {
            $($(#[$doc])* $name,)+
        }

        impl DropReason {
            /// Every reason, in the order of declaration.
            pub const ALL: &[Self] = &[$(Self::$name,)+];

            /// The name used in metrics.
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

drops! {
    /// From the client: policy refuses the target.
    Target = "target",
    /// From the client: the relay has no public address of the target's family.
    Family = "family",
    /// From the client, in a context it has not registered, or has closed.
    Context = "context",
    /// From the client: not to be read, or larger than UDP takes.
    Malformed = "malformed",
    /// To the client: from an address policy lets nobody answer.
    Source = "source",
    /// To the client: from somebody it does not listen to.
    Unsolicited = "unsolicited",
    /// Either way: the client has used what one client may.
    ClientQuota = "client-quota",
    /// Either way: the relay is busy, and the client has used its share.
    TotalQuota = "total-quota",
    /// To the client: its carrier's queue is full.
    CarrierFull = "carrier-full",
    /// To the client: larger than its carrier takes. MTU probing causes these by design.
    CarrierTooLarge = "carrier-too-large",
    /// Either way, when the tunnel has just ended.
    CarrierClosed = "carrier-closed",
    /// To an address that is kept for a client which has gone.
    Unattached = "unattached",
    /// From the client: the system's buffer is full.
    SendFull = "send-full",
    /// From the client: larger than the network takes. MTU probing causes these by design.
    SendTooLarge = "send-too-large",
    /// From the client: no route to the target.
    SendUnreachable = "send-unreachable",
    /// From the client: the system does not send it for another reason.
    SendFailed = "send-failed",
}

/// How many reasons there are.
const REASONS: usize = DropReason::ALL.len();

/// Packets, and bytes of UDP payload.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Flow {
    /// UDP packets.
    pub packets: u64,
    /// Bytes of UDP payload.
    pub bytes: u64,
}

#[derive(Debug, Default)]
struct FlowCounter {
    packets: AtomicU64,
    bytes: AtomicU64,
}

impl FlowCounter {
    fn add(&self, packets: usize, bytes: usize) {
        self.packets.fetch_add(packets as u64, Ordering::Relaxed);
        self.bytes.fetch_add(bytes as u64, Ordering::Relaxed);
    }

    fn get(&self) -> Flow {
        Flow {
            packets: self.packets.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
        }
    }
}

/// Counters of one session. No other session writes to them, so that sessions do not slow each
/// other down.
#[derive(Debug, Default)]
pub(crate) struct Traffic {
    from_client: FlowCounter,
    to_client: FlowCounter,
    drops: [AtomicU64; REASONS],
}

impl Traffic {
    pub(crate) fn add_from_client(&self, packets: usize, bytes: usize) {
        self.from_client.add(packets, bytes);
    }

    pub(crate) fn add_to_client(&self, packets: usize, bytes: usize) {
        self.to_client.add(packets, bytes);
    }

    pub(crate) fn dropped(&self, reason: DropReason, packets: usize) {
        self.drops[reason as usize].fetch_add(packets as u64, Ordering::Relaxed);
    }

    /// From and to the client.
    pub(crate) fn flows(&self) -> (Flow, Flow) {
        (self.from_client.get(), self.to_client.get())
    }

    /// Packets relayed and dropped so far, to notice whether there have been any.
    pub(crate) fn activity(&self) -> u64 {
        let (from, to) = self.flows();
        from.packets + to.packets
    }

    fn add_to(&self, totals: &Self) {
        let (from, to) = self.flows();
        totals.add_from_client(from.packets as usize, from.bytes as usize);
        totals.add_to_client(to.packets as usize, to.bytes as usize);
        for (count, total) in self.drops.iter().zip(&totals.drops) {
            total.fetch_add(count.load(Ordering::Relaxed), Ordering::Relaxed);
        }
    }
}

/// The counters of all sessions, those that have ended summed up.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    /// Counted outside sessions.
    pub(crate) own: Traffic,
    ended: Traffic,
    sessions: Mutex<Vec<Arc<Traffic>>>,
}

impl Ledger {
    /// Counters for a new session.
    pub(crate) fn open(&self) -> Arc<Traffic> {
        let traffic = Arc::new(Traffic::default());
        self.with_sessions(|sessions| sessions.push(traffic.clone()));
        traffic
    }

    fn with_sessions(&self, work: impl FnOnce(&mut Vec<Arc<Traffic>>)) {
        // Whole at every step.
        let mut sessions = self.sessions.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody writes any more where we have the only reference.
        sessions.retain(|traffic| {
            let live = Arc::strong_count(traffic) > 1;
            if !live {
                traffic.add_to(&self.ended);
            }
            live
        });
        work(&mut sessions);
    }

    /// Everything together.
    pub(crate) fn total(&self) -> (Flow, Flow, Vec<(DropReason, u64)>) {
        let total = Traffic::default();
        self.with_sessions(|sessions| {
            for traffic in sessions.iter() {
                traffic.add_to(&total);
            }
        });
        self.own.add_to(&total);
        self.ended.add_to(&total);
        let drops = DropReason::ALL
            .iter()
            .map(|reason| {
                (
                    *reason,
                    total.drops[*reason as usize].load(Ordering::Relaxed),
                )
            })
            .collect();
        let (from, to) = total.flows();
        (from, to, drops)
    }
}

/// A relay at one moment. Counters only grow.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayStats {
    /// Bound addresses with a client attached.
    pub sessions: usize,
    /// Tunnels to one target.
    pub tunnels: usize,
    /// Bound addresses kept for clients that have gone.
    pub leases: usize,
    /// Relayed from clients to remotes.
    pub from_clients: Flow,
    /// Relayed from remotes to clients.
    pub to_clients: Flow,
    /// Dropped datagrams, by every reason there is.
    pub drops: Vec<(DropReason, u64)>,
    /// Requests granted.
    pub accepted: u64,
    /// Requests refused, by reason: those of [`RelayStats::REFUSALS`].
    pub refused: Vec<(&'static str, u64)>,
    /// Bound addresses handed from one connection of a client to its next.
    pub taken_over: u64,
}

impl RelayStats {
    /// Why requests are refused: unreadable, without identity, no public address known, one of the
    /// three limits, a target policy refuses, a name or route that does not lead anywhere, no
    /// socket to be had, and a relay that is closed.
    pub const REFUSALS: [&str; 10] = [
        "malformed",
        "anonymous",
        "no-address",
        "relay-limit",
        "client-limit",
        "source-limit",
        "target",
        "unreachable",
        "system",
        "closed",
    ];

    /// How many datagrams were dropped for this reason.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        let found = self.drops.iter().find(|(drop, _)| *drop == reason);
        found.map_or(0, |(_, count)| *count)
    }
}

/// One session or tunnel at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionInfo {
    /// Tells it from every other one of this relay.
    pub id: u64,
    /// Who has it; `None` for a client without identity.
    pub peer_id: Option<PeerId>,
    /// What carries it.
    pub carrier: CarrierKind,
    /// Where the client comes from.
    pub remote: SocketAddr,
    /// The addresses lent; none for a tunnel to one target.
    pub bound: Vec<SocketAddr>,
    /// The one target, or the target of context 0.
    pub target: Option<SocketAddr>,
    /// For how long it has been open.
    pub age: Duration,
    /// Relayed from the client.
    pub from_client: Flow,
    /// Relayed to the client.
    pub to_client: Flow,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_has_ended_stays_counted_once() {
        let ledger = Ledger::default();
        let (one, two) = (ledger.open(), ledger.open());
        one.add_from_client(2, 300);
        two.add_to_client(1, 50);
        two.dropped(DropReason::Target, 3);
        ledger.own.dropped(DropReason::Unattached, 5);
        let before = ledger.total();
        drop(one);
        assert_eq!(ledger.total(), before);
        drop(two);
        assert_eq!(ledger.total(), before);
        assert_eq!(ledger.total(), before);
        let (from, to, drops) = before;
        assert_eq!((from.packets, from.bytes), (2, 300));
        assert_eq!((to.packets, to.bytes), (1, 50));
        assert!(
            drops.contains(&(DropReason::Target, 3))
                && drops.contains(&(DropReason::Unattached, 5))
        );
        assert_eq!(drops.len(), REASONS);
    }

    #[test]
    fn names_are_distinct() {
        let mut names: Vec<_> = DropReason::ALL
            .iter()
            .map(|reason| reason.as_str())
            .collect();
        names.sort_unstable();
        names.dedup();
        assert_eq!(names.len(), REASONS);
    }
}
