//! What a request may be: every field against its limit, before anything is proposed.

use std::collections::BTreeMap;

use trefoil_proto::cache::v1 as cache;
use trefoil_proto::common::v1::{Fence, RequestId, Value, value};
use trefoil_proto::internal::v1::{CallName, Refusal};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::queue::v1 as queue;
pub use trefoil_proto::reason::invalid;

use crate::DRAWN_BYTES;
use crate::limits as l;
use crate::{lease, page};

/// The namespace of a request that names none.
pub const DEFAULT_NAMESPACE: &str = "default";

/// What a lock's mode may be.
pub(crate) const MODES: &str = "SHARED, UPDATE or EXCLUSIVE";

/// Stands between a client's name and the number of a part, in the ids of a request's parts: no client's name has it.
pub const PART_MARK: char = '#';

/// A request that can be checked.
pub trait Check {
    /// Refuses a field that is missing, malformed or beyond its limit, and fills in defaults.
    ///
    /// # Errors
    /// INVALID_FIELD, naming the field and the limit.
    fn check(&mut self) -> Result<(), Refusal>;
}

fn namespace(namespace: &mut String) -> Result<(), Refusal> {
    if namespace.is_empty() {
        DEFAULT_NAMESPACE.clone_into(namespace);
    }
    text("namespace", namespace, 1, l::NAME_BYTES_MAX)
}

/// Refuses a text whose length is out of range.
pub(crate) fn text(field: &str, text: &str, min: usize, max: usize) -> Result<(), Refusal> {
    if (min..=max).contains(&text.len()) {
        return Ok(());
    }
    Err(invalid(field, format_args!("{min} to {max} bytes")))
}

/// Refuses a number that is out of range.
pub(crate) fn number(field: &str, number: u64, min: u64, max: u64) -> Result<(), Refusal> {
    if (min..=max).contains(&number) {
        return Ok(());
    }
    Err(invalid(field, format_args!("{min} to {max}")))
}

/// Facts of a session: few and short.
fn metadata(metadata: &BTreeMap<String, String>) -> Result<(), Refusal> {
    if metadata.len() > l::SESSION_METADATA_ENTRIES_MAX {
        let limit = format!("at most {} entries", l::SESSION_METADATA_ENTRIES_MAX);
        return Err(invalid("metadata", limit));
    }
    for (key, value) in metadata {
        text("metadata.key", key, 1, l::SESSION_METADATA_KEY_BYTES_MAX)?;
        text(&format!("metadata[{key:?}]"), value, 0, l::SESSION_METADATA_VALUE_BYTES_MAX)?;
    }
    let bytes = metadata.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>();
    if bytes > l::SESSION_METADATA_BYTES_MAX {
        let limit = format!("at most {} bytes together", l::SESSION_METADATA_BYTES_MAX);
        return Err(invalid("metadata", limit));
    }
    Ok(())
}

fn mode(mode: i32) -> Result<(), Refusal> {
    match lock::LockMode::try_from(mode) {
        Ok(lock::LockMode::Unspecified) | Err(_) => Err(invalid("mode", MODES)),
        Ok(_) => Ok(()),
    }
}

fn default_mode(mode: &mut i32) {
    if *mode == i32::from(lock::LockMode::Unspecified) {
        *mode = lock::LockMode::Exclusive.into();
    }
}

/// Refuses a list of locks that no call may ask for.
pub(crate) fn wishes(locks: &[lock::LockWish]) -> Result<(), Refusal> {
    if locks.len() > l::LOCKS_PER_ACQUIRE_MAX {
        return Err(invalid("locks", format_args!("at most {} locks", l::LOCKS_PER_ACQUIRE_MAX)));
    }
    for (n, wish) in locks.iter().enumerate() {
        let name = format!("locks[{n}].name");
        text(&name, &wish.name, 1, l::NAME_BYTES_MAX)?;
        if locks[..n].iter().any(|other| other.name == wish.name) {
            return Err(invalid(&name, "another name than those before it"));
        }
        if lock::LockMode::try_from(wish.mode).is_err() {
            return Err(invalid(&format!("locks[{n}].mode"), MODES));
        }
    }
    Ok(())
}

fn page_size(size: &mut u32) -> Result<(), Refusal> {
    if *size == 0 {
        *size = l::PAGE_ITEMS_DEFAULT;
    }
    number("page_size", (*size).into(), 1, l::PAGE_ITEMS_MAX.into())
}

/// A list of what has a name in a namespace.
fn list(of: &mut String, prefix: &str, size: &mut u32, token: &str) -> Result<(), Refusal> {
    namespace(of)?;
    text("prefix", prefix, 0, l::NAME_BYTES_MAX)?;
    page_size(size)?;
    page::check(token)
}

fn some_id(field: &str, id: u64) -> Result<(), Refusal> {
    if id > 0 { Ok(()) } else { Err(invalid(field, "set")) }
}

fn request_id(id: Option<&RequestId>) -> Result<(), Refusal> {
    let Some(id) = id else { return Ok(()) };
    text("request_id.client", &id.client, 1, l::CLIENT_BYTES_MAX)?;
    if id.client.contains(PART_MARK) {
        return Err(invalid("request_id.client", format_args!("without {PART_MARK:?}")));
    }
    command_id(id)
}

/// Checks the fence of a request. Its lock is in the request's own namespace where it names none.
fn fence(fence: Option<&mut Fence>, namespace: &str) -> Result<(), Refusal> {
    let Some(fence) = fence else { return Ok(()) };
    if fence.namespace.is_empty() {
        namespace.clone_into(&mut fence.namespace);
    }
    whole_fence(fence)
}

/// Checks a fence whose namespace is filled in.
pub(crate) fn whole_fence(fence: &Fence) -> Result<(), Refusal> {
    text("fence.namespace", &fence.namespace, 1, l::NAME_BYTES_MAX)?;
    text("fence.lock", &fence.lock, 1, l::NAME_BYTES_MAX)?;
    some_id("fence.token", fence.token)
}

/// Checks the id of a command: its client may be one that the server derived for a part of a request.
pub(crate) fn command_id(id: &RequestId) -> Result<(), Refusal> {
    text("request_id.client", &id.client, 1, l::PART_CLIENT_BYTES_MAX)?;
    some_id("request_id.sequence", id.sequence)?;
    if id.first_unacknowledged > id.sequence {
        return Err(invalid("request_id.first_unacknowledged", "at most request_id.sequence"));
    }
    Ok(())
}

/// Checks the name of a call: a request id, or what was drawn in its place.
pub(crate) fn call_name(call: Option<&CallName>) -> Result<&CallName, Refusal> {
    let call = call.ok_or_else(|| invalid("call", "set"))?;
    match &call.request_id {
        Some(id) => command_id(id)?,
        None if call.drawn.len() == DRAWN_BYTES => {}
        None => return Err(invalid("call", "a request id, or 16 bytes that were drawn")),
    }
    Ok(call)
}

/// Bytes of a value; none where it is missing.
#[must_use]
pub fn value_bytes(value: Option<&Value>) -> Option<usize> {
    match value?.kind.as_ref()? {
        value::Kind::Data(data) => Some(data.len()),
        value::Kind::Text(text) => Some(text.len()),
    }
}

fn value(field: &str, value: Option<&Value>) -> Result<usize, Refusal> {
    let bytes = value_bytes(value).ok_or_else(|| invalid(field, "set: either data or text"))?;
    if bytes <= l::VALUE_BYTES_MAX {
        return Ok(bytes);
    }
    Err(invalid(field, format_args!("at most {} bytes", l::VALUE_BYTES_MAX)))
}

/// Refuses what is too large for a leader to proclaim.
pub(crate) fn proclaimed(value: Option<&Value>) -> Result<(), Refusal> {
    if value_bytes(value).unwrap_or(0) <= l::PROCLAIMED_BYTES_MAX {
        return Ok(());
    }
    Err(invalid("value", format_args!("at most {} bytes", l::PROCLAIMED_BYTES_MAX)))
}

impl Check for lock::OpenSessionRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        number("ttl_ms", self.ttl_ms, l::SESSION_TTL_MS_MIN, l::SESSION_TTL_MS_MAX)?;
        text("owner", &self.owner, 0, l::NAME_BYTES_MAX)?;
        number("lock_delay_ms", self.lock_delay_ms, 0, l::LOCK_DELAY_MS_MAX)?;
        metadata(&self.metadata)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::KeepAliveRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)
    }
}

impl Check for lock::CloseSessionRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::AcquireRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        if self.locks.is_empty() {
            text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
            default_mode(&mut self.mode);
            mode(self.mode)?;
        } else {
            if !self.name.is_empty() || self.mode != i32::from(lock::LockMode::Unspecified) {
                let field = if self.name.is_empty() { "mode" } else { "name" };
                return Err(invalid(field, "left out where locks are named"));
            }
            self.locks.iter_mut().for_each(|wish| default_mode(&mut wish.mode));
            wishes(&self.locks)?;
        }
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)?;
        number("lock_delay_ms", self.lock_delay_ms(), 0, l::LOCK_DELAY_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::AcquireStreamRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        self.acquire.as_mut().ok_or_else(|| invalid("acquire", "set"))?.check()
    }
}

impl Check for lock::ForceReleaseRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::RequestReleaseRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        text("requester", &self.requester, 0, l::NAME_BYTES_MAX)?;
        text("reason", &self.reason, 0, l::NAME_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::KeepAliveStreamRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)
    }
}

impl Check for lock::ValidateTokenRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        some_id("fencing_token", self.fencing_token)
    }
}

impl Check for lock::ConvertRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        mode(self.mode)?;
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::ReleaseAllRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::GetSessionRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)
    }
}

impl Check for lock::ListSessionsRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        page_size(&mut self.page_size)?;
        page::check(&self.page_token)
    }
}

impl Check for lock::DescribeLockRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)
    }
}

impl Check for lock::ListLocksRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        list(&mut self.namespace, &self.prefix, &mut self.page_size, &self.page_token)
    }
}

impl Check for lock::WatchLocksRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 0, l::NAME_BYTES_MAX)?;
        text("prefix", &self.prefix, 0, l::NAME_BYTES_MAX)?;
        if !self.name.is_empty() && !self.prefix.is_empty() {
            return Err(invalid("prefix", "empty where a name is given"));
        }
        let Some(after) = &self.after else { return Ok(()) };
        some_id("after.index", after.index)?;
        some_id("after.shard", after.shard.into())?;
        text("after.cluster_id", &after.cluster_id, 1, l::NAME_BYTES_MAX)
    }
}

impl Check for lock::ListDeadlocksRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)
    }
}

impl Check for lock::ReleaseRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        some_id("session_id", self.session_id)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for queue::CreateQueueRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        fence(self.fence.as_mut(), &self.namespace)?;
        text("queue", &self.queue, 1, l::NAME_BYTES_MAX)?;
        if self.partitions == 0 {
            self.partitions = l::PARTITIONS_DEFAULT;
        }
        number("partitions", self.partitions.into(), 1, l::PARTITIONS_MAX.into())?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for queue::EnqueueRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        fence(self.fence.as_mut(), &self.namespace)?;
        text("queue", &self.queue, 1, l::NAME_BYTES_MAX)?;
        if !(1..=l::BATCH_ITEMS_MAX).contains(&self.messages.len()) {
            return Err(invalid("messages", format_args!("1 to {} messages", l::BATCH_ITEMS_MAX)));
        }
        let mut bytes = 0;
        for (n, message) in self.messages.iter().enumerate() {
            text(&format!("messages[{n}].key"), &message.key, 0, l::KEY_BYTES_MAX)?;
            bytes +=
                message.key.len() + value(&format!("messages[{n}].value"), message.value.as_ref())?;
            let headers =
                message.headers.iter().map(|(name, value)| name.len() + value.len()).sum::<usize>();
            if headers > l::HEADERS_BYTES_MAX {
                let limit = format!("at most {} bytes together", l::HEADERS_BYTES_MAX);
                return Err(invalid(&format!("messages[{n}].headers"), limit));
            }
            bytes += headers;
        }
        if self.messages.len() > 1 && bytes > l::BATCH_BYTES_MAX {
            return Err(invalid(
                "messages",
                format_args!("at most {} bytes together", l::BATCH_BYTES_MAX),
            ));
        }
        request_id(self.request_id.as_ref())
    }
}

impl Check for queue::DequeueRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        fence(self.fence.as_mut(), &self.namespace)?;
        text("queue", &self.queue, 1, l::NAME_BYTES_MAX)?;
        if self.max_messages == 0 {
            self.max_messages = 1;
        }
        number("max_messages", self.max_messages.into(), 1, l::BATCH_ITEMS_MAX as u64)?;
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)?;
        if self.lease_ms == 0 {
            self.lease_ms = l::LEASE_MS_DEFAULT;
        }
        number("lease_ms", self.lease_ms, l::LEASE_MS_MIN, l::LEASE_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for queue::AckRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        fence(self.fence.as_mut(), &self.namespace)?;
        text("queue", &self.queue, 1, l::NAME_BYTES_MAX)?;
        text("lease_id", &self.lease_id, 1, l::NAME_BYTES_MAX)?;
        lease::split(&self.lease_id)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for cache::PutRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        fence(self.fence.as_mut(), &self.namespace)?;
        text("key", &self.key, 1, l::KEY_BYTES_MAX)?;
        value("value", self.value.as_ref())?;
        number("ttl_ms", self.ttl_ms, 0, l::CACHE_TTL_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for cache::GetRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        fence(self.fence.as_mut(), &self.namespace)?;
        text("key", &self.key, 1, l::KEY_BYTES_MAX)
    }
}

impl Check for cache::DeleteRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        fence(self.fence.as_mut(), &self.namespace)?;
        text("key", &self.key, 1, l::KEY_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

mod barrier;
mod election;
mod namespace;
mod semaphore;

pub(crate) use self::namespace::{deletable, namespace_settings, unknown_namespaces};

#[cfg(test)]
mod tests;
