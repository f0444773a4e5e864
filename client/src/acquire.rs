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

use crate::node::{Failed, Node};
use crate::operation::Way;
use crate::retry::Course;
use crate::route::Scope;
use crate::stream::Ended;
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
    let scope = Scope::locks(&request.namespace);
    let ticket = inner.ids(Way::Waits).begin();
    let mut course = Course::new(true, deadline, client.timeout());
    loop {
        request.request_id = Some(ticket.id(course.attempt()));
        let left = wait.saturating_sub(started.elapsed()).as_millis();
        request.wait_ms = u64::try_from(left).unwrap_or(u64::MAX);
        let node = course.node(inner, scope);
        let pause = match attempt(&node, request.clone(), deadline, tell).await {
            Ok(response) => {
                if response.header.as_ref().is_some_and(|header| inner.routes.learn(scope, header))
                {
                    inner.refresh();
                }
                return Ok(response);
            }
            Err(Tried::Refused(error)) => course.refused(inner, &node, error)?,
            Err(Tried::Failed(failed)) => course.failed(inner, node, failed)?,
        };
        course.pause(pause).await?;
    }
}

async fn attempt(
    node: &Arc<Node>,
    request: AcquireRequest,
    deadline: Instant,
    tell: &mut (dyn FnMut(WaitPlace) + Send),
) -> Result<AcquireResponse, Tried> {
    let line = node.listen().await.map_err(|error| Tried::Failed(Failed::Dial(error)))?;
    let request = AcquireStreamRequest { acquire: Some(request) };
    let channel = line.channel();
    let told = async {
        let mut client = LockServiceClient::new(channel);
        let mut steps = client.acquire_stream(request).await?.into_inner();
        listen(&mut steps, tell).await
    };
    match timeout_at(deadline, told).await {
        Ok(Ok(Some(response))) => Ok(response),
        Ok(Ok(None)) => Err(Tried::Failed(Failed::Call(Ended::Broken))),
        Ok(Err(status)) => match Error::from_status(&status) {
            error @ Error::Refused { .. } => Err(Tried::Refused(error)),
            _ => {
                node.hang_up(&line);
                Err(Tried::Failed(Failed::Call(Ended::Broken)))
            }
        },
        Err(_) => Err(Tried::Failed(Failed::Call(Ended::Late))),
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
