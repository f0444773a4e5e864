//! The unary services: one RPC for each operation, for grpcurl and any language.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tonic::{Request, Response, Status};
use trefoil_proto::cache::v1 as cache;
use trefoil_proto::cluster::v1 as cluster;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::queue::v1 as queue;
use trefoil_proto::status::to_status;

use super::operation::{self, Operation};
use super::{Api, Caller, Outcome, Shards, other_answer};
use crate::authorize::Principal;
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

    async fn serve<T>(
        &self,
        mut request: Request<T>,
        wrap: fn(T) -> Operation,
    ) -> Result<Outcome, Status> {
        let principal = principal(&request);
        let timeout = request.extensions().get::<CallTimeout>().map(|timeout| timeout.0);
        let permit = request.extensions_mut().remove::<Arc<Permit>>();
        let operation = wrap(request.into_inner());
        let permit = match permit {
            Some(permit) => permit,
            None => Arc::new(
                self.api
                    .admission()
                    .admit(operation::method(&operation).load())
                    .map_err(|r| to_status(&r, false))?,
            ),
        };
        let has_request_id = operation::facts(&operation).request_id.is_some();
        let caller = Caller { principal, timeout, permit, cancelled: None };
        self.api
            .call(caller, operation)
            .await
            .map_err(|refusal| to_status(&refusal, has_request_id))
    }
}

/// The methods of a service: each wraps its request, and unwraps its outcome.
macro_rules! service {
    ($trait:path { $($rpc:ident: $variant:ident($request:ty) -> $response:ty;)* }) => {
        #[tonic::async_trait]
        impl<S: Shards> $trait for Unary<S> {
            $(async fn $rpc(&self, request: Request<$request>) -> Result<Response<$response>, Status> {
                match self.serve(request, Operation::$variant).await? {
                    Outcome::$variant(response) => Ok(Response::new(response)),
                    _ => Err(to_status(&other_answer(), false)),
                }
            })*
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
    validate_token: ValidateToken(lock::ValidateTokenRequest) -> lock::ValidateTokenResponse;
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
