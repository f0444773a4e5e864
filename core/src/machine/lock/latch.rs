//! Latches: numbers that are counted down, and open at zero. A round ends at zero alone, or with the latch.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{AwaitLatch, Latch, LatchSeen, Refusal, answer};
use trefoil_proto::lock::v1 as api;

use super::super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome, answered, refuse,
    refuse_with,
};
use super::view::{View, end};
use super::{LockTxn, check_name, limit_reached};
use crate::check;
use crate::limits::{LATCH_COUNT_MAX, LATCHES_PER_NAMESPACE_MAX};
use crate::store::{Store, decode};

pub(in super::super) fn set_latch(
    context: &mut CommandContext<'_>,
    request: &api::SetLatchRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    check::number("count", request.count, 1, LATCH_COUNT_MAX)?;
    let before = locks.latch(&request.name);
    let count = before.map_or(0, |latch| latch.count);
    if count != request.expected.unwrap_or(0) {
        let message = "the latch counts down, or has another count than expected";
        return Err(refuse_with(Reason::LatchCount, message, [("count", count.to_string())]));
    }
    let mut latch = before.unwrap_or_default();
    (latch.count, latch.set_count) = (request.count, request.count);
    if count == 0 {
        let mut counters = locks.counters();
        if before.is_none() {
            counters.latches += 1;
            if counters.latches > LATCHES_PER_NAMESPACE_MAX {
                let most = LATCHES_PER_NAMESPACE_MAX;
                return Err(limit_reached("LATCHES_PER_NAMESPACE_MAX", most));
            }
        }
        counters.last_round += 1;
        latch.round = counters.last_round;
        if before.is_none() {
            latch.first_round = latch.round;
        }
        latch.since_ms = locks.context.now_ms;
        locks.put_counters(&counters);
    }
    locks.context.txn.put_message(locks.keys.latch(&request.name), &latch);
    let (header, round) = (None, latch.round);
    Ok(CommandOutcome::Answer(answer::Answer::SetLatch(api::SetLatchResponse { header, round })))
}

pub(in super::super) fn count_down(
    context: &mut CommandContext<'_>,
    request: &api::CountDownRequest,
) -> CommandResult {
    let locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    let mut latch = locks.latch(&request.name).ok_or_else(unknown_latch)?;
    let mut seen = look(&latch, request.round)?;
    if seen.count > 0 {
        latch.count = latch.count.saturating_sub(request.by.max(1));
        seen.count = latch.count;
        let key = locks.keys.latch(&request.name);
        locks.context.txn.put_message(key.clone(), &latch);
        if latch.count == 0 {
            locks.context.output.counts.latches_opened(1);
            locks.context.output.parked.push((key.into(), answer::Answer::LatchSeen(seen).into()));
        }
    }
    let LatchSeen { count, round } = seen;
    let counted = api::CountDownResponse { header: None, count, round };
    Ok(CommandOutcome::Answer(answer::Answer::CountDown(counted)))
}

pub(in super::super) fn delete_latch(
    context: &mut CommandContext<'_>,
    request: &api::DeleteLatchRequest,
) -> CommandResult {
    let mut locks = LockTxn::checked(context, &request.namespace)?;
    check_name("name", &request.name)?;
    locks.latch(&request.name).ok_or_else(unknown_latch)?;
    let key = locks.keys.latch(&request.name);
    locks.context.txn.delete(key.clone());
    let mut counters = locks.counters();
    counters.latches = counters.latches.saturating_sub(1);
    locks.put_counters(&counters);
    locks.context.output.parked.push((key.into(), unknown_latch().into()));
    Ok(CommandOutcome::Answer(answer::Answer::DeleteLatch(api::DeleteLatchResponse {
        header: None,
    })))
}

/// Says how a round stands; waits until it is over, when asked to.
pub(in super::super) fn await_latch(
    context: &mut QueryContext<'_, impl Store>,
    request: &AwaitLatch,
) -> QueryOutcome {
    let view = View::of(context, &request.namespace);
    let seen = view.checked().and_then(|()| {
        check_name("name", &request.name)?;
        let latch = view.latch(&request.name).ok_or_else(unknown_latch)?;
        look(&latch, request.round)
    });
    match seen {
        Ok(seen) if seen.count > 0 && request.wait => {
            park(context, view.keys.latch(&request.name).into())
        }
        seen => end(seen.map(answer::Answer::LatchSeen)),
    }
}

/// Lets a call wait.
pub(super) fn park<S>(context: &mut QueryContext<'_, S>, key: bytes::Bytes) -> QueryOutcome {
    if context.parked.wait(context.call, key) {
        QueryOutcome::Parked
    } else {
        answered(refuse(Reason::Overloaded, "too many calls wait at this shard"))
    }
}

pub(in super::super) fn get_latch(
    context: &QueryContext<'_, impl Store>,
    request: &api::GetLatchRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        check_name("name", &request.name)?;
        let latch = view.latch(&request.name).ok_or_else(unknown_latch)?;
        let latch = Some(view.latch_info(request.name.clone(), &latch));
        Ok(answer::Answer::GetLatch(api::GetLatchResponse { header: None, latch }))
    }))
}

pub(in super::super) fn list_latches(
    context: &QueryContext<'_, impl Store>,
    request: &api::ListLatchesRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    let api::ListLatchesRequest { prefix, page_size, page_token, .. } = request;
    let keys = view.keys;
    end(view.page(*page_size, prefix, page_token, |name| keys.latch(name)).map(
        |(found, next_page_token)| {
            let latches = found.into_iter().map(|(name, value)| {
                let latch = decode(&value);
                view.latch_info(name, &latch)
            });
            let (header, latches) = (None, latches.collect());
            answer::Answer::ListLatches(api::ListLatchesResponse {
                header,
                latches,
                next_page_token,
            })
        },
    ))
}

impl LockTxn<'_, '_> {
    fn latch(&self, name: &str) -> Option<Latch> {
        self.get(&self.keys.latch(name))
    }
}

impl<S: Store> View<'_, S> {
    fn latch(&self, name: &str) -> Option<Latch> {
        self.get(self.keys.latch(name).bytes())
    }

    fn latch_info(&self, name: String, latch: &Latch) -> api::LatchInfo {
        api::LatchInfo {
            name,
            count: latch.count,
            set_count: latch.set_count,
            round: latch.round,
            age_ms: self.since(latch.since_ms),
        }
    }
}

/// How a round stands, 0 for the present one: the rounds of this latch before it are over, and no others are known.
fn look(latch: &Latch, round: u64) -> Result<LatchSeen, Refusal> {
    if round == 0 || round == latch.round {
        Ok(LatchSeen { count: latch.count, round: latch.round })
    } else if (latch.first_round..latch.round).contains(&round) {
        Ok(LatchSeen { count: 0, round })
    } else {
        Err(unknown_latch())
    }
}

fn unknown_latch() -> Refusal {
    refuse(Reason::UnknownLatch, "the latch, or that round of it, is not there")
}
