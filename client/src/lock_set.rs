//! Several locks, acquired together: all of them, or none.

use std::time::Duration;

use trefoil_proto::lock::v1::{
    AcquireRequest, AcquireResponse, LockMode, LockWish, ReleaseAsked, WaitPlace,
};

use crate::lock::Guard;
use crate::session::Session;
use crate::{Error, acquire, millis};

/// Several locks to be acquired together.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before acquire"]
pub struct LockSet {
    session: Session,
    locks: Vec<LockWish>,
    wait: Duration,
    lock_delay: Option<Duration>,
}

/// Locks that are held, each with a token of its own. Dropping it releases all of them in the background; `release` also
/// says how that went.
#[derive(Debug)]
pub struct Guards {
    session: Session,
    guards: Vec<Guard>,
}

impl Session {
    /// Several locks that this session is to hold together, in mode EXCLUSIVE: at most 8, with those that [`LockSet::and`]
    /// adds.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// let session = client.session(Duration::from_secs(10)).await?;
    /// let guards = session.locks(["from", "to"]).wait(Duration::from_secs(5)).acquire().await?;
    /// println!("both or neither: {}", guards.is_some());
    /// # Ok(())
    /// # }
    /// ```
    pub fn locks<N: Into<String>>(&self, names: impl IntoIterator<Item = N>) -> LockSet {
        let mode = LockMode::Exclusive.into();
        let wish = |name: N| LockWish { name: name.into(), mode };
        LockSet::new(self.clone(), names.into_iter().map(wish).collect())
    }
}

impl LockSet {
    pub(crate) fn new(session: Session, locks: Vec<LockWish>) -> Self {
        Self { session, locks, wait: Duration::ZERO, lock_delay: None }
    }

    /// One lock more, in this mode.
    pub fn and(mut self, name: impl Into<String>, mode: LockMode) -> Self {
        self.locks.push(LockWish { name: name.into(), mode: mode.into() });
        self
    }

    /// Waits so long, in the order of arrival for each of the locks, at most a day (default: tries once). Nothing is held
    /// meanwhile.
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// For how long nobody gets these locks when the session expires, at most a minute (default: as the session says).
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.lock_delay = Some(delay);
        self
    }

    /// Acquires all of them; none when others hold one of them until the wait ends. Dropping the future stops waiting. What
    /// the session holds already counts as held for as long as it does, and is let go by the first guard of it that is
    /// released.
    ///
    /// # Errors
    /// INVALID_FIELD for no lock at all, more than 8, or one twice; SESSION_EXPIRED, LIMIT_REACHED; CONVERT_NEEDED when the
    /// session holds one in a weaker mode; NOT_HOLDER when it let go of one meanwhile; ALREADY_WAITING when it waits for one by
    /// another call; DEADLOCK when it would wait for sessions that wait for this one; else see [`Error`].
    pub async fn acquire(self) -> Result<Option<Guards>, Error> {
        let request = self.request();
        let response = tokio::select! {
            response = self.session.client().call(request) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(self.guards(response))
    }

    /// Acquires them as [`Self::acquire`] does, and tells how many calls stand before this one where most do, as
    /// [`Lock::acquire_telling`](crate::Lock::acquire_telling) does.
    ///
    /// # Errors
    /// As [`Self::acquire`].
    pub async fn acquire_telling(
        self,
        mut tell: impl FnMut(WaitPlace) + Send,
    ) -> Result<Option<Guards>, Error> {
        let request = self.request();
        let response = tokio::select! {
            response = acquire::acquire(self.session.client(), request, &mut tell) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(self.guards(response))
    }

    fn request(&self) -> AcquireRequest {
        AcquireRequest {
            namespace: self.session.client().owned_namespace(),
            session_id: self.session.id(),
            wait_ms: millis(self.wait),
            lock_delay_ms: self.lock_delay.map(millis),
            locks: self.locks.clone(),
            ..AcquireRequest::default()
        }
    }

    fn guards(self, response: AcquireResponse) -> Option<Guards> {
        if !response.acquired {
            return None;
        }
        let grants = response.locks.into_iter().map(|grant| {
            let mode = grant.mode();
            Guard::new(self.session.clone(), grant.name, mode, grant.fencing_token)
        });
        let guards = grants.collect();
        Some(Guards { session: self.session, guards })
    }
}

impl From<Guard> for Guards {
    fn from(guard: Guard) -> Self {
        Self { session: guard.session().clone(), guards: vec![guard] }
    }
}

impl Guards {
    /// The guard of one of them; none for a name that is not among them.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&Guard> {
        self.guards.iter().find(|guard| guard.name() == name)
    }

    /// Each of them, in the order in which they were asked for.
    pub fn iter(&self) -> impl Iterator<Item = &Guard> {
        self.guards.iter()
    }

    /// Ends when somebody asks for one of them: see [`Guard::release_requested`].
    pub async fn release_requested(&self) -> ReleaseAsked {
        let locks = self.iter().map(Guard::asked_by).collect::<Vec<_>>();
        self.session.release_requested(&locks).await
    }

    /// How long the locks are held for certain if nothing more is heard, counted from before the last renewal was sent.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.session.remaining()
    }

    /// Ends when the locks are lost: their session expired, was closed, or could not be renewed in time.
    pub async fn lost(&self) {
        self.session.lost().await;
    }

    /// Releases all of them, the last one first. One that was lost before is no error.
    ///
    /// # Errors
    /// The first one, when the others are released: see [`Error`].
    pub async fn release(mut self) -> Result<(), Error> {
        let mut result = Ok(());
        // What is not reached, because the future is dropped, is released in the background.
        while let Some(guard) = self.guards.pop() {
            let released = guard.release().await;
            result = result.and(released);
        }
        result
    }
}
