//! The packet that closes a connection, kept so that it can be sent again.
//!
//! A CONNECTION_CLOSE is neither acknowledged nor repeated: where it gets lost, a peer that has
//! nothing to send hears of the end by its idle timeout. RFC 9000 lets the very same packet be sent
//! more than once (section 10.2.1), so this keeps its bytes, as they are on the wire, until the peer
//! has answered with one of its own.

use std::{
    net::SocketAddr,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use anyreach_wire::walk::frame_at;
use noq_proto::{PathId, crypto::HeaderKey};

use crate::connection::path_number;

/// Where a path leads.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Route {
    /// The number of the path.
    pub(crate) path: u32,
    /// As the engine knows it.
    pub(crate) remote: SocketAddr,
    pub(crate) rtt: Duration,
}

/// The last packet of a connection.
#[derive(Debug, Default)]
pub(crate) struct LastWords {
    /// This side is closing. Until then nothing here costs more than looking at this.
    expected: AtomicBool,
    kept: Mutex<Kept>,
}

#[derive(Debug, Default)]
struct Kept {
    /// The paths when the connection was closed; the engine forgets them.
    routes: Vec<Route>,
    /// The path of a packet that is sealed, but whose header is not protected yet.
    sealed: Option<u32>,
    words: Option<(u32, Box<[u8]>)>,
    answered: bool,
}

impl LastWords {
    /// The connection is about to be closed by this side. The first call counts.
    pub(crate) fn expect(&self, routes: impl FnOnce() -> Vec<Route>) {
        if !self.expected.load(Ordering::Acquire) {
            let routes = routes();
            self.lock().routes = routes;
            self.expected.store(true, Ordering::Release);
        }
    }

    /// The packet, and where to; `None` if there is none or the peer has answered it.
    pub(crate) fn unanswered(&self) -> Option<(Box<[u8]>, Route)> {
        let kept = self.lock();
        let (path, words) = kept.words.as_ref().filter(|_| !kept.answered)?;
        let route = kept.routes.iter().find(|route| route.path == *path)?;
        Some((words.clone(), *route))
    }

    /// The longest round trip of the paths there were when this side closed, if it did.
    pub(crate) fn rtt(&self) -> Option<Duration> {
        let kept = self.lock();
        kept.routes.iter().map(|route| route.rtt).max()
    }

    /// A packet is about to be sealed.
    #[inline]
    pub(super) fn sealing(&self, path: PathId, payload: &[u8]) {
        if self.expected.load(Ordering::Acquire) && closes(payload) {
            self.lock().sealed = Some(path_number(path));
        }
    }

    /// A packet was opened.
    #[inline]
    pub(super) fn opened(&self, payload: &[u8]) {
        if self.expected.load(Ordering::Acquire) && closes(payload) {
            self.lock().answered = true;
        }
    }

    /// A packet is as it will be sent.
    #[inline]
    fn complete(&self, packet: &[u8]) {
        if self.expected.load(Ordering::Acquire) {
            let mut kept = self.lock();
            if let Some(path) = kept.sealed.take() {
                kept.words = Some((path, packet.into()));
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Kept> {
        // Each step leaves it whole.
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether there is a CONNECTION_CLOSE in a payload.
fn closes(payload: &[u8]) -> bool {
    let mut at = 0;
    while let Ok(Some(frame)) = frame_at(payload, at) {
        if matches!(frame.frame_type, 0x1c | 0x1d) {
            return true;
        }
        at = frame.range.end;
    }
    false
}

/// The key that protects the headers of outgoing 1-RTT packets, the last thing done to them.
pub(super) struct OneRttHeader {
    pub(super) key: Box<dyn HeaderKey>,
    pub(super) activity: std::sync::Arc<super::Activity>,
}

impl HeaderKey for OneRttHeader {
    fn decrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.key.decrypt(pn_offset, packet);
    }

    fn encrypt(&self, pn_offset: usize, packet: &mut [u8]) {
        self.key.encrypt(pn_offset, packet);
        self.activity.last_words.complete(packet);
    }

    fn sample_size(&self) -> usize {
        self.key.sample_size()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_close_is_found_behind_other_frames() {
        // PING; ACK of packet 0; CONNECTION_CLOSE of the application with code 7 and no reason.
        let payload = [0x01, 0x02, 0x00, 0x00, 0x00, 0x00, 0x1d, 0x07, 0x00, 0x00];
        assert!(closes(&payload));
        assert!(!closes(&payload[..6]));
        assert!(!closes(&[]));
    }

    #[test]
    fn only_the_close_of_this_side_is_kept_until_it_is_answered() {
        let close = [0x1d, 0x07, 0x00];
        let words = LastWords::default();
        let send = |payload: &[u8], packet: &[u8]| {
            words.sealing(PathId::from(3u32), payload);
            words.complete(packet);
        };
        send(&close, b"nobody closes");
        assert!(words.unanswered().is_none() && words.rtt().is_none());
        let route = Route {
            path: 3,
            remote: "192.0.2.1:9".parse().unwrap(),
            rtt: Duration::from_millis(20),
        };
        words.expect(|| vec![route]);
        words.expect(Vec::new);
        assert_eq!(words.rtt(), Some(route.rtt));
        send(&[0x01], b"a ping");
        words.opened(&[0x01]);
        assert!(words.unanswered().is_none());
        send(&close, b"the end");
        send(&[0x01], b"a ping");
        let (packet, to) = words.unanswered().unwrap();
        assert_eq!((&*packet, to.remote), (&b"the end"[..], route.remote));
        words.opened(&close);
        assert!(words.unanswered().is_none());
    }
}
