//! Request ids: a command that is sent again takes effect once and gets its first answer again.
//!
//! Source: D. Ongaro, Consensus: Bridging Theory and Practice (2014), section 6.3.

use bytes::Bytes;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{Answer, Command, Refusal, RequestAnswer, RequestClient, answer};
use trefoil_proto::reason::RefusalEffect;

use super::context::{CommandContext, Outcome, refuse, refuse_with};
use super::{queue, timers};
use crate::key::{Key, Kind};
use crate::limits::{ANSWERS_FORGOTTEN_MAX, REQUESTS_OPEN_MAX};
use crate::slot::SYSTEM_SLOT;
use crate::store::{decode, prefix_end};
use crate::{Position, check};

/// The remembered answer, and where it was decided; none when the command is to be executed.
pub(super) fn recall(
    context: &CommandContext<'_>,
    command: &Command,
    id: &RequestId,
) -> Result<Option<(answer::Answer, Position)>, Refusal> {
    check::command_id(id)?;
    if crate::mutant!(NoDedup) {
        return Ok(None);
    }
    let client = context.txn.get_message::<RequestClient>(client_key(&id.client).bytes());
    let Some(client) = client else {
        if may_be_forgotten(context.requests.known_from_ms, command, id) {
            return Err(forgotten());
        }
        return Ok(None);
    };
    if id.sequence < client.first_unacknowledged {
        return Err(refuse(Reason::RequestForgotten, "the sequence is below first_unacknowledged"));
    }
    match context.txn.get_message::<RequestAnswer>(answer_key(id).bytes()) {
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
        None if client.open >= REQUESTS_OPEN_MAX && !frees_any(context, id) => Err(refuse(
            Reason::TooManyOpenRequests,
            "too many unacknowledged requests: raise first_unacknowledged",
        )),
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
pub(super) fn newest_attempt(context: &CommandContext<'_>, id: &RequestId) -> u32 {
    context
        .txn
        .get_message::<RequestAnswer>(answer_key(id).bytes())
        .map_or(0, |record| record.attempt)
}

/// Whether its client has said that it was told the answer of a command, or wants it no longer.
pub(super) fn is_acknowledged(context: &CommandContext<'_>, id: &RequestId) -> bool {
    let client = context.txn.get_message::<RequestClient>(client_key(&id.client).bytes());
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
    let known = context.txn.get_message::<RequestClient>(client_key(&id.client).bytes());
    let mut client = known.unwrap_or_else(|| newborn(context, command, id));
    client.seen_at_ms = context.now_ms;
    client.first_unacknowledged = client.first_unacknowledged.max(id.first_unacknowledged);
    let end = answers_key(&id.client).u64(client.first_unacknowledged);
    // What is left over goes with the next command: below the floor it is never looked at.
    forget(context, &id.client, &mut client, end.bytes());
    let before = context.txn.get_message::<RequestAnswer>(answer_key(id).bytes());
    if before.is_none() {
        client.open += 1;
    }
    let was_waiting = before.as_ref().is_some_and(waits);
    let attempt = before.map_or(0, |record| record.attempt).max(id.attempt);
    let fingerprint = command.fingerprint;
    let slot = context.slot.into();
    let waiting = RequestAnswer { slot, attempt, fingerprint, ..RequestAnswer::default() };
    let record = match answer {
        Some(answer) => answered(waiting, answer, position),
        None => waiting,
    };
    client.waiting =
        (client.waiting + u32::from(waits(&record))).saturating_sub(u32::from(was_waiting));
    context.txn.put_message(answer_key(id), &record);
    context.txn.put_message(client_key(&id.client), &client);
}

/// Knows a client from now on, with no answer to keep: its retry is executed.
pub(super) fn meet(context: &mut CommandContext<'_>, command: &Command, id: &RequestId) {
    let known = context.txn.get_message::<RequestClient>(client_key(&id.client).bytes());
    let known = known.unwrap_or_else(|| newborn(context, command, id));
    let client = RequestClient { seen_at_ms: context.now_ms, ..known };
    context.txn.put_message(client_key(&id.client), &client);
}

/// Remembers the answers of commands that had waited until now.
pub(super) fn settle(context: &mut CommandContext<'_>) {
    for n in 0..context.output.settled.len() {
        let settled = &context.output.settled[n];
        let Some(id) = &settled.request_id else { continue };
        let (key, client_key) = (answer_key(id), client_key(&id.client));
        // The client may have acknowledged it meanwhile.
        let Some(record) = context.txn.get_message::<RequestAnswer>(key.bytes()) else {
            continue;
        };
        if waits(&record)
            && let Some(mut client) = context.txn.get_message::<RequestClient>(client_key.bytes())
        {
            client.waiting = client.waiting.saturating_sub(1);
            // It is idle from here on at the earliest.
            client.seen_at_ms = context.now_ms;
            context.txn.put_message(client_key, &client);
        }
        // It was a timer, or a command that had another place in the entry.
        let record = answered(record, settled.answer.clone(), here(context, u32::MAX));
        context.txn.put_message(key, &record);
    }
}

/// A client that has been idle for long is forgotten; until all its answers are gone this takes several steps.
pub(super) fn client_due(context: &mut CommandContext<'_>, rest: &Bytes) {
    let name = std::str::from_utf8(rest).expect("a client name is text");
    let Some(mut client) = context.txn.get_message::<RequestClient>(client_key(name).bytes())
    else {
        return;
    };
    if client.waiting > 0 {
        return watch_idle(context, name, context.now_ms);
    }
    if context.now_ms < client.seen_at_ms.saturating_add(context.requests.idle_ms) {
        return watch_idle(context, name, client.seen_at_ms);
    }
    // Until the last step, what was forgotten by the steps before must not be executed again.
    client.first_unacknowledged = u64::MAX;
    forget(context, name, &mut client, &prefix_end(answers_key(name).bytes()));
    if client.open == 0 {
        context.txn.delete(client_key(name));
        context.output.forgotten_seen_at_ms = Some(client.seen_at_ms);
    } else {
        context.txn.put_message(client_key(name), &client);
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

fn waits(record: &RequestAnswer) -> bool {
    record.answer.is_none()
}

/// Whether a command acknowledges any answer that is still kept.
fn frees_any(context: &CommandContext<'_>, id: &RequestId) -> bool {
    let (start, end) =
        (answers_key(&id.client), answers_key(&id.client).u64(id.first_unacknowledged));
    !context.txn.scan(start.bytes(), end.bytes(), 1).is_empty()
}

/// Forgets a client's answers below `end`, as many as one step may.
fn forget(context: &mut CommandContext<'_>, name: &str, client: &mut RequestClient, end: &[u8]) {
    for (key, value) in context.txn.scan(answers_key(name).bytes(), end, ANSWERS_FORGOTTEN_MAX) {
        context.txn.delete(key);
        client.open = client.open.saturating_sub(1);
        client.waiting = client.waiting.saturating_sub(u32::from(waits(&decode(&value))));
    }
}

fn watch_idle(context: &mut CommandContext<'_>, name: &str, seen_at_ms: u64) {
    let due =
        seen_at_ms.saturating_add(context.requests.idle_ms).max(context.now_ms.saturating_add(1));
    let slot = std::mem::replace(&mut context.slot, SYSTEM_SLOT);
    timers::set(context, due, Kind::RequestClient, name.as_bytes());
    context.slot = slot;
}

fn client_key(name: &str) -> Key {
    Key::system(Kind::RequestClient).tail(name.as_bytes())
}

fn answers_key(name: &str) -> Key {
    Key::system(Kind::RequestAnswer).text(name)
}

fn answer_key(id: &RequestId) -> Key {
    answers_key(&id.client).u64(id.sequence)
}
