//! Accepting handshakes, and watching over established connections until they end.

use std::{
    future::poll_fn,
    net::SocketAddr,
    pin::pin,
    sync::atomic::Ordering,
    time::{Duration, Instant},
};

use anyreach_net::canonical;
use futures_core::Stream;
use noq::{ConnectionError, Incoming, PathEvent, PathId};

use super::{
    Endpoint,
    admission::{Permit, Verdict},
};
use crate::{
    Connection, Event, code,
    connection::path_number,
    control::{ControlStream, HelloError},
    registry::Greeted,
};

/// A connection on which both sides said hello.
pub(super) struct Established {
    pub(super) connection: Connection,
    pub(super) control: ControlStream,
}

/// A connection that is in the registry, but whose hellos are not through. Takes it out again and
/// closes it if that never happens, also when the future doing it is dropped.
pub(super) struct Unsettled<'a> {
    endpoint: &'a Endpoint,
    connection: &'a Connection,
    settled: bool,
}

impl<'a> Unsettled<'a> {
    pub(super) fn new(endpoint: &'a Endpoint, connection: &'a Connection) -> Self {
        Self {
            endpoint,
            connection,
            settled: false,
        }
    }

    pub(super) fn settle(mut self) {
        self.settled = true;
    }
}

impl Drop for Unsettled<'_> {
    fn drop(&mut self) {
        if self.settled {
            return;
        }
        self.endpoint.forget(self.connection);
        // No effect if the connection is closed already.
        self.connection
            .close_as("local", code::CANCELLED, b"the dial was given up");
    }
}

/// Why an incoming connection came to nothing.
enum Refusal {
    Handshake(ConnectionError),
    Hello(HelloError),
    Duplicate,
    Late,
}

impl Endpoint {
    pub(super) async fn accept_all(self) {
        while let Some(incoming) = self.0.engine.accept().await {
            let rejected = &self.0.rejected;
            match self.0.admission.admit(
                incoming.remote_address(),
                incoming.remote_address_validated(),
            ) {
                Verdict::Accept(permit) => {
                    tokio::spawn(self.clone().welcome(incoming, permit));
                }
                Verdict::Retry => {
                    // Fails only for a validated address, which is never asked to retry.
                    let _ = incoming.retry();
                }
                Verdict::Refuse => {
                    rejected.limit.fetch_add(1, Ordering::Relaxed);
                    incoming.refuse();
                }
            }
        }
    }

    async fn welcome(self, incoming: Incoming, permit: Permit) {
        let remote = incoming.remote_address();
        let refusal = match self.greet(incoming).await {
            Ok(established) => {
                self.0.incoming.push(established.connection.clone());
                self.establish(established, Some(permit));
                return;
            }
            Err(refusal) => refusal,
        };
        let rejected = &self.0.rejected;
        let (counter, detail) = match refusal {
            Refusal::Handshake(error) => (&rejected.handshake, error.to_string()),
            Refusal::Late => (&rejected.handshake, "timed out".to_owned()),
            Refusal::Hello(error) => (&rejected.hello, error.to_string()),
            Refusal::Duplicate => (&rejected.duplicate, "another connection counts".to_owned()),
        };
        counter.fetch_add(1, Ordering::Relaxed);
        tracing::debug!(%remote, detail, "incoming connection refused");
    }

    /// Handshake, hello and answer on the accepting side, all within the handshake timeout.
    async fn greet(&self, incoming: Incoming) -> Result<Established, Refusal> {
        let started = Instant::now();
        let deadline = started + self.0.config.handshake_timeout;
        let connecting = incoming.accept().map_err(Refusal::Handshake)?;
        let engine = tokio::time::timeout_at(deadline.into(), connecting)
            .await
            .map_err(|_| Refusal::Late)?
            .map_err(Refusal::Handshake)?;
        let connection = self
            .authenticate(engine, false, started)
            .map_err(|_| Refusal::Handshake(ConnectionError::LocallyClosed))?;
        if connection.peer_id() == self.0.identity.peer_id() {
            connection.close_as("local", code::SELF_DIAL, b"");
            return Err(Refusal::Duplicate);
        }
        let heard = async {
            let mut control = ControlStream::new(connection.engine().accept_bi().await?);
            let stamp = control.hear_hello().await?;
            Ok((control, stamp))
        };
        let heard = tokio::time::timeout_at(deadline.into(), heard)
            .await
            .unwrap_or(Err(HelloError::Late));
        let (mut control, stamp) = match heard {
            Ok(heard) => heard,
            Err(error) => {
                connection.close(code::BAD_HELLO, error.to_string().as_bytes());
                return Err(Refusal::Hello(error));
            }
        };
        let greeted = self.registry().greeted(
            connection.peer_id(),
            connection.id(),
            connection.clone(),
            stamp,
        );
        let stamp = match greeted {
            Greeted::Reject => {
                connection.close_as("replaced", code::DUPLICATE, b"");
                return Err(Refusal::Duplicate);
            }
            Greeted::Accept { stamp, replaced } => {
                if let Some(old) = replaced {
                    old.close_as("replaced", code::REPLACED, b"");
                }
                stamp
            }
        };
        let unsettled = Unsettled::new(self, &connection);
        // Waits only for a peer that grants no room on its own control stream.
        let answer = control.answer_hello(stamp, &self.0.config.agent);
        tokio::time::timeout_at(deadline.into(), answer)
            .await
            .unwrap_or(Err(HelloError::Late))
            .map_err(Refusal::Hello)?;
        unsettled.settle();
        Ok(Established {
            connection,
            control,
        })
    }

    pub(super) fn establish(&self, established: Established, permit: Option<Permit>) {
        // Told before anyone waiting for it wakes up, so that it comes before what follows.
        self.emit(Event::Connected(established.connection.clone()));
        self.0.registry_changed.notify_waiters();
        tokio::spawn(self.clone().supervise(established, permit));
    }

    fn forget(&self, connection: &Connection) {
        self.registry()
            .removed(connection.peer_id(), connection.id());
        self.0.registry_changed.notify_waiters();
    }

    async fn supervise(self, established: Established, _permit: Option<Permit>) {
        let Established {
            connection,
            mut control,
        } = established;
        // Subscribe first, then look at what was reported before.
        let mut path_events = connection.engine().path_events();
        if let Some(address) = connection.engine().observed_external_addr().get() {
            self.observed(&connection, PathId::ZERO, address);
        }
        let mut control_open = true;
        let error = loop {
            tokio::select! {
                error = connection.engine().closed() => break error,
                event = poll_fn(|cx| pin!(&mut path_events).poll_next(cx)) => match event {
                    Some(Ok(event)) => self.path_event(&connection, event),
                    // Missed some: the next ones are told all the same.
                    Some(Err(_)) => {}
                    None => break connection.engine().closed().await,
                },
                message = control.read(), if control_open => {
                    // Nothing is said after the hellos by this version. What later versions say
                    // is skipped inside; what is not of the protocol ends the connection.
                    match message {
                        Ok(_) | Err(HelloError::Malformed(_)) => {
                            connection.close(code::BAD_HELLO, b"bad control message");
                        }
                        Err(_) => {}
                    }
                    control_open = false;
                }
            }
        };
        self.forget(&connection);
        let reason = connection.reason(&error);
        self.emit(Event::Disconnected { connection, reason });
    }

    fn path_event(&self, connection: &Connection, event: PathEvent) {
        let reason = match event {
            PathEvent::Established { id, .. } => {
                connection.path_established(id);
                "established"
            }
            PathEvent::Abandoned { id, .. } => {
                connection.path_abandoned(id);
                "abandoned"
            }
            PathEvent::ObservedAddr { id, addr, .. } => {
                self.observed(connection, id, addr);
                return;
            }
            _ => return,
        };
        self.emit(Event::PathsChanged {
            connection: connection.clone(),
            reason,
        });
    }

    fn observed(&self, connection: &Connection, id: PathId, address: SocketAddr) {
        let address = canonical(address);
        if let Some(after) = connection.path_observed(id, address) {
            self.emit(Event::Observed {
                connection: connection.clone(),
                path_id: path_number(id),
                address,
                after: after.max(Duration::from_micros(1)),
            });
        }
    }
}
