//! What the peer wants of its paths, when packets overtake each other.
//!
//! Two PATH_STATUS frames that go by different paths may arrive in the wrong order. The engine keeps
//! the later of them (by sequence number, as the multipath draft wants it), but tells of both as they
//! come, so that whoever listens believes the older one. So that is blanked before the engine sees it.

use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
};

use anyreach_wire::{
    varint::VarInt,
    walk::{PADDING, PING, RawFrame, frame_at},
};

const PATH_STATUS_BACKUP: u64 = 0x3e76;
const PATH_STATUS_AVAILABLE: u64 = 0x3e77;

/// Paths remembered: more than there are at once. Their numbers are the peer's choice.
const MAX_PATHS: usize = 64;

/// The latest status of each path: its sequence number, and whether the path is a standby.
#[derive(Debug, Default)]
pub(crate) struct Statuses(Mutex<BTreeMap<VarInt, (VarInt, bool)>>);

impl Statuses {
    /// Looks at the payload of a packet that was opened, and blanks what is out of date.
    #[inline]
    pub(super) fn admit(&self, payload: &mut [u8]) {
        let mut at = 0;
        while let Ok(Some(frame)) = frame_at(payload, at) {
            at = frame.range.end;
            let is_status = matches!(frame.frame_type, PATH_STATUS_BACKUP | PATH_STATUS_AVAILABLE);
            if is_status && self.is_late(payload, &frame) {
                // PING, because the packet is to be acknowledged as before; padded.
                payload[frame.range.clone()].fill(PADDING as u8);
                payload[frame.range.start] = PING as u8;
            }
        }
    }

    #[cold]
    fn is_late(&self, payload: &[u8], frame: &RawFrame) -> bool {
        let mut contents = &payload[frame.body..frame.range.end];
        let (Ok(path), Ok(sequence)) =
            (VarInt::decode(&mut contents), VarInt::decode(&mut contents))
        else {
            return false; // the engine says what is wrong with it
        };
        let mut latest = self.lock();
        if latest
            .get(&path)
            .is_some_and(|(known, _)| sequence < *known)
        {
            return true;
        }
        let standby = frame.frame_type == PATH_STATUS_BACKUP;
        latest.insert(path, (sequence, standby));
        if latest.len() > MAX_PATHS {
            latest.pop_first(); // numbers are not used again
        }
        false
    }

    /// Whether the peer wants a path as a standby, if it has said anything about it.
    pub(crate) fn standby(&self, path: u32) -> Option<bool> {
        let latest = self.lock();
        latest
            .get(&VarInt::from_u32(path))
            .map(|(_, standby)| *standby)
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<VarInt, (VarInt, bool)>> {
        // Each step leaves the map whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// PATH_STATUS of a path with this sequence number.
    fn status(available: bool, path: u8, sequence: u8) -> Vec<u8> {
        let [_, low] = (0x3e76 + u16::from(available)).to_be_bytes();
        vec![0x7e, low, path, sequence]
    }

    fn admitted(statuses: &Statuses, payload: &[u8]) -> Vec<u8> {
        let mut payload = payload.to_vec();
        statuses.admit(&mut payload);
        payload
    }

    #[test]
    fn what_is_out_of_date_is_blanked() {
        let statuses = Statuses::default();
        let passes = |payload: &[u8]| admitted(&statuses, payload) == payload;
        assert!(passes(&status(false, 1, 0)));
        assert!(passes(&status(true, 1, 2)));
        assert!(passes(&status(true, 1, 2)), "repeated");
        let late = [&[0x01][..], &status(false, 1, 1), &status(true, 2, 0)].concat();
        let left = [&[0x01, 0x01, 0, 0, 0][..], &status(true, 2, 0)].concat();
        assert_eq!(admitted(&statuses, &late), left);
        assert_eq!(statuses.standby(1), Some(false));
        assert!(passes(&status(false, 1, 3)));
        assert_eq!(statuses.standby(1), Some(true));
        assert_eq!(statuses.standby(3), None);
    }

    #[test]
    fn a_peer_cannot_make_it_grow() {
        let statuses = Statuses::default();
        for path in 0..MAX_PATHS as u8 {
            for sequence in (0..4).rev() {
                admitted(&statuses, &status(true, path, sequence));
            }
        }
        for path in MAX_PATHS as u16..4000 {
            let [high, low] = (path | 0x4000).to_be_bytes();
            admitted(&statuses, &[0x7e, 0x76, high, low, 0]);
            assert!(statuses.0.lock().unwrap().len() <= MAX_PATHS);
        }
    }
}
