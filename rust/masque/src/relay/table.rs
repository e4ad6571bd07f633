//! Who holds which of the relay's sockets: sessions, tunnels, and addresses kept for clients that
//! have gone. Pure: what a socket is, and what time it is, are arguments.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use super::{config::RelayConfig, prefix::Prefix, quota::ClientKey};

/// A client's secret name for one of its bound addresses.
pub(crate) type Token = [u8; 16];

/// What a socket is lent for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// A bound address: any remote.
    Reservation,
    /// One target.
    Tunnel,
}

/// What a client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub(crate) kind: Kind,
    pub(crate) client: ClientKey,
    /// Where it comes from.
    pub(crate) source: Prefix,
    /// Which of its addresses it wants back.
    pub(crate) token: Option<Token>,
}

impl Claim {
    /// Whether the address is kept for the client when its tunnel ends. One without an identity
    /// could not be told from others.
    fn may_be_kept(&self) -> bool {
        self.kind == Kind::Reservation && matches!(self.client, ClientKey::Peer(_))
    }
}

/// Names an entry. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct EntryId(u64);

/// A socket and who has it.
#[derive(Debug)]
pub(crate) struct Entry<S> {
    claim: Claim,
    pub(crate) slot: S,
    /// Since when nobody is attached, if so.
    free_since: Option<Instant>,
}

impl<S> Entry<S> {
    pub(crate) fn kind(&self) -> Kind {
        self.claim.kind
    }

    pub(crate) fn is_free(&self) -> bool {
        self.free_since.is_some()
    }
}

/// How a claim can be met.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Plan {
    /// The client gets this one, from itself if it is attached.
    Reuse(EntryId),
    /// A new socket, after these have been given up.
    New { evict: Vec<EntryId> },
}

/// Which limit a claim exceeds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Limit {
    #[error("this relay has lent all it may")]
    Relay,
    #[error("this client has as many tunnels as it may")]
    Client,
    #[error("there are as many clients from this network as may be")]
    Source,
}

/// All sockets lent. Small, and looked at only when something begins or ends.
#[derive(Debug)]
pub(crate) struct Table<S> {
    entries: BTreeMap<EntryId, Entry<S>>,
    next: u64,
}

impl<S> Default for Table<S> {
    fn default() -> Self {
        Self {
            entries: BTreeMap::new(),
            next: 0,
        }
    }
}

impl<S> Table<S> {
    /// How `claim` can be met. Changes nothing.
    ///
    /// # Errors
    /// [`Limit`].
    pub(crate) fn plan(&self, claim: &Claim, config: &RelayConfig) -> Result<Plan, Limit> {
        if let Some(own) = self.own(claim) {
            self.check_source(claim, &[own], config)?;
            return Ok(Plan::Reuse(own));
        }
        let mut evict = Vec::new();
        self.make_room_for_client(claim, &mut evict, config)?;
        self.make_room(claim, &mut evict, config)?;
        self.check_source(claim, &evict, config)?;
        Ok(Plan::New { evict })
    }

    /// The address the client asks to have back. With its token it gets it from its own earlier
    /// tunnel, too: a client notices that a connection is dead long before the relay does. Without
    /// a token it gets what it has left behind.
    fn own(&self, claim: &Claim) -> Option<EntryId> {
        if !claim.may_be_kept() {
            return None;
        }
        let is_own = |entry: &Entry<S>| {
            entry.claim.kind == claim.kind
                && entry.claim.client == claim.client
                && entry.claim.token == claim.token
                && (claim.token.is_some() || entry.is_free())
        };
        let mut entries = self.entries.iter();
        entries.find(|(_, entry)| is_own(entry)).map(|(id, _)| *id)
    }

    /// The newest wins, since the client has proved that the others are its own: a process that
    /// was killed and started again must not be locked out by what it left.
    fn make_room_for_client(
        &self,
        claim: &Claim,
        evict: &mut Vec<EntryId>,
        config: &RelayConfig,
    ) -> Result<(), Limit> {
        let most = match claim.kind {
            Kind::Reservation => config.reservations_per_client,
            Kind::Tunnel => config.tunnels_per_client,
        };
        let mut own: Vec<_> = self
            .entries
            .iter()
            .filter(|(_, entry)| {
                entry.claim.kind == claim.kind && entry.claim.client == claim.client
            })
            .collect();
        let excess = (own.len() + 1).saturating_sub(most);
        if excess > 0 && (excess > own.len() || !claim.may_be_kept()) {
            return Err(Limit::Client);
        }
        // Those left longest ago, then those attached, the oldest first.
        own.sort_by_key(|(id, entry)| (entry.free_since.is_none(), entry.free_since, **id));
        evict.extend(own.iter().take(excess).map(|(id, _)| **id));
        Ok(())
    }

    /// Addresses kept for clients that have gone give way, the one left longest ago first; before
    /// others do, those of the claim's own network, of which as many are kept as may be in use.
    /// Whoever makes identities by the dozen only pushes out his own.
    fn make_room(
        &self,
        claim: &Claim,
        evict: &mut Vec<EntryId>,
        config: &RelayConfig,
    ) -> Result<(), Limit> {
        let most = match claim.kind {
            Kind::Reservation => config.max_reservations,
            Kind::Tunnel => config.max_tunnels,
        };
        let stays =
            |id: &EntryId, entry: &Entry<S>| entry.claim.kind == claim.kind && !evict.contains(id);
        let (mut count, mut of_source) = (0, 0);
        let mut free = Vec::new();
        for (id, entry) in &self.entries {
            if stays(id, entry) {
                let foreign = entry.claim.source != claim.source;
                count += 1;
                of_source += usize::from(!foreign);
                free.extend(entry.free_since.map(|since| (foreign, since, *id)));
            }
        }
        let excess = (count + 1_usize).saturating_sub(most);
        if excess > free.len() {
            return Err(Limit::Relay);
        }
        let own = free.iter().filter(|(foreign, ..)| !foreign).count();
        let own_excess = (of_source + 1_usize).saturating_sub(config.sessions_per_prefix);
        let own_excess = own_excess.min(own);
        // The own ones come first.
        free.sort();
        if own_excess == 0 {
            free.sort_by_key(|(_, since, id)| (*since, *id));
        }
        let going = excess.max(own_excess);
        evict.extend(free.into_iter().take(going).map(|(.., id)| id));
        Ok(())
    }

    fn check_source(
        &self,
        claim: &Claim,
        without: &[EntryId],
        config: &RelayConfig,
    ) -> Result<(), Limit> {
        let attached = self.entries.iter().filter(|(id, entry)| {
            entry.claim.source == claim.source && !entry.is_free() && !without.contains(id)
        });
        if attached.count() < config.sessions_per_prefix {
            Ok(())
        } else {
            Err(Limit::Source)
        }
    }

    /// Notes a new socket, attached.
    pub(crate) fn insert(&mut self, claim: Claim, slot: S) -> EntryId {
        let id = EntryId(self.next);
        self.next += 1;
        let entry = Entry {
            claim,
            slot,
            free_since: None,
        };
        self.entries.insert(id, entry);
        id
    }

    /// Attaches whoever made `claim` to a socket there is.
    pub(crate) fn attach(&mut self, id: EntryId, claim: Claim) -> Option<&mut S> {
        let entry = self.entries.get_mut(&id)?;
        entry.claim = claim;
        entry.free_since = None;
        Some(&mut entry.slot)
    }

    /// The tunnel of an entry has ended. Returns the entry if the socket is not kept.
    pub(crate) fn detach(
        &mut self,
        id: EntryId,
        now: Instant,
        config: &RelayConfig,
    ) -> Option<Entry<S>> {
        let entry = self.entries.get_mut(&id)?;
        if entry.claim.may_be_kept() && config.lease_time > Duration::ZERO {
            entry.free_since = Some(now);
            return None;
        }
        self.entries.remove(&id)
    }

    pub(crate) fn get(&self, id: EntryId) -> Option<&Entry<S>> {
        self.entries.get(&id)
    }

    pub(crate) fn get_mut(&mut self, id: EntryId) -> Option<&mut S> {
        self.entries.get_mut(&id).map(|entry| &mut entry.slot)
    }

    pub(crate) fn remove(&mut self, id: EntryId) -> Option<Entry<S>> {
        self.entries.remove(&id)
    }

    /// Takes out the addresses that have been kept long enough.
    pub(crate) fn expire(&mut self, now: Instant, lease_time: Duration) -> Vec<Entry<S>> {
        let kept_for = |since| now.saturating_duration_since(since);
        let expired: Vec<_> = self
            .iter()
            .filter(|(_, entry)| {
                entry
                    .free_since
                    .is_some_and(|since| kept_for(since) >= lease_time)
            })
            .map(|(id, _)| id)
            .collect();
        expired
            .into_iter()
            .filter_map(|id| self.remove(id))
            .collect()
    }

    /// Takes out everything.
    pub(crate) fn drain(&mut self) -> Vec<Entry<S>> {
        std::mem::take(&mut self.entries).into_values().collect()
    }

    pub(crate) fn iter_mut(&mut self) -> impl Iterator<Item = (EntryId, Kind, &mut S)> {
        self.entries
            .iter_mut()
            .map(|(id, entry)| (*id, entry.claim.kind, &mut entry.slot))
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (EntryId, &Entry<S>)> {
        self.entries.iter().map(|(id, entry)| (*id, entry))
    }
}

#[cfg(test)]
mod tests;
