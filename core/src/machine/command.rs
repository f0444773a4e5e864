//! One command of an entry: whether it is carried out, by which service, and what is remembered of it.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, Command, Refusal, answer};

use super::context::{CommandContext, CommandOutcome, CommandResult, Outcome, refuse, refused};
use super::windows::Windows;
use super::{Applied, Machine, dispatch, fence, lock, queue, requests};
use crate::store::Store;
use crate::{Position, slot};

impl Machine {
    pub(super) fn command(
        &mut self,
        store: &mut impl Store,
        windows: &mut Windows,
        command: &Command,
        applied: &mut Applied,
    ) -> Outcome {
        let Ok(slot) = u16::try_from(command.slot) else {
            return refused(refuse(Reason::StaleMap, "the slot is beyond the map"));
        };
        let ordinal = u32::try_from(applied.outcomes.len()).unwrap_or(u32::MAX);
        let mut context = self.context(store, windows, slot, Some(command));
        let mut recalled = None;
        let result = match self.admit(&mut context, command) {
            Ok(None) => Self::execute(&mut context, command),
            Ok(Some((answer, position))) => {
                let result = lock::recheck(&mut context, command, answer.clone());
                let stands =
                    matches!(&result, Ok(CommandOutcome::Answer(found)) if *found == answer);
                recalled = stands.then_some(position);
                result
            }
            // It is no answer to what the request id stands for, if that is known.
            Err(refusal) => return refused(refusal),
        };
        let mut outcome = match result {
            Ok(CommandOutcome::Answer(answer)) => Outcome::Answered(answer.into()),
            Ok(CommandOutcome::Wait(waiter)) => Outcome::Waiting(waiter),
            Err(refusal) => {
                // Nothing of a refused command stays, but its answer is remembered.
                drop(context);
                context = self.context(store, windows, slot, Some(command));
                refused(refusal)
            }
        };
        match &command.request_id {
            Some(request_id) if queue::took_nothing(&outcome) => {
                requests::meet(&mut context, command, request_id);
            }
            Some(_) => {
                let position = recalled.unwrap_or_else(|| requests::here(&context, ordinal));
                requests::remember(&mut context, command, &outcome, position);
                if recalled.is_some() {
                    outcome = Self::what_is_left(&context, command, outcome);
                    if !crate::mutant!(RetryPosition) {
                        applied.recalled.push((ordinal, position));
                    }
                }
            }
            None => {}
        }
        self.finish(context, applied);
        outcome
    }

    /// Whether a command belongs here and is to be carried out; else what it was answered before, and where.
    fn admit(
        &self,
        context: &mut CommandContext<'_>,
        command: &Command,
    ) -> Result<Option<(answer::Answer, Position)>, Refusal> {
        if command.map_epoch != slot::MAP_EPOCH {
            return Err(refuse(Reason::StaleMap, "the command was routed by another slot map"));
        }
        if self.shard != slot::shard(context.slot, self.shards) {
            return Err(refuse(Reason::StaleMap, "the slot lives on another shard"));
        }
        match &command.request_id {
            Some(id) => requests::recall(context, command, id),
            None => Ok(None),
        }
    }

    fn execute(context: &mut CommandContext<'_>, command: &Command) -> CommandResult {
        let Some(operation) = &command.operation else {
            return Err(refuse(Reason::InvalidField, "the command names no operation"));
        };
        if let Some(checked) = &command.fence {
            fence::admit(context, checked)?;
        }
        dispatch::execute(context, operation)
    }

    /// A remembered answer that promises time tells what is left of it.
    fn what_is_left(context: &CommandContext<'_>, command: &Command, outcome: Outcome) -> Outcome {
        let Outcome::Answered(Answer { answer: Some(mut answer) }) = outcome else {
            return outcome;
        };
        match (&mut answer, &command.operation) {
            (answer::Answer::Dequeue(response), _) => {
                queue::what_is_left(context, response);
            }
            (answer::Answer::OpenSession(response), Some(Operation::OpenSession(request))) => {
                lock::what_is_left(context, &request.namespace, response);
            }
            _ => {}
        }
        Outcome::Answered(answer.into())
    }
}
