//! Commands that clean up after callers who are gone.

use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep};
use trefoil_core::limits::CLIENT_CLEAN_UPS_MAX;
use trefoil_proto::internal::v1::{Access, Refusal, command};
use trefoil_proto::reason::Retry;

use super::{Api, CallContext, Shards};

/// How long a clean-up is tried.
const CLEAN_UP_TIMEOUT: Duration = Duration::from_secs(10);
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Places for clean-ups. Without one, a session's or a lease's own end cleans up.
#[derive(Debug)]
pub(super) struct Background {
    places: Arc<Semaphore>,
}

impl Default for Background {
    fn default() -> Self {
        Self { places: Arc::new(Semaphore::new(CLIENT_CLEAN_UPS_MAX)) }
    }
}

impl Background {
    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) {
        let Ok(place) = Arc::clone(&self.places).try_acquire_owned() else { return };
        // Without a runtime the process is about to end.
        if let Ok(runtime) = Handle::try_current() {
            runtime.spawn(async move {
                work.await;
                drop(place);
            });
        }
    }
}

impl<S: Shards> Api<S> {
    /// Has a command applied after a pause, trying again while that can help. It must be harmless to repeat.
    pub(super) fn clean_up(
        self: &Arc<Self>,
        slot: u16,
        operation: command::Operation,
        access: &Arc<Access>,
        pause: Duration,
    ) {
        let (api, access) = (Arc::clone(self), Arc::clone(access));
        self.background.spawn(async move {
            sleep(pause).await;
            let deadline = Instant::now() + CLEAN_UP_TIMEOUT;
            let ask = CallContext { access, deadline, fingerprint: 0 };
            while let Err(refusal) = api.command(slot, None, operation.clone(), &ask).await {
                if !may_help(&refusal) || Instant::now() + RETRY_PAUSE >= ask.deadline {
                    return;
                }
                sleep(RETRY_PAUSE).await;
            }
        });
    }
}

/// Whether the same command may fare better a little later.
pub(super) fn may_help(refusal: &Refusal) -> bool {
    refusal.reason().row().retry != Retry::Never
}
