//! Fences: what is known of a call's token is found out once, before anything is proposed, and goes along with the command.
//!
//! The shard of the data says whether it has seen the token. Where it has not, the lock's shard is asked; what it said is
//! remembered here for all calls under the token. `core/src/machine/fence.rs` says why that may be old.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::Mutex as AsyncMutex;
use tokio::time::timeout_at;
use trefoil_core::limits::FENCES_KNOWN_MAX;
use trefoil_core::machine::fenced;
use trefoil_core::{ShardId, slot};
use trefoil_proto::cache::v1::{GetRequest, GetResponse};
use trefoil_proto::common::v1::{Fence, Reason, RequestId};
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::internal::v1::{
    Access, CheckedFence, FindMark, Refusal, TokenStanding, TouchFence, answer,
};
use trefoil_proto::lock::v1::{LockMode, ValidateTokenRequest};
use trefoil_proto::reason::{RefusalEffect, Retry};

use super::operation::Operation;
use super::{Api, CallContext, Context, Decided, Shards, expect_answer, other_answer, refusal};
use crate::authorize::{Action, Principal, Resource, access};
use crate::config::Service;

/// A shard that forgets marks all the time may refuse what was just validated; so often it is asked again.
const ROUNDS: usize = 4;

/// The fence of a call.
#[derive(Debug)]
pub(super) struct Shown {
    fence: Fence,
    /// What lets its caller ask about the lock.
    access: Arc<Access>,
}

/// A token at a shard.
type MarkKey = (ShardId, String, String, u64);
/// What is known of it. Whoever holds the lock finds it out for all who wait.
type KnownFence = Arc<AsyncMutex<Option<CheckedToken>>>;

/// Tokens that were found out about.
#[derive(Debug, Default)]
pub(super) struct Fences {
    known: Mutex<BTreeMap<MarkKey, KnownFence>>,
}

#[derive(Clone, Debug)]
struct CheckedToken {
    checked: CheckedFence,
    /// The token was the shard's mark, or the shard was used under it since.
    at_mark: bool,
    /// Why the token is not good.
    refusal: Option<Refusal>,
}

impl Fences {
    fn at(&self, key: &MarkKey) -> KnownFence {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(found) = known.get(key) {
            return Arc::clone(found);
        }
        if known.len() >= FENCES_KNOWN_MAX {
            // Any of them: it is found out again.
            known.pop_first();
        }
        Arc::clone(known.entry(key.clone()).or_default())
    }

    fn forget(&self, key: &MarkKey) {
        self.known.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

impl Shown {
    fn key(&self, shard: ShardId) -> MarkKey {
        (shard, self.fence.namespace.clone(), self.fence.lock.clone(), self.fence.token)
    }
}

impl<S: Shards> Api<S> {
    /// Takes the fence out of an operation, for a caller who may use its lock.
    pub(super) fn shown(
        &self,
        principal: &Principal,
        operation: &mut Operation,
    ) -> Result<Option<Arc<Shown>>, Refusal> {
        let Some(fence) = operation.fence_mut().and_then(Option::take) else { return Ok(None) };
        let lock = Resource::Lock { namespace: &fence.namespace, name: &fence.lock };
        (self.authorizer)(principal, Action::UseLock, lock)?;
        self.is_on(Service::Lock)?;
        let access = Arc::new(access(principal, Action::UseLock, lock));
        Ok(Some(Arc::new(Shown { fence, access })))
    }

    /// Has a command applied under the fence of its call, where it has one.
    pub(super) async fn fenced(
        &self,
        slot: u16,
        id: Option<RequestId>,
        operation: Command,
        context: &Context,
    ) -> Result<Decided, Refusal> {
        let Some(shown) = &context.fence else {
            return self.command(slot, id, operation, &context.ask).await;
        };
        let key = shown.key(self.shard(slot));
        // A retry goes to the log whatever is known: an earlier try may have taken effect while the token was good, and
        // only the shard's memory of the request can tell.
        let is_retry = id.as_ref().is_some_and(|id| id.attempt > 0);
        let mut end = Err(unknown());
        for _ in 0..ROUNDS {
            let found = self.found(shown, slot, &context.ask).await?;
            if let Some(refusal) = found.refusal.filter(|_| !is_retry) {
                self.metrics.own.fences_refused.inc();
                return Err(refusal);
            }
            let fence = Some(found.checked.clone());
            end = self.send(slot, id.clone(), operation.clone(), fence, &context.ask).await;
            match &end {
                Err(refusal) if refusal.reason() == Reason::FenceNotValidated => {
                    self.fences.forget(&key);
                }
                Err(refusal) if refusal.reason() == Reason::Fenced => {
                    self.metrics.own.fences_refused.inc();
                    self.refused(&key, refusal).await;
                    return end;
                }
                Ok(_) if found.checked.standing() == TokenStanding::Writer && !found.at_mark => {
                    self.reached(&key).await;
                    return end;
                }
                _ => return end,
            }
        }
        end
    }

    /// Reads a value under the fence of its call, where it has one. The mark of a writer is in the log before it reads.
    pub(super) async fn fenced_get(
        &self,
        slot: u16,
        request: GetRequest,
        context: &Context,
    ) -> Result<GetResponse, Refusal> {
        let Some(shown) = &context.fence else {
            let decided = self.query(slot, Query::Get(request), &context.ask).await?;
            return expect_answer!(decided, Get);
        };
        let key = shown.key(self.shard(slot));
        for _ in 0..ROUNDS {
            let found = self.found(shown, slot, &context.ask).await?;
            let raises = found.checked.standing() == TokenStanding::Writer && !found.at_mark;
            if found.refusal.is_none() && raises {
                let touch = Command::TouchFence(TouchFence {});
                match self.fenced(slot, None, touch, context).await {
                    Ok(_) => {}
                    // A read has no end that may have been missed.
                    Err(refusal) if refusal.reason().row().effect == RefusalEffect::Unknown => {
                        return Err(unasked(&refusal));
                    }
                    Err(refusal) => return Err(refusal),
                }
            }
            let query = Query::Get(request.clone());
            match self.fenced_query(slot, query, context).await {
                Err(refusal) if refusal.reason() == Reason::FenceNotValidated => {
                    self.fences.forget(&key);
                }
                end => return expect_answer!(end?, Get),
            }
        }
        Err(unknown())
    }

    /// Asks the shard of a slot under the fence of the call, where it has one.
    pub(super) async fn fenced_query(
        &self,
        slot: u16,
        query: Query,
        context: &Context,
    ) -> Result<Decided, Refusal> {
        let Some(shown) = &context.fence else {
            return self.query(slot, query, &context.ask).await;
        };
        let found = self.found(shown, slot, &context.ask).await?;
        let end = match found.refusal {
            Some(refusal) => Err(refusal),
            None => self.ask(slot, query, Some(found.checked), &context.ask).await,
        };
        if let Err(refusal) = &end
            && refusal.reason() == Reason::Fenced
        {
            self.metrics.own.fences_refused.inc();
            self.refused(&shown.key(self.shard(slot)), refusal).await;
        }
        end
    }

    /// What is known of a token at the shard of a slot; found out where it is not.
    async fn found(
        &self,
        shown: &Shown,
        slot: u16,
        ask: &CallContext,
    ) -> Result<CheckedToken, Refusal> {
        let known = self.fences.at(&shown.key(self.shard(slot)));
        let Ok(mut known) = timeout_at(ask.deadline, known.lock()).await else {
            return Err(refusal(Reason::NoQuorum, "the fence's token was not validated in time"));
        };
        if let Some(found) = &*known {
            return Ok(found.clone());
        }
        let found = self.find_out(shown, slot, ask).await?;
        // That nobody holds the lock under it is true for ever only of a token that is older than a holder's.
        if found.checked.standing() != TokenStanding::NotHeld
            || found.checked.holder_token > shown.fence.token
        {
            *known = Some(found.clone());
        }
        Ok(found)
    }

    async fn find_out(
        &self,
        shown: &Shown,
        slot: u16,
        ask: &CallContext,
    ) -> Result<CheckedToken, Refusal> {
        let Fence { namespace, lock, token } = shown.fence.clone();
        let query = FindMark { namespace: namespace.clone(), lock: lock.clone() };
        let Decided { header, answer } = self.query(slot, Query::FindMark(query), ask).await?;
        let answer::Answer::FoundMark(mark) = answer else { return Err(other_answer()) };
        let mut checked = CheckedFence {
            fence: Some(shown.fence.clone()),
            // Asked before the lock's shard is.
            as_of: header.index,
            ..CheckedFence::default()
        };
        if token <= mark.token {
            let refusal = (token < mark.token).then(|| fenced(&shown.fence, mark.token, 0));
            return Ok(CheckedToken { checked, at_mark: token == mark.token, refusal });
        }
        self.metrics.own.fence_validations.inc();
        let slot = slot::of_locks(&namespace);
        let query = ValidateTokenRequest { namespace, name: lock, fencing_token: token };
        let ask = CallContext { access: Arc::clone(&shown.access), ..ask.clone() };
        let said = self.query(slot, Query::ValidateToken(query), &ask).await;
        let said = expect_answer!(said.map_err(|refusal| unasked(&refusal))?, ValidateToken)?;
        checked.holder_token = said.holder_token;
        let standing = match said.holder.map(|holder| holder.mode()) {
            _ if !said.valid => TokenStanding::NotHeld,
            Some(LockMode::Exclusive | LockMode::Update) => TokenStanding::Writer,
            _ => TokenStanding::Reader,
        };
        checked.set_standing(standing);
        let refusal = (!said.valid).then(|| fenced(&shown.fence, 0, said.holder_token));
        Ok(CheckedToken { checked, at_mark: false, refusal })
    }

    /// The shard was used under the token: it is the mark now, or was.
    async fn reached(&self, key: &MarkKey) {
        if let Some(found) = &mut *self.fences.at(key).lock().await {
            found.at_mark = true;
        }
    }

    /// A newer holder was there: that stays true, and need not be asked again.
    async fn refused(&self, key: &MarkKey, refusal: &Refusal) {
        if refusal.metadata.contains_key("mark")
            && let Some(found) = &mut *self.fences.at(key).lock().await
        {
            found.refusal = Some(refusal.clone());
        }
    }
}

fn unknown() -> Refusal {
    refusal(Reason::FenceNotValidated, "the shard forgets its marks faster than it is told")
}

/// The lock's shard did not answer, and nothing was done. Its leader is none of the caller's business.
fn unasked(refusal: &Refusal) -> Refusal {
    let row = refusal.reason().row();
    if row.effect == RefusalEffect::Unknown || row.retry == Retry::Elsewhere {
        let message = "the shard of the fence's lock did not say whether the token is held";
        return self::refusal(Reason::NoQuorum, message);
    }
    refusal.clone()
}
