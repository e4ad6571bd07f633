//! The control stream of a connection: the first bidirectional stream of the dialing side.
//! Here is the exchange of hellos on it; the messages are encoded in `anyreach-wire`.

use anyreach_wire::control::{self, ControlError, Decoder, Hello, Message};
use noq::{ConnectionError, ReadError, RecvStream, SendStream, WriteError};

use crate::registry::HelloStamp;

/// Bytes read from the control stream at once: several hellos.
const READ_BYTES: usize = 1024;

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

/// Both halves of the control stream.
pub(crate) struct ControlStream {
    send: SendStream,
    recv: RecvStream,
    decoder: Decoder,
}

impl ControlStream {
    pub(crate) fn new((send, recv): (SendStream, RecvStream)) -> Self {
        Self {
            send,
            recv,
            decoder: Decoder::new(),
        }
    }

    async fn write(&mut self, message: &Message) -> Result<(), HelloError> {
        Ok(self.send.write_all(&control::encode(message)).await?)
    }

    /// The next message this version knows.
    pub(crate) async fn read(&mut self) -> Result<Message, HelloError> {
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

    /// Dialing side: says hello and waits for the answer.
    pub(crate) async fn say_hello(
        &mut self,
        stamp: HelloStamp,
        agent: &str,
    ) -> Result<HelloStamp, HelloError> {
        self.write(&Message::Hello(hello(stamp, agent))).await?;
        match self.read().await? {
            Message::Accept(answer) => Ok(stamp_of(&answer)),
            _ => Err(HelloError::Unexpected),
        }
    }

    /// Accepting side: waits for the hello.
    pub(crate) async fn hear_hello(&mut self) -> Result<HelloStamp, HelloError> {
        match self.read().await? {
            Message::Hello(hello) => Ok(stamp_of(&hello)),
            _ => Err(HelloError::Unexpected),
        }
    }

    /// Accepting side: answers the hello.
    pub(crate) async fn answer_hello(
        &mut self,
        stamp: HelloStamp,
        agent: &str,
    ) -> Result<(), HelloError> {
        self.write(&Message::Accept(hello(stamp, agent))).await
    }
}

fn hello(stamp: HelloStamp, agent: &str) -> Hello {
    let mut hello = Hello::new(stamp.instance, stamp.serial);
    hello.agent = agent.to_owned();
    hello
}

fn stamp_of(hello: &Hello) -> HelloStamp {
    HelloStamp {
        instance: hello.instance,
        serial: hello.serial,
    }
}
