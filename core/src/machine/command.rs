//! One command of an entry: whether it is carried out, by which service, and what is remembered of it.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, Command, Refusal, answer};

use super::chance::drawn;
use super::{
    Applied, Machine, Outcome, Ruling, Scope, Verdict, cache, catalogue, done, fence, lock,
    namespace, namespace_copy, queue, refuse, refused, requests,
};
use crate::store::Store;
use crate::{Position, slot};

impl Machine {
    pub(super) fn command(
        &mut self,
        store: &mut impl Store,
        command: &Command,
        applied: &mut Applied,
    ) -> Outcome {
        let Ok(slot) = u16::try_from(command.slot) else {
            return refused(refuse(Reason::StaleMap, "the slot is beyond the map"));
        };
        let ordinal = u32::try_from(applied.outcomes.len()).unwrap_or(u32::MAX);
        let mut scope = self.scope(store, slot, command.agent);
        let mut recalled = None;
        let ruling = match self.admit(&scope, command) {
            Ok(None) => self.rule(&mut scope, command),
            Ok(Some((answer, position))) => {
                let ruling = lock::recheck(&mut scope, command, answer.clone());
                let stands = matches!(&ruling, Ok(Verdict::Answer(found)) if *found == answer);
                recalled = stands.then_some(position);
                ruling
            }
            // It is no answer to what the request id stands for, if that is known.
            Err(refusal) => return refused(refusal),
        };
        let mut outcome = match ruling {
            Ok(Verdict::Answer(answer)) => Outcome::Answered(answer.into()),
            Ok(Verdict::Wait(waiter)) => Outcome::Waiting(waiter),
            Err(refusal) => {
                // Nothing of a refused command stays, but its answer is remembered.
                drop(scope);
                scope = self.scope(store, slot, command.agent);
                refused(refusal)
            }
        };
        match &command.request_id {
            Some(request_id) if queue::took_nothing(&outcome) => {
                requests::meet(&mut scope, command, request_id);
            }
            Some(_) => {
                let position = recalled.unwrap_or_else(|| requests::here(&scope, ordinal));
                requests::remember(&mut scope, command, &outcome, position);
                if recalled.is_some() {
                    outcome = self.what_is_left(&scope, command, outcome);
                    if !crate::mutant!(RetryPosition) {
                        applied.recalled.push((ordinal, position));
                    }
                }
            }
            None => {}
        }
        self.finish(scope, applied);
        outcome
    }

    /// Whether a command belongs here and is to be carried out; else what it was answered before, and where.
    fn admit(
        &self,
        scope: &Scope<'_>,
        command: &Command,
    ) -> Result<Option<(answer::Answer, Position)>, Refusal> {
        if command.map_epoch != slot::MAP_EPOCH {
            return Err(refuse(Reason::StaleMap, "the command was routed by another slot map"));
        }
        if self.shard != slot::shard(scope.slot, self.shards) {
            return Err(refuse(Reason::StaleMap, "the slot lives on another shard"));
        }
        match &command.request_id {
            Some(id) => requests::recall(scope, command, id),
            None => Ok(None),
        }
    }

    fn rule(&self, scope: &mut Scope<'_>, command: &Command) -> Ruling {
        let Some(operation) = &command.operation else {
            return Err(refuse(Reason::InvalidField, "the command names no operation"));
        };
        if let Some(checked) = &command.fence {
            fence::admit(scope, checked)?;
        }
        match operation {
            Operation::OpenSession(request) => lock::open_session(scope, request, drawn(command)?),
            Operation::KeepAlive(request) => lock::keep_alive(scope, request),
            Operation::CloseSession(request) => lock::close_session(scope, request),
            Operation::Acquire(request) => lock::acquire(scope, request, lock::call_name(command)?),
            Operation::Convert(request) => lock::convert(scope, request, lock::call_name(command)?),
            Operation::Release(request) => lock::release(scope, request),
            Operation::ReleaseHeld(request) => lock::release_held(scope, request),
            Operation::ForceStep(request) => lock::force_step(scope, request),
            Operation::RequestRelease(request) => lock::request_release(scope, request),
            Operation::CancelAcquire(request) => lock::cancel_acquire(scope, request),
            Operation::LoseCaller(request) => lock::lose_caller(scope, request),
            Operation::Campaign(request) => {
                lock::campaign(scope, request, lock::call_name(command)?)
            }
            Operation::Proclaim(request) => lock::proclaim(scope, request),
            Operation::SetPermits(request) => lock::set_permits(scope, request),
            Operation::DeleteSemaphore(request) => lock::delete_semaphore(scope, request),
            Operation::AcquirePermits(request) => {
                lock::acquire_permits(scope, request, lock::call_name(command)?)
            }
            Operation::ReleasePermits(request) => lock::release_permits(scope, request),
            Operation::SetLatch(request) => lock::set_latch(scope, request),
            Operation::CountDown(request) => lock::count_down(scope, request),
            Operation::DeleteLatch(request) => lock::delete_latch(scope, request),
            Operation::EnterBarrier(request) => lock::enter_barrier(scope, request, &command.drawn),
            Operation::LeaveBarrier(request) => lock::leave_barrier(scope, request),
            Operation::WithdrawBarrier(request) => lock::withdraw_barrier(scope, request),
            Operation::CreateQueue(request) => {
                catalogue::create_queue(scope, request, drawn(command)?)
            }
            Operation::OpenPartition(request) => queue::open_partition(scope, request, self.shards),
            Operation::EnqueueTo(request) => queue::enqueue(scope, request, self.shards),
            Operation::DequeueFrom(request) => {
                queue::dequeue(scope, request, drawn(command)?, self.shards)
            }
            Operation::AckLease(request) => queue::ack(scope, request, self.shards),
            Operation::ReturnLeases(request) => queue::return_leases(scope, request, self.shards),
            Operation::CreateNamespace(request) => namespace::create(scope, request),
            Operation::UpdateNamespace(request) => namespace::update(scope, request),
            Operation::DeleteNamespace(request) => namespace::delete(scope, request),
            Operation::SetNamespacePolicy(request) => namespace::set_policy(scope, request),
            Operation::NamespaceStep(request) => namespace::step(scope, request),
            Operation::ConfigureNamespace(request) => namespace_copy::configure(scope, request),
            Operation::ConfigureNamespacePolicy(request) => {
                namespace_copy::configure_policy(scope, request)
            }
            Operation::Put(request) => cache::put(scope, request),
            Operation::Delete(request) => cache::delete(scope, request),
            // Its fence has been passed.
            Operation::TouchFence(_) => Ok(done()),
        }
    }

    /// A remembered answer that promises time tells what is left of it.
    fn what_is_left(&self, scope: &Scope<'_>, command: &Command, outcome: Outcome) -> Outcome {
        let Outcome::Answered(Answer { answer: Some(mut answer) }) = outcome else {
            return outcome;
        };
        match (&mut answer, &command.operation) {
            (answer::Answer::Dequeue(response), _) => {
                queue::what_is_left(scope, response, self.shards);
            }
            (answer::Answer::OpenSession(response), Some(Operation::OpenSession(request))) => {
                lock::what_is_left(scope, &request.namespace, response);
            }
            _ => {}
        }
        Outcome::Answered(answer.into())
    }
}
