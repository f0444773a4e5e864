//! Every breach of a request is refused by field and limit.

use trefoil_proto::common::v1::{Reason, WatchPosition};

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

/// Breaches of what asks for a page of names.
macro_rules! page {
    () => {
        namespace!(
            (|request| request.prefix = long_name(), "prefix", "0 to 255 bytes"),
            (|request| request.page_size += 1, "page_size", "1 to 1000"),
            (|request| request.page_token.push('x'), "page_token", "the next_page_token of a page"),
        )
    };
}

/// So many entries, with keys and values of so many bytes.
fn entries(count: usize, key: usize, value: usize) -> BTreeMap<String, String> {
    let entry = |n: usize| match key {
        0 => (String::new(), "v".repeat(value)),
        _ => (format!("{n:0>key$}"), "v".repeat(value)),
    };
    (1..=count).map(entry).collect()
}

#[test]
fn sessions_name_field_and_limit() {
    let open = lock::OpenSessionRequest {
        namespace: name(),
        ttl_ms: l::SESSION_TTL_MS_MIN,
        owner: name(),
        request_id: id(),
        lock_delay_ms: l::LOCK_DELAY_MS_MAX,
        metadata: entries(7, 64, 228),
    };
    assert_refused(
        &open,
        namespace_and_id!(
            (|r| r.ttl_ms = l::SESSION_TTL_MS_MIN - 1, "ttl_ms", "100 to 86400000"),
            (|r| r.ttl_ms = l::SESSION_TTL_MS_MAX + 1, "ttl_ms", "100 to 86400000"),
            (|r| r.owner = long_name(), "owner", "0 to 255 bytes"),
            (|r| r.lock_delay_ms += 1, "lock_delay_ms", "0 to 60000"),
            (|r| r.metadata = entries(17, 2, 0), "metadata", "at most 16 entries"),
            (|r| r.metadata = entries(1, 65, 0), "metadata.key", "1 to 64 bytes"),
            (|r| r.metadata = entries(1, 0, 0), "metadata.key", "1 to 64 bytes"),
            (|r| r.metadata = entries(1, 2, 256), "metadata[\"01\"]", "0 to 255 bytes"),
            (|r| r.metadata = entries(8, 2, 255), "metadata", "at most 2048 bytes together"),
        ),
    );
    let keep_alive = lock::KeepAliveRequest { namespace: name(), session_id: 1 };
    assert_refused(&keep_alive, namespace!((|r| r.session_id = 0, "session_id", "set")));
    let close = lock::CloseSessionRequest { namespace: name(), session_id: 1, request_id: id() };
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
        locks: Vec::new(),
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
fn what_is_asked_of_holders_and_watched_names_field_and_limit() {
    let request = lock::RequestReleaseRequest {
        namespace: name(),
        name: name(),
        fencing_token: 0,
        requester: name(),
        reason: name(),
        request_id: id(),
    };
    assert_refused(
        &request,
        namespace_and_id!(
            (|r| r.name.clear(), "name", NAME),
            (|r| r.requester = long_name(), "requester", "0 to 255 bytes"),
            (|r| r.reason = long_name(), "reason", "0 to 255 bytes"),
        ),
    );
    let acquire = lock::AcquireRequest {
        namespace: name(),
        session_id: 1,
        name: name(),
        request_id: id(),
        ..Default::default()
    };
    let acquire = lock::AcquireStreamRequest { acquire: Some(acquire) };
    assert_refused(
        &acquire,
        &[
            (|r| r.acquire = None, "acquire", "set"),
            (|r| r.acquire.as_mut().unwrap().session_id = 0, "session_id", "set"),
            (|r| r.acquire.as_mut().unwrap().name.clear(), "name", NAME),
        ],
    );
    let alive = lock::KeepAliveStreamRequest { namespace: name(), session_id: 1 };
    assert_refused(&alive, namespace!((|r| r.session_id = 0, "session_id", "set")));
    let cluster_id = name();
    let after = Some(WatchPosition { index: 1, ordinal: Some(0), shard: 1, cluster_id });
    let watch =
        lock::WatchLocksRequest { namespace: name(), name: name(), after, ..Default::default() };
    assert_refused(
        &watch,
        namespace!(
            (|r| r.name = long_name(), "name", "0 to 255 bytes"),
            (|r| r.prefix = "p".to_owned(), "prefix", "empty where a name is given"),
            (|r| (r.name, r.prefix) = (String::new(), long_name()), "prefix", "0 to 255 bytes"),
            (|r| r.after.as_mut().unwrap().index = 0, "after.index", "set"),
            (|r| r.after.as_mut().unwrap().shard = 0, "after.shard", "set"),
            (|r| r.after.as_mut().unwrap().cluster_id.clear(), "after.cluster_id", NAME),
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
        page_token: format!("{:x}", u64::MAX) + &"n".repeat(l::NAME_BYTES_MAX),
    };
    assert_refused(&list, page!());
    let sessions = lock::ListSessionsRequest {
        namespace: name(),
        page_size: l::PAGE_ITEMS_MAX,
        page_token: String::new(),
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
    let validate = lock::ValidateTokenRequest { namespace: name(), name: name(), fencing_token: 1 };
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
        fence: None,
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
        fence: None,
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
    let lease_id = format!("1-0-1-{}", "0".repeat(32));
    let ack = queue::AckRequest {
        namespace: name(),
        queue: name(),
        lease_id,
        request_id: id(),
        fence: None,
    };
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
    let enqueue = queue::EnqueueRequest {
        namespace: name(),
        queue: name(),
        messages,
        request_id: id(),
        fence: None,
    };
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
        fence: None,
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
    let get = cache::GetRequest { namespace: name(), key: key.clone(), fence: None };
    assert_refused(
        &get,
        namespace!(
            (|r| r.key.clear(), "key", "1 to 1024 bytes"),
            (|r| r.key.push('k'), "key", "1 to 1024 bytes"),
        ),
    );
    let delete = cache::DeleteRequest { namespace: name(), key, request_id: id(), fence: None };
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
    let mut dequeue = queue::DequeueRequest { queue: name(), ..queue::DequeueRequest::default() };
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

mod waits;
