//! Parts of a shard's progress that commands must know, in memory, and what they change of them.

use trefoil_proto::cluster::v1::UnknownNamespaces;
use trefoil_proto::internal::v1::Progress;

use crate::limits::REQUEST_CLIENT_IDLE_MS;

/// What commands must know of the policy: a part of the shard's progress, in memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct NamespacePolicy {
    /// Only declared namespaces may be used.
    pub(super) must_be_known: bool,
    pub(super) policy_version: u64,
    /// Highest version of a namespace that was removed here.
    pub(super) removed_version: u64,
}

/// What a command changes of it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct NamespaceChanges {
    pub(super) policy: Option<(u64, UnknownNamespaces)>,
    /// Version of the namespace that it removed; 0 for none.
    pub(super) removed_version: u64,
}

impl From<&Progress> for NamespacePolicy {
    fn from(progress: &Progress) -> Self {
        Self {
            must_be_known: progress.unknown_namespaces() == UnknownNamespaces::Refused,
            policy_version: progress.namespace_policy_version,
            removed_version: progress.namespace_removed_version,
        }
    }
}

impl NamespaceChanges {
    pub(super) fn apply(self, progress: &mut Progress) {
        if let Some((version, unknown)) = self.policy {
            progress.namespace_policy_version = version;
            progress.set_unknown_namespaces(unknown);
        }
        progress.namespace_removed_version =
            progress.namespace_removed_version.max(self.removed_version);
    }
}

/// How far the memory of a shard reaches.
#[derive(Clone, Copy, Debug)]
pub(super) struct RequestHorizon {
    /// Whoever was seen at this log time or later is known.
    pub(super) known_from_ms: u64,
    /// How long a client is known after it was last seen.
    pub(super) idle_ms: u64,
}

impl From<&Progress> for RequestHorizon {
    fn from(progress: &Progress) -> Self {
        let idle_ms = match progress.request_client_idle_ms {
            0 => REQUEST_CLIENT_IDLE_MS,
            idle_ms => idle_ms,
        };
        Self { known_from_ms: progress.requests_known_from_ms, idle_ms }
    }
}
