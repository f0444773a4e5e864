//! The cache: put, get, delete. Every answer is the latest and names the state of the line.

use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::time::Duration;

use trefoil_proto::cache::v1::{DeleteRequest, GetRequest, LineState, PutRequest};
use trefoil_proto::common::v1::{Fence as WireFence, ResponseHeader};

use crate::millis;
use crate::{Client, Error, Fence, Value};

/// The cache of a namespace.
#[derive(Clone, Debug)]
pub struct Cache {
    client: Client,
    fence: Option<Fence>,
}

/// A value that was found.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// The value.
    pub value: Value,
    /// Strictly increasing for each key, over deletions too.
    pub version: u64,
    /// State of the line in the node that answered.
    pub state: LineState,
    /// What is left of its life; none when it has no TTL.
    pub ttl: Option<Duration>,
    /// Where and when the answer was decided.
    pub header: ResponseHeader,
}

/// A value that was stored.
#[derive(Clone, Debug, PartialEq)]
pub struct Stored {
    /// Version of the value.
    pub version: u64,
    /// State of the line in the node that answered.
    pub state: LineState,
    /// Where and when it was decided.
    pub header: ResponseHeader,
}

/// A put to be awaited.
#[derive(Clone, Debug)]
#[must_use = "a put is sent when it is awaited"]
pub struct Put {
    client: Client,
    request: PutRequest,
}

impl Client {
    /// The cache.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// client.cache().put("greeting", "hello").ttl(Duration::from_secs(60)).await?;
    /// if let Some(entry) = client.cache().get("greeting").await? {
    ///     println!("version {}", entry.version);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn cache(&self) -> Cache {
        Cache::new(self.clone())
    }
}

impl Cache {
    pub(crate) fn new(client: Client) -> Self {
        Self { client, fence: None }
    }

    /// The same cache, for calls under the token of a grant: `cache.with_fence(&guard)`. The calls are refused with FENCED
    /// once a newer holder of the lock has used the shard of their key; a get counts as a use.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// if let Some(guard) = client.lock("report").wait(Duration::from_secs(5)).acquire().await? {
    ///     // Refused as soon as somebody else has held the lock and written.
    ///     client.cache().with_fence(&guard).put("report", "done").await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn with_fence(&self, fence: impl Into<Fence>) -> Self {
        Self { client: self.client.clone(), fence: Some(fence.into()) }
    }

    /// Stores a value. Key: 1 byte to 1 KiB.
    pub fn put(&self, key: impl Into<String>, value: impl Into<Value>) -> Put {
        let request = PutRequest {
            namespace: self.client.owned_namespace(),
            key: key.into(),
            value: Some(value.into().into()),
            fence: self.fence(),
            ..PutRequest::default()
        };
        Put { client: self.client.clone(), request }
    }

    /// The latest value; none where there is no value or its life is over.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn get(&self, key: impl Into<String>) -> Result<Option<Entry>, Error> {
        let request = GetRequest {
            namespace: self.client.owned_namespace(),
            key: key.into(),
            fence: self.fence(),
        };
        let response = self.client.call(request).await?;
        Ok(response.hit.then(|| Entry {
            state: response.state(),
            value: response.value.into(),
            version: response.version,
            ttl: (response.ttl_ms > 0).then(|| Duration::from_millis(response.ttl_ms)),
            header: response.header.unwrap_or_default(),
        }))
    }

    /// Removes a key; false when there was no value.
    ///
    /// # Errors
    /// See [`Error`].
    pub async fn delete(&self, key: impl Into<String>) -> Result<bool, Error> {
        let request = DeleteRequest {
            namespace: self.client.owned_namespace(),
            key: key.into(),
            request_id: None,
            fence: self.fence(),
        };
        Ok(self.client.call(request).await?.deleted)
    }
}

impl Cache {
    fn fence(&self) -> Option<WireFence> {
        Fence::wire(self.fence.as_ref())
    }
}

impl Put {
    /// How long the value lives, 1 ms to a year (default: until it is deleted). No time at all counts as 1 ms.
    pub fn ttl(mut self, ttl: Duration) -> Self {
        self.request.ttl_ms = millis(ttl).max(1);
        self
    }
}

impl IntoFuture for Put {
    type Output = Result<Stored, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let response = self.client.call(self.request).await?;
            let state = response.state();
            Ok(Stored {
                version: response.version,
                state,
                header: response.header.unwrap_or_default(),
            })
        })
    }
}
