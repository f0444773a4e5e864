//! What a lock client does beside locks: it meets others at barriers, counts latches down, and asks who leads.

use trefoil_proto::common::v1::{RequestId, Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    Answer, AwaitBarrier, AwaitLatch, CallName, WithdrawBarrier, answer,
};
use trefoil_proto::lock::v1 as lock;

use crate::calls::RoutedRequest;
use crate::client_context::ClientContext;
use crate::config::MILLISECOND;
use crate::rng::Rng;
use crate::workload::planned::PlannedCall;

const BARRIER: &str = "start";
const LATCH: &str = "ready";
/// Longest wait at a barrier or a latch, in ms.
const WAIT_MS_MAX: u64 = 2_000;

/// Where it stands at the barrier.
#[derive(Clone, Debug, Default)]
enum BarrierStage {
    #[default]
    Out,
    Enters(RequestId),
    Waits {
        round: u64,
        waiter: RequestId,
        asked: bool,
    },
    In(u64),
}

/// What it is at.
#[derive(Debug, Default)]
pub(crate) struct CoordinationClient {
    stage: BarrierStage,
}

impl CoordinationClient {
    /// What it does next; `me` names the call.
    pub(crate) fn next(
        &mut self,
        place: (&str, u64),
        locks: &[&str],
        me: RequestId,
        shared: &mut ClientContext,
    ) -> PlannedCall {
        let (namespace, session_id) = (place.0.to_owned(), place.1);
        if let BarrierStage::Waits { round, waiter, asked } = &mut self.stage {
            return if std::mem::replace(asked, true) {
                let (name, round) = (BARRIER.to_owned(), *round);
                let named = CallName { request_id: Some(waiter.clone()), ..CallName::default() };
                let (call, unless_tripped) = (Some(named), true);
                let withdraw =
                    WithdrawBarrier { namespace, session_id, name, round, call, unless_tripped };
                command(place.0, Operation::WithdrawBarrier(withdraw), false, shared)
            } else {
                let (name, round) = (BARRIER.to_owned(), *round);
                let (enters, wait) = (true, true);
                let query = AwaitBarrier { namespace, name, session_id, round, enters, wait };
                parked(place.0, Q::AwaitBarrier(query), shared)
            };
        }
        match (&self.stage, shared.rng.between(0, 9)) {
            (BarrierStage::In(round), 0..=4) => {
                let (name, round) = (BARRIER.to_owned(), *round);
                let leave = lock::LeaveBarrierRequest {
                    namespace,
                    session_id,
                    name,
                    round,
                    wait_ms: 0,
                    request_id: None,
                };
                command(place.0, Operation::LeaveBarrier(leave), true, shared)
            }
            (BarrierStage::Out, 0..=4) => {
                self.stage = BarrierStage::Enters(me.clone());
                let parties = *shared.rng.pick(&[1, 2, 2, 2, 2, 3]);
                let enter = lock::EnterBarrierRequest {
                    namespace,
                    session_id,
                    name: BARRIER.to_owned(),
                    parties,
                    wait_ms: shared.rng.between(0, WAIT_MS_MAX),
                    // Whose place it is.
                    request_id: Some(me),
                };
                command(place.0, Operation::EnterBarrier(enter), true, shared)
            }
            (_, 5 | 6) => {
                let name = (*shared.rng.pick(locks)).to_owned();
                query(place.0, Q::Leader(lock::LeaderRequest { namespace, name }), shared)
            }
            _ => latch(place.0, shared),
        }
    }

    /// A call was answered.
    pub(crate) fn told(&mut self, answer: &Answer) {
        let Some(answer::Answer::BarrierSeen(seen)) = &answer.answer else { return };
        self.stage = match (std::mem::take(&mut self.stage), seen.inside, seen.tripped) {
            (_, true, true) => BarrierStage::In(seen.round),
            (BarrierStage::Enters(waiter), true, false) => {
                BarrierStage::Waits { round: seen.round, waiter, asked: false }
            }
            (stage @ BarrierStage::Waits { .. }, true, false) => stage,
            _ => BarrierStage::Out,
        };
    }
}

/// Sets a latch, counts it down, waits for it, looks at it or deletes it.
fn latch(of: &str, shared: &mut ClientContext) -> PlannedCall {
    let (namespace, name, rng) = (of.to_owned(), LATCH.to_owned(), &mut shared.rng);
    let operation = match rng.between(0, 19) {
        0..=4 => {
            let expected = rng.chance(300).then(|| rng.between(0, 3));
            let count = rng.between(1, 4);
            let set =
                lock::SetLatchRequest { namespace, name, count, expected, ..Default::default() };
            Operation::SetLatch(set)
        }
        5 => Operation::DeleteLatch(lock::DeleteLatchRequest { namespace, name, request_id: None }),
        6 | 7 => return query(of, Q::GetLatch(lock::GetLatchRequest { namespace, name }), shared),
        8 | 9 => {
            let (round, wait) = (0, rng.chance(700));
            return parked(of, Q::AwaitLatch(AwaitLatch { namespace, name, round, wait }), shared);
        }
        _ => {
            let (by, round) = (rng.between(0, 2), rng.between(0, 40).saturating_sub(20));
            let down = lock::CountDownRequest { namespace, name, by, round, ..Default::default() };
            Operation::CountDown(down)
        }
    };
    command(of, operation, true, shared)
}

/// A campaign for the lock that an Acquire in mode EXCLUSIVE asks for.
pub(crate) fn campaign(acquire: RoutedRequest, text: String) -> RoutedRequest {
    acquire.map(|operation| match operation {
        Operation::Acquire(acquire) => Operation::Campaign(lock::CampaignRequest {
            namespace: acquire.namespace,
            session_id: acquire.session_id,
            name: acquire.name,
            value: Some(of_text(text)),
            wait_ms: acquire.wait_ms,
            request_id: None,
            lock_delay_ms: acquire.lock_delay_ms,
        }),
        other => other,
    })
}

/// A holder says something else.
pub(crate) fn proclaim(
    of: &str,
    hold: (u64, &str, u64),
    text: String,
    shared: &ClientContext,
) -> PlannedCall {
    let (session_id, name, fencing_token) = (hold.0, hold.1.to_owned(), hold.2);
    let proclaim = lock::ProclaimRequest {
        namespace: of.to_owned(),
        session_id,
        name,
        fencing_token,
        value: Some(of_text(text)),
        request_id: None,
    };
    command(of, Operation::Proclaim(proclaim), true, shared)
}

fn of_text(text: String) -> Value {
    Value { kind: Some(value::Kind::Text(text)) }
}

fn command(
    of: &str,
    operation: Operation,
    idempotent: bool,
    shared: &ClientContext,
) -> PlannedCall {
    PlannedCall::unjudged(shared.router.of_locks(of, operation), idempotent)
}

fn query(of: &str, query: Q, shared: &ClientContext) -> PlannedCall {
    PlannedCall::unjudged(shared.router.ask_locks(of, query), false)
}

fn parked(of: &str, asked: Q, shared: &mut ClientContext) -> PlannedCall {
    let wait_us = wait(&mut shared.rng);
    PlannedCall { wait_us, once: true, ..query(of, asked, shared) }
}

fn wait(rng: &mut Rng) -> u64 {
    rng.between(1, WAIT_MS_MAX) * MILLISECOND
}
