//! Every gRPC service of the client port, one line each, with the bounds of its messages.

use std::sync::Arc;

use tonic::service::Routes;
use tonic_health::server::{HealthReporter, HealthService};
use tonic_reflection::pb::v1::server_reflection_server as v1;
use tonic_reflection::pb::v1alpha::server_reflection_server as v1alpha;
use trefoil_core::limits::FRAME_READ_BYTES_MAX;
use trefoil_proto::pipeline::v1::pipeline_service_server::PipelineServiceServer;

use super::bounds::{FRAME_RESPONSE_MAX, OVERHEAD_BYTES, RESPONSE_MAX, bounded};
use super::generated::add_services;
use super::operation::service;
use super::pipeline::Pipeline;
use super::reflection::Reflection;
use super::unary::Unary;
use super::{Api, Shards};
use trefoil_proto::operation::Method;

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

/// The gRPC side of the client port.
pub fn routes<S: Shards>(api: &Arc<Api<S>>, health: HealthReporter) -> Routes {
    let reflection = reflection(api);
    let unary = Unary::new(Arc::clone(api));
    let health = tonic_health::pb::health_server::HealthServer::new(
        HealthService::from_health_reporter(health),
    );
    add_services(Routes::default(), &unary)
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
        .prepare()
}

/// Reflection lists what clients may call.
fn reflection<S: Shards>(api: &Api<S>) -> Reflection {
    let of_grpc = [Method::HealthCheck, Method::Reflection, Method::ReflectionAlpha]
        .map(|method| method.facts().service);
    Reflection::new(served(api).into_iter().chain(of_grpc))
}
