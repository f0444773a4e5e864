//! Locks: held by a session, for as long as the session lives. The fencing token goes along with every use of
//! what the lock protects, because no clock can promise that the holder knows in time that it has lost it.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use trefoil_proto::lock::v1::{AcquireRequest, OpenSessionRequest, ReleaseRequest};

use crate::millis;
use crate::session::Session;
use crate::{Client, Error};

/// The locks of a namespace.
#[derive(Clone, Debug)]
pub struct Locks {
    client: Client,
}

/// A session to be opened by awaiting it.
#[derive(Clone, Debug)]
#[must_use = "a session is opened when it is awaited"]
pub struct OpenSession {
    client: Client,
    request: OpenSessionRequest,
}

/// A lock to be acquired.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before acquire"]
pub struct Lock {
    session: Session,
    name: String,
    wait: Duration,
}

/// A lock that is held. Dropping it releases it in the background; `release` also says how that went.
#[derive(Debug)]
pub struct Guard {
    session: Session,
    name: String,
    token: u64,
    released: bool,
}

impl Locks {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
    }

    /// A session that is kept alive in the background and lives for `ttl` (100 ms to a day) after that ends.
    pub fn open_session(&self, ttl: Duration) -> OpenSession {
        let request = OpenSessionRequest {
            namespace: self.client.owned_namespace(),
            ttl_ms: millis(ttl),
            ..OpenSessionRequest::default()
        };
        OpenSession { client: self.client.clone(), request }
    }

    /// Releases a lock of a session that another program opened; token 0 releases whatever grant it has.
    ///
    /// # Errors
    /// SESSION_EXPIRED, NOT_HOLDER; else see [`Error`].
    pub async fn release(
        &self,
        session_id: u64,
        name: impl Into<String>,
        fencing_token: u64,
    ) -> Result<(), Error> {
        let request = ReleaseRequest {
            namespace: self.client.owned_namespace(),
            session_id,
            name: name.into(),
            fencing_token,
            request_id: None,
        };
        self.client.call(request).await.map(drop)
    }
}

impl OpenSession {
    /// A word that says who this is, for operators. At most 255 bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.request.owner = owner.into();
        self
    }
}

impl IntoFuture for OpenSession {
    type Output = Result<Session, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(Session::open(self.client, self.request))
    }
}

impl Lock {
    pub(crate) fn new(session: Session, name: String) -> Self {
        Self { session, name, wait: Duration::ZERO }
    }

    /// Waits so long, in the order of arrival, at most a day (default: tries once).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Acquires the lock; none when another holds it until the wait ends. Dropping the future stops waiting.
    ///
    /// # Errors
    /// SESSION_EXPIRED, LIMIT_REACHED; else see [`Error`].
    pub async fn acquire(self) -> Result<Option<Guard>, Error> {
        let request = AcquireRequest {
            namespace: self.session.client().owned_namespace(),
            session_id: self.session.id(),
            name: self.name.clone(),
            wait_ms: millis(self.wait),
            request_id: None,
        };
        let response = tokio::select! {
            response = self.session.client().call(request) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(response.acquired.then(|| Guard {
            session: self.session,
            name: self.name,
            token: response.fencing_token,
            released: false,
        }))
    }
}

impl Guard {
    /// The number of this grant, strictly increasing per lock for ever: pass it to what the lock protects.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// Name of the lock.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How long the lock is held for certain if nothing more is heard, counted from before the last renewal was sent.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.session.remaining()
    }

    /// Ends when the lock is lost: its session expired, was closed, or could not be renewed in time.
    pub async fn lost(&self) {
        self.session.lost().await;
    }

    /// Releases the lock.
    ///
    /// # Errors
    /// SESSION_EXPIRED or NOT_HOLDER when it was lost before; else see [`Error`].
    pub async fn release(mut self) -> Result<(), Error> {
        self.released = true;
        let (session, name, token) =
            (self.session.clone(), std::mem::take(&mut self.name), self.token);
        session.release(name, token).await
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        if !self.released {
            self.session.release_in_background(std::mem::take(&mut self.name), self.token);
        }
    }
}
