//! Cached values: versions, expiry by log time, and the state of each line.

use bytes::Bytes;
use prost::Message as _;
use trefoil_proto::cache::v1 as api;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{CacheItem, Refusal, answer};

use super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome, answered, refuse,
};
use super::{namespace_copy, timers};
use crate::check;
use crate::key::{Key, Kind};
use crate::limits::{KEY_BYTES_MAX, NAME_BYTES_MAX};
use crate::slot;
use crate::store::Store;

/// Bytes of a record's key before the part that timers keep: slot and kind.
const HEAD: usize = 2 + 1;

/// Stores a value; the writer's line is Modified and every other copy invalid.
pub(super) fn put(context: &mut CommandContext<'_>, request: &api::PutRequest) -> CommandResult {
    let key = item_key(context.slot, &request.namespace, &request.key)?;
    if check::value_bytes(request.value.as_ref()).is_none() {
        return Err(check::invalid("value", "set: either data or text"));
    }
    namespace_copy::must_be_usable(context, &request.namespace)?;
    let known = context.txn.get_message::<CacheItem>(&key);
    clear_timer(context, &key, known.as_ref());
    let expires_at_ms =
        if request.ttl_ms == 0 { 0 } else { context.now_ms.saturating_add(request.ttl_ms) };
    let mut version = next_version(context);
    if crate::mutant!(VersionFromItem) {
        version = known.map_or(0, |item| item.version) + 1;
    }
    let item = CacheItem { value: request.value.clone(), version, expires_at_ms };
    context.txn.put_message(key.clone(), &item);
    if expires_at_ms > 0 {
        timers::set(context, expires_at_ms, Kind::CacheItem, &key[HEAD..]);
    }
    let agent = context.command.map_or(0, |command| command.agent);
    context.output.lines.push((key, Some(agent)));
    let state = api::LineState::Modified.into();
    Ok(CommandOutcome::Answer(answer::Answer::Put(api::PutResponse {
        header: None,
        version,
        state,
    })))
}

/// Removes a value. One whose time is up is not there.
pub(super) fn delete(
    context: &mut CommandContext<'_>,
    request: &api::DeleteRequest,
) -> CommandResult {
    let key = item_key(context.slot, &request.namespace, &request.key)?;
    let known =
        context.txn.get_message::<CacheItem>(&key).filter(|item| !is_over(item, context.now_ms));
    let deleted = known.is_some();
    let mut version = 0;
    if deleted {
        clear_timer(context, &key, known.as_ref());
        version = next_version(context);
        context.txn.delete(key.clone());
        context.output.lines.push((key, None));
    }
    Ok(CommandOutcome::Answer(answer::Answer::Delete(api::DeleteResponse {
        header: None,
        deleted,
        version,
    })))
}

/// A value's time may be up: its own deadline decides.
pub(super) fn item_due(context: &mut CommandContext<'_>, rest: &Bytes) {
    let key = Bytes::from(Key::new(context.slot, Kind::CacheItem).tail(rest));
    let Some(item) = context.txn.get_message::<CacheItem>(&key) else { return };
    if is_over(&item, context.now_ms) {
        context.txn.delete(key.clone());
        context.output.counts.cache_expired(1);
        context.output.lines.push((key, None));
    }
}

/// Reads the latest value. Between log time and the leader's clock nobody can say whether a value is still there:
/// log time has to move first.
pub(super) fn get(
    context: &mut QueryContext<'_, impl Store>,
    request: &api::GetRequest,
) -> QueryOutcome {
    let QueryContext { store, slot, agent, now_ms, .. } = *context;
    let log_time_ms = context.progress.log_time_ms;
    let key = match item_key(slot, &request.namespace, &request.key) {
        Ok(key) => key,
        Err(refusal) => return answered(refusal),
    };
    // Decoded from the shared buffer, so that the value is not copied.
    let item = store
        .get(&key)
        .map(|item| CacheItem::decode(item).expect("a stored value is what this version wrote"));
    let Some(item) = item.filter(|item| !is_over(item, log_time_ms)) else {
        let missing = api::GetResponse {
            state: api::LineState::Invalid.into(),
            ..api::GetResponse::default()
        };
        return answered(answer::Answer::Get(missing));
    };
    if is_over(&item, now_ms) {
        if crate::mutant!(DueReadAnswered) {
            return answered(answer::Answer::Get(api::GetResponse::default()));
        }
        return QueryOutcome::Due(item.expires_at_ms);
    }
    answered(answer::Answer::Get(api::GetResponse {
        header: None,
        hit: true,
        value: item.value,
        version: item.version,
        state: context.directory.read(&key, agent).into(),
        ttl_ms: item.expires_at_ms.saturating_sub(now_ms.max(log_time_ms)),
    }))
}

fn is_over(item: &CacheItem, now_ms: u64) -> bool {
    item.expires_at_ms > 0 && item.expires_at_ms <= now_ms
}

/// Key of the record, for a command that reached the key's own slot.
fn item_key(slot: u16, namespace: &str, key: &str) -> Result<Bytes, Refusal> {
    check::text("namespace", namespace, 1, NAME_BYTES_MAX)?;
    check::text("key", key, 1, KEY_BYTES_MAX)?;
    if slot != slot::of_cache(namespace, key) {
        return Err(refuse(Reason::StaleMap, "the key lives in another slot"));
    }
    Ok(Key::new(slot, Kind::CacheItem).text(namespace).tail(key.as_bytes()).into())
}

fn clear_timer(context: &mut CommandContext<'_>, key: &Bytes, item: Option<&CacheItem>) {
    if let Some(item) = item.filter(|item| item.expires_at_ms > 0) {
        timers::clear(context, item.expires_at_ms, Kind::CacheItem, &key[HEAD..]);
    }
}

/// One counter for the keys of a slot: it outlives them, so a key's versions rise over its deletion.
fn next_version(context: &mut CommandContext<'_>) -> u64 {
    let key = Key::new(context.slot, Kind::CacheVersion);
    let last = context.txn.get(key.bytes());
    let last = last.map_or(0, |last| {
        u64::from_be_bytes(last[..].try_into().expect("a version counter has 8 bytes"))
    });
    context.txn.put(key, (last + 1).to_be_bytes().to_vec());
    last + 1
}
