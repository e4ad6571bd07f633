//! Dialing one address.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Endpoint,
    supervise::{Established, Unsettled},
};
use crate::{
    Connection, PeerId, code,
    control::{ControlStream, HelloError},
    crypto::tls,
    error::DialError,
    registry::Dialed,
};

impl Endpoint {
    /// Connects to `addr`, and if `expected` is given, to nobody else there.
    ///
    /// Returns the connection that counts: the one made, or another to the same peer that was
    /// there first or came in meanwhile. Dropping the future ends the attempt.
    ///
    /// # Errors
    /// [`DialError`] with the reason; `handshake-timeout` when `timeout` has passed.
    pub async fn dial(
        &self,
        addr: SocketAddr,
        expected: Option<PeerId>,
        timeout: Duration,
    ) -> Result<Connection, DialError> {
        if expected == Some(self.0.identity.peer_id()) {
            return Err(DialError::self_dial());
        }
        let attempt = tokio::time::timeout(timeout, self.attempt(addr, expected));
        let Some(peer) = expected else {
            return attempt.await.unwrap_or_else(|_| Err(DialError::timeout()));
        };
        tokio::select! {
            biased;
            connection = self.established(peer) => Ok(connection),
            result = attempt => result.unwrap_or_else(|_| Err(DialError::timeout())),
        }
    }

    async fn attempt(
        &self,
        addr: SocketAddr,
        expected: Option<PeerId>,
    ) -> Result<Connection, DialError> {
        let started = Instant::now();
        let name = expected.map_or_else(|| tls::ANY_PEER.to_owned(), |peer| peer.to_string());
        let unreachable = self
            .0
            .socket
            .watch_unreachable(addr)
            .map_err(|_| DialError::new("closed", "the node was closed"))?;
        let connecting = self
            .0
            .engine
            .connect_with(self.0.client.clone(), addr, &name)
            .map_err(DialError::from_connect)?;
        let engine = tokio::select! {
            connected = connecting => connected.map_err(DialError::from_handshake)?,
            () = unreachable.reported() => {
                let detail = format!("the system has no route to {addr}");
                return Err(DialError::new("unreachable", detail));
            }
        };
        drop(unreachable);
        let connection = self.authenticate(engine, true, started)?;
        let peer = connection.peer_id();
        if peer == self.0.identity.peer_id() {
            connection.close_as("local", code::SELF_DIAL, b"");
            return Err(DialError::self_dial());
        }

        // A connection that ended must not make this one superfluous: asking takes it out.
        let _ = self.connection(&peer);
        let dialed = self
            .registry()
            .dialed(peer, connection.id(), connection.clone());
        let stamp = match dialed {
            Dialed::SayHello(stamp) => stamp,
            Dialed::Superfluous => {
                connection.close_as("replaced", code::DUPLICATE, b"");
                return self.other_connection(peer).await;
            }
        };
        let tentative = Unsettled::new(self, &connection);
        let greeted = async {
            let stream = connection.engine().open_bi().await?;
            let mut control = ControlStream::new(stream);
            let answer = control.say_hello(stamp, &self.0.config.agent).await?;
            Ok((control, answer))
        };
        match greeted.await {
            Ok((control, answer)) => {
                let counts = self.registry().answered(peer, connection.id(), answer);
                if counts {
                    tentative.settle();
                    self.establish(
                        Established {
                            connection: connection.clone(),
                            control,
                        },
                        None,
                    );
                    return Ok(connection);
                }
                drop(tentative);
                self.other_connection(peer).await
            }
            Err(HelloError::Connection(error)) => {
                drop(tentative);
                match connection.reason(&error).kind {
                    // The peer dialed as well and its connection stays; it may not be here yet.
                    "replaced" => Ok(self.established(peer).await),
                    _ => Err(DialError::from_handshake(error)),
                }
            }
            Err(error) => {
                connection.close(code::BAD_HELLO, error.to_string().as_bytes());
                Err(DialError::new("protocol", error.to_string()))
            }
        }
    }

    /// The connection in whose favour this attempt was given up.
    async fn other_connection(&self, peer: PeerId) -> Result<Connection, DialError> {
        loop {
            let changed = self.0.registry_changed.notified();
            if let Some(connection) = self.connection(&peer) {
                return Ok(connection);
            }
            if !self.registry().contains(&peer) {
                return Err(DialError::new(
                    "closed",
                    "the peer preferred another connection, which then was lost",
                ));
            }
            changed.await;
        }
    }

    /// Waits until there is a connection to `peer`.
    async fn established(&self, peer: PeerId) -> Connection {
        loop {
            let changed = self.0.registry_changed.notified();
            if let Some(connection) = self.connection(&peer) {
                return connection;
            }
            changed.await;
        }
    }
}
