//! An Acquire that tells its place in line while it waits.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, timeout_at};
use tonic::{Status, Streaming};
use trefoil_proto::lock::v1::acquire_stream_response::Step;
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_proto::lock::v1::{
    AcquireRequest, AcquireResponse, AcquireStreamRequest, AcquireStreamResponse, WaitPlace,
};

use crate::lane::Lane;
use crate::node::{Failed, RemoteNode};
use crate::retry::RetryState;
use crate::routing_key::RoutingKey;
use crate::stream::StreamError;
use crate::{Client, Error};

/// How one try ended without an answer.
enum Tried {
    Failed(Failed),
    Refused(Error),
}

/// Acquires, at whichever node, under one request id: a lost node costs no place in line.
pub(crate) async fn acquire(
    client: &Client,
    mut request: AcquireRequest,
    tell: &mut (dyn FnMut(WaitPlace) + Send),
) -> Result<AcquireResponse, Error> {
    let (inner, started) = (client.inner(), Instant::now());
    let wait = Duration::from_millis(request.wait_ms);
    let deadline = started + wait + client.timeout();
    let key = RoutingKey::locks(&request.namespace);
    let ticket = inner.ids(Lane::Waits).begin();
    let mut state = RetryState::new(true, deadline, client.timeout());
    loop {
        request.request_id = Some(ticket.id(state.attempt()));
        let left = wait.saturating_sub(started.elapsed()).as_millis();
        request.wait_ms = u64::try_from(left).unwrap_or(u64::MAX);
        let node = state.node(inner, key);
        let pause = match attempt(&node, request.clone(), deadline, tell).await {
            Ok(response) => {
                if response.header.as_ref().is_some_and(|header| inner.routes.is_behind(header)) {
                    inner.refresh();
                }
                return Ok(response);
            }
            Err(Tried::Refused(error)) => state.refused(inner, &node, error)?,
            Err(Tried::Failed(failed)) => state.failed(inner, node, failed)?,
        };
        state.pause(pause).await?;
    }
}

async fn attempt(
    node: &Arc<RemoteNode>,
    request: AcquireRequest,
    deadline: Instant,
    tell: &mut (dyn FnMut(WaitPlace) + Send),
) -> Result<AcquireResponse, Tried> {
    let connection = node.listen().await.map_err(|error| Tried::Failed(Failed::Dial(error)))?;
    let request = AcquireStreamRequest { acquire: Some(request) };
    let channel = connection.channel();
    let told = async {
        let mut client = LockServiceClient::new(channel);
        let mut steps = client.acquire_stream(request).await?.into_inner();
        listen(&mut steps, tell).await
    };
    match timeout_at(deadline, told).await {
        Ok(Ok(Some(response))) => Ok(response),
        Ok(Ok(None)) => Err(Tried::Failed(Failed::Call(StreamError::Broken))),
        Ok(Err(status)) => match Error::from_status(&status) {
            error @ Error::Refused { .. } => Err(Tried::Refused(error)),
            _ => {
                node.hang_up(&connection);
                Err(Tried::Failed(Failed::Call(StreamError::Broken)))
            }
        },
        Err(_) => Err(Tried::Failed(Failed::Call(StreamError::Late))),
    }
}

/// Tells each place until the answer comes; none where the stream ends without one.
async fn listen(
    steps: &mut Streaming<AcquireStreamResponse>,
    tell: &mut (dyn FnMut(WaitPlace) + Send),
) -> Result<Option<AcquireResponse>, Status> {
    while let Some(response) = steps.message().await? {
        match response.step {
            Some(Step::Waiting(place)) => tell(place),
            Some(Step::Answer(answer)) => return Ok(Some(answer)),
            None => {}
        }
    }
    Ok(None)
}
