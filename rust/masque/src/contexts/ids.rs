//! The IDs a peer has used, all of them, in bounded memory.

use std::ops::RangeInclusive;

use anyreach_wire::context::ContextId;

use super::MAX_GAPS;

/// A set of context IDs of one parity, as stretches without gaps. An ID stays in it for good: it
/// cannot be used again.
#[derive(Debug, Default)]
pub(super) struct UsedIds {
    /// Halves of the IDs. In order, disjoint, and never adjacent to each other.
    stretches: Vec<RangeInclusive<u64>>,
}

/// What came of adding an ID.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Added {
    New,
    Repeated,
    /// It would take more memory than it may; the set is as before.
    Full,
}

impl UsedIds {
    pub(super) fn contains(&self, id: ContextId) -> bool {
        let half = id.get() / 2;
        let after = self.stretches.partition_point(|s| *s.start() <= half);
        after > 0 && self.stretches[after - 1].contains(&half)
    }

    pub(super) fn add(&mut self, id: ContextId) -> Added {
        let half = id.get() / 2;
        // The first stretch that begins behind it, and the one before that.
        let after = self.stretches.partition_point(|s| *s.start() <= half);
        let before = after.checked_sub(1);
        if before.is_some_and(|at| self.stretches[at].contains(&half)) {
            return Added::Repeated;
        }
        let continues = before.filter(|at| *self.stretches[*at].end() + 1 == half);
        let precedes = self
            .stretches
            .get(after)
            .is_some_and(|s| half + 1 == *s.start());
        match (continues, precedes) {
            (Some(at), true) => {
                let end = *self.stretches.remove(after).end();
                self.stretches[at] = *self.stretches[at].start()..=end;
            }
            (Some(at), false) => self.stretches[at] = *self.stretches[at].start()..=half,
            (None, true) => self.stretches[after] = half..=*self.stretches[after].end(),
            (None, false) if self.stretches.len() == MAX_GAPS => return Added::Full,
            (None, false) => self.stretches.insert(after, half..=half),
        }
        Added::New
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn id(id: u64) -> ContextId {
        ContextId::from_u64(id).expect("fits")
    }

    #[test]
    fn counting_upwards_is_one_stretch() {
        let mut used = UsedIds::default();
        for n in 0..100_000 {
            assert_eq!(used.add(id(2 * n + 1)), Added::New);
        }
        assert_eq!(used.stretches, [0..=99_999]);
        assert_eq!(used.add(id(777)), Added::Repeated);
    }

    #[test]
    fn memory_is_bounded_and_nothing_is_forgotten() {
        let mut used = UsedIds::default();
        for n in 0..MAX_GAPS as u64 {
            assert_eq!(used.add(id(4 * n + 2)), Added::New);
        }
        assert_eq!(used.add(id(1 << 40)), Added::Full);
        assert!(!used.contains(id(1 << 40)));
        // Next to a stretch there is room, and a gap filled makes room for another.
        assert_eq!(used.add(id(4)), Added::New);
        assert_eq!(used.add(id(1 << 40)), Added::New);
        assert_eq!(used.add(id(2)), Added::Repeated);
        assert_eq!(used.add(id((1 << 62) - 2)), Added::Full);
    }

    proptest! {
        #[test]
        fn it_is_a_set(ids in prop::collection::vec(0_u64..120, 0..200)) {
            let mut used = UsedIds::default();
            let mut model = HashSet::new();
            for n in ids {
                let expected = if model.insert(n) { Added::New } else { Added::Repeated };
                prop_assert_eq!(used.add(id(2 * n)), expected);
            }
            for n in 0..120 {
                prop_assert_eq!(used.contains(id(2 * n)), model.contains(&n));
            }
            let apart = |pair: &[RangeInclusive<u64>]| *pair[0].end() + 1 < *pair[1].start();
            prop_assert!(used.stretches.windows(2).all(apart));
        }
    }
}
