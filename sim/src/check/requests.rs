//! Request ids against the applied log: each submission took effect as its end says, and once.
//!
//! A submission is a request id with its attempt, and the attempt of the node. It is sent again only after a definite
//! refusal, so it stands in the log at most once; a retry after an unknown end is another submission. A request id
//! stands for the operation that had an effect under it first: any other is refused, until its client may have been
//! forgotten. What says after that to be a first try is executed, and of its id nothing more is judged: another operation, or a
//! try that lay before a stopped node for so long.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::{Position, ShardId};
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{Answer, Command, answer};
use trefoil_proto::lock::v1::OpenSessionResponse;
use trefoil_proto::queue::v1::{Delivery, DequeueResponse};
use trefoil_proto::reason;

use super::Violation;

const TWICE: &str = "a submission stands in the log once";
const UNDONE: &str = "what was refused before the state machine is not in the log";
const PLACED: &str = "a request is answered with the place of its effect, first try or not";
const SAME: &str = "a request id has one effect and one answer";
const OTHER: &str = "a request id stands for one operation";

/// (shard, client, sequence).
type ShardRequestKey = (ShardId, String, u64);
/// (index, ordinal).
type Spot = (u64, u32);

/// The effect of a request, as far as it is known.
#[derive(Clone, Debug)]
struct RequestEffect {
    /// What was asked for.
    fingerprint: u64,
    /// What it was answered; none while it waits.
    answer: Option<Answer>,
    /// Where it was answered last: a cancel answers again.
    places: Vec<Spot>,
}

/// What the log and the clients say of every request id.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// Where each submission stands in the log: by the attempts of its client and of its node.
    applied: BTreeMap<(ShardRequestKey, u32, u32), Spot>,
    effects: BTreeMap<ShardRequestKey, RequestEffect>,
    /// Ends that clients were told: the position, or none for a definite refusal.
    told: BTreeMap<(ShardRequestKey, u32), Option<Spot>>,
    /// Log time after which a client that was not heard of may be forgotten, in ms; 0 where none is in so short a run.
    idle_ms: u64,
    /// Log time of each shard, and when each client was heard of there last.
    log_time_ms: BTreeMap<ShardId, u64>,
    seen_at_ms: BTreeMap<(ShardId, String), u64>,
    /// Ids that were used for the first time once more, after their client may have been forgotten.
    anew: BTreeSet<ShardRequestKey>,
    /// Retries that were given a remembered answer.
    pub hits: u64,
    /// Other operations that were refused under a request id.
    pub others_refused: u64,
}

impl Ledger {
    /// A ledger of shards that forget their clients after so much log time.
    #[must_use]
    pub fn forgetful(idle_ms: u64) -> Self {
        Self { idle_ms, ..Self::default() }
    }

    /// The entry whose commands come next has this log time.
    pub fn time_is(&mut self, shard: ShardId, log_time_ms: u64) {
        self.log_time_ms.insert(shard, log_time_ms);
    }

    /// A client was heard of; says whether it may have been forgotten before that.
    fn saw(&mut self, shard: ShardId, client: &str) -> bool {
        let now_ms = self.log_time_ms.get(&shard).copied().unwrap_or_default();
        let before = self.seen_at_ms.insert((shard, client.to_owned()), now_ms);
        self.idle_ms > 0 && before.is_some_and(|before| now_ms >= before + self.idle_ms)
    }

    /// A command was applied, seen for the first time on any node. The answer is missing while it waits; `recalled` is
    /// where it was decided, when it is that of an earlier try.
    ///
    /// # Errors
    /// When it stands in the log twice, or is answered otherwise than it should.
    pub fn applied(
        &mut self,
        shard: ShardId,
        place: Spot,
        command: &Command,
        answer: Option<&Answer>,
        recalled: Option<Position>,
    ) -> Result<(), Violation> {
        let Some(id) = &command.request_id else { return Ok(()) };
        let request = (shard, id.client.clone(), id.sequence);
        if self.anew.contains(&request) {
            return Ok(());
        }
        let known = self.effects.get(&request);
        let is_other = known.is_some_and(|effect| effect.fingerprint != command.fingerprint);
        if let Some(answer) = answer.filter(|answer| is_forgotten(answer)) {
            if is_reuse(answer) {
                self.others_refused += 1;
                if !is_other {
                    let what = format!("{id:?} on shard {shard} was refused, and {known:?}");
                    return Err(Violation::new(OTHER, what));
                }
            }
            // Not remembered and without effect: the same submission may come again.
            return Ok(());
        }
        let is_known = known.is_some();
        let is_first = id.attempt == 0 && command.node_attempt == 0;
        if self.saw(shard, &id.client) && is_known && is_first {
            self.anew.insert(request);
            return Ok(());
        }
        if is_other {
            let known = self.effects.get(&request);
            let what = format!("{id:?} on shard {shard} was answered {answer:?}, and {known:?}");
            return Err(Violation::new(OTHER, what));
        }
        let decided = recalled.map_or(place, |first| (first.index, first.ordinal));
        if recalled.is_some() {
            self.hits += 1;
            let known = self.effects.get(&request);
            let is_known = known.is_some_and(|effect| match effect.answer {
                Some(_) => effect.places.last() == Some(&decided),
                // Perhaps a cancel took nothing back.
                None => effect.places.contains(&decided),
            });
            // What this entry itself settled is told after its commands.
            if !is_known && decided != (place.0, u32::MAX) {
                let what =
                    format!("{id:?} on shard {shard} is said to stand at {decided:?}: {known:?}");
                return Err(Violation::new(PLACED, what));
            }
        }
        self.effects.entry(request.clone()).or_insert_with(|| RequestEffect {
            fingerprint: command.fingerprint,
            answer: None,
            places: Vec::new(),
        });
        if let Some(answer) = answer {
            self.answered(shard, decided, id, answer)?;
        }
        match self.applied.insert((request, id.attempt, command.node_attempt), place) {
            Some(other) => Err(Violation::new(
                TWICE,
                format!("{id:?} at {other:?} and at {place:?} of shard {shard}"),
            )),
            None => Ok(()),
        }
    }

    /// A request was answered by the state machine, at once or after a wait.
    ///
    /// # Errors
    /// When it was answered otherwise before.
    pub fn answered(
        &mut self,
        shard: ShardId,
        place: Spot,
        id: &RequestId,
        answer: &Answer,
    ) -> Result<(), Violation> {
        let request = (shard, id.client.clone(), id.sequence);
        let is_judged = !is_forgotten(answer) && !self.anew.contains(&request);
        let Some(effect) = self.effects.get_mut(&request).filter(|_| is_judged) else {
            return Ok(());
        };
        match &effect.answer {
            Some(first) if agrees(first, answer) => {}
            // It is over: whoever judges locks knows whether that is so. From now on it stays over.
            Some(first) if is_grant(first) && !is_grant(answer) => {
                effect.answer = Some(answer.clone());
                effect.places.push(place);
            }
            Some(first) => {
                let what = format!("{id:?} on shard {shard}: {first:?}, then {answer:?}");
                return Err(Violation::new(SAME, what));
            }
            None => {
                effect.answer = Some(answer.clone());
                effect.places.push(place);
            }
        }
        Ok(())
    }

    /// The effect of a request was taken back by another: it may be answered otherwise from now on.
    pub fn taken_back(&mut self, shard: ShardId, id: &RequestId) {
        if let Some(effect) = self.effects.get_mut(&(shard, id.client.clone(), id.sequence)) {
            effect.answer = None;
        }
    }

    /// A client sends a submission, possibly again after a definite refusal: what it was told before is void.
    pub fn sent(&mut self, shard: ShardId, id: &RequestId) {
        self.told.remove(&((shard, id.client.clone(), id.sequence), id.attempt));
    }

    /// A client was told the end of a submission: the position of its effect when it was answered, none when it was
    /// definitely refused before the state machine.
    pub fn told(&mut self, shard: ShardId, id: &RequestId, position: Option<Position>) {
        let place = position.map(|position| (position.index, position.ordinal));
        self.told.insert(((shard, id.client.clone(), id.sequence), id.attempt), place);
    }

    /// Compares what clients were told with the log, once all of it was seen.
    #[must_use]
    pub fn check(&self) -> Vec<Violation> {
        let mut found = Vec::new();
        for ((request, attempt), told) in &self.told {
            let from = (request.clone(), *attempt, 0);
            let mut tries = self.applied.range(from..=(request.clone(), *attempt, u32::MAX));
            let Some(told) = told else {
                if let Some((_, place)) = tries.next() {
                    let what = format!("{request:?}, attempt {attempt}, was applied at {place:?}");
                    found.push(Violation::new(UNDONE, what));
                }
                continue;
            };
            let effect = self.effects.get(request);
            if tries.next().is_none() || effect.is_none_or(|effect| !effect.places.contains(told)) {
                let what = format!("{request:?}, attempt {attempt}, was told {told:?}: {effect:?}");
                found.push(Violation::new(PLACED, what));
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

/// Whether something was refused because its request id stands for another operation.
fn is_reuse(answer: &Answer) -> bool {
    let Some(answer::Answer::Refusal(refusal)) = &answer.answer else { return false };
    let field = refusal.metadata.get("field").map(String::as_str);
    refusal.reason() == Reason::InvalidField && field == Some("request_id")
}

/// Answers that are not remembered, because they changed nothing and a later try may be answered otherwise.
#[must_use]
pub fn is_forgotten(answer: &Answer) -> bool {
    match &answer.answer {
        Some(answer::Answer::Refusal(refusal)) => {
            refusal.reason().row().effect != reason::RefusalEffect::NoTry || is_reuse(answer)
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

    fn asks(fingerprint: u64, attempt: u32) -> Command {
        Command { request_id: Some(id(attempt)), fingerprint, ..Command::default() }
    }

    fn done() -> Answer {
        answer::Answer::Done(Done {}).into()
    }

    fn refused(reason: Reason, field: &str) -> Answer {
        let metadata = [("field".to_owned(), field.to_owned())].into();
        Refusal { reason: reason.into(), metadata, ..Refusal::default() }.into()
    }

    fn at(index: u64) -> Option<Position> {
        Some(Position { term: 2, index, ordinal: 0, log_time_ms: 0 })
    }

    #[test]
    fn one_effect_and_its_retry_pass() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &asks(7, 0), Some(&done()), None), Ok(()));
        assert_eq!(ledger.applied(1, (12, 0), &asks(7, 1), Some(&done()), at(11)), Ok(()));
        let again = Command { node_attempt: 1, ..asks(7, 1) };
        assert_eq!(ledger.applied(1, (13, 0), &again, Some(&done()), at(11)), Ok(()));
        let forgotten = refused(Reason::RequestForgotten, "");
        assert_eq!(ledger.applied(1, (14, 0), &asks(7, 2), Some(&forgotten), None), Ok(()));
        let other = refused(Reason::InvalidField, "request_id");
        assert_eq!(ledger.applied(1, (15, 0), &asks(8, 0), Some(&other), None), Ok(()));
        ledger.told(1, &id(1), at(11));
        ledger.told(1, &id(3), None);
        assert_eq!(ledger.check(), []);
        assert_eq!((ledger.hits, ledger.others_refused), (2, 1));
    }

    #[test]
    fn a_call_that_waited_has_the_place_of_its_end() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &asks(7, 0), None, None), Ok(()));
        assert_eq!(ledger.answered(1, (12, u32::MAX), &id(0), &done()), Ok(()));
        ledger.told(
            1,
            &id(0),
            Some(Position { index: 12, ordinal: u32::MAX, ..Position::default() }),
        );
        assert_eq!(ledger.check(), []);
        ledger.told(1, &id(0), at(11));
        assert_eq!(ledger.check()[0].invariant, PLACED);
    }

    #[test]
    fn a_submission_that_stands_twice_is_found() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &asks(7, 0), None, None), Ok(()));
        let twice = ledger.applied(1, (12, 0), &asks(7, 0), None, None);
        assert_eq!(twice.unwrap_err().invariant, TWICE);
    }

    #[test]
    fn a_second_effect_is_found() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &asks(7, 0), Some(&done()), None), Ok(()));
        let other = answer::Answer::Release(ReleaseResponse { header: None }).into();
        let second = ledger.applied(1, (12, 0), &asks(7, 1), Some(&other), None);
        assert_eq!(second.unwrap_err().invariant, SAME);
    }

    #[test]
    fn an_answer_to_something_else_is_found_and_so_is_a_refusal_of_the_same() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &asks(7, 0), None, None), Ok(()));
        let answered = ledger.applied(1, (12, 0), &asks(8, 0), Some(&done()), None);
        assert_eq!(answered.unwrap_err().invariant, OTHER);
        let other = refused(Reason::InvalidField, "request_id");
        let refused = ledger.applied(1, (13, 0), &asks(7, 1), Some(&other), None);
        assert_eq!(refused.unwrap_err().invariant, OTHER);
    }

    #[test]
    fn a_refusal_that_was_applied_is_found() {
        let mut ledger = Ledger::default();
        assert_eq!(ledger.applied(1, (11, 0), &asks(7, 0), Some(&done()), None), Ok(()));
        ledger.told(1, &id(0), None);
        assert_eq!(ledger.check()[0].invariant, UNDONE);
    }

    #[test]
    fn a_wrong_position_is_found() {
        let mut ledger = Ledger::default();
        ledger.told(1, &id(0), at(11));
        assert_eq!(ledger.check()[0].invariant, PLACED);
        assert_eq!(ledger.applied(1, (12, 0), &asks(7, 0), Some(&done()), None), Ok(()));
        assert_eq!(ledger.check()[0].invariant, PLACED);
        let moved = ledger.applied(1, (13, 0), &asks(7, 1), Some(&done()), at(13));
        assert_eq!(moved.unwrap_err().invariant, PLACED);
    }

    #[test]
    fn an_id_stands_for_another_operation_once_its_client_may_be_forgotten() {
        for (idle_ms, passes) in [(0, false), (1_000, true), (1_001, false)] {
            let mut ledger = Ledger::forgetful(idle_ms);
            ledger.time_is(1, 500);
            assert_eq!(ledger.applied(1, (11, 0), &asks(7, 0), Some(&done()), None), Ok(()));
            ledger.time_is(1, 1_500);
            let other = ledger.applied(1, (12, 0), &asks(8, 0), Some(&done()), None);
            assert_eq!(other.is_ok(), passes, "{idle_ms}");
            // A retry does not say that it is new.
            let mut ledger = Ledger::forgetful(idle_ms);
            assert_eq!(ledger.applied(1, (11, 0), &asks(7, 0), Some(&done()), None), Ok(()));
            ledger.time_is(1, 1_500);
            assert!(ledger.applied(1, (12, 0), &asks(8, 1), Some(&done()), None).is_err());
        }
    }
}
