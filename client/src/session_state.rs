//! What the clones of a session, its guards and its tasks share. When the last of them is gone, the session is closed.

use std::collections::BTreeMap;
use std::sync::OnceLock;
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;
use trefoil_proto::lock::v1::{CloseSessionRequest, ReleaseAsked};

use crate::boot::BootInstant;
use crate::{Client, Error};

/// An open session, as this program has it.
#[derive(Debug)]
pub(crate) struct SessionState {
    pub(crate) client: Client,
    pub(crate) id: u64,
    pub(crate) ttl: Duration,
    pub(crate) runtime: Handle,
    pub(crate) life: watch::Sender<SessionLiveness>,
    pub(crate) keeper: OnceLock<AbortHandle>,
    /// The last request for each of its locks, once somebody wants to know.
    pub(crate) requests: watch::Sender<BTreeMap<String, ReleaseAsked>>,
    pub(crate) listener: OnceLock<AbortHandle>,
}

/// What is known of the session's life.
#[derive(Clone, Copy, Debug)]
pub(crate) struct SessionLiveness {
    /// Lives for certain until then.
    pub(crate) until: BootInstant,
    /// Lost or closed; never lives again.
    pub(crate) over: bool,
}

impl SessionState {
    pub(crate) fn new(client: Client, id: u64, ttl: Duration, until: BootInstant) -> Self {
        Self {
            client,
            id,
            ttl,
            runtime: Handle::current(),
            life: watch::Sender::new(SessionLiveness { until, over: false }),
            keeper: OnceLock::new(),
            requests: watch::Sender::default(),
            listener: OnceLock::new(),
        }
    }

    /// The client, and the session's number.
    pub(crate) fn name(&self) -> (Client, u64) {
        (self.client.clone(), self.id)
    }

    /// Somebody asks for one of its locks.
    pub(crate) fn asked(&self, asked: ReleaseAsked) {
        self.requests.send_modify(|requests| drop(requests.insert(asked.name.clone(), asked)));
    }

    /// The cluster says that it is over.
    pub(crate) fn lose(&self) {
        self.end();
    }

    pub(crate) fn is_over(&self) -> bool {
        let life = *self.life.borrow();
        life.over || life.until.left().is_zero()
    }

    /// Marks the session as over; false when it was already.
    pub(crate) fn end(&self) -> bool {
        self.life.send_if_modified(|life| !std::mem::replace(&mut life.over, true))
    }
}

impl Drop for SessionState {
    fn drop(&mut self) {
        [&self.keeper, &self.listener]
            .into_iter()
            .filter_map(|task| task.get())
            .for_each(AbortHandle::abort);
        if self.end() {
            let (client, id) = (self.client.clone(), self.id);
            self.runtime.spawn(async move {
                // Nobody is left to be told; if it fails, the session expires.
                drop(close(client, id).await);
            });
        }
    }
}

pub(crate) async fn close(client: Client, session_id: u64) -> Result<(), Error> {
    let request =
        CloseSessionRequest { namespace: client.owned_namespace(), session_id, request_id: None };
    client.call(request).await.map(drop)
}
