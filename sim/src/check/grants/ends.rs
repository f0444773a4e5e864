//! What ends a grant: a release, an operator, or a caller who is gone.

use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{CancelAcquire, ForceStep, ReleaseHeld};
use trefoil_proto::lock::v1::ReleaseRequest;

use super::super::Violation;
use super::{GAP, Grants, Hold, Id, id_of, wants};

impl Grants {
    pub(super) fn let_go(&mut self, namespace: &str, is_over: impl Fn(&str, &Hold) -> bool) -> u32 {
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
        let fits = |hold: &Hold| hold.session == held.session_id && hold.token <= up_to_token;
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
        let newest = id_of(cancel.waiter.as_ref()).and_then(|id| self.attempts.get(&id));
        newest.is_some_and(|newest| cancel.waiter.as_ref().is_some_and(|of| *newest > of.attempt))
    }

    /// The caller of a request is gone: its wait ends, and each grant that is nobody else's.
    pub(super) fn cancel(&mut self, cancel: &CancelAcquire) {
        let (Some(full), Some(id)) = (&cancel.waiter, id_of(cancel.waiter.as_ref())) else {
            return;
        };
        if self.is_late(cancel) {
            return;
        }
        let waits = self.waits.iter().find(|(_, wait)| wait.id.as_ref() == Some(&id));
        if let Some((waiter, _)) = waits {
            let waiter = waiter.clone();
            self.leave(&waiter);
            self.cancelled.insert(id);
            return;
        }
        let floor = self.floors.get(&full.client).copied().unwrap_or_default();
        if cancel.converts || full.attempt < u32::MAX && full.sequence < floor {
            return;
        }
        for (lock, _) in wants(&cancel.name, cancel.mode(), &cancel.locks) {
            self.cancel_grant(cancel, &lock, &id);
        }
    }

    fn cancel_grant(&mut self, cancel: &CancelAcquire, lock: &str, id: &Id) {
        let name = (cancel.namespace.clone(), lock.to_owned());
        let Some(lock) = self.locks.get_mut(&name) else { return };
        let own = lock.holds.iter_mut().find(|hold| hold.session == cancel.session_id);
        let Some(hold) = own else { return };
        if hold.relying.remove(&Some(id.clone())) {
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
