//! Acquire, and how a call begins to wait.

use trefoil_proto::internal::v1::{Refusal, Wait, Waiter, Want, answer};
use trefoil_proto::lock::v1::{self as api, LockEventKind};

use super::super::context::{CommandContext, CommandOutcome, CommandResult};
use super::super::timers;
use super::call::add_acquirer;
use super::call::wanted;
use super::call::{AcquireCall, wants_of};
use super::keys::timer_rest;
use super::{
    LockTxn, claims_anything, convert_needed, granted, is_wanted, limit_reached, refuse_at,
};
use crate::key::Kind;
use crate::limits::{
    ACQUIRES_PER_CLAIM_MAX, LOCKS_PER_NAMESPACE_MAX, LOCKS_PER_SESSION_MAX, WAITERS_PER_LOCK_MAX,
    WAITS_PER_NAMESPACE_MAX,
};

pub(in super::super) fn acquire(
    context: &mut CommandContext<'_>,
    request: &api::AcquireRequest,
) -> CommandResult {
    let name = context.call_name()?;
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    let several = !request.locks.is_empty();
    let call = AcquireCall {
        session_id: request.session_id,
        wants: wants_of(&request.name, request.mode, &request.locks)?,
        several,
        wait_ms: request.wait_ms,
        name,
        converts: false,
        lock_delay_ms: request.lock_delay_ms,
    };
    locks.renew(call.session_id)?;
    for want in &call.wants {
        locks.must_be_lock(&want.name)?;
    }
    call.wants.iter().for_each(|want| locks.reclaim_expired(&want.name));
    let outcome = if several { locks.acquire_all(call)? } else { locks.acquire_one(call)? };
    // A holder found dead on the way may have waited for several locks.
    locks.grant_left_waiters();
    Ok(outcome)
}

impl LockTxn<'_, '_> {
    fn acquire_one(&mut self, call: AcquireCall) -> CommandResult {
        let (name, mode) = (&call.wants[0].name, call.wants[0].mode());
        let index = self.context.index;
        if let Some(hold) = self.claim(call.session_id, name).hold {
            if hold.mode() < mode {
                return Err(convert_needed(&hold));
            }
            self.change_claim(call.session_id, name, |claim| {
                claim.hold.as_mut().map(|hold| add_acquirer(hold, &call.name, index))
            });
            return Ok(CommandOutcome::Answer(granted(&hold)));
        }
        if self.all_open(&call) {
            self.may_claim(&call)?;
            let hold = self.grant(name, call.session_id, mode, |hold| {
                hold.lock_delay_ms = call.lock_delay_ms;
                add_acquirer(hold, &call.name, index);
            });
            return Ok(CommandOutcome::Answer(granted(&hold)));
        }
        self.wait_for(call)
    }

    fn acquire_all(&mut self, mut call: AcquireCall) -> CommandResult {
        self.find_held(&mut call)?;
        if self.all_open(&call) {
            self.may_claim(&call)?;
            return Ok(CommandOutcome::Answer(self.grant_all(&call.into_wait(self.context))));
        }
        self.wait_for(call)
    }

    /// Waits for what is held, unless the caller does not want to.
    pub(super) fn wait_for(&mut self, call: AcquireCall) -> CommandResult {
        let names = call.wants.iter().map(|want| want.name.clone()).collect::<Vec<_>>();
        let outcome = self.enqueue(call)?;
        // A lock that waited for this caller goes to it now.
        names.iter().for_each(|name| self.grant_waiters(name));
        Ok(outcome)
    }

    fn enqueue(&mut self, call: AcquireCall) -> CommandResult {
        let ordinals = self.claim(call.session_id, &call.wants[0].name).ordinals;
        if let Some((ordinal, wait)) = self.wait_of(&ordinals, &call) {
            if !self.has_passed(&wait) {
                self.attach(ordinal, wait);
                return Ok(CommandOutcome::Wait(self.waiter_id(call.session_id, ordinal)));
            }
            self.time_out(ordinal, &wait);
            let answer = self.not_got(&wait);
            self.settle(ordinal, &wait, answer.clone());
            return Ok(CommandOutcome::Answer(answer));
        }
        let permits = call.wants[0].permits;
        if call.wait_ms == 0 {
            self.count_blocked(permits);
            let wait = call.into_wait(self.context);
            return Ok(CommandOutcome::Answer(self.not_got(&wait)));
        }
        self.may_wait(&call)?;
        let session_id = call.session_id;
        let ordinal = self.join(call);
        if permits == 0
            && let Some(refusal) = self.refuse_deadlock(ordinal, session_id)
        {
            // An answer like any other: what is kept of the deadlock must not be dropped with the command.
            return Ok(CommandOutcome::Answer(answer::Answer::Refusal(refusal)));
        }
        self.count_blocked(permits);
        Ok(CommandOutcome::Wait(self.waiter_id(session_id, ordinal)))
    }

    /// Refuses a wait beyond what a lock, a session or a namespace may have.
    fn may_wait(&self, call: &AcquireCall) -> Result<(), Refusal> {
        self.may_claim(call)?;
        for want in &call.wants {
            if self.lock(&want.name).waiters >= WAITERS_PER_LOCK_MAX {
                return Err(limit_reached("WAITERS_PER_LOCK_MAX", WAITERS_PER_LOCK_MAX));
            }
            let waits = self.claim(call.session_id, &want.name).ordinals.len();
            if waits >= ACQUIRES_PER_CLAIM_MAX {
                return Err(limit_reached("ACQUIRES_PER_CLAIM_MAX", ACQUIRES_PER_CLAIM_MAX));
            }
        }
        let counters = self.counters();
        let waits_max = counters.settings.map_or(0, |settings| settings.waits_max);
        let fixed = ("WAITS_PER_NAMESPACE_MAX", WAITS_PER_NAMESPACE_MAX);
        refuse_at(counters.waits, ("waits_max", waits_max), fixed)?;
        self.may_wait_beside(call)
    }

    /// Where the same call waits already.
    pub(super) fn wait_of(&self, ordinals: &[u64], call: &AcquireCall) -> Option<(u64, Wait)> {
        self.waits(call.session_id, ordinals).find(|(_, wait)| is_of(wait, call))
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

    /// A call that waits was sent again.
    fn attach(&mut self, ordinal: u64, mut wait: Wait) {
        (wait.claimed_term, wait.claimed_index) = (self.context.term, self.context.index);
        wait.lost_at_ms = 0;
        self.context.txn.put_message(self.keys.wait(wait.session_id, ordinal), &wait);
    }

    /// Puts a call at the end of the waiters of its locks: of those who convert, or of all.
    fn join(&mut self, call: AcquireCall) -> u64 {
        let mut counters = self.counters();
        counters.last_ordinal += 1;
        counters.waits += 1;
        self.put_counters(&counters);
        self.context.output.locks.locks_waiting += 1;
        let ordinal = counters.last_ordinal;
        let wait = call.into_wait(self.context);
        let session_id = wait.session_id;
        let key = self.keys.wait(session_id, ordinal);
        timers::set(self.context, wait.deadline_ms, Kind::Wait, timer_rest(&key));
        self.context.txn.put_message(key, &wait);
        for want in &wait.wants {
            self.change_claim(session_id, &want.name, |claim| claim.ordinals.push(ordinal));
        }
        for want in wanted(&wait.wants) {
            let keys = self.keys.waiter(&want.name, ordinal, wait.converts);
            self.context.txn.put_message(keys, &Waiter { session_id });
            self.change_lock(&want.name, |lock| lock.waiters += 1);
        }
        self.tell_wait(LockEventKind::Waiting, &wait);
        ordinal
    }

    /// Refuses more locks than a session may have to do with, and more than a namespace may have.
    pub(super) fn may_claim(&self, call: &AcquireCall) -> Result<(), Refusal> {
        let is_new = |want: &&Want| !claims_anything(&self.claim(call.session_id, &want.name));
        let claims = call.wants.iter().filter(is_new).count() as u64;
        let is_free = |want: &&Want| !is_wanted(&self.lock(&want.name));
        let locks = call.wants.iter().filter(is_free).count() as u64;
        let before = self.session(call.session_id).map_or(0, |session| session.claims);
        if claims > 0 && before + claims > LOCKS_PER_SESSION_MAX {
            return Err(limit_reached("LOCKS_PER_SESSION_MAX", LOCKS_PER_SESSION_MAX));
        }
        self.may_add_locks(locks)
    }

    /// Refuses more locks than a namespace may have.
    pub(super) fn may_add_locks(&self, locks: u64) -> Result<(), Refusal> {
        if locks == 0 {
            return Ok(());
        }
        let counters = self.counters();
        let locks_max = counters.settings.map_or(0, |settings| settings.locks_max);
        let fixed = ("LOCKS_PER_NAMESPACE_MAX", LOCKS_PER_NAMESPACE_MAX);
        // What there would be but for the last of them.
        refuse_at(counters.locks + locks - 1, ("locks_max", locks_max), fixed)
    }

    fn count_blocked(&mut self, permits: u64) {
        self.context.output.counts.locks_blocked(1);
        self.context.output.counts.permits_blocked(u64::from(permits > 0));
    }
}

impl AcquireCall {
    /// The wait that it is from now on.
    fn into_wait(self, context: &CommandContext<'_>) -> Wait {
        Wait {
            session_id: self.session_id,
            call: Some(self.name),
            deadline_ms: context.now_ms.saturating_add(self.wait_ms),
            claimed_term: context.term,
            claimed_index: context.index,
            lost_at_ms: 0,
            since_ms: context.now_ms,
            wants: self.wants,
            converts: self.converts,
            lock_delay_ms: self.lock_delay_ms,
            several: self.several,
            campaigns: false,
        }
    }
}

/// Whether a wait is that of a call.
fn is_of(wait: &Wait, call: &AcquireCall) -> bool {
    let is_named = wait.call.as_ref() == Some(&call.name);
    // The mutant: whatever wants the same is the same call.
    let same = |(one, other): (&Want, &Want)| one.name == other.name && one.mode == other.mode;
    let is_alike = crate::mutant!(AnyAnonymousCall)
        && call.name.request_id.is_none()
        && wait.call.as_ref().is_some_and(|name| name.request_id.is_none())
        && wait.converts == call.converts
        && wait.wants.iter().zip(&call.wants).all(same);
    is_named || is_alike
}
