//! Acknowledgements that would do harm, left out of what we send.
//!
//! When a dead path is closed, what arrived by it shortly before is acknowledged on another one, a
//! few hundred milliseconds late. The peer takes that for a round trip, and as it declares what is
//! under way on the path lost three probe timeouts after it is closed, it would wait for a second
//! instead of a tenth of one. Without these acknowledgements it sends a little again that we have.
//! A path is hushed for good when it is closed, and before, as it may be the peer that closes it, from
//! when it has been silent for a while until something comes by it.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use anyreach_wire::walk::{acknowledged, frame_at};
use noq_proto::PathId;

use crate::connection::path_number;

/// Paths about which nothing is acknowledged.
#[derive(Debug, Default)]
pub(crate) struct Hushed {
    any: AtomicBool,
    /// By number; whether for good.
    paths: Mutex<BTreeMap<u32, bool>>,
}

impl Hushed {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<u32, bool>> {
        // The map is never left half changed.
        self.paths.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The path is being closed.
    pub(crate) fn add(&self, path: u32) {
        self.lock().insert(path, true);
        self.any.store(true, Ordering::Release);
    }

    /// Nothing has come by the path for a while.
    pub(crate) fn add_until_heard(&self, path: u32) {
        self.lock().entry(path).or_insert(false);
        self.any.store(true, Ordering::Release);
    }

    /// The path is gone, or not to be closed after all.
    pub(crate) fn remove(&self, path: u32) {
        let mut paths = self.lock();
        paths.remove(&path);
        self.any.store(!paths.is_empty(), Ordering::Release);
    }

    /// Something came by a path.
    #[inline]
    pub(super) fn heard(&self, path: PathId) {
        if self.any.load(Ordering::Acquire) {
            let path = path_number(path);
            if self.lock().get(&path) == Some(&false) {
                self.remove(path);
            }
        }
    }

    /// Blanks the acknowledgements in the payload of a packet about to be sealed. They never call for
    /// an acknowledgement themselves, so PADDING is as good.
    #[inline]
    pub(super) fn apply(&self, payload: &mut [u8]) {
        if self.any.load(Ordering::Acquire) {
            self.blank(payload);
        }
    }

    #[cold]
    fn blank(&self, payload: &mut [u8]) {
        let paths = self.lock();
        let mut at = 0;
        // What the walk does not know is none of our business: the engine wrote it.
        while let Ok(Some(frame)) = frame_at(payload, at) {
            at = frame.range.end;
            if let Ok(Some(ack)) = acknowledged(payload, &frame)
                && u32::try_from(ack.path).is_ok_and(|path| paths.contains_key(&path))
            {
                payload[frame.range].fill(0);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_acknowledgements_of_hushed_paths_are_blanked() {
        // PING, PATH_ACK of path 0, PATH_ACK of path 1, a STREAM frame to the end.
        let of = |path| [0x3e, path, 0x05, 0x00, 0x00, 0x02];
        let before = [&[0x01][..], &of(0), &of(1), &[0x08, 0x04, 0x3e, 0x00]].concat();
        let hushed = Hushed::default();
        let sealed = |hushed: &Hushed| {
            let mut payload = before.clone();
            hushed.apply(&mut payload);
            payload
        };
        assert_eq!(sealed(&hushed), before);
        hushed.add(0);
        let mut expected = before.clone();
        expected[1..7].fill(0);
        assert_eq!(sealed(&hushed), expected);
        hushed.add(1);
        hushed.remove(0);
        let mut expected = before.clone();
        expected[7..13].fill(0);
        assert_eq!(sealed(&hushed), expected);
        hushed.remove(1);
        assert_eq!(sealed(&hushed), before);
        // Until something is heard, but not if it is for good.
        let heard = |hushed: &Hushed| {
            hushed.heard(PathId::from(1u32));
            sealed(hushed) == before
        };
        hushed.add_until_heard(1);
        assert_ne!(sealed(&hushed), before);
        assert!(heard(&hushed));
        hushed.add(1);
        hushed.add_until_heard(1);
        assert!(!heard(&hushed));
    }
}
