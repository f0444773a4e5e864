//! What a browser, a probe or Prometheus asks over HTTP/1.1: /metrics, /livez, /readyz, /health.

use std::sync::Arc;

use axum::Router;
use axum::extract::State;
use axum::response::{IntoResponse, Json, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode, header};
use serde::Serialize;
use trefoil_core::{META_SHARD, NodeId};
use trefoil_proto::status::to_status;

use crate::api::{Api, Shards};
use crate::layer::content::is_grpc;
use crate::layer::unreadable::unsupported;

const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// What /health says, as the replaced system did.
#[derive(Debug, Serialize)]
struct HealthPage {
    /// Whether this node serves: every shard has a leader and the node is not about to end.
    ok: bool,
    /// Raft id of this node.
    id: NodeId,
    /// Its role in the meta shard: 0 follower, 1 candidate, 2 leader.
    role: u32,
    /// Term of the meta shard.
    term: u64,
}

/// The pages of one front.
pub fn router<S: Shards>(api: Arc<Api<S>>) -> Router {
    Router::new()
        .route("/metrics", get(metrics::<S>))
        .route("/livez", get(|| async { "ok\n" }))
        .route("/readyz", get(readyz::<S>))
        .route("/health", get(health::<S>))
        .with_state(api)
}

/// A path that is none: gRPC wants UNIMPLEMENTED in an answer that is otherwise in order, everybody else 404.
pub async fn nothing(headers: HeaderMap) -> Response {
    if is_grpc(&headers) {
        return to_status(&unsupported("this node has no such service"), false).into_http();
    }
    (StatusCode::NOT_FOUND, "there is nothing here\n").into_response()
}

async fn metrics<S: Shards>(State(api): State<Arc<Api<S>>>) -> Response {
    match api.metrics().encode() {
        Ok(text) => ([(header::CONTENT_TYPE, METRICS_TYPE)], text).into_response(),
        Err(_) => {
            (StatusCode::INTERNAL_SERVER_ERROR, "a metric cannot be encoded\n").into_response()
        }
    }
}

async fn readyz<S: Shards>(State(api): State<Arc<Api<S>>>) -> (StatusCode, &'static str) {
    if api.is_ready() {
        (StatusCode::OK, "ok\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not every shard has a leader, or the node is stopping\n")
    }
}

async fn health<S: Shards>(State(api): State<Arc<Api<S>>>) -> (StatusCode, Json<HealthPage>) {
    let states = api.shards().status();
    let meta = states.iter().find(|state| state.shard == META_SHARD).copied().unwrap_or_default();
    let ok = api.is_ready();
    let role = meta.status.role;
    let health =
        HealthPage { ok, id: api.shards().node_id(), role: role.role as u32, term: role.term };
    (if ok { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }, Json(health))
}
