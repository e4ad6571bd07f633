//! Where sockets are lent and given back: the part of a relay that requests, not packets, go
//! through.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use anyreach_net::UdpPort;
use tokio::{runtime::Handle, task::AbortHandle};

use super::{
    config::RelayConfig,
    receive,
    session::Session,
    sockets::Sockets,
    stats::Ledger,
    table::{Claim, EntryId, Kind, Limit, Plan, Table},
};
use crate::carrier::Close;

/// Tasks that end with this.
#[derive(Debug, Default)]
struct Tasks(Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

/// Who reads a socket.
#[derive(Debug)]
enum Holder {
    Session(Arc<Session>),
    Nobody,
}

/// Sockets, and who has them.
#[derive(Debug)]
pub(crate) struct Lent {
    sockets: Arc<Sockets>,
    holder: Holder,
    _tasks: Tasks,
    /// Packets relayed when they were last counted, and since when there have been no more.
    seen: (u64, Instant),
}

impl Lent {
    /// The session, if one is attached.
    fn session(&self) -> Option<&Arc<Session>> {
        match &self.holder {
            Holder::Session(session) => Some(session),
            Holder::Nobody => None,
        }
    }

    /// Whether there was no packet for this long.
    fn is_idle(&mut self, now: Instant, limit: Duration) -> bool {
        let activity = self
            .session()
            .map_or(0, |session| session.traffic().activity());
        if activity != self.seen.0 {
            self.seen = (activity, now);
        }
        now.saturating_duration_since(self.seen.1) >= limit
    }

    /// Ends the session, if there is one.
    pub(crate) fn end(self) {
        if let Holder::Session(session) = self.holder {
            session.end(Close::Done);
        }
    }
}

/// What a claim came to.
pub(crate) enum Settled {
    /// A session has begun. What it displaced is to be [ended](Lent::end), outside any lock.
    Begun {
        entry: EntryId,
        session: Arc<Session>,
        displaced: Vec<Lent>,
        /// Whether it was the client itself that had the socket.
        taken_over: bool,
    },
    /// There is none to be had back: bind one and try again.
    NeedsSockets,
}

/// All that is lent.
#[derive(Debug)]
pub(crate) struct Desk {
    table: Table<Lent>,
    runtime: Handle,
    ledger: Arc<Ledger>,
    next_session: u64,
    open: bool,
}

impl Desk {
    pub(crate) fn new(runtime: Handle, ledger: Arc<Ledger>) -> Self {
        Self {
            table: Table::default(),
            runtime,
            ledger,
            next_session: 0,
            open: true,
        }
    }

    pub(crate) fn is_open(&self) -> bool {
        self.open
    }

    /// Whether the client would get a socket back that it has.
    ///
    /// # Errors
    /// [`Limit`], if it would get nothing.
    pub(crate) fn has_own(&self, claim: &Claim, config: &RelayConfig) -> Result<bool, Limit> {
        let plan = self.table.plan(claim, config)?;
        Ok(matches!(plan, Plan::Reuse(_)))
    }

    /// Meets a claim: with the sockets the client already has, or with `fresh` ones. `begin` makes
    /// the session, given its number and its sockets.
    pub(crate) fn settle<E: From<Limit>>(
        &mut self,
        claim: Claim,
        config: &RelayConfig,
        fresh: Option<Arc<Sockets>>,
        begin: impl FnOnce(u64, &Arc<Sockets>) -> Result<Session, E>,
    ) -> Result<Settled, E> {
        let plan = self.table.plan(&claim, config)?;
        let own = match &plan {
            Plan::Reuse(id) => self.table.get(*id).map(|entry| entry.slot.sockets.clone()),
            Plan::New { .. } => None,
        };
        let Some(sockets) = own.or(fresh) else {
            return Ok(Settled::NeedsSockets);
        };
        let session = Arc::new(begin(self.next_session, &sockets)?);
        self.next_session += 1;
        let tasks = self.spawn(&sockets, |port| receive::run(session.clone(), port));
        let lent = Lent {
            sockets,
            holder: Holder::Session(session.clone()),
            _tasks: tasks,
            seen: (0, Instant::now()),
        };
        let (entry, displaced, taken_over) = match plan {
            Plan::Reuse(id) => {
                let slot = self.table.attach(id, claim);
                let old = slot.map(|slot| std::mem::replace(slot, lent));
                (id, old.into_iter().collect(), true)
            }
            Plan::New { evict } => {
                let evicted = evict.into_iter().filter_map(|id| self.table.remove(id));
                let displaced = evicted.map(|entry| entry.slot).collect();
                (self.table.insert(claim, lent), displaced, false)
            }
        };
        Ok(Settled::Begun {
            entry,
            session,
            displaced,
            taken_over,
        })
    }

    fn spawn<F: Future<Output = ()> + Send + 'static>(
        &self,
        sockets: &Sockets,
        task: impl Fn(Arc<UdpPort>) -> F,
    ) -> Tasks {
        let spawn = |port: &Arc<UdpPort>| self.runtime.spawn(task(port.clone())).abort_handle();
        Tasks(sockets.ports().iter().map(spawn).collect())
    }

    /// The tunnel of a session has ended. Its socket is kept for the client if it may be; what is
    /// returned is not. Does nothing if another session has the socket by now.
    #[must_use = "to be dropped outside the lock"]
    pub(crate) fn detach(
        &mut self,
        id: EntryId,
        session: &Arc<Session>,
        config: &RelayConfig,
    ) -> Option<Lent> {
        let lent = &self.table.get(id)?.slot;
        let is_attached = lent.session().is_some_and(|own| Arc::ptr_eq(own, session));
        if !is_attached {
            return None;
        }
        let sockets = lent.sockets.clone();
        let now = Instant::now();
        if let Some(entry) = self.table.detach(id, now, config) {
            return Some(entry.slot);
        }
        let tasks = self.spawn(&sockets, |port| receive::discard(port, self.ledger.clone()));
        let kept = Lent {
            sockets,
            holder: Holder::Nobody,
            _tasks: tasks,
            seen: (0, now),
        };
        let slot = self.table.get_mut(id)?;
        Some(std::mem::replace(slot, kept))
    }

    /// Gives up what has been kept or idle for too long, and the memory of what is quiet.
    #[must_use = "to be ended outside the lock"]
    pub(crate) fn sweep(&mut self, now: Instant, config: &RelayConfig) -> Vec<Lent> {
        let expired = self.table.expire(now, config.lease_time);
        let mut given_up: Vec<_> = expired.into_iter().map(|entry| entry.slot).collect();
        let mut idle = Vec::new();
        for (id, kind, lent) in self.table.iter_mut() {
            if kind == Kind::Tunnel && lent.is_idle(now, config.idle_limit) {
                idle.push(id);
            } else if let Some(session) = lent.session() {
                session.shrink();
            }
        }
        let removed = idle.into_iter().filter_map(|id| self.table.remove(id));
        given_up.extend(removed.map(|entry| entry.slot));
        given_up
    }

    /// Takes back everything, and lends nothing any more.
    #[must_use = "to be ended outside the lock"]
    pub(crate) fn close(&mut self) -> Vec<Lent> {
        self.open = false;
        let entries = self.table.drain();
        entries.into_iter().map(|entry| entry.slot).collect()
    }

    /// The ports lent as bound addresses.
    pub(crate) fn lent_ports(&self) -> impl Iterator<Item = u16> {
        let reservations = self
            .table
            .iter()
            .filter(|(_, entry)| entry.kind() == Kind::Reservation);
        let sockets = reservations.flat_map(|(_, entry)| entry.slot.sockets.ports());
        sockets.map(|port| SocketAddr::port(&port.local_addr()))
    }

    /// The sessions there are.
    pub(crate) fn sessions(&self) -> impl Iterator<Item = &Arc<Session>> {
        self.table
            .iter()
            .filter_map(|(_, entry)| entry.slot.session())
    }

    /// How many sessions, tunnels and leases there are.
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        let mut counts = (0, 0, 0);
        for (_, entry) in self.table.iter() {
            match entry.kind() {
                Kind::Tunnel => counts.1 += 1,
                Kind::Reservation if entry.is_free() => counts.2 += 1,
                Kind::Reservation => counts.0 += 1,
            }
        }
        counts
    }
}
