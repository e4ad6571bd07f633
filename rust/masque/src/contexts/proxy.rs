//! The proxy's side of a tunnel's contexts.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use anyreach_wire::{
    address::Address,
    bound::bound_head,
    capsule::Capsule,
    context::{ContextId, Head, Side},
};
use bytes::Bytes;

use super::{Capsules, Incoming, MAX_OPENED_BY_PROXY, Mode, Violation, table::Table};

/// The contexts of one tunnel, as its proxy sees them.
#[derive(Debug)]
pub struct ProxyContexts {
    table: Table,
    /// The target of the request, where it had one.
    target: Option<Address>,
}

/// How a packet from a remote goes to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Routed {
    /// What comes before the UDP payload.
    pub head: Head,
    /// To be sent first: the registration of a new context, which is used at once.
    pub capsules: Capsules,
}

impl Routed {
    fn through(head: Head) -> Self {
        Self {
            head,
            capsules: Capsules::new(),
        }
    }
}

impl ProxyContexts {
    /// Contexts of a request for this one target, without the bind extension.
    pub fn plain(target: SocketAddr) -> Self {
        Self {
            // It never opens contexts, so that none is ever idle.
            table: Table::new(Side::Proxy, Mode::Plain, Duration::MAX),
            target: Some(target.into()),
        }
    }

    /// Contexts of a bound request, with a target for context 0 unless it was `*`. A context that
    /// was unused for `idle` may be closed to make room for another.
    pub fn bound(target: Option<SocketAddr>, idle: Duration) -> Self {
        let mode = match target {
            Some(_) => Mode::BoundWithTarget,
            None => Mode::Bound,
        };
        Self {
            table: Table::new(Side::Proxy, mode, idle),
            target: target.map(Address::from),
        }
    }

    /// What the request was for.
    pub fn mode(&self) -> Mode {
        self.table.mode
    }

    /// Compressed contexts open, at most [`MAX_CONTEXTS`](super::MAX_CONTEXTS).
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

    /// Whether packets from any remote pass: the client has an uncompressed context open.
    pub fn takes_unknown(&self) -> bool {
        self.table.uncompressed.is_some()
    }

    /// A capsule from the client. `admits` is asked whether a remote may be contacted; one that
    /// may not is rejected.
    ///
    /// # Errors
    /// [`Violation`]: the request stream is to be aborted.
    pub fn on_capsule(
        &mut self,
        capsule: Capsule,
        now: Instant,
        admits: impl FnOnce(SocketAddr) -> bool,
    ) -> Result<Capsules, Violation> {
        let mut capsules = Capsules::new();
        if self.table.mode == Mode::Plain {
            // Of unknown types, as the extension is not in use (RFC 9297, section 3.2).
            return Ok(capsules);
        }
        match capsule {
            Capsule::CompressionAck(id) => self.table.on_ack(id)?,
            Capsule::CompressionClose(id) => {
                self.table.on_close(id, now)?;
            }
            Capsule::CompressionAssign { context, target } => {
                let remembered = self.table.on_assign(context)?;
                match target {
                    None if self.table.uncompressed.is_some() => {
                        return Err(Violation::SecondUncompressed(context));
                    }
                    Some(target) => {
                        self.check_remote(context, target.into(), &mut capsules)?;
                        if remembered && admits(target) {
                            self.table
                                .accept(context, target.into(), now, &mut capsules);
                        } else {
                            capsules.push(Capsule::CompressionClose(context));
                        }
                    }
                    None if remembered => self.table.accept_uncompressed(context, &mut capsules),
                    None => capsules.push(Capsule::CompressionClose(context)),
                }
            }
        }
        Ok(capsules)
    }

    /// One context per remote: a second one of the client is malformed, one of ours gives way.
    fn check_remote(
        &mut self,
        id: ContextId,
        remote: Address,
        capsules: &mut Capsules,
    ) -> Result<(), Violation> {
        match self.table.context_of(remote) {
            None => {}
            Some((existing, Side::Client)) => return Err(Violation::SameRemote { id, existing }),
            Some((ours, Side::Proxy)) => {
                self.table.remove(ours);
                capsules.push(Capsule::CompressionClose(ours));
            }
        }
        Ok(())
    }

    /// A datagram from the client.
    ///
    /// # Errors
    /// [`Violation`]: the request stream is to be aborted.
    pub fn on_datagram(&mut self, datagram: Bytes, now: Instant) -> Result<Incoming, Violation> {
        self.table.on_datagram(datagram, now)
    }

    /// How a packet from `remote`, received on the bound socket, goes to the client; `None` if it
    /// is to be dropped.
    ///
    /// A remote without a context gets one, if the client takes packets of any remote and there is
    /// room. The caller has checked that the remote may be contacted: the client can answer it
    /// through the context without being asked again.
    pub fn route(&mut self, remote: SocketAddr, now: Instant) -> Option<Routed> {
        let address = Address::from(remote);
        if let Some(entry) = self.table.touch(address, now) {
            return Some(Routed::through(entry.head));
        }
        if self.target == Some(address) {
            return Some(Routed::through(ContextId::PAYLOAD.head()));
        }
        // Without an uncompressed context no new ones may be opened (the draft, section 3.1).
        let uncompressed = self.table.uncompressed?.id;
        let mut capsules = Capsules::new();
        let opened = self
            .table
            .open(address, MAX_OPENED_BY_PROXY, now, &mut capsules);
        let head = match opened {
            Some(entry) => entry.head,
            None => bound_head(uncompressed, remote),
        };
        Some(Routed { head, capsules })
    }

    /// Closes a context, as when its remote may no longer be contacted. `None` if it has none.
    pub fn close(&mut self, remote: SocketAddr) -> Option<Capsule> {
        let (id, _) = self.table.context_of(remote.into())?;
        self.table.remove(id);
        Some(Capsule::CompressionClose(id))
    }
}
