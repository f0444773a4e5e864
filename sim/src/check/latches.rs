//! Latches, by the log: each answer is what counting says.

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::machine::Outcome;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{Answer, Command, Query};
use trefoil_proto::lock::v1::{CountDownRequest, SetLatchRequest};

use super::Violation;
use super::keys::LockKey;
use super::requests::is_forgotten;

const COUNT: &str = "a latch is what was set, less what was counted down";

#[derive(Clone, Copy, Debug, Default)]
struct KnownLatch {
    count: u64,
    round: u64,
    first_round: u64,
}

impl KnownLatch {
    /// Count and round, of a round that is this latch's.
    fn look(self, round: u64) -> Option<(u64, u64)> {
        match round {
            0 => Some((self.count, self.round)),
            _ if round == self.round => Some((self.count, round)),
            _ if (self.first_round..self.round).contains(&round) => Some((0, round)),
            _ => None,
        }
    }
}

/// All latches.
#[derive(Clone, Debug, Default)]
pub struct LatchChecker {
    latches: BTreeMap<LockKey, KnownLatch>,
    last_rounds: BTreeMap<String, u64>,
    done: BTreeSet<(String, u64)>,
    /// Latches that were counted down to nothing.
    pub opened: u64,
}

impl LatchChecker {
    /// An entry was applied.
    pub fn applied(&mut self, commands: &[Command], outcomes: &[Outcome]) -> Vec<Violation> {
        let mut found = Vec::new();
        for (command, outcome) in commands.iter().zip(outcomes) {
            let (Some(operation), Outcome::Answered(answer)) = (&command.operation, outcome) else {
                continue;
            };
            if let Some(id) = &command.request_id
                && (is_forgotten(answer) || !self.done.insert((id.client.clone(), id.sequence)))
            {
                continue;
            }
            let fits = match operation {
                Operation::SetLatch(set) => self.set(set, answer),
                Operation::CountDown(down) => self.count_down(down, answer),
                Operation::DeleteLatch(delete) => {
                    let name = (delete.namespace.clone(), delete.name.clone());
                    let was_there = self.latches.remove(&name).is_some();
                    matches!(answer.answer, Some(A::DeleteLatch(_))) == was_there
                }
                _ => true,
            };
            if !fits {
                let what = format!("{operation:?}: {answer:?} with {:?}", self.latches);
                found.push(Violation::new(COUNT, what));
            }
        }
        found
    }

    fn set(&mut self, set: &SetLatchRequest, answer: &Answer) -> bool {
        let name = (set.namespace.clone(), set.name.clone());
        let before = self.latches.get(&name).copied();
        let count = before.map_or(0, |latch| latch.count);
        let told = match &answer.answer {
            Some(A::SetLatch(told)) => told.round,
            Some(A::Refusal(refusal)) => {
                let is_just = count != set.expected.unwrap_or(0);
                return refusal.reason() != Reason::LatchCount || is_just;
            }
            _ => return false,
        };
        if count != set.expected.unwrap_or(0) {
            return false;
        }
        let mut latch =
            before.unwrap_or_else(|| KnownLatch { first_round: told, ..KnownLatch::default() });
        let last = self.last_rounds.entry(name.0.clone()).or_default();
        let fits = if count == 0 { told > *last } else { told == latch.round };
        *last = told.max(*last);
        (latch.count, latch.round) = (set.count, told);
        self.latches.insert(name, latch);
        fits
    }

    fn count_down(&mut self, down: &CountDownRequest, answer: &Answer) -> bool {
        let latch = self.latches.get_mut(&(down.namespace.clone(), down.name.clone()));
        let seen = latch.as_ref().and_then(|latch| latch.look(down.round));
        let told = match &answer.answer {
            Some(A::CountDown(told)) => Some((told.count, told.round)),
            Some(A::Refusal(refusal)) if refusal.reason() == Reason::UnknownLatch => None,
            _ => return true,
        };
        let (Some(latch), Some((count, round))) = (latch, seen) else { return told.is_none() };
        let left = count.saturating_sub(down.by.max(1));
        if count > 0 {
            latch.count = left;
            self.opened += u64::from(left == 0);
        }
        told == Some((left, round))
    }

    /// A latch was read at the newest index.
    #[must_use]
    pub fn read(&self, query: &Query, answer: &Answer) -> Option<Violation> {
        let (namespace, name, round) = match &query.query {
            Some(Q::GetLatch(asked)) => (&asked.namespace, &asked.name, 0),
            Some(Q::AwaitLatch(asked)) => (&asked.namespace, &asked.name, asked.round),
            _ => return None,
        };
        let latch = self.latches.get(&(namespace.clone(), name.clone()));
        let seen = latch.and_then(|latch| latch.look(round));
        let told = match &answer.answer {
            Some(A::GetLatch(told)) => told.latch.as_ref().map(|told| (told.count, told.round)),
            Some(A::LatchSeen(told)) => Some((told.count, told.round)),
            _ => None,
        };
        let what = || format!("{query:?}: {answer:?} with {latch:?}");
        (told != seen).then(|| Violation::new(COUNT, what()))
    }
}

#[cfg(test)]
mod tests {
    use trefoil_proto::internal::v1::LatchSeen;
    use trefoil_proto::internal::v1::{AwaitLatch, Refusal};
    use trefoil_proto::lock::v1::{CountDownResponse, SetLatchResponse};

    use super::*;

    fn apply(latches: &mut LatchChecker, operation: Operation, answer: A) -> bool {
        let command = Command { operation: Some(operation), ..Command::default() };
        latches.applied(&[command], &[Outcome::Answered(answer.into())]).is_empty()
    }

    fn set(latches: &mut LatchChecker, count: u64, round: u64) -> bool {
        let set = SetLatchRequest { count, ..SetLatchRequest::default() };
        let told = SetLatchResponse { round, ..SetLatchResponse::default() };
        apply(latches, Operation::SetLatch(set), A::SetLatch(told))
    }

    fn count(latches: &mut LatchChecker, count: u64, round: u64) -> bool {
        let told = CountDownResponse { count, round, ..CountDownResponse::default() };
        let down = Operation::CountDown(CountDownRequest::default());
        apply(latches, down, A::CountDown(told))
    }

    #[test]
    fn counting_decides() {
        let mut latches = LatchChecker::default();
        assert!(set(&mut latches, 2, 5));
        assert!(
            count(&mut latches, 1, 5) && count(&mut latches, 0, 5) && count(&mut latches, 0, 5)
        );
        assert_eq!(latches.opened, 1);
        assert!(!set(&mut latches.clone(), 2, 5), "the round is over");
        assert!(set(&mut latches, 2, 6));
        assert!(!count(&mut latches.clone(), 0, 6) && !count(&mut latches.clone(), 1, 5));
        let refusal = Refusal { reason: Reason::UnknownLatch.into(), ..Refusal::default() };
        let down = Operation::CountDown(CountDownRequest::default());
        assert!(!apply(&mut latches, down, A::Refusal(refusal)));
    }

    #[test]
    fn reads_see_the_count() {
        let mut latches = LatchChecker::default();
        assert!(set(&mut latches, 2, 5));
        let query = Query { query: Some(Q::AwaitLatch(AwaitLatch::default())), ..Query::default() };
        let seen = |count, round| A::LatchSeen(LatchSeen { count, round }).into();
        assert_eq!(latches.read(&query, &seen(2, 5)), None);
        assert!(latches.read(&query, &seen(0, 5)).is_some());
        assert!(latches.read(&query, &seen(2, 4)).is_some());
    }
}
