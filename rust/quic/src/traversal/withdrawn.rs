//! Advertisements that were taken back and must not come back.

use std::collections::BTreeSet;

use anyreach_wire::varint::VarInt;

/// Sequence numbers remembered one by one: more than can be under way at once.
const MAX: usize = 256;

/// Sequence numbers that were withdrawn. An ADD_ADDRESS that comes late, or is repeated in spite of
/// a REMOVE_ADDRESS sent since, would bring the address back for good.
#[derive(Debug, Default)]
pub(super) struct Withdrawn {
    /// Everything below counts as withdrawn.
    floor: Option<VarInt>,
    above: BTreeSet<VarInt>,
}

impl Withdrawn {
    pub(super) fn insert(&mut self, sequence: VarInt) {
        if !self.contains(sequence) {
            self.above.insert(sequence);
        }
        if self.above.len() > MAX {
            self.floor = self.above.pop_first();
        }
    }

    pub(super) fn contains(&self, sequence: VarInt) -> bool {
        self.floor.is_some_and(|floor| sequence <= floor) || self.above.contains(&sequence)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_forgets_nothing_and_stays_small() {
        let mut withdrawn = Withdrawn::default();
        let number = VarInt::from_u32;
        assert!(!withdrawn.contains(number(0)));
        for sequence in (0..2000).map(|at| at * 2) {
            withdrawn.insert(number(sequence));
            assert!(withdrawn.above.len() <= MAX);
        }
        assert!((0..2000).all(|at| withdrawn.contains(number(at * 2))));
        assert!(!withdrawn.contains(number(3999)) && !withdrawn.contains(number(4001)));
    }
}
