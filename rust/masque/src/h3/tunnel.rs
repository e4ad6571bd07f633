//! The two halves of a tunnel over HTTP/3: what is called for what arrives, and what is called to
//! send.

use std::{
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use anyreach_wire::{
    capsule::{Capsule, encode_datagram_header},
    varint::VarInt,
};
use bytes::{BufMut, Bytes, BytesMut};
use noq::SendDatagramError;

use super::{
    link::{Link, Queue},
    outgoing::Outgoing,
};
use crate::carrier::{CapsuleError, Close, DatagramError, ProtocolViolation, TunnelIn, TunnelOut};

/// Largest HTTP Datagram that goes in a capsule when no QUIC DATAGRAM frame can take it: the first
/// packet of any QUIC connection, with what comes before it. Until the MTU of the line below is
/// known, even that is too large for a frame.
pub(super) const MAX_FALLBACK: usize = 1200 + 32;

/// What is called for what arrives: one call at a time, and none after the end.
pub(super) struct Tunnel {
    input: Mutex<Option<Arc<dyn TunnelIn>>>,
    pub(super) outgoing: Arc<Outgoing>,
}

impl Tunnel {
    pub(super) fn new(input: Arc<dyn TunnelIn>, outgoing: Arc<Outgoing>) -> Self {
        Self {
            input: Mutex::new(Some(input)),
            outgoing,
        }
    }

    /// An HTTP Datagram arrived.
    pub(super) fn datagram(&self, datagram: Bytes) {
        self.call(|input| input.datagram(datagram));
    }

    /// A capsule arrived.
    pub(super) fn capsule(&self, capsule: Capsule) {
        self.call(|input| input.capsule(capsule));
    }

    /// Nothing more is waiting.
    pub(super) fn flush(&self) {
        self.call(|input| {
            input.flush();
            Ok(())
        });
    }

    /// The tunnel is at its end. Doing it again does nothing.
    pub(super) fn end(&self, reason: impl Into<String>) {
        let input = self.input().take();
        if let Some(input) = input {
            input.closed(reason.into());
        }
    }

    /// The tunnel is at its end because the peer broke the rules.
    pub(super) fn abort(&self, reason: impl Into<String>) {
        // In this order: who sees the stream end gives a reason of his own.
        self.end(reason);
        self.outgoing.close(Close::DatagramError);
    }

    fn call(&self, call: impl FnOnce(&dyn TunnelIn) -> Result<(), ProtocolViolation>) {
        let called = match &*self.input() {
            Some(input) => call(&**input),
            None => return,
        };
        if let Err(violation) = called {
            self.abort(violation.0);
        }
    }

    fn input(&self) -> MutexGuard<'_, Option<Arc<dyn TunnelIn>>> {
        self.input.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Tunnel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Tunnel")
    }
}

/// What is called to send.
#[derive(Debug)]
pub(super) struct Out {
    link: Arc<Link>,
    outgoing: Arc<Outgoing>,
    /// The encoded quarter stream ID.
    prefix: Bytes,
    dropped: AtomicU64,
}

impl Out {
    pub(super) fn new(link: Arc<Link>, quarter_id: u64, outgoing: Arc<Outgoing>) -> Self {
        let mut prefix = BytesMut::with_capacity(VarInt::MAX_LEN);
        // Stream IDs have 62 bits before they are divided by four.
        VarInt::from_u64(quarter_id)
            .expect("a quarter stream ID")
            .encode(&mut prefix);
        Self {
            link,
            outgoing,
            prefix: prefix.freeze(),
            dropped: AtomicU64::new(0),
        }
    }

    /// Sends a QUIC DATAGRAM frame. False if it is too large, or there are none.
    fn send_frame(&self, head: &[u8], payload: &[u8]) -> Result<bool, DatagramError> {
        if !self.link.sends_datagrams() {
            return Ok(false);
        }
        let queue = self
            .link
            .queue(self.prefix.len() + head.len() + payload.len());
        if queue != Queue::Free {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        if queue == Queue::Full {
            return Err(DatagramError::Full);
        }
        let datagram = join([&self.prefix, head, payload]);
        match self.link.engine.send_datagram(datagram) {
            Ok(()) => Ok(true),
            Err(SendDatagramError::ConnectionLost(_)) => Err(DatagramError::Closed),
            Err(
                SendDatagramError::TooLarge
                | SendDatagramError::UnsupportedByPeer
                | SendDatagramError::Disabled,
            ) => Ok(false),
        }
    }
}

impl TunnelOut for Out {
    fn send_datagram(&self, head: &[u8], payload: &[u8]) -> Result<(), DatagramError> {
        if self.outgoing.is_closed() {
            return Err(DatagramError::Closed);
        }
        if self.send_frame(head, payload)? {
            return Ok(());
        }
        let length = head.len() + payload.len();
        if length > MAX_FALLBACK {
            return Err(DatagramError::TooLarge);
        }
        let capsule = join([&encode_datagram_header(length), head, payload]);
        if self.outgoing.datagram(capsule) {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
        Ok(())
    }

    fn max_datagram(&self) -> usize {
        let frame = if self.link.sends_datagrams() {
            self.link.engine.max_datagram_size().unwrap_or(0)
        } else {
            0
        };
        frame.saturating_sub(self.prefix.len()).max(MAX_FALLBACK)
    }

    fn send_capsule(&self, capsule: Bytes) -> Result<(), CapsuleError> {
        self.outgoing.capsule(capsule)
    }

    fn close(&self, end: Close) {
        self.outgoing.close(end);
    }

    fn rtt(&self) -> Option<Duration> {
        self.link.rtt()
    }

    fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

/// One buffer of several pieces.
fn join(pieces: [&[u8]; 3]) -> Bytes {
    let mut joined = BytesMut::with_capacity(pieces.iter().map(|piece| piece.len()).sum());
    for piece in pieces {
        joined.put_slice(piece);
    }
    joined.freeze()
}
