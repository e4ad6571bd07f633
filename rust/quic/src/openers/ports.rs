//! Ports to try, in random order and none twice.
//!
//! Pure. A sparse Fisher-Yates shuffle: only what was swapped is stored.

use std::collections::HashMap;

use anyreach_net::ports;

/// NATs give away no ports below (RFC 4787, section 4.2, has them keep to the range of the internal
/// port, and systems give programs none below 1024).
pub(super) const LOWEST: u16 = 1024;

const COUNT: u16 = u16::MAX - LOWEST + 1;

/// The order in which ports are tried.
#[derive(Debug, Default)]
pub(super) struct Ports {
    /// Places whose port is not their own.
    moved: HashMap<u16, u16>,
    drawn: u16,
}

impl Ports {
    /// The next one, by a random number; `None` when there are no more. Never one at which
    /// something else listens than a peer.
    pub(super) fn next(&mut self, mut random: impl FnMut() -> u64) -> Option<u16> {
        loop {
            let left = COUNT.checked_sub(self.drawn).filter(|left| *left > 0)?;
            // 64,512 divides 2^64 nearly: no port is favoured by more than one in 2^48.
            let at = self.drawn + (random() % u64::from(left)) as u16;
            let drawn = self.moved.remove(&at).unwrap_or(at);
            let first = self.moved.remove(&self.drawn).unwrap_or(self.drawn);
            if at != self.drawn {
                self.moved.insert(at, first);
            }
            self.drawn += 1;
            let port = LOWEST + drawn;
            if !ports::is_denied(port) {
                return Some(port);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    /// SplitMix64.
    fn random(seed: u64) -> impl FnMut() -> u64 {
        let mut state = seed;
        move || {
            state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            z ^ (z >> 31)
        }
    }

    #[test]
    fn every_port_comes_once_and_the_denied_never() {
        for seed in 0..4 {
            let (mut ports, mut random) = (Ports::default(), random(seed));
            let mut seen = HashSet::new();
            while let Some(port) = ports.next(&mut random) {
                assert!(port >= LOWEST && !ports::is_denied(port));
                assert!(seen.insert(port), "{port} comes twice");
            }
            let allowed = (LOWEST..=u16::MAX).filter(|port| !ports::is_denied(*port));
            assert_eq!(seen.len(), allowed.count());
            assert!(ports.next(&mut random).is_none());
        }
    }

    #[test]
    fn no_part_of_the_range_is_favoured() {
        let mut hits = [0_u32; 8];
        for seed in 0..2000 {
            let (mut ports, mut random) = (Ports::default(), random(seed));
            for _ in 0..16 {
                let port = ports.next(&mut random).expect("there are more");
                hits[usize::from((port - LOWEST) / (COUNT / 8))] += 1;
            }
        }
        // 4,000 each on average, with a standard deviation of 59.
        assert!(
            hits.iter().all(|hits| (3700..4300).contains(hits)),
            "{hits:?}"
        );
    }
}
