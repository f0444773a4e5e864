//! What every gRPC request passes on its way in: one list, one reason for each layer.

pub mod admission;
pub(crate) mod content;
mod deadline;
mod measure;
mod shed;
pub(crate) mod unreadable;

use std::net::SocketAddr;
use std::time::Duration;

use std::sync::Arc;

use axum::Router;
use tower::ServiceBuilder;

use self::admission::Admission;
pub(crate) use self::measure::Waits;
use crate::metrics::Metrics;

/// Puts the layers round the gRPC services, the outermost first.
pub fn stack(services: Router, metrics: &Arc<Metrics>, admission: &Arc<Admission>) -> Router {
    services.layer(
        ServiceBuilder::new()
            // Counts a call and its end, whatever the layers below make of it; what is not gRPC is none.
            .layer(measure::layer(Arc::clone(metrics)))
            // Gives what tonic refuses the reason that clients can read.
            .layer(unreadable::layer(Arc::clone(metrics)))
            // Refuses what is too much before its body is read, but never what ends work.
            .layer(shed::layer(Arc::clone(admission), Arc::clone(metrics)))
            // Tells the handler how long the caller waits: tonic keeps that to itself.
            .layer(deadline::layer()),
    )
}

/// Where a connection comes from, noted by the listener.
#[derive(Clone, Copy, Debug)]
pub struct PeerAddress(pub SocketAddr);

/// When the caller gives up, noted by the deadline layer.
#[derive(Clone, Copy, Debug)]
pub struct CallTimeout(pub Duration);
