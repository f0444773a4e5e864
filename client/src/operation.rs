//! The operations of the contract: how each is sent, stamped, routed and answered. One row per operation.

use trefoil_proto::cache::v1 as cache;
use trefoil_proto::cluster::v1 as cluster;
use trefoil_proto::common::v1::{RequestId, ResponseHeader};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::pipeline::v1::{call, reply};
use trefoil_proto::queue::v1 as queue;

use crate::route::Scope;

/// The shard that knows of all queues and namespaces.
const META: u32 = 0;

/// Which connection a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// The stream of ordinary calls, under its window.
    Calls,
    /// A stream on a connection of its own, so that a long wait holds up no other call.
    Waits,
    /// The same connection, outside the limit of waits: a renewal never stands behind them.
    Sessions,
}

/// A request of the contract that travels in a frame. Sealed: the operations are those of `proto/`.
pub trait Request: Clone + Send + Sync + 'static + sealed::Sealed {
    /// What answers it.
    type Response: Send + 'static;
    /// Whether it changes state, and therefore carries a request id.
    const MUTATION: bool;

    #[doc(hidden)]
    fn operation(self) -> call::Operation;
    #[doc(hidden)]
    fn response(outcome: reply::Outcome) -> Option<Self::Response>;
    #[doc(hidden)]
    fn header(response: &Self::Response) -> Option<&ResponseHeader>;
    #[doc(hidden)]
    fn stamp(&mut self, id: RequestId);
    /// The state that it touches, where one shard holds all of it.
    #[doc(hidden)]
    fn scope(&self) -> Scope;
    #[doc(hidden)]
    fn way(&self) -> Way;
    /// How long the server may wait before it answers, in ms.
    #[doc(hidden)]
    fn wait_ms(&mut self) -> Option<&mut u64>;
}

mod sealed {
    pub trait Sealed {}
}

macro_rules! operations {
    ($($variant:ident: $request:ty => $response:ty, $scope:expr, $way:expr $(, id = $id:ident)? $(, wait = $wait:ident)?;)*) => {$(
        impl sealed::Sealed for $request {}

        impl Request for $request {
            type Response = $response;
            const MUTATION: bool = operations!(@has $($id)?);

            fn operation(self) -> call::Operation {
                call::Operation::$variant(self)
            }

            fn response(outcome: reply::Outcome) -> Option<Self::Response> {
                match outcome {
                    reply::Outcome::$variant(response) => Some(response),
                    _ => None,
                }
            }

            fn header(response: &Self::Response) -> Option<&ResponseHeader> {
                response.header.as_ref()
            }

            fn stamp(&mut self, _id: RequestId) {
                $(self.$id = Some(_id);)?
            }

            fn scope(&self) -> Scope {
                let scope: fn(&Self) -> Scope = $scope;
                scope(self)
            }

            fn way(&self) -> Way {
                let way: fn(&Self) -> Way = $way;
                way(self)
            }

            fn wait_ms(&mut self) -> Option<&mut u64> {
                operations!(@wait self $($wait)?)
            }
        }
    )*};
    (@has $id:ident) => { true };
    (@has) => { false };
    (@wait $self:ident $wait:ident) => { Some(&mut $self.$wait) };
    (@wait $self:ident) => { None };
}

operations! {
    OpenSession: lock::OpenSessionRequest => lock::OpenSessionResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    KeepAlive: lock::KeepAliveRequest => lock::KeepAliveResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Sessions;
    CloseSession: lock::CloseSessionRequest => lock::CloseSessionResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    Acquire: lock::AcquireRequest => lock::AcquireResponse,
        |r| Scope::locks(&r.namespace), |r| unless_at_once(r.wait_ms), id = request_id, wait = wait_ms;
    Release: lock::ReleaseRequest => lock::ReleaseResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    Convert: lock::ConvertRequest => lock::ConvertResponse,
        |r| Scope::locks(&r.namespace), |r| unless_at_once(r.wait_ms), id = request_id, wait = wait_ms;
    ReleaseAll: lock::ReleaseAllRequest => lock::ReleaseAllResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    DescribeLock: lock::DescribeLockRequest => lock::DescribeLockResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    ListLocks: lock::ListLocksRequest => lock::ListLocksResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    GetSession: lock::GetSessionRequest => lock::GetSessionResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    ForceRelease: lock::ForceReleaseRequest => lock::ForceReleaseResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    ValidateToken: lock::ValidateTokenRequest => lock::ValidateTokenResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    RequestRelease: lock::RequestReleaseRequest => lock::RequestReleaseResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    ListDeadlocks: lock::ListDeadlocksRequest => lock::ListDeadlocksResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    ListSessions: lock::ListSessionsRequest => lock::ListSessionsResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    Campaign: lock::CampaignRequest => lock::CampaignResponse,
        |r| Scope::locks(&r.namespace), |r| unless_at_once(r.wait_ms), id = request_id, wait = wait_ms;
    Proclaim: lock::ProclaimRequest => lock::ProclaimResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    Leader: lock::LeaderRequest => lock::LeaderResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    Resign: lock::ResignRequest => lock::ResignResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    SetPermits: lock::SetPermitsRequest => lock::SetPermitsResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    DeleteSemaphore: lock::DeleteSemaphoreRequest => lock::DeleteSemaphoreResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    AcquirePermits: lock::AcquirePermitsRequest => lock::AcquirePermitsResponse,
        |r| Scope::locks(&r.namespace), |r| unless_at_once(r.wait_ms), id = request_id, wait = wait_ms;
    ReleasePermits: lock::ReleasePermitsRequest => lock::ReleasePermitsResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    DescribeSemaphore: lock::DescribeSemaphoreRequest => lock::DescribeSemaphoreResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    ListSemaphores: lock::ListSemaphoresRequest => lock::ListSemaphoresResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    SetLatch: lock::SetLatchRequest => lock::SetLatchResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    CountDown: lock::CountDownRequest => lock::CountDownResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    AwaitLatch: lock::AwaitLatchRequest => lock::AwaitLatchResponse,
        |r| Scope::locks(&r.namespace), |r| unless_at_once(r.wait_ms), wait = wait_ms;
    GetLatch: lock::GetLatchRequest => lock::GetLatchResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    DeleteLatch: lock::DeleteLatchRequest => lock::DeleteLatchResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls, id = request_id;
    ListLatches: lock::ListLatchesRequest => lock::ListLatchesResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    EnterBarrier: lock::EnterBarrierRequest => lock::EnterBarrierResponse,
        |r| Scope::locks(&r.namespace), |r| unless_at_once(r.wait_ms), id = request_id, wait = wait_ms;
    LeaveBarrier: lock::LeaveBarrierRequest => lock::LeaveBarrierResponse,
        |r| Scope::locks(&r.namespace), |r| unless_at_once(r.wait_ms), id = request_id, wait = wait_ms;
    GetBarrier: lock::GetBarrierRequest => lock::GetBarrierResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    ListBarriers: lock::ListBarriersRequest => lock::ListBarriersResponse,
        |r| Scope::locks(&r.namespace), |_| Way::Calls;
    CreateQueue: queue::CreateQueueRequest => queue::CreateQueueResponse,
        |_| Scope::Any, |_| Way::Calls, id = request_id;
    Enqueue: queue::EnqueueRequest => queue::EnqueueResponse,
        |_| Scope::Any, |_| Way::Calls, id = request_id;
    Dequeue: queue::DequeueRequest => queue::DequeueResponse,
        |_| Scope::Any, |r| unless_at_once(r.wait_ms), id = request_id, wait = wait_ms;
    Ack: queue::AckRequest => queue::AckResponse,
        |_| Scope::Any, |_| Way::Calls, id = request_id;
    Put: cache::PutRequest => cache::PutResponse,
        |r| Scope::line(&r.namespace, &r.key), |_| Way::Calls, id = request_id;
    Get: cache::GetRequest => cache::GetResponse,
        |r| Scope::line(&r.namespace, &r.key), |_| Way::Calls;
    Delete: cache::DeleteRequest => cache::DeleteResponse,
        |r| Scope::line(&r.namespace, &r.key), |_| Way::Calls, id = request_id;
    Status: cluster::StatusRequest => cluster::StatusResponse,
        |_| Scope::Any, |_| Way::Calls;
    TransferLeader: cluster::TransferLeaderRequest => cluster::TransferLeaderResponse,
        |r| Scope::Shard(r.shard), |_| Way::Calls;
    CreateNamespace: cluster::CreateNamespaceRequest => cluster::CreateNamespaceResponse,
        |_| Scope::Shard(META), |_| Way::Calls, id = request_id;
    UpdateNamespace: cluster::UpdateNamespaceRequest => cluster::UpdateNamespaceResponse,
        |_| Scope::Shard(META), |_| Way::Calls, id = request_id;
    GetNamespace: cluster::GetNamespaceRequest => cluster::GetNamespaceResponse,
        |_| Scope::Shard(META), |_| Way::Calls;
    ListNamespaces: cluster::ListNamespacesRequest => cluster::ListNamespacesResponse,
        |_| Scope::Shard(META), |_| Way::Calls;
    DeleteNamespace: cluster::DeleteNamespaceRequest => cluster::DeleteNamespaceResponse,
        |_| Scope::Shard(META), |_| Way::Calls, id = request_id;
    GetNamespacePolicy: cluster::GetNamespacePolicyRequest => cluster::GetNamespacePolicyResponse,
        |_| Scope::Shard(META), |_| Way::Calls;
    SetNamespacePolicy: cluster::SetNamespacePolicyRequest => cluster::SetNamespacePolicyResponse,
        |_| Scope::Shard(META), |_| Way::Calls, id = request_id;
}

fn unless_at_once(wait_ms: u64) -> Way {
    if wait_ms == 0 { Way::Calls } else { Way::Waits }
}
