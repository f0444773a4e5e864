//! Barriers: sessions enter together, and leave together.

use std::time::Duration;

use trefoil_proto::lock::v1::{
    BarrierInfo, EnterBarrierRequest, GetBarrierRequest, GetBarrierResponse, LeaveBarrierRequest,
    ListBarriersRequest,
};

use crate::lock::Locks;
use crate::lock_view::listing;
use crate::session::Session;
use crate::{Error, millis};

/// A barrier that a session is to enter.
///
/// ```no_run
/// # async fn example(session: trefoil_client::Session) -> Result<(), trefoil_client::Error> {
/// use std::time::Duration;
///
/// if let Some(entrance) = session.barrier("import", 3).enter(Duration::from_secs(60)).await? {
///     println!("all three are here, in round {}", entrance.round());
///     entrance.leave(Duration::from_secs(600)).await?;
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
#[must_use = "nothing happens before enter"]
pub struct Barrier {
    session: Session,
    name: String,
    parties: u32,
}

/// A session that has entered a barrier with the others. Dropping it leaves nothing: the others wait for `leave`, or for the
/// end of the session.
#[derive(Debug)]
#[must_use = "the others wait until it leaves"]
pub struct Entrance {
    session: Session,
    name: String,
    round: u64,
}

impl Session {
    /// A barrier that this session is to enter with others: 1 to 1,000 parties, the same for all. Name: 1 to 255 bytes.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// let session = client.session(Duration::from_secs(10)).await?;
    /// let barrier = session.barrier("step-1", 3);
    /// if let Some(entrance) = barrier.enter(Duration::from_secs(60)).await? {
    ///     println!("all three are here, in round {}", entrance.round());
    ///     entrance.leave(Duration::from_secs(60)).await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub fn barrier(&self, name: impl Into<String>, parties: u32) -> Barrier {
        Barrier::new(self.clone(), name.into(), parties)
    }
}

impl Barrier {
    pub(crate) fn new(session: Session, name: String, parties: u32) -> Self {
        Self { session, name, parties }
    }

    /// Waits so long, at most a day, until all parties have entered; none when they had not by then, and then this one is not in
    /// the barrier. Dropping the future gives the place up.
    ///
    /// # Errors
    /// SESSION_EXPIRED, LIMIT_REACHED; BARRIER_PARTIES when those in it wait for another number; else see [`Error`].
    pub async fn enter(&self, wait: Duration) -> Result<Option<Entrance>, Error> {
        let request = EnterBarrierRequest {
            namespace: self.session.client().owned_namespace(),
            session_id: self.session.id(),
            name: self.name.clone(),
            parties: self.parties,
            wait_ms: millis(wait),
            request_id: None,
        };
        let response = tokio::select! {
            response = self.session.client().call(request) => response?,
            () = self.session.lost() => return Err(self.session.expired()),
        };
        Ok(response.entered.then(|| Entrance {
            session: self.session.clone(),
            name: self.name.clone(),
            round: response.round,
        }))
    }
}

impl Entrance {
    /// The round, the same for all who entered together; it only rises.
    #[must_use]
    pub fn round(&self) -> u64 {
        self.round
    }

    /// Leaves, and waits so long, at most a day, until all have left; false when they had not by then.
    ///
    /// # Errors
    /// SESSION_EXPIRED; else see [`Error`].
    pub async fn leave(self, wait: Duration) -> Result<bool, Error> {
        let request = LeaveBarrierRequest {
            namespace: self.session.client().owned_namespace(),
            session_id: self.session.id(),
            name: self.name,
            round: self.round,
            wait_ms: millis(wait),
            request_id: None,
        };
        tokio::select! {
            response = self.session.client().call(request) => Ok(response?.all_left),
            () = self.session.lost() => Err(self.session.expired()),
        }
    }
}

impl Locks {
    /// A barrier, and the sessions in it in the order in which they came.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn barrier(&self, name: impl Into<String>) -> Result<GetBarrierResponse, Error> {
        let (namespace, name) = (self.client().owned_namespace(), name.into());
        self.client().call(GetBarrierRequest { namespace, name }).await
    }

    listing! {
        /// Barriers that somebody is in and whose names begin with `prefix`: the first page, or the one after `page`.
        barriers: ListBarriersRequest => barriers: BarrierInfo
    }
}
