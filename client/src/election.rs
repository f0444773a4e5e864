//! Elections: whoever holds the lock leads, and proclaims a value for all to read.

use std::time::Duration;

use trefoil_proto::lock::v1::{
    self as api, CampaignRequest, LeaderRequest, LockMode, ObserveRequest, ProclaimRequest,
    ResignRequest,
};

use crate::lock::{Guard, Locks};
use crate::session::Session;
use crate::watch::Watch;
use crate::{Error, Fence, Value, millis};

/// An election in which a session is to campaign.
#[derive(Clone, Debug)]
#[must_use = "nothing happens before campaign"]
pub struct Election {
    session: Session,
    name: String,
    value: Value,
    wait: Duration,
    lock_delay: Option<Duration>,
}

/// A leadership. Dropping it resigns in the background; `resign` also says how that went.
#[derive(Debug)]
pub struct Leadership {
    guard: Guard,
}

/// Who leads, as everybody may see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Leader {
    /// The session that leads.
    pub session_id: u64,
    /// The word that it was opened with.
    pub owner: String,
    /// What it proclaims.
    pub value: Value,
    /// The number of its leadership.
    pub token: u64,
    /// For how long it had led.
    pub leading: Duration,
}

/// Sees who leads an election.
#[derive(Debug)]
pub struct Observation {
    watch: Watch<ObserveRequest>,
    /// What was returned last: token and value of the leader.
    told: Option<Option<(u64, Value)>>,
    /// As of which index.
    index: u64,
}

impl Session {
    /// An election in which this session is to campaign. Name: 1 to 255 bytes; it is that of a lock.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// let session = client.session(Duration::from_secs(10)).await?;
    /// let campaign = session.election("primary").value("10.0.0.2:5432");
    /// if let Some(leadership) = campaign.wait(Duration::from_secs(60)).campaign().await? {
    ///     println!("this process leads, with token {}", leadership.token());
    ///     leadership.resign().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn election(&self, name: impl Into<String>) -> Election {
        Election::new(self.clone(), name.into())
    }
}

impl Observation {
    /// The present leader first, then each other leader or value, none while nobody leads. Changes that follow each other
    /// quickly may come as one. Dropping the future loses nothing.
    ///
    /// # Errors
    /// As any call, after the client's timeout without a node that serves it; it may be called again.
    pub async fn next(&mut self) -> Result<Option<Leader>, Error> {
        loop {
            let seen = self.watch.next().await?;
            let index = seen.header.as_ref().map_or(0, |header| header.index);
            let leader = seen.leader.map(Leader::from);
            let news = leader.as_ref().map(|leader| (leader.token, leader.value.clone()));
            // Another node may be behind the one before.
            if index >= self.index && self.told.as_ref() != Some(&news) {
                (self.told, self.index) = (Some(news), index);
                return Ok(leader);
            }
        }
    }
}

impl From<api::Leadership> for Leader {
    fn from(leader: api::Leadership) -> Self {
        Self {
            session_id: leader.session_id,
            owner: leader.owner,
            value: leader.value.into(),
            token: leader.fencing_token,
            leading: Duration::from_millis(leader.leading_ms),
        }
    }
}

impl Election {
    pub(crate) fn new(session: Session, name: String) -> Self {
        Self { session, name, value: Value::default(), wait: Duration::ZERO, lock_delay: None }
    }

    /// What to proclaim as the leader, for example where it is reached. At most 64 KiB (default: no bytes).
    pub fn value(mut self, value: impl Into<Value>) -> Self {
        self.value = value.into();
        self
    }

    /// Waits so long, in the order of arrival, at most a day (default: tries once).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.wait = wait;
        self
    }

    /// For how long nobody leads when the session expires, at most a minute (default: as the session says).
    pub fn lock_delay(mut self, delay: Duration) -> Self {
        self.lock_delay = Some(delay);
        self
    }

    /// Becomes the leader; none when others led until the wait ended. Dropping the future stops waiting. A session that leads
    /// already has one leadership, and the value of the newest campaign: the first that resigns ends it.
    ///
    /// # Errors
    /// SESSION_EXPIRED, LIMIT_REACHED; CONVERT_NEEDED when the session holds the lock in a weaker mode; DEADLOCK when it would
    /// wait for sessions that wait for this one; else see [`Error`].
    pub async fn campaign(self) -> Result<Option<Leadership>, Error> {
        let request = CampaignRequest {
            namespace: self.session.client().owned_namespace(),
            session_id: self.session.id(),
            name: self.name.clone(),
            value: Some(self.value.into()),
            wait_ms: millis(self.wait),
            request_id: None,
            lock_delay_ms: self.lock_delay.map(millis),
        };
        let response = tokio::select! {
            response = self.session.client().call(request) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(response.elected.then(|| {
            let token = response.fencing_token;
            Leadership { guard: Guard::new(self.session, self.name, LockMode::Exclusive, token) }
        }))
    }
}

impl Leadership {
    /// The number of this leadership, strictly increasing per election for ever: pass it to whatever the leader changes.
    #[must_use]
    pub fn token(&self) -> u64 {
        self.guard.token()
    }

    /// Name of the election.
    #[must_use]
    pub fn name(&self) -> &str {
        self.guard.name()
    }

    /// How long it lasts for certain if nothing more is heard, counted from before the last renewal was sent.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.guard.remaining()
    }

    /// Ends when the leadership is lost: its session expired, was closed, or could not be renewed in time.
    pub async fn lost(&self) {
        self.guard.lost().await;
    }

    /// Changes the value that all may read.
    ///
    /// # Errors
    /// SESSION_EXPIRED or NOT_HOLDER when the leadership was lost before; LIMIT_REACHED; else see [`Error`].
    pub async fn proclaim(&self, value: impl Into<Value>) -> Result<(), Error> {
        let session = self.guard.session();
        let request = ProclaimRequest {
            namespace: session.client().owned_namespace(),
            session_id: session.id(),
            name: self.name().to_owned(),
            fencing_token: self.token(),
            value: Some(value.into().into()),
            request_id: None,
        };
        tokio::select! {
            proclaimed = session.client().call(request) => proclaimed.map(drop),
            () = session.lost() => Err(session.expired()),
        }
    }

    /// Ends the leadership: the next campaign in order leads at once. One that was lost before is over: that is no error.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn resign(self) -> Result<(), Error> {
        self.guard.release().await
    }
}

impl From<&Leadership> for Fence {
    fn from(leadership: &Leadership) -> Self {
        Self::from(&leadership.guard)
    }
}

impl Locks {
    /// Who leads an election, and what it proclaims; none while nobody does.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn leader(&self, name: impl Into<String>) -> Result<Option<Leader>, Error> {
        let (namespace, name) = (self.client().owned_namespace(), name.into());
        let response = self.client().call(LeaderRequest { namespace, name }).await?;
        Ok(response.leader.map(Leader::from))
    }

    /// Who leads an election, and each change of that, over changes of nodes.
    #[must_use]
    pub fn observe(&self, name: impl Into<String>) -> Observation {
        let (namespace, name) = (self.client().owned_namespace(), name.into());
        let watch = Watch::new(self.client().clone(), ObserveRequest { namespace, name });
        Observation { watch, told: None, index: 0 }
    }

    /// Ends a leadership of a session that another program opened; token 0 ends whatever leadership it has.
    ///
    /// # Errors
    /// SESSION_EXPIRED, NOT_HOLDER; else see [`Error`].
    pub async fn resign(
        &self,
        session_id: u64,
        name: impl Into<String>,
        fencing_token: u64,
    ) -> Result<(), Error> {
        let request = ResignRequest {
            namespace: self.client().owned_namespace(),
            session_id,
            name: name.into(),
            fencing_token,
            request_id: None,
        };
        self.client().call(request).await.map(drop)
    }
}
