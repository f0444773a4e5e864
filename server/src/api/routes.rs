//! Every gRPC service of the client port, one line each, with the bounds of its messages.

use std::sync::Arc;

use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::server::Builder;
use trefoil_core::limits::{
    BATCH_BYTES_MAX, FRAME_BYTES_MAX, FRAME_READ_BYTES_MAX, REQUEST_BYTES_MAX, VALUE_BYTES_MAX,
};
use trefoil_proto::cache::v1::cache_service_server::CacheServiceServer;
use trefoil_proto::cluster::v1::cluster_service_server::ClusterServiceServer;
use trefoil_proto::cluster::v1::namespace_service_server::NamespaceServiceServer;
use trefoil_proto::lock::v1::barrier_service_server::BarrierServiceServer;
use trefoil_proto::lock::v1::election_service_server::ElectionServiceServer;
use trefoil_proto::lock::v1::lock_service_server::LockServiceServer;
use trefoil_proto::lock::v1::semaphore_service_server::SemaphoreServiceServer;
use trefoil_proto::pipeline::v1::pipeline_service_server::PipelineServiceServer;
use trefoil_proto::queue::v1::queue_service_server::QueueServiceServer;

use super::method::Method;
use super::pipeline::Pipeline;
use super::unary::Unary;
use super::{Api, Shards, operation};

/// Bytes of a message beside the values in it: names, headers, lengths.
const OVERHEAD_BYTES: usize = 64 << 10;
const REQUEST_MAX: usize = REQUEST_BYTES_MAX + OVERHEAD_BYTES;
/// A Dequeue asks no further shard once it has a batch; the last shard's batch comes on top, and may be one message.
const RESPONSE_MAX: usize = 2 * BATCH_BYTES_MAX + VALUE_BYTES_MAX + OVERHEAD_BYTES;
/// A frame is closed once it has reached its size: the last reply comes on top.
const FRAME_RESPONSE_MAX: usize = FRAME_BYTES_MAX + RESPONSE_MAX;

/// Messages that a client of Trefoil must be ready to receive, in bytes.
pub const RESPONSE_BYTES_MAX: usize = FRAME_RESPONSE_MAX;

/// The names of the services that are on and said to be healthy, beside "" for the node.
pub fn served<S: Shards>(api: &Api<S>) -> Vec<&'static str> {
    let is_on = |method: &Method| {
        operation::service(*method).is_none_or(|service| api.services().contains(&service))
    };
    let mut names = Method::ALL
        .iter()
        .filter(|method| is_on(method))
        .map(|method| method.service())
        .collect::<Vec<_>>();
    names.retain(|name| name.starts_with("trefoil."));
    names.dedup();
    names
}

/// The gRPC side of the client port.
///
/// # Errors
/// When the descriptors are not what reflection takes.
pub fn routes<S: Shards>(
    api: &Arc<Api<S>>,
    health: HealthReporter,
) -> Result<Routes, tonic_reflection::server::Error> {
    /// Bounds what a service takes and gives.
    macro_rules! bounded {
        ($service:expr, $request:expr, $response:expr) => {
            $service
                .max_decoding_message_size($request)
                .max_encoding_message_size($response)
                .accept_compressed(CompressionEncoding::Gzip)
        };
    }
    let unary = Unary::new(Arc::clone(api));
    let health = tonic_health::pb::health_server::HealthServer::new(
        HealthService::from_health_reporter(health),
    );
    Ok(Routes::new(bounded!(LockServiceServer::new(unary.clone()), REQUEST_MAX, RESPONSE_MAX))
        .add_service(bounded!(ElectionServiceServer::new(unary.clone()), REQUEST_MAX, RESPONSE_MAX))
        .add_service(bounded!(BarrierServiceServer::new(unary.clone()), REQUEST_MAX, RESPONSE_MAX))
        .add_service(bounded!(
            SemaphoreServiceServer::new(unary.clone()),
            REQUEST_MAX,
            RESPONSE_MAX
        ))
        .add_service(bounded!(QueueServiceServer::new(unary.clone()), REQUEST_MAX, RESPONSE_MAX))
        .add_service(bounded!(CacheServiceServer::new(unary.clone()), REQUEST_MAX, RESPONSE_MAX))
        .add_service(bounded!(ClusterServiceServer::new(unary.clone()), REQUEST_MAX, RESPONSE_MAX))
        .add_service(bounded!(NamespaceServiceServer::new(unary), REQUEST_MAX, RESPONSE_MAX))
        .add_service(bounded!(
            PipelineServiceServer::new(Pipeline::new(Arc::clone(api))),
            FRAME_READ_BYTES_MAX,
            FRAME_RESPONSE_MAX
        ))
        .add_service(bounded!(health, OVERHEAD_BYTES, OVERHEAD_BYTES))
        .add_service(bounded!(reflection(api).build_v1()?, OVERHEAD_BYTES, RESPONSE_MAX))
        .add_service(bounded!(reflection(api).build_v1alpha()?, OVERHEAD_BYTES, RESPONSE_MAX))
        .prepare())
}

/// Reflection describes everything and lists what clients may call.
fn reflection<S: Shards>(api: &Api<S>) -> Builder<'static> {
    let of_grpc =
        [Method::HealthCheck, Method::Reflection, Method::ReflectionAlpha].map(Method::service);
    let listed = served(api).into_iter().chain(of_grpc);
    let builder = Builder::configure()
        .register_encoded_file_descriptor_set(trefoil_proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(trefoil_proto::status::DETAIL_DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1::FILE_DESCRIPTOR_SET)
        .register_encoded_file_descriptor_set(tonic_reflection::pb::v1alpha::FILE_DESCRIPTOR_SET)
        .include_reflection_service(false);
    listed.fold(builder, Builder::with_service_name)
}
