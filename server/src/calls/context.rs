//! What a call asks of a shard, and what may be done about an attempt that failed.

use std::sync::Arc;

use tokio::time::Instant;
use trefoil_core::call::{Failure, ShardRequest, failure};
use trefoil_core::replica::Reply;
use trefoil_core::{NodeId, Position, ShardId};
use trefoil_proto::common::v1::{AdmissionClass, Reason};
use trefoil_proto::internal::v1::{Access, Answer, Refusal, answer, command, query};

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
pub struct CallContext {
    /// What the caller was allowed to do.
    pub access: Arc<Access>,
    /// When the caller gives up.
    pub deadline: Instant,
    /// What the caller asked for, where it has a request id; else 0.
    pub fingerprint: u64,
}

/// Which calls in flight this one counts against.
pub(crate) fn admission(work: &ShardRequest) -> AdmissionClass {
    let class = match work {
        ShardRequest::Command(command) => {
            command.operation.as_ref().map(command::Operation::admission)
        }
        ShardRequest::Query(query) => query.query.as_ref().map(query::Query::admission),
    };
    class.unwrap_or(AdmissionClass::Ordinary)
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
    use trefoil_proto::internal::v1::command::Operation;
    use trefoil_proto::internal::v1::{Command, Query};
    use trefoil_proto::lock::v1::KeepAliveRequest;

    use super::*;

    #[test]
    fn what_keeps_sessions_alive_finds_room() {
        let operation = Some(Operation::KeepAlive(KeepAliveRequest::default()));
        let renewal = ShardRequest::Command(Command { operation, ..Command::default() });
        assert_eq!(admission(&renewal), AdmissionClass::Reserved);
        assert_eq!(admission(&ShardRequest::Query(Query::default())), AdmissionClass::Ordinary);
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
