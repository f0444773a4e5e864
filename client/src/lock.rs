//! Locks: held by a session, for as long as the session lives. The fencing token goes along with every use of
//! what the lock protects, because no clock can promise that the holder knows in time that it has lost it.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use trefoil_proto::lock::v1::{
    AcquireRequest, AcquireResponse, ConvertRequest, ConvertResponse, LockMode, OpenSessionRequest,
    ReleaseAsked, ReleaseRequest, WaitPlace,
};

use crate::acquire;
use crate::millis;
use crate::session::Session;
use crate::{Client, Error};

/// TTL of a session that is opened for one lock.
const LOCK_TTL: Duration = Duration::from_secs(10);

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

/// A lock to be acquired: by a session, or by one of its own that is opened for it.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before acquire"]
pub struct Lock<S = Session> {
    session: S,
    name: String,
    mode: LockMode,
    wait: Duration,
    lock_delay: Option<Duration>,
}

/// A lock that is held. Dropping it releases it in the background; `release` also says how that went.
#[derive(Debug)]
pub struct Guard {
    session: Session,
    name: String,
    mode: LockMode,
    token: u64,
    /// The token that it began with.
    first_token: u64,
    released: bool,
}

impl Session {
    /// A lock that this session is to hold. Name: 1 to 255 bytes.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// let session = client.session(Duration::from_secs(10)).await?;
    /// let guard = session.lock("printer").wait(Duration::from_secs(5)).acquire().await?;
    /// println!("held: {}", guard.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock(&self, name: impl Into<String>) -> Lock {
        Lock::new(self.clone(), name.into())
    }
}

impl Client {
    /// A lock to be held by a session of its own, which begins and ends with it.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// if let Some(guard) = client.lock("printer").wait(Duration::from_secs(5)).acquire().await? {
    ///     println!("it is ours, with token {}", guard.token());
    ///     guard.release().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn lock(&self, name: impl Into<String>) -> Lock<OpenSession> {
        Lock::new(self.session(LOCK_TTL), name.into())
    }
}

impl Client {
    /// A session that is kept alive in the background and lives for `ttl` (100 ms to a day) after that ends.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// let session = client.session(Duration::from_secs(10)).owner("worker-7").await?;
    /// println!("{} ms are left", session.remaining().as_millis());
    /// session.close().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn session(&self, ttl: Duration) -> OpenSession {
        OpenSession::new(self.clone(), ttl)
    }
}

impl Client {
    /// Locks, and what is built of them.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// // A lock of a session that another program opened.
    /// client.locks().release(81985529216486895, "printer", 0).await?;
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn locks(&self) -> Locks {
        Locks::new(self.clone())
    }
}

impl Locks {
    pub(crate) fn new(client: Client) -> Self {
        Self { client }
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

    /// Changes the mode in which a session that another program opened holds a lock; token 0 converts whatever grant it
    /// has. The response says whether that was possible within `wait`, and the new token.
    ///
    /// # Errors
    /// SESSION_EXPIRED, NOT_HOLDER, DEADLOCK, LIMIT_REACHED; else see [`Error`].
    pub async fn convert(
        &self,
        session_id: u64,
        name: impl Into<String>,
        fencing_token: u64,
        mode: LockMode,
        wait: Duration,
    ) -> Result<ConvertResponse, Error> {
        let request = ConvertRequest {
            namespace: self.client.owned_namespace(),
            session_id,
            name: name.into(),
            fencing_token,
            mode: mode.into(),
            wait_ms: millis(wait),
            request_id: None,
        };
        self.client.call(request).await
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

impl OpenSession {
    pub(crate) fn new(client: Client, ttl: Duration) -> Self {
        let request = OpenSessionRequest {
            namespace: client.owned_namespace(),
            ttl_ms: millis(ttl),
            ..OpenSessionRequest::default()
        };
        Self { client, request }
    }

    /// A word that says who this is, for operators. At most 255 bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.request.owner = owner.into();
        self
    }

    /// One more fact for operators, such as host or version: at most 16 with keys of 1 to 64 bytes and values of at most
    /// 255 bytes, 2,048 bytes together.
    pub fn metadata(mut self, key: impl Into<String>, value: impl Into<String>) -> Self {
        self.request.metadata.insert(key.into(), value.into());
        self
    }

    /// For how long nobody gets a lock that this session held when it expired, at most a minute (default: not at all).
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.request.lock_delay_ms = millis(delay);
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

impl<S> Lock<S> {
    pub(crate) fn new(session: S, name: String) -> Self {
        Self { session, name, mode: LockMode::Exclusive, wait: Duration::ZERO, lock_delay: None }
    }

    /// In mode EXCLUSIVE, for this session alone; so it is where nothing is said.
    pub fn exclusive(self) -> Self {
        self.mode(LockMode::Exclusive)
    }

    /// In mode SHARED, together with other readers.
    pub fn shared(self) -> Self {
        self.mode(LockMode::Shared)
    }

    /// In mode UPDATE, beside readers and to be converted to EXCLUSIVE.
    pub fn update(self) -> Self {
        self.mode(LockMode::Update)
    }

    /// In one of these modes.
    pub fn mode(mut self, mode: LockMode) -> Self {
        self.mode = mode;
        self
    }

    /// Waits so long, in the order of arrival, at most a day (default: tries once).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// For how long nobody gets this lock when the session expires, at most a minute (default: as the session says).
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.lock_delay = Some(delay);
        self
    }
}

impl Lock<OpenSession> {
    /// How long the lock is kept for a holder that is not heard of: 100 ms to a day (default: 10 s).
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.session.request.ttl_ms = millis(ttl);
        self
    }

    /// A word that says who this is, for operators. At most 255 bytes.
    pub fn owner(mut self, owner: impl Into<String>) -> Self {
        self.session = self.session.owner(owner);
        self
    }

    /// Opens a session and acquires the lock with it; none when others hold it until the wait ends. The session lives as long
    /// as the guard, and is closed in the background then. Dropping the future stops waiting.
    ///
    /// # Errors
    /// LIMIT_REACHED, UNKNOWN_NAMESPACE; else see [`Error`].
    pub async fn acquire(self) -> Result<Option<Guard>, Error> {
        let Self { session, name, mode, wait, lock_delay } = self;
        Lock { session: session.await?, name, mode, wait, lock_delay }.acquire().await
    }
}

impl Lock {
    /// Acquires the lock; none when others hold it until the wait ends. Dropping the future stops waiting. A session that
    /// holds the lock already shares its one grant among its guards: the first that is released lets it go.
    ///
    /// # Errors
    /// SESSION_EXPIRED, LIMIT_REACHED; CONVERT_NEEDED when the session holds it in a weaker mode; DEADLOCK when it would wait
    /// for sessions that wait for this one; else see [`Error`].
    pub async fn acquire(self) -> Result<Option<Guard>, Error> {
        let request = self.request();
        let response = tokio::select! {
            response = self.session.client().call(request) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(self.guard(&response))
    }

    /// Acquires the lock as [`Self::acquire`] does, and tells how many calls stand before this one, whenever that has changed and it
    /// was looked at: see [`WaitPlace`]. Where the future is dropped the call loses its place within 2.4 s, and is not granted
    /// meanwhile.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub async fn acquire_telling(
        self,
        mut tell: impl FnMut(WaitPlace) + Send,
    ) -> Result<Option<Guard>, Error> {
        let request = self.request();
        let response = tokio::select! {
            response = acquire::acquire(self.session.client(), request, &mut tell) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(self.guard(&response))
    }

    fn request(&self) -> AcquireRequest {
        AcquireRequest {
            namespace: self.session.client().owned_namespace(),
            session_id: self.session.id(),
            name: self.name.clone(),
            wait_ms: millis(self.wait),
            request_id: None,
            mode: self.mode.into(),
            lock_delay_ms: self.lock_delay.map(millis),
            locks: Vec::new(),
        }
    }

    fn guard(self, response: &AcquireResponse) -> Option<Guard> {
        response
            .acquired
            .then(|| Guard::new(self.session, self.name, response.mode(), response.fencing_token))
    }
}

impl Guard {
    pub(crate) fn new(session: Session, name: String, mode: LockMode, token: u64) -> Self {
        Self { session, name, mode, token, first_token: token, released: false }
    }

    pub(crate) fn session(&self) -> &Session {
        &self.session
    }

    /// The number of this grant, strictly increasing per lock for ever: pass it to what the lock protects.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.token
    }

    /// The mode in which it is held: the one asked for, or a stronger one that the session had before.
    #[must_use]
    pub fn mode(&self) -> LockMode {
        self.mode
    }

    /// Changes the mode, waiting for other holders at most so long; false when they were in the way until then. To a weaker
    /// mode it goes at once. The new mode is another grant: [`Self::token`] is larger from then on.
    ///
    /// # Errors
    /// SESSION_EXPIRED or NOT_HOLDER when the lock was lost before; DEADLOCK, LIMIT_REACHED; else see [`Error`].
    pub async fn convert(&mut self, mode: LockMode, wait: Duration) -> Result<bool, Error> {
        let locks = self.session.client().locks();
        let convert = locks.convert(self.session.id(), self.name.as_str(), self.token, mode, wait);
        let response = tokio::select! {
            response = convert => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        if response.converted {
            (self.mode, self.token) = (response.mode(), response.fencing_token);
        }
        Ok(response.converted)
    }

    /// Namespace of the lock; empty means "default".
    #[must_use]
    pub fn namespace(&self) -> &str {
        self.session.client().namespace()
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

    /// Ends when somebody asks for the lock, and says who and why; also where that was before this call. The lock stays held:
    /// whether to release it is up to the holder. The first such call of a session opens a stream to the cluster.
    pub async fn release_requested(&self) -> ReleaseAsked {
        self.session.release_requested(&[self.asked_by()]).await
    }

    /// What a request to release it names: the lock, and a token of this hold.
    pub(crate) fn asked_by(&self) -> (&str, u64) {
        (&self.name, self.first_token)
    }

    /// Releases the lock. One that was lost before is not held any more: that is no error.
    ///
    /// # Errors
    /// See [`Error`].
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
