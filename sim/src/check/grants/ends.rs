//! What ends a grant: a release, an operator, or a caller who is gone; and what its retry is told then.

use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, CancelAcquire, ForceStep, ReleaseHeld};
use trefoil_proto::lock::v1::{LockMode, ReleaseRequest};

use super::super::Violation;
use super::super::keys::CallKey;
use super::{GAP, GrantChecker, KnownSession, LASTS, LockHold, cancelled, newest, wants};

impl GrantChecker {
    pub(super) fn let_go(
        &mut self,
        namespace: &str,
        is_over: impl Fn(&str, &LockHold) -> bool,
    ) -> u32 {
        let mut count = 0;
        for ((_, name), lock) in self.locks.iter_mut().filter(|((of, _), _)| of == namespace) {
            let before = lock.holds.len();
            lock.holds.retain(|hold| !is_over(name, hold));
            count += before - lock.holds.len();
        }
        u32::try_from(count).unwrap_or(u32::MAX)
    }

    pub(super) fn release(&mut self, release: &ReleaseRequest) {
        let session = release.session_id;
        let released = self.let_go(&release.namespace, |name, hold| {
            name == release.name && hold.session == session
        });
        if released == 0 {
            self.found.push(Violation::new(GAP, format!("nothing is held for {release:?}")));
        }
    }

    pub(super) fn release_held(&mut self, held: &ReleaseHeld, told: u32, up_to_token: u64) {
        let fits = |hold: &LockHold| hold.session == held.session_id && hold.token <= up_to_token;
        let sure = self.let_go(&held.namespace, |_, hold| fits(hold) && !hold.may_be_gone);
        let released = sure + self.let_go(&held.namespace, |_, hold| fits(hold));
        if !(sure..=released).contains(&told) {
            let what = format!("{held:?} says {told}, and {released} were held");
            self.found.push(Violation::new(GAP, what));
        }
    }

    pub(super) fn force(&mut self, step: &ForceStep, below: u64) {
        self.let_go(&step.namespace, |name, hold| {
            let fits = step.fencing_token == 0 || hold.token == step.fencing_token;
            name == step.name && fits && hold.token < below
        });
        let name = (step.namespace.clone(), step.name.clone());
        let last = &mut self.locks.entry(name).or_default().last_token;
        *last = below.max(*last);
    }

    /// Whether the same call was sent again since.
    pub(super) fn is_late(&self, cancel: &CancelAcquire) -> bool {
        let call = cancel.call.as_ref().and_then(|call| call.request_id.as_ref());
        let newest = cancelled(cancel).and_then(|id| self.attempts.get(&id));
        newest.is_some_and(|newest| call.is_some_and(|of| *newest > of.attempt))
    }

    /// The caller of a request is gone: its wait ends, and each grant that is nobody else's.
    pub(super) fn cancel(&mut self, cancel: &CancelAcquire) {
        let Some(id) = cancelled(cancel) else { return };
        if self.is_late(cancel) {
            return;
        }
        let as_of = if cancel.as_of == 0 { u64::MAX } else { cancel.as_of };
        let waits = self.waits.iter().find(|(_, wait)| wait.id.as_ref() == Some(&id));
        if let Some((waiter, wait)) = waits {
            if wait.brought_at <= as_of {
                let waiter = waiter.clone();
                self.leave(&waiter);
                self.cancelled.insert(id);
            }
            return;
        }
        let is_in_use = |full: &RequestId| {
            let floor = self.floors.get(&full.client).copied().unwrap_or_default();
            full.attempt < u32::MAX && full.sequence < floor
        };
        if cancel.call.as_ref().and_then(|call| call.request_id.as_ref()).is_some_and(is_in_use) {
            return;
        }
        for (lock, _) in wants(&cancel.name, LockMode::Exclusive, &cancel.locks) {
            self.cancel_grant(cancel, &lock, &id, as_of);
        }
    }

    fn cancel_grant(&mut self, cancel: &CancelAcquire, lock: &str, id: &CallKey, as_of: u64) {
        let name = (cancel.namespace.clone(), lock.to_owned());
        let Some(lock) = self.locks.get_mut(&name) else { return };
        let own = lock.holds.iter_mut().find(|hold| hold.session == cancel.session_id);
        let Some(hold) = own else { return };
        let call = Some(id.clone());
        if hold.relying.get(&call).is_some_and(|brought_at| *brought_at <= as_of) {
            hold.relying.remove(&call);
            let owner = (cancel.namespace.clone(), cancel.session_id);
            if self.sessions.get(&owner).is_none_or(|session| session.over_at_ms.is_some()) {
                // It may be gone already, or goes without a delay now.
                (hold.delay_ms, hold.may_be_gone) = (Some(0), true);
                return;
            }
            if hold.relying.is_empty() {
                lock.holds.retain(|hold| hold.session != cancel.session_id);
            }
            self.cancelled.insert(id.clone());
        }
    }

    /// A retry was given the answer that is remembered: a grant as long as it lasts, and only so long.
    pub(super) fn told_again(
        &mut self,
        operation: &Operation,
        id: &CallKey,
        answer: Option<&Answer>,
    ) {
        let (namespace, session, locks) = match operation {
            Operation::Acquire(r) => {
                (&r.namespace, r.session_id, wants(&r.name, r.mode(), &r.locks))
            }
            Operation::Campaign(r) => {
                (&r.namespace, r.session_id, wants(&r.name, LockMode::Exclusive, &[]))
            }
            _ => return,
        };
        let is_granted = answer.and_then(newest).is_some();
        let (index, call) = (self.index, Some(id.clone()));
        let over = |session: &KnownSession| session.closed || session.over_at_ms.is_some();
        let is_over = self.sessions.get(&(namespace.clone(), session)).is_none_or(over);
        let (mut lasts, mut is_sure) = (true, true);
        for (lock, _) in locks {
            let lock = self.locks.entry((namespace.clone(), lock)).or_default();
            let own = lock.holds.iter_mut().find(|hold| hold.session == session);
            let brought = own.map(|hold| {
                is_sure &= !hold.may_be_gone;
                let brought = hold.relying.get_mut(&call);
                brought.map(|brought| *brought = if is_granted { index } else { *brought })
            });
            lasts &= brought.flatten().is_some();
        }
        if is_sure && !is_over && is_granted != lasts {
            self.found.push(Violation::new(LASTS, format!("{operation:?}: {answer:?}")));
        }
        if !is_granted && !lasts {
            // What is left of several locks went with it.
            for lock in self.locks.iter_mut().filter(|((of, _), _)| of == namespace) {
                let own = lock.1.holds.iter_mut().find(|hold| hold.session == session);
                let Some(hold) = own else { continue };
                if hold.relying.remove(&call).is_some() && hold.relying.is_empty() {
                    lock.1.holds.retain(|hold| hold.session != session);
                }
            }
        }
    }
}

/// Where the tokens of what a command does are counted.
pub(super) fn namespace_of(operation: &Operation) -> Option<&String> {
    Some(match operation {
        Operation::Acquire(r) => &r.namespace,
        Operation::Campaign(r) => &r.namespace,
        Operation::Convert(r) => &r.namespace,
        Operation::Release(r) => &r.namespace,
        Operation::ReleaseHeld(r) => &r.namespace,
        Operation::CloseSession(r) => &r.namespace,
        Operation::CancelAcquire(r) => &r.namespace,
        Operation::ForceStep(r) => &r.namespace,
        _ => return None,
    })
}
