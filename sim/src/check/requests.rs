//! Request ids against the applied log: each submission took effect as its end says, and once.
//!
//! A submission is a request id with its attempt. It is sent again only after a definite refusal, so it stands in the
//! log at most once, unless doing it twice is doing it once; a retry after an unknown end is another submission. Those
//! that a node makes by itself follow in number on that of its client, whose own are further apart.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::{Position, ShardId};
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{Answer, answer};
use trefoil_proto::lock::v1::OpenSessionResponse;
use trefoil_proto::queue::v1::{Delivery, DequeueResponse};
use trefoil_proto::reason::Retry;

use super::Violation;

const TWICE: &str = "a submission stands in the log once";
const UNDONE: &str = "what was refused before the state machine is not in the log";
const PLACED: &str = "an answered submission stands in the log where its reply says";
const SAME: &str = "a request id has one effect and one answer";

/// Attempts that a node may count by itself between two of its client.
pub const NODE_ATTEMPTS: u32 = 1_000;

/// (shard, client, sequence).
type Request = (ShardId, String, u64);

/// What the log and the clients say of every request id.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// (index, ordinal) of each submission in the log.
    applied: BTreeMap<(Request, u32), BTreeSet<(u64, u32)>>,
    /// The first remembered answer of each request.
    answers: BTreeMap<Request, Answer>,
    /// Ends that clients were told: the position, or none for a definite refusal.
    told: BTreeMap<(Request, u32), Option<(u64, u32)>>,
    /// Retries that were given a remembered answer.
    pub hits: u64,
}

impl Ledger {
    /// A command was applied, seen for the first time on any node. The answer is missing while it waits.
    /// `is_idempotent` says that doing it twice is doing it once.
    ///
    /// # Errors
    /// When it stands in the log twice, or answers otherwise than it did before.
    pub fn applied(
        &mut self,
        shard: ShardId,
        place: (u64, u32),
        id: &RequestId,
        answer: Option<&Answer>,
        is_idempotent: bool,
    ) -> Result<(), Violation> {
        if answer.is_some_and(is_forgotten) {
            // Not remembered and without effect: the same submission may come again.
            return Ok(());
        }
        let request = (shard, id.client.clone(), id.sequence);
        if let Some(answer) = answer {
            self.hits += u64::from(self.answers.contains_key(&request));
            self.answered(shard, id, answer)?;
        }
        let places = self.applied.entry((request, id.attempt)).or_default();
        if !places.is_empty() && !is_idempotent {
            let what = format!("{id:?} at {places:?} and at {place:?} of shard {shard}");
            return Err(Violation::new(TWICE, what));
        }
        places.insert(place);
        Ok(())
    }

    /// A request was answered by the state machine, at once or after a wait.
    ///
    /// # Errors
    /// When it was answered otherwise before.
    pub fn answered(
        &mut self,
        shard: ShardId,
        id: &RequestId,
        answer: &Answer,
    ) -> Result<(), Violation> {
        if is_forgotten(answer) {
            return Ok(());
        }
        let first = self
            .answers
            .entry((shard, id.client.clone(), id.sequence))
            .or_insert_with(|| answer.clone());
        if agrees(first, answer) {
            return Ok(());
        }
        if is_grant(first) && !is_grant(answer) {
            // It is over: whoever judges locks knows whether that is so. From now on it stays over.
            *first = answer.clone();
            return Ok(());
        }
        Err(Violation::new(SAME, format!("{id:?} on shard {shard}: {first:?}, then {answer:?}")))
    }

    /// The effect of a request was taken back by another: it may be answered otherwise from now on.
    pub fn taken_back(&mut self, shard: ShardId, id: &RequestId) {
        self.answers.remove(&(shard, id.client.clone(), id.sequence));
    }

    /// A client sends a submission, possibly again after a definite refusal: what it was told before is void.
    pub fn sent(&mut self, shard: ShardId, id: &RequestId) {
        self.told.remove(&((shard, id.client.clone(), id.sequence), id.attempt));
    }

    /// A client was told the end of a submission: a position when it was answered by its own command, none when it
    /// was definitely refused before the state machine.
    pub fn told(&mut self, shard: ShardId, id: &RequestId, position: Option<Position>) {
        let place = position.map(|position| (position.index, position.ordinal));
        self.told.insert(((shard, id.client.clone(), id.sequence), id.attempt), place);
    }

    /// Compares what clients were told with the log, once all of it was seen.
    #[must_use]
    pub fn check(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for ((request, attempt), told) in &self.told {
            let last = attempt.saturating_add(NODE_ATTEMPTS - 1);
            let tries = self.applied.range((request.clone(), *attempt)..=(request.clone(), last));
            let places = tries.flat_map(|(_, places)| places).collect::<Vec<_>>();
            match told {
                Some(told) if !places.contains(&told) => {
                    let what =
                        format!("{request:?} {attempt} was told {told:?} and stands at {places:?}");
                    found.push(Violation::new(PLACED, what));
                }
                None if !places.is_empty() => {
                    let what = format!("{request:?} {attempt} was applied at {places:?}");
                    found.push(Violation::new(UNDONE, what));
                }
                _ => {}
            }
        }
        found
    }
}

/// Whether a later answer is the first one, with what is left of the time that it promised.
fn agrees(first: &Answer, later: &Answer) -> bool {
    match (&first.answer, &later.answer) {
        (Some(answer::Answer::Dequeue(first)), Some(answer::Answer::Dequeue(later))) => {
            let is_known = |delivery: &Delivery| {
                first.deliveries.iter().any(|known| {
                    let whole = Delivery { lease_ms: known.lease_ms, ..delivery.clone() };
                    whole == *known && delivery.lease_ms <= known.lease_ms
                })
            };
            let all =
                |told: &DequeueResponse| told.deliveries.len() as u64 + u64::from(told.leases_over);
            all(first) == all(later) && later.deliveries.iter().all(is_known)
        }
        (Some(answer::Answer::OpenSession(first)), Some(answer::Answer::OpenSession(later))) => {
            let remaining_ms = first.remaining_ms;
            let whole = OpenSessionResponse { remaining_ms, ..later.clone() };
            whole == *first && later.remaining_ms <= remaining_ms
        }
        _ => first == later,
    }
}

/// A grant, which a retry is told as long as it lasts.
fn is_grant(answer: &Answer) -> bool {
    match &answer.answer {
        Some(answer::Answer::Acquire(got)) => got.acquired,
        Some(answer::Answer::AcquirePermits(got)) => got.acquired,
        Some(answer::Answer::Convert(got)) => got.converted,
        _ => false,
    }
}

/// Answers that are not remembered, because they changed nothing and a later try may be answered otherwise.
#[must_use]
pub fn is_forgotten(answer: &Answer) -> bool {
    match &answer.answer {
        Some(answer::Answer::Refusal(refusal)) => {
            let reason = refusal.reason();
            reason == Reason::RequestForgotten || reason.row().retry == Retry::Freely
        }
        Some(answer::Answer::Dequeue(response)) => {
            response.deliveries.is_empty() && response.leases_over == 0
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use trefoil_proto::internal::v1::{Done, Refusal};
    use trefoil_proto::lock::v1::ReleaseResponse;

    use super::*;

    fn id(attempt: u32) -> RequestId {
        RequestId { client: "c".to_owned(), sequence: 1, first_unacknowledged: 1, attempt }
    }

    fn done() -> Answer {
        answer::Answer::Done(Done {}).into()
    }

    fn at(index: u64) -> Option<Position> {
        Some(Position { term: 2, index, ordinal: 0, log_time_ms: 0 })
    }

    #[test]
    fn one_effect_and_its_retry_pass() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &id(0), Some(&done()), false), Ok(()));
        assert_eq!(ledger.applied(1, (12, 0), &id(1), Some(&done()), false), Ok(()));
        let forgotten = Refusal { reason: Reason::RequestForgotten.into(), ..Refusal::default() };
        assert_eq!(ledger.applied(1, (13, 0), &id(2), Some(&forgotten.into()), false), Ok(()));
        ledger.told(1, &id(1), at(12));
        ledger.told(1, &id(3), None);
        assert_eq!(ledger.check(), []);
    }

    #[test]
    fn a_submission_that_stands_twice_is_found() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &id(0), None, false), Ok(()));
        assert_eq!(ledger.applied(1, (12, 0), &id(0), None, false).unwrap_err().invariant, TWICE);
    }

    #[test]
    fn what_may_be_repeated_and_what_a_node_tried_again_passes() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &id(0), None, true), Ok(()));
        assert_eq!(ledger.applied(1, (12, 0), &id(0), None, true), Ok(()));
        assert_eq!(ledger.applied(1, (13, 0), &id(7), Some(&done()), false), Ok(()));
        ledger.told(1, &id(0), at(13));
        assert_eq!(ledger.check(), []);
        ledger.told(1, &id(0), None);
        assert_eq!(ledger.check()[0].invariant, UNDONE);
    }

    #[test]
    fn a_second_effect_is_found() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &id(0), Some(&done()), false), Ok(()));
        let other = answer::Answer::Release(ReleaseResponse { header: None }).into();
        assert_eq!(
            ledger.applied(1, (12, 0), &id(1), Some(&other), false).unwrap_err().invariant,
            SAME
        );
    }

    #[test]
    fn a_refusal_that_was_applied_is_found() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &id(0), Some(&done()), false), Ok(()));
        ledger.told(1, &id(0), None);
        assert_eq!(ledger.check()[0].invariant, UNDONE);
    }

    #[test]
    fn a_wrong_position_is_found() {
        let mut ledger = Ledger::default();
        ledger.told(1, &id(0), at(11));
        assert_eq!(ledger.check()[0].invariant, PLACED);
        assert_eq!(ledger.applied(1, (12, 0), &id(0), Some(&done()), false), Ok(()));
        assert_eq!(ledger.check()[0].invariant, PLACED);
    }
}
