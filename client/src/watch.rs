//! A watch: what happens to something, in the order of the log, each event once, whatever becomes of nodes and connections.
//!
//! Any node serves a watch. When one is lost, or says that it cannot go on, the watch goes on at another from the last
//! position; it ends only when no node has all that happened since.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep, timeout};
use tonic::transport::Channel;
use tonic::{Code, Status, Streaming};
use trefoil_proto::common::v1::{Reason, WatchPosition};
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::lock::v1::election_service_client::ElectionServiceClient;
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_proto::reason::Retry;

use crate::listen::ListenConnection;
use crate::node::RemoteNode;
use crate::routing_key::RoutingKey;
use crate::{Client, Error};

/// Time for a node to begin a watch; another one may be nearer to the position.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// A node tells its position every 5 s: one that is silent for so long is lost.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Pause after every node was asked in vain: doubled each time.
const PAUSE_MIN: Duration = Duration::from_millis(20);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// A request of the contract that is answered by events. Sealed: they are those of `proto/`.
pub trait WatchRequest: Clone + Send + Sync + 'static + sealed::Sealed {
    /// What happens.
    type Event: Send + 'static;
    #[doc(hidden)]
    type Response: Send + 'static;

    #[doc(hidden)]
    fn open(
        self,
        channel: Channel,
    ) -> impl Future<Output = Result<Streaming<Self::Response>, Status>> + Send;
    #[doc(hidden)]
    fn begin_after(&mut self, position: WatchPosition);
    #[doc(hidden)]
    fn parts(response: Self::Response) -> (Vec<Self::Event>, Option<WatchPosition>);
    /// The position after an event, of a response with this position.
    #[doc(hidden)]
    fn after(event: &Self::Event, of: Option<&WatchPosition>) -> WatchPosition;
}

mod sealed {
    pub trait Sealed {}
}

impl sealed::Sealed for lock::WatchLocksRequest {}

impl WatchRequest for lock::WatchLocksRequest {
    type Event = lock::LockEvent;
    type Response = lock::WatchLocksResponse;

    async fn open(self, channel: Channel) -> Result<Streaming<Self::Response>, Status> {
        Ok(LockServiceClient::new(channel).watch_locks(self).await?.into_inner())
    }

    fn begin_after(&mut self, position: WatchPosition) {
        self.after = Some(position);
    }

    fn parts(response: Self::Response) -> (Vec<Self::Event>, Option<WatchPosition>) {
        (response.events, response.position)
    }

    fn after(event: &Self::Event, of: Option<&WatchPosition>) -> WatchPosition {
        let of = of.cloned().unwrap_or_default();
        WatchPosition { index: event.index, ordinal: Some(event.ordinal), ..of }
    }
}

impl sealed::Sealed for lock::ObserveRequest {}

impl WatchRequest for lock::ObserveRequest {
    type Event = lock::ObserveResponse;
    type Response = lock::ObserveResponse;

    async fn open(self, channel: Channel) -> Result<Streaming<Self::Response>, Status> {
        Ok(ElectionServiceClient::new(channel).observe(self).await?.into_inner())
    }

    /// It begins with the present state, wherever it begins.
    fn begin_after(&mut self, _: WatchPosition) {}

    fn parts(response: Self::Response) -> (Vec<Self::Event>, Option<WatchPosition>) {
        let position = Self::after(&response, None);
        (vec![response], Some(position))
    }

    fn after(event: &Self::Event, _: Option<&WatchPosition>) -> WatchPosition {
        event.header.clone().unwrap_or_default().into()
    }
}

/// What happens to locks.
pub type LockWatch = Watch<lock::WatchLocksRequest>;

/// A watch. It begins with the first call of [`Self::started`] or [`Self::next`].
#[derive(Debug)]
pub struct Watch<R: WatchRequest> {
    client: Client,
    request: R,
    /// What the program has seen.
    position: Option<WatchPosition>,
    /// What has come, where the program has not seen all of it yet.
    received: Option<WatchPosition>,
    events: VecDeque<R::Event>,
    open: Option<WatchConnection<R::Response>>,
    /// Nodes that do not have all events after the position.
    lacking: Vec<Arc<RemoteNode>>,
}

#[derive(Debug)]
struct WatchConnection<R> {
    node: Arc<RemoteNode>,
    connection: Arc<ListenConnection>,
    responses: Streaming<R>,
}

/// Tries since something last came.
struct Trouble {
    deadline: Instant,
    pause: Duration,
    avoid: Vec<Arc<RemoteNode>>,
    /// What a node said that does not have all events.
    lack: Option<Error>,
}

impl<R: WatchRequest> Watch<R> {
    pub(crate) fn new(client: Client, request: R) -> Self {
        Self {
            client,
            request,
            position: None,
            received: None,
            events: VecDeque::new(),
            open: None,
            lacking: Vec::new(),
        }
    }

    /// Begins after a position: that of an earlier watch, or `WatchPosition::from(header)` of an answer about locks of the same
    /// namespace. Without it the watch begins with what happens after it was opened.
    #[must_use]
    pub fn after(self, position: WatchPosition) -> Self {
        Self { position: Some(position.clone()), received: Some(position), ..self }
    }

    /// Everything up to here has been returned by [`Self::next`]; none before the watch has begun.
    #[must_use]
    pub fn position(&self) -> Option<WatchPosition> {
        self.position.clone()
    }

    /// Opens the watch and tells the position after which it begins: what happens from then on is not missed.
    ///
    /// # Errors
    /// As [`Self::next`].
    pub async fn started(&mut self) -> Result<WatchPosition, Error> {
        loop {
            if let Some(position) = self.position.as_ref().filter(|_| self.open.is_some()) {
                return Ok(position.clone());
            }
            self.receive().await?;
        }
    }

    /// Waits for the next event. Dropping the future loses none. After an error it may be called again: the watch goes on where it
    /// was.
    ///
    /// # Errors
    /// `POSITION_COMPACTED` or `WATCHER_BEHIND` when no node has all events since: list again, and watch after the index in that
    /// header. Else as any call, after the client's timeout without a node that serves the watch.
    pub async fn next(&mut self) -> Result<R::Event, Error> {
        loop {
            if let Some(event) = self.events.pop_front() {
                let is_last = self.events.is_empty();
                let received = self.received.as_ref();
                self.position =
                    if is_last { received.cloned() } else { Some(R::after(&event, received)) };
                return Ok(event);
            }
            self.receive().await?;
        }
    }

    /// Receives one response, from whichever node.
    async fn receive(&mut self) -> Result<(), Error> {
        let deadline = Instant::now() + self.client.timeout();
        let mut trouble = Trouble { deadline, pause: PAUSE_MIN, avoid: Vec::new(), lack: None };
        loop {
            let Err((node, error)) = self.attempt(&trouble.avoid).await else { return Ok(()) };
            let lacks =
                matches!(error.reason(), Some(Reason::PositionCompacted | Reason::WatcherBehind));
            if lacks {
                self.lacking.push(Arc::clone(&node));
                if self.is_gone() {
                    self.lacking.clear();
                    return Err(error);
                }
                trouble.lack = Some(error.clone());
            } else if !may_go_on(&error) {
                return Err(error);
            } else {
                node.leave_alone();
            }
            trouble.avoid.push(node);
            if let Err(error) = trouble.rest(&self.client, error).await {
                self.lacking.clear();
                return Err(error);
            }
        }
    }

    /// Whether every node was asked and lacks events.
    fn is_gone(&self) -> bool {
        let lacks = |node| self.lacking.iter().any(|other| Arc::ptr_eq(other, node));
        self.client.inner().routes.nodes().iter().all(lacks)
    }

    async fn attempt(&mut self, avoid: &[Arc<RemoteNode>]) -> Result<(), (Arc<RemoteNode>, Error)> {
        let mut open = match self.open.take() {
            Some(open) => open,
            None => self.connect(avoid).await?,
        };
        // Put back before it is waited for, so that a dropped future leaves it as it was.
        let received = {
            let open = self.open.insert(open);
            timeout(SILENCE_MAX, open.responses.message()).await
        };
        let error = match received {
            Ok(Ok(Some(response))) => {
                self.take(response);
                return Ok(());
            }
            Ok(Ok(None)) => lost(&self.node_of_open(), "the stream ended"),
            Ok(Err(status)) => Error::from_status(&status),
            Err(_) => lost(&self.node_of_open(), "nothing came for 15 s"),
        };
        open = self.open.take().expect("it was put back");
        if error.reason().is_none() {
            open.node.hang_up(&open.connection);
        }
        Err((open.node, error))
    }

    fn node_of_open(&self) -> Arc<RemoteNode> {
        Arc::clone(&self.open.as_ref().expect("it is open").node)
    }

    fn take(&mut self, response: R::Response) {
        let (events, position) = R::parts(response);
        self.lacking.clear();
        self.events.extend(events);
        if position.is_some() {
            self.received = position;
        }
        if self.events.is_empty() {
            self.position = self.received.clone();
        }
    }

    async fn connect(
        &self,
        avoid: &[Arc<RemoteNode>],
    ) -> Result<WatchConnection<R::Response>, (Arc<RemoteNode>, Error)> {
        let avoid = [avoid, &self.lacking].concat();
        let node = self.client.inner().routes.pick(RoutingKey::Any, &avoid);
        let mut request = self.request.clone();
        if let Some(position) = self.received.clone() {
            request.begin_after(position);
        }
        let begin = async {
            let connection = node.listen().await?;
            let opened = timeout(OPEN_TIMEOUT, request.open(connection.channel())).await;
            let responses =
                opened.map_err(|_| lost(&node, "the watch did not begin within 3 s"))?;
            match responses {
                Ok(responses) => Ok((connection, responses)),
                Err(status) => {
                    let error = Error::from_status(&status);
                    if error.reason().is_none() {
                        node.hang_up(&connection);
                    }
                    Err(error)
                }
            }
        };
        match begin.await {
            Ok((connection, responses)) => Ok(WatchConnection { node, connection, responses }),
            Err(error) => Err((node, error)),
        }
    }
}

impl Trouble {
    /// Another node at once; after all of them a pause.
    async fn rest(&mut self, client: &Client, error: Error) -> Result<(), Error> {
        if self.avoid.len() < client.inner().routes.nodes().len() {
            return Ok(());
        }
        let pause = self.pause.mul_f64(rand::random_range(0.5..1.0));
        if Instant::now() + pause >= self.deadline {
            // Where every node that answered lacks events, that is what the program must know.
            return Err(self.lack.take().unwrap_or(error));
        }
        sleep(pause).await;
        self.pause = (self.pause * 2).min(PAUSE_MAX);
        self.avoid.clear();
        client.inner().refresh();
        Ok(())
    }
}

/// Whether another try, here or elsewhere, may well do better.
fn may_go_on(error: &Error) -> bool {
    match error {
        Error::Refused { reason, .. } => reason.row().retry != Retry::Never,
        Error::Status { code, .. } => !matches!(
            code,
            Code::Unimplemented
                | Code::InvalidArgument
                | Code::NotFound
                | Code::PermissionDenied
                | Code::Unauthenticated
        ),
        _ => true,
    }
}

fn lost(node: &RemoteNode, cause: &str) -> Error {
    Error::Unreachable { endpoint: node.endpoint().to_owned(), cause: cause.to_owned() }
}
