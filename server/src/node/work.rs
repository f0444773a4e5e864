//! What a call asks of a shard, and what may be done about an attempt that failed.

use std::sync::Arc;

use tokio::time::Instant;
use trefoil_core::call::{Failure, Work, failure};
use trefoil_core::replica::Reply;
use trefoil_core::{NodeId, Position, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Access, Answer, Command, Query, Refusal, answer, query};

/// What a shard answered, and where it was decided.
#[derive(Clone, Debug, PartialEq)]
pub struct Answered {
    /// The node whose replica answered: the shard's leader.
    pub node: NodeId,
    /// The shard.
    pub shard: ShardId,
    /// The place in the shard's history.
    pub position: Position,
    /// The answer; never a refusal.
    pub answer: Answer,
}

/// On whose behalf a shard is asked, and until when.
#[derive(Clone, Debug)]
pub struct Ask {
    /// What the caller was allowed to do.
    pub access: Arc<Access>,
    /// When the caller gives up.
    pub deadline: Instant,
    /// What the caller asked for, where it has a request id; else 0.
    pub fingerprint: u64,
}

/// Which calls in flight a call counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Ordinary,
    /// For what waits: it leaves room for what ends its wait.
    Waiting,
    /// For what keeps sessions alive or frees things: it finds room when the node is busy.
    Reserved,
}

/// Which calls in flight this one counts against.
pub(crate) fn share(work: &Work) -> Share {
    use Operation as O;
    use query::Query as Q;
    let operation = match work {
        Work::Command(Command { operation: Some(operation), .. }) => operation,
        Work::Query(Query {
            query: Some(Q::AwaitReady(_) | Q::AwaitLatch(_) | Q::AwaitBarrier(_)),
            ..
        }) => return Share::Waiting,
        _ => return Share::Ordinary,
    };
    let waits = match operation {
        O::Acquire(request) => request.wait_ms > 0,
        O::Convert(request) => request.wait_ms > 0,
        O::Campaign(request) => request.wait_ms > 0,
        O::AcquirePermits(request) => request.wait_ms > 0,
        _ => false,
    };
    match operation {
        _ if waits => Share::Waiting,
        O::KeepAlive(_)
        | O::CloseSession(_)
        | O::Release(_)
        | O::ReleaseHeld(_)
        | O::ForceStep(_)
        | O::RequestRelease(_)
        | O::CancelAcquire(_)
        | O::CountDown(_)
        | O::DeleteSemaphore(_)
        | O::ReleasePermits(_)
        | O::DeleteLatch(_)
        | O::LeaveBarrier(_)
        | O::WithdrawBarrier(_)
        | O::LoseCaller(_) => Share::Reserved,
        O::AckLease(_) | O::ReturnLeases(_) => Share::Reserved,
        O::OpenSession(_)
        | O::Acquire(_)
        | O::Convert(_)
        | O::Campaign(_)
        | O::Proclaim(_)
        | O::SetPermits(_)
        | O::AcquirePermits(_)
        | O::SetLatch(_)
        | O::EnterBarrier(_)
        | O::CreateQueue(_)
        | O::OpenPartition(_) => Share::Ordinary,
        O::EnqueueTo(_) | O::DequeueFrom(_) | O::Put(_) | O::Delete(_) => Share::Ordinary,
        O::CreateNamespace(_)
        | O::UpdateNamespace(_)
        | O::DeleteNamespace(_)
        | O::SetNamespacePolicy(_)
        | O::ConfigureNamespace(_)
        | O::ConfigureNamespacePolicy(_)
        | O::NamespaceStep(_)
        | O::TouchFence(_) => Share::Ordinary,
    }
}

/// A refusal with its sentence.
pub(crate) fn refusal(reason: Reason, message: &str) -> Refusal {
    Refusal { reason: reason.into(), message: message.to_owned(), ..Refusal::default() }
}

/// The answer in a reply. A refusal by the state machine is final; any other says by its reason what it is.
pub(crate) fn open_reply(
    node: NodeId,
    shard: ShardId,
    reply: Reply,
) -> Result<Answered, (Refusal, Failure)> {
    match reply {
        Reply::Answered(_, Answer { answer: Some(answer::Answer::Refusal(refusal)) }) => {
            Err((refusal, Failure::Final))
        }
        Reply::Answered(position, answer) => Ok(Answered { node, shard, position, answer }),
        Reply::Refused(refusal) => {
            let failure = failure(refusal.reason());
            Err((refusal, failure))
        }
    }
}

#[cfg(test)]
mod tests {
    use trefoil_proto::internal::v1::Query;
    use trefoil_proto::lock::v1::KeepAliveRequest;

    use super::*;

    #[test]
    fn what_keeps_sessions_alive_finds_room() {
        let operation = Some(Operation::KeepAlive(KeepAliveRequest::default()));
        let renewal = Work::Command(Command { operation, ..Command::default() });
        assert_eq!(share(&renewal), Share::Reserved);
        assert_eq!(share(&Work::Query(Query::default())), Share::Ordinary);
    }

    #[test]
    fn a_refusal_of_the_state_is_final_even_where_its_reason_is_not() {
        let lost = refusal(Reason::NotLeader, "elsewhere");
        let decided = open_reply(1, 2, Reply::Answered(Position::default(), lost.clone().into()));
        assert_eq!(decided.unwrap_err(), (lost.clone(), Failure::Final));
        assert_eq!(
            open_reply(1, 2, Reply::Refused(lost.clone())).unwrap_err(),
            (lost, Failure::Definite)
        );
    }
}
