//! The client's side of a tunnel's contexts.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyreach_wire::{
    address::{Address, Family},
    bound::bound_head,
    capsule::Capsule,
    context::{ContextId, Head, Side},
};
use bytes::Bytes;

use super::{Capsules, Closed, Incoming, MAX_CONTEXTS, Mode, Violation, table::Table};

/// The contexts of one tunnel, as its client sees them.
#[derive(Debug)]
pub struct ClientContexts {
    table: Table,
    families: Families,
}

/// The address families a proxy sends to. It drops packets to others and rejects their
/// registrations (the draft, section 6).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Families {
    /// Whether it has an IPv4 address.
    pub v4: bool,
    /// Whether it has an IPv6 address.
    pub v6: bool,
}

impl Families {
    /// Both, as long as nothing is known.
    pub const ANY: Self = Self { v4: true, v6: true };

    /// Those of the addresses in Proxy-Public-Address; [`ANY`](Self::ANY) if there are none.
    pub fn of(public: &[SocketAddr]) -> Self {
        if public.is_empty() {
            return Self::ANY;
        }
        let has = |family| {
            let mut families = public.iter().map(|public| Address::from(*public).family());
            families.any(|found| found == family)
        };
        Self {
            v4: has(Family::V4),
            v6: has(Family::V6),
        }
    }

    fn include(self, remote: Address) -> bool {
        match remote.family() {
            Family::V4 => self.v4,
            Family::V6 => self.v6,
        }
    }
}

/// What a capsule from the proxy changed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Changed {
    /// To be sent, in order.
    pub capsules: Capsules,
    /// A context the proxy opened, and its remote: datagrams that came before may be waiting in
    /// [`EarlyDatagrams`](super::EarlyDatagrams).
    pub opened: Option<(ContextId, SocketAddr)>,
    /// An ID the proxy tried to open in vain: datagrams that wait for it are to be dropped.
    pub rejected: Option<ContextId>,
    /// A context the proxy closed, or a registration of ours it rejected.
    pub closed: Option<Closed>,
}

impl ClientContexts {
    /// Contexts of a request. A context of ours that was unused for `idle` may be closed to make
    /// room for another.
    pub fn new(mode: Mode, idle: Duration) -> Self {
        Self {
            table: Table::new(Side::Client, mode, idle),
            families: Families::ANY,
        }
    }

    /// What the request was for.
    pub fn mode(&self) -> Mode {
        self.table.mode
    }

    /// Says which families the proxy sends to; both until then.
    pub fn set_families(&mut self, families: Families) {
        self.families = families;
    }

    /// Compressed contexts open, at most [`MAX_CONTEXTS`].
    pub fn len(&self) -> usize {
        self.table.len()
    }

    /// Whether no compressed context is open.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The remotes of the compressed contexts open.
    pub fn remotes(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.table.remotes()
    }

    /// The uncompressed context, if it is open or asked for.
    pub fn uncompressed(&self) -> Option<ContextId> {
        self.table.uncompressed.map(|open| open.id)
    }

    /// Asks for packets from any remote. `None` if that is so already, or the request was without
    /// bind.
    pub fn open_uncompressed(&mut self) -> Option<Capsule> {
        match self.table.mode {
            Mode::Plain => None,
            Mode::Bound | Mode::BoundWithTarget => self.table.open_uncompressed(),
        }
    }

    /// Refuses packets from remotes without a context of their own. `None` if that is so already.
    pub fn close_uncompressed(&mut self) -> Option<Capsule> {
        let id = self.uncompressed()?;
        self.table.remove(id);
        Some(Capsule::CompressionClose(id))
    }

    /// Registers a context for a remote, so that its packets are smaller: best before the first
    /// one, as it changes how much fits (the draft, operational considerations). Nothing is sent
    /// if there is one, if it would be in vain, or if there is no room.
    pub fn open(&mut self, remote: SocketAddr, now: Instant) -> Capsules {
        let mut capsules = Capsules::new();
        let remote = Address::from(remote);
        if self.table.mode != Mode::Plain
            && self.families.include(remote)
            && self.table.context_of(remote).is_none()
        {
            self.table.open(remote, MAX_CONTEXTS, now, &mut capsules);
        }
        capsules
    }

    /// What comes before a UDP payload for `remote`: its own context's ID, accepted or not yet, or
    /// the uncompressed one's and the remote. `None` if there is no way to send it.
    pub fn route(&mut self, remote: SocketAddr, now: Instant) -> Option<Head> {
        let address = Address::from(remote);
        if let Some(entry) = self.table.touch(address, now) {
            return Some(entry.head);
        }
        if !self.families.include(address) {
            return None;
        }
        Some(bound_head(self.table.uncompressed?.id, remote))
    }

    /// Closes the context of a remote, whoever opened it. `None` if it has none.
    pub fn close(&mut self, remote: SocketAddr) -> Option<Capsule> {
        let (id, _) = self.table.context_of(remote.into())?;
        self.table.remove(id);
        Some(Capsule::CompressionClose(id))
    }

    /// A capsule from the proxy.
    ///
    /// # Errors
    /// [`Violation`]: the request stream is to be aborted.
    pub fn on_capsule(&mut self, capsule: Capsule, now: Instant) -> Result<Changed, Violation> {
        let mut changed = Changed::default();
        if self.table.mode == Mode::Plain {
            // Of unknown types, as the extension is not in use (RFC 9297, section 3.2).
            return Ok(changed);
        }
        match capsule {
            Capsule::CompressionAck(id) => self.table.on_ack(id)?,
            Capsule::CompressionClose(id) => changed.closed = self.table.on_close(id, now)?,
            Capsule::CompressionAssign {
                context,
                target: None,
            } => return Err(Violation::UncompressedByProxy(context)),
            Capsule::CompressionAssign {
                context,
                target: Some(target),
            } => self.on_assign(context, target, now, &mut changed)?,
        }
        Ok(changed)
    }

    fn on_assign(
        &mut self,
        id: ContextId,
        target: SocketAddr,
        now: Instant,
        changed: &mut Changed,
    ) -> Result<(), Violation> {
        let remembered = self.table.on_assign(id)?;
        let remote = Address::from(target);
        // Of two contexts for a remote, the proxy's is closed (the draft, section 3.1). Without an
        // uncompressed context it may open none; this one was on its way when we closed ours.
        let wanted = match self.table.context_of(remote) {
            Some((existing, Side::Proxy)) => return Err(Violation::SameRemote { id, existing }),
            Some((_, Side::Client)) => false,
            None => remembered && self.table.uncompressed.is_some(),
        };
        if wanted && self.table.accept(id, remote, now, &mut changed.capsules) {
            changed.opened = Some((id, remote.into()));
            return Ok(());
        }
        if !wanted {
            changed.capsules.push(Capsule::CompressionClose(id));
        }
        changed.rejected = Some(id);
        Ok(())
    }

    /// A datagram from the proxy.
    ///
    /// # Errors
    /// [`Violation`]: the request stream is to be aborted.
    pub fn on_datagram(&mut self, datagram: Bytes, now: Instant) -> Result<Incoming, Violation> {
        self.table.on_datagram(datagram, now)
    }
}
