//! What a request may be: every field against its limit, before anything is proposed.

use std::collections::BTreeMap;

use trefoil_proto::cache::v1 as cache;
use trefoil_proto::common::v1::{Reason, RequestId, Value, value};
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::queue::v1 as queue;

use crate::limits as l;
use crate::machine::parse_lease_id;

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

/// A refusal that names a field and its limit.
#[must_use]
pub fn invalid(field: &str, limit: impl std::fmt::Display) -> Refusal {
    Refusal {
        reason: Reason::InvalidField.into(),
        message: format!("{field} must be {limit}"),
        metadata: BTreeMap::from([
            ("field".to_owned(), field.to_owned()),
            ("limit".to_owned(), limit.to_string()),
        ]),
    }
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

fn mode(mode: i32) -> Result<(), Refusal> {
    match lock::LockMode::try_from(mode) {
        Ok(lock::LockMode::Unspecified) | Err(_) => Err(invalid("mode", MODES)),
        Ok(_) => Ok(()),
    }
}

fn page_size(size: &mut u32) -> Result<(), Refusal> {
    if *size == 0 {
        *size = l::PAGE_ITEMS_DEFAULT;
    }
    number("page_size", (*size).into(), 1, l::PAGE_ITEMS_MAX.into())
}

/// The session after which a page begins.
pub(crate) fn session_page(token: &str) -> Result<u64, Refusal> {
    if token.is_empty() {
        return Ok(0);
    }
    token.parse().map_err(|_| invalid("page_token", "the next_page_token of a page"))
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

/// Checks the id of a command: its client may be one that the server derived for a part of a request.
pub(crate) fn command_id(id: &RequestId) -> Result<(), Refusal> {
    text("request_id.client", &id.client, 1, l::PART_CLIENT_BYTES_MAX)?;
    some_id("request_id.sequence", id.sequence)?;
    if id.first_unacknowledged > id.sequence {
        return Err(invalid("request_id.first_unacknowledged", "at most request_id.sequence"));
    }
    Ok(())
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

impl Check for lock::OpenSessionRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        number("ttl_ms", self.ttl_ms, l::SESSION_TTL_MS_MIN, l::SESSION_TTL_MS_MAX)?;
        text("owner", &self.owner, 0, l::NAME_BYTES_MAX)?;
        number("lock_delay_ms", self.lock_delay_ms, 0, l::LOCK_DELAY_MS_MAX)?;
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
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        number("wait_ms", self.wait_ms, 0, l::WAIT_MS_MAX)?;
        if self.mode == i32::from(lock::LockMode::Unspecified) {
            self.set_mode(lock::LockMode::Exclusive);
        }
        mode(self.mode)?;
        number("lock_delay_ms", self.lock_delay_ms(), 0, l::LOCK_DELAY_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for lock::ForceReleaseRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("name", &self.name, 1, l::NAME_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
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
        session_page(&self.page_token).map(drop)
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
        namespace(&mut self.namespace)?;
        text("prefix", &self.prefix, 0, l::NAME_BYTES_MAX)?;
        page_size(&mut self.page_size)?;
        text("page_token", &self.page_token, 0, l::NAME_BYTES_MAX)
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
        text("queue", &self.queue, 1, l::NAME_BYTES_MAX)?;
        text("lease_id", &self.lease_id, 1, l::NAME_BYTES_MAX)?;
        if parse_lease_id(&self.lease_id).is_none() {
            return Err(invalid("lease_id", "the lease_id of a delivery"));
        }
        request_id(self.request_id.as_ref())
    }
}

impl Check for cache::PutRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("key", &self.key, 1, l::KEY_BYTES_MAX)?;
        value("value", self.value.as_ref())?;
        number("ttl_ms", self.ttl_ms, 0, l::CACHE_TTL_MS_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

impl Check for cache::GetRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("key", &self.key, 1, l::KEY_BYTES_MAX)
    }
}

impl Check for cache::DeleteRequest {
    fn check(&mut self) -> Result<(), Refusal> {
        namespace(&mut self.namespace)?;
        text("key", &self.key, 1, l::KEY_BYTES_MAX)?;
        request_id(self.request_id.as_ref())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A breach: what it does to a good request, the field that the refusal names, and its limit.
    type Breach<R> = (fn(&mut R), &'static str, &'static str);

    /// A good request passes; each breach of it is refused by field and limit, in metadata and in words.
    fn assert_refused<R: Check + Clone>(good: &R, breaches: &[Breach<R>]) {
        assert_eq!(good.clone().check(), Ok(()));
        for (breach, field, limit) in breaches {
            let mut request = good.clone();
            breach(&mut request);
            let refusal = request.check().expect_err(field);
            assert_eq!(refusal.reason(), Reason::InvalidField);
            assert_eq!(refusal.metadata["field"], *field);
            assert_eq!(refusal.metadata["limit"], *limit, "{field}");
            assert_eq!(refusal.message, format!("{field} must be {limit}"));
        }
    }

    fn id() -> Option<RequestId> {
        let client = "c".repeat(l::CLIENT_BYTES_MAX);
        Some(RequestId { client, sequence: 1, first_unacknowledged: 1, attempt: 0 })
    }

    fn name() -> String {
        "n".repeat(l::NAME_BYTES_MAX)
    }

    fn long_name() -> String {
        "n".repeat(l::NAME_BYTES_MAX + 1)
    }

    fn data(bytes: usize) -> Option<Value> {
        Some(Value { kind: Some(value::Kind::Data(vec![0; bytes].into())) })
    }

    const NAME: &str = "1 to 255 bytes";

    /// Breaches of a request's namespace.
    macro_rules! namespace {
        ($($more:expr),* $(,)?) => {
            &[(|request| request.namespace = long_name(), "namespace", NAME), $($more),*]
        };
    }

    /// Breaches of a request's namespace and request id.
    macro_rules! namespace_and_id {
        ($($more:expr),* $(,)?) => {
            namespace!(
                (|request| request.request_id.as_mut().unwrap().client.clear(), "request_id.client", "1 to 64 bytes"),
                (|request| request.request_id.as_mut().unwrap().client.push('c'), "request_id.client", "1 to 64 bytes"),
                (|request| request.request_id.as_mut().unwrap().sequence = 0, "request_id.sequence", "set"),
                (
                    |request| request.request_id.as_mut().unwrap().first_unacknowledged = 2,
                    "request_id.first_unacknowledged",
                    "at most request_id.sequence"
                ),
                $($more),*
            )
        };
    }

    #[test]
    fn sessions_name_field_and_limit() {
        let open = lock::OpenSessionRequest {
            namespace: name(),
            ttl_ms: l::SESSION_TTL_MS_MIN,
            owner: name(),
            request_id: id(),
            lock_delay_ms: l::LOCK_DELAY_MS_MAX,
        };
        assert_refused(
            &open,
            namespace_and_id!(
                (|r| r.ttl_ms = l::SESSION_TTL_MS_MIN - 1, "ttl_ms", "100 to 86400000"),
                (|r| r.ttl_ms = l::SESSION_TTL_MS_MAX + 1, "ttl_ms", "100 to 86400000"),
                (|r| r.owner = long_name(), "owner", "0 to 255 bytes"),
                (|r| r.lock_delay_ms += 1, "lock_delay_ms", "0 to 60000"),
            ),
        );
        let keep_alive = lock::KeepAliveRequest { namespace: name(), session_id: 1 };
        assert_refused(&keep_alive, namespace!((|r| r.session_id = 0, "session_id", "set")));
        let close =
            lock::CloseSessionRequest { namespace: name(), session_id: 1, request_id: id() };
        assert_refused(&close, namespace_and_id!((|r| r.session_id = 0, "session_id", "set")));
    }

    #[test]
    fn locks_name_field_and_limit() {
        let acquire = lock::AcquireRequest {
            namespace: name(),
            session_id: 1,
            name: name(),
            wait_ms: l::WAIT_MS_MAX,
            request_id: id(),
            mode: 3,
            lock_delay_ms: Some(l::LOCK_DELAY_MS_MAX),
        };
        assert_refused(
            &acquire,
            namespace_and_id!(
                (|r| r.session_id = 0, "session_id", "set"),
                (|r| r.name.clear(), "name", NAME),
                (|r| r.name = long_name(), "name", NAME),
                (|r| r.wait_ms += 1, "wait_ms", "0 to 86400000"),
                (|r| r.mode = 4, "mode", MODES),
                (|r| r.lock_delay_ms = Some(60_001), "lock_delay_ms", "0 to 60000"),
            ),
        );
        let convert = lock::ConvertRequest {
            namespace: name(),
            session_id: 1,
            name: name(),
            fencing_token: 0,
            mode: 1,
            wait_ms: l::WAIT_MS_MAX,
            request_id: id(),
        };
        assert_refused(
            &convert,
            namespace_and_id!(
                (|r| r.session_id = 0, "session_id", "set"),
                (|r| r.name.clear(), "name", NAME),
                (|r| r.name = long_name(), "name", NAME),
                (|r| r.mode = 0, "mode", MODES),
                (|r| r.mode = 4, "mode", MODES),
                (|r| r.wait_ms += 1, "wait_ms", "0 to 86400000"),
            ),
        );
        let release = lock::ReleaseRequest {
            namespace: name(),
            session_id: 1,
            name: name(),
            fencing_token: 0,
            request_id: id(),
        };
        assert_refused(
            &release,
            namespace_and_id!(
                (|r| r.session_id = 0, "session_id", "set"),
                (|r| r.name.clear(), "name", NAME),
                (|r| r.name = long_name(), "name", NAME),
            ),
        );
    }

    #[test]
    fn what_operators_ask_names_field_and_limit() {
        let describe = lock::DescribeLockRequest { namespace: name(), name: name() };
        assert_refused(&describe, namespace!((|r| r.name.clear(), "name", NAME)));
        let list = lock::ListLocksRequest {
            namespace: name(),
            prefix: name(),
            page_size: l::PAGE_ITEMS_MAX,
            page_token: name(),
        };
        assert_refused(
            &list,
            namespace!(
                (|r| r.prefix = long_name(), "prefix", "0 to 255 bytes"),
                (|r| r.page_size += 1, "page_size", "1 to 1000"),
                (|r| r.page_token = long_name(), "page_token", "0 to 255 bytes"),
            ),
        );
        let sessions = lock::ListSessionsRequest {
            namespace: name(),
            page_size: l::PAGE_ITEMS_MAX,
            page_token: "7".to_owned(),
        };
        assert_refused(
            &sessions,
            namespace!(
                (|r| r.page_size += 1, "page_size", "1 to 1000"),
                (|r| r.page_token.push('x'), "page_token", "the next_page_token of a page"),
            ),
        );
        assert_refused(&lock::ListDeadlocksRequest { namespace: name() }, namespace!());
        let session = lock::GetSessionRequest { namespace: name(), session_id: 1 };
        assert_refused(&session, namespace!((|r| r.session_id = 0, "session_id", "set")));
        let force = lock::ForceReleaseRequest {
            namespace: name(),
            name: name(),
            fencing_token: 0,
            request_id: id(),
        };
        assert_refused(&force, namespace_and_id!((|r| r.name.clear(), "name", NAME)));
        let validate =
            lock::ValidateTokenRequest { namespace: name(), name: name(), fencing_token: 1 };
        assert_refused(
            &validate,
            namespace!(
                (|r| r.name.clear(), "name", NAME),
                (|r| r.fencing_token = 0, "fencing_token", "set"),
            ),
        );
        let all = lock::ReleaseAllRequest { namespace: name(), session_id: 1, request_id: id() };
        assert_refused(&all, namespace_and_id!((|r| r.session_id = 0, "session_id", "set")));
    }

    #[test]
    fn queues_name_field_and_limit() {
        let create = queue::CreateQueueRequest {
            namespace: name(),
            queue: name(),
            partitions: l::PARTITIONS_MAX,
            request_id: id(),
        };
        assert_refused(
            &create,
            namespace_and_id!(
                (|r| r.queue.clear(), "queue", NAME),
                (|r| r.queue = long_name(), "queue", NAME),
                (|r| r.partitions += 1, "partitions", "1 to 1024"),
            ),
        );
        let dequeue = queue::DequeueRequest {
            namespace: name(),
            queue: name(),
            max_messages: 1_000,
            wait_ms: l::WAIT_MS_MAX,
            lease_ms: l::LEASE_MS_MAX,
            request_id: id(),
        };
        assert_refused(
            &dequeue,
            namespace_and_id!(
                (|r| r.queue.clear(), "queue", NAME),
                (|r| r.queue = long_name(), "queue", NAME),
                (|r| r.max_messages += 1, "max_messages", "1 to 1000"),
                (|r| r.wait_ms += 1, "wait_ms", "0 to 86400000"),
                (|r| r.lease_ms += 1, "lease_ms", "100 to 43200000"),
                (|r| r.lease_ms = l::LEASE_MS_MIN - 1, "lease_ms", "100 to 43200000"),
            ),
        );
        let lease_id = "0-1-1".to_owned();
        let ack =
            queue::AckRequest { namespace: name(), queue: name(), lease_id, request_id: id() };
        assert_refused(
            &ack,
            namespace_and_id!(
                (|r| r.queue.clear(), "queue", NAME),
                (|r| r.queue = long_name(), "queue", NAME),
                (|r| r.lease_id.clear(), "lease_id", NAME),
                (|r| r.lease_id = long_name(), "lease_id", NAME),
                (|r| r.lease_id = "0-1".to_owned(), "lease_id", "the lease_id of a delivery"),
            ),
        );
    }

    #[test]
    fn messages_name_field_and_limit() {
        let message = queue::Message {
            key: "k".repeat(l::KEY_BYTES_MAX),
            value: data(500),
            headers: BTreeMap::from([("h".to_owned(), "v".repeat(l::HEADERS_BYTES_MAX - 1))]),
        };
        let messages = vec![message; 100];
        let enqueue =
            queue::EnqueueRequest { namespace: name(), queue: name(), messages, request_id: id() };
        assert_refused(
            &enqueue,
            namespace_and_id!(
                (|r| r.queue.clear(), "queue", NAME),
                (|r| r.queue = long_name(), "queue", NAME),
                (|r| r.messages.clear(), "messages", "1 to 1000 messages"),
                (
                    |r| r.messages = vec![queue::Message::default(); l::BATCH_ITEMS_MAX + 1],
                    "messages",
                    "1 to 1000 messages"
                ),
                (|r| r.messages[7].key.push('k'), "messages[7].key", "0 to 1024 bytes"),
                (|r| r.messages[7].value = None, "messages[7].value", "set: either data or text"),
                (
                    |r| r.messages[7].value = data(l::VALUE_BYTES_MAX + 1),
                    "messages[7].value",
                    "at most 1048576 bytes"
                ),
                (
                    |r| _ = r.messages[99].headers.insert("i".to_owned(), String::new()),
                    "messages[99].headers",
                    "at most 8192 bytes together"
                ),
                (
                    |r| r.messages[7].value = data(l::BATCH_BYTES_MAX / 2),
                    "messages",
                    "at most 1048576 bytes together"
                ),
            ),
        );
        let mut alone = enqueue;
        alone.messages.truncate(1);
        alone.messages[0].value = data(l::VALUE_BYTES_MAX);
        assert_eq!(alone.check(), Ok(()), "a single message may reach its own limits");
    }

    #[test]
    fn the_cache_names_field_and_limit() {
        let key = "k".repeat(l::KEY_BYTES_MAX);
        let put = cache::PutRequest {
            namespace: name(),
            key: key.clone(),
            value: data(l::VALUE_BYTES_MAX),
            ttl_ms: l::CACHE_TTL_MS_MAX,
            request_id: id(),
        };
        assert_refused(
            &put,
            namespace_and_id!(
                (|r| r.key.clear(), "key", "1 to 1024 bytes"),
                (|r| r.key.push('k'), "key", "1 to 1024 bytes"),
                (|r| r.value = None, "value", "set: either data or text"),
                (|r| r.value = Some(Value { kind: None }), "value", "set: either data or text"),
                (|r| r.value = data(l::VALUE_BYTES_MAX + 1), "value", "at most 1048576 bytes"),
                (|r| r.ttl_ms += 1, "ttl_ms", "0 to 31536000000"),
            ),
        );
        let get = cache::GetRequest { namespace: name(), key: key.clone() };
        assert_refused(
            &get,
            namespace!(
                (|r| r.key.clear(), "key", "1 to 1024 bytes"),
                (|r| r.key.push('k'), "key", "1 to 1024 bytes"),
            ),
        );
        let delete = cache::DeleteRequest { namespace: name(), key, request_id: id() };
        assert_refused(
            &delete,
            namespace_and_id!(
                (|r| r.key.clear(), "key", "1 to 1024 bytes"),
                (|r| r.key.push('k'), "key", "1 to 1024 bytes"),
            ),
        );
    }

    #[test]
    fn what_is_left_out_gets_its_default() {
        let mut create =
            queue::CreateQueueRequest { queue: name(), ..queue::CreateQueueRequest::default() };
        assert_eq!(create.check(), Ok(()));
        assert_eq!(
            (&create.namespace[..], create.partitions),
            (DEFAULT_NAMESPACE, l::PARTITIONS_DEFAULT)
        );
        let mut dequeue =
            queue::DequeueRequest { queue: name(), ..queue::DequeueRequest::default() };
        assert_eq!(dequeue.check(), Ok(()));
        assert_eq!((dequeue.max_messages, dequeue.lease_ms), (1, l::LEASE_MS_DEFAULT));
        let mut acquire =
            lock::AcquireRequest { session_id: 1, name: name(), ..lock::AcquireRequest::default() };
        assert_eq!(acquire.check(), Ok(()));
        assert_eq!(acquire.mode(), lock::LockMode::Exclusive);
        let mut list = lock::ListLocksRequest::default();
        assert_eq!(list.check(), Ok(()));
        assert_eq!(list.page_size, l::PAGE_ITEMS_DEFAULT);
    }
}
