//! How a lock of the model passes from one session to the next, and who waits for whom.

use trefoil_core::limits::{ACQUIRES_PER_CLAIM_MAX, WAITER_CLAIM_MS};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::lock::v1::LockMode;

use super::{Answer, Holder, Id, Lock, Model, Name, Wait};

impl Model {
    /// Whether nobody else's grant, and no delay, is in the way.
    pub(super) fn admits(&mut self, name: &Name, session: u64, mode: LockMode) -> bool {
        let now_ms = self.now_ms;
        let lock = self.lock(name);
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
        let of_lock = locks.flat_map(|(_, lock)| {
            // It gets the lock where it stands first, for all that it waits for, unless it converts further.
            let mut best = None;
            let waits = lock.queue.iter().enumerate().filter(move |(_, wait)| {
                let counts = wait.session == session
                    && best.is_none_or(|mode| wait.converts && wait.mode > mode);
                if counts {
                    best = Some(wait.mode);
                }
                counts
            });
            waits.flat_map(|(place, wait)| {
                let holders = lock.holders.iter();
                let holders = holders.filter(|holder| conflict(holder.mode, wait.mode));
                let before = lock.queue[..place].iter().map(|other| other.session);
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
        let queue = std::mem::take(&mut lock.queue);
        let (over, waiting) = queue
            .into_iter()
            .partition::<Vec<_>, _>(|wait| wait.session == session && wait.converts);
        lock.queue = waiting;
        self.counts.locks_released += 1;
        self.counts.lock_holds.record(now_ms - holder.since_ms);
        let answer = Answer::Refused(Reason::NotHolder, self.holder(name));
        over.into_iter().for_each(|wait| self.settle(Some(wait.seat), &wait.id, answer.clone()));
    }

    /// A lock goes to those who have waited longest, one after the other, as long as no holder is in the way. It waits a
    /// while for one whose caller is lost, then forgets it.
    pub(super) fn hand_on(&mut self, name: &Name) {
        let now_ms = self.now_ms;
        let mut gone = Vec::new();
        while let Some(wait) = self.lock(name).queue.first().cloned() {
            if !self.admits(name, wait.session, wait.mode) {
                break;
            }
            let lock = self.lock(name);
            if wait.lost_ms.is_some_and(|at| now_ms >= at + WAITER_CLAIM_MS) {
                gone.push(lock.queue.remove(0));
            } else if wait.lost_ms.is_some() {
                break;
            } else {
                self.grant_first(name, &wait);
            }
        }
        gone.iter().for_each(|wait| self.give_up(wait));
    }

    /// One grant for all waits of a session that it is strong enough for.
    pub(super) fn grant_first(&mut self, name: &Name, first: &Wait) {
        self.counts.lock_waits.record(self.now_ms - first.since_ms);
        let grant = if first.converts {
            self.regrant(name, first.session, first.mode)
        } else {
            self.grant(name, first.session, first.mode, first.lock_delay_ms)
        };
        let queue = std::mem::take(&mut self.lock(name).queue);
        let goes_on = |wait: &Wait| wait.converts && wait.mode > first.mode;
        let (ended, waiting) = queue
            .into_iter()
            .partition::<Vec<_>, _>(|wait| wait.session == first.session && !goes_on(wait));
        self.lock(name).queue = waiting;
        for wait in ended {
            if wait.lost_ms.is_some() {
                self.give_up(&wait);
            } else if wait.mode > first.mode {
                let answer = Answer::Refused(Reason::ConvertNeeded, Some(grant));
                self.settle(Some(wait.seat), &wait.id, answer);
            } else if wait.converts {
                self.settle(Some(wait.seat), &wait.id, Answer::Converted(grant));
            } else {
                let holder = self.lock(name).holder(wait.session).expect("granted above");
                (0..wait.callers).for_each(|_| holder.rely(&wait.id));
                self.settle(Some(wait.seat), &wait.id, Answer::Granted(grant));
            }
        }
    }
}

impl Lock {
    pub(super) fn holder(&mut self, session: u64) -> Option<&mut Holder> {
        self.holders.iter_mut().find(|holder| holder.session == session)
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
    pub(super) fn rely(&mut self, id: &Id) {
        if id.is_some() && self.relying.contains(id) {
            return;
        }
        if self.relying.len() < ACQUIRES_PER_CLAIM_MAX {
            self.relying.push(id.clone());
        } else {
            self.is_kept = true;
        }
    }
}

impl Wait {
    /// Whether it is the wait of a call.
    pub(super) fn is(&self, session: u64, id: &Id, converts: bool, mode: LockMode) -> bool {
        self.session == session
            && self.id == *id
            && self.converts == converts
            && (id.is_some() || self.mode == mode)
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
