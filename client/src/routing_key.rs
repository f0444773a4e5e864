//! The state that a call touches: calls with the same key go to the same shard.

use std::hash::{BuildHasher as _, RandomState};
use std::sync::OnceLock;

/// The state that a call touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RoutingKey {
    /// No single shard, or an unknown one.
    Any,
    /// Lies in one shard, told by an earlier answer.
    Hash(u64),
    /// This shard.
    Shard(u32),
}

impl RoutingKey {
    /// All locks and sessions of a namespace live in one shard.
    pub(crate) fn locks(namespace: &str) -> Self {
        Self::hash(("lock", or_default(namespace), ""))
    }

    /// One key of the cache.
    pub(crate) fn cache(namespace: &str, key: &str) -> Self {
        Self::hash(("cache", or_default(namespace), key))
    }

    fn hash(parts: (&str, &str, &str)) -> Self {
        static HASHER: OnceLock<RandomState> = OnceLock::new();
        Self::Hash(HASHER.get_or_init(RandomState::new).hash_one(parts))
    }
}

fn or_default(namespace: &str) -> &str {
    if namespace.is_empty() { "default" } else { namespace }
}
