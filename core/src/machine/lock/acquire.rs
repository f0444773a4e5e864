//! Acquire, and how a call begins to wait.

use trefoil_proto::common::v1::RequestId;
use trefoil_proto::internal::v1::{Refusal, Wait, Waiter, Want, answer};
use trefoil_proto::lock::v1::{self as api, LockEventKind, LockMode};

use super::super::{Ruling, Scope, Verdict, timers};
use super::handoff::rely;
use super::place::timer_rest;
use super::{
    Space, check_name, claims_anything, convert_needed, granted, is_wanted, limit_reached, mode_of,
    refuse_at, stripped,
};
use crate::key::Kind;
use crate::limits::{
    ACQUIRES_PER_CLAIM_MAX, LOCKS_PER_NAMESPACE_MAX, LOCKS_PER_SESSION_MAX, WAITERS_PER_LOCK_MAX,
    WAITS_PER_NAMESPACE_MAX,
};

/// What a call wants, and for how long.
pub(super) struct Call<'r> {
    pub(super) session_id: u64,
    pub(super) name: &'r str,
    pub(super) mode: LockMode,
    pub(super) wait_ms: u64,
    /// Client and sequence alone.
    pub(super) id: Option<RequestId>,
    pub(super) converts: bool,
    /// The lock delay of the grant, where the call says one.
    pub(super) lock_delay_ms: Option<u64>,
    /// How many permits of a semaphore; 0 of a lock.
    pub(super) permits: u64,
}

pub(in super::super) fn acquire(
    scope: &mut Scope<'_>,
    request: &api::AcquireRequest,
    id: Option<&RequestId>,
) -> Ruling {
    let mut space = Space::checked(scope, &request.namespace)?;
    check_name("name", &request.name)?;
    let call = Call {
        session_id: request.session_id,
        name: &request.name,
        mode: mode_of(request.mode, Some(LockMode::Exclusive))?,
        wait_ms: request.wait_ms,
        id: stripped(id),
        converts: false,
        lock_delay_ms: request.lock_delay_ms,
        permits: 0,
    };
    space.renew(call.session_id)?;
    space.must_be_lock(call.name)?;
    space.tidy(call.name);
    if let Some(hold) = space.claim(call.session_id, call.name).hold {
        if hold.mode() < call.mode {
            return Err(convert_needed(&hold));
        }
        space.change_claim(call.session_id, call.name, |claim| {
            claim.hold.as_mut().map(|hold| rely(hold, call.id.as_ref()))
        });
        return Ok(Verdict::Answer(granted(&hold)));
    }
    let lock = space.lock(call.name);
    let is_free = !is_wanted(&lock);
    let is_next =
        lock.waiters == 0 || crate::mutant!(ReaderOvertakes) && call.mode == LockMode::Shared;
    if is_free || is_next && space.admits(call.name, call.mode, call.session_id) {
        space.may_claim(&call)?;
        let hold = space.grant(call.name, call.session_id, call.mode, |hold| {
            hold.lock_delay_ms = call.lock_delay_ms;
            rely(hold, call.id.as_ref());
        });
        return Ok(Verdict::Answer(granted(&hold)));
    }
    let verdict = space.enqueue(call)?;
    // A lock that waited for this caller goes to it now.
    space.hand_on(&request.name);
    Ok(verdict)
}

impl Space<'_, '_> {
    /// Waits for a lock that is held, unless the caller does not want to.
    pub(super) fn enqueue(&mut self, call: Call<'_>) -> Ruling {
        let ordinals = self.claim(call.session_id, call.name).ordinals;
        if let Some((ordinal, wait)) = self.wait_of(&ordinals, &call) {
            if !self.has_passed(&wait) && (call.id.is_some() || call.wait_ms > 0) {
                self.attach(ordinal, wait);
                return Ok(Verdict::Wait(self.waiter_id(call.session_id, ordinal)));
            }
            if self.has_passed(&wait) {
                self.time_out(ordinal, &wait);
                let answer = self.held(call.name, call.converts);
                self.settle(ordinal, &wait, answer.clone());
                if call.id.is_some() {
                    return Ok(Verdict::Answer(answer));
                }
            }
        }
        if call.wait_ms == 0 {
            self.count_blocked(call.permits);
            return Ok(Verdict::Answer(self.held(call.name, call.converts)));
        }
        self.may_claim(&call)?;
        if self.lock(call.name).waiters >= WAITERS_PER_LOCK_MAX {
            return Err(limit_reached("WAITERS_PER_LOCK_MAX", WAITERS_PER_LOCK_MAX));
        }
        let counters = self.counters();
        let waits_max = counters.settings.map_or(0, |settings| settings.waits_max);
        let fixed = ("WAITS_PER_NAMESPACE_MAX", WAITS_PER_NAMESPACE_MAX);
        refuse_at(counters.waits, ("waits_max", waits_max), fixed)?;
        if self.claim(call.session_id, call.name).ordinals.len() >= ACQUIRES_PER_CLAIM_MAX {
            return Err(limit_reached("ACQUIRES_PER_CLAIM_MAX", ACQUIRES_PER_CLAIM_MAX));
        }
        let (session_id, permits) = (call.session_id, call.permits);
        let ordinal = self.join(call);
        if permits == 0
            && let Some(refusal) = self.refuse_deadlock(ordinal, session_id)
        {
            // An answer like any other: what is kept of the deadlock must not be dropped with the command.
            return Ok(Verdict::Answer(answer::Answer::Refusal(refusal)));
        }
        self.count_blocked(permits);
        Ok(Verdict::Wait(self.waiter_id(session_id, ordinal)))
    }

    /// Where the same call waits already. A call without request id is the same as any other that wants the same.
    pub(super) fn wait_of(&self, ordinals: &[u64], call: &Call<'_>) -> Option<(u64, Wait)> {
        let same = |wait: &Wait| {
            let wants_same = wait
                .wants
                .iter()
                .any(|want| want.mode() == call.mode && want.permits == call.permits);
            wait.request_id == call.id
                && wait.converts == call.converts
                && (call.id.is_some() || wants_same)
        };
        self.waits(call.session_id, ordinals).find(|(_, wait)| same(wait))
    }

    /// The waits of these ordinals.
    pub(super) fn waits(
        &self,
        session_id: u64,
        ordinals: &[u64],
    ) -> impl Iterator<Item = (u64, Wait)> {
        ordinals.iter().map(move |ordinal| {
            (
                *ordinal,
                self.wait(session_id, *ordinal).expect("a claim lists the waits that there are"),
            )
        })
    }

    /// One more call waits where another does already. A retry that has a request id is the same call again.
    fn attach(&mut self, ordinal: u64, mut wait: Wait) {
        if wait.request_id.is_none() {
            wait.callers = wait.callers.saturating_add(1);
        }
        (wait.claimed_term, wait.claimed_index) = (self.scope.term, self.scope.index);
        wait.lost_at_ms = 0;
        self.scope.txn.put_message(self.place.wait(wait.session_id, ordinal), &wait);
    }

    /// Puts a call at the end of a lock's waiters: of those who convert, or of all.
    fn join(&mut self, call: Call<'_>) -> u64 {
        let mut counters = self.counters();
        counters.last_ordinal += 1;
        counters.waits += 1;
        self.put_counters(&counters);
        self.scope.output.locks.locks_waiting += 1;
        let ordinal = counters.last_ordinal;
        let now_ms = self.scope.now_ms;
        let wait = Wait {
            session_id: call.session_id,
            request_id: call.id,
            deadline_ms: now_ms.saturating_add(call.wait_ms),
            callers: 1,
            claimed_term: self.scope.term,
            claimed_index: self.scope.index,
            lost_at_ms: 0,
            since_ms: now_ms,
            wants: vec![Want {
                name: call.name.to_owned(),
                mode: call.mode.into(),
                permits: call.permits,
            }],
            converts: call.converts,
            lock_delay_ms: call.lock_delay_ms,
            campaigns: false,
        };
        let key = self.place.wait(call.session_id, ordinal);
        timers::set(self.scope, wait.deadline_ms, Kind::Wait, timer_rest(&key));
        self.scope.txn.put_message(key, &wait);
        let waiter = Waiter { session_id: call.session_id };
        self.scope.txn.put_message(self.place.waiter(call.name, ordinal, call.converts), &waiter);
        self.change_lock(call.name, |lock| lock.waiters += 1);
        self.change_claim(call.session_id, call.name, |claim| claim.ordinals.push(ordinal));
        self.tell_wait(LockEventKind::Waiting, &wait);
        ordinal
    }

    /// Refuses a session that has as many locks as it may, unless it has to do with this one already; and one lock
    /// more than a namespace may have.
    pub(super) fn may_claim(&self, call: &Call<'_>) -> Result<(), Refusal> {
        let claims = self.session(call.session_id).map_or(0, |session| session.claims);
        if claims >= LOCKS_PER_SESSION_MAX
            && !claims_anything(&self.claim(call.session_id, call.name))
        {
            return Err(limit_reached("LOCKS_PER_SESSION_MAX", LOCKS_PER_SESSION_MAX));
        }
        self.may_add_lock(call.name)
    }

    /// Refuses one lock more than a namespace may have.
    pub(super) fn may_add_lock(&self, name: &str) -> Result<(), Refusal> {
        let counters = self.counters();
        let locks_max = counters.settings.map_or(0, |settings| settings.locks_max);
        let fixed = ("LOCKS_PER_NAMESPACE_MAX", LOCKS_PER_NAMESPACE_MAX);
        match refuse_at(counters.locks, ("locks_max", locks_max), fixed) {
            Err(refusal) if !is_wanted(&self.lock(name)) => Err(refusal),
            _ => Ok(()),
        }
    }

    fn count_blocked(&mut self, permits: u64) {
        self.scope.output.counts.locks_blocked += 1;
        self.scope.output.counts.permits_blocked += u64::from(permits > 0);
    }
}
