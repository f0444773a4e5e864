//! The client: a cheap handle on the connections to one cluster.

use std::sync::Arc;
use std::time::Duration;

use trefoil_proto::cluster::v1::StatusRequest;

use crate::boot::BootInstant;
use crate::error::Error;
use crate::inner::{REFRESH_TIMEOUT, SharedClient};
use crate::node::Transport;
use crate::operation::Request;
use crate::retry;
use crate::route::Routes;

/// How long a call may take, its wait apart.
const TIMEOUT: Duration = Duration::from_secs(10);
/// A client of one cluster. Cloning is cheap; clones share connections.
#[derive(Clone, Debug)]
pub struct Client {
    inner: Arc<SharedClient>,
    namespace: Arc<str>,
    timeout: Duration,
}

/// What is to be known before a client can connect.
#[derive(Clone, Debug)]
#[must_use]
pub struct Builder {
    endpoints: Vec<String>,
    namespace: String,
    timeout: Duration,
    transport: Transport,
}

impl Client {
    /// Connects to the first of the endpoints that answers and learns of the others from it.
    ///
    /// # Errors
    /// When an endpoint is no URL, or none of them answers.
    pub async fn connect<E: Into<String>>(
        endpoints: impl IntoIterator<Item = E>,
    ) -> Result<Self, Error> {
        Self::builder(endpoints).connect().await
    }

    /// The settings of a client to be.
    pub fn builder<E: Into<String>>(endpoints: impl IntoIterator<Item = E>) -> Builder {
        Builder {
            endpoints: endpoints.into_iter().map(Into::into).collect(),
            namespace: String::new(),
            timeout: TIMEOUT,
            transport: Transport::default(),
        }
    }

    /// The same connections, for another namespace.
    #[must_use]
    pub fn with_namespace(&self, namespace: impl Into<Arc<str>>) -> Self {
        Self { namespace: namespace.into(), ..self.clone() }
    }

    /// The same connections, with another time for each call (its wait comes on top).
    #[must_use]
    pub fn with_timeout(&self, timeout: Duration) -> Self {
        Self { timeout, ..self.clone() }
    }

    /// The namespace of this handle; empty means "default".
    #[must_use]
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Sends a message of the contract as it is, apart from its request id: what the typed calls are made of.
    ///
    /// # Errors
    /// See [`Error`]; what was safe to retry has been retried.
    pub async fn call<R: Request>(&self, request: R) -> Result<R::Response, Error> {
        self.timed(request).await.map(|(response, _)| response)
    }

    /// The same, with the moment from which the promises of the response are counted.
    pub(crate) async fn timed<R: Request>(
        &self,
        request: R,
    ) -> Result<(R::Response, BootInstant), Error> {
        retry::run(&self.inner, request, self.timeout).await
    }

    pub(crate) fn inner(&self) -> &Arc<SharedClient> {
        &self.inner
    }

    pub(crate) fn timeout(&self) -> Duration {
        self.timeout
    }

    pub(crate) fn owned_namespace(&self) -> String {
        self.namespace.to_string()
    }
}

impl Builder {
    /// Namespace of every call (default: "default").
    pub fn namespace(mut self, namespace: impl Into<String>) -> Self {
        self.namespace = namespace.into();
        self
    }

    /// Time for each call with all its retries, its wait apart (default 10 s).
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = timeout;
        self
    }

    /// Time to open a connection (default 1 s; an endpoint that only the cluster named gets at most 200 ms).
    pub fn connect_timeout(mut self, timeout: Duration) -> Self {
        self.transport.connect_timeout = timeout;
        self
    }

    /// How often a connection is pinged, and how long it may be silent then (default 2 s and 2 s).
    pub fn keep_alive(mut self, interval: Duration, timeout: Duration) -> Self {
        self.transport.keep_alive_interval = interval;
        self.transport.keep_alive_timeout = timeout;
        self
    }

    /// Connects.
    ///
    /// # Errors
    /// When an endpoint is no URL, or none of them answers.
    pub async fn connect(self) -> Result<Client, Error> {
        let client = self.build()?;
        let mut last = Error::NoEndpoint;
        for node in client.inner.routes.nodes() {
            match node.once(StatusRequest::default(), REFRESH_TIMEOUT.min(client.timeout)).await {
                Ok(status) => {
                    client.inner.routes.absorb(&node, &status);
                    return Ok(client);
                }
                // It answers: whatever it lacks, calls will say better.
                Err(Error::Refused { .. } | Error::Status { .. }) => return Ok(client),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    /// A client that connects with its first call.
    ///
    /// # Errors
    /// When an endpoint is no URL, or there is none.
    pub fn build(self) -> Result<Client, Error> {
        let inner = SharedClient::new(Routes::new(&self.endpoints, self.transport)?);
        Ok(Client {
            inner: Arc::new(inner),
            namespace: self.namespace.into(),
            timeout: self.timeout,
        })
    }
}
