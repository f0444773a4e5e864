//! What clients see of a node: the addresses that it serves, and its health.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use slog::{Logger, info};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{MissedTickBehavior, interval};
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;
use trefoil_core::limits::{DRAIN_TIMEOUT_MS, PAGE_CONNECTIONS_MAX};

use crate::api::{Api, Shards, routes};
use crate::layer;
use crate::listener::{Caps, Listener};
use crate::pages;

/// How often health looks at the shards.
const HEALTH_INTERVAL: Duration = Duration::from_millis(200);

/// The name in grpc.health.v1 that says that the process answers, whatever the shards do: what restarts a node must ask
/// for it, since a restart brings no quorum back.
const LIVENESS: &str = "liveness";

/// What clients see of a node: the addresses that it serves.
#[derive(Debug)]
pub struct Front<S> {
    api: Arc<Api<S>>,
    /// True once requests are to end.
    closing: watch::Sender<bool>,
    health: HealthReporter,
    tasks: Vec<JoinHandle<()>>,
    logger: Logger,
}

/// The addresses of a front.
#[derive(Debug)]
pub struct Sockets {
    /// gRPC and pages.
    pub clients: TcpListener,
    /// Pages alone.
    pub pages: Option<TcpListener>,
}

impl<S: Shards> Front<S> {
    /// Serves an API on bound sockets.
    pub async fn start(api: Api<S>, sockets: Sockets, caps: Caps, logger: Logger) -> Self {
        let api = Arc::new(api);
        // Not for longer than the front lives.
        let described = Arc::downgrade(&api);
        api.shards().describe_by(move || described.upgrade().map(|api| api.own_status()));
        let health = HealthReporter::new();
        health.set_service_status(LIVENESS, ServingStatus::Serving).await;
        tell(&health, &api, ServingStatus::NotServing).await;
        let grpc = routes::routes(&api, health.clone()).into_axum_router();
        let pages = pages::router(Arc::clone(&api));
        let router = layer::stack(grpc, api.metrics(), api.admission())
            .merge(pages.clone())
            .fallback(pages::nothing);
        let closing = watch::Sender::new(false);
        let serve = |socket, caps, router: Router| {
            let metrics = Arc::clone(api.metrics());
            let listener = Listener { socket, caps, metrics, logger: logger.clone() };
            tokio::spawn(listener.serve(
                router,
                closing.subscribe(),
                Duration::from_millis(DRAIN_TIMEOUT_MS),
            ))
        };
        let mut tasks = vec![serve(sockets.clients, caps, router)];
        if let Some(socket) = sockets.pages {
            let caps = Caps::new(PAGE_CONNECTIONS_MAX, PAGE_CONNECTIONS_MAX);
            tasks.push(serve(socket, caps, pages));
        }
        tasks.push(tokio::spawn(watch_health(
            health.clone(),
            Arc::clone(&api),
            closing.subscribe(),
        )));
        Self { api, closing, health, tasks, logger }
    }

    /// What it serves.
    pub fn api(&self) -> &Arc<Api<S>> {
        &self.api
    }

    /// Says that it serves no longer, so that clients go elsewhere, and ends what waits. Requests are still answered.
    pub async fn announce_end(&self) {
        self.api.stop();
        tell(&self.health, &self.api, ServingStatus::NotServing).await;
        info!(self.logger, "not serving any more");
    }

    /// Takes no further connections and requests, and lets those that are open end.
    pub async fn stop(mut self) {
        self.api.end();
        self.closing.send_replace(true);
        // Whoever watches the health is told its end, too.
        for name in ["", LIVENESS].into_iter().chain(routes::served(&self.api)) {
            self.health.clear_service_status(name).await;
        }
        for task in self.tasks {
            // A task that panicked has nothing left to wait for.
            task.await.ok();
        }
        info!(self.logger, "clients are disconnected");
    }
}

/// Sets the health of the node and of each service.
async fn tell<S: Shards>(health: &HealthReporter, api: &Api<S>, status: ServingStatus) {
    for name in [""].into_iter().chain(routes::served(api)) {
        health.set_service_status(name, status).await;
    }
}

/// Keeps the health up to date until the end.
async fn watch_health<S: Shards>(
    health: HealthReporter,
    api: Arc<Api<S>>,
    mut closing: watch::Receiver<bool>,
) {
    let mut ticks = interval(HEALTH_INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut was_ready = false;
    loop {
        tokio::select! {
            _ = ticks.tick() => {}
            _ = closing.wait_for(|closing| *closing) => return,
        }
        let is_ready = api.is_ready();
        if is_ready != was_ready {
            was_ready = is_ready;
            let status = if is_ready { ServingStatus::Serving } else { ServingStatus::NotServing };
            tell(&health, &api, status).await;
        }
    }
}
