//! One number for a whole state, by which replicas are compared.

use xxhash_rust::xxh3::Xxh3;

use super::Machine;
use crate::store::Store;

/// Hash of the records of a state, which are told in the order of their keys.
#[derive(Clone, Default)]
pub struct Digest(Xxh3);

impl std::fmt::Debug for Digest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Digest").finish_non_exhaustive()
    }
}

impl Digest {
    /// The next record.
    pub fn add(&mut self, key: &[u8], value: &[u8]) {
        for bytes in [key, value] {
            self.0.update(&(bytes.len() as u64).to_be_bytes());
            self.0.update(bytes);
        }
    }

    /// The number.
    #[must_use]
    pub fn finish(&self) -> u64 {
        self.0.digest()
    }
}

impl Machine {
    /// Hash of the whole state: equal on all nodes at an equal applied index.
    #[must_use]
    pub fn digest(&self, store: &impl Store) -> u64 {
        let mut digest = Digest::default();
        for (key, value) in self.records(store) {
            digest.add(&key, &value);
        }
        digest.finish()
    }
}
