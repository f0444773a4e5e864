//! The closed set of operations, and what the front must know of each before it is carried out.

use trefoil_core::check::Check as _;
use trefoil_proto::common::v1::{Fence, RequestId};
use trefoil_proto::internal::v1::Refusal;
pub use trefoil_proto::pipeline::v1::call::Operation;

use super::method::Method;
use crate::authorize::{Action, Resource};
use crate::config::Service;

/// What the front knows of an operation.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    /// The RPC that it is.
    pub method: Method,
    /// The service that must be on; none for what is always on.
    pub service: Option<Service>,
    /// What the caller must be allowed to do.
    pub action: Action,
    /// And to what.
    pub resource: Resource<'a>,
    /// Whether a retry is told apart from a second request.
    pub request_id: Option<&'a RequestId>,
    /// How long it may wait in ms.
    pub wait_ms: u64,
}

/// Refuses bad fields, and fills in what may be left out.
///
/// # Errors
/// INVALID_FIELD, naming the field and the limit.
pub fn check(operation: &mut Operation) -> Result<(), Refusal> {
    match operation {
        Operation::OpenSession(request) => request.check(),
        Operation::KeepAlive(request) => request.check(),
        Operation::CloseSession(request) => request.check(),
        Operation::Acquire(request) => request.check(),
        Operation::Release(request) => request.check(),
        Operation::Convert(request) => request.check(),
        Operation::ReleaseAll(request) => request.check(),
        Operation::DescribeLock(request) => request.check(),
        Operation::ListLocks(request) => request.check(),
        Operation::GetSession(request) => request.check(),
        Operation::ListSessions(request) => request.check(),
        Operation::ListDeadlocks(request) => request.check(),
        Operation::ForceRelease(request) => request.check(),
        Operation::ValidateToken(request) => request.check(),
        Operation::RequestRelease(request) => request.check(),
        Operation::Campaign(request) => request.check(),
        Operation::Proclaim(request) => request.check(),
        Operation::Leader(request) => request.check(),
        Operation::Resign(request) => request.check(),
        Operation::SetPermits(request) => request.check(),
        Operation::DeleteSemaphore(request) => request.check(),
        Operation::AcquirePermits(request) => request.check(),
        Operation::ReleasePermits(request) => request.check(),
        Operation::DescribeSemaphore(request) => request.check(),
        Operation::ListSemaphores(request) => request.check(),
        Operation::SetLatch(request) => request.check(),
        Operation::CountDown(request) => request.check(),
        Operation::AwaitLatch(request) => request.check(),
        Operation::GetLatch(request) => request.check(),
        Operation::DeleteLatch(request) => request.check(),
        Operation::ListLatches(request) => request.check(),
        Operation::EnterBarrier(request) => request.check(),
        Operation::LeaveBarrier(request) => request.check(),
        Operation::GetBarrier(request) => request.check(),
        Operation::ListBarriers(request) => request.check(),
        Operation::CreateQueue(request) => request.check(),
        Operation::Enqueue(request) => request.check(),
        Operation::Dequeue(request) => request.check(),
        Operation::Ack(request) => request.check(),
        Operation::Put(request) => request.check(),
        Operation::Get(request) => request.check(),
        Operation::Delete(request) => request.check(),
        Operation::CreateNamespace(request) => request.check(),
        Operation::UpdateNamespace(request) => request.check(),
        Operation::GetNamespace(request) => request.check(),
        Operation::ListNamespaces(request) => request.check(),
        Operation::DeleteNamespace(request) => request.check(),
        Operation::SetNamespacePolicy(request) => request.check(),
        // Shards and nodes are known to the handler alone.
        Operation::Status(_) | Operation::TransferLeader(_) | Operation::GetNamespacePolicy(_) => {
            Ok(())
        }
    }
}

/// Takes the fence out of an operation that has one.
pub(super) fn take_fence(operation: &mut Operation) -> Option<Fence> {
    match operation {
        Operation::CreateQueue(request) => request.fence.take(),
        Operation::Enqueue(request) => request.fence.take(),
        Operation::Dequeue(request) => request.fence.take(),
        Operation::Ack(request) => request.fence.take(),
        Operation::Put(request) => request.fence.take(),
        Operation::Get(request) => request.fence.take(),
        Operation::Delete(request) => request.fence.take(),
        _ => None,
    }
}

/// The RPC that an operation is.
#[must_use]
pub fn method(operation: &Operation) -> Method {
    match operation {
        Operation::OpenSession(_) => Method::OpenSession,
        Operation::KeepAlive(_) => Method::KeepAlive,
        Operation::CloseSession(_) => Method::CloseSession,
        Operation::Acquire(_) => Method::Acquire,
        Operation::Release(_) => Method::Release,
        Operation::Convert(_) => Method::Convert,
        Operation::ReleaseAll(_) => Method::ReleaseAll,
        Operation::DescribeLock(_) => Method::DescribeLock,
        Operation::ListLocks(_) => Method::ListLocks,
        Operation::GetSession(_) => Method::GetSession,
        Operation::ListSessions(_) => Method::ListSessions,
        Operation::ListDeadlocks(_) => Method::ListDeadlocks,
        Operation::ForceRelease(_) => Method::ForceRelease,
        Operation::ValidateToken(_) => Method::ValidateToken,
        Operation::RequestRelease(_) => Method::RequestRelease,
        Operation::Campaign(_) => Method::Campaign,
        Operation::Proclaim(_) => Method::Proclaim,
        Operation::Leader(_) => Method::Leader,
        Operation::Resign(_) => Method::Resign,
        Operation::SetPermits(_) => Method::SetPermits,
        Operation::DeleteSemaphore(_) => Method::DeleteSemaphore,
        Operation::AcquirePermits(_) => Method::AcquirePermits,
        Operation::ReleasePermits(_) => Method::ReleasePermits,
        Operation::DescribeSemaphore(_) => Method::DescribeSemaphore,
        Operation::ListSemaphores(_) => Method::ListSemaphores,
        Operation::SetLatch(_) => Method::SetLatch,
        Operation::CountDown(_) => Method::CountDown,
        Operation::AwaitLatch(_) => Method::AwaitLatch,
        Operation::GetLatch(_) => Method::GetLatch,
        Operation::DeleteLatch(_) => Method::DeleteLatch,
        Operation::ListLatches(_) => Method::ListLatches,
        Operation::EnterBarrier(_) => Method::EnterBarrier,
        Operation::LeaveBarrier(_) => Method::LeaveBarrier,
        Operation::GetBarrier(_) => Method::GetBarrier,
        Operation::ListBarriers(_) => Method::ListBarriers,
        Operation::CreateQueue(_) => Method::CreateQueue,
        Operation::Enqueue(_) => Method::Enqueue,
        Operation::Dequeue(_) => Method::Dequeue,
        Operation::Ack(_) => Method::Ack,
        Operation::Put(_) => Method::Put,
        Operation::Get(_) => Method::Get,
        Operation::Delete(_) => Method::Delete,
        Operation::Status(_) => Method::Status,
        Operation::TransferLeader(_) => Method::TransferLeader,
        Operation::CreateNamespace(_) => Method::CreateNamespace,
        Operation::UpdateNamespace(_) => Method::UpdateNamespace,
        Operation::GetNamespace(_) => Method::GetNamespace,
        Operation::ListNamespaces(_) => Method::ListNamespaces,
        Operation::DeleteNamespace(_) => Method::DeleteNamespace,
        Operation::GetNamespacePolicy(_) => Method::GetNamespacePolicy,
        Operation::SetNamespacePolicy(_) => Method::SetNamespacePolicy,
    }
}

/// The facts of an operation.
#[must_use]
#[allow(clippy::too_many_lines, reason = "one table")]
pub fn facts(operation: &Operation) -> Facts<'_> {
    let (action, resource, request_id, wait_ms) = match operation {
        Operation::OpenSession(r) => {
            (Action::UseSession, namespace(&r.namespace), r.request_id.as_ref(), 0)
        }
        Operation::KeepAlive(r) => (Action::UseSession, namespace(&r.namespace), None, 0),
        Operation::CloseSession(r) => {
            (Action::UseSession, namespace(&r.namespace), r.request_id.as_ref(), 0)
        }
        Operation::Acquire(r) => {
            (Action::UseLock, Resource::of_acquire(r), r.request_id.as_ref(), r.wait_ms)
        }
        Operation::Release(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::Convert(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), r.wait_ms)
        }
        Operation::ReleaseAll(r) => {
            (Action::UseSession, namespace(&r.namespace), r.request_id.as_ref(), 0)
        }
        Operation::DescribeLock(r) => (Action::ReadLocks, lock(&r.namespace, &r.name), None, 0),
        Operation::ListLocks(r) => (Action::ReadLocks, namespace(&r.namespace), None, 0),
        Operation::GetSession(r) => (Action::ReadLocks, namespace(&r.namespace), None, 0),
        Operation::ListSessions(r) => (Action::ReadLocks, namespace(&r.namespace), None, 0),
        Operation::ListDeadlocks(r) => (Action::ReadLocks, namespace(&r.namespace), None, 0),
        Operation::ForceRelease(r) => {
            (Action::ControlLocks, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::RequestRelease(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::ValidateToken(r) => (Action::UseLock, lock(&r.namespace, &r.name), None, 0),
        Operation::Campaign(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), r.wait_ms)
        }
        Operation::Proclaim(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::Leader(r) => (Action::ReadLocks, lock(&r.namespace, &r.name), None, 0),
        Operation::Resign(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::SetPermits(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::DeleteSemaphore(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::AcquirePermits(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), r.wait_ms)
        }
        Operation::ReleasePermits(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::DescribeSemaphore(r) => {
            (Action::ReadLocks, lock(&r.namespace, &r.name), None, 0)
        }
        Operation::ListSemaphores(r) => (Action::ReadLocks, namespace(&r.namespace), None, 0),
        Operation::SetLatch(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::CountDown(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::AwaitLatch(r) => (Action::UseLock, lock(&r.namespace, &r.name), None, r.wait_ms),
        Operation::GetLatch(r) => (Action::ReadLocks, lock(&r.namespace, &r.name), None, 0),
        Operation::DeleteLatch(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), 0)
        }
        Operation::ListLatches(r) => (Action::ReadLocks, namespace(&r.namespace), None, 0),
        Operation::EnterBarrier(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), r.wait_ms)
        }
        Operation::LeaveBarrier(r) => {
            (Action::UseLock, lock(&r.namespace, &r.name), r.request_id.as_ref(), r.wait_ms)
        }
        Operation::GetBarrier(r) => (Action::ReadLocks, lock(&r.namespace, &r.name), None, 0),
        Operation::ListBarriers(r) => (Action::ReadLocks, namespace(&r.namespace), None, 0),
        Operation::CreateQueue(r) => {
            (Action::CreateQueue, queue(&r.namespace, &r.queue), r.request_id.as_ref(), 0)
        }
        Operation::Enqueue(r) => {
            (Action::Enqueue, queue(&r.namespace, &r.queue), r.request_id.as_ref(), 0)
        }
        Operation::Dequeue(r) => {
            (Action::Consume, queue(&r.namespace, &r.queue), r.request_id.as_ref(), r.wait_ms)
        }
        Operation::Ack(r) => {
            (Action::Consume, queue(&r.namespace, &r.queue), r.request_id.as_ref(), 0)
        }
        Operation::Put(r) => {
            (Action::WriteValue, key(&r.namespace, &r.key), r.request_id.as_ref(), 0)
        }
        Operation::Get(r) => (Action::ReadValue, key(&r.namespace, &r.key), None, 0),
        Operation::Delete(r) => {
            (Action::WriteValue, key(&r.namespace, &r.key), r.request_id.as_ref(), 0)
        }
        Operation::Status(_) => (Action::ReadStatus, Resource::Cluster, None, 0),
        Operation::TransferLeader(_) => (Action::MoveLeader, Resource::Cluster, None, 0),
        Operation::CreateNamespace(r) => {
            (Action::ManageNamespaces, namespace(&r.name), r.request_id.as_ref(), 0)
        }
        Operation::UpdateNamespace(r) => {
            (Action::ManageNamespaces, namespace(&r.name), r.request_id.as_ref(), 0)
        }
        Operation::DeleteNamespace(r) => {
            (Action::ManageNamespaces, namespace(&r.name), r.request_id.as_ref(), 0)
        }
        Operation::GetNamespace(r) => (Action::ReadNamespaces, namespace(&r.name), None, 0),
        Operation::ListNamespaces(_) => (Action::ReadNamespaces, Resource::Cluster, None, 0),
        Operation::GetNamespacePolicy(_) => (Action::ReadNamespaces, Resource::Cluster, None, 0),
        Operation::SetNamespacePolicy(r) => {
            (Action::ManageNamespaces, Resource::Cluster, r.request_id.as_ref(), 0)
        }
    };
    let method = method(operation);
    Facts { method, service: service(method), action, resource, request_id, wait_ms }
}

/// The service that an RPC belongs to; none where it is always on.
#[must_use]
pub fn service(method: Method) -> Option<Service> {
    match method {
        Method::OpenSession
        | Method::KeepAlive
        | Method::CloseSession
        | Method::Acquire
        | Method::Release
        | Method::Convert
        | Method::ReleaseAll
        | Method::DescribeLock
        | Method::ListLocks
        | Method::GetSession
        | Method::ListSessions
        | Method::ListDeadlocks
        | Method::ForceRelease
        | Method::ValidateToken
        | Method::RequestRelease
        | Method::KeepAliveStream
        | Method::WatchLocks
        | Method::AcquireStream
        | Method::Campaign
        | Method::Observe
        | Method::Proclaim
        | Method::Leader
        | Method::Resign
        | Method::SetPermits
        | Method::DeleteSemaphore
        | Method::AcquirePermits
        | Method::ReleasePermits
        | Method::DescribeSemaphore
        | Method::ListSemaphores
        | Method::SetLatch
        | Method::CountDown
        | Method::AwaitLatch
        | Method::GetLatch
        | Method::DeleteLatch
        | Method::ListLatches
        | Method::EnterBarrier
        | Method::LeaveBarrier
        | Method::GetBarrier
        | Method::ListBarriers => Some(Service::Lock),
        Method::CreateQueue | Method::Enqueue | Method::Dequeue | Method::Ack => {
            Some(Service::Queue)
        }
        Method::Put | Method::Get | Method::Delete => Some(Service::Cache),
        Method::Status
        | Method::TransferLeader
        | Method::CreateNamespace
        | Method::UpdateNamespace
        | Method::GetNamespace
        | Method::ListNamespaces
        | Method::DeleteNamespace
        | Method::GetNamespacePolicy
        | Method::SetNamespacePolicy
        | Method::Pipeline
        | Method::HealthCheck
        | Method::HealthWatch
        | Method::Reflection
        | Method::ReflectionAlpha => None,
    }
}

fn namespace(namespace: &str) -> Resource<'_> {
    Resource::Namespace(namespace)
}

fn lock<'a>(namespace: &'a str, name: &'a str) -> Resource<'a> {
    Resource::Lock { namespace, name }
}

fn queue<'a>(namespace: &'a str, name: &'a str) -> Resource<'a> {
    Resource::Queue { namespace, name }
}

fn key<'a>(namespace: &'a str, key: &'a str) -> Resource<'a> {
    Resource::Key { namespace, key }
}
