//! Queues: at least once, in order within a key. A delivery is held under a lease until it is acknowledged.

use std::collections::BTreeMap;
use std::future::{Future, IntoFuture};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use trefoil_proto::queue::v1::{
    AckRequest, CreateQueueRequest, Delivery as WireDelivery, DequeueRequest, EnqueueRequest,
    Message as WireMessage,
};

use crate::boot::BootInstant;
use crate::millis;
use crate::{Client, Error, Fence, Value};

/// One queue of a namespace.
#[derive(Clone, Debug)]
pub struct Queue {
    client: Client,
    name: Arc<str>,
    fence: Option<Fence>,
}

/// A message to enqueue.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
#[must_use]
pub struct Message {
    key: String,
    value: Value,
    headers: BTreeMap<String, String>,
}

/// A message that this program holds until its lease runs out.
#[derive(Clone, Debug)]
pub struct Delivery {
    queue: Queue,
    delivery: WireDelivery,
    value: Value,
    held_until: BootInstant,
}

/// A dequeue to be awaited.
#[derive(Clone, Debug)]
#[must_use = "a dequeue is sent when it is awaited"]
pub struct Dequeue {
    queue: Queue,
    request: DequeueRequest,
}

impl Client {
    /// One queue.
    ///
    /// ```no_run
    /// # async fn example(client: trefoil_client::Client) -> Result<(), trefoil_client::Error> {
    /// use std::time::Duration;
    ///
    /// use trefoil_client::Message;
    ///
    /// let jobs = client.queue("jobs");
    /// jobs.enqueue([Message::new("resize").key("picture-1")]).await?;
    /// for delivery in jobs.dequeue().wait(Duration::from_secs(5)).await? {
    ///     delivery.ack().await?;
    /// }
    /// # Ok(())
    /// # }
    /// ```
    #[must_use]
    pub fn queue(&self, name: impl Into<Arc<str>>) -> Queue {
        Queue::new(self.clone(), name.into())
    }
}

impl Queue {
    pub(crate) fn new(client: Client, name: Arc<str>) -> Self {
        Self { client, name, fence: None }
    }

    /// The same queue, for calls under the token of a grant: `queue.with_fence(&guard)`. The calls are refused with FENCED
    /// once a newer holder of the lock has used the shard of the messages. Deliveries are acknowledged under it as well.
    #[must_use]
    pub fn with_fence(&self, fence: impl Into<Fence>) -> Self {
        Self { fence: Some(fence.into()), ..self.clone() }
    }

    /// Creates the queue with 1 to 1,024 partitions (0: the default); false when it was there.
    ///
    /// # Errors
    /// QUEUE_EXISTS when it is there with another number of partitions; else see [`Error`].
    pub async fn create(&self, partitions: u32) -> Result<bool, Error> {
        let request = CreateQueueRequest {
            namespace: self.client.owned_namespace(),
            queue: self.name.to_string(),
            partitions,
            request_id: None,
            fence: Fence::wire(self.fence.as_ref()),
        };
        Ok(self.client.call(request).await?.created)
    }

    /// Stores 1 to 1,000 messages, 1 MiB together, and returns their ids in the same order.
    ///
    /// # Errors
    /// See [`Error`]; when it ends as maybe applied, some of the messages may be stored. A batch whose partitions are on
    /// several shards ends so when its fence is refused by one of them and not by another.
    pub async fn enqueue(
        &self,
        messages: impl IntoIterator<Item = Message>,
    ) -> Result<Vec<String>, Error> {
        let request = EnqueueRequest {
            namespace: self.client.owned_namespace(),
            queue: self.name.to_string(),
            messages: messages.into_iter().map(WireMessage::from).collect(),
            request_id: None,
            fence: Fence::wire(self.fence.as_ref()),
        };
        Ok(self.client.call(request).await?.message_ids)
    }

    /// Takes messages under a lease: one at once, unless asked otherwise.
    pub fn dequeue(&self) -> Dequeue {
        let request = DequeueRequest {
            namespace: self.client.owned_namespace(),
            queue: self.name.to_string(),
            max_messages: 1,
            fence: Fence::wire(self.fence.as_ref()),
            ..DequeueRequest::default()
        };
        Dequeue { queue: self.clone(), request }
    }

    /// Settles a delivery by the id of its lease: the message is gone.
    ///
    /// # Errors
    /// STALE_LEASE when the lease ran out or a newer one was granted; else see [`Error`].
    pub async fn ack(&self, lease_id: impl Into<String>) -> Result<(), Error> {
        let request = AckRequest {
            namespace: self.client.owned_namespace(),
            queue: self.name.to_string(),
            lease_id: lease_id.into(),
            request_id: None,
            fence: Fence::wire(self.fence.as_ref()),
        };
        self.client.call(request).await.map(drop)
    }
}

impl Message {
    /// A message without a key, which may go to any partition.
    pub fn new(value: impl Into<Value>) -> Self {
        Self { value: value.into(), ..Self::default() }
    }

    /// Messages of one key stay in order. At most 1 KiB.
    pub fn key(mut self, key: impl Into<String>) -> Self {
        self.key = key.into();
        self
    }

    /// Goes along to the consumer. All names and values: at most 8 KiB.
    pub fn header(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.headers.insert(name.into(), value.into());
        self
    }
}

impl From<Message> for WireMessage {
    fn from(message: Message) -> Self {
        Self { key: message.key, value: Some(message.value.into()), headers: message.headers }
    }
}

impl Dequeue {
    /// At most so many messages, 1 to 1,000 (default 1).
    pub fn max(mut self, messages: u32) -> Self {
        self.request.max_messages = messages;
        self
    }

    /// Waits so long for a first message, at most a day (default: not at all).
    pub fn wait(mut self, wait: Duration) -> Self {
        self.request.wait_ms = millis(wait);
        self
    }

    /// How long each message is held, 100 ms to 12 h (default 30 s).
    pub fn lease(mut self, lease: Duration) -> Self {
        self.request.lease_ms = millis(lease);
        self
    }
}

impl IntoFuture for Dequeue {
    type Output = Result<Vec<Delivery>, Error>;
    type IntoFuture = Pin<Box<dyn Future<Output = Self::Output> + Send>>;

    fn into_future(self) -> Self::IntoFuture {
        Box::pin(async move {
            let (response, sent) = self.queue.client.timed(self.request).await?;
            // Not granted before the node had waited so long.
            let asked = sent + Duration::from_millis(response.waited_ms);
            let deliver = |delivery| Delivery::new(&self.queue, delivery, asked);
            Ok(response.deliveries.into_iter().map(deliver).collect())
        })
    }
}

impl Delivery {
    fn new(queue: &Queue, mut delivery: WireDelivery, asked: BootInstant) -> Self {
        let value = Value::from(delivery.value.take());
        let held_until = asked + Duration::from_millis(delivery.lease_ms);
        Self { queue: queue.clone(), delivery, value, held_until }
    }

    /// Id of the message within its queue.
    #[must_use]
    pub fn message_id(&self) -> &str {
        &self.delivery.message_id
    }

    /// Key of the message; empty when it has none.
    #[must_use]
    pub fn key(&self) -> &str {
        &self.delivery.key
    }

    /// What was enqueued.
    #[must_use]
    pub fn value(&self) -> &Value {
        &self.value
    }

    /// What the producer sent along.
    #[must_use]
    pub fn headers(&self) -> &BTreeMap<String, String> {
        &self.delivery.headers
    }

    /// Id of the lease, for an acknowledgement by another program.
    #[must_use]
    pub fn lease_id(&self) -> &str {
        &self.delivery.lease_id
    }

    /// 1 when it is delivered for the first time.
    #[must_use]
    pub fn delivery_count(&self) -> u32 {
        self.delivery.delivery_count
    }

    /// Log time at which it was stored, in ms.
    #[must_use]
    pub fn enqueued_at_ms(&self) -> u64 {
        self.delivery.enqueued_at_ms
    }

    /// When it was stored, by the wall clock of the node that led then: for people.
    #[must_use]
    pub fn enqueued_at(&self) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_millis(self.delivery.enqueued_at_unix_ms)
    }

    /// What is left of the lease: never too long, also where the machine was asleep meanwhile.
    #[must_use]
    pub fn remaining(&self) -> Duration {
        self.held_until.left()
    }

    /// Settles it: the message is gone.
    ///
    /// # Errors
    /// STALE_LEASE when the lease ran out or a newer one was granted; else see [`Error`].
    pub async fn ack(&self) -> Result<(), Error> {
        self.queue.ack(self.lease_id()).await
    }
}
