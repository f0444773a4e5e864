//! One number for a whole state, by which replicas are compared.

use xxhash_rust::xxh3::Xxh3;

use super::Machine;
use crate::store::Store;

/// Records that the digest reads at once.
const DIGEST_PAGE: usize = 1_000;

impl Machine {
    /// Hash of the whole state: equal on all nodes at an equal applied index.
    #[must_use]
    pub fn digest(store: &impl Store) -> u64 {
        let mut hash = Xxh3::new();
        let (mut start, end) = (vec![0], vec![u8::MAX; 4]);
        loop {
            let page = store.scan(&start, &end, DIGEST_PAGE);
            for (key, value) in &page {
                hash.update(&(key.len() as u64).to_be_bytes());
                hash.update(key);
                hash.update(&(value.len() as u64).to_be_bytes());
                hash.update(value);
            }
            match page.last() {
                Some((last, _)) if page.len() == DIGEST_PAGE => {
                    start = last.to_vec();
                    start.push(0);
                }
                _ => return hash.digest(),
            }
        }
    }
}
