//! Latches: numbers that programs count down, and that others wait for.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use trefoil_proto::lock::v1::{
    AwaitLatchRequest, CountDownRequest, DeleteLatchRequest, GetLatchRequest, LatchInfo,
    ListLatchesRequest, SetLatchRequest,
};

use crate::lock::Locks;
use crate::lock_view::listing;
use crate::{Client, Error, millis};

/// One latch of a namespace.
#[derive(Clone, Debug)]
pub struct Latch {
    client: Client,
    name: String,
}

/// A latch to be set by awaiting it.
#[derive(Clone, Debug)]
#[must_use = "a latch is set when it is awaited"]
pub struct SetLatch {
    client: Client,
    request: SetLatchRequest,
}

impl Locks {
    /// A latch. Name: 1 to 255 bytes.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// let ready = client.locks().latch("ready");
    /// ready.set(3).await?;
    /// println!("{} are left", ready.count_down(1).await?);
    /// println!("open: {}", ready.wait(Duration::from_secs(60)).await?);
    /// # Ok(())
    /// # }
    /// ```
    pub fn latch(&self, name: impl Into<String>) -> Latch {
        Latch { client: self.client().clone(), name: name.into() }
    }

    listing! {
        /// Latches whose names begin with `prefix`: the first page, or the one after `page`.
        latches: ListLatchesRequest => latches: LatchInfo
    }
}

impl Latch {
    /// Sets a latch that is open or not there to a count of at least 1; the answer is its new round.
    pub fn set(&self, count: u64) -> SetLatch {
        let request = SetLatchRequest {
            namespace: self.client.owned_namespace(),
            name: self.name.clone(),
            count,
            expected: None,
            request_id: None,
        };
        SetLatch { client: self.client.clone(), request }
    }

    /// Counts down by so much, at least by 1, and not below zero; the answer is what is left.
    ///
    /// # Errors
    /// UNKNOWN_LATCH; else see [`Error`].
    pub async fn count_down(&self, by: u64) -> Result<u64, Error> {
        let request = CountDownRequest {
            namespace: self.client.owned_namespace(),
            name: self.name.clone(),
            by,
            round: 0,
            request_id: None,
        };
        Ok(self.client.call(request).await?.count)
    }

    /// Waits so long, at most a day, until the present round is over; false when it was not by then.
    ///
    /// # Errors
    /// UNKNOWN_LATCH, also when it is deleted meanwhile; else see [`Error`].
    pub async fn wait(&self, wait: Duration) -> Result<bool, Error> {
        let request = AwaitLatchRequest {
            namespace: self.client.owned_namespace(),
            name: self.name.clone(),
            wait_ms: millis(wait),
            round: 0,
        };
        Ok(self.client.call(request).await?.open)
    }

    /// What is left of it, what it was set to, and its round.
    ///
    /// # Errors
    /// UNKNOWN_LATCH; else see [`Error`].
    pub async fn get(&self) -> Result<LatchInfo, Error> {
        let (namespace, name) = (self.client.owned_namespace(), self.name.clone());
        Ok(self.client.call(GetLatchRequest { namespace, name }).await?.latch.unwrap_or_default())
    }

    /// Deletes it, open or not. Whoever waits is refused with UNKNOWN_LATCH.
    ///
    /// # Errors
    /// UNKNOWN_LATCH; else see [`Error`].
    pub async fn delete(&self) -> Result<(), Error> {
        let (namespace, name) = (self.client.owned_namespace(), self.name.clone());
        let request = DeleteLatchRequest { namespace, name, request_id: None };
        self.client.call(request).await.map(drop)
    }
}

impl SetLatch {
    /// Only where the latch has this count now, 0 for one that is open or not there.
    pub fn expecting(mut self, count: u64) -> Self {
        self.request.expected = Some(count);
        self
    }
}

impl IntoFuture for SetLatch {
    type Output = Result<u64, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move { Ok(self.client.call(self.request).await?.round) })
    }
}
