//! What operators see of locks and sessions, and do to them, whoever opened them.

use trefoil_proto::lock::v1::{
    Deadlock, DescribeLockRequest, DescribeLockResponse, ForceReleaseRequest, ForceReleaseResponse,
    GetSessionRequest, GetSessionResponse, ListDeadlocksRequest, ListLocksRequest,
    ListSessionsRequest, LockInfo, ReleaseAllRequest, RequestReleaseRequest, SessionInfo,
    ValidateTokenRequest, ValidateTokenResponse, WatchLocksRequest,
};

use crate::Error;
use crate::lock::Locks;
use crate::watch::LockWatch;

/// Items of a page.
pub(crate) const PAGE_SIZE: u32 = 1_000;

/// Some items of a list, and where it goes on.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Page<T> {
    /// At most 1,000 items, in order.
    pub items: Vec<T>,
    /// Names the next page; none after the last one.
    pub next: Option<String>,
}

/// A method of [`Locks`] that lists things by the beginnings of their names, a page at a time.
macro_rules! listing {
    ($(#[$doc:meta])+ $method:ident: $request:ident => $items:ident: $item:ty) => {
        $(#[$doc])+
        ///
        /// # Errors
        /// See [`Error`].
        pub async fn $method(
            &self,
            prefix: impl Into<String>,
            page: Option<String>,
        ) -> Result<$crate::Page<$item>, $crate::Error> {
            let request = $request {
                namespace: self.client().owned_namespace(),
                prefix: prefix.into(),
                page_size: $crate::lock_view::PAGE_SIZE,
                page_token: page.unwrap_or_default(),
            };
            let listed = self.client().call(request).await?;
            Ok($crate::lock_view::page_of(listed.$items, listed.next_page_token))
        }
    };
}
pub(crate) use listing;

impl Locks {
    /// A lock: its holders, and its waiters in order, at most 1,000 of each.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn describe(&self, name: impl Into<String>) -> Result<DescribeLockResponse, Error> {
        let (namespace, name) = (self.client().owned_namespace(), name.into());
        self.client().call(DescribeLockRequest { namespace, name }).await
    }

    listing! {
        /// Locks that are held or waited for and whose names begin with `prefix`: the first page, or the one after `page`.
        list: ListLocksRequest => locks: LockInfo
    }

    /// Asks those who hold a lock to release it, or the holder of one token where that is not 0: they are told who asks and why, 255
    /// bytes at most each. Answers how many were asked.
    ///
    /// # Errors
    /// NOT_HOLDER when nobody holds it so; else see [`Error`].
    pub async fn request_release(
        &self,
        name: impl Into<String>,
        fencing_token: u64,
        requester: impl Into<String>,
        reason: impl Into<String>,
    ) -> Result<u32, Error> {
        let request = RequestReleaseRequest {
            namespace: self.client().owned_namespace(),
            name: name.into(),
            fencing_token,
            requester: requester.into(),
            reason: reason.into(),
            request_id: None,
        };
        Ok(self.client().call(request).await?.asked)
    }

    /// What happens to the locks whose names begin with `prefix`, all where it is empty.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// let mut watch = client.locks().watch("jobs/");
    /// loop {
    ///     println!("{:?}", watch.next().await?);
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn watch(&self, prefix: impl Into<String>) -> LockWatch {
        let namespace = self.client().owned_namespace();
        let request =
            WatchLocksRequest { namespace, prefix: prefix.into(), ..WatchLocksRequest::default() };
        LockWatch::new(self.client().clone(), request)
    }

    /// What happens to one lock.
    #[must_use]
    pub fn watch_one(&self, name: impl Into<String>) -> LockWatch {
        let namespace = self.client().owned_namespace();
        let request =
            WatchLocksRequest { namespace, name: name.into(), ..WatchLocksRequest::default() };
        LockWatch::new(self.client().clone(), request)
    }

    /// A session, what it holds and what it waits for: at most 1,000 locks.
    ///
    /// # Errors
    /// SESSION_EXPIRED; else see [`Error`].
    pub async fn session(&self, session_id: u64) -> Result<GetSessionResponse, Error> {
        let namespace = self.client().owned_namespace();
        self.client().call(GetSessionRequest { namespace, session_id }).await
    }

    /// Living sessions by their ids: the first page, or the one after `page`.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn sessions(&self, page: Option<String>) -> Result<Page<SessionInfo>, Error> {
        let request = ListSessionsRequest {
            namespace: self.client().owned_namespace(),
            page_size: PAGE_SIZE,
            page_token: page.unwrap_or_default(),
        };
        let listed = self.client().call(request).await?;
        Ok(page_of(listed.sessions, listed.next_page_token))
    }

    /// The last deadlocks, at most 100, the oldest first.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn deadlocks(&self) -> Result<Vec<Deadlock>, Error> {
        let namespace = self.client().owned_namespace();
        Ok(self.client().call(ListDeadlocksRequest { namespace }).await?.deadlocks)
    }

    /// Whether a token is that of a present holder, and whose.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn validate(
        &self,
        name: impl Into<String>,
        fencing_token: u64,
    ) -> Result<ValidateTokenResponse, Error> {
        let (namespace, name) = (self.client().owned_namespace(), name.into());
        self.client().call(ValidateTokenRequest { namespace, name, fencing_token }).await
    }

    /// Takes a lock from all who hold it, or with a token that is not 0 from its one holder. They are not told, but the
    /// token in the response is larger than theirs: show it to what the lock protects.
    ///
    /// # Errors
    /// NOT_HOLDER when nobody holds it under that token; else see [`Error`].
    pub async fn force_release(
        &self,
        name: impl Into<String>,
        fencing_token: u64,
    ) -> Result<ForceReleaseResponse, Error> {
        let (namespace, name) = (self.client().owned_namespace(), name.into());
        let request = ForceReleaseRequest { namespace, name, fencing_token, request_id: None };
        self.client().call(request).await
    }

    /// Releases all that a session holds; it stays open. Says how many locks that were.
    ///
    /// # Errors
    /// SESSION_EXPIRED; else see [`Error`].
    pub async fn release_all(&self, session_id: u64) -> Result<u32, Error> {
        let namespace = self.client().owned_namespace();
        let request = ReleaseAllRequest { namespace, session_id, request_id: None };
        Ok(self.client().call(request).await?.released)
    }
}

pub(crate) fn page_of<T>(items: Vec<T>, next: String) -> Page<T> {
    Page { items, next: Some(next).filter(|next| !next.is_empty()) }
}
