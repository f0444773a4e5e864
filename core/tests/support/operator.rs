//! What operators are shown of locks and sessions, in words.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use trefoil_proto::common::v1::value;
use trefoil_proto::internal::v1::{Answer, answer};
use trefoil_proto::lock::v1::{
    Deadlock, DeadlockEdge, Leadership, LockHolder, LockInfo, LockMode, LockWaiter, SemaphoreInfo,
    SessionInfo, SessionLock,
};

use crate::support::{show_answer, shown_token};

/// " shared", " update", " exclusive" or nothing.
pub fn mode(mode: LockMode) -> String {
    if mode == LockMode::Unspecified {
        return String::new();
    }
    format!(" {}", mode.as_str_name().trim_start_matches("LOCK_MODE_").to_lowercase())
}

/// The same, with nothing for what is usual.
pub fn weak(asked: LockMode) -> String {
    if asked == LockMode::Exclusive { String::new() } else { mode(asked) }
}

pub fn show(answer: &Answer) -> String {
    use answer::Answer as A;
    match answer.answer.as_ref().expect("an answer says something") {
        A::DescribeLock(described) => {
            let holders = described.holders.iter().map(|of| format!("  {}\n", holder(of)));
            let waiters = described.waiters.iter().map(|of| format!("  {}\n", waiter(of)));
            let lines = holders.chain(waiters).collect::<String>();
            let delay = delay(described.delayed_ms);
            let (holders, waiters) = (described.holder_count, described.waiter_count);
            format!("holders {holders}, waiters {waiters}{delay}\n{lines}")
        }
        A::ListLocks(listed) => page(listed.locks.iter().map(lock), &listed.next_page_token),
        A::GetSession(got) => {
            let session = got.session.as_ref().expect("a session is described");
            let locks = got.locks.iter().map(|of| format!("  {}\n", session_lock(of)));
            format!("{}\n{}", self::session(session), locks.collect::<String>())
        }
        A::ListSessions(listed) => {
            page(listed.sessions.iter().map(session), &listed.next_page_token)
        }
        A::ValidateToken(validated) => match &validated.holder {
            Some(of) if validated.valid => format!("valid, {}\n", holder(of)),
            None if !validated.valid => {
                format!("not valid, held with token {}\n", validated.holder_token)
            }
            other => panic!("a valid token has its holder: {other:?}"),
        },
        A::Leader(response) => response.leader.as_ref().map_or_else(no_leader, leader),
        A::DescribeSemaphore(described) => {
            let semaphore = described.semaphore.as_ref().expect("a semaphore is described");
            let holders = described.holders.iter().map(|of| format!("  {}\n", holder(of)));
            let waiters = described.waiters.iter().map(|of| format!("  {}\n", waiter(of)));
            let lines = holders.chain(waiters).collect::<String>();
            format!("{}\n{lines}", self::semaphore(semaphore))
        }
        A::ListSemaphores(listed) => {
            page(listed.semaphores.iter().map(semaphore), &listed.next_page_token)
        }
        A::ListDeadlocks(listed) => {
            let all = listed.deadlocks.len();
            let shown = listed.deadlocks.iter().take(3).map(deadlock).collect::<String>();
            format!("{shown}{all} deadlocks\n")
        }
        _ => format!("{}\n", show_answer(answer)),
    }
}

fn no_leader() -> String {
    "no leader\n".to_owned()
}

fn leader(of: &Leadership) -> String {
    let Leadership { session_id, fencing_token, leading_ms, value, .. } = of;
    let value = match value.as_ref().and_then(|value| value.kind.as_ref()) {
        Some(value::Kind::Text(text)) if text.len() > 20 => format!("{} bytes", text.len()),
        Some(value::Kind::Text(text)) => format!("{text:?}"),
        Some(value::Kind::Data(data)) => format!("{data:?}"),
        None => "nothing".to_owned(),
    };
    format!("{session_id} leads with token {fencing_token} for {leading_ms} ms, says {value}\n")
}

fn page(items: impl Iterator<Item = String>, next: &str) -> String {
    let lines = items.map(|item| format!("{item}\n")).collect::<String>();
    let next = if next.is_empty() {
        "the end\n".to_owned()
    } else {
        format!("next: {}\n", shown_token(next))
    };
    lines + &next
}

fn delay(ms: u64) -> String {
    if ms == 0 { String::new() } else { format!(", delayed for {ms} ms") }
}

fn lock(info: &LockInfo) -> String {
    let held = mode(info.mode());
    let by = info.holder.as_ref().map(|of| format!(", {}", holder(of))).unwrap_or_default();
    let LockInfo { name, holder_count, waiter_count, delayed_ms, .. } = info;
    let delay = delay(*delayed_ms);
    format!("{name}:{held} holders {holder_count}, waiters {waiter_count}{by}{delay}")
}

fn holder(of: &LockHolder) -> String {
    let LockHolder { session_id, fencing_token, held_ms, .. } = of;
    let how = how(of.mode(), of.permits);
    format!("held by {session_id}{how} with token {fencing_token} for {held_ms} ms")
}

/// The mode, or how many permits.
fn how(in_mode: LockMode, permits: u64) -> String {
    if permits == 0 { mode(in_mode) } else { format!(" {permits}") }
}

fn semaphore(of: &SemaphoreInfo) -> String {
    let SemaphoreInfo { name, permits, in_use, holder_count, waiter_count } = of;
    format!("{name}: {in_use} of {permits} in use, holders {holder_count}, waiters {waiter_count}")
}

fn waiter(of: &LockWaiter) -> String {
    let waits = if of.converts { "converts to" } else { "waits for" };
    let LockWaiter { session_id, waiting_ms, remaining_ms, .. } = of;
    let all = if of.locks > 1 { format!(", one of {} locks", of.locks) } else { String::new() };
    let how = how(of.mode(), of.permits);
    format!("{session_id} {waits}{how} for {waiting_ms} ms, {remaining_ms} ms more{all}")
}

fn deadlock(of: &Deadlock) -> String {
    let Deadlock { number, session_id, log_time_ms, length, edges } = of;
    let edges = edges.iter().map(|edge| {
        let DeadlockEdge {
            session_id, lock, waiting_ms, waits_for, fencing_token, held_ms, ..
        } = edge;
        let wants = mode(edge.mode());
        let converts = if edge.converts { " to convert" } else { "" };
        let held = mode(edge.held_mode());
        format!(
            "  {session_id} waits{converts} for {lock}{wants} for {waiting_ms} ms, in the way is \
             {waits_for}{held} with token {fencing_token} for {held_ms} ms\n"
        )
    });
    let edges = edges.collect::<String>();
    format!("deadlock {number} of {length}, refused {session_id} at {log_time_ms} ms\n{edges}")
}

fn session(info: &SessionInfo) -> String {
    let SessionInfo { session_id, owner, ttl_ms, remaining_ms, locks, held, metadata } = info;
    let metadata = metadata.iter().map(|(key, value)| format!(", {key}={value:?}"));
    format!(
        "{session_id} of {owner:?}: ttl {ttl_ms} ms, {remaining_ms} ms left, locks {locks}, holds {held}{}",
        metadata.collect::<String>()
    )
}

fn session_lock(of: &SessionLock) -> String {
    format!(
        "{}: holds{} with token {} for {} ms, waits for{} for {} ms",
        of.name,
        how(of.mode(), of.permits),
        of.fencing_token,
        of.held_ms,
        how(of.waits_for(), of.waits_for_permits),
        of.waiting_ms
    )
}
