//! The unary services: one RPC for each operation, for grpcurl and any language.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use tonic::{Request, Response, Status, Streaming};
use trefoil_proto::cache::v1 as cache;
use trefoil_proto::cluster::v1 as cluster;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::queue::v1 as queue;

use super::method::Method;
use super::operation::{self, Operation};
use super::told::{Listener, Told};
use super::{Api, Caller, Outcome, Shards, other_answer};
use crate::authorize::Principal;
use crate::layer::Waits;
use crate::layer::admission::Permit;

/// Where a connection comes from, noted by the listener.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// When the caller gives up, noted by the deadline layer.
#[derive(Clone, Copy, Debug)]
pub struct CallTimeout(pub Duration);

/// The unary services on one front.
#[derive(Debug)]
pub struct Unary<S> {
    api: Arc<Api<S>>,
}

impl<S> Clone for Unary<S> {
    fn clone(&self) -> Self {
        Self { api: Arc::clone(&self.api) }
    }
}

/// The principal of a request, from what the listener noted.
pub(super) fn principal<T>(request: &Request<T>) -> Principal {
    Principal { address: request.extensions().get::<PeerAddress>().map(|address| address.0) }
}

impl<S: Shards> Unary<S> {
    /// Serves a front.
    #[must_use]
    pub fn new(api: Arc<Api<S>>) -> Self {
        Self { api }
    }

    /// Takes what a stream needs out of its first request.
    pub(super) fn listener<T>(
        &self,
        request: &mut Request<T>,
        method: Method,
    ) -> Result<Listener, Status> {
        let permit = request.extensions_mut().remove::<Arc<Permit>>();
        let permit = self.permit(permit, method)?;
        let timeout = request.extensions().get::<CallTimeout>().map(|timeout| timeout.0);
        Ok(Listener { principal: principal(request), timeout, method, permit })
    }

    async fn serve<T>(
        &self,
        mut request: Request<T>,
        wrap: fn(T) -> Operation,
    ) -> Result<Outcome, Status> {
        let principal = principal(&request);
        let timeout = request.extensions().get::<CallTimeout>().map(|timeout| timeout.0);
        let permit = request.extensions_mut().remove::<Arc<Permit>>();
        let waits = request.extensions_mut().remove::<Waits>();
        let operation = wrap(request.into_inner());
        let permit = self.permit(permit, operation::method(&operation))?;
        let facts = operation::facts(&operation);
        let has_request_id = facts.request_id.is_some();
        if let Some(Waits(waits)) = waits {
            waits.store(facts.wait_ms > 0, Ordering::Relaxed);
        }
        let caller = Caller { principal, timeout, permit, cancelled: None };
        let end = self.api.call(caller, operation).await;
        end.map_err(|refusal| self.refuse(&refusal, has_request_id))
    }

    /// The place that the call has, or one of its own.
    fn permit(&self, permit: Option<Arc<Permit>>, method: Method) -> Result<Arc<Permit>, Status> {
        permit.map_or_else(
            || {
                let admitted = self.api.admission().admit(method.load(), None);
                admitted.map(Arc::new).map_err(|refusal| self.refuse(&refusal, false))
            },
            Ok,
        )
    }

    fn refuse(&self, refusal: &Refusal, has_request_id: bool) -> Status {
        self.api.metrics().refuse(refusal, has_request_id)
    }
}

/// The methods of a service: each wraps its request, and unwraps its outcome.
macro_rules! service {
    ($trait:path { $($rpc:ident: $variant:ident($request:ty) -> $response:ty;)* } $($streams:tt)*) => {
        #[tonic::async_trait]
        impl<S: Shards> $trait for Unary<S> {
            $(async fn $rpc(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                match self.serve(request, Operation::$variant).await? {
                    Outcome::$variant(response) => Ok(Response::new(response)),
                    _ => Err(self.refuse(&other_answer(), false)),
                }
            })*
            $($streams)*
        }
    };
}

service!(lock::lock_service_server::LockService {
    open_session: OpenSession(lock::OpenSessionRequest) -> lock::OpenSessionResponse;
    keep_alive: KeepAlive(lock::KeepAliveRequest) -> lock::KeepAliveResponse;
    close_session: CloseSession(lock::CloseSessionRequest) -> lock::CloseSessionResponse;
    acquire: Acquire(lock::AcquireRequest) -> lock::AcquireResponse;
    release: Release(lock::ReleaseRequest) -> lock::ReleaseResponse;
    convert: Convert(lock::ConvertRequest) -> lock::ConvertResponse;
    release_all: ReleaseAll(lock::ReleaseAllRequest) -> lock::ReleaseAllResponse;
    describe_lock: DescribeLock(lock::DescribeLockRequest) -> lock::DescribeLockResponse;
    list_locks: ListLocks(lock::ListLocksRequest) -> lock::ListLocksResponse;
    get_session: GetSession(lock::GetSessionRequest) -> lock::GetSessionResponse;
    list_sessions: ListSessions(lock::ListSessionsRequest) -> lock::ListSessionsResponse;
    list_deadlocks: ListDeadlocks(lock::ListDeadlocksRequest) -> lock::ListDeadlocksResponse;
    force_release: ForceRelease(lock::ForceReleaseRequest) -> lock::ForceReleaseResponse;
    request_release: RequestRelease(lock::RequestReleaseRequest) -> lock::RequestReleaseResponse;
    validate_token: ValidateToken(lock::ValidateTokenRequest) -> lock::ValidateTokenResponse;
}
    type KeepAliveStreamStream = Told<lock::KeepAliveStreamResponse>;

    async fn keep_alive_stream(
        &self,
        mut request: Request<Streaming<lock::KeepAliveStreamRequest>>,
    ) -> Result<Response<Self::KeepAliveStreamStream>, Status> {
        let listener = self.listener(&mut request, Method::KeepAliveStream)?;
        let told = self.api.keep_alive_stream(listener, request.into_inner()).await;
        told.map(Response::new).map_err(|refusal| self.refuse(&refusal, false))
    }

    type AcquireStreamStream = Told<lock::AcquireStreamResponse>;

    async fn acquire_stream(
        &self,
        mut request: Request<lock::AcquireStreamRequest>,
    ) -> Result<Response<Self::AcquireStreamStream>, Status> {
        let listener = self.listener(&mut request, Method::AcquireStream)?;
        let request = request.into_inner();
        let has_id = request.acquire.as_ref().is_some_and(|acquire| acquire.request_id.is_some());
        let told = self.api.acquire_stream(listener, request);
        told.map(Response::new).map_err(|refusal| self.refuse(&refusal, has_id))
    }

    type WatchLocksStream = Told<lock::WatchLocksResponse>;

    async fn watch_locks(
        &self,
        mut request: Request<lock::WatchLocksRequest>,
    ) -> Result<Response<Self::WatchLocksStream>, Status> {
        let listener = self.listener(&mut request, Method::WatchLocks)?;
        let told = self.api.watch_locks(listener, request.into_inner()).await;
        told.map(Response::new).map_err(|refusal| self.refuse(&refusal, false))
    }
);

service!(lock::election_service_server::ElectionService {
    campaign: Campaign(lock::CampaignRequest) -> lock::CampaignResponse;
    proclaim: Proclaim(lock::ProclaimRequest) -> lock::ProclaimResponse;
    leader: Leader(lock::LeaderRequest) -> lock::LeaderResponse;
    resign: Resign(lock::ResignRequest) -> lock::ResignResponse;
}
    type ObserveStream = Told<lock::ObserveResponse>;

    async fn observe(
        &self,
        mut request: Request<lock::ObserveRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let listener = self.listener(&mut request, Method::Observe)?;
        let told = self.api.observe(listener, request.into_inner()).await;
        told.map(Response::new).map_err(|refusal| self.refuse(&refusal, false))
    }
);

service!(lock::semaphore_service_server::SemaphoreService {
    set_permits: SetPermits(lock::SetPermitsRequest) -> lock::SetPermitsResponse;
    delete_semaphore: DeleteSemaphore(lock::DeleteSemaphoreRequest) -> lock::DeleteSemaphoreResponse;
    acquire_permits: AcquirePermits(lock::AcquirePermitsRequest) -> lock::AcquirePermitsResponse;
    release_permits: ReleasePermits(lock::ReleasePermitsRequest) -> lock::ReleasePermitsResponse;
    describe_semaphore: DescribeSemaphore(lock::DescribeSemaphoreRequest) -> lock::DescribeSemaphoreResponse;
    list_semaphores: ListSemaphores(lock::ListSemaphoresRequest) -> lock::ListSemaphoresResponse;
});

service!(lock::barrier_service_server::BarrierService {
    set_latch: SetLatch(lock::SetLatchRequest) -> lock::SetLatchResponse;
    count_down: CountDown(lock::CountDownRequest) -> lock::CountDownResponse;
    await_latch: AwaitLatch(lock::AwaitLatchRequest) -> lock::AwaitLatchResponse;
    get_latch: GetLatch(lock::GetLatchRequest) -> lock::GetLatchResponse;
    delete_latch: DeleteLatch(lock::DeleteLatchRequest) -> lock::DeleteLatchResponse;
    list_latches: ListLatches(lock::ListLatchesRequest) -> lock::ListLatchesResponse;
    enter_barrier: EnterBarrier(lock::EnterBarrierRequest) -> lock::EnterBarrierResponse;
    leave_barrier: LeaveBarrier(lock::LeaveBarrierRequest) -> lock::LeaveBarrierResponse;
    get_barrier: GetBarrier(lock::GetBarrierRequest) -> lock::GetBarrierResponse;
    list_barriers: ListBarriers(lock::ListBarriersRequest) -> lock::ListBarriersResponse;
});

service!(queue::queue_service_server::QueueService {
    create_queue: CreateQueue(queue::CreateQueueRequest) -> queue::CreateQueueResponse;
    enqueue: Enqueue(queue::EnqueueRequest) -> queue::EnqueueResponse;
    dequeue: Dequeue(queue::DequeueRequest) -> queue::DequeueResponse;
    ack: Ack(queue::AckRequest) -> queue::AckResponse;
});

service!(cache::cache_service_server::CacheService {
    put: Put(cache::PutRequest) -> cache::PutResponse;
    get: Get(cache::GetRequest) -> cache::GetResponse;
    delete: Delete(cache::DeleteRequest) -> cache::DeleteResponse;
});

service!(cluster::cluster_service_server::ClusterService {
    status: Status(cluster::StatusRequest) -> cluster::StatusResponse;
    transfer_leader: TransferLeader(cluster::TransferLeaderRequest) -> cluster::TransferLeaderResponse;
});

service!(cluster::namespace_service_server::NamespaceService {
    create_namespace: CreateNamespace(cluster::CreateNamespaceRequest) -> cluster::CreateNamespaceResponse;
    update_namespace: UpdateNamespace(cluster::UpdateNamespaceRequest) -> cluster::UpdateNamespaceResponse;
    get_namespace: GetNamespace(cluster::GetNamespaceRequest) -> cluster::GetNamespaceResponse;
    list_namespaces: ListNamespaces(cluster::ListNamespacesRequest) -> cluster::ListNamespacesResponse;
    delete_namespace: DeleteNamespace(cluster::DeleteNamespaceRequest) -> cluster::DeleteNamespaceResponse;
    get_namespace_policy: GetNamespacePolicy(cluster::GetNamespacePolicyRequest) -> cluster::GetNamespacePolicyResponse;
    set_namespace_policy: SetNamespacePolicy(cluster::SetNamespacePolicyRequest) -> cluster::SetNamespacePolicyResponse;
});
