//! Which numbers of openers were seen: each counts once, so that one that somebody else has picked
//! up on its way achieves nothing when it is sent again from elsewhere.
//!
//! Pure. The sliding window of IPsec (RFC 4303, section 3.4.3).

/// Numbers remembered below the highest. A spray sends up to 1,024 in order, so what is older than
/// two of them is late beyond use.
const NUMBERS: u32 = 2048;

const WORDS: usize = NUMBERS as usize / 64;

/// A window over the numbers of one sender.
#[derive(Debug, Default)]
pub(super) struct Window(Option<Box<Seen>>);

#[derive(Debug)]
struct Seen {
    highest: u32,
    /// By number modulo [`NUMBERS`].
    bits: [u64; WORDS],
}

impl Window {
    /// Whether `number` is new, from now on it is not.
    pub(super) fn take(&mut self, number: u32) -> bool {
        let seen = self.0.get_or_insert_with(|| {
            Box::new(Seen {
                highest: number,
                bits: [0; WORDS],
            })
        });
        seen.take(number)
    }
}

impl Seen {
    fn take(&mut self, number: u32) -> bool {
        if let Some(gap) = number.checked_sub(self.highest) {
            // What moves into the window takes the places of what leaves it.
            if gap >= NUMBERS {
                self.bits = [0; WORDS];
            } else {
                for entering in (self.highest..=number).skip(1) {
                    self.set(entering, false);
                }
            }
            self.highest = number;
        } else if self.highest - number >= NUMBERS {
            return false;
        }
        !self.set(number, true)
    }

    /// Sets the bit of a number; what it was.
    fn set(&mut self, number: u32, to: bool) -> bool {
        let place = (number % NUMBERS) as usize;
        let (word, mask) = (&mut self.bits[place / 64], 1 << (place % 64));
        let was = *word & mask != 0;
        if to {
            *word |= mask;
        } else {
            *word &= !mask;
        }
        was
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_ends_of_the_range_are_numbers_like_others() {
        let mut window = Window::default();
        for number in [0, u32::MAX, u32::MAX - NUMBERS + 1] {
            assert!(window.take(number));
            assert!(!window.take(number));
        }
        assert!(!window.take(0));
        assert!(!window.take(u32::MAX - NUMBERS));
    }

    proptest! {
        #[test]
        fn no_number_is_taken_twice_and_none_in_the_window_is_refused(
            steps in prop::collection::vec((any::<bool>(), 0_u32..3 * NUMBERS), 1..400),
        ) {
            let (mut window, mut taken) = (Window::default(), HashSet::new());
            let mut highest = 1_u32 << 20;
            for (up, distance) in steps {
                let number = if up {
                    highest + distance / 64
                } else {
                    highest.saturating_sub(distance)
                };
                let first = taken.is_empty();
                highest = if first { number } else { highest.max(number) };
                let inside = highest - number < NUMBERS;
                prop_assert_eq!(window.take(number), inside && !taken.contains(&number));
                taken.insert(number);
            }
        }
    }
}
