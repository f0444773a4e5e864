//! Calls that wait: they begin to, keep their places, and end.

use trefoil_core::machine::{Outcome, Settled, WaiterId};

use super::super::Violation;
use super::super::keys::id_of;
use super::{CANCELLED, EntryTimes, GrantChecker, WaiterInLine, WaitingCall, newest};

impl GrantChecker {
    /// A call waits, or has its answer at once.
    pub(super) fn asked(&mut self, wait: WaitingCall, outcome: &Outcome, times: EntryTimes) {
        match outcome {
            Outcome::Waiting(waiter) => self.join(waiter, wait),
            Outcome::Answered(answer) => {
                self.judge_refusal(&wait, answer);
                self.told(&wait, None, answer, times);
            }
        }
    }

    /// A call waits in the order of each of its locks; one that was sent again has the places that it had.
    pub(super) fn join(&mut self, waiter: &WaiterId, wait: WaitingCall) {
        if let Some(known) = self.waits.get_mut(waiter) {
            known.brought_at = wait.brought_at;
            return;
        }
        let WaitingCall { session, converts, .. } = wait;
        let several = wait.wants.len() > 1;
        for (lock, _) in &wait.wants {
            let lock = self.locks.entry((wait.namespace.clone(), lock.clone())).or_default();
            // Of several locks it does not wait for what its session holds.
            if !several || lock.holds.iter().all(|hold| hold.session != session) {
                lock.waits.push(WaiterInLine { waiter: waiter.clone(), session, converts });
            }
        }
        self.begun.insert(waiter.clone());
        self.waits.insert(waiter.clone(), wait);
    }

    /// A wait is over.
    pub(super) fn leave(&mut self, waiter: &WaiterId) {
        let Some(wait) = self.waits.remove(waiter) else { return };
        for (lock, _) in wait.wants {
            if let Some(lock) = self.locks.get_mut(&(wait.namespace.clone(), lock)) {
                lock.waits.retain(|other| other.waiter != *waiter);
            }
        }
    }

    /// A wait has ended.
    pub(super) fn settled(&mut self, settled: &Settled, times: EntryTimes) {
        if let Some(id) = id_of(settled.request_id.as_ref()) {
            self.done.insert(id);
        }
        let Some(wait) = self.waits.get(&settled.waiter).cloned() else {
            if newest(&settled.answer).is_some() {
                self.found.push(Violation::new(CANCELLED, format!("{settled:?}")));
            }
            return;
        };
        self.told(&wait, Some(&settled.waiter), &settled.answer, times);
        self.leave(&settled.waiter);
    }
}
