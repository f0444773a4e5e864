//! The two ways of a call: by the client library, and as plain gRPC at each node in turn.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tonic::transport::{Channel, Endpoint};
use trefoil_client::Client;
use trefoil_proto::cache::v1::PutRequest;
use trefoil_proto::cache::v1::cache_service_client::CacheServiceClient;
use trefoil_proto::common::v1::{Value, value};

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
