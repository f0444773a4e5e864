//! Sessions and locks.
//!
//! A session is judged by its stored values wherever it is met, never by whether its timer has fired: a lock whose
//! holder's time has come is free, a waiter whose time has come is passed over. Sweeping away what an ended session
//! leaves behind therefore may take as many steps as it likes.

mod acquire;
mod handoff;
mod session;

use bytes::{Buf as _, Bytes};
use prost::Message;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    Claim, Lock, LockNamespace, LoseCaller, Refusal, Session, Waiter,
};

pub(super) use self::acquire::{acquire, cancel_acquire, lose_caller, release};
pub(super) use self::handoff::waiter_due;
pub(super) use self::session::{close_session, keep_alive, open_session, session_due};
use super::{Scope, WaiterId, refuse, refuse_with};
use crate::key::{Key, Kind};
use crate::limits::{ANSWERS_FORGOTTEN_MAX, KEYS_PER_COMMAND_MAX, NAME_BYTES_MAX};
use crate::{check, slot};

/// Claims and waiters that one step may end. Each costs at most ten keys: its lock, waiter, timer, two claims, two
/// sessions, the answer of its request id, the client of that, and the namespace.
const STEP_MAX: usize = (KEYS_PER_COMMAND_MAX - ANSWERS_FORGOTTEN_MAX) / 10;

/// Bytes of a key before what the service adds: slot and kind.
const KEY_HEAD: usize = 2 + 1;

/// The records of one namespace, as one step of a command sees and changes them.
///
/// Only a [`Lock`] is held in memory over calls, by whoever works on it; everything else is read where it is needed.
struct Space<'s, 'a> {
    scope: &'s mut Scope<'a>,
    namespace: &'s str,
    /// Claims and waiters that this step may still end.
    left: usize,
}

impl<'s, 'a> Space<'s, 'a> {
    /// The namespace of a timer.
    fn new(scope: &'s mut Scope<'a>, namespace: &'s str) -> Self {
        Self { scope, namespace, left: STEP_MAX }
    }

    /// The namespace of a command, whose content may be anything.
    fn checked(scope: &'s mut Scope<'a>, namespace: &'s str) -> Result<Self, Refusal> {
        check_name("namespace", namespace)?;
        if scope.slot != slot::of_locks(namespace) {
            return Err(refuse(Reason::StaleMap, "the slot is not that of the namespace"));
        }
        Ok(Self::new(scope, namespace))
    }

    fn key(&self, kind: Kind) -> Key {
        Key::new(self.scope.slot, kind)
    }

    fn namespace_key(&self) -> Key {
        self.key(Kind::LockNamespace).tail(self.namespace.as_bytes())
    }

    fn session_key(&self, id: u64) -> Key {
        self.key(Kind::Session).text(self.namespace).u64(id)
    }

    fn lock_key(&self, name: &str) -> Key {
        self.key(Kind::Lock).text(self.namespace).tail(name.as_bytes())
    }

    fn waiters_key(&self, name: &str) -> Key {
        self.key(Kind::Waiter).text(self.namespace).text(name)
    }

    fn waiter_key(&self, name: &str, ordinal: u64) -> Key {
        self.waiters_key(name).u64(ordinal)
    }

    fn claims_key(&self, session_id: u64) -> Key {
        self.key(Kind::Claim).text(self.namespace).u64(session_id)
    }

    fn claim_key(&self, session_id: u64, name: &str) -> Key {
        self.claims_key(session_id).tail(name.as_bytes())
    }

    /// Names an Acquire that waits, the same for each of its retries: the key of its waiter.
    fn waiter_id(&self, name: &str, ordinal: u64) -> WaiterId {
        WaiterId(self.waiter_key(name, ordinal).into())
    }

    fn get<M: Message + Default>(&self, key: &Key) -> Option<M> {
        self.scope.txn.get_message(key.bytes())
    }

    fn counters(&self) -> LockNamespace {
        self.get(&self.namespace_key()).unwrap_or_default()
    }

    fn put_counters(&mut self, counters: &LockNamespace) {
        self.scope.txn.put_message(self.namespace_key(), counters);
    }

    fn session(&self, id: u64) -> Option<Session> {
        self.get(&self.session_key(id))
    }

    fn put_session(&mut self, id: u64, session: &Session) {
        self.scope.txn.put_message(self.session_key(id), session);
    }

    /// A lock; one that has no record is free.
    fn lock(&self, name: &str) -> Lock {
        self.get(&self.lock_key(name)).unwrap_or_default()
    }

    fn put_lock(&mut self, name: &str, lock: &Lock) {
        if lock.session_id == 0 && lock.waiters == 0 {
            self.scope.txn.delete(self.lock_key(name));
        } else {
            self.scope.txn.put_message(self.lock_key(name), lock);
        }
    }

    fn waiter(&self, name: &str, ordinal: u64) -> Option<Waiter> {
        self.get(&self.waiter_key(name, ordinal))
    }

    /// What a session has to do with a lock; nothing where there is no record.
    fn claim(&self, session_id: u64, name: &str) -> Claim {
        self.get(&self.claim_key(session_id, name)).unwrap_or_default()
    }

    /// Changes a claim, and with it what its session counts.
    fn change_claim<T>(
        &mut self,
        session_id: u64,
        name: &str,
        change: impl FnOnce(&mut Claim) -> T,
    ) -> T {
        let mut claim = self.claim(session_id, name);
        let before = (u64::from(claims_anything(&claim)), u64::from(claim.holds));
        let result = change(&mut claim);
        let after = (u64::from(claims_anything(&claim)), u64::from(claim.holds));
        let key = self.claim_key(session_id, name);
        if claims_anything(&claim) {
            self.scope.txn.put_message(key, &claim);
        } else {
            self.scope.txn.delete(key);
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

/// What a leader proposes when nobody is left to take the answer of a waiting Acquire; `index` is what was applied then.
#[must_use]
pub fn caller_lost(waiter: &WaiterId, index: u64) -> (u16, Operation) {
    let mut rest = waiter.0.clone();
    let (slot, _kind) = (rest.get_u16(), rest.get_u8());
    let (namespace, name, ordinal) = (take_text(&mut rest), take_text(&mut rest), rest.get_u64());
    (slot, Operation::LoseCaller(LoseCaller { namespace, name, ordinal, index }))
}

fn claims_anything(claim: &Claim) -> bool {
    claim.holds || !claim.waits.is_empty()
}

/// Refuses a name that no key can hold.
fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    check::text(field, name, 1, NAME_BYTES_MAX)
}

/// A request id as waiters and grants know it: the same for each retry.
fn stripped(id: Option<&RequestId>) -> Option<RequestId> {
    id.map(|id| RequestId {
        client: id.client.clone(),
        sequence: id.sequence,
        ..RequestId::default()
    })
}

fn session_expired() -> Refusal {
    refuse(Reason::SessionExpired, "the session is not there: never opened, closed or expired")
}

/// A limit of the state is reached: its name, as in docs/limits.md, and its value.
fn limit_reached(limit: &str, value: impl std::fmt::Display) -> Refusal {
    let message = format!("{limit} of {value} is reached");
    refuse_with(Reason::LimitReached, message, [("limit", limit.to_owned())])
}

/// What a timer needs to find its record: the record's key after slot and kind.
fn timer_rest(key: &Key) -> &[u8] {
    &key.bytes()[KEY_HEAD..]
}

/// Takes a string with its length before it from what a timer was given.
fn take_text(rest: &mut Bytes) -> String {
    let length = usize::from(rest.get_u8());
    let text = rest.split_to(length);
    std::str::from_utf8(&text).expect("a name is text").to_owned()
}
