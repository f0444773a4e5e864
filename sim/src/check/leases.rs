//! Leases and sessions, by the log: what an answer promises of a lease is kept, by whatever retry it was told; a lease settles
//! its own message and no other, and nobody gets hold of a session by a guess.

use std::collections::BTreeMap;

use trefoil_core::lease::LeaseId;
use trefoil_core::machine::Outcome;
use trefoil_proto::internal::v1::answer::Answer as A;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{AckLease, Command};
use trefoil_proto::queue::v1::Delivery;

use super::Violation;
use super::history::{Action, History, RecordedOutcome as Told};

const KEPT: &str = "a lease lasts for as long as was told";
const OWN: &str = "a message is settled by a lease of its own";
const GUESSED: &str = "a session cannot be guessed";

/// Queue, partition and sequence.
type LeasedMessage = (u64, u32, u64);

/// The newest lease of each message, and until when it was promised.
#[derive(Clone, Debug, Default)]
pub struct LeaseChecker {
    newest: BTreeMap<LeasedMessage, (u64, u64)>,
}

impl LeaseChecker {
    /// An entry of a queue's shard was applied.
    pub fn applied(
        &mut self,
        commands: &[Command],
        outcomes: &[Outcome],
        now_ms: u64,
    ) -> Vec<Violation> {
        let mut found = Vec::new();
        for (command, outcome) in commands.iter().zip(outcomes) {
            let Outcome::Answered(answer) = outcome else { continue };
            match (&command.operation, &answer.answer) {
                (Some(Operation::DequeueFrom(_)), Some(A::Dequeue(told))) => {
                    let deliveries = told.deliveries.iter();
                    found.extend(deliveries.filter_map(|told| self.delivered(told, now_ms)));
                }
                (Some(Operation::AckLease(ack)), Some(A::Ack(_))) => {
                    found.extend(self.settled(*ack, command.request_id.is_some()));
                }
                (Some(Operation::ReturnLeases(returned)), Some(A::Done(_))) => {
                    for ack in &returned.leases {
                        let message = (ack.queue_id, ack.partition, ack.sequence);
                        if self.newest.get(&message).is_some_and(|(own, _)| *own == ack.secret) {
                            self.newest.remove(&message);
                        }
                    }
                }
                _ => {}
            }
        }
        found
    }

    fn delivered(&mut self, told: &Delivery, now_ms: u64) -> Option<Violation> {
        let Ok(id) = told.lease_id.parse::<LeaseId>() else {
            return Some(Violation::new(OWN, format!("{told:?} has no lease")));
        };
        let message = (id.queue_id, id.partition, id.sequence);
        let until = now_ms.saturating_add(told.lease_ms);
        let newest = self.newest.insert(message, (id.secret, until));
        let (secret, promised) = newest?;
        if secret == id.secret {
            self.newest.insert(message, (secret, promised.max(until)));
        }
        let broken = secret != id.secret && promised > now_ms;
        broken.then(|| {
            let what = format!("{told:?} at {now_ms} ms, leased to another until {promised} ms");
            Violation::new(KEPT, what)
        })
    }

    /// A retry is answered as before.
    fn settled(&mut self, ack: AckLease, may_be_retry: bool) -> Option<Violation> {
        let message = (ack.queue_id, ack.partition, ack.sequence);
        let lease = self.newest.remove(&message).map(|(secret, _)| secret);
        let is_own = lease == Some(ack.secret) || (lease.is_none() && may_be_retry);
        let what = || format!("{ack:?} settled a message whose lease was {lease:?}");
        (!is_own).then(|| Violation::new(OWN, what()))
    }
}

/// Nobody finds a session by trying ids.
#[must_use]
pub fn check(history: &History) -> Vec<Violation> {
    let guesses = history.answered().filter(|(call, _, told)| {
        matches!(call.action, Action::GuessSession { .. }) && !matches!(told, Told::Refused(_))
    });
    guesses.map(|(call, ..)| Violation::new(GUESSED, format!("{call:?}"))).collect()
}

#[cfg(test)]
mod tests {
    use trefoil_proto::common::v1::Reason;
    use trefoil_proto::internal::v1::{DequeueFrom, ReturnLeases};
    use trefoil_proto::queue::v1::{AckResponse, DequeueResponse};

    use super::super::history::build::{answered, history};
    use super::*;

    const LEASE: LeaseId = LeaseId { queue_id: 1, partition: 2, sequence: 3, secret: 4 };

    fn apply(
        leases: &mut LeaseChecker,
        now_ms: u64,
        operation: Operation,
        answer: A,
    ) -> Vec<Violation> {
        let command = Command { operation: Some(operation), ..Command::default() };
        leases.applied(&[command], &[Outcome::Answered(answer.into())], now_ms)
    }

    fn deliver(leases: &mut LeaseChecker, now_ms: u64, id: LeaseId, lease_ms: u64) -> bool {
        let delivery = Delivery { lease_id: id.to_string(), lease_ms, ..Delivery::default() };
        let told = DequeueResponse { deliveries: vec![delivery], ..DequeueResponse::default() };
        let dequeue = Operation::DequeueFrom(DequeueFrom::default());
        apply(leases, now_ms, dequeue, A::Dequeue(told)).is_empty()
    }

    fn ack(leases: &mut LeaseChecker, id: LeaseId) -> bool {
        let told = A::Ack(AckResponse::default());
        apply(leases, 0, Operation::AckLease(id.ack()), told).is_empty()
    }

    #[test]
    fn what_was_told_is_kept() {
        let mut leases = LeaseChecker::default();
        let other = LeaseId { secret: 5, ..LEASE };
        assert!(deliver(&mut leases, 100, LEASE, 50));
        assert!(deliver(&mut leases, 140, LEASE, 10), "what is left");
        assert!(deliver(&mut leases, 150, other, 50));
        assert!(deliver(&mut leases.clone(), 200, LEASE, 50));
        assert!(!deliver(&mut leases, 199, LEASE, 50));

        let mut leases = LeaseChecker::default();
        assert!(deliver(&mut leases, 100, LEASE, 50));
        assert!(deliver(&mut leases, 140, LEASE, 50), "told too much");
        assert!(!deliver(&mut leases, 150, other, 50));
    }

    #[test]
    fn a_returned_lease_promises_nothing() {
        let mut leases = LeaseChecker::default();
        assert!(deliver(&mut leases, 100, LEASE, 50));
        let returned = ReturnLeases { queue_id: 1, leases: vec![LEASE.ack()] };
        let done = A::Done(trefoil_proto::internal::v1::Done {});
        assert!(apply(&mut leases, 110, Operation::ReturnLeases(returned), done).is_empty());
        assert!(deliver(&mut leases, 120, LeaseId { secret: 5, ..LEASE }, 50));
    }

    #[test]
    fn a_lease_settles_its_own_message() {
        let mut leases = LeaseChecker::default();
        assert!(deliver(&mut leases, 100, LEASE, 50));
        assert!(!ack(&mut leases.clone(), LeaseId { secret: 5, ..LEASE }), "a guess");
        assert!(!ack(&mut leases.clone(), LeaseId { queue_id: 2, ..LEASE }), "of another queue");
        assert!(ack(&mut leases, LEASE));
        assert!(!ack(&mut leases, LEASE), "it is gone");
    }

    #[test]
    fn a_guess_finds_no_session() {
        let guess = || Action::GuessSession { namespace: "n".to_owned(), session: 1 };
        let refused = answered(1, 2, 1, guess(), Told::Refused(Reason::SessionExpired));
        assert!(check(&history([refused])).is_empty());
        let found = answered(1, 2, 1, guess(), Told::Renewed { remaining_ms: 1 });
        assert_eq!(check(&history([found]))[0].invariant, GUESSED);
    }
}
