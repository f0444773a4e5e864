//! Several locks, acquired together: all of them, or none.

use std::time::Duration;

use trefoil_proto::lock::v1::{AcquireRequest, LockGrant, LockMode, LockWish};

use crate::session::Session;
use crate::{Error, millis};

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
    grants: Vec<LockGrant>,
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
        let request = AcquireRequest {
            namespace: self.session.client().owned_namespace(),
            session_id: self.session.id(),
            wait_ms: millis(self.wait),
            lock_delay_ms: self.lock_delay.map(millis),
            locks: self.locks,
            ..AcquireRequest::default()
        };
        let response = tokio::select! {
            response = self.session.client().call(request) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(response.acquired.then(|| Guards { session: self.session, grants: response.locks }))
    }
}

impl Guards {
    /// The number of a lock's grant, strictly increasing per lock for ever: pass it to what that lock protects. None for a
    /// name that is not among them.
    #[must_use]
    pub fn token(&self, name: &str) -> Option<u64> {
        self.grants.iter().find(|grant| grant.name == name).map(|grant| grant.fencing_token)
    }

    /// Each lock, in the order in which they were asked for: its name, token and mode.
    #[must_use]
    pub fn grants(&self) -> &[LockGrant] {
        &self.grants
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

    /// Releases all of them, one after the other.
    ///
    /// # Errors
    /// The first one, when the others are released: SESSION_EXPIRED or NOT_HOLDER when a lock was lost before; else see
    /// [`Error`].
    pub async fn release(mut self) -> Result<(), Error> {
        let mut result = Ok(());
        // What is not reached, because the future is dropped, is released in the background.
        while let Some(LockGrant { name, fencing_token, .. }) = self.grants.last().cloned() {
            let released = self.session.release(name, fencing_token).await;
            self.grants.pop();
            result = result.and(released);
        }
        result
    }
}

impl Drop for Guards {
    fn drop(&mut self) {
        for LockGrant { name, fencing_token, .. } in std::mem::take(&mut self.grants) {
            self.session.release_in_background(name, fencing_token);
        }
    }
}
