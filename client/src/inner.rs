//! What all clones of a client share: routes, layouts of queues, names of requests, and when leaders were last asked for.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use trefoil_proto::cluster::v1::StatusRequest;

use crate::lane::Lane;
use crate::layouts::Layouts;
use crate::request_id::Ids;
use crate::route::Routes;
use crate::routing_key::RoutingKey;

/// Pause between two looks at who leads.
const REFRESH_PAUSE: Duration = Duration::from_millis(200);
/// Time that a node has to say who leads.
pub(crate) const REFRESH_TIMEOUT: Duration = Duration::from_secs(1);

/// What all clones share.
#[derive(Debug)]
pub(crate) struct SharedClient {
    pub(crate) routes: Routes,
    pub(crate) layouts: Layouts,
    calls: Ids,
    waits: Ids,
    started: Instant,
    /// When leaders were last asked for, in ms since the start.
    refreshed_ms: AtomicU64,
}

impl SharedClient {
    pub(crate) fn new(routes: Routes) -> Self {
        Self {
            routes,
            layouts: Layouts::default(),
            calls: Ids::new(),
            waits: Ids::new(),
            started: Instant::now(),
            refreshed_ms: AtomicU64::new(0),
        }
    }

    /// Calls that wait have names of their own: one long wait would hold back the floor of all other calls.
    pub(crate) fn ids(&self, lane: Lane) -> &Ids {
        match lane {
            Lane::Calls | Lane::Renewals => &self.calls,
            Lane::Waits => &self.waits,
        }
    }

    /// Asks in the background who leads, unless that was asked just now.
    pub(crate) fn refresh(self: &Arc<Self>) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX).max(1);
        let pause = u64::try_from(REFRESH_PAUSE.as_millis()).unwrap_or(u64::MAX);
        let refreshed = self.refreshed_ms.load(Ordering::Relaxed);
        if refreshed != 0 && now < refreshed.saturating_add(pause)
            || self
                .refreshed_ms
                .compare_exchange(refreshed, now, Ordering::Relaxed, Ordering::Relaxed)
                .is_err()
        {
            return;
        }
        let inner = Arc::clone(self);
        tokio::spawn(async move {
            let node = inner.routes.pick(RoutingKey::Any, &[]);
            if let Ok(status) = node.once(StatusRequest::default(), REFRESH_TIMEOUT).await {
                inner.routes.absorb(&node, &status);
            }
        });
    }
}
