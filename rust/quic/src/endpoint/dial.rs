//! Dialing one address.

use std::{
    net::SocketAddr,
    sync::atomic::{AtomicBool, Ordering},
    time::{Duration, Instant},
};

use anyreach_net::{SyntheticAddr, canonical, is_possible_peer, is_synthetic};
use noq::PathId;

use super::{
    Endpoint,
    supervise::{Established, Unsettled},
};
use crate::{
    Connection, PeerId, RelayHint, code,
    control::{ControlStream, HelloError},
    crypto::tls,
    error::DialError,
    registry::{ConnectionKey, Dialed, HelloStamp},
};

/// How long to wait for the connection in whose favour the peer has closed ours: it was complete
/// at the peer when it decided so, and its hello is under way.
const OTHER_PATIENCE: Duration = Duration::from_secs(2);

/// What a dial came to.
#[derive(Debug, Clone)]
pub struct DialOutcome {
    /// The connection to the peer that counts.
    pub connection: Connection,
    /// Whether this dial made it; otherwise it was there, or came in meanwhile.
    pub made_here: bool,
}

/// Where a dial goes, for the engine, and what is known about it.
#[derive(Debug, Clone, Copy)]
struct Target {
    addr: SocketAddr,
    hint: RelayHint,
}

impl Endpoint {
    /// Connects to `addr`, and if `expected` is given, to nobody else there.
    ///
    /// Returns the connection that counts: the one made, or another to the same peer that was
    /// there first or came in meanwhile, and that answers. Dropping the future ends the attempt.
    ///
    /// # Errors
    /// [`DialError`] with the reason; `handshake-timeout` when `timeout` has passed.
    pub async fn dial(
        &self,
        addr: SocketAddr,
        expected: Option<PeerId>,
        timeout: Duration,
    ) -> Result<DialOutcome, DialError> {
        self.dial_hinted(addr, expected, timeout, RelayHint::default())
            .await
    }

    /// As [`dial`](Self::dial), to an address about which something is known: the path made shows
    /// as relayed if the address is one that a relay has bound for the peer.
    ///
    /// # Errors
    /// As [`dial`](Self::dial).
    pub async fn dial_hinted(
        &self,
        addr: SocketAddr,
        expected: Option<PeerId>,
        timeout: Duration,
        hint: RelayHint,
    ) -> Result<DialOutcome, DialError> {
        let addr = canonical(addr);
        if expected == Some(self.0.identity.peer_id()) {
            return Err(DialError::self_dial());
        }
        // An address a user or a peer supplied must never choose a tunnel.
        if !is_possible_peer(addr) || is_synthetic(addr.ip()) {
            let detail = format!("{addr} is not the address of a host");
            return Err(DialError::new("unreachable", detail));
        }
        let target = Target { addr, hint };
        self.dial_engine(target, expected, timeout).await
    }

    /// Connects to a peer through a tunnel that was added to [`Endpoint::socket`], as
    /// [`dial`](Self::dial) does to an address of the network.
    ///
    /// # Errors
    /// As [`dial`](Self::dial).
    pub async fn dial_through(
        &self,
        tunnelled: SyntheticAddr,
        expected: Option<PeerId>,
        timeout: Duration,
    ) -> Result<DialOutcome, DialError> {
        let target = Target {
            addr: tunnelled.socket_addr(),
            hint: RelayHint::default(),
        };
        self.dial_engine(target, expected, timeout).await
    }

    async fn dial_engine(
        &self,
        target: Target,
        expected: Option<PeerId>,
        timeout: Duration,
    ) -> Result<DialOutcome, DialError> {
        let handshake_done = AtomicBool::new(false);
        let attempt = async {
            match expected {
                None => self.attempt(target, None, None, &handshake_done).await,
                Some(peer) => {
                    let dead = match self.connection(&peer) {
                        None => None,
                        Some(present) if present.answers().await => return Ok(found(present)),
                        Some(present) => Some(present.id()),
                    };
                    tokio::select! {
                        biased;
                        other = self.established(peer, dead) => Ok(found(other)),
                        made = self.attempt(target, expected, dead, &handshake_done) => made,
                    }
                }
            }
        };
        tokio::time::timeout(timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(DialError::timeout(handshake_done.load(Ordering::Relaxed))))
    }

    async fn attempt(
        &self,
        target: Target,
        expected: Option<PeerId>,
        mut dead: Option<ConnectionKey>,
        handshake_done: &AtomicBool,
    ) -> Result<DialOutcome, DialError> {
        let connection = self.handshake(target.addr, expected).await?;
        connection.path_hint(PathId::ZERO, target.addr, target.hint);
        handshake_done.store(true, Ordering::Relaxed);
        let peer = connection.peer_id();
        if peer == self.0.identity.peer_id() {
            connection.close_as("local", code::SELF_DIAL, b"");
            return Err(DialError::self_dial());
        }
        // Until it is in the registry nobody else knows of it.
        let unused = CloseOnDrop(&connection);
        let (stamp, replaced) = loop {
            let dialed = self
                .registry()
                .dialed(peer, connection.id(), connection.clone(), dead);
            match dialed {
                Dialed::SayHello { stamp, replaced } => break (stamp, replaced),
                Dialed::Superfluous => {}
            }
            // The race has a winner. It may still fail, so this one stays until that is settled.
            if let Some(winner) = self.settled(peer, dead).await {
                if winner.answers().await {
                    self.fold_in(&winner, target.addr, target.hint);
                    return Ok(found(winner));
                }
                dead = Some(winner.id());
            }
        };
        std::mem::forget(unused);
        let unsettled = Unsettled::new(self, &connection);
        if let Some(old) = replaced {
            old.close_as("replaced", code::REPLACED, b"");
        }
        match self.say_hello(&connection, stamp).await {
            Ok((control, answer)) => {
                let counts = self.registry().answered(peer, connection.id(), answer);
                if counts {
                    unsettled.settle();
                    let established = Established {
                        connection: connection.clone(),
                        control,
                    };
                    self.establish(established, None);
                    return Ok(DialOutcome {
                        connection,
                        made_here: true,
                    });
                }
                drop(unsettled);
                self.the_other(peer, None).await
            }
            Err(HelloError::Connection(error)) => {
                drop(unsettled);
                match connection.reason(&error).kind {
                    // The peer dialed as well and its connection stays; it may not be here yet.
                    "replaced" => self.the_other(peer, Some(connection.id())).await,
                    _ => Err(DialError::from_handshake(error)),
                }
            }
            Err(error) => {
                connection.close(code::BAD_HELLO, error.to_string().as_bytes());
                Err(DialError::new("protocol", error.to_string()))
            }
        }
    }

    /// A handshake with whoever answers at `addr`, and nothing more.
    pub(super) async fn handshake(
        &self,
        addr: SocketAddr,
        expected: Option<PeerId>,
    ) -> Result<Connection, DialError> {
        let started = Instant::now();
        let name = expected.map_or_else(|| tls::ANY_PEER.to_owned(), |peer| peer.to_string());
        let engine = self
            .connect_engine(self.0.client.clone(), addr, &name)
            .await?;
        self.authenticate(engine, true, started)
    }

    /// One handshake with whatever `client` speaks; fails early if the system has no route.
    pub(super) async fn connect_engine(
        &self,
        client: noq::ClientConfig,
        addr: SocketAddr,
        name: &str,
    ) -> Result<noq::Connection, DialError> {
        let unreachable = self
            .0
            .socket
            .watch_unreachable(addr)
            .map_err(|_| DialError::new("closed", "the node was closed"))?;
        let connecting = self
            .0
            .engine
            .connect_with(client, addr, name)
            .map_err(DialError::from_connect)?;
        tokio::select! {
            connected = connecting => connected.map_err(DialError::from_handshake),
            () = unreachable.reported() => {
                let detail = format!("the system has no route to {}", self.shown(addr));
                Err(DialError::new("unreachable", detail))
            }
        }
    }

    async fn say_hello(
        &self,
        connection: &Connection,
        stamp: HelloStamp,
    ) -> Result<(ControlStream, HelloStamp), HelloError> {
        let stream = connection.engine().open_bi().await?;
        let mut control = ControlStream::new(stream);
        self.announce_on(connection);
        self.expect_openers(connection);
        let outbox = &connection.notices().outbox;
        let heard = control.say_hello(stamp, &self.0.config, outbox).await?;
        connection.set_capabilities(heard.capabilities);
        Ok((control, heard.stamp))
    }

    /// Waits until there is a connection to `peer` other than `dead`.
    async fn established(&self, peer: PeerId, dead: Option<ConnectionKey>) -> Connection {
        loop {
            let changed = self.0.registry_changed.notified();
            if let Some(connection) = self.connection(&peer).filter(|c| Some(c.id()) != dead) {
                return connection;
            }
            changed.await;
        }
    }

    /// Waits until there is a connection to `peer` other than `dead`, or none in the making.
    async fn settled(&self, peer: PeerId, dead: Option<ConnectionKey>) -> Option<Connection> {
        loop {
            let changed = self.0.registry_changed.notified();
            {
                let registry = self.registry();
                match registry.established(&peer) {
                    Some(connection) if Some(connection.id()) != dead => {
                        return Some(connection.clone());
                    }
                    _ if !registry.contains(&peer) => return None,
                    _ => {}
                }
            }
            changed.await;
        }
    }

    /// The connection in whose favour this attempt was given up.
    async fn the_other(
        &self,
        peer: PeerId,
        dead: Option<ConnectionKey>,
    ) -> Result<DialOutcome, DialError> {
        tokio::time::timeout(OTHER_PATIENCE, self.established(peer, dead))
            .await
            .map(found)
            .map_err(|_| {
                DialError::new(
                    "closed",
                    "the peer preferred a connection of its own, which then did not come",
                )
            })
    }
}

fn found(connection: Connection) -> DialOutcome {
    DialOutcome {
        connection,
        made_here: false,
    }
}

/// Closes a connection nobody has heard of.
struct CloseOnDrop<'a>(&'a Connection);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close_as("replaced", code::DUPLICATE, b"");
    }
}
