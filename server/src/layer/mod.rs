//! What every gRPC request passes on its way in: one list, one reason for each layer.

pub mod admission;
mod deadline;
mod measure;
pub(crate) mod oversize;
mod shed;

use std::sync::Arc;

use axum::Router;
use tower::ServiceBuilder;

use self::admission::Admission;
use crate::metrics::Metrics;

/// Puts the layers round the gRPC services, the outermost first.
pub fn stack(services: Router, metrics: &Arc<Metrics>, admission: &Arc<Admission>) -> Router {
    services.layer(
        ServiceBuilder::new()
            // Counts a request and its end, whatever the layers below make of it.
            .layer(measure::layer(Arc::clone(metrics)))
            // Gives a message beyond its limit the reason that clients can read.
            .layer(oversize::layer())
            // Refuses what is too much before its body is read, but never what ends work.
            .layer(shed::layer(Arc::clone(admission), Arc::clone(metrics)))
            // Tells the handler how long the caller waits: tonic keeps that to itself.
            .layer(deadline::layer()),
    )
}
