//! Every gRPC service of the client port, one line each, with the bounds of its messages.

use std::sync::Arc;

use prost_reflect::DescriptorError;
use tonic::codec::CompressionEncoding;
use tonic::service::Routes;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::pb::v1::server_reflection_server as v1;
use tonic_reflection::pb::v1alpha::server_reflection_server as v1alpha;
use trefoil_core::limits::{
    BATCH_BYTES_MAX, FRAME_BYTES_MAX, FRAME_READ_BYTES_MAX, REQUEST_BYTES_MAX, VALUE_BYTES_MAX,
};
use trefoil_proto::pipeline::v1::pipeline_service_server::PipelineServiceServer;

use super::generated::{add_services, service};
use super::pipeline::Pipeline;
use super::reflection::Reflection;
use super::unary::Unary;
use super::{Api, Shards};
use trefoil_proto::operation::Method;

/// Bytes of a message beside the values in it: names, headers, lengths.
const OVERHEAD_BYTES: usize = 64 << 10;
pub(super) const REQUEST_MAX: usize = REQUEST_BYTES_MAX + OVERHEAD_BYTES;
/// A Dequeue asks no further shard once it has a batch; the last shard's batch comes on top, and may be one message.
pub(super) const RESPONSE_MAX: usize = 2 * BATCH_BYTES_MAX + VALUE_BYTES_MAX + OVERHEAD_BYTES;
/// A frame is closed once it has reached its size: the last reply comes on top.
const FRAME_RESPONSE_MAX: usize = FRAME_BYTES_MAX + RESPONSE_MAX;

/// Messages that a client of Trefoil must be ready to receive, in bytes.
pub const RESPONSE_BYTES_MAX: usize = FRAME_RESPONSE_MAX;

/// The names of the services that are on and said to be healthy, beside "" for the node.
pub fn served<S: Shards>(api: &Api<S>) -> Vec<&'static str> {
    let is_on =
        |method: &Method| service(*method).is_none_or(|service| api.services().contains(&service));
    let mut names = Method::ALL
        .iter()
        .filter(|method| is_on(method))
        .map(|method| method.facts().service)
        .collect::<Vec<_>>();
    names.retain(|name| name.starts_with("trefoil."));
    names.dedup();
    names
}

/// Bounds what a service takes and gives.
macro_rules! bounded {
    ($service:expr) => {
        bounded!($service, REQUEST_MAX, RESPONSE_MAX)
    };
    ($service:expr, $request:expr, $response:expr) => {
        $service
            .max_decoding_message_size($request)
            .max_encoding_message_size($response)
            .accept_compressed(CompressionEncoding::Gzip)
    };
}
pub(super) use bounded;

/// The gRPC side of the client port.
///
/// # Errors
/// When the descriptors are not what reflection takes.
pub fn routes<S: Shards>(
    api: &Arc<Api<S>>,
    health: HealthReporter,
) -> Result<Routes, DescriptorError> {
    let reflection = reflection(api)?;
    let unary = Unary::new(Arc::clone(api));
    let health = tonic_health::pb::health_server::HealthServer::new(
        HealthService::from_health_reporter(health),
    );
    Ok(add_services(Routes::default(), &unary)
        .add_service(bounded!(
            PipelineServiceServer::new(Pipeline::new(Arc::clone(api))),
            FRAME_READ_BYTES_MAX,
            FRAME_RESPONSE_MAX
        ))
        .add_service(bounded!(health, OVERHEAD_BYTES, OVERHEAD_BYTES))
        .add_service(bounded!(
            v1::ServerReflectionServer::new(reflection.clone()),
            OVERHEAD_BYTES,
            RESPONSE_MAX
        ))
        .add_service(bounded!(
            v1alpha::ServerReflectionServer::new(reflection),
            OVERHEAD_BYTES,
            RESPONSE_MAX
        ))
        .prepare())
}

/// Reflection lists what clients may call.
fn reflection<S: Shards>(api: &Api<S>) -> Result<Reflection, DescriptorError> {
    let of_grpc = [Method::HealthCheck, Method::Reflection, Method::ReflectionAlpha]
        .map(|method| method.facts().service);
    Reflection::new(served(api).into_iter().chain(of_grpc))
}
