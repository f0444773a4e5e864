//! Semaphores: permits of which sessions hold some each.

use std::time::Duration;

use trefoil_proto::lock::v1::{
    AcquirePermitsRequest, DeleteSemaphoreRequest, DescribeSemaphoreRequest,
    DescribeSemaphoreResponse, ListSemaphoresRequest, LockMode, ReleaseAsked,
    ReleasePermitsRequest, SemaphoreInfo, SetPermitsRequest,
};

use crate::lock::{Guard, Locks};
use crate::lock_view::listing;
use crate::session::Session;
use crate::{Client, Error, Fence, millis};

/// One semaphore of a namespace.
#[derive(Clone, Debug)]
pub struct Semaphore {
    client: Client,
    name: String,
}

/// Permits of a semaphore that a session is to take.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before acquire"]
pub struct Permits {
    session: Session,
    name: String,
    permits: u64,
    wait: Duration,
}

/// Permits that are held. Dropping it gives them back in the background; `release` also says how that went.
#[derive(Debug)]
pub struct PermitGuard {
    guard: Guard,
    permits: u64,
}

impl Locks {
    /// A semaphore. Name: 1 to 255 bytes; no lock has the same while it is there.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// client.locks().semaphore("gpu").set(4).await?;
    /// let session = client.session(Duration::from_secs(10)).await?;
    /// if let Some(guard) = session.semaphore("gpu").permits(2).acquire().await? {
    ///     println!("{} permits under token {}", guard.permits(), guard.token());
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn semaphore(&self, name: impl Into<String>) -> Semaphore {
        Semaphore { client: self.client().clone(), name: name.into() }
    }

    listing! {
        /// Semaphores whose names begin with `prefix`: the first page, or the one after `page`.
        semaphores: ListSemaphoresRequest => semaphores: SemaphoreInfo
    }
}

impl Semaphore {
    /// Makes it, or changes how many permits it has: 1 to 1,000,000. More go to those who wait; fewer take nothing from those who
    /// hold some. The answer is how many it had before, 0 where it was not there.
    ///
    /// # Errors
    /// OTHER_KIND when a lock of that name is in use; LIMIT_REACHED; else see [`Error`].
    pub async fn set(&self, permits: u64) -> Result<u64, Error> {
        let request = SetPermitsRequest {
            namespace: self.client.owned_namespace(),
            name: self.name.clone(),
            permits,
            request_id: None,
        };
        Ok(self.client.call(request).await?.permits_before)
    }

    /// Deletes it, where nobody holds permits or waits for any.
    ///
    /// # Errors
    /// UNKNOWN_SEMAPHORE, SEMAPHORE_IN_USE; else see [`Error`].
    pub async fn delete(&self) -> Result<(), Error> {
        let (namespace, name) = (self.client.owned_namespace(), self.name.clone());
        let request = DeleteSemaphoreRequest { namespace, name, request_id: None };
        self.client.call(request).await.map(drop)
    }

    /// Its permits, its holders, and its waiters in order, at most 1,000 of each.
    ///
    /// # Errors
    /// UNKNOWN_SEMAPHORE; else see [`Error`].
    pub async fn describe(&self) -> Result<DescribeSemaphoreResponse, Error> {
        let (namespace, name) = (self.client.owned_namespace(), self.name.clone());
        self.client.call(DescribeSemaphoreRequest { namespace, name }).await
    }

    /// Gives back the permits of a session that another program opened; token 0 gives back whatever it has.
    ///
    /// # Errors
    /// SESSION_EXPIRED, NOT_HOLDER; else see [`Error`].
    pub async fn release(&self, session_id: u64, fencing_token: u64) -> Result<(), Error> {
        let request = ReleasePermitsRequest {
            namespace: self.client.owned_namespace(),
            session_id,
            name: self.name.clone(),
            fencing_token,
            request_id: None,
        };
        self.client.call(request).await.map(drop)
    }
}

impl Session {
    /// Permits of a semaphore that this session is to take, one where no number is said.
    pub fn semaphore(&self, name: impl Into<String>) -> Permits {
        let (session, name) = (self.clone(), name.into());
        Permits { session, name, permits: 1, wait: Duration::ZERO }
    }
}

impl Permits {
    /// So many, all or none: at most as many as the semaphore has.
    pub fn permits(mut self, permits: u64) -> Self {
        self.permits = permits;
        self
    }

    /// Waits so long, in the order of arrival, at most a day (default: tries once).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// Takes them; none when too few were left, or others came before, until the wait ended. Dropping the future stops waiting. A
    /// session that holds as many already shares its one grant among its guards: the first that is released gives it back.
    ///
    /// # Errors
    /// SESSION_EXPIRED, UNKNOWN_SEMAPHORE, LIMIT_REACHED; INVALID_FIELD when the semaphore has fewer; PERMITS_HELD when the
    /// session holds another number; else see [`Error`].
    pub async fn acquire(self) -> Result<Option<PermitGuard>, Error> {
        let request = AcquirePermitsRequest {
            namespace: self.session.client().owned_namespace(),
            session_id: self.session.id(),
            name: self.name.clone(),
            permits: self.permits,
            wait_ms: millis(self.wait),
            request_id: None,
        };
        let response = tokio::select! {
            response = self.session.client().call(request) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(response.acquired.then(|| {
            let token = response.fencing_token;
            let guard = Guard::new(self.session, self.name, LockMode::Shared, token);
            PermitGuard { guard, permits: response.permits }
        }))
    }
}

impl PermitGuard {
    /// The number of this grant, strictly increasing per semaphore for ever: pass it to what is worked on.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.guard.token()
    }

    /// How many permits are held.
    #[must_use]
    pub fn permits(&self) -> u64 {
        self.permits
    }

    /// Name of the semaphore.
    #[must_use]
    pub fn name(&self) -> &str {
        self.guard.name()
    }

    /// How long they are held for certain if nothing more is heard, counted from before the last renewal was sent.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.guard.remaining()
    }

    /// Ends when they are lost: the session expired, was closed, or could not be renewed in time.
    pub async fn lost(&self) {
        self.guard.lost().await;
    }

    /// Ends when somebody asks the holders to let go, and says who and why; also where that was before this call.
    pub async fn release_requested(&self) -> ReleaseAsked {
        self.guard.release_requested().await
    }

    /// Gives them back: those who wait hold theirs at once. Those that were lost before are back already: that is no error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn release(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

impl From<&PermitGuard> for Fence {
    fn from(permits: &PermitGuard) -> Self {
        Self::from(&permits.guard)
    }
}
