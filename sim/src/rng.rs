//! The one source of chance: everything that a seed decides is drawn from here, in the order of the events.

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore as _, SeedableRng as _};

/// A seeded generator.
#[derive(Clone, Debug)]
pub struct Rng(ChaCha8Rng);

impl Rng {
    /// The generator of a seed.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self(ChaCha8Rng::seed_from_u64(seed))
    }

    /// Any number.
    pub fn number(&mut self) -> u64 {
        self.0.next_u64()
    }

    /// A number from `low` to `high`, both included.
    ///
    /// # Panics
    /// When there is none.
    pub fn between(&mut self, low: u64, high: u64) -> u64 {
        assert!(low <= high, "the range {low} to {high} is not empty");
        low + self.number() % (high - low + 1)
    }

    /// Like [`Self::between`], but each doubling is equally likely: mostly small, sometimes large.
    pub fn between_doublings(&mut self, low: u64, high: u64) -> u64 {
        let most = (low.max(1))
            .saturating_mul(1 << self.between(0, u64::from((high / low.max(1)).max(1).ilog2())));
        self.between(low, most.clamp(low, high))
    }

    /// True in `per_mille` of 1,000 cases.
    pub fn chance(&mut self, per_mille: u64) -> bool {
        self.number() % 1_000 < per_mille
    }

    /// One of some things.
    ///
    /// # Panics
    /// When there are none.
    pub fn pick<'a, T>(&mut self, things: &'a [T]) -> &'a T {
        let count = things.len() as u64;
        &things[usize::try_from(self.between(0, count - 1)).expect("an index fits memory")]
    }
}
