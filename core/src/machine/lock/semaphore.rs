//! Counting semaphores: names of which many sessions hold some permits each. A semaphore is a lock whose record says how many
//! permits it has; its holders hold it in mode SHARED, and its waiters wait in the order of the lock's.
//!
//! The permits of a session that is over count until it is swept away, or until somebody whom they keep out finds it to be the
//! oldest holder: who is dead never blocks for longer than the sweep takes, and nothing here looks at all holders at once.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Hold, Lock, Refusal, Want, answer};
use trefoil_proto::lock::v1::{self as api, LockEventKind, LockMode};

use super::super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome, refuse, refuse_with,
};
use super::call::AcquireCall;
use super::call::add_acquirer;
use super::call::permits_held;
use super::view::{View, end};
use super::{LockTxn, check_name, granted, is_in_use, names_grant};
use crate::check;
use crate::limits::{PAGE_ITEMS_MAX, SEMAPHORE_PERMITS_MAX};
use crate::store::Store;

/// Makes a name a semaphore, or changes how many permits one has.
pub(in super::super) fn set_permits(
    context: &mut CommandContext<'_>,
    request: &api::SetPermitsRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    check::number("permits", request.permits, 1, SEMAPHORE_PERMITS_MAX)?;
    let (name, permits) = (&request.name, request.permits);
    locks.reclaim_expired(name);
    let before = locks.lock(name);
    if before.permits == 0 {
        if super::is_wanted(&before) {
            let message = "the name is that of a lock that is held, waited for or delayed";
            return Err(refuse(Reason::OtherKind, message));
        }
        locks.may_add_locks(1)?;
        locks.context.txn.put(locks.keys.semaphore(name), Vec::new());
        locks.context.output.locks.semaphores += 1;
    }
    locks.resize(name, permits);
    // More of them go to those who wait; and who waits for more than there are hears of it once its turn has come.
    locks.grant_waiters(name);
    Ok(CommandOutcome::Answer(answer::Answer::SetPermits(api::SetPermitsResponse {
        header: None,
        permits_before: before.permits,
        in_use: locks.lock(name).permits_in_use,
    })))
}

/// A semaphore that anybody uses stays.
pub(in super::super) fn delete_semaphore(
    context: &mut CommandContext<'_>,
    request: &api::DeleteSemaphoreRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    let name = &request.name;
    locks.reclaim_expired(name);
    locks.grant_left_waiters();
    let lock = locks.semaphore(name)?;
    if is_in_use(&lock) {
        let facts = [("holders", lock.shared.to_string()), ("waiters", lock.waiters.to_string())];
        return Err(refuse_with(Reason::SemaphoreInUse, "the semaphore is in use", facts));
    }
    locks.context.txn.delete(locks.keys.semaphore(name));
    locks.resize(name, 0);
    locks.context.output.locks.semaphores -= 1;
    let (header, answer) = (None, answer::Answer::DeleteSemaphore);
    Ok(CommandOutcome::Answer(answer(api::DeleteSemaphoreResponse { header })))
}

pub(in super::super) fn acquire_permits(
    context: &mut CommandContext<'_>,
    request: &api::AcquirePermitsRequest,
) -> CommandResult {
    let call = context.call_name()?;
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    let (name, permits) = (request.name.clone(), request.permits.max(1));
    let call = AcquireCall {
        session_id: request.session_id,
        wants: vec![Want { name, mode: LockMode::Shared.into(), permits, ..Want::default() }],
        several: false,
        wait_ms: request.wait_ms,
        name: call,
        converts: false,
        lock_delay_ms: None,
    };
    locks.renew(call.session_id)?;
    locks.semaphore(&request.name)?;
    locks.reclaim_expired(&request.name);
    let outcome = locks.take_permits(&request.name, permits, call)?;
    // A holder found dead on the way may have waited for several locks.
    locks.grant_left_waiters();
    Ok(outcome)
}

pub(in super::super) fn release_permits(
    context: &mut CommandContext<'_>,
    request: &api::ReleasePermitsRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    locks.renew(request.session_id)?;
    let hold = locks.claim(request.session_id, &request.name).hold;
    let Some(hold) = hold.filter(|hold| hold.permits > 0) else {
        let message = "the session holds no permits of the semaphore";
        return Err(refuse_with(Reason::NotHolder, message, [("field", "session_id".to_owned())]));
    };
    if !names_grant(&hold, request.fencing_token) {
        let facts =
            [("field", "fencing_token".to_owned()), ("holder_token", hold.token.to_string())];
        let message = "the session holds its permits with another fencing_token";
        return Err(refuse_with(Reason::NotHolder, message, facts));
    }
    locks.vacate(&request.name, request.session_id, LockEventKind::Released);
    locks.grant_waiters(&request.name);
    let (header, answer) = (None, answer::Answer::ReleasePermits);
    Ok(CommandOutcome::Answer(answer(api::ReleasePermitsResponse { header })))
}

pub(in super::super) fn describe_semaphore(
    context: &QueryContext<'_, impl Store>,
    request: &api::DescribeSemaphoreRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        check_name("name", &request.name)?;
        let lock = view.lock(&request.name);
        must_be_semaphore(&lock)?;
        Ok(answer::Answer::DescribeSemaphore(api::DescribeSemaphoreResponse {
            header: None,
            holders: view.holders(&request.name, &lock, PAGE_ITEMS_MAX as usize),
            waiters: view.waiters(&request.name),
            semaphore: Some(info(request.name.clone(), &lock)),
        }))
    }))
}

pub(in super::super) fn list_semaphores(
    context: &QueryContext<'_, impl Store>,
    request: &api::ListSemaphoresRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    let api::ListSemaphoresRequest { prefix, page_size, page_token, .. } = request;
    let keys = view.keys;
    end(view.page(*page_size, prefix, page_token, |name| keys.semaphore(name)).map(
        |(found, next_page_token)| {
            let semaphores = found.into_iter().map(|(name, _)| {
                let lock = view.lock(&name);
                info(name, &lock)
            });
            let (header, semaphores) = (None, semaphores.collect());
            answer::Answer::ListSemaphores(api::ListSemaphoresResponse {
                header,
                semaphores,
                next_page_token,
            })
        },
    ))
}

impl LockTxn<'_, '_> {
    fn semaphore(&self, name: &str) -> Result<Lock, Refusal> {
        let lock = self.lock(name);
        must_be_semaphore(&lock)?;
        Ok(lock)
    }

    fn take_permits(&mut self, name: &str, permits: u64, call: AcquireCall) -> CommandResult {
        let claim = self.claim(call.session_id, name);
        let index = self.context.index;
        if let Some(hold) = claim.hold {
            if hold.permits != permits {
                return Err(permits_held(&hold));
            }
            self.change_claim(call.session_id, name, |claim| {
                claim.hold.as_mut().map(|hold| add_acquirer(hold, &call.name, index))
            });
            return Ok(CommandOutcome::Answer(granted(&hold)));
        }
        if self.wait_of(&claim.ordinals, &call).is_none() {
            // A call that waits already is told when its turn comes: until then there may be enough again.
            may_ever_have(&self.lock(name), permits)?;
        }
        let overtakes = crate::mutant!(PermitsOvertake);
        if (self.lock(name).waiters == 0 || overtakes) && self.leaves_room(name, permits) {
            self.may_claim(&call)?;
            let hold = self.grant(name, call.session_id, LockMode::Shared, |hold| {
                hold.permits = permits;
                add_acquirer(hold, &call.name, index);
            });
            return Ok(CommandOutcome::Answer(granted(&hold)));
        }
        self.wait_for(call)
    }

    /// Refuses the name of a semaphore where a lock is wanted.
    pub(super) fn must_be_lock(&self, name: &str) -> Result<(), Refusal> {
        if self.lock(name).permits == 0 {
            return Ok(());
        }
        Err(refuse(Reason::OtherKind, "the name is that of a semaphore"))
    }

    fn resize(&mut self, name: &str, permits: u64) {
        let before = self.lock(name).permits;
        self.change_lock(name, |lock| lock.permits = permits);
        self.context.output.locks.permits += signed(permits) - signed(before);
    }

    /// Permits of a semaphore are taken, or given back.
    pub(super) fn count_permits(&mut self, name: &str, hold: &Hold, is_taken: bool) {
        if hold.permits == 0 {
            return;
        }
        self.change_lock(name, |lock| {
            lock.permits_in_use = if is_taken {
                lock.permits_in_use + hold.permits
            } else {
                lock.permits_in_use.saturating_sub(hold.permits)
            };
        });
        let output = &mut self.context.output;
        if is_taken {
            output.counts.permits_acquired(1);
            output.locks.permits_in_use += signed(hold.permits);
        } else {
            output.counts.permits_released(1);
            output.locks.permits_in_use -= signed(hold.permits);
        }
    }

    /// Whether a semaphore has so many permits left, once the oldest holders whose sessions are over are taken out, as many as
    /// this step may. A lock has none, and 0 are wanted of it.
    pub(super) fn leaves_room(&mut self, name: &str, permits: u64) -> bool {
        if permits == 0 || has_room(&self.lock(name), permits) {
            return true;
        }
        self.oldest_shared(name, 0);
        has_room(&self.lock(name), permits)
    }

    /// Refuses a wait whose turn has come, and for which there will never be enough.
    pub(super) fn can_ever_have(&self, want: &Want) -> Result<(), Refusal> {
        if want.permits == 0 {
            return Ok(());
        }
        may_ever_have(&self.lock(&want.name), want.permits)
    }

    /// The answer of an AcquirePermits that got none.
    pub(super) fn no_permits(&self, name: &str) -> answer::Answer {
        let lock = self.lock(name);
        answer::Answer::AcquirePermits(api::AcquirePermitsResponse {
            available: lock.permits.saturating_sub(lock.permits_in_use),
            waiter_count: lock.waiters,
            ..api::AcquirePermitsResponse::default()
        })
    }
}

/// The session holds permits.
pub(super) fn permits_granted(hold: &Hold) -> answer::Answer {
    answer::Answer::AcquirePermits(api::AcquirePermitsResponse {
        acquired: true,
        fencing_token: hold.token,
        permits: hold.permits,
        ..api::AcquirePermitsResponse::default()
    })
}

fn must_be_semaphore(lock: &Lock) -> Result<(), Refusal> {
    if lock.permits > 0 {
        return Ok(());
    }
    Err(refuse(Reason::UnknownSemaphore, "there is no semaphore of that name"))
}

fn may_ever_have(lock: &Lock, permits: u64) -> Result<(), Refusal> {
    if permits <= lock.permits {
        return Ok(());
    }
    let limit = format_args!("at most {}, the permits of the semaphore", lock.permits);
    Err(check::invalid("permits", limit))
}

fn has_room(lock: &Lock, permits: u64) -> bool {
    lock.permits_in_use.saturating_add(permits) <= lock.permits
}

fn info(name: String, lock: &Lock) -> api::SemaphoreInfo {
    api::SemaphoreInfo {
        name,
        permits: lock.permits,
        in_use: lock.permits_in_use,
        holder_count: lock.shared,
        waiter_count: lock.waiters,
    }
}

fn signed(permits: u64) -> i64 {
    i64::try_from(permits).expect("a semaphore has at most SEMAPHORE_PERMITS_MAX permits")
}
