//! What each [`Reason`] means: its gRPC code, whether anything may have happened, and what a client may do.
//!
//! This is the one table of errors; `docs/errors.md` is generated from it.

use std::collections::BTreeMap;
use std::fmt::Display;

use crate::common::v1::Reason;
use crate::internal::v1::Refusal;

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

/// What a client may do about an error. It says nothing of what has happened: that is [`RefusalEffect`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Retry {
    /// The same request will be refused again: change it.
    Never,
    /// The same request is good once somebody has made room, which may take long.
    Later,
    /// The same request may be sent again after a pause.
    Freely,
    /// The same request may be sent again at once: to the leader that the refusal names, or to another node.
    Elsewhere,
    /// Only with the same request id.
    WithRequestId,
}

/// What a refusal says of what its request may have done. Nothing else in the code judges that by the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RefusalEffect {
    /// Nothing, whichever try: the shard keeps the refusal as the answer of the request id, or would refuse every try.
    NoTry,
    /// Nothing by the try that was refused. One before it whose end was not seen may have had an effect.
    NotThisTry,
    /// It may have happened, or may still.
    Unknown,
}

/// One row of the table.
#[derive(Clone, Copy, Debug)]
pub struct Row {
    /// The gRPC status code.
    pub code: Code,
    /// What a client may do.
    pub retry: Retry,
    /// What may have happened.
    pub effect: RefusalEffect,
    /// What it means and what to do, for docs/errors.md.
    pub meaning: &'static str,
}

/// A refusal that names a field and its limit.
#[must_use]
pub fn invalid(field: &str, limit: impl Display) -> Refusal {
    Refusal {
        reason: Reason::InvalidField.into(),
        message: format!("{field} must be {limit}"),
        metadata: BTreeMap::from([
            ("field".to_owned(), field.to_owned()),
            ("limit".to_owned(), limit.to_string()),
        ]),
    }
}

impl Reason {
    /// The `reason` of the ErrorInfo: the name without its prefix, for example `NOT_LEADER`.
    #[must_use]
    pub fn name(self) -> &'static str {
        self.as_str_name().trim_start_matches("REASON_")
    }

    /// The reason with this name.
    #[must_use]
    pub fn from_name(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|reason| reason.name() == name)
    }

    /// The row of the table for this reason.
    #[must_use]
    #[allow(clippy::too_many_lines, reason = "one table")]
    pub fn row(self) -> Row {
        use Code as C;
        use RefusalEffect::{NoTry, NotThisTry, Unknown};
        use Retry::{Elsewhere, Freely, Later, Never, WithRequestId};
        let (code, retry, effect, meaning) = match self {
            Self::Unspecified | Self::Internal => (
                C::Internal,
                WithRequestId,
                Unknown,
                "A fault of the server; the log of the node has the detail. Please report it.",
            ),
            Self::InvalidField => (
                C::InvalidArgument,
                Never,
                NoTry,
                "A field is missing, malformed or beyond its limit. Metadata `field` and `limit` say which.",
            ),
            Self::UnknownNamespace => (
                C::NotFound,
                Never,
                NoTry,
                "The namespace is not declared, and the cluster refuses others or the call needs it to be: create it.",
            ),
            Self::NamespaceExists => (
                C::AlreadyExists,
                Never,
                NoTry,
                "The namespace is declared with other settings: update it.",
            ),
            Self::NamespaceInUse => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The namespace has sessions, locks or queues, so it stays. Metadata `sessions`, `locks`, `waits` or `queues` say how many.",
            ),
            Self::NamespaceChanged => (
                C::Aborted,
                Never,
                NoTry,
                "Somebody else changed it meanwhile: look at it and ask again. Metadata `version` is the present one.",
            ),
            Self::SessionExpired => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The session is not there: never opened, closed or expired. Its locks are gone; open another.",
            ),
            Self::NotHolder => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The session does not hold the lock with that token. Metadata `holder_token` is the present holder's.",
            ),
            Self::UnknownQueue => (
                C::NotFound,
                Never,
                NoTry,
                "The queue does not exist: the first Enqueue creates it where that is allowed (--auto-create-queues, the policy of the namespace), CreateQueue always.",
            ),
            Self::QueueExists => (
                C::AlreadyExists,
                Never,
                NoTry,
                "The queue exists with another number of partitions. Metadata `partitions` is that number.",
            ),
            Self::StaleLease => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The lease ran out or a newer one was granted: the message will be or was delivered again.",
            ),
            Self::UnknownMessage => (
                C::NotFound,
                Never,
                NoTry,
                "The message is not there: acknowledged before, or never enqueued.",
            ),
            Self::RequestForgotten => (
                C::Aborted,
                Never,
                Unknown,
                "The answer to this request id is no longer kept, so it was not executed: whether the first try took effect is unknown.",
            ),
            Self::TooManyOpenRequests => (
                C::ResourceExhausted,
                Freely,
                NotThisTry,
                "The client has 4,096 unacknowledged request ids on the shard: raise first_unacknowledged.",
            ),
            Self::LimitReached => (
                C::ResourceExhausted,
                Later,
                NotThisTry,
                "A limit of the replicated state is reached. Metadata `limit` says which.",
            ),
            Self::PartitionNotOpen => (
                C::Unavailable,
                Freely,
                NotThisTry,
                "The partition is being opened. Nothing happened.",
            ),
            Self::StaleMap => (
                C::Unavailable,
                Freely,
                NotThisTry,
                "The command was routed by another slot map. Nothing happened.",
            ),
            Self::ConvertNeeded => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The session holds the lock in a weaker mode: convert that grant. Metadata `mode` and `fencing_token` are the grant's.",
            ),
            Self::Deadlock => (
                C::Aborted,
                Never,
                NoTry,
                "The wait would have closed a circle of sessions that wait for each other; nothing waits now. Release a lock, then ask again. Metadata `length` and `edge_n_*` show the circle.",
            ),
            Self::UnknownSemaphore => (
                C::NotFound,
                Never,
                NoTry,
                "There is no semaphore of that name: SetPermits makes one.",
            ),
            Self::PermitsHeld => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The session holds another number of the semaphore's permits: release them first. Metadata `permits` and `fencing_token` are the grant's.",
            ),
            Self::SemaphoreInUse => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The semaphore has holders or waiters, so it stays. Metadata `holders` and `waiters` say how many.",
            ),
            Self::OtherKind => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "Locks and semaphores share their names: this one is a semaphore, or a lock that is held, waited for or delayed.",
            ),
            Self::LatchCount => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The latch still counts down, or has another count than expected. Metadata `count` is what it has.",
            ),
            Self::UnknownLatch => (
                C::NotFound,
                Never,
                NoTry,
                "The latch is not there, or that round of it: never set, or deleted, also while the call waited.",
            ),
            Self::BarrierParties => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The sessions in the barrier wait for another number of parties. Metadata `parties` is theirs.",
            ),
            Self::NotEntered => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The session is not in the barrier: it never entered, has left, or its wait had ended.",
            ),
            Self::Fenced => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The fencing token is not good here: a newer holder of the lock has used the shard, or nobody holds the lock under it. Nothing changed. Stop working under that grant. Metadata `lock_namespace`, `lock` and `token`; `mark` is the newest token seen, `holder_token` that of a present holder.",
            ),
            Self::FenceNotValidated => (
                C::Unavailable,
                Freely,
                NotThisTry,
                "The shard forgot the mark of the fence's lock while the token was being validated. Nothing happened.",
            ),
            Self::NotLeader => (
                C::Unavailable,
                Elsewhere,
                NotThisTry,
                "This node could not reach the shard's leader. Nothing happened. Metadata `leader`, `leader_endpoint` where known.",
            ),
            Self::NoQuorum => (
                C::Unavailable,
                Elsewhere,
                NotThisTry,
                "The shard has no leader with a quorum. Nothing happened.",
            ),
            Self::StateDisputed => (
                C::Unavailable,
                Elsewhere,
                NotThisTry,
                "The replicas of the shard hold different states and no majority agrees about it. Nothing happened. It serves again when a third replica has decided, or an operator has.",
            ),
            Self::MaybeApplied => (
                C::Aborted,
                WithRequestId,
                Unknown,
                "The command was proposed and its end was not seen: it may take effect. With a request id the code is UNAVAILABLE and a retry is safe.",
            ),
            Self::PartlyApplied => (
                C::Aborted,
                Never,
                Unknown,
                "A part of the call is done, or may be, and the rest was refused for good. Metadata `cause` is the reason for that.",
            ),
            Self::Lost => (
                C::Unavailable,
                Elsewhere,
                NotThisTry,
                "The command lost to another leader's entry: it did not and will not take effect.",
            ),
            Self::DeadlinePassed => (
                C::DeadlineExceeded,
                Freely,
                NotThisTry,
                "The deadline passed before the command was proposed. Nothing happened.",
            ),
            Self::Overloaded => (
                C::ResourceExhausted,
                Freely,
                NotThisTry,
                "The node has more work than it may queue. Nothing happened; pause before a retry.",
            ),
            Self::DiskFull => (
                C::ResourceExhausted,
                Later,
                NotThisTry,
                "Free space is below --min-free-bytes on so many of the shard's members that no majority has room. Nothing happened; ack, release and delete still work.",
            ),
            Self::Stopping => (
                C::Unavailable,
                Elsewhere,
                NotThisTry,
                "The node is stopping. Nothing happened; ask another node.",
            ),
            Self::ServiceOff => (
                C::Unimplemented,
                Never,
                NotThisTry,
                "This cluster does not serve that service (--services).",
            ),
            Self::Unsupported => (
                C::Unimplemented,
                Never,
                NotThisTry,
                "The node has no such method or service, or does not read that compression: a misspelt name, or a client of another version. The message says which.",
            ),
            Self::PermissionDenied => {
                (C::PermissionDenied, Never, NotThisTry, "The caller may not do this.")
            }
            Self::AlreadyWaiting => (
                C::FailedPrecondition,
                Never,
                NoTry,
                "The session waits for a lock by another call, and one of the two wants several locks: let the other end first. Metadata `lock` is its name.",
            ),
            Self::PositionCompacted => (
                C::OutOfRange,
                Never,
                NotThisTry,
                "The node no longer has all events after the position. Another node may; else list again and watch from that header's index. Metadata `index` is the position, `oldest` the oldest index after which this node has all.",
            ),
            Self::WatcherBehind => (
                C::ResourceExhausted,
                Never,
                NotThisTry,
                "The watcher read too slowly, and events after what it was sent are gone from this node. Go on as after POSITION_COMPACTED. Metadata `index` is the last position that was sent, `oldest` the oldest index after which this node has all.",
            ),
        };
        Row { code, retry, effect, meaning }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_row_and_a_name() {
        for reason in Reason::ALL {
            assert_eq!(Reason::from_name(reason.name()), Some(*reason));
            assert!(reason.row().meaning.ends_with('.'));
        }
    }

    #[test]
    fn what_may_have_happened_and_what_to_do_fit_together() {
        for reason in Reason::ALL {
            let Row { retry, effect, meaning, .. } = reason.row();
            match effect {
                // The answer that is kept would be given again.
                RefusalEffect::NoTry => assert_eq!(retry, Retry::Never, "{}", reason.name()),
                RefusalEffect::NotThisTry => {
                    assert_ne!(retry, Retry::WithRequestId, "{}", reason.name())
                }
                RefusalEffect::Unknown => {
                    assert!(!meaning.contains("Nothing happened"), "{}", reason.name());
                    assert!(matches!(retry, Retry::Never | Retry::WithRequestId));
                }
            }
        }
    }
}
