//! What a call asks of a shard, and what may be done about a try that failed.

use prost::Message as _;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Command, Query, Refusal};
use trefoil_proto::reason::{RefusalEffect, Retry};

/// A command or a query.
#[derive(Clone, Debug, PartialEq)]
pub enum ShardRequest {
    /// To be applied.
    Command(Command),
    /// To be read, linearizably.
    Query(Query),
}

/// How a try failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Failure {
    /// It did not happen and another try may succeed.
    Definite,
    /// It may have happened.
    Unknown,
    /// Another try would end the same way.
    Final,
}

impl ShardRequest {
    /// Its size.
    #[must_use]
    pub fn bytes(&self) -> usize {
        match self {
            Self::Command(command) => command.encoded_len(),
            Self::Query(query) => query.encoded_len(),
        }
    }

    /// Whether it may be tried again although an earlier try may have taken effect.
    #[must_use]
    pub fn is_repeatable(&self) -> bool {
        let Self::Command(command) = self else { return true };
        command.request_id.is_some()
            || command.operation.as_ref().is_some_and(Operation::is_idempotent)
    }

    /// Marks the next try as one more, and says what was applied before the first one, so that the shard executes it
    /// only where it can tell that none was before. The attempt of the request id is the client's own count.
    pub fn count_attempt(&mut self, not_before_ms: u64) {
        if let Self::Command(command) = self
            && command.request_id.is_some()
        {
            command.node_attempt = command.node_attempt.saturating_add(1);
            command.not_before_ms = not_before_ms;
        }
    }

    /// How a try of it ended whose end was not seen.
    #[must_use]
    pub fn unseen(&self) -> (Refusal, Failure) {
        unseen(matches!(self, Self::Command(_)))
    }
}

/// How a try of a command, or of a query, ended whose end was not seen.
#[must_use]
pub fn unseen(is_command: bool) -> (Refusal, Failure) {
    if is_command {
        let text = "the end of the command was not seen";
        (refusal(Reason::MaybeApplied, text), Failure::Unknown)
    } else {
        (refusal(Reason::NoQuorum, "the end of the query was not seen"), Failure::Definite)
    }
}

/// What a refusal that no state machine decided says about the try.
#[must_use]
pub fn failure(reason: Reason) -> Failure {
    let row = reason.row();
    match (row.effect, row.retry) {
        (RefusalEffect::Unknown, Retry::WithRequestId) => Failure::Unknown,
        (_, Retry::Elsewhere) => Failure::Definite,
        _ => Failure::Final,
    }
}

pub(super) fn refusal(reason: Reason, message: &str) -> Refusal {
    Refusal { reason: reason.into(), message: message.to_owned(), ..Refusal::default() }
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

    /// By the client, by the node, and what was applied before the node's first.
    fn attempts(work: &ShardRequest) -> Option<(u32, u32, u64)> {
        let ShardRequest::Command(Command {
            request_id: Some(id),
            node_attempt,
            not_before_ms,
            ..
        }) = work
        else {
            return None;
        };
        Some((id.attempt, *node_attempt, *not_before_ms))
    }

    #[test]
    fn only_what_is_safe_is_repeated_after_an_unknown_end() {
        let put = command(Operation::Put(PutRequest::default()));
        assert!(!ShardRequest::Command(put.clone()).is_repeatable());
        let request_id =
            Some(RequestId { client: "c".to_owned(), sequence: 1, ..RequestId::default() });
        let mut named = ShardRequest::Command(Command { request_id, ..put });
        assert!(named.is_repeatable());
        named.count_attempt(500);
        assert_eq!(attempts(&named), Some((0, 1, 500)));
        named.count_attempt(500);
        assert_eq!(attempts(&named), Some((0, 2, 500)));
        let mut acquire =
            ShardRequest::Command(command(Operation::Acquire(AcquireRequest::default())));
        assert!(acquire.is_repeatable());
        acquire.count_attempt(500);
        assert_eq!(
            acquire,
            ShardRequest::Command(command(Operation::Acquire(AcquireRequest::default())))
        );
        let renewal =
            ShardRequest::Command(command(Operation::KeepAlive(KeepAliveRequest::default())));
        assert!(renewal.is_repeatable());
        assert!(ShardRequest::Query(Query::default()).is_repeatable());
    }

    #[test]
    fn a_refusal_says_what_became_of_its_try() {
        assert_eq!(failure(Reason::MaybeApplied), Failure::Unknown);
        assert_eq!(failure(Reason::DeadlinePassed), Failure::Final);
        assert_eq!(failure(Reason::Stopping), Failure::Definite);
        assert_eq!(failure(Reason::RequestForgotten), Failure::Final);
    }
}
