//! Request ids: a command that is sent again takes effect once and gets its first answer again.
//!
//! Source: D. Ongaro, Consensus: Bridging Theory and Practice (2014), section 6.3.

use bytes::Bytes;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{Answer, Command, Refusal, RequestAnswer, RequestClient, answer};
use trefoil_proto::reason::RefusalEffect;

use super::context::{CommandContext, Outcome, refuse, refuse_with};
use super::windows::{ClientWindow, waits};
use super::{queue, timers};
use crate::key::Kind;
use crate::limits::{ANSWERS_FORGOTTEN_MAX, REQUESTS_OPEN_MAX};
use crate::slot::SYSTEM_SLOT;
use crate::{Position, check};

/// The remembered answer, and where it was decided; none when the command is to be executed.
pub(super) fn recall(
    context: &mut CommandContext<'_>,
    command: &Command,
    id: &RequestId,
) -> Result<Option<(answer::Answer, Position)>, Refusal> {
    check::command_id(id)?;
    if crate::mutant!(NoDedup) {
        return Ok(None);
    }
    let horizon = context.requests;
    let window = context.window(&id.client);
    let Some(client) = window.client() else {
        if may_be_forgotten(horizon.known_from_ms, command, id) {
            return Err(forgotten());
        }
        return Ok(None);
    };
    if id.sequence < client.first_unacknowledged {
        return Err(refuse(Reason::RequestForgotten, "the sequence is below first_unacknowledged"));
    }
    match window.answer(id.sequence) {
        Some(record)
            if record.fingerprint != command.fingerprint && !crate::mutant!(AnyOperation) =>
        {
            Err(refuse_with(
                Reason::InvalidField,
                "the request id was used for another operation: give each its own sequence",
                [
                    ("field", "request_id".to_owned()),
                    ("limit", "one operation for each sequence".to_owned()),
                ],
            ))
        }
        Some(record) => {
            let decided = decided(&record);
            // Without an answer it waits: the service finds the waiter again.
            Ok(record.answer.and_then(|answer| answer.answer).map(|answer| (answer, decided)))
        }
        // The client came back after it was forgotten, and this may be a retry from before that.
        None if id.sequence < client.first_sequence
            && may_be_forgotten(client.known_from_ms, command, id) =>
        {
            Err(forgotten())
        }
        None if client.open >= REQUESTS_OPEN_MAX
            && !window.keeps_below(id.first_unacknowledged) =>
        {
            Err(refuse(
                Reason::TooManyOpenRequests,
                "too many unacknowledged requests: raise first_unacknowledged",
            ))
        }
        None => Ok(None),
    }
}

fn forgotten() -> Refusal {
    refuse(Reason::RequestForgotten, "a retry of a client that is not known here")
}

/// A client that becomes known by a command.
fn newborn(context: &mut CommandContext<'_>, command: &Command, id: &RequestId) -> RequestClient {
    watch_idle(context, &id.client, context.now_ms);
    let first_sequence = if is_first(command, id) { id.sequence } else { u64::MAX };
    let known_from_ms = context.requests.known_from_ms;
    RequestClient { first_sequence, known_from_ms, ..RequestClient::default() }
}

/// Whether a try of an unknown client may have been applied before, and its answer forgotten with the client.
/// `known_from_ms` is above the time at which any client was seen last that was forgotten.
///
/// Let a try of the command have been applied and kept its answer, at log time `t`. Then its client was seen at `t`
/// (`remember`, `meet` and `settle` say so in the same entry), and log time and `seen_at_ms` never go back. A client
/// that is unknown now was forgotten since, by `client_due`, which raised `known_from_ms` above its last `seen_at_ms`,
/// hence above `t`. So where `t >= known_from_ms` for every try that there can have been, none was applied: this one is
/// the first.
///
/// `not_before_ms` is such a bound for the tries of one node. It is the log time of an entry that the node had applied
/// before it tried at all; a committed entry is in the log of every leader after it, and a leader stamps no entry below
/// the one before it. Nothing is known of when a client tried first that says itself that this is a retry: then the
/// bound is 0, and the retry is executed only while nobody was ever forgotten.
///
/// A first try needs no proof. That it is one says who asks: deadlines are shorter than a client is known by far. For the same
/// reason a client that is known again was forgotten with lower sequences than the one by which it came back.
fn may_be_forgotten(known_from_ms: u64, command: &Command, id: &RequestId) -> bool {
    if is_first(command, id) || crate::mutant!(ForgottenRetry) {
        return false;
    }
    let not_before_ms = if id.attempt > 0 { 0 } else { command.not_before_ms };
    not_before_ms < known_from_ms
}

fn is_first(command: &Command, id: &RequestId) -> bool {
    id.attempt == 0 && command.node_attempt == 0
}

/// The position of a command in the entry that is being applied.
pub(super) fn here(context: &CommandContext<'_>, ordinal: u32) -> Position {
    Position { term: context.term, index: context.index, ordinal, log_time_ms: context.now_ms }
}

fn decided(record: &RequestAnswer) -> Position {
    Position {
        term: record.decided_term,
        index: record.decided_index,
        ordinal: record.decided_ordinal,
        log_time_ms: record.decided_at_ms,
    }
}

/// The same record with an answer, decided there.
fn answered(record: RequestAnswer, answer: Answer, at: Position) -> RequestAnswer {
    RequestAnswer {
        answer: Some(answer),
        decided_term: at.term,
        decided_index: at.index,
        decided_ordinal: at.ordinal,
        decided_at_ms: at.log_time_ms,
        ..record
    }
}

/// The highest attempt seen of a command whose answer is kept; 0 for others.
pub(super) fn newest_attempt(context: &mut CommandContext<'_>, id: &RequestId) -> u32 {
    context.window(&id.client).answer(id.sequence).map_or(0, |record| record.attempt)
}

/// Whether its client has said that it was told the answer of a command, or wants it no longer.
pub(super) fn is_acknowledged(context: &mut CommandContext<'_>, id: &RequestId) -> bool {
    let client = context.window(&id.client).client();
    client.is_some_and(|client| id.sequence < client.first_unacknowledged)
}

/// Remembers how a command ended and where, and forgets what the client has acknowledged.
pub(super) fn remember(
    context: &mut CommandContext<'_>,
    command: &Command,
    outcome: &Outcome,
    position: Position,
) {
    let Some(id) = &command.request_id else { return };
    let answer = match outcome {
        Outcome::Answered(answer) if keeps_no_answer(answer) => return,
        Outcome::Answered(answer) => Some(answer.clone()),
        Outcome::Waiting(_) => None,
    };
    let known = context.window(&id.client).client();
    let mut client = known.unwrap_or_else(|| newborn(context, command, id));
    client.seen_at_ms = context.now_ms;
    client.first_unacknowledged = client.first_unacknowledged.max(id.first_unacknowledged);
    let (slot, fingerprint) = (context.slot.into(), command.fingerprint);
    let mut window = context.window(&id.client);
    // What is left over goes with the next command: below the floor it is never looked at.
    let floor = client.first_unacknowledged;
    forget(&mut window, &mut client, Some(floor));
    let before = window.answer(id.sequence);
    if before.is_none() {
        client.open += 1;
    }
    let was_waiting = before.as_ref().is_some_and(waits);
    let attempt = before.map_or(0, |record| record.attempt).max(id.attempt);
    let waiting = RequestAnswer { slot, attempt, fingerprint, ..RequestAnswer::default() };
    let record = match answer {
        Some(answer) => answered(waiting, answer, position),
        None => waiting,
    };
    client.waiting =
        (client.waiting + u32::from(waits(&record))).saturating_sub(u32::from(was_waiting));
    window.keep(id.sequence, &record);
    window.put_client(client);
}

/// Knows a client from now on, with no answer to keep: its retry is executed.
pub(super) fn meet(context: &mut CommandContext<'_>, command: &Command, id: &RequestId) {
    let known = context.window(&id.client).client();
    let known = known.unwrap_or_else(|| newborn(context, command, id));
    let client = RequestClient { seen_at_ms: context.now_ms, ..known };
    context.window(&id.client).put_client(client);
}

/// Remembers the answers of commands that had waited until now.
pub(super) fn settle(context: &mut CommandContext<'_>) {
    let (now_ms, at) = (context.now_ms, here(context, u32::MAX));
    for settled in &context.output.settled {
        let Some(id) = &settled.request_id else { continue };
        let mut window = context.windows.of(&id.client, &mut context.txn);
        // The client may have acknowledged it meanwhile.
        let Some(record) = window.answer(id.sequence) else { continue };
        if waits(&record)
            && let Some(mut client) = window.client()
        {
            client.waiting = client.waiting.saturating_sub(1);
            // It is idle from here on at the earliest.
            client.seen_at_ms = now_ms;
            window.put_client(client);
        }
        // It was a timer, or a command that had another place in the entry.
        window.keep(id.sequence, &answered(record, settled.answer.clone(), at));
    }
}

/// A client that has been idle for long is forgotten; until all its answers are gone this takes several steps.
pub(super) fn client_due(context: &mut CommandContext<'_>, rest: &Bytes) {
    let name = std::str::from_utf8(rest).expect("a client name is text");
    let Some(mut client) = context.window(name).client() else { return };
    if client.waiting > 0 {
        return watch_idle(context, name, context.now_ms);
    }
    if context.now_ms < client.seen_at_ms.saturating_add(context.requests.idle_ms) {
        return watch_idle(context, name, client.seen_at_ms);
    }
    // Until the last step, what was forgotten by the steps before must not be executed again.
    client.first_unacknowledged = u64::MAX;
    let mut window = context.window(name);
    forget(&mut window, &mut client, None);
    if client.open == 0 {
        window.forget_client();
        context.output.forgotten_seen_at_ms = Some(client.seen_at_ms);
    } else {
        window.put_client(client);
        watch_idle(context, name, client.seen_at_ms);
    }
}

/// Refusals that a retry may outlive: remembering them would hide the answer of the first try, or of a later one.
fn keeps_no_answer(answer: &Answer) -> bool {
    match &answer.answer {
        Some(answer::Answer::Refusal(refusal)) => {
            refusal.reason().row().effect != RefusalEffect::NoTry
        }
        // A long poll asks again under the same id until there is something.
        Some(answer::Answer::Dequeue(response)) => queue::is_nothing(response),
        _ => false,
    }
}

/// Forgets a client's answers below a sequence, or all, as many as one step may.
fn forget(window: &mut ClientWindow<'_, '_>, client: &mut RequestClient, below: Option<u64>) {
    let (count, waiting) = window.forget(below, ANSWERS_FORGOTTEN_MAX);
    client.open = client.open.saturating_sub(count);
    client.waiting = client.waiting.saturating_sub(waiting);
}

fn watch_idle(context: &mut CommandContext<'_>, name: &str, seen_at_ms: u64) {
    let due =
        seen_at_ms.saturating_add(context.requests.idle_ms).max(context.now_ms.saturating_add(1));
    let slot = std::mem::replace(&mut context.slot, SYSTEM_SLOT);
    timers::set(context, due, Kind::RequestClient, name.as_bytes());
    context.slot = slot;
}
