//! Bad input of every operation, by both ways in: the code, the reason, the field and the limit.

use tonic::Code;
use trefoil_core::check::invalid;
use trefoil_core::limits as l;
use trefoil_proto::cluster::v1::{self as cluster, TransferLeaderRequest};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::common::v1::{RequestId, Value, value};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::pipeline::v1::{Call, OpenRequest};
use trefoil_proto::queue::v1::Message;

use crate::support::operations::*;
use crate::support::{Setup, Stream, metric, refused, serve, unary, usual};

fn long() -> String {
    "x".repeat(l::NAME_BYTES_MAX + 1)
}

fn data(bytes: usize) -> Option<Value> {
    Some(Value { kind: Some(value::Kind::Data(vec![0; bytes].into())) })
}

/// Lock operations that are refused, and the field at fault.
fn bad_locks() -> Vec<(Operation, &'static str, &'static str)> {
    let open = |change: fn(&mut lock::OpenSessionRequest)| {
        let mut request = open_session(60_000);
        change(&mut request);
        Operation::OpenSession(request)
    };
    let nobody = |client: &str| RequestId { client: client.to_owned(), ..RequestId::default() };
    vec![
        (open(|r| r.namespace = long()), "namespace", "1 to 255 bytes"),
        (open(|r| r.ttl_ms = 99), "ttl_ms", "100 to 86400000"),
        (open(|r| r.ttl_ms = 86_400_001), "ttl_ms", "100 to 86400000"),
        (open(|r| r.owner = long()), "owner", "0 to 255 bytes"),
        (
            open(|r| r.metadata = [("k".to_owned(), long())].into()),
            "metadata[\"k\"]",
            "0 to 255 bytes",
        ),
        (Operation::KeepAlive(lock::KeepAliveRequest::default()), "session_id", "set"),
        (Operation::CloseSession(lock::CloseSessionRequest::default()), "session_id", "set"),
        (Operation::Acquire(acquire(1, "", 0)), "name", "1 to 255 bytes"),
        (Operation::Acquire(acquire(1, &long(), 0)), "name", "1 to 255 bytes"),
        (Operation::Acquire(acquire(1, "l", 86_400_001)), "wait_ms", "0 to 86400000"),
        (
            Operation::Acquire(lock::AcquireRequest {
                request_id: Some(nobody("")),
                ..acquire(1, "l", 0)
            }),
            "request_id.client",
            "1 to 64 bytes",
        ),
        (
            Operation::Release(lock::ReleaseRequest {
                request_id: Some(nobody("c")),
                ..release(1, "l")
            }),
            "request_id.sequence",
            "set",
        ),
        (Operation::Release(release(0, "l")), "session_id", "set"),
        (open(|request| request.lock_delay_ms = 60_001), "lock_delay_ms", "0 to 60000"),
        (several("l", &["a"]), "name", "left out where locks are named"),
        (several("", &["a", ""]), "locks[1].name", "1 to 255 bytes"),
        (several("", &["a", "b", "a"]), "locks[2].name", "another name than those before it"),
        (several("", &["a"; 9]), "locks", "at most 8 locks"),
    ]
}

fn several(name: &str, locks: &[&str]) -> Operation {
    let wish = |name: &&str| lock::LockWish { name: (*name).to_owned(), ..Default::default() };
    let locks = locks.iter().map(wish).collect();
    Operation::Acquire(lock::AcquireRequest { locks, ..acquire(1, name, 0) })
}

/// The same for modes, and for what operators ask.
fn bad_modes_and_questions() -> Vec<(Operation, &'static str, &'static str)> {
    vec![
        (
            Operation::Acquire(lock::AcquireRequest { mode: 4, ..acquire(1, "l", 0) }),
            "mode",
            "SHARED, UPDATE or EXCLUSIVE",
        ),
        (
            Operation::Acquire(lock::AcquireRequest {
                locks: vec![lock::LockWish { name: "l".to_owned(), mode: 4 }],
                ..acquire(1, "", 0)
            }),
            "locks[0].mode",
            "SHARED, UPDATE or EXCLUSIVE",
        ),
        (
            Operation::Acquire(lock::AcquireRequest {
                mode: 1,
                locks: vec![lock::LockWish { name: "l".to_owned(), mode: 1 }],
                ..acquire(1, "", 0)
            }),
            "mode",
            "left out where locks are named",
        ),
        (
            Operation::Convert(convert(1, "l", lock::LockMode::Unspecified)),
            "mode",
            "SHARED, UPDATE or EXCLUSIVE",
        ),
        (Operation::Convert(convert(1, "", lock::LockMode::Shared)), "name", "1 to 255 bytes"),
        (Operation::ReleaseAll(lock::ReleaseAllRequest::default()), "session_id", "set"),
        (Operation::ForceRelease(lock::ForceReleaseRequest::default()), "name", "1 to 255 bytes"),
        (
            Operation::ValidateToken(lock::ValidateTokenRequest {
                name: "l".to_owned(),
                ..Default::default()
            }),
            "fencing_token",
            "set",
        ),
        (
            Operation::Acquire(lock::AcquireRequest {
                lock_delay_ms: Some(60_001),
                ..acquire(1, "l", 0)
            }),
            "lock_delay_ms",
            "0 to 60000",
        ),
        (Operation::GetSession(lock::GetSessionRequest::default()), "session_id", "set"),
        (Operation::DescribeLock(lock::DescribeLockRequest::default()), "name", "1 to 255 bytes"),
        (
            Operation::ListLocks(lock::ListLocksRequest { page_size: 1_001, ..Default::default() }),
            "page_size",
            "1 to 1000",
        ),
        (
            Operation::ListSessions(lock::ListSessionsRequest {
                page_token: "x".to_owned(),
                ..Default::default()
            }),
            "page_token",
            "the next_page_token of a page",
        ),
    ]
}

/// The same for the other services.
fn bad_others() -> Vec<(Operation, &'static str, &'static str)> {
    let many = vec![message("k", "v"); l::BATCH_ITEMS_MAX + 1];
    let large = Message { value: data(l::VALUE_BYTES_MAX + 1), ..message("k", "") };
    let heavy = Message { value: data(l::BATCH_BYTES_MAX / 2), ..message("k", "") };
    let headers = [("h".to_owned(), "x".repeat(l::HEADERS_BYTES_MAX))].into();
    let long_key = "k".repeat(l::KEY_BYTES_MAX + 1);
    let mut late = put("k", "v");
    late.ttl_ms = l::CACHE_TTL_MS_MAX + 1;
    let mut large_put = put("k", "");
    large_put.value = data(l::VALUE_BYTES_MAX + 1);
    let mut short_lease = dequeue("q", 1, 0);
    short_lease.lease_ms = 99;
    let nothing = Message { value: None, ..message("k", "v") };
    vec![
        (Operation::CreateQueue(create_queue("", 1)), "queue", "1 to 255 bytes"),
        (Operation::CreateQueue(create_queue("q", 1_025)), "partitions", "1 to 1024"),
        (Operation::Enqueue(enqueue("q", Vec::new())), "messages", "1 to 1000 messages"),
        (Operation::Enqueue(enqueue("q", many)), "messages", "1 to 1000 messages"),
        (
            Operation::Enqueue(enqueue("q", vec![message("k", "v"), nothing])),
            "messages[1].value",
            "set: either data or text",
        ),
        (
            Operation::Enqueue(enqueue("q", vec![large])),
            "messages[0].value",
            "at most 1048576 bytes",
        ),
        (
            Operation::Enqueue(enqueue("q", vec![heavy.clone(), heavy, message("k", "v")])),
            "messages",
            "at most 1048576 bytes together",
        ),
        (
            Operation::Enqueue(enqueue("q", vec![Message { headers, ..message("k", "v") }])),
            "messages[0].headers",
            "at most 8192 bytes together",
        ),
        (
            Operation::Enqueue(enqueue("q", vec![message(&long_key, "v")])),
            "messages[0].key",
            "0 to 1024 bytes",
        ),
        (Operation::Dequeue(dequeue("q", 1_001, 0)), "max_messages", "1 to 1000"),
        (Operation::Dequeue(dequeue("q", 1, 86_400_001)), "wait_ms", "0 to 86400000"),
        (Operation::Dequeue(short_lease), "lease_ms", "100 to 43200000"),
        (Operation::Ack(ack("q", "")), "lease_id", "1 to 255 bytes"),
        (Operation::Ack(ack("q", "0-x-1")), "lease_id", "the lease_id of a delivery"),
        (Operation::Put(put("", "v")), "key", "1 to 1024 bytes"),
        (Operation::Put(put(&long_key, "v")), "key", "1 to 1024 bytes"),
        (Operation::Put(large_put), "value", "at most 1048576 bytes"),
        (Operation::Put(late), "ttl_ms", "0 to 31536000000"),
        (Operation::Get(get("")), "key", "1 to 1024 bytes"),
        (Operation::Delete(delete(&long_key)), "key", "1 to 1024 bytes"),
        (
            Operation::TransferLeader(TransferLeaderRequest { shard: 4, to_node_id: 1 }),
            "shard",
            "0 to 3",
        ),
        (
            Operation::TransferLeader(TransferLeaderRequest { shard: 0, to_node_id: 9 }),
            "to_node_id",
            "the id of a member",
        ),
    ]
}

/// The same for namespaces.
fn bad_namespaces() -> Vec<(Operation, &'static str, &'static str)> {
    let create = |name: &str, change: fn(&mut cluster::NamespaceSettings)| {
        let (name, mut settings) = (name.to_owned(), cluster::NamespaceSettings::default());
        change(&mut settings);
        let settings = Some(settings);
        Operation::CreateNamespace(cluster::CreateNamespaceRequest {
            name,
            settings,
            request_id: None,
        })
    };
    let delete = |name: &str| {
        let name = name.to_owned();
        Operation::DeleteNamespace(cluster::DeleteNamespaceRequest { name, ..Default::default() })
    };
    vec![
        (create("", |_| ()), "name", "1 to 255 bytes"),
        (create(&long(), |_| ()), "name", "1 to 255 bytes"),
        (create("n", |s| s.sessions_max = 200_001), "settings.sessions_max", "0 to 200000"),
        (
            create("n", |s| s.session_ttl_ms_max = 99),
            "settings.session_ttl_ms_max",
            "100 to 86400000",
        ),
        (
            Operation::UpdateNamespace(cluster::UpdateNamespaceRequest {
                settings: Some(cluster::NamespaceSettings {
                    queues_max: 1_001,
                    ..Default::default()
                }),
                ..Default::default()
            }),
            "settings.queues_max",
            "0 to 1000",
        ),
        (delete(""), "name", "1 to 255 bytes"),
        (delete("default"), "name", "another than \"default\""),
        (
            Operation::GetNamespace(cluster::GetNamespaceRequest { name: long() }),
            "name",
            "1 to 255 bytes",
        ),
        (
            Operation::ListNamespaces(cluster::ListNamespacesRequest {
                page_size: 1_001,
                ..Default::default()
            }),
            "page_size",
            "1 to 1000",
        ),
        (
            Operation::SetNamespacePolicy(cluster::SetNamespacePolicyRequest::default()),
            "unknown",
            "CREATED or REFUSED",
        ),
    ]
}

#[tokio::test]
async fn every_bad_field_is_named_with_its_limit() {
    let served = usual().await;
    let mut stream = Stream::open(&served.channel).await;
    for (n, (operation, field, limit)) in
        (1..).zip([bad_locks(), bad_modes_and_questions(), bad_others(), bad_namespaces()].concat())
    {
        let method = operation.method();
        for end in [
            unary(&served.channel, operation.clone()).await,
            stream.call(n, operation.clone()).await,
        ] {
            let (code, refusal) = refused(end);
            assert_eq!(
                (code, refusal),
                (Code::InvalidArgument, invalid(field, limit)),
                "{method:?}"
            );
        }
    }
    assert!(served.fake.log().is_empty(), "nothing reached a shard");
}

#[tokio::test]
async fn what_is_not_there_is_said_to_be_missing() {
    let served = serve(Setup { auto_create_queues: false, ..Setup::default() }).await;
    let call = async |operation| unary(&served.channel, operation).await;
    let missing = [
        (Operation::Acquire(acquire(9, "l", 0)), Code::FailedPrecondition, Reason::SessionExpired),
        (Operation::Release(release(9, "l")), Code::FailedPrecondition, Reason::SessionExpired),
        (
            Operation::KeepAlive(lock::KeepAliveRequest { session_id: 9, ..Default::default() }),
            Code::FailedPrecondition,
            Reason::SessionExpired,
        ),
        (
            Operation::Enqueue(enqueue("q", vec![message("k", "v")])),
            Code::NotFound,
            Reason::UnknownQueue,
        ),
        (Operation::Dequeue(dequeue("q", 1, 0)), Code::NotFound, Reason::UnknownQueue),
        (Operation::Ack(ack("q", &no_lease())), Code::NotFound, Reason::UnknownQueue),
    ];
    for (operation, code, reason) in missing {
        let (found, refusal) = refused(call(operation).await);
        assert_eq!((found, refusal.reason()), (code, reason));
    }
    call(Operation::CreateQueue(create_queue("q", 2))).await.unwrap();
    let (code, refusal) = refused(call(Operation::CreateQueue(create_queue("q", 3))).await);
    assert_eq!((code, refusal.reason()), (Code::AlreadyExists, Reason::QueueExists));
    assert_eq!(refusal.metadata["partitions"], "2");
    let (code, refusal) = refused(call(Operation::Ack(ack("q", &no_lease()))).await);
    assert_eq!((code, refusal.reason()), (Code::InvalidArgument, Reason::InvalidField));
}

#[tokio::test]
async fn an_open_end_is_aborted_unless_a_retry_is_safe() {
    let served = usual().await;
    let mut stream = Stream::open(&served.channel).await;
    served.fake.set_fault(|_, _| Some(Reason::MaybeApplied));
    let (without, mut with) = (put("k", "v"), put("k", "v"));
    with.request_id = id(1);
    for (n, request, code) in [(1, without, Code::Aborted), (2, with, Code::Unavailable)] {
        let operation = Operation::Put(request);
        for end in
            [unary(&served.channel, operation.clone()).await, stream.call(n, operation).await]
        {
            let (found, refusal) = refused(end);
            assert_eq!((found, refusal.reason()), (code, Reason::MaybeApplied));
        }
    }
}

#[tokio::test]
async fn a_request_beyond_the_limit_is_not_read() {
    let served = usual().await;
    let mut request = put("k", "");
    request.value = data(l::REQUEST_BYTES_MAX + (128 << 10));
    let too_large = || Operation::Put(request.clone());
    let (code, refusal) = refused(unary(&served.channel, too_large()).await);
    let limit = invalid("request", "at most 1572864 bytes");
    assert_eq!((code, refusal), (Code::InvalidArgument, limit.clone()));
    let mut stream = Stream::open(&served.channel).await;
    // In a frame it is refused alone.
    let (code, refusal) = refused(stream.call(1, too_large()).await);
    assert_eq!((code, refusal), (Code::InvalidArgument, limit));
    assert!(served.fake.log().is_empty());
    stream.call(2, Operation::Put(put("k", "v"))).await.unwrap();
    // A frame that is too large ends its stream, once the calls before it have their answers.
    let call = |id| Call { id, timeout_ms: 0, operation: Some(too_large()) };
    let frame = OpenRequest { calls: (4..20).map(call).collect(), cancel: Vec::new() };
    stream.send(3, 0, Operation::Get(get("k"))).await;
    stream.calls.send(frame).await.unwrap();
    assert!(matches!(stream.reply().await.outcome, Some(Outcome::Get(_))));
    let (code, refusal) = refused(Err(stream.replies.message().await.unwrap_err()));
    let limit = invalid("frame", "at most 16777216 bytes");
    assert_eq!((code, refusal), (Code::InvalidArgument, limit));
    // The largest that is allowed passes.
    let mut request = put(&"k".repeat(l::KEY_BYTES_MAX), "");
    request.value = data(l::VALUE_BYTES_MAX);
    unary(&served.channel, Operation::Put(request)).await.unwrap();
}

#[tokio::test]
async fn a_frame_without_sense_gets_an_answer_for_each_call() {
    let served = usual().await;
    let mut stream = Stream::open(&served.channel).await;
    let waiting = Operation::Dequeue(dequeue("q", 1, 60_000));
    unary(&served.channel, Operation::CreateQueue(create_queue("q", 1))).await.unwrap();
    let calls = vec![
        Call { id: 1, timeout_ms: 0, operation: None },
        Call { id: 2, timeout_ms: 0, operation: Some(waiting.clone()) },
        Call { id: 2, timeout_ms: 0, operation: Some(waiting) },
    ];
    stream.calls.send(OpenRequest { calls, cancel: vec![77] }).await.unwrap();
    for id in [1, 2] {
        let reply = stream.reply().await;
        assert_eq!(reply.id, id);
        let Some(Outcome::Error(error)) = reply.outcome else { panic!("{reply:?}") };
        assert_eq!(error.code, i32::from(Code::InvalidArgument));
    }
    // The stream goes on, and counts each of its calls.
    stream.call(3, Operation::Get(get("k"))).await.unwrap();
    let line = "grpc_server_started_total{grpc_method=\"Get\",grpc_service=\"trefoil.cache.v1.CacheService\",grpc_type=\"unary\"}";
    assert_eq!(metric(served.front.api().metrics(), line), 1.0);
}
