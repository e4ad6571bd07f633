//! What is said on the control stream of an established connection.

use std::time::Instant;

use anyreach_wire::control::{Message, PrepareMethod};

use super::{Endpoint, news::News, notices::Allowance};
use crate::{
    Connection, code,
    control::{ControlReader, ControlStream, ControlWriter, HelloError, Outbox},
};

pub(super) struct Conversation<'a> {
    endpoint: &'a Endpoint,
    connection: &'a Connection,
    /// `None` once the peer has ended it.
    reader: Option<ControlReader>,
    writer: Option<ControlWriter>,
    allowance: Allowance,
}

impl<'a> Conversation<'a> {
    pub(super) fn new(
        endpoint: &'a Endpoint,
        connection: &'a Connection,
        control: ControlStream,
    ) -> Self {
        let (reader, writer) = control.split();
        Self {
            endpoint,
            connection,
            reader: Some(reader),
            writer: Some(writer),
            allowance: Allowance::new(Instant::now()),
        }
    }

    /// Hears or says one thing; pends for ever once both halves have ended. Dropping the future
    /// loses nothing.
    pub(super) async fn go_on(&mut self, news: &mut News<'_>) {
        let outbox = &self.connection.notices().outbox;
        // Who asks and does not listen is not heard until there is room for the next answer.
        let listening = outbox.takes_answers();
        tokio::select! {
            written = say(&mut self.writer, outbox) => {
                if written.is_err() {
                    self.writer = None;
                    self.connection.notices().searches.close();
                }
            }
            heard = hear(&mut self.reader), if listening => match heard {
                Ok(message) => self.heard(message, news),
                Err(error) => {
                    self.reader = None;
                    self.connection.notices().searches.close();
                    if matches!(error, HelloError::Malformed(_)) {
                        self.broken();
                    }
                }
            }
        }
    }

    fn heard(&mut self, message: Message, news: &mut News<'_>) {
        let now = Instant::now();
        let notices = self.connection.notices();
        match message {
            Message::Reach(reach) => {
                if notices.heard(&reach) {
                    news.reach();
                }
            }
            Message::Find(find) => {
                let (endpoint, allowance) = (self.endpoint, &mut self.allowance);
                let found = endpoint.find_for(self.connection, &find, allowance, now);
                notices.outbox.answer(found);
            }
            Message::Found(found) => notices.searches.answered(found),
            Message::Sought(sought) => news.sought(&sought, now),
            Message::Nat(nat) => {
                if notices.heard_nat(nat) {
                    news.nat();
                }
            }
            Message::Prepare(prepare) => {
                let known = !matches!(prepare.method, PrepareMethod::Other(_));
                if known && notices.steps.asked(&prepare, now) {
                    news.prepare(&prepare);
                } else {
                    notices.outbox.refuse(prepare.request);
                }
            }
            Message::Prepared(prepared) => {
                if notices.steps.answered(&prepared) {
                    news.prepared(&prepared);
                }
            }
            // Has paid by arriving.
            Message::Filler(_) => {}
            // Hellos belong to the start. What later versions say is skipped by the reader.
            _ => self.broken(),
        }
    }

    fn broken(&mut self) {
        self.connection
            .close(code::BAD_HELLO, b"bad control message");
    }
}

async fn say(writer: &mut Option<ControlWriter>, outbox: &Outbox) -> Result<(), HelloError> {
    match writer {
        Some(writer) => writer.write_from(outbox).await,
        None => std::future::pending().await,
    }
}

async fn hear(reader: &mut Option<ControlReader>) -> Result<Message, HelloError> {
    match reader {
        Some(reader) => reader.read().await,
        None => std::future::pending().await,
    }
}
