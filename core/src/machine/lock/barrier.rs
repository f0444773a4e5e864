//! Barriers: sessions that enter together and leave together. Who waits to enter has a place in the barrier until its
//! session or its wait ends, judged by stored values where it matters: when a place is counted.

use bytes::Bytes;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{
    AwaitBarrier, Barrier, BarrierSeen, CallName, Entered, Party, Refusal, WithdrawBarrier, answer,
};
use trefoil_proto::lock::v1 as api;

use super::super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome, refuse, refuse_with,
};
use super::super::requests;
use super::latch::park;
use super::view::{View, end};
use super::{LockTxn, check_name, limit_reached, session_expired, stripped, text_of};
use crate::check;
use crate::limits::{BARRIER_PARTIES_MAX, BARRIERS_PER_NAMESPACE_MAX, BARRIERS_PER_SESSION_MAX};
use crate::store::{Store, decode, prefix_end};

/// Barriers of one page: each may have a thousand sessions in its record.
const LISTED_MAX: u32 = 100;

/// Enters, or says how far the barrier is. A call that does not wait leaves a place only where it is the last one missing.
pub(in super::super) fn enter_barrier(
    context: &mut CommandContext<'_>,
    request: &api::EnterBarrierRequest,
) -> CommandResult {
    // The first command of a call alone has its request id: what they all say names the call.
    let drawn = context.command.map(|command| command.drawn.clone()).unwrap_or_default();
    let named = CallName { request_id: request.request_id.clone(), drawn };
    let call = stripped(check::call_name(Some(&named))?);
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    check::number("parties", request.parties.into(), 1, BARRIER_PARTIES_MAX.into())?;
    let (name, id, parties) = (&request.name, request.session_id, request.parties);
    locks.renew(id)?;
    let mut barrier = locks.barrier(name).unwrap_or_default();
    if barrier.tripped && is_in(&barrier, id) {
        return Ok(seen(&barrier, id));
    }
    if barrier.tripped || barrier.parties != parties || lacks_one(&barrier) {
        locks.drop_the_late(name, &mut barrier, id);
    }
    if barrier.tripped {
        locks.put_barrier(name, &barrier);
        return Ok(seen(&barrier, id));
    }
    if barrier.round > 0 && barrier.parties != parties {
        let message = "the sessions in the barrier wait for another number of parties";
        let facts = [("parties", barrier.parties.to_string())];
        return Err(refuse_with(Reason::BarrierParties, message, facts));
    }
    barrier.parties = parties;
    let is_inside = is_in(&barrier, id);
    let is_last = !is_inside && lacks_one(&barrier);
    if request.wait_ms == 0 && !is_last {
        locks.put_barrier(name, &barrier);
        return Ok(seen(&barrier, id));
    }
    if barrier.round == 0 {
        locks.begin_round(&mut barrier)?;
    }
    let deadline_ms = locks.context.now_ms.saturating_add(request.wait_ms);
    let party = Party { session_id: id, deadline_ms, call: Some(call) };
    match barrier.inside.iter_mut().find(|party| party.session_id == id) {
        Some(known) => *known = party,
        None => barrier.inside.push(party),
    }
    locks.note_entry(id, name)?;
    if is_last {
        barrier.tripped = true;
        locks.context.output.counts.barriers_tripped(1);
        for party in &barrier.inside {
            locks.tell_party(name, party.session_id, Ok(show(&barrier, party.session_id)));
        }
    }
    locks.put_barrier(name, &barrier);
    Ok(seen(&barrier, id))
}

/// Gives up a place; whoever was the last one to do so ends the round.
pub(in super::super) fn leave_barrier(
    context: &mut CommandContext<'_>,
    request: &api::LeaveBarrierRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    let (name, id) = (&request.name, request.session_id);
    locks.renew(id)?;
    let barrier = locks.barrier(name).unwrap_or_default();
    if request.round > 0 && request.round != barrier.round {
        return Ok(CommandOutcome::Answer(answer::Answer::BarrierSeen(over(request.round))));
    }
    if !is_in(&barrier, id) {
        if request.round == 0 {
            return Err(refuse(Reason::NotEntered, "the session is not in the barrier"));
        }
        return Ok(seen(&barrier, id));
    }
    Ok(CommandOutcome::Answer(answer::Answer::BarrierSeen(locks.step_out(name, id))))
}

/// The caller of an EnterBarrier does not wait any more. This is no sign of life of its session, so it renews nothing.
pub(in super::super) fn withdraw_barrier(
    context: &mut CommandContext<'_>,
    request: &WithdrawBarrier,
) -> CommandResult {
    check_name("name", &request.name)?;
    let named = check::call_name(request.call.as_ref())?;
    // Where the same call was sent again meanwhile that one still waits, or is in.
    let newest = |id| requests::newest_attempt(context, id) <= id.attempt;
    let mut is_meant = named.request_id.as_ref().is_none_or(newest);
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    let barrier = locks.barrier(&request.name).unwrap_or_default();
    is_meant &= request.round == 0 || request.round == barrier.round;
    let call = Some(stripped(named));
    let is_of = |party: &Party| party.session_id == request.session_id && party.call == call;
    if !is_meant || !barrier.inside.iter().any(is_of) {
        let seen = BarrierSeen { inside: false, ..show(&barrier, request.session_id) };
        return Ok(CommandOutcome::Answer(answer::Answer::BarrierSeen(seen)));
    }
    if barrier.tripped && request.unless_tripped {
        return Ok(seen(&barrier, request.session_id));
    }
    let seen = locks.step_out(&request.name, request.session_id);
    Ok(CommandOutcome::Answer(answer::Answer::BarrierSeen(seen)))
}

/// Says how far a round is. Where asked to, waits until all have entered or this session is out, or until all have left.
pub(in super::super) fn await_barrier(
    context: &mut QueryContext<'_, impl Store>,
    request: &AwaitBarrier,
) -> QueryOutcome {
    let view = View::of(context, &request.namespace);
    let (name, id) = (&request.name, request.session_id);
    let seen = view.checked().and_then(|()| {
        check_name("name", name)?;
        if request.enters && view.session(id).is_none() {
            return Err(session_expired());
        }
        let barrier = view.barrier(name).unwrap_or_default();
        let is_over = barrier.round != request.round;
        Ok(if is_over { over(request.round) } else { show(&barrier, id) })
    });
    let waits = |seen: &BarrierSeen| {
        !seen.over && (!request.enters || seen.inside && !seen.tripped) && request.wait
    };
    match seen {
        Ok(seen) if waits(&seen) && request.enters => {
            park(context, view.keys.entered(id, name).into())
        }
        Ok(seen) if waits(&seen) => park(context, view.keys.barrier(name).into()),
        seen => end(seen.map(answer::Answer::BarrierSeen)),
    }
}

pub(in super::super) fn get_barrier(
    context: &QueryContext<'_, impl Store>,
    request: &api::GetBarrierRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        check_name("name", &request.name)?;
        let barrier = view.barrier(&request.name).unwrap_or_default();
        let party = |party: &Party| {
            let session_id = party.session_id;
            Some(api::BarrierParty { session_id, owner: view.session(session_id)?.owner })
        };
        Ok(answer::Answer::GetBarrier(api::GetBarrierResponse {
            header: None,
            sessions: barrier.inside.iter().filter_map(party).collect(),
            barrier: Some(view.barrier_info(request.name.clone(), &barrier)),
        }))
    }))
}

pub(in super::super) fn list_barriers(
    context: &QueryContext<'_, impl Store>,
    request: &api::ListBarriersRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    let api::ListBarriersRequest { prefix, page_size, page_token, .. } = request;
    let (keys, size) = (view.keys, (*page_size).min(LISTED_MAX));
    end(view.page(size, prefix, page_token, |name| keys.barrier(name)).map(
        |(found, next_page_token)| {
            let barriers = found.into_iter().map(|(name, value)| {
                let barrier = decode(&value);
                view.barrier_info(name, &barrier)
            });
            let (header, barriers) = (None, barriers.collect());
            let listed = api::ListBarriersResponse { header, barriers, next_page_token };
            answer::Answer::ListBarriers(listed)
        },
    ))
}

impl LockTxn<'_, '_> {
    fn barrier(&self, name: &str) -> Option<Barrier> {
        self.get(&self.keys.barrier(name))
    }

    /// A barrier without anybody has no record; then its round is over.
    fn put_barrier(&mut self, name: &str, barrier: &Barrier) {
        let key = self.keys.barrier(name);
        let before = self.barrier(name);
        let mut counters = self.counters();
        if !barrier.inside.is_empty() {
            counters.barriers += u64::from(before.is_none());
            self.context.txn.put_message(key.clone(), barrier);
        } else if before.is_some() {
            counters.barriers = counters.barriers.saturating_sub(1);
            self.context.txn.delete(key.clone());
        }
        self.put_counters(&counters);
        if let Some(before) = before.filter(|before| before.round != barrier.round) {
            self.end_round(name, before.round);
        } else if barrier.inside.is_empty() && barrier.round > 0 {
            self.end_round(name, barrier.round);
        }
    }

    fn end_round(&mut self, name: &str, round: u64) {
        let key = Bytes::from(self.keys.barrier(name));
        let answer = answer::Answer::BarrierSeen(over(round)).into();
        self.context.output.parked.push((key, answer));
    }

    fn begin_round(&mut self, barrier: &mut Barrier) -> Result<(), Refusal> {
        let mut counters = self.counters();
        if counters.barriers >= BARRIERS_PER_NAMESPACE_MAX {
            let most = BARRIERS_PER_NAMESPACE_MAX;
            return Err(limit_reached("BARRIERS_PER_NAMESPACE_MAX", most));
        }
        counters.last_round += 1;
        self.put_counters(&counters);
        (barrier.round, barrier.since_ms) = (counters.last_round, self.context.now_ms);
        Ok(())
    }

    /// Takes out whose session is over and, before all have entered, whose wait is; not the one who asks. Where that leaves
    /// nobody the round is over.
    fn drop_the_late(&mut self, name: &str, barrier: &mut Barrier, but_for: u64) {
        let now_ms = self.context.now_ms;
        for party in std::mem::take(&mut barrier.inside) {
            let id = party.session_id;
            if self.living(id).is_err() {
                self.tell_party(name, id, Err(session_expired()));
            } else if id != but_for
                && !barrier.tripped
                && party.deadline_ms <= now_ms
                && !crate::mutant!(LateParty)
            {
                self.tell_party(name, id, Ok(over(barrier.round)));
            } else {
                barrier.inside.push(party);
            }
        }
        if barrier.inside.is_empty() {
            *barrier = Barrier::default();
        }
    }

    /// Takes a session out of a barrier, and says how it stands then.
    fn step_out(&mut self, name: &str, id: u64) -> BarrierSeen {
        self.forget_entry(id, name);
        let Some(mut barrier) = self.barrier(name).filter(|barrier| is_in(barrier, id)) else {
            return over(0);
        };
        barrier.inside.retain(|party| party.session_id != id);
        self.put_barrier(name, &barrier);
        let is_living = self.living(id).map(drop);
        self.tell_party(name, id, is_living.map(|()| show(&barrier, id)));
        show(&barrier, id)
    }

    /// Tells the calls of a session that wait to enter.
    fn tell_party(&mut self, name: &str, id: u64, said: Result<BarrierSeen, Refusal>) {
        let answer = match said {
            Ok(seen) => answer::Answer::BarrierSeen(seen).into(),
            Err(refusal) => refusal.into(),
        };
        let key = self.keys.entered(id, name);
        self.context.output.parked.push((key.into(), answer));
    }

    /// The end of a session finds the barrier.
    fn note_entry(&mut self, id: u64, name: &str) -> Result<(), Refusal> {
        let key = self.keys.entered(id, name);
        if self.get::<Entered>(&key).is_some() {
            return Ok(());
        }
        let mut session = self.living(id)?;
        if session.entered >= BARRIERS_PER_SESSION_MAX {
            return Err(limit_reached("BARRIERS_PER_SESSION_MAX", BARRIERS_PER_SESSION_MAX));
        }
        session.entered += 1;
        self.put_session(id, &session);
        self.context.txn.put_message(key, &Entered {});
        Ok(())
    }

    fn forget_entry(&mut self, id: u64, name: &str) {
        let key = self.keys.entered(id, name);
        if self.get::<Entered>(&key).is_none() {
            return;
        }
        self.context.txn.delete(key);
        if let Some(mut session) = self.session(id) {
            session.entered = session.entered.saturating_sub(1);
            self.put_session(id, &session);
        }
    }

    /// Takes an ended session out of its barriers, of as many as this step may.
    pub(super) fn leave_barriers(&mut self, id: u64) {
        let all = self.keys.entries(id);
        for (key, _) in self.context.txn.scan(all.bytes(), &prefix_end(all.bytes()), self.left) {
            self.step_out(&text_of(&key[all.bytes().len()..]), id);
            self.left = self.left.saturating_sub(1);
        }
    }
}

impl<S: Store> View<'_, S> {
    fn barrier(&self, name: &str) -> Option<Barrier> {
        self.get(self.keys.barrier(name).bytes())
    }

    fn barrier_info(&self, name: String, barrier: &Barrier) -> api::BarrierInfo {
        api::BarrierInfo {
            name,
            parties: barrier.parties,
            present: present(barrier),
            leaving: barrier.tripped,
            round: barrier.round,
            age_ms: if barrier.round > 0 { self.since(barrier.since_ms) } else { 0 },
        }
    }
}

fn is_in(barrier: &Barrier, id: u64) -> bool {
    barrier.inside.iter().any(|party| party.session_id == id)
}

fn lacks_one(barrier: &Barrier) -> bool {
    present(barrier) + 1 >= barrier.parties
}

fn present(barrier: &Barrier) -> u32 {
    u32::try_from(barrier.inside.len()).unwrap_or(u32::MAX)
}

fn show(barrier: &Barrier, id: u64) -> BarrierSeen {
    BarrierSeen {
        round: barrier.round,
        tripped: barrier.tripped,
        inside: is_in(barrier, id),
        present: present(barrier),
        over: barrier.inside.is_empty(),
    }
}

fn over(round: u64) -> BarrierSeen {
    BarrierSeen { round, over: true, ..BarrierSeen::default() }
}

fn seen(barrier: &Barrier, id: u64) -> CommandOutcome {
    CommandOutcome::Answer(answer::Answer::BarrierSeen(show(barrier, id)))
}
