//! One of each operation, and the check that it is.

use std::collections::BTreeSet;

use trefoil_proto::cache::v1 as cache;
use trefoil_proto::cluster::v1 as cluster;
use trefoil_proto::common::v1::{RequestId, Value, value};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::operation::Method;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::queue::v1 as queue;

pub(crate) fn text(text: &str) -> Option<Value> {
    Some(Value { kind: Some(value::Kind::Text(text.to_owned())) })
}

pub(crate) fn id(sequence: u64) -> Option<RequestId> {
    Some(RequestId { client: "tests".to_owned(), sequence, ..RequestId::default() })
}

pub(crate) fn open_session(ttl_ms: u64) -> lock::OpenSessionRequest {
    lock::OpenSessionRequest { ttl_ms, ..Default::default() }
}

pub(crate) fn acquire(session_id: u64, name: &str, wait_ms: u64) -> lock::AcquireRequest {
    lock::AcquireRequest { session_id, name: name.to_owned(), wait_ms, ..Default::default() }
}

pub(crate) fn release(session_id: u64, name: &str) -> lock::ReleaseRequest {
    lock::ReleaseRequest { session_id, name: name.to_owned(), ..Default::default() }
}

pub(crate) fn convert(session_id: u64, name: &str, mode: lock::LockMode) -> lock::ConvertRequest {
    let (name, mode) = (name.to_owned(), mode.into());
    lock::ConvertRequest { session_id, name, mode, ..Default::default() }
}

pub(crate) fn campaign(session_id: u64, name: &str, wait_ms: u64) -> lock::CampaignRequest {
    let (name, value) = (name.to_owned(), text("here"));
    lock::CampaignRequest { session_id, name, value, wait_ms, ..Default::default() }
}

pub(crate) fn enter(
    session_id: u64,
    name: &str,
    parties: u32,
    wait_ms: u64,
) -> lock::EnterBarrierRequest {
    let name = name.to_owned();
    lock::EnterBarrierRequest { session_id, name, parties, wait_ms, ..Default::default() }
}

pub(crate) fn leave(session_id: u64, name: &str, wait_ms: u64) -> lock::LeaveBarrierRequest {
    let name = name.to_owned();
    lock::LeaveBarrierRequest { session_id, name, wait_ms, ..Default::default() }
}

pub(crate) fn set_latch(name: &str, count: u64) -> lock::SetLatchRequest {
    lock::SetLatchRequest { name: name.to_owned(), count, ..Default::default() }
}

pub(crate) fn count_down(name: &str) -> lock::CountDownRequest {
    lock::CountDownRequest { name: name.to_owned(), ..Default::default() }
}

pub(crate) fn await_latch(name: &str, wait_ms: u64) -> lock::AwaitLatchRequest {
    lock::AwaitLatchRequest { name: name.to_owned(), wait_ms, ..Default::default() }
}

pub(crate) fn set_permits(name: &str, permits: u64) -> lock::SetPermitsRequest {
    lock::SetPermitsRequest { name: name.to_owned(), permits, ..Default::default() }
}

pub(crate) fn take(
    session_id: u64,
    name: &str,
    permits: u64,
    wait_ms: u64,
) -> lock::AcquirePermitsRequest {
    let name = name.to_owned();
    lock::AcquirePermitsRequest { session_id, name, permits, wait_ms, ..Default::default() }
}

pub(crate) fn give(session_id: u64, name: &str) -> lock::ReleasePermitsRequest {
    lock::ReleasePermitsRequest { session_id, name: name.to_owned(), ..Default::default() }
}

pub(crate) fn describe_semaphore(name: &str) -> lock::DescribeSemaphoreRequest {
    lock::DescribeSemaphoreRequest { name: name.to_owned(), ..Default::default() }
}

pub(crate) fn create_queue(queue: &str, partitions: u32) -> queue::CreateQueueRequest {
    queue::CreateQueueRequest { queue: queue.to_owned(), partitions, ..Default::default() }
}

pub(crate) fn message(key: &str, value: &str) -> queue::Message {
    queue::Message { key: key.to_owned(), value: text(value), ..Default::default() }
}

pub(crate) fn enqueue(queue: &str, messages: Vec<queue::Message>) -> queue::EnqueueRequest {
    queue::EnqueueRequest { queue: queue.to_owned(), messages, ..Default::default() }
}

pub(crate) fn dequeue(queue: &str, max_messages: u32, wait_ms: u64) -> queue::DequeueRequest {
    queue::DequeueRequest { queue: queue.to_owned(), max_messages, wait_ms, ..Default::default() }
}

pub(crate) fn ack(queue: &str, lease_id: &str) -> queue::AckRequest {
    let (queue, lease_id) = (queue.to_owned(), lease_id.to_owned());
    queue::AckRequest { queue, lease_id, ..Default::default() }
}

/// What could be the id of a lease, and is none.
pub(crate) fn no_lease() -> String {
    format!("1-0-1-{}", "0".repeat(32))
}

pub(crate) fn put(key: &str, value: &str) -> cache::PutRequest {
    cache::PutRequest { key: key.to_owned(), value: text(value), ..Default::default() }
}

pub(crate) fn get(key: &str) -> cache::GetRequest {
    cache::GetRequest { key: key.to_owned(), ..Default::default() }
}

pub(crate) fn delete(key: &str) -> cache::DeleteRequest {
    cache::DeleteRequest { key: key.to_owned(), ..Default::default() }
}

/// Those of elections, latches and barriers.
fn elections_and_barriers(session: u64) -> Vec<Operation> {
    vec![
        Operation::Campaign(campaign(session, "e", 0)),
        Operation::Proclaim(lock::ProclaimRequest {
            session_id: session,
            name: "e".to_owned(),
            fencing_token: 3,
            value: text("there"),
            ..Default::default()
        }),
        Operation::Leader(lock::LeaderRequest { name: "e".to_owned(), ..Default::default() }),
        Operation::Resign(lock::ResignRequest {
            session_id: session,
            name: "e".to_owned(),
            ..Default::default()
        }),
        Operation::SetLatch(set_latch("t", 1)),
        Operation::GetLatch(lock::GetLatchRequest { name: "t".to_owned(), ..Default::default() }),
        Operation::ListLatches(lock::ListLatchesRequest::default()),
        Operation::CountDown(count_down("t")),
        Operation::AwaitLatch(await_latch("t", 0)),
        Operation::DeleteLatch(lock::DeleteLatchRequest {
            name: "t".to_owned(),
            ..Default::default()
        }),
        Operation::EnterBarrier(enter(session, "b", 1, 0)),
        Operation::GetBarrier(lock::GetBarrierRequest {
            name: "b".to_owned(),
            ..Default::default()
        }),
        Operation::ListBarriers(lock::ListBarriersRequest::default()),
        Operation::LeaveBarrier(leave(session, "b", 0)),
    ]
}

fn of_semaphores(session: u64) -> Vec<Operation> {
    vec![
        Operation::SetPermits(set_permits("s", 2)),
        Operation::AcquirePermits(take(session, "s", 1, 0)),
        Operation::DescribeSemaphore(describe_semaphore("s")),
        Operation::ListSemaphores(lock::ListSemaphoresRequest::default()),
        Operation::ReleasePermits(give(session, "s")),
        Operation::DeleteSemaphore(lock::DeleteSemaphoreRequest {
            name: "s".to_owned(),
            ..Default::default()
        }),
    ]
}

/// A good request of every operation.
pub(crate) fn one_of_each() -> Vec<Operation> {
    let session = 1;
    let mut all = vec![
        Operation::OpenSession(open_session(60_000)),
        Operation::KeepAlive(lock::KeepAliveRequest { session_id: session, ..Default::default() }),
        Operation::Acquire(acquire(session, "l", 0)),
        Operation::Convert(convert(session, "l", lock::LockMode::Shared)),
        Operation::DescribeLock(lock::DescribeLockRequest {
            name: "l".to_owned(),
            ..Default::default()
        }),
        Operation::ListLocks(lock::ListLocksRequest::default()),
        Operation::GetSession(lock::GetSessionRequest {
            session_id: session,
            ..Default::default()
        }),
        Operation::ListSessions(lock::ListSessionsRequest::default()),
        Operation::ListDeadlocks(lock::ListDeadlocksRequest::default()),
        Operation::ValidateToken(lock::ValidateTokenRequest {
            name: "l".to_owned(),
            fencing_token: 1,
            ..Default::default()
        }),
        Operation::RequestRelease(lock::RequestReleaseRequest {
            name: "l".to_owned(),
            ..Default::default()
        }),
        Operation::ForceRelease(lock::ForceReleaseRequest {
            name: "other".to_owned(),
            ..Default::default()
        }),
        Operation::Release(release(session, "l")),
    ];
    all.extend(elections_and_barriers(session));
    all.extend(of_semaphores(session));
    all.extend([
        Operation::ReleaseAll(lock::ReleaseAllRequest {
            session_id: session,
            ..Default::default()
        }),
        Operation::CloseSession(lock::CloseSessionRequest {
            session_id: session,
            ..Default::default()
        }),
        Operation::CreateQueue(create_queue("q", 1)),
        Operation::Enqueue(enqueue("q", vec![message("k", "v")])),
        Operation::Dequeue(dequeue("q", 1, 0)),
        Operation::Ack(ack("q", &no_lease())),
        Operation::Put(put("k", "v")),
        Operation::Get(get("k")),
        Operation::Delete(delete("k")),
        Operation::Status(cluster::StatusRequest::default()),
        Operation::TransferLeader(cluster::TransferLeaderRequest { shard: 0, to_node_id: 1 }),
    ]);
    all.extend(of_namespaces());
    let there = all.iter().map(Operation::method).collect::<BTreeSet<_>>();
    let of_ours = Method::ALL
        .iter()
        .copied()
        .filter(|method| method.is_unary() && method.facts().service.starts_with("trefoil."));
    assert_eq!(there, of_ours.collect(), "an operation is missing here");
    all
}

fn of_namespaces() -> Vec<Operation> {
    vec![
        Operation::CreateNamespace(cluster::CreateNamespaceRequest {
            name: "n".to_owned(),
            ..Default::default()
        }),
        Operation::UpdateNamespace(cluster::UpdateNamespaceRequest {
            name: "n".to_owned(),
            ..Default::default()
        }),
        Operation::GetNamespace(cluster::GetNamespaceRequest { name: "n".to_owned() }),
        Operation::ListNamespaces(cluster::ListNamespacesRequest::default()),
        Operation::DeleteNamespace(cluster::DeleteNamespaceRequest {
            name: "n".to_owned(),
            ..Default::default()
        }),
        Operation::SetNamespacePolicy(cluster::SetNamespacePolicyRequest {
            unknown: cluster::UnknownNamespaces::Created.into(),
            ..Default::default()
        }),
        Operation::GetNamespacePolicy(cluster::GetNamespacePolicyRequest {}),
    ]
}
