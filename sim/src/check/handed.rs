//! A leader that knows who waits answers a grant, offers it, or takes it back: none stays with a session that was not
//! told of it.

use std::collections::BTreeSet;

use trefoil_core::limits::WAITER_CLAIM_MS;
use trefoil_core::machine::{Applied, Outcome, WaiterId, is_grant};
use trefoil_core::replica::{Effect, Reply};

use super::Violation;

const INVARIANT: &str = "a grant is told, offered or taken back";

/// A tick, and what a queue of commands takes.
const SLACK_MS: u64 = 1_000;

/// What one process of a node owes to the calls of a shard while it leads.
#[derive(Debug, Default)]
pub struct Handed {
    /// Calls of this term that wait.
    waiting: BTreeSet<WaiterId>,
    /// Grants of what was applied last.
    granted: usize,
    /// The index of that.
    index: u64,
    /// Calls of entries up to here were told that the leader does not wait for them.
    forgotten: u64,
    owed: Vec<Owed>,
}

/// Grants that nobody was told of.
#[derive(Debug)]
struct Owed {
    grants: usize,
    /// Up to which index they were made.
    index: u64,
    /// Until when they are to be taken back, in boot ms.
    until_ms: u64,
}

impl Handed {
    /// The leader applied an entry that it proposed itself: it knows all who asked.
    pub fn applied(&mut self, applied: &Applied) {
        if applied.index <= self.forgotten {
            return;
        }
        self.index = applied.index;
        for outcome in &applied.outcomes {
            match outcome {
                Outcome::Answered(answer) => self.granted += usize::from(is_grant(answer)),
                Outcome::Waiting(waiter) => {
                    self.waiting.insert(waiter.clone());
                }
            }
        }
        for settled in &applied.settled {
            let is_known = self.waiting.remove(&settled.waiter);
            self.granted += usize::from(is_known && is_grant(&settled.answer));
        }
    }

    /// What the leader does about it, and about what it could not tell before.
    pub fn acts(&mut self, effects: &[Effect], boot_ms: u64) {
        let is_told = |effect: &&Effect| match effect {
            Effect::Offer(_) => true,
            Effect::Reply(_, Reply::Answered(_, answer)) => is_grant(answer),
            _ => false,
        };
        let granted = std::mem::take(&mut self.granted);
        let grants = granted.saturating_sub(effects.iter().filter(is_told).count());
        if grants > 0 {
            let until_ms = boot_ms.saturating_add(WAITER_CLAIM_MS + SLACK_MS);
            self.owed.push(Owed { grants, index: self.index, until_ms });
        }
        for _ in effects.iter().filter(|effect| matches!(effect, Effect::TakeBack(_))) {
            if let Some(owed) = self.owed.iter_mut().find(|owed| owed.grants > 0) {
                owed.grants -= 1;
            }
        }
    }

    /// The leader has looked at the time.
    pub fn judge(&mut self, boot_ms: u64) -> Option<Violation> {
        self.owed.retain(|owed| owed.grants > 0);
        let late = self.owed.extract_if(.., |owed| owed.until_ms < boot_ms).next()?;
        let Owed { grants, index, .. } = late;
        Some(Violation::new(INVARIANT, format!("{grants} of index {index} were told to nobody")))
    }

    /// It leads no more, or answers nothing any more of its log up to `last`: whoever comes back asks anew.
    pub fn stop(&mut self, last: u64) {
        *self = Self { forgotten: last, ..Self::default() };
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use trefoil_core::Position;
    use trefoil_core::machine::Settled;
    use trefoil_proto::internal::v1::{Answer, answer};
    use trefoil_proto::lock::v1::AcquireResponse;

    use super::*;

    const LATE_MS: u64 = WAITER_CLAIM_MS + SLACK_MS + 1;

    fn grant() -> Answer {
        let response = AcquireResponse { acquired: true, ..AcquireResponse::default() };
        Answer { answer: Some(answer::Answer::Acquire(response)) }
    }

    /// A call waits, and is granted what it waits for.
    fn granted() -> Handed {
        let mut handed = Handed::default();
        let waiter = WaiterId(Bytes::from_static(b"w"));
        let outcomes = vec![Outcome::Waiting(waiter.clone())];
        handed.applied(&Applied { index: 1, outcomes, ..Applied::default() });
        handed.acts(&[], 0);
        let settled = vec![Settled { waiter, request_id: None, answer: grant() }];
        handed.applied(&Applied { index: 2, settled, ..Applied::default() });
        handed
    }

    #[test]
    fn a_grant_that_nobody_is_told_of_is_found() {
        let mut handed = granted();
        handed.acts(&[], 0);
        assert!(handed.judge(LATE_MS - 1).is_none());
        assert_eq!(handed.judge(LATE_MS).unwrap().invariant, INVARIANT);
        assert!(handed.judge(LATE_MS).is_none(), "once");
    }

    #[test]
    fn what_is_told_offered_or_taken_back_is_not_owed() {
        let reply = Effect::Reply(1, Reply::Answered(Position::default(), grant()));
        for effect in [reply, Effect::Offer(1)] {
            let mut handed = granted();
            handed.acts(&[effect], 0);
            assert!(handed.judge(LATE_MS).is_none());
        }
        let mut handed = granted();
        handed.acts(&[], 0);
        handed.acts(&[Effect::TakeBack(Box::default())], 1);
        assert!(handed.judge(LATE_MS).is_none());
    }

    #[test]
    fn who_was_told_that_nobody_waits_is_owed_nothing() {
        let mut handed = granted();
        handed.acts(&[], 0);
        handed.stop(7);
        let outcomes = vec![Outcome::Answered(grant())];
        handed.applied(&Applied { index: 7, outcomes, ..Applied::default() });
        handed.acts(&[], 0);
        assert!(handed.judge(LATE_MS).is_none());
    }
}
