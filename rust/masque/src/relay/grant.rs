//! From a request to a session, or to the reason why there is none.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use anyreach_net::canonical_ip;
use anyreach_wire::{capsule::Capsule, proxy_fields::ProxyError, uri_template::Target};
use bytes::Bytes;
use http::Request;

use super::{
    Inner, RelayStats,
    addresses::Ends,
    desk::Settled,
    lock,
    policy::Scope,
    prefix::Prefix,
    quota::ClientKey,
    request::{self, Refusal, Wanted},
    resolve::resolve,
    session::{Meter, Parts, Session},
    sockets::Sockets,
    table::{Claim, EntryId, Kind, Limit},
};
use crate::{
    carrier::{Accepted, Client, ProtocolViolation, Refused, TunnelIn, TunnelOut},
    contexts::ProxyContexts,
};

impl Inner {
    /// Decides about a request, and begins the session if it is granted.
    pub(super) async fn grant(
        self: &Arc<Self>,
        client: &Client,
        request: &Request<()>,
        out: Arc<dyn TunnelOut>,
    ) -> Result<(Accepted, Arc<dyn TunnelIn>), Refusal> {
        let wanted = Wanted::read(request)?;
        let claim = self.claim(client, &wanted)?;
        // Before anything that costs more.
        self.look_for_own(&claim)?;
        self.look_around(Instant::now());
        let ends = Ends {
            remote: canonical_ip(client.remote.ip()),
            local: client.local.map(|local| canonical_ip(local.ip())),
        };
        let scope = Scope::of(ends.remote, ends.local);
        let known = lock(&self.view).known.clone();
        let advertised = known.advertised(ends);
        let target = match &wanted.target {
            Target::Any => None,
            Target::Remote { host, port } => {
                let policy = self.rules.current();
                let timeout = self.config.resolve_timeout;
                let lookups = (&self.lookups, claim.source);
                Some(resolve(host, *port, &policy, scope, lookups, timeout).await?)
            }
        };
        let lent_ips = if wanted.bind { &advertised[..] } else { &[] };
        let begin = |id, sockets: &Arc<Sockets>| {
            let bound = sockets.reached_at(lent_ips);
            if wanted.bind && bound.is_empty() {
                return Err(no_address());
            }
            let contexts = match target {
                Some(target) if !wanted.bind => ProxyContexts::plain(target),
                target => ProxyContexts::bound(target, self.config.context_idle),
            };
            let parts = Parts {
                id,
                client: client.clone(),
                out: out.clone(),
                sockets: Arc::downgrade(sockets),
                rules: self.rules.clone(),
                scope,
                meter: Meter {
                    quotas: self.quotas.clone(),
                    account: self.quotas.account(claim.client, self.nanos()),
                    epoch: self.epoch,
                },
                traffic: self.ledger.open(),
                bound,
                target,
                sources: [true, false].map(|v4| known.source(&advertised, v4)),
            };
            Ok(Session::new(parts, contexts))
        };
        let tunnel = self.settle(claim, begin).await?;
        let node = known.node_addresses(ends, &advertised, &self.rules.current(), scope);
        let accepted = request::accept(wanted.bind, tunnel.session.bound(), &node);
        self.accepted.fetch_add(1, Ordering::Relaxed);
        Ok((accepted, Arc::new(tunnel)))
    }

    fn claim(&self, client: &Client, wanted: &Wanted) -> Result<Claim, Refusal> {
        let source = Prefix::source(client.remote.ip());
        let key = match client.peer_id {
            Some(peer_id) => ClientKey::Peer(peer_id),
            None if self.config.allow_anonymous => ClientKey::Anonymous(source),
            None => {
                return Err(Refusal::new(
                    "anonymous",
                    ProxyError::HttpRequestDenied,
                    "this relay serves clients that prove a PeerId",
                ));
            }
        };
        let kind = if wanted.bind {
            Kind::Reservation
        } else {
            Kind::Tunnel
        };
        Ok(Claim {
            kind,
            client: key,
            source,
            token: wanted.token,
        })
    }

    /// Whether the client would get a socket back that it has.
    fn look_for_own(&self, claim: &Claim) -> Result<bool, Refusal> {
        let desk = lock(&self.desk);
        if !desk.is_open() {
            return Err(closed());
        }
        Ok(desk.has_own(claim, &self.config)?)
    }

    /// Begins the session. From the moment there is one nothing waits, so a request that is
    /// cancelled leaves nothing behind.
    async fn settle(
        self: &Arc<Self>,
        claim: Claim,
        begin: impl Fn(u64, &Arc<Sockets>) -> Result<Session, Refusal>,
    ) -> Result<Tunnel, Refusal> {
        loop {
            let mut fresh = None;
            if !self.look_for_own(&claim)? {
                let opened = Sockets::open().await.map_err(|error| {
                    tracing::warn!(%error, "no socket for a client");
                    Refusal::new("system", ProxyError::ProxyInternalError, error.to_string())
                })?;
                fresh = Some(Arc::new(opened));
            }
            let settled = {
                let mut desk = lock(&self.desk);
                if !desk.is_open() {
                    return Err(closed());
                }
                desk.settle(claim, &self.config, fresh, &begin)?
            };
            match settled {
                // The one it had has just been given up.
                Settled::NeedsSockets => {}
                Settled::Begun {
                    entry,
                    session,
                    displaced,
                    taken_over,
                } => {
                    self.taken_over
                        .fetch_add(u64::from(taken_over), Ordering::Relaxed);
                    let tunnel = Tunnel {
                        relay: self.clone(),
                        entry,
                        session,
                    };
                    self.end(displaced);
                    self.changed();
                    return Ok(tunnel);
                }
            }
        }
    }

    /// Counts and logs a refusal, and makes the answer.
    pub(super) fn refuse(&self, client: &Client, refusal: Refusal) -> Refused {
        let mut counters = RelayStats::REFUSALS.iter().zip(&self.refused);
        if let Some((_, counter)) = counters.find(|(reason, _)| **reason == refusal.reason) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        tracing::debug!(remote = %client.remote, reason = refusal.reason, "relay request refused");
        refusal.into_response()
    }
}

impl From<Limit> for Refusal {
    fn from(limit: Limit) -> Self {
        let reason = match limit {
            Limit::Relay => "relay-limit",
            Limit::Client => "client-limit",
            Limit::Source => "source-limit",
        };
        Self::new(
            reason,
            ProxyError::ConnectionLimitReached,
            limit.to_string(),
        )
    }
}

fn no_address() -> Refusal {
    Refusal::new(
        "no-address",
        ProxyError::ProxyConfigurationError,
        "this relay does not know an address others can reach it at",
    )
}

fn closed() -> Refusal {
    Refusal::new(
        "closed",
        ProxyError::DestinationUnavailable,
        "this relay is shutting down",
    )
}

/// A session as its carrier holds it. When it lets go, the tunnel has ended.
struct Tunnel {
    relay: Arc<Inner>,
    entry: EntryId,
    session: Arc<Session>,
}

impl TunnelIn for Tunnel {
    fn datagram(&self, datagram: Bytes) -> Result<(), ProtocolViolation> {
        self.session.datagram(datagram)
    }

    fn flush(&self) {
        self.session.flush();
    }

    fn capsule(&self, capsule: Capsule) -> Result<(), ProtocolViolation> {
        self.session.capsule(capsule)
    }

    fn closed(&self, reason: String) {
        tracing::debug!(%reason, "tunnel ended");
        self.relay.detach(self.entry, &self.session);
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.relay.detach(self.entry, &self.session);
    }
}
