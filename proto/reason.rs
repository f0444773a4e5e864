//! What each [`Reason`] means: its gRPC code, whether anything may have happened, and what a client may do.
//!
//! This is the one table of errors; `docs/errors.md` is generated from it.

use crate::common::v1::Reason;

/// The `domain` of every `google.rpc.ErrorInfo` of Trefoil.
pub const DOMAIN: &str = "trefoil";

/// Status codes of gRPC that Trefoil uses (grpc.io/docs/guides/status-codes).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "named by gRPC")]
pub enum Code {
    InvalidArgument,
    NotFound,
    AlreadyExists,
    PermissionDenied,
    ResourceExhausted,
    FailedPrecondition,
    Aborted,
    Internal,
    Unavailable,
    DeadlineExceeded,
    Unimplemented,
    OutOfRange,
}

/// What a client may do about an error.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request will be refused again: change it.
    Never,
    /// Nothing happened; the same request may be sent again after a pause.
    Freely,
    /// It may have taken effect: send it again only with the same request id.
    WithRequestId,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The gRPC status code.
    pub code: Code,
    /// What a client may do.
    pub retry: Retry,
    /// What it means and what to do, for docs/errors.md.
    pub meaning: &'static str,
}

/// Every reason, in the order of its number.
pub const ALL: [Reason; 43] = [
    Reason::InvalidField,
    Reason::UnknownNamespace,
    Reason::SessionExpired,
    Reason::NotHolder,
    Reason::UnknownQueue,
    Reason::QueueExists,
    Reason::StaleLease,
    Reason::UnknownMessage,
    Reason::RequestForgotten,
    Reason::TooManyOpenRequests,
    Reason::LimitReached,
    Reason::PartitionNotOpen,
    Reason::StaleMap,
    Reason::ConvertNeeded,
    Reason::Deadlock,
    Reason::NotLeader,
    Reason::NoQuorum,
    Reason::MaybeApplied,
    Reason::Lost,
    Reason::DeadlinePassed,
    Reason::Overloaded,
    Reason::DiskFull,
    Reason::Stopping,
    Reason::ServiceOff,
    Reason::PermissionDenied,
    Reason::Internal,
    Reason::StateDisputed,
    Reason::AlreadyWaiting,
    Reason::UnknownSemaphore,
    Reason::PermitsHeld,
    Reason::SemaphoreInUse,
    Reason::OtherKind,
    Reason::Fenced,
    Reason::FenceNotValidated,
    Reason::PositionCompacted,
    Reason::WatcherBehind,
    Reason::NamespaceExists,
    Reason::NamespaceInUse,
    Reason::NamespaceChanged,
    Reason::LatchCount,
    Reason::UnknownLatch,
    Reason::BarrierParties,
    Reason::NotEntered,
];

impl Reason {
    /// The `reason` of the ErrorInfo: the name without its prefix, for example `NOT_LEADER`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.as_str_name().trim_start_matches("REASON_")
    }

    /// The reason with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        ALL.into_iter().find(|reason| reason.name() == name)
    }

    /// The row of the table for this reason.
    #[must_use]
    #[allow(clippy::too_many_lines, reason = "one table")]
    pub fn row(self) -> Row {
        use Code as C;
        use Retry::{Freely, Never, WithRequestId};
        let (code, retry, meaning) = match self {
            Self::Unspecified | Self::Internal => (
                C::Internal,
                WithRequestId,
                "A fault of the server; the log of the node has the detail. Please report it.",
            ),
            Self::InvalidField => (
                C::InvalidArgument,
                Never,
                "A field is missing, malformed or beyond its limit. Metadata `field` and `limit` say which.",
            ),
            Self::UnknownNamespace => (
                C::NotFound,
                Never,
                "The namespace is not declared, and the cluster refuses others or the call needs it to be: create it.",
            ),
            Self::NamespaceExists => (
                C::AlreadyExists,
                Never,
                "The namespace is declared with other settings: update it.",
            ),
            Self::NamespaceInUse => (
                C::FailedPrecondition,
                Never,
                "The namespace has sessions, locks or queues, so it stays. Metadata `sessions`, `locks`, `waits` or `queues` say how many.",
            ),
            Self::NamespaceChanged => (
                C::Aborted,
                Never,
                "Somebody else changed it meanwhile: look at it and ask again. Metadata `version` is the present one.",
            ),
            Self::SessionExpired => (
                C::FailedPrecondition,
                Never,
                "The session is not there: never opened, closed or expired. Its locks are gone; open another.",
            ),
            Self::NotHolder => (
                C::FailedPrecondition,
                Never,
                "The session does not hold the lock with that token. Metadata `holder_token` is the present holder's.",
            ),
            Self::UnknownQueue => (
                C::NotFound,
                Never,
                "The queue does not exist and creation on first use is off: create it.",
            ),
            Self::QueueExists => (
                C::AlreadyExists,
                Never,
                "The queue exists with another number of partitions. Metadata `partitions` is that number.",
            ),
            Self::StaleLease => (
                C::FailedPrecondition,
                Never,
                "The lease ran out or a newer one was granted: the message will be or was delivered again.",
            ),
            Self::UnknownMessage => (
                C::NotFound,
                Never,
                "The message is not there: acknowledged before, or never enqueued.",
            ),
            Self::RequestForgotten => (
                C::Aborted,
                Never,
                "The answer to this request id is no longer kept, so it was not executed: whether the first try took effect is unknown.",
            ),
            Self::TooManyOpenRequests => (
                C::ResourceExhausted,
                Freely,
                "The client has 4,096 unacknowledged request ids on the shard: raise first_unacknowledged.",
            ),
            Self::LimitReached => (
                C::ResourceExhausted,
                Freely,
                "A limit of the replicated state is reached. Metadata `limit` says which.",
            ),
            Self::PartitionNotOpen => {
                (C::Unavailable, Freely, "The partition is being opened. Nothing happened.")
            }
            Self::StaleMap => (
                C::Unavailable,
                Freely,
                "The command was routed by another slot map. Nothing happened.",
            ),
            Self::ConvertNeeded => (
                C::FailedPrecondition,
                Never,
                "The session holds the lock in a weaker mode: convert that grant. Metadata `mode` and `fencing_token` are the grant's.",
            ),
            Self::Deadlock => (
                C::Aborted,
                Never,
                "The wait would have closed a circle of sessions that wait for each other; nothing waits now. Release a lock, then ask again. Metadata `length` and `edge_n_*` show the circle.",
            ),
            Self::UnknownSemaphore => {
                (C::NotFound, Never, "There is no semaphore of that name: SetPermits makes one.")
            }
            Self::PermitsHeld => (
                C::FailedPrecondition,
                Never,
                "The session holds another number of the semaphore's permits: release them first. Metadata `permits` and `fencing_token` are the grant's.",
            ),
            Self::SemaphoreInUse => (
                C::FailedPrecondition,
                Never,
                "The semaphore has holders or waiters, so it stays. Metadata `holders` and `waiters` say how many.",
            ),
            Self::OtherKind => (
                C::FailedPrecondition,
                Never,
                "Locks and semaphores share their names: this one is a semaphore, or a lock that is held, waited for or delayed.",
            ),
            Self::LatchCount => (
                C::FailedPrecondition,
                Never,
                "The latch still counts down, or has another count than expected. Metadata `count` is what it has.",
            ),
            Self::UnknownLatch => (
                C::NotFound,
                Never,
                "The latch is not there, or that round of it: never set, or deleted, also while the call waited.",
            ),
            Self::BarrierParties => (
                C::FailedPrecondition,
                Never,
                "The sessions in the barrier wait for another number of parties. Metadata `parties` is theirs.",
            ),
            Self::NotEntered => (
                C::FailedPrecondition,
                Never,
                "The session is not in the barrier: it never entered, has left, or its wait had ended.",
            ),
            Self::Fenced => (
                C::FailedPrecondition,
                Never,
                "The fencing token is not good here: a newer holder of the lock has used the shard, or nobody holds the lock under it. Nothing changed. Stop working under that grant. Metadata `lock_namespace`, `lock` and `token`; `mark` is the newest token seen, `holder_token` that of a present holder.",
            ),
            Self::FenceNotValidated => (
                C::Unavailable,
                Freely,
                "The shard forgot the mark of the fence's lock while the token was being validated. Nothing happened.",
            ),
            Self::NotLeader => (
                C::Unavailable,
                Freely,
                "This node could not reach the shard's leader. Nothing happened. Metadata `leader`, `leader_endpoint` where known.",
            ),
            Self::NoQuorum => {
                (C::Unavailable, Freely, "The shard has no leader with a quorum. Nothing happened.")
            }
            Self::StateDisputed => (
                C::Unavailable,
                Freely,
                "The replicas of the shard hold different states and no majority agrees about it. Nothing happened. It serves again when a third replica has decided, or an operator has.",
            ),
            Self::MaybeApplied => (
                C::Aborted,
                WithRequestId,
                "The command was proposed and its end was not seen: it may take effect. With a request id the code is UNAVAILABLE and a retry is safe.",
            ),
            Self::Lost => (
                C::Unavailable,
                Freely,
                "The command lost to another leader's entry: it did not and will not take effect.",
            ),
            Self::DeadlinePassed => (
                C::DeadlineExceeded,
                Freely,
                "The deadline passed before the command was proposed. Nothing happened.",
            ),
            Self::Overloaded => (
                C::ResourceExhausted,
                Freely,
                "The node has more work than it may queue. Nothing happened; pause before a retry.",
            ),
            Self::DiskFull => (
                C::ResourceExhausted,
                Freely,
                "Free space is below --min-free-bytes on so many of the shard's members that no majority has room. Nothing happened; ack, release and delete still work.",
            ),
            Self::Stopping => (
                C::Unavailable,
                Freely,
                "The node is stopping. Nothing happened; ask another node.",
            ),
            Self::ServiceOff => {
                (C::Unimplemented, Never, "This cluster does not serve that service (--services).")
            }
            Self::PermissionDenied => (C::PermissionDenied, Never, "The caller may not do this."),
            Self::AlreadyWaiting => (
                C::FailedPrecondition,
                Never,
                "The session waits for a lock by another call, and one of the two wants several locks: let the other end first. Metadata `lock` is its name.",
            ),
            Self::PositionCompacted => (
                C::OutOfRange,
                Never,
                "The node no longer has all events after the position. Another node may; else list again and watch from that header's index. Metadata `index` is the position, `oldest` the oldest index after which this node has all.",
            ),
            Self::WatcherBehind => (
                C::ResourceExhausted,
                Never,
                "The watcher read too slowly, and events after what it was sent are gone from this node. Go on as after POSITION_COMPACTED. Metadata `index` is the last position that was sent, `oldest` the oldest index after which this node has all.",
            ),
        };
        Row { code, retry, meaning }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_row_and_a_name() {
        let numbered =
            (1..=64).filter_map(|number| Reason::try_from(number).ok()).collect::<Vec<_>>();
        assert_eq!(numbered, ALL);
        for reason in ALL {
            assert_eq!(Reason::from_name(reason.name()), Some(reason));
            assert!(reason.row().meaning.ends_with('.'));
        }
    }
}
