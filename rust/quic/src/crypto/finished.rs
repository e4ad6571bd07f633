//! What is left of TLS when the handshake is over: what was negotiated, who the peer is, and an
//! answer to whatever it still says.
//!
//! The TLS library's state is about 14 KB per connection, most of it buffers for handshake
//! messages, and of all that TLS 1.3 can say after a handshake only one message may come in QUIC.

use std::sync::Arc;

use noq_proto::{Side, TransportError, TransportErrorCode};
use rustls::quic::Connection;

use crate::openers::{EXPORTER_LABEL, SECRET_LEN, Secret};

/// What a peer has proved itself with: the certificate, or DER SubjectPublicKeyInfo in its place.
pub(crate) type ProvedKey = Arc<[u8]>;

/// The alert `unexpected_message` (RFC 8446, section 6.2).
const UNEXPECTED_MESSAGE: u8 = 10;

/// A type and a length of 24 bits (RFC 8446, section 4).
const HEADER: usize = 4;

/// NewSessionTicket (RFC 8446, section 4.6.1).
const NEW_SESSION_TICKET: u8 = 4;

/// CertificateRequest (RFC 8446, section 4.3.2).
const CERTIFICATE_REQUEST: u8 = 13;

/// A TLS handshake that is over.
pub(super) struct Finished {
    pub(super) group: Option<&'static str>,
    pub(super) alpn: Option<Vec<u8>>,
    pub(super) key: Option<ProvedKey>,
    /// What openers are authenticated with.
    pub(super) opener: Option<Secret>,
    /// The peer's transport parameters, encoded.
    pub(super) parameters: Option<Box<[u8]>>,
    late: LateMessages,
}

impl Finished {
    /// Keeps of `tls` what is asked for after the handshake.
    pub(super) fn new(tls: &Connection, side: Side) -> Self {
        Self {
            group: group(tls),
            alpn: tls.alpn_protocol().map(<[u8]>::to_vec),
            key: proved_key(tls),
            opener: opener_secret(tls),
            parameters: tls.quic_transport_parameters().map(Into::into),
            late: LateMessages::new(side),
        }
    }

    /// Takes handshake messages that come after the handshake.
    pub(super) fn read(&mut self, data: &[u8]) -> Result<(), TransportError> {
        self.late.read(data)
    }
}

/// Name of the key-exchange group.
pub(super) fn group(tls: &Connection) -> Option<&'static str> {
    tls.negotiated_key_exchange_group()?.name().as_str()
}

/// What the peer has proved itself with, if it has.
pub(super) fn proved_key(tls: &Connection) -> Option<ProvedKey> {
    let key = tls.peer_certificates()?.first()?;
    Some(ProvedKey::from(key.as_ref()))
}

/// What openers of this connection are authenticated with, once the handshake is over.
pub(super) fn opener_secret(tls: &Connection) -> Option<Secret> {
    let exported = tls.export_keying_material([0; SECRET_LEN], EXPORTER_LABEL, None);
    exported.ok().map(|exported| Secret::new(&exported))
}

/// Skips session tickets, which nobody wants here, and refuses everything else.
struct LateMessages {
    side: Side,
    header: [u8; HEADER],
    /// How much of the header of the next message is here.
    have: usize,
    /// How much of the body of the present message is still to come.
    body: usize,
}

impl LateMessages {
    fn new(side: Side) -> Self {
        Self {
            side,
            header: [0; HEADER],
            have: 0,
            body: 0,
        }
    }

    fn read(&mut self, mut data: &[u8]) -> Result<(), TransportError> {
        loop {
            let skipped = self.body.min(data.len());
            self.body -= skipped;
            data = &data[skipped..];
            let Some((&byte, rest)) = data.split_first() else {
                return Ok(());
            };
            data = rest;
            self.header[self.have] = byte;
            self.have += 1;
            if self.have == 1 {
                self.check(byte)?;
            }
            if self.have == HEADER {
                let [_, high, middle, low] = self.header;
                self.body = u32::from_be_bytes([0, high, middle, low]) as usize;
                self.have = 0;
            }
        }
    }

    fn check(&self, message: u8) -> Result<(), TransportError> {
        match (message, self.side) {
            (NEW_SESSION_TICKET, Side::Client) => Ok(()),
            // RFC 9001, section 4.4.
            (CERTIFICATE_REQUEST, Side::Client) => Err(TransportError::new(
                TransportErrorCode::PROTOCOL_VIOLATION,
                "certificate requested after the handshake".into(),
            )),
            // Among them KeyUpdate: RFC 9001, section 6.
            _ => Err(TransportError::new(
                TransportErrorCode::crypto(UNEXPECTED_MESSAGE),
                format!("TLS message {message} after the handshake"),
            )),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u8, body: usize) -> Vec<u8> {
        let mut message = vec![kind];
        message.extend_from_slice(&(body as u32).to_be_bytes()[1..]);
        // Bytes that would be refused as the start of a message.
        message.resize(HEADER + body, 24);
        message
    }

    fn read(side: Side, data: &[u8], step: usize) -> Result<(), TransportErrorCode> {
        let mut late = LateMessages::new(side);
        data.chunks(step)
            .try_for_each(|chunk| late.read(chunk).map_err(|error| error.code))
    }

    #[test]
    fn tickets_are_skipped_however_they_are_cut() {
        let mut tickets = message(NEW_SESSION_TICKET, 300);
        tickets.extend(message(NEW_SESSION_TICKET, 0));
        tickets.extend(message(NEW_SESSION_TICKET, 1));
        for step in [1, 2, 3, 5, 200, 1000] {
            assert_eq!(read(Side::Client, &tickets, step), Ok(()));
        }
    }

    #[test]
    fn everything_else_ends_the_connection() {
        let unexpected = TransportErrorCode::crypto(UNEXPECTED_MESSAGE);
        let key_update = message(24, 1);
        for side in [Side::Client, Side::Server] {
            assert_eq!(read(side, &key_update, 1), Err(unexpected));
            assert_eq!(read(side, &message(2, 40), 100), Err(unexpected));
        }
        let ticket = message(NEW_SESSION_TICKET, 20);
        assert_eq!(read(Side::Server, &ticket, 100), Err(unexpected));
        let mut after_a_ticket = ticket;
        after_a_ticket.extend(key_update);
        assert_eq!(read(Side::Client, &after_a_ticket, 7), Err(unexpected));
        assert_eq!(
            read(Side::Client, &message(CERTIFICATE_REQUEST, 8), 3),
            Err(TransportErrorCode::PROTOCOL_VIOLATION)
        );
    }
}
