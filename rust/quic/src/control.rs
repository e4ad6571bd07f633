//! The control stream of a connection: the first bidirectional stream of the dialing side.
//! Here is the exchange of hellos on it and what comes after; the messages are encoded in
//! `anyreach-wire`.

mod outbox;
mod searches;
mod steps;

use std::{
    collections::VecDeque,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyreach_wire::control::{self, ControlError, Decoder, Hello, Message, Nat};
use bytes::{Buf, Bytes};
use noq::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};

pub(crate) use self::outbox::Outbox;
use self::{searches::Searches, steps::Steps};
use crate::{
    EndpointConfig, PeerId,
    reach::{FindError, Found, Reach},
    registry::HelloStamp,
    throttle::{Pace, Throttle},
};

/// Bytes read from the control stream at once: a hello and how the peer can be reached.
const READ_BYTES: usize = 4096;

/// Why the hellos could not be exchanged.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HelloError {
    /// The connection ended first.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
    /// The peer ended or reset the control stream.
    #[error("the peer ended the control stream")]
    StreamEnded,
    /// The bytes are no control message.
    #[error("bad control message: {0}")]
    Malformed(#[from] ControlError),
    /// Another message came where a hello or its answer belongs.
    #[error("the peer said something else where a hello belongs")]
    Unexpected,
    /// The peer took too long.
    #[error("no hello in time")]
    Late,
}

impl From<ReadError> for HelloError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::ConnectionLost(error) => Self::Connection(error),
            _ => Self::StreamEnded,
        }
    }
}

impl From<WriteError> for HelloError {
    fn from(error: WriteError) -> Self {
        match error {
            WriteError::ConnectionLost(error) => Self::Connection(error),
            _ => Self::StreamEnded,
        }
    }
}

/// Both halves of the control stream, for the exchange of hellos.
pub(crate) struct ControlStream {
    send: SendStream,
    reader: ControlReader,
}

/// The half that is read.
pub(crate) struct ControlReader {
    recv: RecvStream,
    decoder: Decoder,
    /// Looked at and not taken yet.
    early: Option<Box<Message>>,
}

/// The half that is written, with what the peer has not taken yet of the message begun.
pub(crate) struct ControlWriter {
    send: SendStream,
    begun: Bytes,
}

impl ControlStream {
    pub(crate) fn new((send, recv): (SendStream, RecvStream)) -> Self {
        let reader = ControlReader {
            recv,
            decoder: Decoder::new(),
            early: None,
        };
        Self { send, reader }
    }

    /// What the peer said about itself right behind its hello, if that is here already.
    pub(crate) fn early_reach(&mut self) -> Option<control::Reach> {
        self.reader.early_reach()
    }

    /// For what comes after the hellos.
    pub(crate) fn split(self) -> (ControlReader, ControlWriter) {
        let begun = Bytes::new();
        let send = self.send;
        (self.reader, ControlWriter { send, begun })
    }

    /// Writes `message`, and right behind it how this node can be reached and what its NAT does: then
    /// the peer knows from the start which of our paths are relayed, and how to make a better one.
    async fn write(&mut self, message: &Message, outbox: &Outbox) -> Result<(), HelloError> {
        let mut bytes = control::encode(message);
        if let Some(reach) = outbox.take_reach() {
            bytes.extend(control::encode(&Message::Reach(reach)));
        }
        if let Some(nat) = outbox.take_nat() {
            bytes.extend(control::encode(&Message::Nat(nat)));
        }
        Ok(self.send.write_all(&bytes).await?)
    }

    /// Dialing side: says hello and waits for the answer.
    pub(crate) async fn say_hello(
        &mut self,
        stamp: HelloStamp,
        config: &EndpointConfig,
        outbox: &Outbox,
    ) -> Result<Heard, HelloError> {
        self.write(&Message::Hello(hello(stamp, config)), outbox)
            .await?;
        match self.reader.read().await? {
            Message::Accept(answer) => Ok(heard(answer)),
            _ => Err(HelloError::Unexpected),
        }
    }

    /// Accepting side: waits for the hello.
    pub(crate) async fn hear_hello(&mut self) -> Result<Heard, HelloError> {
        match self.reader.read().await? {
            Message::Hello(hello) => {
                self.reader.hear_out().await?;
                Ok(heard(hello))
            }
            _ => Err(HelloError::Unexpected),
        }
    }

    /// Accepting side: answers the hello.
    pub(crate) async fn answer_hello(
        &mut self,
        stamp: HelloStamp,
        config: &EndpointConfig,
        outbox: &Outbox,
    ) -> Result<(), HelloError> {
        self.write(&Message::Accept(hello(stamp, config)), outbox)
            .await
    }
}

impl ControlReader {
    /// Reads the message that was sent with the one before, if one was: what has come of it is
    /// enough to wait for the rest. Dropping the future loses nothing.
    async fn hear_out(&mut self) -> Result<(), HelloError> {
        while self.early.is_none() {
            self.early = self.decoder.next()?.map(Box::new);
            if self.early.is_some() {
                break;
            }
            let begun = self.decoder.has_begun();
            let chunk = tokio::select! {
                biased;
                chunk = self.recv.read_chunk(READ_BYTES) => chunk?,
                () = std::future::ready(()), if !begun => break,
            };
            match chunk {
                Some(chunk) => self.decoder.push(&chunk)?,
                None => return Err(HelloError::StreamEnded),
            }
        }
        Ok(())
    }

    fn early_reach(&mut self) -> Option<control::Reach> {
        match self.early.take().map(|early| *early) {
            Some(Message::Reach(reach)) => return Some(reach),
            Some(other) => {
                self.early = Some(Box::new(other));
                return None;
            }
            None => {}
        }
        // An error comes again when it is asked for.
        match self.decoder.next().ok()?? {
            Message::Reach(reach) => Some(reach),
            other => {
                self.early = Some(Box::new(other));
                None
            }
        }
    }

    /// The next message this version knows. Dropping the future loses nothing.
    pub(crate) async fn read(&mut self) -> Result<Message, HelloError> {
        if let Some(early) = self.early.take()
            && !matches!(*early, Message::Unknown(_))
        {
            return Ok(*early);
        }
        loop {
            match self.decoder.next()? {
                Some(Message::Unknown(_)) => {}
                Some(message) => return Ok(message),
                None => match self.recv.read_chunk(READ_BYTES).await? {
                    Some(chunk) => self.decoder.push(&chunk)?,
                    None => return Err(HelloError::StreamEnded),
                },
            }
        }
    }
}

impl ControlWriter {
    /// Writes one message out of `outbox`, or the rest of the one begun. Dropping the future loses
    /// nothing.
    pub(crate) async fn write_from(&mut self, outbox: &Outbox) -> Result<(), HelloError> {
        if self.begun.is_empty() {
            self.begun = control::encode(&outbox.take().await).into();
        }
        while !self.begun.is_empty() {
            let taken = self.send.write(&self.begun).await?;
            self.begun.advance(taken);
        }
        Ok(())
    }
}

/// How often a node is told that others look for it: a popular one learns of everybody who is about
/// to call, and somebody who makes up searches costs it little.
pub(crate) const SOUGHT_PACE: Pace = Pace {
    burst: 32,
    period: Duration::from_millis(125),
};

/// Addresses of the peer at relays that are remembered after it has left them: all of two
/// announcements, more than a connection has paths.
const MAX_FORMER: usize = 2 * control::MAX_RELAYS * control::MAX_BOUND_ADDRESSES;

/// Everything two nodes tell each other after the hellos, as one end of a connection has it.
#[derive(Debug)]
pub(crate) struct Notices {
    pub(crate) outbox: Outbox,
    pub(crate) searches: Searches,
    pub(crate) steps: Steps,
    /// The latest the peer said of itself.
    theirs: Mutex<Option<Arc<Reach>>>,
    /// What it said of its NAT.
    nat: Mutex<Option<Nat>>,
    /// Addresses at relays the peer has spoken of, the latest last. A relay goes on carrying packets
    /// for an address its client has given up, and a path to it does not become direct by that.
    relayed: Mutex<VecDeque<(SocketAddr, PeerId)>>,
    /// How often the peer is told that it is looked for.
    sought: Mutex<Throttle>,
}

impl Notices {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            outbox: Outbox::default(),
            searches: Searches::default(),
            steps: Steps::new(now),
            nat: Mutex::default(),
            theirs: Mutex::default(),
            relayed: Mutex::default(),
            sought: Mutex::new(Throttle::new(SOUGHT_PACE, now)),
        }
    }

    pub(crate) fn theirs(&self) -> Option<Arc<Reach>> {
        // Replaced as a whole.
        let theirs = self.theirs.lock().unwrap_or_else(PoisonError::into_inner);
        theirs.clone()
    }

    /// Notes what the peer says of itself. True if that is news.
    pub(crate) fn heard(&self, reach: &control::Reach) -> bool {
        let reach = Reach::from_wire(reach);
        let mut theirs = self.theirs.lock().unwrap_or_else(PoisonError::into_inner);
        let new = theirs.as_deref() != Some(&reach);
        if new {
            self.remember_relayed(&reach);
            *theirs = Some(Arc::new(reach));
        }
        new
    }

    /// What the peer said of its NAT.
    pub(crate) fn their_nat(&self) -> Option<Nat> {
        *self.nat.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what the peer says of its NAT. True if that is news.
    pub(crate) fn heard_nat(&self, nat: Nat) -> bool {
        let mut theirs = self.nat.lock().unwrap_or_else(PoisonError::into_inner);
        theirs.replace(nat) != Some(nat)
    }

    fn remember_relayed(&self, reach: &Reach) {
        // Each element stands for itself.
        let mut relayed = self.relayed.lock().unwrap_or_else(PoisonError::into_inner);
        for bound in &reach.bound {
            for address in &bound.addresses {
                relayed.retain(|(known, _)| known != address);
                relayed.push_back((*address, bound.relay));
            }
        }
        let excess = relayed.len().saturating_sub(MAX_FORMER);
        relayed.drain(..excess);
    }

    /// The relay at which `address` leads to the peer, or did.
    pub(crate) fn relay_of(&self, address: SocketAddr) -> Option<PeerId> {
        let relayed = self.relayed.lock().unwrap_or_else(PoisonError::into_inner);
        let found = relayed.iter().rev().find(|(known, _)| *known == address);
        found.map(|(_, relay)| *relay)
    }

    /// Tells the peer that it is looked for, unless it was told often enough.
    pub(crate) fn tell_sought(&self, sought: control::Sought, now: Instant) {
        let allowed = {
            let mut throttle = self.sought.lock().unwrap_or_else(PoisonError::into_inner);
            throttle.take(now).is_ok()
        };
        if allowed {
            self.outbox.tell_sought(sought);
        }
    }

    /// Asks the peer for another node. `Silent` stands for whatever ended the conversation.
    pub(crate) async fn find(&self, peer: PeerId) -> Result<Found, FindError> {
        let answer = self.searches.ask(&self.outbox, peer.0).await;
        let answer = answer.ok_or(FindError::Silent)?;
        FindError::from_status(answer.status)?;
        Ok(Found::from_wire(&answer))
    }
}

fn hello(stamp: HelloStamp, config: &EndpointConfig) -> Hello {
    let mut hello = Hello::new(stamp.instance, stamp.serial);
    hello.agent.clone_from(&config.agent);
    hello.capabilities.clone_from(&config.capabilities);
    hello
}

/// What a peer says about itself at the start.
pub(crate) struct Heard {
    pub(crate) stamp: HelloStamp,
    /// What it says it offers.
    pub(crate) capabilities: Vec<String>,
}

fn heard(hello: Hello) -> Heard {
    Heard {
        stamp: HelloStamp {
            instance: hello.instance,
            serial: hello.serial,
        },
        capabilities: hello.capabilities,
    }
}
