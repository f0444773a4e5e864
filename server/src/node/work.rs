//! What a call asks of a shard, and what may be done about an attempt that failed.

use std::sync::Arc;

use prost::Message as _;
use tokio::time::Instant;
use trefoil_core::replica::Reply;
use trefoil_core::{NodeId, Position, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Access, Answer, Command, Query, Refusal, answer};

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
}

/// A command or a query.
#[derive(Clone, Debug)]
pub(crate) enum Work {
    Command(Command),
    Query(Query),
}

/// Which calls in flight a call counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Share {
    Ordinary,
    /// For what keeps sessions alive or frees things: it finds room when the node is busy.
    Reserved,
}

/// How an attempt failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Failure {
    /// It did not happen and another attempt may succeed.
    Definite,
    /// It may have happened.
    Unknown,
    /// Another attempt would end the same way.
    Final,
}

impl Work {
    pub(crate) fn bytes(&self) -> usize {
        match self {
            Self::Command(command) => command.encoded_len(),
            Self::Query(query) => query.encoded_len(),
        }
    }

    pub(crate) fn share(&self) -> Share {
        use Operation as O;
        let Self::Command(Command { operation: Some(operation), .. }) = self else {
            return Share::Ordinary;
        };
        match operation {
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

    /// Whether it may be tried again although an earlier attempt may have taken effect.
    pub(crate) fn is_repeatable(&self) -> bool {
        let Self::Command(command) = self else { return true };
        command.request_id.is_some() || command.operation.as_ref().is_some_and(is_idempotent)
    }

    /// Marks the next attempt as one more, so that a shard that does not know the client does not execute it. Not
    /// where that does no harm: the cancel of an Acquire goes by the attempt that its client made.
    pub(crate) fn count_attempt(&mut self) {
        if let Self::Command(Command { request_id: Some(id), operation: Some(operation), .. }) =
            self
            && !is_idempotent(operation)
        {
            id.attempt = id.attempt.saturating_add(1);
        }
    }

    /// What to say of an attempt whose end was not seen.
    pub(crate) fn unseen(&self) -> Refusal {
        match self {
            Self::Command(_) => {
                refusal(Reason::MaybeApplied, "the end of the command was not seen")
            }
            Self::Query(_) => refusal(Reason::NoQuorum, "the end of the query was not seen"),
        }
    }
}

/// Doing it twice is doing it once.
fn is_idempotent(operation: &Operation) -> bool {
    use Operation as O;
    match operation {
        O::Acquire(_)
        | O::Convert(_)
        | O::Campaign(_)
        | O::AcquirePermits(_)
        | O::EnterBarrier(_)
        | O::WithdrawBarrier(_)
        | O::KeepAlive(_)
        | O::CancelAcquire(_)
        | O::LoseCaller(_)
        | O::RequestRelease(_)
        | O::CreateQueue(_)
        | O::OpenPartition(_)
        | O::ConfigureNamespace(_)
        | O::ConfigureNamespacePolicy(_)
        | O::TouchFence(_) => true,
        O::OpenSession(_)
        | O::CloseSession(_)
        | O::Release(_)
        | O::ReleaseHeld(_)
        | O::ForceStep(_)
        | O::Proclaim(_)
        | O::SetPermits(_)
        | O::DeleteSemaphore(_)
        | O::ReleasePermits(_)
        | O::SetLatch(_)
        | O::CountDown(_)
        | O::DeleteLatch(_)
        | O::LeaveBarrier(_) => false,
        O::EnqueueTo(_) | O::DequeueFrom(_) | O::AckLease(_) | O::ReturnLeases(_) => false,
        O::Put(_) | O::Delete(_) => false,
        O::CreateNamespace(_)
        | O::UpdateNamespace(_)
        | O::DeleteNamespace(_)
        | O::SetNamespacePolicy(_)
        | O::NamespaceStep(_) => false,
    }
}

/// What a refusal that no state machine decided says about the attempt.
pub(crate) fn failure(reason: Reason) -> Failure {
    match reason {
        Reason::NotLeader | Reason::NoQuorum | Reason::Lost | Reason::Stopping => Failure::Definite,
        Reason::MaybeApplied => Failure::Unknown,
        _ => Failure::Final,
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
    use trefoil_proto::cache::v1::PutRequest;
    use trefoil_proto::common::v1::RequestId;
    use trefoil_proto::lock::v1::{AcquireRequest, KeepAliveRequest};

    use super::*;

    fn command(operation: Operation) -> Command {
        Command { operation: Some(operation), ..Command::default() }
    }

    #[test]
    fn only_what_is_safe_is_repeated_after_an_unknown_end() {
        let put = command(Operation::Put(PutRequest::default()));
        assert!(!Work::Command(put.clone()).is_repeatable());
        let request_id =
            Some(RequestId { client: "c".to_owned(), sequence: 1, ..RequestId::default() });
        let mut named = Work::Command(Command { request_id, ..put });
        assert!(named.is_repeatable());
        named.count_attempt();
        assert!(
            matches!(&named, Work::Command(Command { request_id: Some(id), .. }) if id.attempt == 1)
        );
        let request_id = Some(RequestId { sequence: 1, ..RequestId::default() });
        let acquire = command(Operation::Acquire(AcquireRequest::default()));
        let mut acquire = Work::Command(Command { request_id, ..acquire });
        acquire.count_attempt();
        assert!(
            matches!(&acquire, Work::Command(Command { request_id: Some(id), .. }) if id.attempt == 0)
        );
        let renewal = Work::Command(command(Operation::KeepAlive(KeepAliveRequest::default())));
        assert!(renewal.is_repeatable());
        assert_eq!(renewal.share(), Share::Reserved);
        assert!(Work::Query(Query::default()).is_repeatable());
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
        assert_eq!(failure(Reason::MaybeApplied), Failure::Unknown);
        assert_eq!(failure(Reason::DeadlinePassed), Failure::Final);
    }
}
