//! The two ways of a call: by the client library, and as plain gRPC at each node in turn.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use trefoil_client::{Client, Message};
use trefoil_proto::cache::v1::cache_service_client::CacheServiceClient;
use trefoil_proto::cache::v1::{GetRequest, PutRequest};
use trefoil_proto::common::v1::{Value, value};
use trefoil_proto::queue::v1::queue_service_client::QueueServiceClient;
use trefoil_proto::queue::v1::{
    AckRequest, DequeueRequest, EnqueueRequest, Message as WireMessage,
};

use crate::BenchError;

/// Longer than any wait here.
pub(crate) const WAIT: Duration = Duration::from_secs(60);

/// How calls are sent.
#[derive(Clone, Debug)]
pub(crate) enum Way {
    Unary(NodesInTurn),
    Library(Client),
}

/// A connection to each node, for one call after the other.
#[derive(Clone, Debug)]
pub(crate) struct NodesInTurn {
    channels: Arc<[Channel]>,
    next: usize,
}

impl NodesInTurn {
    /// Connects to all of them.
    ///
    /// # Errors
    /// When one cannot be reached.
    pub(crate) async fn connect(endpoints: &[String]) -> Result<Self, BenchError> {
        Ok(Self { channels: channels(endpoints).await?.into(), next: 0 })
    }

    /// The same nodes, for the caller of this number.
    pub(crate) fn of_caller(&self, n: usize) -> Self {
        Self { channels: Arc::clone(&self.channels), next: n }
    }

    /// Where the next call goes.
    pub(crate) fn next(&mut self) -> Channel {
        self.next += 1;
        self.channels[self.next % self.channels.len()].clone()
    }
}

impl Way {
    /// The same way, for the caller of this number.
    pub(crate) fn of_caller(&self, n: usize) -> Self {
        match self {
            Self::Unary(nodes) => Self::Unary(nodes.of_caller(n)),
            Self::Library(client) => Self::Library(client.clone()),
        }
    }

    pub(crate) async fn put(&mut self, key: String, value: Bytes) -> Result<(), String> {
        match self {
            Self::Unary(nodes) => CacheServiceClient::new(nodes.next())
                .put(put_request(key, value))
                .await
                .map(drop)
                .map_err(text),
            Self::Library(client) => client.cache().put(key, value).await.map(drop).map_err(text),
        }
    }

    /// Whether there is a value.
    pub(crate) async fn get(&mut self, key: String) -> Result<bool, String> {
        match self {
            Self::Unary(nodes) => {
                let request = GetRequest { key, ..GetRequest::default() };
                let got = CacheServiceClient::new(nodes.next()).get(request).await.map_err(text)?;
                Ok(got.into_inner().value.is_some())
            }
            Self::Library(client) => {
                client.cache().get(key).await.map(|entry| entry.is_some()).map_err(text)
            }
        }
    }

    /// Enqueues the same value so many times.
    pub(crate) async fn enqueue(
        &mut self,
        queue: &str,
        value: &Bytes,
        count: u32,
    ) -> Result<(), String> {
        match self {
            Self::Unary(nodes) => {
                let value = Some(wire(value.clone()));
                let message = WireMessage { value, ..WireMessage::default() };
                let request = EnqueueRequest {
                    queue: queue.to_owned(),
                    messages: vec![message; count as usize],
                    ..EnqueueRequest::default()
                };
                let mut queues = QueueServiceClient::new(nodes.next());
                queues.enqueue(request).await.map(drop).map_err(text)
            }
            Self::Library(client) => {
                let messages = vec![Message::new(value.clone()); count as usize];
                client.queue(queue).enqueue(messages).await.map(drop).map_err(text)
            }
        }
    }

    /// Waits for messages, so many at most; their leases.
    pub(crate) async fn dequeue(&mut self, queue: &str, max: u32) -> Result<Vec<String>, String> {
        match self {
            Self::Unary(nodes) => {
                let request = DequeueRequest {
                    queue: queue.to_owned(),
                    max_messages: max,
                    wait_ms: u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX),
                    ..DequeueRequest::default()
                };
                let mut queues = QueueServiceClient::new(nodes.next());
                let taken = queues.dequeue(request).await.map_err(text)?.into_inner().deliveries;
                Ok(taken.into_iter().map(|delivery| delivery.lease_id).collect())
            }
            Self::Library(client) => {
                let taken = client.queue(queue).dequeue().max(max).wait(WAIT).await;
                let taken = taken.map_err(text)?;
                Ok(taken.iter().map(|delivery| delivery.lease_id().to_owned()).collect())
            }
        }
    }

    pub(crate) async fn ack(&mut self, queue: &str, lease_id: String) -> Result<(), String> {
        match self {
            Self::Unary(nodes) => {
                let queue = queue.to_owned();
                let request = AckRequest { queue, lease_id, ..AckRequest::default() };
                let mut queues = QueueServiceClient::new(nodes.next());
                queues.ack(request).await.map(drop).map_err(text)
            }
            Self::Library(client) => client.queue(queue).ack(lease_id).await.map_err(text),
        }
    }
}

/// A connection to each endpoint.
///
/// # Errors
/// When one cannot be reached.
pub(crate) async fn channels(endpoints: &[String]) -> Result<Vec<Channel>, BenchError> {
    let mut channels = Vec::new();
    for endpoint in endpoints {
        channels.push(Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true).connect().await?);
    }
    Ok(channels)
}

pub(crate) fn put_request(key: String, value: Bytes) -> PutRequest {
    PutRequest { key, value: Some(wire(value)), ..PutRequest::default() }
}

fn wire(value: Bytes) -> Value {
    Value { kind: Some(value::Kind::Data(value)) }
}

pub(crate) fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
}
