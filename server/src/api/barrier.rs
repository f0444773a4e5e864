//! Latches and barriers. What waits parks at the leader, and asks again when that is lost; what has a place in the state
//! gives it up when its wait is over or its caller is gone.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout_at};
use trefoil_core::slot;
use trefoil_proto::common::v1::{Reason, ResponseHeader};
use trefoil_proto::internal::v1::answer::Answer;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::internal::v1::{
    AwaitBarrier, AwaitLatch, BarrierSeen, CallName, LatchSeen, Refusal, WithdrawBarrier,
};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::reason::Retry;

use super::clean_up::{Unseen, name_call};
use super::{
    ANSWER_TIME, Api, CallContext, Context, Decided, RETRY_PAUSE, Shards, other_answer, partly,
};
use crate::calls::repeat::may_help;

impl<S: Shards> Api<S> {
    /// Looks once, so that the round is known, and waits for its end.
    pub(super) async fn await_latch(
        &self,
        context: &Context,
        request: lock::AwaitLatchRequest,
    ) -> Result<lock::AwaitLatchResponse, Refusal> {
        let lock::AwaitLatchRequest { namespace, name, wait_ms, round } = request;
        let slot = slot::of_locks(&namespace);
        let until = until(context, wait_ms);
        let mut await_latch = AwaitLatch { namespace, name, round, wait: false };
        let mut seen = self.latch(slot, &await_latch, &context.ask).await?;
        if seen.1.count > 0 && wait_ms > 0 {
            (await_latch.round, await_latch.wait) = (seen.1.round, true);
            let query = Query::AwaitLatch(await_latch.clone());
            seen = match timeout_at(until, self.parked(slot, query, context, until)).await {
                Ok(decided) => latch_seen(decided?)?,
                Err(_) => {
                    await_latch.wait = false;
                    self.latch(slot, &await_latch, &context.ask).await?
                }
            };
        }
        let (header, LatchSeen { count, round }) = seen;
        Ok(lock::AwaitLatchResponse { header: Some(header), open: count == 0, count, round })
    }

    /// Enters, and leaves no place behind that nobody knows of.
    pub(super) async fn enter_barrier(
        self: &Arc<Self>,
        context: &Context,
        mut request: lock::EnterBarrierRequest,
    ) -> Result<lock::EnterBarrierResponse, Refusal> {
        let slot = slot::of_locks(&request.namespace);
        let (wait_ms, until) = (request.wait_ms, until(context, request.wait_ms));
        // The first command has the request id; all of them say whose place it is.
        let named = name_call(request.request_id.clone());
        let mut call = named.clone();
        let withdraw = WithdrawBarrier {
            namespace: request.namespace.clone(),
            session_id: request.session_id,
            name: request.name.clone(),
            call: Some(named),
            ..WithdrawBarrier::default()
        };
        let mut entering = Unseen::new(self, context, Some(withdraw));
        let mut goes_on = false;
        loop {
            request.wait_ms = wait_ms.min(remaining_ms(until));
            let command = Command::EnterBarrier(request.clone());
            let first = CallName { request_id: call.request_id.take(), drawn: call.drawn.clone() };
            let decided = self.called(slot, first, command, &context.ask).await;
            entering.judge(decided.as_ref().err());
            let decided = decided.map_err(|why| if goes_on { unended(why) } else { why })?;
            let (header, seen) = barrier_seen(decided)?;
            goes_on = true;
            if wait_ms == 0 || seen.inside && seen.tripped {
                entering.is_seen();
                return Ok(entered(header, &seen));
            }
            // Until all have come, or until those of the round before have left.
            let await_barrier = AwaitBarrier {
                namespace: request.namespace.clone(),
                name: request.name.clone(),
                session_id: request.session_id,
                round: seen.round,
                enters: seen.inside,
                wait: true,
            };
            let query = Query::AwaitBarrier(await_barrier);
            match timeout_at(until, self.parked(slot, query, context, until)).await {
                Ok(decided) => {
                    let (header, moved) = barrier_seen(decided.map_err(unended)?)?;
                    if seen.inside {
                        entering.is_seen();
                        return Ok(entered(header, &moved));
                    }
                }
                Err(_) => {
                    let withdraw = WithdrawBarrier {
                        round: seen.round,
                        unless_tripped: true,
                        ..entering.left.clone().unwrap_or_default()
                    };
                    let withdraw = Command::WithdrawBarrier(withdraw);
                    let decided = self.command(slot, None, withdraw, &context.ask).await;
                    let decided = decided.map_err(unended)?;
                    entering.is_seen();
                    let (header, seen) = barrier_seen(decided)?;
                    return Ok(entered(header, &seen));
                }
            }
        }
    }

    /// Leaves, and waits until all have.
    pub(super) async fn leave_barrier(
        &self,
        context: &Context,
        mut request: lock::LeaveBarrierRequest,
    ) -> Result<lock::LeaveBarrierResponse, Refusal> {
        let slot = slot::of_locks(&request.namespace);
        let until = until(context, request.wait_ms);
        let id = request.request_id.take();
        let command = Command::LeaveBarrier(request.clone());
        let mut seen = barrier_seen(self.command(slot, id, command, &context.ask).await?)?;
        if request.wait_ms > 0 && seen.1.tripped && !seen.1.over {
            let mut await_barrier = AwaitBarrier {
                namespace: request.namespace,
                name: request.name,
                session_id: request.session_id,
                round: seen.1.round,
                enters: false,
                wait: true,
            };
            let query = Query::AwaitBarrier(await_barrier.clone());
            let decided = match timeout_at(until, self.parked(slot, query, context, until)).await {
                Ok(decided) => decided,
                Err(_) => {
                    await_barrier.wait = false;
                    self.query(slot, Query::AwaitBarrier(await_barrier), &context.ask).await
                }
            };
            // It has left, whoever else has.
            seen = barrier_seen(decided.map_err(unended)?)?;
        }
        let (header, BarrierSeen { present, over, .. }) = seen;
        Ok(lock::LeaveBarrierResponse { header: Some(header), all_left: over, present })
    }

    async fn latch(
        &self,
        slot: u16,
        await_latch: &AwaitLatch,
        ask: &CallContext,
    ) -> Result<(ResponseHeader, LatchSeen), Refusal> {
        latch_seen(self.query(slot, Query::AwaitLatch(await_latch.clone()), ask).await?)
    }

    /// Has a query wait at the leader, however often that changes meanwhile.
    async fn parked(
        &self,
        slot: u16,
        query: Query,
        context: &Context,
        until: Instant,
    ) -> Result<Decided, Refusal> {
        // The wait is ended here: the shard must not end it earlier.
        let ask = CallContext { deadline: until + ANSWER_TIME, ..context.ask.clone() };
        loop {
            match self.query(slot, query.clone(), &ask).await {
                // Without a leader for as long as that, the caller is to know.
                Err(refusal) if may_help(&refusal) && refusal.reason() != Reason::NoQuorum => {
                    sleep(RETRY_PAUSE).await
                }
                decided => return decided,
            }
        }
    }
}

/// How a call ended that had entered or left before. What is refused for good says what became of that.
fn unended(why: Refusal) -> Refusal {
    if why.reason().row().retry == Retry::Never { why } else { partly(&why) }
}

/// When a wait that begins now is over.
fn until(context: &Context, wait_ms: u64) -> Instant {
    let now = Instant::now();
    let latest = context.ask.deadline.checked_sub(ANSWER_TIME).unwrap_or(now);
    (now + Duration::from_millis(wait_ms)).min(latest)
}

fn remaining_ms(until: Instant) -> u64 {
    let remaining = until.saturating_duration_since(Instant::now());
    u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn latch_seen(decided: Decided) -> Result<(ResponseHeader, LatchSeen), Refusal> {
    match decided.answer {
        Answer::LatchSeen(seen) => Ok((decided.header, seen)),
        _ => Err(other_answer()),
    }
}

fn barrier_seen(decided: Decided) -> Result<(ResponseHeader, BarrierSeen), Refusal> {
    match decided.answer {
        Answer::BarrierSeen(seen) => Ok((decided.header, seen)),
        _ => Err(other_answer()),
    }
}

fn entered(header: ResponseHeader, seen: &BarrierSeen) -> lock::EnterBarrierResponse {
    let entered = seen.inside && seen.tripped;
    let round = if entered { seen.round } else { 0 };
    lock::EnterBarrierResponse { header: Some(header), entered, round, present: seen.present }
}
