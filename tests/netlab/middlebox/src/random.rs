//! Random numbers that repeat with the seed: a failed test can be run again.

/// xorshift64* (Vigna 2016).
#[derive(Debug, Clone)]
pub(crate) struct Random(u64);

impl Random {
    /// The sequence of a seed.
    pub(crate) fn new(seed: u64) -> Self {
        // Zero is the one state the generator never leaves.
        Self((seed ^ 0x9e37_79b9_7f4a_7c15).max(1))
    }

    /// Uniform over all 64-bit numbers but zero.
    pub(crate) fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    /// Uniform in `0.0..1.0`.
    pub(crate) fn unit(&mut self) -> f64 {
        (self.next() >> 11) as f64 / (1u64 << 53) as f64
    }

    /// Uniform in `low..=high`.
    pub(crate) fn between(&mut self, low: u16, high: u16) -> u16 {
        let span = u64::from(high - low) + 1;
        low + u16::try_from(self.next() % span).unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::Random;

    #[test]
    fn numbers_are_in_range_and_spread() {
        let mut random = Random::new(0);
        let mean = (0..10_000).map(|_| random.unit()).sum::<f64>() / 10_000.0;
        assert!((0.48..0.52).contains(&mean), "{mean}");
        let ports: Vec<u16> = (0..1000).map(|_| random.between(10, 19)).collect();
        assert!((10..=19).all(|port| ports.contains(&port)));
        assert!(ports.iter().all(|port| (10..=19).contains(port)));
        assert_eq!(random.between(65_535, 65_535), 65_535);
    }
}
