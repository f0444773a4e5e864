//! Request ids: a command that is sent again takes effect once and gets its first answer again.
//!
//! Source: D. Ongaro, Consensus: Bridging Theory and Practice (2014), section 6.3.

use bytes::Bytes;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::{Answer, RequestAnswer, RequestClient};

use super::{Outcome, Scope, Verdict, refuse, timers};
use crate::key::{Key, Kind};
use crate::limits::{KEYS_PER_COMMAND_MAX, REQUEST_CLIENT_IDLE_MS, REQUESTS_OPEN_MAX};
use crate::slot::SYSTEM_SLOT;
use trefoil_proto::internal::v1::Refusal;

/// The remembered answer; none when the command is to be executed.
pub(super) fn recall(scope: &Scope<'_>, id: &RequestId) -> Result<Option<Verdict>, Refusal> {
    let client = scope.txn.get_message::<RequestClient>(client_key(&id.client).bytes());
    let Some(client) = client else {
        if id.attempt > 0 {
            return Err(refuse(
                Reason::RequestForgotten,
                "a retry of a client that is not known here",
            ));
        }
        return Ok(None);
    };
    if id.sequence < client.first_unacknowledged {
        return Err(refuse(Reason::RequestForgotten, "the sequence is below first_unacknowledged"));
    }
    match scope.txn.get_message::<RequestAnswer>(answer_key(id).bytes()) {
        Some(RequestAnswer { answer: Some(Answer { answer: Some(answer) }), .. }) => {
            Ok(Some(Verdict::Answer(answer)))
        }
        // It waits: the service finds the waiter again.
        Some(_) => Ok(None),
        None if client.open >= REQUESTS_OPEN_MAX
            && id.first_unacknowledged <= client.first_unacknowledged =>
        {
            Err(refuse(
                Reason::TooManyOpenRequests,
                "too many unacknowledged requests: raise first_unacknowledged",
            ))
        }
        None => Ok(None),
    }
}

/// Remembers how a command ended, and forgets what the client has acknowledged.
pub(super) fn remember(scope: &mut Scope<'_>, id: &RequestId, outcome: &Outcome) {
    let answer = match outcome {
        Outcome::Answered(answer) if keeps_no_answer(answer) => return,
        Outcome::Answered(answer) => Some(answer.clone()),
        Outcome::Waiting(_) => None,
    };
    let known = scope.txn.get_message::<RequestClient>(client_key(&id.client).bytes());
    let is_new = known.is_none();
    let mut client = known.unwrap_or_default();
    if is_new {
        watch_idle(scope, &id.client, scope.now_ms);
    }
    client.seen_at_ms = scope.now_ms;
    forget_below(scope, &id.client, &mut client, id.first_unacknowledged);
    if scope.txn.get(answer_key(id).bytes()).is_none() {
        client.open += 1;
    }
    let record = RequestAnswer { answer, slot: scope.slot.into() };
    scope.txn.put_message(answer_key(id), &record);
    scope.txn.put_message(client_key(&id.client), &client);
}

/// Remembers the answers of commands that had waited until now.
pub(super) fn settle(scope: &mut Scope<'_>) {
    for n in 0..scope.output.settled.len() {
        let settled = &scope.output.settled[n];
        let Some(id) = &settled.request_id else { continue };
        let key = answer_key(id);
        // The client may have acknowledged it meanwhile.
        if let Some(mut record) = scope.txn.get_message::<RequestAnswer>(key.bytes()) {
            record.answer = Some(settled.answer.clone());
            scope.txn.put_message(key, &record);
        }
    }
}

/// A client that has been idle for long is forgotten; until all its answers are gone this takes several steps.
pub(super) fn client_due(scope: &mut Scope<'_>, rest: &Bytes) {
    let name = std::str::from_utf8(rest).expect("a client name is text");
    let Some(mut client) = scope.txn.get_message::<RequestClient>(client_key(name).bytes()) else {
        return;
    };
    if scope.now_ms < client.seen_at_ms.saturating_add(REQUEST_CLIENT_IDLE_MS) {
        return watch_idle(scope, name, client.seen_at_ms);
    }
    forget_below(scope, name, &mut client, u64::MAX);
    if client.open == 0 {
        scope.txn.delete(client_key(name));
    } else {
        scope.txn.put_message(client_key(name), &client);
        watch_idle(scope, name, client.seen_at_ms);
    }
}

/// These refusals are about the request id itself: remembering them would hide the answer of the first try.
fn keeps_no_answer(answer: &Answer) -> bool {
    use trefoil_proto::internal::v1::answer::Answer as A;
    let Some(A::Refusal(refusal)) = &answer.answer else { return false };
    matches!(
        refusal.reason(),
        Reason::RequestForgotten
            | Reason::TooManyOpenRequests
            | Reason::StaleMap
            | Reason::PartitionNotOpen
    )
}

fn forget_below(scope: &mut Scope<'_>, name: &str, client: &mut RequestClient, floor: u64) {
    client.first_unacknowledged = client.first_unacknowledged.max(floor);
    let start = Key::system(Kind::RequestAnswer).text(name);
    let end = start.clone().u64(client.first_unacknowledged);
    // What is left over goes with the next command: below the floor it is never looked at.
    for (key, _) in scope.txn.scan(start.bytes(), end.bytes(), KEYS_PER_COMMAND_MAX) {
        scope.txn.delete(key);
        client.open = client.open.saturating_sub(1);
    }
}

fn watch_idle(scope: &mut Scope<'_>, name: &str, seen_at_ms: u64) {
    let due = seen_at_ms.saturating_add(REQUEST_CLIENT_IDLE_MS).max(scope.now_ms + 1);
    let slot = std::mem::replace(&mut scope.slot, SYSTEM_SLOT);
    timers::set(scope, due, Kind::RequestClient, name.as_bytes());
    scope.slot = slot;
}

fn client_key(name: &str) -> Key {
    Key::system(Kind::RequestClient).tail(name.as_bytes())
}

fn answer_key(id: &RequestId) -> Key {
    Key::system(Kind::RequestAnswer).text(&id.client).u64(id.sequence)
}
