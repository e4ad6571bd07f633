//! Datagrams that overtook the registration of their context.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use anyreach_wire::context::ContextId;
use bytes::Bytes;

/// Most datagrams kept: a first flight of a few remotes at once.
pub const MAX_EARLY_DATAGRAMS: usize = 32;

/// Most bytes of them kept, per tunnel.
pub const MAX_EARLY_BYTES: usize = 64 * 1024;

/// How long they are kept: "on the order of a round trip" (RFC 9298, section 5), long enough for a
/// capsule that was lost once on a slow path.
pub const EARLY_LIFETIME: Duration = Duration::from_millis(500);

/// Datagrams in contexts the peer has not registered yet, kept for a moment. When there are too
/// many, the oldest are dropped.
#[derive(Debug, Default)]
pub struct EarlyDatagrams {
    waiting: VecDeque<(Instant, ContextId, Bytes)>,
    bytes: usize,
}

impl EarlyDatagrams {
    /// Keeps a datagram's payload. Returns how many were dropped.
    pub fn push(&mut self, context: ContextId, payload: &[u8], now: Instant) -> usize {
        let mut dropped = self.expire(now);
        if payload.len() > MAX_EARLY_BYTES {
            return dropped + 1;
        }
        while self.waiting.len() >= MAX_EARLY_DATAGRAMS
            || self.bytes + payload.len() > MAX_EARLY_BYTES
        {
            dropped += usize::from(self.pop().is_some());
        }
        // A copy: a slice could keep alive a buffer of many times its size.
        let payload = Bytes::copy_from_slice(payload);
        self.bytes += payload.len();
        self.waiting.push_back((now, context, payload));
        dropped
    }

    /// The payloads that waited for a context, in order: it is registered, or was rejected.
    pub fn take(&mut self, context: ContextId, now: Instant) -> Vec<Bytes> {
        self.expire(now);
        let mut taken = Vec::new();
        let bytes = &mut self.bytes;
        self.waiting.retain_mut(|(_, of, payload)| {
            if *of != context {
                return true;
            }
            *bytes -= payload.len();
            taken.push(std::mem::take(payload));
            false
        });
        taken
    }

    /// Drops what has waited too long, and returns how many that were.
    pub fn expire(&mut self, now: Instant) -> usize {
        let mut expired = 0;
        while let Some((since, ..)) = self.waiting.front() {
            if now.saturating_duration_since(*since) < EARLY_LIFETIME {
                break;
            }
            self.pop();
            expired += 1;
        }
        expired
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.waiting.is_empty()
    }

    fn pop(&mut self) -> Option<()> {
        let (_, _, payload) = self.waiting.pop_front()?;
        self.bytes -= payload.len();
        Some(())
    }
}
