//! Addresses nothing is sent to for a moment: until a deadline, or until something came from there.
//!
//! Two NATs open towards each other only if both ends send before either receives. Linux routers
//! that answer for themselves, and some NATs, spoil the mapping of who is sent to first. So the
//! end that is told second opens its own NAT with datagrams that die on the way, and holds all
//! others back until the first one from there has shown that the way is open.
//!
//! What the rest of the node sends on purpose ([`MuxHandle::send_raw`]) is not held.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use noq_udp::RecvMeta;

use crate::{
    addr::canonical,
    counters::Counters,
    mux::{MuxError, MuxHandle},
    routes::{Routes, Shared},
};

/// Addresses held at once. A round of punching has at most 32 candidates of the peer, and rounds
/// with a few peers may overlap; beyond this the socket sends as usual, which is what happens
/// without holding, too.
pub const MAX_HELD: usize = 256;

/// Longest hold: several round trips around the world. Whoever asks for more would rather not send.
pub const MAX_HOLD: Duration = Duration::from_secs(3);

impl MuxHandle {
    /// Drops what the engine sends to these addresses for `time`, at most [`MAX_HOLD`], or until
    /// something comes from them. Addresses beyond [`MAX_HELD`] are not held. To be called within a
    /// tokio runtime.
    ///
    /// Not for addresses a path in use leads to.
    ///
    /// # Errors
    ///
    /// [`MuxError::Closed`].
    pub fn hold(&self, addresses: &[SocketAddr], time: Duration) -> Result<(), MuxError> {
        let shared = self.shared()?;
        let now = Instant::now();
        let until = now + time.min(MAX_HOLD);
        if addresses.is_empty() || until == now {
            return Ok(());
        }
        shared.update(|routes| {
            routes.held.retain(|_, end| *end > now);
            for address in addresses {
                if routes.held.len() < MAX_HELD {
                    routes.held.insert(canonical(*address), until);
                }
            }
            true
        });
        // An empty list costs nothing for each datagram, one of expired holds a look-up.
        let shared = Arc::downgrade(&shared);
        tokio::spawn(async move {
            tokio::time::sleep_until(until.into()).await;
            if let Some(shared) = shared.upgrade() {
                release_expired(&shared);
            }
        });
        Ok(())
    }
}

fn release_expired(shared: &Shared) {
    let now = Instant::now();
    shared.update(|routes| {
        let before = routes.held.len();
        routes.held.retain(|_, end| *end > now);
        routes.held.len() != before
    });
}

impl Routes {
    /// Whether something for `destination` is to be dropped now; counted if so.
    #[inline]
    pub(crate) fn holds(&self, destination: SocketAddr, counters: &Counters) -> bool {
        if self.held.is_empty() {
            return false;
        }
        let held = self
            .held
            .get(&destination)
            .is_some_and(|end| Instant::now() < *end);
        if held {
            Counters::bump(&counters.send_held);
        }
        held
    }
}

impl Shared {
    /// Something came from there: the way is open.
    #[inline]
    pub(crate) fn heard(&self, routes: &Routes, received: &[RecvMeta]) {
        if !routes.held.is_empty() {
            self.release(routes, received);
        }
    }

    #[cold]
    fn release(&self, routes: &Routes, received: &[RecvMeta]) {
        let released: Vec<SocketAddr> = received
            .iter()
            .map(|entry| canonical(entry.addr))
            .filter(|from| routes.held.contains_key(from))
            .collect();
        if released.is_empty() {
            return;
        }
        self.update(|routes| {
            let before = routes.held.len();
            routes.held.retain(|address, _| !released.contains(address));
            routes.held.len() != before
        });
    }
}
