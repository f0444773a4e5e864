//! What an operator sees of sessions and locks: read at the applied index, changing nothing.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost::Message;
use trefoil_proto::internal::v1::{
    Answer, Claim, Hold, Holder, Lock, Progress, Refusal, Session, SessionMetadata, Wait, Waiter,
    answer,
};
use trefoil_proto::lock::v1::{self as api, LockMode};

use super::super::context::{QueryContext, QueryOutcome, answered};
use super::call::wanted;
use super::keys::{LockKeys, number_of, ordinal_of};
use super::session::due_ms;
use super::{check_name, check_place, delayed_until_ms, is_in_use, session_expired, text_of};
use crate::check;
use crate::key::Key;
use crate::limits::{NAME_BYTES_MAX, PAGE_ITEMS_MAX};
use crate::page::ListId;
use crate::store::{Store, decode, prefix_end};

/// Holders in mode SHARED that are looked at for one that lives: the dead before it are about to be swept away.
const SHARED_SEEN_MIN: usize = 16;

/// The records of one namespace.
pub(in super::super) struct View<'a, S> {
    pub(super) store: &'a S,
    pub(super) keys: LockKeys<'a>,
    /// Log time of the last entry in ms, which decides what is over, and of the first stamped one of the term.
    now_ms: u64,
    term_started_ms: u64,
    /// The leader's estimate of log time in ms: on an idle shard the log stands still, and ages do not.
    estimate_ms: u64,
}

pub(in super::super) fn describe_lock(
    context: &QueryContext<'_, impl Store>,
    request: &api::DescribeLockRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        check_name("name", &request.name)?;
        let lock = view.lock(&request.name);
        Ok(answer::Answer::DescribeLock(api::DescribeLockResponse {
            header: None,
            holders: view.holders(&request.name, &lock, PAGE_ITEMS_MAX as usize),
            waiters: view.waiters(&request.name),
            holder_count: holder_count(&lock),
            waiter_count: lock.waiters,
            delayed_ms: view.until(delayed_until_ms(&lock)),
        }))
    }))
}

pub(in super::super) fn list_locks(
    context: &QueryContext<'_, impl Store>,
    request: &api::ListLocksRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        let api::ListLocksRequest { prefix, page_size, page_token, .. } = request;
        let keys = view.keys;
        let (found, next_page_token) =
            view.page(*page_size, prefix, page_token, |name| keys.lock(name))?;
        let locks = found.into_iter().map(|(name, value)| (name, decode(&value)));
        // A semaphore that nobody uses has a record as well.
        let locks = locks.filter(|(_, lock)| is_in_use(lock));
        let locks = locks.map(|(name, lock)| view.info(name, &lock)).collect();
        Ok(answer::Answer::ListLocks(api::ListLocksResponse {
            header: None,
            locks,
            next_page_token,
        }))
    }))
}

pub(in super::super) fn get_session(
    context: &QueryContext<'_, impl Store>,
    request: &api::GetSessionRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        let session = view.session(request.session_id).ok_or_else(session_expired)?;
        let claims = view.keys.claims(request.session_id);
        let page = PAGE_ITEMS_MAX as usize;
        let found = view.store.scan(claims.bytes(), &prefix_end(claims.bytes()), page);
        let locks = found.iter().map(|(key, value)| {
            view.session_lock(
                request.session_id,
                text_of(&key[claims.bytes().len()..]),
                &decode(value),
            )
        });
        Ok(answer::Answer::GetSession(api::GetSessionResponse {
            header: None,
            session: Some(api::SessionInfo {
                metadata: view.metadata(request.session_id),
                ..view.session_info(request.session_id, &session)
            }),
            locks: locks.collect(),
        }))
    }))
}

pub(in super::super) fn list_sessions(
    context: &QueryContext<'_, impl Store>,
    request: &api::ListSessionsRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        let size = page_size(request.page_size)?;
        let list = ListId::of(view.keys.sessions().bytes());
        let after = list.after(&request.page_token)?.map(str::parse);
        let after =
            after.transpose().map_err(|_| check::invalid("page_token", "that of a page"))?;
        let after = after.unwrap_or(0_u64);
        let start = view.keys.session(after.saturating_add(1));
        let found = view.store.scan(start.bytes(), &prefix_end(view.keys.sessions().bytes()), size);
        let next_page_token = match found.last() {
            Some((key, _)) if found.len() == size => list.token(&number_of(key).to_string()),
            _ => String::new(),
        };
        let sessions = found.iter().map(|(key, value)| (number_of(key), decode(value)));
        let living = sessions.filter(|(_, session)| view.is_living(session));
        let mut metadata = view.metadata_after(after, size);
        let sessions = living.map(|(id, session)| api::SessionInfo {
            metadata: metadata.remove(&id).unwrap_or_default(),
            ..view.session_info(id, &session)
        });
        let sessions = sessions.collect();
        Ok(answer::Answer::ListSessions(api::ListSessionsResponse {
            header: None,
            sessions,
            next_page_token,
        }))
    }))
}

pub(in super::super) fn validate_token(
    context: &QueryContext<'_, impl Store>,
    request: &api::ValidateTokenRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().and_then(|()| {
        check_name("name", &request.name)?;
        let (name, token) = (&request.name, request.fencing_token);
        let lock = view.lock(name);
        let shared = view.get::<Holder>(view.keys.holder(name, token).bytes());
        let session_id = shared.map_or(lock.session_id, |holder| holder.session_id);
        let holder = view.holder(name, session_id).filter(|holder| holder.fencing_token == token);
        let present = view.holders(name, &lock, 1).pop().map_or(0, |holder| holder.fencing_token);
        Ok(answer::Answer::ValidateToken(api::ValidateTokenResponse {
            header: None,
            valid: holder.is_some(),
            holder_token: if holder.is_some() { 0 } else { present },
            holder,
        }))
    }))
}

pub(in super::super) fn list_deadlocks(
    context: &QueryContext<'_, impl Store>,
    request: &api::ListDeadlocksRequest,
) -> QueryOutcome {
    let view = &View::of(context, &request.namespace);
    end(view.checked().map(|()| {
        let deadlocks = view.keys.deadlocks();
        let end = prefix_end(deadlocks.bytes());
        let found = view.store.scan(deadlocks.bytes(), &end, PAGE_ITEMS_MAX as usize);
        let deadlocks = found.iter().map(|(_, value)| decode(value)).collect();
        answer::Answer::ListDeadlocks(api::ListDeadlocksResponse { header: None, deadlocks })
    }))
}

impl<'a, S: Store> View<'a, S> {
    /// Those of a namespace at the applied index: log time alone decides what is over, and ages are told by the leader's
    /// estimate of it.
    pub(super) fn of(context: &QueryContext<'a, S>, namespace: &'a str) -> Self {
        let QueryContext { store, slot, now_ms: estimate_ms, progress, .. } = *context;
        let Progress { log_time_ms: now_ms, term_started_at_ms: term_started_ms, .. } = *progress;
        let (keys, estimate_ms) = (LockKeys { slot, namespace }, estimate_ms.max(now_ms));
        Self { store, keys, now_ms, term_started_ms, estimate_ms }
    }

    pub(super) fn checked(&self) -> Result<(), Refusal> {
        check_place(self.keys.slot, self.keys.namespace)
    }

    pub(super) fn get<M: Message + Default>(&self, key: &[u8]) -> Option<M> {
        self.store.get(key).map(|value| decode(&value))
    }

    pub(super) fn lock(&self, name: &str) -> Lock {
        self.get(self.keys.lock(name).bytes()).unwrap_or_default()
    }

    fn is_living(&self, session: &Session) -> bool {
        !session.ended && self.now_ms < due_ms(session, self.term_started_ms)
    }

    /// A session that lives.
    pub(super) fn session(&self, id: u64) -> Option<Session> {
        self.get(self.keys.session(id).bytes()).filter(|session| self.is_living(session))
    }

    /// Records of one kind by the ends of their keys, which are names: those with a prefix, after the last one of the page
    /// before; and the name after which the next page begins.
    pub(super) fn page(
        &self,
        size: u32,
        prefix: &str,
        page_token: &str,
        key: impl Fn(&str) -> Key,
    ) -> Result<(Vec<(String, Bytes)>, String), Refusal> {
        self.checked()?;
        check::text("prefix", prefix, 0, NAME_BYTES_MAX)?;
        let size = page_size(size)?;
        let (head, first) = (key("").bytes().len(), key(prefix));
        let mut start = first.bytes().to_vec();
        let list = ListId::of(first.bytes());
        if let Some(last) = list.after(page_token)? {
            check::text("page_token", last, 0, NAME_BYTES_MAX)?;
            start = start.max([key(last).bytes(), &[0]].concat());
        }
        let found = self.store.scan(&start, &prefix_end(first.bytes()), size);
        let found = found.into_iter().map(|(key, value)| (text_of(&key[head..]), value));
        let found = found.collect::<Vec<_>>();
        let next = found.last().filter(|_| found.len() == size);
        let next = next.map_or_else(String::new, |(name, _)| list.token(name));
        Ok((found, next))
    }

    pub(super) fn wait(&self, session_id: u64, ordinal: u64) -> Wait {
        self.get(self.keys.wait(session_id, ordinal).bytes()).expect("a waiter has its wait")
    }

    pub(super) fn since(&self, since_ms: u64) -> u64 {
        self.estimate_ms.saturating_sub(since_ms)
    }

    fn until(&self, due_ms: u64) -> u64 {
        due_ms.saturating_sub(self.estimate_ms)
    }

    fn session_info(&self, session_id: u64, session: &Session) -> api::SessionInfo {
        api::SessionInfo {
            session_id,
            owner: session.owner.clone(),
            ttl_ms: session.ttl_ms,
            remaining_ms: self.until(due_ms(session, self.term_started_ms)),
            locks: session.claims,
            held: session.held,
            metadata: BTreeMap::new(),
        }
    }

    fn metadata(&self, session_id: u64) -> BTreeMap<String, String> {
        let metadata = self.get::<SessionMetadata>(self.keys.metadata(session_id).bytes());
        metadata.unwrap_or_default().entries
    }

    /// The metadata of a page of sessions: of those that have any, as many as the page may have.
    fn metadata_after(&self, after: u64, size: usize) -> BTreeMap<u64, BTreeMap<String, String>> {
        let start = self.keys.metadata(after.saturating_add(1));
        let end = prefix_end(self.keys.all_metadata().bytes());
        let found = self.store.scan(start.bytes(), &end, size);
        let entries = |value: &[u8]| decode::<SessionMetadata>(value).entries;
        found.iter().map(|(key, value)| (number_of(key), entries(value))).collect()
    }

    fn session_lock(&self, session_id: u64, name: String, claim: &Claim) -> api::SessionLock {
        let hold = claim.hold.as_ref();
        let wait = claim.ordinals.first().map(|ordinal| self.wait(session_id, *ordinal));
        let want =
            wait.as_ref().and_then(|wait| wanted(&wait.wants).find(|want| want.name == name));
        api::SessionLock {
            mode: hold.map_or(LockMode::Unspecified, Hold::mode).into(),
            fencing_token: hold.map_or(0, |hold| hold.token),
            held_ms: hold.map_or(0, |hold| self.since(hold.since_ms)),
            waits_for: want.map_or(0, |want| want.mode),
            waiting_ms: want.and(wait.as_ref()).map_or(0, |wait| self.since(wait.since_ms)),
            permits: hold.map_or(0, |hold| hold.permits),
            waits_for_permits: want.map_or(0, |want| want.permits),
            name,
        }
    }

    fn info(&self, name: String, lock: &Lock) -> api::LockInfo {
        let holder = self.holders(&name, lock, 1).pop();
        // The living one in mode UPDATE or EXCLUSIVE comes first.
        let strong = holder.as_ref().map(api::LockHolder::mode);
        let strong = strong.filter(|mode| *mode > LockMode::Shared);
        let shared = if lock.shared > 0 { LockMode::Shared } else { LockMode::Unspecified };
        api::LockInfo {
            name,
            mode: strong.unwrap_or(shared).into(),
            holder_count: holder_count(lock),
            waiter_count: lock.waiters,
            delayed_ms: self.until(delayed_until_ms(lock)),
            holder,
        }
    }

    /// The living session that holds a lock in mode UPDATE or EXCLUSIVE.
    fn strong_holder(&self, name: &str, lock: &Lock) -> Option<api::LockHolder> {
        if lock.session_id == 0 { None } else { self.holder(name, lock.session_id) }
    }

    pub(super) fn holder(&self, name: &str, session_id: u64) -> Option<api::LockHolder> {
        let session = self.session(session_id)?;
        let claim = self.get::<Claim>(self.keys.claim(session_id, name).bytes())?;
        let hold = claim.hold?;
        Some(api::LockHolder {
            session_id,
            owner: session.owner,
            mode: hold.mode,
            fencing_token: hold.token,
            held_ms: self.since(hold.since_ms),
            permits: hold.permits,
        })
    }

    pub(super) fn holders(&self, name: &str, lock: &Lock, most: usize) -> Vec<api::LockHolder> {
        let mut holders = Vec::from_iter(self.strong_holder(name, lock));
        if lock.shared == 0 || holders.len() == most {
            return holders;
        }
        let start = self.keys.holders(name);
        let page = most.max(SHARED_SEEN_MIN);
        let found = self.store.scan(start.bytes(), &prefix_end(start.bytes()), page);
        let shared = found.iter().map(|(_, value)| decode::<Holder>(value).session_id);
        let living = shared.filter_map(|session_id| self.holder(name, session_id));
        holders.extend(living.take(most - holders.len()));
        holders
    }

    pub(super) fn waiters(&self, name: &str) -> Vec<api::LockWaiter> {
        let waiters = self.keys.waiters(name);
        let end = prefix_end(waiters.bytes());
        let found = self.store.scan(waiters.bytes(), &end, PAGE_ITEMS_MAX as usize);
        let waiter = |key: &[u8], session_id| {
            let wait = self.wait(session_id, ordinal_of(key));
            let session = self.session(session_id)?;
            let want = wait.wants.iter().find(|want| want.name == name)?;
            Some(api::LockWaiter {
                session_id,
                owner: session.owner,
                mode: want.mode,
                permits: want.permits,
                converts: wait.converts,
                waiting_ms: self.since(wait.since_ms),
                remaining_ms: self.until(wait.deadline_ms),
                locks: u32::try_from(wait.wants.len()).unwrap_or(u32::MAX),
            })
        };
        let of = |value: &[u8]| decode::<Waiter>(value).session_id;
        found.iter().filter_map(|(key, value)| waiter(key, of(value))).collect()
    }
}

fn holder_count(lock: &Lock) -> u64 {
    lock.shared + u64::from(lock.session_id != 0)
}

fn page_size(size: u32) -> Result<usize, Refusal> {
    check::number("page_size", size.into(), 1, PAGE_ITEMS_MAX.into())?;
    Ok(size as usize)
}

pub(super) fn end(found: Result<answer::Answer, Refusal>) -> QueryOutcome {
    match found {
        Ok(answer) => answered(Answer::from(answer)),
        Err(refusal) => answered(refusal),
    }
}
