//! What both sides of a tunnel know of its contexts. The rules that differ are in `client` and
//! `proxy`.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyreach_wire::{
    address::Address,
    bound::split_bound,
    capsule::{Capsule, Kind},
    context::{ContextId, Head, MAX_UDP_PAYLOAD, Side, split_datagram},
};
use bytes::Bytes;
use rustc_hash::FxHashMap;

use super::{
    Closed, DropReason, Incoming, MAX_CONTEXTS, MAX_UNANSWERED, Mode, PAUSE_AFTER_CLOSE, Violation,
    ids::{Added, UsedIds},
};

/// A compressed context.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) id: ContextId,
    pub(super) remote: Address,
    /// Made once, used for every packet.
    pub(super) head: Head,
    opened_by: Side,
    acknowledged: bool,
    last_used: Instant,
}

/// The uncompressed context.
#[derive(Debug, Clone, Copy)]
pub(super) struct Uncompressed {
    pub(super) id: ContextId,
    acknowledged: bool,
}

/// All contexts of one tunnel.
#[derive(Debug)]
pub(super) struct Table {
    pub(super) mode: Mode,
    us: Side,
    /// How long a context of ours has to be unused to be closed for another.
    idle: Duration,
    /// The open compressed contexts, in no order.
    entries: Vec<Entry>,
    /// Positions in `entries`. The hash is one that can be made to collide; with so few entries
    /// that costs less than a better hash would, for every packet.
    by_id: FxHashMap<ContextId, usize>,
    by_remote: FxHashMap<Address, usize>,
    pub(super) uncompressed: Option<Uncompressed>,
    /// The ID we allocate next: all of ours below it are used.
    next: u64,
    /// The IDs the peer has used.
    used: UsedIds,
    /// Registrations of ours without an answer.
    unanswered: usize,
    /// Compressed contexts open that we opened.
    ours: usize,
    /// No registrations before this.
    paused_until: Option<Instant>,
    /// No context of ours is idle before this: spares a look at all of them for every packet.
    none_idle_until: Option<Instant>,
}

impl Table {
    pub(super) fn new(us: Side, mode: Mode, idle: Duration) -> Self {
        Self {
            mode,
            us,
            idle,
            entries: Vec::new(),
            by_id: FxHashMap::default(),
            by_remote: FxHashMap::default(),
            uncompressed: None,
            next: match us {
                // 0 is reserved.
                Side::Client => 2,
                Side::Proxy => 1,
            },
            used: UsedIds::default(),
            unanswered: 0,
            ours: 0,
            paused_until: None,
            none_idle_until: None,
        }
    }

    /// Compressed contexts open.
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }

    /// The remotes of the compressed contexts open.
    pub(super) fn remotes(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.entries.iter().map(|entry| entry.remote.into())
    }

    /// The context of a remote, and that it is used now.
    pub(super) fn touch(&mut self, remote: Address, now: Instant) -> Option<&Entry> {
        let entry = &mut self.entries[*self.by_remote.get(&remote)?];
        entry.last_used = now;
        Some(entry)
    }

    /// The context of a remote: its ID, and who opened it.
    pub(super) fn context_of(&self, remote: Address) -> Option<(ContextId, Side)> {
        let entry = &self.entries[*self.by_remote.get(&remote)?];
        Some((entry.id, entry.opened_by))
    }

    /// What a datagram from the peer means.
    pub(super) fn on_datagram(
        &mut self,
        datagram: Bytes,
        now: Instant,
    ) -> Result<Incoming, Violation> {
        let (id, payload) = split_datagram(datagram)?;
        if id == ContextId::PAYLOAD {
            return match self.mode {
                Mode::Plain | Mode::BoundWithTarget => Ok(Incoming::Target(payload)),
                Mode::Bound => Err(Violation::ContextZero),
            };
        }
        let (remote, payload, uncompressed) = if let Some(position) = self.by_id.get(&id) {
            let entry = &mut self.entries[*position];
            entry.last_used = now;
            (entry.remote.into(), payload, false)
        } else if self.uncompressed.is_some_and(|open| open.id == id) {
            match split_bound(payload) {
                Ok((remote, payload)) => (remote, payload, true),
                Err(error) => return Ok(Incoming::Dropped(DropReason::Unreadable(error))),
            }
        } else {
            return Ok(self.without_context(id, payload));
        };
        // In context 0 that is a violation (RFC 9298, section 5), here there is no such rule.
        if payload.len() > MAX_UDP_PAYLOAD {
            return Ok(Incoming::Dropped(DropReason::TooLong));
        }
        Ok(Incoming::Remote {
            remote,
            payload,
            uncompressed,
        })
    }

    /// A datagram in a context that is not open.
    fn without_context(&self, context: ContextId, payload: Bytes) -> Incoming {
        if context.allocator() == Some(self.us) {
            return Incoming::Dropped(if self.allocated(context) {
                DropReason::ClosedContext
            } else {
                DropReason::UnknownContext
            });
        }
        if self.used.contains(context) {
            Incoming::Dropped(DropReason::ClosedContext)
        } else if self.mode == Mode::Plain {
            Incoming::Dropped(DropReason::UnknownContext)
        } else {
            Incoming::Early { context, payload }
        }
    }

    /// Whether we have registered this ID of ours.
    fn allocated(&self, id: ContextId) -> bool {
        id.get() < self.next
    }

    /// Takes note of the ID of an ASSIGN. `false`: there is no room to remember it, so it is to be
    /// rejected.
    pub(super) fn on_assign(&mut self, id: ContextId) -> Result<bool, Violation> {
        if id.allocator() != Some(self.us.peer()) {
            return Err(Violation::NotTheirs(id));
        }
        match self.used.add(id) {
            Added::New => Ok(true),
            Added::Full => Ok(false),
            Added::Repeated => Err(Violation::Repeated(id)),
        }
    }

    /// The peer accepts a registration of ours.
    pub(super) fn on_ack(&mut self, id: ContextId) -> Result<(), Violation> {
        if id.allocator() != Some(self.us) || !self.allocated(id) {
            let kind = Kind::Ack;
            return Err(Violation::NotRegistered { kind, id });
        }
        let acknowledged = match (&mut self.uncompressed, self.by_id.get(&id)) {
            (_, Some(position)) => &mut self.entries[*position].acknowledged,
            (Some(open), None) if open.id == id => &mut open.acknowledged,
            // We closed it meanwhile.
            _ => return Ok(()),
        };
        if !std::mem::replace(acknowledged, true) {
            self.unanswered -= 1;
        }
        Ok(())
    }

    /// The peer rejects or ends a context. `None` if it is closed already: both sides may close
    /// the same one at the same time.
    pub(super) fn on_close(
        &mut self,
        id: ContextId,
        now: Instant,
    ) -> Result<Option<Closed>, Violation> {
        if id.allocator() == Some(self.us) && !self.allocated(id) {
            let kind = Kind::Close;
            return Err(Violation::NotRegistered { kind, id });
        }
        let closed = self.remove(id);
        if closed.is_some_and(|closed| closed.opened_by == self.us && closed.remote.is_some()) {
            self.paused_until = Some(now + PAUSE_AFTER_CLOSE);
        }
        Ok(closed)
    }

    /// Forgets an open context.
    pub(super) fn remove(&mut self, id: ContextId) -> Option<Closed> {
        let closed = if let Some(position) = self.by_id.remove(&id) {
            let entry = self.entries.swap_remove(position);
            self.by_remote.remove(&entry.remote);
            if let Some(moved) = self.entries.get(position) {
                self.by_id.insert(moved.id, position);
                self.by_remote.insert(moved.remote, position);
            }
            if entry.opened_by == self.us {
                self.ours -= 1;
            }
            Closed {
                context: id,
                remote: Some(entry.remote.into()),
                opened_by: entry.opened_by,
                acknowledged: entry.acknowledged,
            }
        } else {
            let open = self.uncompressed.take_if(|open| open.id == id)?;
            Closed {
                context: id,
                remote: None,
                opened_by: Side::Client,
                acknowledged: open.acknowledged,
            }
        };
        if closed.opened_by == self.us && !closed.acknowledged {
            self.unanswered -= 1;
        }
        Some(closed)
    }

    /// Accepts a compressed context of the peer, if there is room for it or room can be made.
    /// The capsules are those to send.
    pub(super) fn accept(
        &mut self,
        id: ContextId,
        remote: Address,
        now: Instant,
        capsules: &mut Vec<Capsule>,
    ) -> bool {
        if self.entries.len() >= MAX_CONTEXTS && !self.make_room(now, capsules) {
            capsules.push(Capsule::CompressionClose(id));
            return false;
        }
        self.insert(id, remote, self.us.peer(), now);
        capsules.push(Capsule::CompressionAck(id));
        true
    }

    /// Accepts an uncompressed context of the peer.
    pub(super) fn accept_uncompressed(&mut self, id: ContextId, capsules: &mut Vec<Capsule>) {
        self.uncompressed = Some(Uncompressed {
            id,
            acknowledged: true,
        });
        capsules.push(Capsule::CompressionAck(id));
    }

    /// Registers a compressed context for a remote that has none, unless there is no room (`most`
    /// of our own, [`MAX_CONTEXTS`] together) or the peer is not to be asked now.
    pub(super) fn open(
        &mut self,
        remote: Address,
        most: usize,
        now: Instant,
        capsules: &mut Vec<Capsule>,
    ) -> Option<&Entry> {
        // A pause is for those who have the uncompressed context instead.
        let paused =
            self.uncompressed.is_some() && self.paused_until.is_some_and(|until| now < until);
        if self.unanswered >= MAX_UNANSWERED || paused {
            return None;
        }
        if (self.ours >= most || self.entries.len() >= MAX_CONTEXTS)
            && !self.make_room(now, capsules)
        {
            return None;
        }
        let context = self.allocate()?;
        self.insert(context, remote, self.us, now);
        capsules.push(Capsule::CompressionAssign {
            context,
            target: Some(remote.into()),
        });
        self.entries.last()
    }

    /// Registers the uncompressed context.
    pub(super) fn open_uncompressed(&mut self) -> Option<Capsule> {
        if self.uncompressed.is_some() {
            return None;
        }
        let context = self.allocate()?;
        self.unanswered += 1;
        self.uncompressed = Some(Uncompressed {
            id: context,
            acknowledged: false,
        });
        Some(Capsule::CompressionAssign {
            context,
            target: None,
        })
    }

    /// The next ID of ours; `None` when all 2^61 are used.
    fn allocate(&mut self) -> Option<ContextId> {
        let id = ContextId::from_u64(self.next)?;
        self.next += 2;
        Some(id)
    }

    fn insert(&mut self, id: ContextId, remote: Address, opened_by: Side, now: Instant) {
        let position = self.entries.len();
        let ours = opened_by == self.us;
        self.entries.push(Entry {
            id,
            remote,
            head: id.head(),
            opened_by,
            acknowledged: !ours,
            last_used: now,
        });
        self.by_id.insert(id, position);
        self.by_remote.insert(remote, position);
        if ours {
            self.ours += 1;
            self.unanswered += 1;
        }
    }

    /// Closes the context of ours that was not used for longest, if that was long enough.
    fn make_room(&mut self, now: Instant, capsules: &mut Vec<Capsule>) -> bool {
        if self.ours == 0 || self.none_idle_until.is_some_and(|until| now < until) {
            return false;
        }
        let ours = self
            .entries
            .iter()
            .filter(|entry| entry.opened_by == self.us);
        let Some(oldest) = ours.min_by_key(|entry| (entry.last_used, entry.id)) else {
            return false;
        };
        let id = oldest.id;
        // Contexts used or opened from now on become idle later than this one.
        self.none_idle_until = oldest.last_used.checked_add(self.idle);
        if now.saturating_duration_since(oldest.last_used) < self.idle {
            return false;
        }
        self.remove(id);
        capsules.push(Capsule::CompressionClose(id));
        true
    }
}
