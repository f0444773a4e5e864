//! One node: how it is dialled, its two streams, and how long it is left alone after a failure.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout, timeout_at};
use tonic::codegen::http::uri::Authority;
use tonic::transport::Endpoint;
use trefoil_proto::FRAME_BYTES_MAX;
use trefoil_proto::pipeline::v1::pipeline_service_client::PipelineServiceClient;
use trefoil_proto::pipeline::v1::{call, reply};

use crate::error::Error;
use crate::lane::Lane;
use crate::listen::{ListenConnection, ListenConnections};
use crate::operation::Request;
use crate::stream::{PipelineStream, StreamError, WAITS_MAX};

/// An advertised name that takes longer to dial is of no use: the reachable node forwards instead.
const ADVERTISED_DIAL: Duration = Duration::from_millis(200);
/// Bytes of one reply beside those of a full frame.
const REPLY_BYTES_MAX: usize = 8 << 20;
/// Bytes of the headers that a server may send.
const HEADER_BYTES_MAX: u32 = 16 << 10;
/// HTTP/2 flow-control windows in bytes.
const STREAM_WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 8 << 20;
/// How long a node is left alone: doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(5);

/// How connections are made.
#[derive(Clone, Debug)]
pub(crate) struct Transport {
    /// Time to dial a given endpoint.
    pub(crate) connect_timeout: Duration,
    /// Pings go out that often, idle or not.
    pub(crate) keep_alive_interval: Duration,
    /// A ping without an answer ends the connection after this.
    pub(crate) keep_alive_timeout: Duration,
}

impl Default for Transport {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(1),
            keep_alive_interval: Duration::from_secs(2),
            keep_alive_timeout: Duration::from_secs(2),
        }
    }
}

/// One node of the cluster, or whatever stands before it.
#[derive(Debug)]
pub(crate) struct RemoteNode {
    endpoint: String,
    transport: Endpoint,
    dial_timeout: Duration,
    calls: LazyStream,
    waits: LazyStream,
    listens: ListenConnections,
    /// Waits have a limit of their own.
    wait_limit: Semaphore,
    health: Mutex<NodeHealth>,
}

/// A stream that is opened when it is needed.
#[derive(Debug, Default)]
struct LazyStream {
    open: Mutex<Option<Arc<PipelineStream>>>,
    /// One dials, the others wait for it.
    dialling: tokio::sync::Mutex<()>,
}

#[derive(Debug, Default)]
struct NodeHealth {
    failures: u32,
    ask_after: Option<Instant>,
}

/// Why one try got no reply.
#[derive(Debug)]
pub(crate) enum Failed {
    /// The node could not be reached: nothing was sent.
    Dial(Error),
    /// The stream ended the call.
    Call(StreamError),
}

/// An endpoint as a URL: `http://` may be left out, and nothing stands behind the port.
///
/// # Errors
/// [`Error::InvalidEndpoint`], also for a port beyond 65,535.
pub fn endpoint_url(endpoint: &str) -> Result<String, Error> {
    let invalid = || Error::InvalidEndpoint { endpoint: endpoint.to_owned() };
    let (scheme, address) = endpoint.split_once("://").unwrap_or(("http", endpoint));
    let address = address.strip_suffix('/').unwrap_or(address);
    let authority = address.parse::<Authority>().map_err(|_| invalid())?;
    let port = address.strip_prefix(authority.host()).ok_or_else(invalid)?;
    let is_port = |text: &str| text.parse::<u16>().is_ok_and(|port| port > 0);
    let fits = port.is_empty() || port.strip_prefix(':').is_some_and(is_port);
    if scheme != "http" || authority.host().is_empty() || !fits {
        return Err(invalid());
    }
    Ok(format!("http://{address}"))
}

impl RemoteNode {
    /// A node that the program named.
    pub(crate) fn given(endpoint: &str, transport: &Transport) -> Result<Self, Error> {
        Self::new(&endpoint_url(endpoint)?, transport, transport.connect_timeout)
    }

    /// A node that the cluster named; the program may be where that name leads nowhere.
    pub(crate) fn advertised(endpoint: &str, transport: &Transport) -> Result<Self, Error> {
        Self::new(endpoint, transport, ADVERTISED_DIAL.min(transport.connect_timeout))
    }

    fn new(name: &str, transport: &Transport, dial_timeout: Duration) -> Result<Self, Error> {
        let invalid = || Error::InvalidEndpoint { endpoint: name.to_owned() };
        let endpoint = Endpoint::from_shared(name.to_owned()).map_err(|_| invalid())?;
        if endpoint.uri().scheme_str() != Some("http") || endpoint.uri().host().is_none() {
            return Err(invalid());
        }
        let endpoint = endpoint
            .connect_timeout(dial_timeout)
            .tcp_nodelay(true)
            .tcp_keepalive(Some(Duration::from_secs(30)))
            .http2_keep_alive_interval(transport.keep_alive_interval)
            .keep_alive_timeout(transport.keep_alive_timeout)
            .keep_alive_while_idle(true)
            .http2_max_header_list_size(HEADER_BYTES_MAX)
            .initial_stream_window_size(STREAM_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES);
        Ok(Self {
            endpoint: name.to_owned(),
            transport: endpoint,
            dial_timeout,
            calls: LazyStream::default(),
            waits: LazyStream::default(),
            listens: ListenConnections::default(),
            wait_limit: Semaphore::new(WAITS_MAX),
            health: Mutex::default(),
        })
    }

    pub(crate) fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// False for a while after a failed dial, or after a call that it would not or did not answer.
    pub(crate) fn may_be_asked(&self) -> bool {
        lock(&self.health).ask_after.is_none_or(|after| after <= Instant::now())
    }

    /// Makes one call, opening the stream first where it is not open.
    pub(crate) async fn call(
        &self,
        lane: Lane,
        operation: call::Operation,
        deadline: Instant,
        is_last: bool,
    ) -> Result<reply::Outcome, Failed> {
        let _permit = match lane {
            Lane::Waits => match timeout_at(deadline, self.wait_limit.acquire()).await {
                Ok(permit) => Some(permit.expect("the limit is never closed")),
                Err(_) => return Err(Failed::Call(StreamError::LateUnsent)),
            },
            Lane::Calls | Lane::Renewals => None,
        };
        let stream = match timeout_at(deadline, self.stream(lane)).await {
            Ok(opened) => opened.map_err(Failed::Dial)?,
            Err(_) => return Err(Failed::Call(StreamError::LateUnsent)),
        };
        stream.call(operation, deadline, is_last).await.map_err(Failed::Call)
    }

    /// Runs a call once, at one node: what is asked of that node in particular.
    pub(crate) async fn once<R: Request>(
        &self,
        request: R,
        timeout: Duration,
    ) -> Result<R::Response, Error> {
        let deadline = Instant::now() + timeout;
        match self.call(Lane::Calls, request.operation(), deadline, true).await {
            Ok(reply::Outcome::Error(error)) => Err(Error::from_reply(error)),
            Ok(outcome) => R::response(outcome).ok_or(Error::Protocol),
            Err(Failed::Dial(error)) => Err(error),
            Err(Failed::Call(StreamError::NotSent | StreamError::Broken)) => {
                Err(Error::broken(self.endpoint()))
            }
            Err(Failed::Call(StreamError::Late | StreamError::LateUnsent)) => {
                Err(Error::late(timeout))
            }
        }
    }

    async fn stream(&self, lane: Lane) -> Result<Arc<PipelineStream>, Error> {
        let (lazy, waits) = match lane {
            Lane::Calls => (&self.calls, 0),
            Lane::Waits | Lane::Renewals => (&self.waits, WAITS_MAX),
        };
        if let Some(stream) = lazy.open() {
            return Ok(stream);
        }
        let _dialling = lazy.dialling.lock().await;
        if let Some(stream) = lazy.open() {
            return Ok(stream);
        }
        let dialled = timeout(self.dial_timeout, self.dial(waits)).await;
        match dialled.unwrap_or_else(|_| {
            Err(format!("no answer within {} ms", self.dial_timeout.as_millis()))
        }) {
            Ok(stream) => {
                *lock(&self.health) = NodeHealth::default();
                let stream = Arc::new(stream);
                *lock(&lazy.open) = Some(Arc::clone(&stream));
                Ok(stream)
            }
            Err(cause) => {
                self.leave_alone();
                Err(Error::Unreachable { endpoint: self.endpoint.clone(), cause })
            }
        }
    }

    async fn dial(&self, waits: usize) -> Result<PipelineStream, String> {
        let channel = self.transport.connect().await.map_err(|error| root_cause(&error))?;
        let (shared, frames) = PipelineStream::prepare();
        let mut client = PipelineServiceClient::new(channel)
            .max_decoding_message_size(FRAME_BYTES_MAX + REPLY_BYTES_MAX);
        let replies = client.open(frames).await.map_err(|status| status.message().to_owned())?;
        Ok(PipelineStream::opened(shared, replies.into_inner(), waits))
    }

    /// A connection for a stream on which the node tells something by itself.
    pub(crate) async fn listen(&self) -> Result<Arc<ListenConnection>, Error> {
        if let Some(connection) = self.listens.free() {
            return Ok(connection);
        }
        let _dialling = self.listens.dialling.lock().await;
        if let Some(connection) = self.listens.free() {
            return Ok(connection);
        }
        let cause = match timeout(self.dial_timeout, self.transport.connect()).await {
            Ok(Ok(channel)) => {
                *lock(&self.health) = NodeHealth::default();
                return Ok(self.listens.add(channel));
            }
            Ok(Err(error)) => root_cause(&error),
            Err(_) => format!("no answer within {} ms", self.dial_timeout.as_millis()),
        };
        self.leave_alone();
        Err(Error::Unreachable { endpoint: self.endpoint.clone(), cause })
    }

    /// A stream of this connection broke.
    pub(crate) fn hang_up(&self, connection: &Arc<ListenConnection>) {
        self.listens.forget(connection);
    }

    /// Others are asked for a while, longer each time; a dial that succeeds ends it.
    pub(crate) fn leave_alone(&self) {
        let (mut health, now) = (lock(&self.health), Instant::now());
        match health.ask_after {
            // The calls that were in flight together fail together, and count once.
            Some(after) if after > now => return,
            Some(after) if now - after > PAUSE_MAX => health.failures = 0,
            Some(_) | None => {}
        }
        let pause = PAUSE_MIN.saturating_mul(1 << health.failures.min(10)).min(PAUSE_MAX);
        health.failures = health.failures.saturating_add(1);
        health.ask_after = Some(now + pause);
    }
}

impl LazyStream {
    fn open(&self) -> Option<Arc<PipelineStream>> {
        lock(&self.open).as_ref().filter(|stream| stream.is_open()).cloned()
    }
}

/// The innermost error says what went wrong; the outer ones only that something did.
fn root_cause(error: &dyn std::error::Error) -> String {
    let mut cause = error;
    while let Some(inner) = cause.source() {
        cause = inner;
    }
    cause.to_string()
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
