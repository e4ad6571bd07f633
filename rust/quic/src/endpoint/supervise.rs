//! Accepting handshakes, and watching over established connections until they end.

use std::{future::poll_fn, pin::pin, sync::atomic::Ordering, time::Instant};

use anyreach_net::canonical;
use futures_core::Stream;
use noq::{ConnectionError, Incoming, PathId};

use super::{
    Endpoint,
    admission::{Permit, Verdict},
    conversation::Conversation,
    is_http,
    news::News,
    steward::Steward,
};
use crate::{
    Connection, code,
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
        let (code, text): (_, &[u8]) = match self.connection.outbound() {
            true => (code::CANCELLED, b"the dial was given up"),
            false => (code::BAD_HELLO, b"the hello could not be answered"),
        };
        // No effect if the connection is closed already.
        self.connection.close_as("local", code, text);
    }
}

/// What an incoming connection turned out to be.
enum Arrived {
    Node(Established),
    Http(noq::Connection),
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
                    rejected.retry.fetch_add(1, Ordering::Relaxed);
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

    async fn welcome(self, incoming: Incoming, mut permit: Permit) {
        let remote = incoming.remote_address();
        let refusal = match self.greet(incoming, &mut permit).await {
            Ok(Arrived::Http(engine)) => {
                self.http_arrived(engine, permit);
                return;
            }
            Ok(Arrived::Node(established)) => {
                self.0.arrivals.push(established.connection.clone());
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
        let remote = self.shown(canonical(remote));
        tracing::debug!(remote, detail, "incoming connection refused");
    }

    /// Handshake, hello and answer on the accepting side, all within the handshake timeout.
    async fn greet(&self, incoming: Incoming, permit: &mut Permit) -> Result<Arrived, Refusal> {
        let started = Instant::now();
        let deadline = started + self.0.config.handshake_timeout;
        let connecting = incoming.accept().map_err(Refusal::Handshake)?;
        let engine = tokio::time::timeout_at(deadline.into(), connecting)
            .await
            .map_err(|_| Refusal::Late)?
            .map_err(Refusal::Handshake)?;
        permit.proved();
        if is_http(&engine) {
            return Ok(Arrived::Http(engine));
        }
        let connection = self
            .authenticate(engine, false, started)
            .map_err(|_| Refusal::Handshake(ConnectionError::LocallyClosed))?;
        if connection.peer_id() == self.0.identity.peer_id() {
            connection.close_as("local", code::SELF_DIAL, b"");
            return Err(Refusal::Duplicate);
        }
        let heard = async {
            let mut control = ControlStream::new(connection.engine().accept_bi().await?);
            let heard = control.hear_hello().await?;
            Ok((control, heard))
        };
        let heard = tokio::time::timeout_at(deadline.into(), heard)
            .await
            .unwrap_or(Err(HelloError::Late));
        let (mut control, heard) = match heard {
            Ok(heard) => heard,
            Err(error) => {
                connection.close(code::BAD_HELLO, error.to_string().as_bytes());
                return Err(Refusal::Hello(error));
            }
        };
        connection.set_capabilities(heard.capabilities);
        let greeted = self.registry().greeted(
            connection.peer_id(),
            connection.id(),
            connection.clone(),
            heard.stamp,
        );
        let Greeted::Accept { stamp, replaced } = greeted else {
            connection.close_as("replaced", code::DUPLICATE, b"");
            return Err(Refusal::Duplicate);
        };
        let unsettled = Unsettled::new(self, &connection);
        // Waits only for a peer that grants no room on its own control stream.
        self.announce_on(&connection);
        let outbox = &connection.notices().outbox;
        let answer = control.answer_hello(stamp, &self.0.config, outbox);
        let answered = tokio::time::timeout_at(deadline.into(), answer)
            .await
            .unwrap_or(Err(HelloError::Late));
        // Whatever became of the new one: its hello said that the peer has given up the old one.
        if let Some(old) = replaced {
            old.close_as("replaced", code::REPLACED, b"");
        }
        answered.map_err(Refusal::Hello)?;
        unsettled.settle();
        self.registry()
            .settled(connection.peer_id(), connection.id());
        Ok(Arrived::Node(Established {
            connection,
            control,
        }))
    }

    pub(super) fn establish(&self, mut established: Established, permit: Option<Permit>) {
        let connection = &established.connection;
        // Those that were announced while the hellos were under way.
        self.announce_on(connection);
        // Before anybody asks for the paths: which of them are relayed depends on it.
        let reach = established.control.early_reach();
        if let Some(reach) = &reach {
            connection.notices().heard(reach);
        }
        // Told before anyone waiting for it wakes up, so that it comes before what follows.
        self.0.journal.connected(&established.connection);
        connection.take_openers(&self.0.desk, &self.0.journal);
        if let Some(reach) = connection.reach().filter(|_| reach.is_some()) {
            connection.open_early(&reach);
        }
        self.0.registry_changed.notify_waiters();
        let supervisor = Supervisor::new(self.clone());
        tokio::spawn(async move { supervisor.0.supervise(established, permit).await });
    }

    pub(super) fn forget(&self, connection: &Connection) {
        self.registry()
            .removed(connection.peer_id(), connection.id());
        self.0.arrivals.forget(connection.id());
        self.0.registry_changed.notify_waiters();
    }

    async fn supervise(&self, established: Established, _permit: Option<Permit>) {
        let Established {
            connection,
            control,
        } = established;
        // Subscribe first, then look at what was reported before.
        let mut path_events = connection.engine().path_events();
        let mut news = News::new(self, &connection);
        if let Some(address) = connection.engine().observed_external_addr().get() {
            news.observed(PathId::ZERO, address);
        }
        let mut conversation = Conversation::new(self, &connection, control);
        let mut steward = Steward::new(&connection);
        let error = loop {
            let due = news.tell(Instant::now());
            tokio::select! {
                error = connection.engine().closed() => break error,
                event = poll_fn(|cx| pin!(&mut path_events).poll_next(cx)) => match event {
                    Some(Ok(event)) => {
                        news.path_event(&event);
                        steward.look(&mut news);
                    }
                    Some(Err(_)) => {
                        news.missed();
                        steward.look(&mut news);
                    }
                    None => break connection.engine().closed().await,
                },
                change = connection.traverse() => news.traversal(change),
                () = wait_until(due), if due.is_some() => {}
                () = steward.wait() => steward.look(&mut news),
                // What the peer says of itself may make a path a relayed one.
                () = conversation.go_on(&mut news) => steward.look(&mut news),
            }
        };
        connection.refuse_openers(&self.0.desk);
        connection.notices().searches.close();
        self.forget(&connection);
        let reason = connection.reason(&error);
        self.0.journal.disconnected(&connection, reason);
        connection.repeat_farewell(&self.0.socket);
    }
}

async fn wait_until(due: Option<Instant>) {
    if let Some(due) = due {
        tokio::time::sleep_until(due.into()).await;
    }
}

/// Counts the tasks that watch over connections, so that closing can wait for their last word.
struct Supervisor(Endpoint);

impl Supervisor {
    fn new(endpoint: Endpoint) -> Self {
        let endpoint = endpoint.for_task();
        endpoint.0.supervisors.fetch_add(1, Ordering::AcqRel);
        Self(endpoint)
    }
}

impl Drop for Supervisor {
    fn drop(&mut self) {
        if self.0.0.supervisors.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.0.supervisors_gone.notify_waiters();
        }
    }
}
