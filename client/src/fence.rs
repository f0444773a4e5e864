//! Fences: the token of a grant, shown to the queue and the cache, so that a holder who lost the lock does no more harm.

use std::sync::Arc;

use trefoil_proto::common::v1::Fence as WireFence;

use crate::Guard;

/// A lock and the token of a grant of it. Calls under it are refused with FENCED once a newer holder of the lock has used
/// the same data, or when nobody holds the lock under the token and the data's shard does not know it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fence {
    namespace: Arc<str>,
    lock: Arc<str>,
    token: u64,
}

impl Fence {
    /// A token that was acquired elsewhere, such as by `trefoil lock run`. The lock's namespace is empty where it is that of
    /// the calls.
    pub fn new(namespace: impl Into<Arc<str>>, lock: impl Into<Arc<str>>, token: u64) -> Self {
        Self { namespace: namespace.into(), lock: lock.into(), token }
    }

    /// The token.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    pub(crate) fn wire(fence: Option<&Self>) -> Option<WireFence> {
        fence.map(|fence| WireFence {
            namespace: fence.namespace.to_string(),
            lock: fence.lock.to_string(),
            token: fence.token,
        })
    }
}

/// The grant as it is now: after a conversion another.
impl From<&Guard> for Fence {
    fn from(guard: &Guard) -> Self {
        // Spelled out, so that it does not depend on the namespace of the calls.
        let namespace = if guard.namespace().is_empty() { "default" } else { guard.namespace() };
        Self::new(namespace, guard.name(), guard.token())
    }
}
