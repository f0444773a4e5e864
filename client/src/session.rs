//! A session: the liveness of this program in a namespace, renewed in the background at a third of its TTL.
//!
//! It counts as lost as soon as this program cannot be sure that it lives: when its promised life, counted from
//! before the last answered renewal was sent, is over, or when the cluster says that it is gone.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::lock::v1::{KeepAliveRequest, OpenSessionRequest, ReleaseAsked, ReleaseRequest};

use crate::boot::BootInstant;
use crate::release_requests;
use crate::session_state::{SessionState, close};
use crate::{Client, Error};

/// Time between two renewals, as a share of the TTL.
const RENEWALS_PER_TTL: u32 = 3;
/// Pause after a renewal that failed in spite of its retries.
const PAUSES_PER_TTL: u32 = 20;
const RENEWAL_PAUSE_MAX: Duration = Duration::from_millis(500);
/// Longest pause between two looks at the clock by whoever waits for the end of a session.
const LOOK: Duration = Duration::from_secs(1);

/// An open session. Clones are the same session; when the last one and all its guards are gone, it is closed.
#[derive(Clone, Debug)]
pub struct Session {
    shared: Arc<SessionState>,
}

impl Session {
    pub(crate) async fn open(client: Client, request: OpenSessionRequest) -> Result<Self, Error> {
        let (opened, sent) = client.timed(request).await?;
        if opened.remaining_ms == 0 {
            return Err(expired());
        }
        let ttl = Duration::from_millis(opened.ttl_ms);
        let until = sent + Duration::from_millis(opened.remaining_ms);
        let shared = Arc::new(SessionState::new(client, opened.session_id, ttl, until));
        let task = tokio::spawn(keep_alive(Arc::downgrade(&shared), sent)).abort_handle();
        shared.keeper.get_or_init(|| task);
        Ok(Self { shared })
    }

    /// Names the session in the namespace.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// The granted TTL.
    #[must_use]
    pub fn ttl(&self) -> Duration {
        self.shared.ttl
    }

    /// How long the session lives for certain if nothing more is heard; never too long.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        let life = *self.shared.life.borrow();
        if life.over { Duration::ZERO } else { life.until.left() }
    }

    /// Ends when the session is lost or closed, and its locks with it.
    pub async fn lost(&self) {
        let mut life = self.shared.life.subscribe();
        loop {
            let known = *life.borrow_and_update();
            let left = known.until.left();
            if known.over {
                return;
            }
            if left.is_zero() {
                self.shared.end();
                return;
            }
            // Timers stand still while the machine sleeps: whoever waits looks at the clock himself.
            drop(timeout(left.min(LOOK), life.changed()).await);
        }
    }

    /// Closes the session and releases all that it holds. One that was lost before is gone already: that is no error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn close(self) -> Result<(), Error> {
        if !self.shared.end() {
            return Ok(());
        }
        or_gone(close(self.shared.client.clone(), self.shared.id).await)
    }

    /// Lets go of the session without closing it: it and its locks live until the TTL has passed, or until
    /// another program that knows its id closes or releases them. Guards of it release nothing any more.
    pub fn leave(self) {
        self.shared.end();
    }

    /// Ends when somebody asks for one of these locks of this session, under its token or a later one of the same hold.
    pub(crate) async fn release_requested(&self, locks: &[(&str, u64)]) -> ReleaseAsked {
        let shared = &self.shared;
        let listen = || {
            shared.runtime.spawn(release_requests::listen(Arc::downgrade(shared))).abort_handle()
        };
        shared.listener.get_or_init(listen);
        let of_locks = |requests: &BTreeMap<String, ReleaseAsked>| {
            let asked = |(name, token): &(&str, u64)| {
                requests.get(*name).filter(|asked| asked.fencing_token >= *token).cloned()
            };
            locks.iter().find_map(asked)
        };
        let mut requests = shared.requests.subscribe();
        let found = requests.wait_for(|requests| of_locks(requests).is_some()).await;
        // The sender lives in `self`.
        found.ok().and_then(|requests| of_locks(&requests)).unwrap_or_default()
    }

    pub(crate) fn client(&self) -> &Client {
        &self.shared.client
    }

    pub(crate) fn expired(&self) -> Error {
        expired()
    }

    pub(crate) async fn release(&self, name: String, token: u64) -> Result<(), Error> {
        if self.shared.life.borrow().over {
            return Ok(());
        }
        let request = ReleaseRequest {
            namespace: self.shared.client.owned_namespace(),
            session_id: self.shared.id,
            name,
            fencing_token: token,
            request_id: None,
        };
        or_gone(self.shared.client.call(request).await.map(drop))
    }

    /// What a dropped guard does. The session stays open until it is done.
    pub(crate) fn release_in_background(&self, name: String, token: u64) {
        let session = self.clone();
        self.shared.runtime.spawn(async move {
            // Nobody is left to be told; if it fails, the session's end releases the lock.
            drop(session.release(name, token).await);
        });
    }
}

fn expired() -> Error {
    let message =
        "the session is lost: it expired, was closed, or could not be renewed in time".to_owned();
    Error::Refused { reason: Reason::SessionExpired, message, metadata: BTreeMap::new() }
}

/// What was lost before is not held any more, as its holder wants it.
fn or_gone(ended: Result<(), Error>) -> Result<(), Error> {
    match ended {
        Err(Error::Refused { reason: Reason::SessionExpired | Reason::NotHolder, .. }) => Ok(()),
        ended => ended,
    }
}

/// Renews the session until it is over or nobody has it any more.
async fn keep_alive(session: Weak<SessionState>, opened: BootInstant) {
    let mut due = opened;
    loop {
        let Some((ttl, until)) =
            session.upgrade().map(|shared| (shared.ttl, shared.life.borrow().until))
        else {
            return;
        };
        due = (due + ttl / RENEWALS_PER_TTL).min(until);
        sleep(due.left()).await;
        let Some(shared) = session.upgrade() else { return };
        if shared.life.borrow().over {
            return;
        }
        if until.left().is_zero() {
            shared.end();
            return;
        }
        due = BootInstant::now();
        renew(&shared, until).await;
    }
}

/// One renewal, with retries, for as long as the session lives for certain.
async fn renew(shared: &SessionState, until: BootInstant) {
    let request =
        KeepAliveRequest { namespace: shared.client.owned_namespace(), session_id: shared.id };
    loop {
        let share = (shared.ttl / RENEWALS_PER_TTL).min(until.left());
        if share.is_zero() {
            return;
        }
        match shared.client.with_timeout(share).timed(request.clone()).await {
            Ok((renewed, sent)) => {
                let promised = sent + Duration::from_millis(renewed.remaining_ms);
                shared.life.send_modify(|life| life.until = life.until.max(promised));
                return;
            }
            Err(error) if error.reason() == Some(Reason::SessionExpired) => {
                shared.end();
                return;
            }
            Err(_) => {
                sleep((shared.ttl / PAUSES_PER_TTL).min(RENEWAL_PAUSE_MAX)).await;
            }
        }
    }
}
