//! How a lock of the model passes from one session to the next, and who waits for whom.

use trefoil_core::limits::{ACQUIRES_PER_CLAIM_MAX, WAITER_CLAIM_MS};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::lock::v1::LockMode;

use super::{Answer, Grant, Holder, Id, Lock, Model, Name, Seat, Wait, Want, granted};

impl Model {
    /// Whether nobody else's grant, and no delay, is in the way.
    pub(super) fn admits(&self, name: &Name, session: u64, mode: LockMode) -> bool {
        let now_ms = self.now_ms;
        let Some(lock) = self.locks.get(name) else { return true };
        let mut delays = lock.delays.iter();
        delays.all(|(held, until_ms)| now_ms >= *until_ms || !conflict(*held, mode))
            && lock.admits(session, mode)
    }

    /// Whether a session waits for itself, by way of others.
    pub(super) fn is_in_circle(&self, namespace: &str, session: u64) -> bool {
        let (mut seen, mut next) = (Vec::new(), vec![session]);
        while let Some(from) = next.pop() {
            for to in self.waited_for(namespace, from) {
                if to == session {
                    return true;
                }
                if !seen.contains(&to) {
                    seen.push(to);
                    next.push(to);
                }
            }
        }
        false
    }

    /// Other sessions that hold a lock in the way, or stand before a session.
    pub(super) fn waited_for(&self, namespace: &str, session: u64) -> Vec<u64> {
        let locks = self.locks.iter().filter(|(name, _)| name.0 == namespace);
        let of_lock = locks.flat_map(|(name, lock)| {
            // It gets the lock where it stands first, for all that it waits for, unless it converts further.
            let mut best = None;
            let queue = lock.queue.iter().map(|seat| &self.waits[seat]);
            let queue = queue.map(|wait| (wait, wait.want(name).expect("it stands here").mode));
            let waits = queue.enumerate().filter(move |(_, (wait, wanted))| {
                let counts = wait.session == session
                    && best.is_none_or(|mode| wait.converts && *wanted > mode);
                if counts {
                    best = Some(*wanted);
                }
                counts
            });
            waits.flat_map(|(place, (_, mode))| {
                let holders = lock.holders.iter();
                let holders = holders.filter(move |holder| conflict(holder.mode, mode));
                let before = lock.queue[..place].iter().map(|seat| self.waits[seat].session);
                holders.map(|holder| holder.session).chain(before)
            })
        });
        of_lock.filter(|to| *to != session).collect()
    }

    pub(super) fn vacate(&mut self, name: &Name, session: u64) {
        let now_ms = self.now_ms;
        let lock = self.lock(name);
        let place = lock.holders.iter().position(|holder| holder.session == session);
        let holder = lock.holders.remove(place.expect("a holder lets go"));
        self.counts.locks_released += 1;
        self.counts.lock_holds.record(now_ms - holder.since_ms);
        let answer = Answer::Refused(Reason::NotHolder, self.holder(name));
        let converts =
            |wait: &&Wait| wait.session == session && wait.converts && wait.want(name).is_some();
        for wait in self.waits.values().filter(converts).cloned().collect::<Vec<_>>() {
            self.leave(&wait);
            self.settle(Some(wait.seat), &wait.id, answer.clone());
        }
        self.end_several(name, session, LockMode::Unspecified, &answer);
    }

    /// Ends the waits for several locks of a session that count on this one.
    pub(super) fn end_several(&mut self, name: &Name, session: u64, held: LockMode, why: &Answer) {
        let counts = |wait: &&Wait| {
            let want = wait.want(name).filter(|want| want.held && want.mode > held);
            wait.session == session && want.is_some()
        };
        for wait in self.waits.values().filter(counts).cloned().collect::<Vec<_>>() {
            self.leave(&wait);
            self.settle(Some(wait.seat), &wait.id, why.clone());
        }
    }

    /// Takes a wait out of the queues that it stands in.
    pub(super) fn leave(&mut self, wait: &Wait) {
        self.waits.remove(&wait.seat);
        for want in &wait.wants {
            self.lock(&want.name).queue.retain(|seat| *seat != wait.seat);
        }
    }

    /// Each lock goes to those who have waited longest, one after the other, as long as no holder is in the way. Who wants
    /// several stands first for all of them before it gets any. A lock waits a while for one whose caller is lost, then
    /// forgets it.
    pub(super) fn grant_waiters(&mut self) {
        let mut gone = Vec::new();
        while let Some(wait) = self.next_turn() {
            if wait.lost_ms.is_some() {
                self.leave(&wait);
                gone.push(wait);
            } else if wait.several {
                self.leave(&wait);
                self.counts.lock_waits.record(self.now_ms - wait.since_ms);
                let call = (&wait.id, wait.claimed_index);
                let grants = self.grant_all(wait.session, &wait.wants, wait.lock_delay_ms, call);
                self.settle(Some(wait.seat), &wait.id, granted(grants, true));
            } else {
                self.grant_first(&wait);
            }
        }
        gone.iter().for_each(|wait| self.give_up(wait));
    }

    /// A wait that stands first wherever it stands, with nobody in the way; whose caller is there, or lost for too long.
    fn next_turn(&self) -> Option<Wait> {
        let stands_first = |wait: &&Wait| {
            wait.wants.iter().filter(|want| !want.held).all(|want| {
                self.locks[&want.name].queue.first() == Some(&wait.seat)
                    && self.admits(&want.name, wait.session, want.mode)
            })
        };
        let is_over =
            |wait: &&Wait| wait.lost_ms.is_none_or(|at| self.now_ms >= at + WAITER_CLAIM_MS);
        self.waits.values().filter(stands_first).find(is_over).cloned()
    }

    /// Grants what a session does not hold yet; the call relies on all of it.
    pub(super) fn grant_all(
        &mut self,
        session: u64,
        wants: &[Want],
        lock_delay_ms: Option<u64>,
        (id, index): (&Id, u64),
    ) -> Vec<(String, Grant)> {
        let mut grants = Vec::new();
        for want in wants {
            if !want.held {
                self.grant(&want.name, session, want.mode, lock_delay_ms);
            }
            let holder = self.lock(&want.name).holder(session).expect("it is held now");
            holder.add_acquirer(id, index);
            grants.push((want.name.1.clone(), holder.grant));
        }
        grants
    }

    /// One grant for all waits of a session that it is strong enough for.
    pub(super) fn grant_first(&mut self, first: &Wait) {
        let Want { name, mode, .. } = &first.wants[0];
        let mode = *mode;
        self.counts.lock_waits.record(self.now_ms - first.since_ms);
        let grant = if first.converts {
            self.regrant(name, first.session, mode)
        } else {
            self.grant(name, first.session, mode, first.lock_delay_ms)
        };
        let queue = self.lock(name).queue.clone();
        let waits = queue.iter().map(|seat: &Seat| self.waits[seat].clone());
        let waits = waits.filter(|wait| wait.session == first.session).collect::<Vec<_>>();
        for wait in waits {
            let is_stronger = wait.wants[0].mode > mode;
            if wait.converts && is_stronger {
                continue;
            }
            self.leave(&wait);
            if wait.lost_ms.is_some() {
                self.give_up(&wait);
            } else if is_stronger {
                let answer = Answer::Refused(Reason::ConvertNeeded, Some(grant));
                self.settle(Some(wait.seat), &wait.id, answer);
            } else if wait.converts {
                self.settle(Some(wait.seat), &wait.id, Answer::Converted(grant));
            } else {
                let holder = self.lock(name).holder(wait.session).expect("granted above");
                holder.add_acquirer(&wait.id, wait.claimed_index);
                self.settle(Some(wait.seat), &wait.id, Answer::Granted(grant));
            }
        }
    }
}

impl Lock {
    pub(super) fn holder(&mut self, session: u64) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| holder.session == session)
    }

    pub(super) fn held_by(&self, session: u64) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.session == session)
    }

    pub(super) fn has(&self, session: u64) -> bool {
        self.holders.iter().any(|holder| holder.session == session)
    }

    /// Whether no other holder is in the way.
    pub(super) fn admits(&self, session: u64, mode: LockMode) -> bool {
        let mut others = self.holders.iter().filter(|holder| holder.session != session);
        others.all(|holder| !conflict(holder.mode, mode))
    }
}

impl Holder {
    pub(super) fn add_acquirer(&mut self, id: &Id, index: u64) {
        if let Some(known) = self.relying.iter_mut().find(|(other, _)| other == id) {
            known.1 = index;
        } else if self.relying.len() < ACQUIRES_PER_CLAIM_MAX {
            self.relying.push((id.clone(), index));
        } else {
            self.is_kept = true;
        }
    }
}

impl Wait {
    /// Whether it is the wait of a call.
    pub(super) fn is(&self, session: u64, id: &Id, wants: &[Want]) -> bool {
        let first = (self.namespace(), self.session);
        first == (wants[0].name.0.as_str(), session)
            && self.want(&wants[0].name).is_some()
            && self.id == *id
    }

    pub(super) fn want(&self, name: &Name) -> Option<&Want> {
        self.wants.iter().find(|want| want.name == *name)
    }

    pub(super) fn namespace(&self) -> &str {
        &self.wants[0].name.0
    }
}

fn conflict(held: LockMode, wanted: LockMode) -> bool {
    use LockMode::{Exclusive, Shared, Update};
    match wanted {
        Shared => held == Exclusive,
        Update => held != Shared,
        _ => true,
    }
}
