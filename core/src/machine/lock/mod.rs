//! Sessions and locks.
//!
//! A session is judged by its stored values wherever it is met, never by whether its timer has fired: a lock whose
//! holder's time has come is free, a waiter whose time has come is passed over. Sweeping away what an ended session
//! leaves behind therefore may take as many steps as it likes.
//!
//! A record is written by the file that owns it, and by the others through that:
//!
//! | records | owner |
//! | --- | --- |
//! | LockNamespace, Session, Lock, Claim | `mod.rs`: `put_counters`, `put_session`, `change_lock`, `change_claim`, so that what they count is right; `request.rs` notes in a claim what somebody asked |
//! | SessionMetadata | `session.rs` |
//! | Holder; a hold from its grant to its end | `handoff.rs` |
//! | Waiter, Wait | `acquire.rs` puts them, `handoff.rs` takes them out, `several.rs` moves one of several |
//! | Deadlock | `deadlock.rs` |
//! | Proclaimed | `election.rs` |
//! | Semaphore | `semaphore.rs` |
//! | Latch | `latch.rs` |
//! | Barrier, Entered | `barrier.rs` |

mod acquire;
mod barrier;
mod call;
mod cancel;
mod convert;
mod deadlock;
mod election;
mod event;
mod force;
mod handoff;
mod keys;
mod latch;
mod line;
mod release;
mod request;
mod retry;
mod semaphore;
mod session;
mod several;
mod view;

use std::collections::BTreeSet;

use bytes::{Buf as _, Bytes};
use prost::Message;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    Answer, CallName, CancelAcquire, Claim, Command, Hold, Lock, LockNamespace, LoseCaller,
    Refusal, Session, Wait, answer,
};
use trefoil_proto::lock::v1::{self as api, LockMode};

pub(super) use self::handoff::{lock_due, wait_due};
use self::keys::{LockKeys, number_of};
pub(super) use self::retry::recheck;
use self::semaphore::permits_granted;
pub(super) use self::session::{session_due, what_is_left};

/// Everything that has the name of a command or a query.
pub(super) mod handlers {
    pub(in super::super) use super::acquire::*;
    pub(in super::super) use super::barrier::*;
    pub(in super::super) use super::cancel::*;
    pub(in super::super) use super::convert::*;
    pub(in super::super) use super::election::*;
    pub(in super::super) use super::event::*;
    pub(in super::super) use super::force::*;
    pub(in super::super) use super::latch::*;
    pub(in super::super) use super::line::*;
    pub(in super::super) use super::release::*;
    pub(in super::super) use super::request::*;
    pub(in super::super) use super::semaphore::*;
    pub(in super::super) use super::session::*;
    pub(in super::super) use super::view::*;
}

use super::context::{CommandContext, WaiterId, refuse, refuse_with};
use crate::key::Key;
use crate::limits::{
    ANSWERS_FORGOTTEN_MAX, KEYS_PER_COMMAND_MAX, LOCKS_PER_ACQUIRE_MAX, NAME_BYTES_MAX,
};
use crate::store::{decode, prefix_end};
use crate::{check, slot};

/// Claims and waits that one step may end. Each costs at most twelve keys: its lock, holder, waiter, wait, timer, two
/// claims, two sessions, the answer of its request id, the client of that, and the namespace. A leadership has no holder
/// but a value, and the campaign that it passes to another. A wait for several locks counts once for each. What is begun
/// with too little left is ended all the same: the room for that is kept back.
const STEP_MAX: usize =
    (KEYS_PER_COMMAND_MAX - ANSWERS_FORGOTTEN_MAX - 16 * LOCKS_PER_ACQUIRE_MAX) / 12;

/// The records of one namespace, as one step of a command sees and changes them. Nothing is held in memory between
/// calls: every record is read where it is needed.
struct LockTxn<'s, 'a> {
    context: &'s mut CommandContext<'a>,
    keys: LockKeys<'s>,
    /// Claims and waits that this step may still end.
    left: usize,
    /// Locks that a wait for several does not stand in the order of any more: their next waiters may have their turn.
    left_behind: BTreeSet<String>,
}

impl<'s, 'a> LockTxn<'s, 'a> {
    /// The namespace of a timer.
    fn new(context: &'s mut CommandContext<'a>, namespace: &'s str) -> Self {
        let keys = LockKeys { slot: context.slot, namespace };
        Self { context, keys, left: STEP_MAX, left_behind: BTreeSet::new() }
    }

    /// The namespace of a command, whose content may be anything.
    fn checked(context: &'s mut CommandContext<'a>, namespace: &'s str) -> Result<Self, Refusal> {
        check_place(context.slot, namespace)?;
        Ok(Self::new(context, namespace))
    }

    /// Names a call that waits, the same for each of its retries: the key of its wait.
    fn waiter_id(&self, session_id: u64, ordinal: u64) -> WaiterId {
        WaiterId(self.keys.wait(session_id, ordinal).into())
    }

    fn get<M: Message + Default>(&self, key: &Key) -> Option<M> {
        self.context.txn.get_message(key.bytes())
    }

    fn counters(&self) -> LockNamespace {
        self.get(&self.keys.namespace()).unwrap_or_default()
    }

    fn put_counters(&mut self, counters: &LockNamespace) {
        self.context.txn.put_message(self.keys.namespace(), counters);
    }

    fn session(&self, id: u64) -> Option<Session> {
        self.get(&self.keys.session(id))
    }

    fn put_session(&mut self, id: u64, session: &Session) {
        self.context.txn.put_message(self.keys.session(id), session);
    }

    /// A lock; one that has no record is free.
    fn lock(&self, name: &str) -> Lock {
        self.get(&self.keys.lock(name)).unwrap_or_default()
    }

    /// Changes a lock, and with it what its namespace counts.
    fn change_lock(&mut self, name: &str, change: impl FnOnce(&mut Lock)) {
        let mut lock = self.lock(name);
        let before = u64::from(is_wanted(&lock));
        change(&mut lock);
        let after = u64::from(is_wanted(&lock));
        let key = self.keys.lock(name);
        if is_wanted(&lock) {
            self.context.txn.put_message(key, &lock);
        } else {
            self.context.txn.delete(key);
        }
        if before != after {
            let mut counters = self.counters();
            counters.locks = (counters.locks + after).saturating_sub(before);
            self.put_counters(&counters);
        }
    }

    fn wait(&self, session_id: u64, ordinal: u64) -> Option<Wait> {
        self.get(&self.keys.wait(session_id, ordinal))
    }

    /// The oldest waits of a session.
    fn waits_of(&self, session_id: u64, most: usize) -> Vec<(u64, Wait)> {
        let waits = self.keys.waits(session_id);
        let found = self.context.txn.scan(waits.bytes(), &prefix_end(waits.bytes()), most);
        found.iter().map(|(key, value)| (number_of(key), decode(value))).collect()
    }

    /// What a session has to do with a lock; nothing where there is no record.
    fn claim(&self, session_id: u64, name: &str) -> Claim {
        self.get(&self.keys.claim(session_id, name)).unwrap_or_default()
    }

    /// Changes a claim, and with it what its session counts.
    fn change_claim<T>(
        &mut self,
        session_id: u64,
        name: &str,
        change: impl FnOnce(&mut Claim) -> T,
    ) -> T {
        let mut claim = self.claim(session_id, name);
        let counts =
            |claim: &Claim| (u64::from(claims_anything(claim)), u64::from(claim.hold.is_some()));
        let before = counts(&claim);
        let result = change(&mut claim);
        let after = counts(&claim);
        let key = self.keys.claim(session_id, name);
        if claims_anything(&claim) {
            self.context.txn.put_message(key, &claim);
        } else {
            self.context.txn.delete(key);
        }
        if before != after
            && let Some(mut session) = self.session(session_id)
        {
            session.claims = (session.claims + after.0).saturating_sub(before.0);
            session.held = (session.held + after.1).saturating_sub(before.1);
            self.put_session(session_id, &session);
        }
        result
    }
}

/// What a leader proposes when nobody is left to take the answer of a waiting call; `index` is what was applied then.
#[must_use]
pub fn caller_lost(waiter: &WaiterId, index: u64) -> (u16, Operation) {
    let mut rest = waiter.0.clone();
    let (slot, _kind) = (rest.get_u16(), rest.get_u8());
    let (namespace, session_id, ordinal) = (take_text(&mut rest), rest.get_u64(), rest.get_u64());
    (slot, Operation::LoseCaller(LoseCaller { namespace, session_id, ordinal, index }))
}

/// Takes back what a command may get that acquires, unless it was sent again after an index that is still to be filled
/// in; none for other commands.
#[must_use]
pub fn take_back(command: &Command) -> Option<CancelAcquire> {
    let cancel = match command.operation.as_ref()? {
        Operation::Acquire(request) => CancelAcquire {
            namespace: request.namespace.clone(),
            session_id: request.session_id,
            name: request.name.clone(),
            locks: request.locks.clone(),
            ..CancelAcquire::default()
        },
        Operation::Campaign(request) => CancelAcquire {
            namespace: request.namespace.clone(),
            session_id: request.session_id,
            name: request.name.clone(),
            ..CancelAcquire::default()
        },
        Operation::AcquirePermits(request) => CancelAcquire {
            namespace: request.namespace.clone(),
            session_id: request.session_id,
            name: request.name.clone(),
            permits: request.permits.max(1),
            ..CancelAcquire::default()
        },
        _ => return None,
    };
    let call = CallName { request_id: command.request_id.clone(), drawn: command.drawn.clone() };
    Some(CancelAcquire { call: Some(call), ..cancel })
}

/// Whether an answer is a grant that [`take_back`] takes back.
#[must_use]
pub fn is_grant(answer: &Answer) -> bool {
    match &answer.answer {
        Some(answer::Answer::Acquire(response)) => response.acquired,
        Some(answer::Answer::AcquirePermits(response)) => response.acquired,
        _ => false,
    }
}

impl CommandContext<'_> {
    /// The name of the command's call, by which its wait and its grant know it.
    fn call_name(&self) -> Result<CallName, Refusal> {
        let call = self.command.map(|command| {
            let Command { request_id, drawn, .. } = command;
            CallName { request_id: request_id.clone(), drawn: drawn.clone() }
        });
        check::call_name(call.as_ref()).map(stripped)
    }
}

/// Whether two sessions cannot hold a lock at the same time.
fn conflict(one: LockMode, other: LockMode) -> bool {
    use LockMode::{Shared, Update};
    if crate::mutant!(UpdateBesideUpdate) && (one, other) == (Update, Update) {
        return false;
    }
    !matches!((one, other), (Shared, Shared | Update) | (Update, Shared))
}

/// The mode that a request names; none at all is refused or means the one given.
fn mode_of(mode: i32, unspecified: Option<LockMode>) -> Result<LockMode, Refusal> {
    match LockMode::try_from(mode) {
        Ok(LockMode::Unspecified) => unspecified,
        Ok(mode) => Some(mode),
        Err(_) => None,
    }
    .ok_or_else(|| check::invalid("mode", check::MODES))
}

fn claims_anything(claim: &Claim) -> bool {
    claim.hold.is_some() || !claim.ordinals.is_empty()
}

/// Whether a lock has a record.
fn is_wanted(lock: &Lock) -> bool {
    is_in_use(lock) || lock.permits > 0
}

/// Whether a lock is held, waited for or delayed.
fn is_in_use(lock: &Lock) -> bool {
    lock.session_id != 0 || lock.shared > 0 || lock.waiters > 0 || delayed_until_ms(lock) > 0
}

/// Until when an expired holder of each mode keeps out those whom it kept out before; 0 where there is no delay.
fn delays(lock: &mut Lock) -> [(LockMode, &mut u64); 3] {
    [
        (LockMode::Shared, &mut lock.shared_delay_until_ms),
        (LockMode::Update, &mut lock.update_delay_until_ms),
        (LockMode::Exclusive, &mut lock.exclusive_delay_until_ms),
    ]
}

/// When the last delay of a lock ends.
fn delayed_until_ms(lock: &Lock) -> u64 {
    let mut lock = *lock;
    delays(&mut lock).into_iter().map(|(_, until_ms)| *until_ms).max().unwrap_or(0)
}

/// Whether a caller's token, 0 for any, is that of a grant: its present one, or the one before its last conversion.
fn names_grant(hold: &Hold, token: u64) -> bool {
    token == 0 || token == hold.token || token == hold.former_token
}

fn check_place(slot: u16, namespace: &str) -> Result<(), Refusal> {
    check_name("namespace", namespace)?;
    if slot == slot::of_locks(namespace) {
        return Ok(());
    }
    Err(refuse(Reason::StaleMap, "the slot is not that of the namespace"))
}

/// Refuses a name that no key can hold.
fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    check::text(field, name, 1, NAME_BYTES_MAX)
}

/// A call as waits and grants know it: the same for each retry.
fn stripped(call: &CallName) -> CallName {
    let id = |id: &RequestId| RequestId {
        client: id.client.clone(),
        sequence: id.sequence,
        ..RequestId::default()
    };
    CallName { request_id: call.request_id.as_ref().map(id), drawn: call.drawn.clone() }
}

fn session_expired() -> Refusal {
    refuse(Reason::SessionExpired, "the session is not there: never opened, closed or expired")
}

/// A limit of the state is reached: its name, as in docs/limits.md, and its value.
fn limit_reached(limit: &str, value: impl std::fmt::Display) -> Refusal {
    let message = format!("{limit} of {value} is reached");
    refuse_with(Reason::LimitReached, message, [("limit", limit.to_owned())])
}

/// Refuses one more of what a namespace has so many of: by its own limit, 0 for none, or by the fixed one.
fn refuse_at(count: u64, own: (&str, u64), fixed: (&str, u64)) -> Result<(), Refusal> {
    if own.1 > 0 && count >= own.1 {
        return Err(limit_reached(own.0, own.1));
    }
    if count >= fixed.1 { Err(limit_reached(fixed.0, fixed.1)) } else { Ok(()) }
}

/// The session holds the lock already, and not as strongly as it asks for.
fn convert_needed(hold: &Hold) -> Refusal {
    refuse_with(
        Reason::ConvertNeeded,
        "the session holds the lock in a weaker mode",
        [("mode", mode_name(hold.mode()).to_owned()), ("fencing_token", hold.token.to_string())],
    )
}

/// A mode as people write it.
fn mode_name(mode: LockMode) -> &'static str {
    mode.as_str_name().trim_start_matches("LOCK_MODE_")
}

/// The session holds the lock.
fn granted(hold: &Hold) -> answer::Answer {
    if hold.permits > 0 {
        return permits_granted(hold);
    }
    answer::Answer::Acquire(api::AcquireResponse {
        header: None,
        acquired: true,
        fencing_token: hold.token,
        mode: hold.mode,
        ..api::AcquireResponse::default()
    })
}

/// The session holds the lock in another mode than before.
fn converted(hold: &Hold) -> answer::Answer {
    answer::Answer::Convert(api::ConvertResponse {
        header: None,
        converted: true,
        fencing_token: hold.token,
        mode: hold.mode,
        holder_token: 0,
    })
}

/// Takes a string with its length before it from what a timer was given.
fn take_text(rest: &mut Bytes) -> String {
    let length = usize::from(rest.get_u8());
    text_of(&rest.split_to(length))
}

/// A name in a key.
fn text_of(bytes: &[u8]) -> String {
    std::str::from_utf8(bytes).expect("a name is text").to_owned()
}
