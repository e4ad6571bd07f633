//! Datagrams from a client, collected so that one system call sends many. No I/O.
//!
//! A batch is what segmentation offload takes: datagrams for one remote, all of one size but for
//! the last, which may be shorter. A few remotes at a time have one each, since the connections
//! inside a tunnel take turns.

use std::net::SocketAddr;

use bytes::Bytes;

/// Remotes with a batch at a time.
const SLOTS: usize = 4;

/// Most bytes in a batch. Offloads take 64 KiB with headers; half of it already makes the system
/// call a small part of the cost, and bounds what a session holds to 128 KiB.
const MAX_BYTES: usize = 32 << 10;

/// Some datagrams for one remote.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Run<'a> {
    pub(crate) remote: SocketAddr,
    pub(crate) contents: &'a [u8],
    /// Size of all datagrams but the last.
    pub(crate) segment: usize,
    pub(crate) datagrams: usize,
}

#[derive(Debug, Default)]
struct Batch {
    remote: Option<SocketAddr>,
    /// The only datagram so far: most batches of a slow flow never need a copy.
    first: Bytes,
    /// All of them, once there are two.
    contents: Vec<u8>,
    segment: usize,
    datagrams: usize,
}

impl Batch {
    fn start(&mut self, remote: SocketAddr, payload: Bytes) {
        self.remote = Some(remote);
        self.segment = payload.len();
        self.datagrams = 1;
        self.first = payload;
    }

    fn len(&self) -> usize {
        self.first.len().max(self.contents.len())
    }

    /// Whether a datagram of this size can follow what is there.
    fn fits(&self, size: usize, max_datagrams: usize) -> bool {
        // Only the last datagram is shorter, so a shorter one is the last.
        let whole = self.len() == self.segment * self.datagrams;
        whole
            && (1..=self.segment).contains(&size)
            && self.datagrams < max_datagrams
            && self.len() + size <= MAX_BYTES
    }

    fn append(&mut self, payload: &[u8]) {
        if self.contents.is_empty() {
            self.contents.extend_from_slice(&self.first);
            self.first = Bytes::new();
        }
        self.contents.extend_from_slice(payload);
        self.datagrams += 1;
    }

    fn flush(&mut self, emit: &mut impl FnMut(Run<'_>)) {
        let Some(remote) = self.remote.take() else {
            return;
        };
        let contents = if self.contents.is_empty() {
            &self.first[..]
        } else {
            &self.contents[..]
        };
        emit(Run {
            remote,
            contents,
            segment: self.segment,
            datagrams: self.datagrams,
        });
        self.first = Bytes::new();
        self.contents.clear();
    }
}

/// What waits to be sent. The order of datagrams for one remote is kept.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    slots: [Batch; SLOTS],
    /// Which one makes room for another remote.
    next: usize,
}

impl Batches {
    /// Adds a datagram; `emit` gets what has to go first. Batches have at most `max_datagrams`.
    pub(crate) fn push(
        &mut self,
        remote: SocketAddr,
        payload: Bytes,
        max_datagrams: usize,
        emit: &mut impl FnMut(Run<'_>),
    ) {
        let slot = match self
            .slots
            .iter()
            .position(|slot| slot.remote == Some(remote))
        {
            Some(slot) => slot,
            None => match self.slots.iter().position(|slot| slot.remote.is_none()) {
                Some(slot) => slot,
                None => {
                    self.next = (self.next + 1) % SLOTS;
                    self.next
                }
            },
        };
        let slot = &mut self.slots[slot];
        if slot.remote == Some(remote) && slot.fits(payload.len(), max_datagrams) {
            slot.append(&payload);
        } else {
            slot.flush(emit);
            slot.start(remote, payload);
        }
    }

    /// Everything goes.
    pub(crate) fn flush(&mut self, emit: &mut impl FnMut(Run<'_>)) {
        for slot in &mut self.slots {
            slot.flush(emit);
        }
    }

    /// Gives back the memory of batches that are not in use.
    pub(crate) fn shrink(&mut self) {
        for slot in &mut self.slots {
            if slot.remote.is_none() {
                slot.contents = Vec::new();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;

    use proptest::prelude::*;

    use super::*;

    fn remote(number: u8) -> SocketAddr {
        SocketAddr::from(([192, 0, 2, number], 9))
    }

    fn datagrams(run: Run<'_>) -> Vec<Vec<u8>> {
        if run.contents.is_empty() {
            return vec![Vec::new()];
        }
        run.contents
            .chunks(run.segment)
            .map(<[u8]>::to_vec)
            .collect()
    }

    #[test]
    fn a_bulk_flow_makes_few_runs() {
        let mut batches = Batches::default();
        let mut runs = Vec::new();
        let mut emit = |run: Run<'_>| runs.push(run.datagrams);
        for _ in 0..54 {
            batches.push(remote(1), Bytes::from(vec![1; 1200]), 64, &mut emit);
        }
        batches.flush(&mut emit);
        assert_eq!(runs, [27, 27]);
    }

    #[test]
    fn one_datagram_is_not_copied() {
        let mut batches = Batches::default();
        let payload = Bytes::from(vec![1; 1200]);
        let at = payload.as_ptr();
        batches.push(remote(1), payload, 64, &mut |_| unreachable!("fits"));
        batches.flush(&mut |run| assert_eq!(run.contents.as_ptr(), at));
    }

    proptest! {
        /// Whatever is pushed, every datagram comes out once, for its remote, in its order, with
        /// its boundaries; and no run breaks the rules of offloads.
        #[test]
        fn nothing_is_lost_or_reordered(
            pushed in prop::collection::vec((0..7_u8, 0_usize..3000), 0..200),
            max_datagrams in 1_usize..70,
            flush_every in 1_usize..50,
        ) {
            let mut batches = Batches::default();
            let mut expected: HashMap<_, Vec<Vec<u8>>> = HashMap::new();
            let mut seen: HashMap<_, Vec<Vec<u8>>> = HashMap::new();
            let mut legal = true;
            let mut emit = |run: Run<'_>| {
                let parts = datagrams(run);
                legal &= parts.len() == run.datagrams
                    && run.datagrams <= max_datagrams
                    && (run.contents.len() <= MAX_BYTES || run.datagrams == 1);
                seen.entry(run.remote).or_default().extend(parts);
            };
            for (number, (to, size)) in pushed.into_iter().enumerate() {
                // Sizes repeat often, as they do in bulk flows.
                let size = if size > 300 { size / 1000 * 1200 } else { size };
                let payload = vec![number as u8; size];
                expected.entry(remote(to)).or_default().push(payload.clone());
                batches.push(remote(to), payload.into(), max_datagrams, &mut emit);
                if number % flush_every == 0 {
                    batches.flush(&mut emit);
                }
                batches.shrink();
            }
            batches.flush(&mut emit);
            prop_assert!(legal);
            prop_assert_eq!(seen, expected);
        }
    }
}
