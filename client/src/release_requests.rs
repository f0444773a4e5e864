//! What a session is asked for: a stream that is opened when somebody wants to know, and opened again wherever it ends.

use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::time::{sleep, timeout};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::lock::v1::KeepAliveStreamRequest;
use trefoil_proto::lock::v1::keep_alive_stream_response::News;
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;

use crate::node::RemoteNode;
use crate::routing_key::RoutingKey;
use crate::session_state::SessionState;
use crate::{Client, Error};

/// Time for a node to begin.
const OPEN_TIMEOUT: Duration = Duration::from_secs(3);
/// Pause before the stream is opened again: doubled each time that it told nothing.
const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);

/// Listens until the session is over or nobody has it any more. Renewals go their own way.
pub(crate) async fn listen(session: Weak<SessionState>) {
    let mut pause = PAUSE_MIN;
    let mut avoid = Vec::new();
    loop {
        let Some((client, id)) = session.upgrade().map(|shared| shared.name()) else { return };
        let node = client.inner().routes.pick(RoutingKey::locks(client.namespace()), &avoid);
        let mut has_told = false;
        let end = told(&client, &node, id, |news| {
            has_told = true;
            let Some(shared) = session.upgrade() else { return };
            match news {
                News::ReleaseRequested(asked) => shared.asked(asked),
                News::Expired(_) => shared.lose(),
                News::Safe(_) | News::Jeopardy(_) => {}
            }
        });
        let end = end.await;
        let Some(shared) = session.upgrade() else { return };
        if end.is_err_and(|error| error.reason() == Some(Reason::SessionExpired)) {
            shared.lose();
        }
        if shared.is_over() {
            return;
        }
        drop(shared);
        pause = if has_told { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
        // A node that failed is not the next one.
        avoid = vec![node];
        client.inner().refresh();
        sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
    }
}

/// Tells what one stream tells, until it ends.
async fn told(
    client: &Client,
    node: &Arc<RemoteNode>,
    session_id: u64,
    mut tell: impl FnMut(News),
) -> Result<(), Error> {
    let namespace = client.owned_namespace();
    let first = tokio_stream::once(KeepAliveStreamRequest { namespace, session_id });
    let connection = node.listen().await?;
    let mut lock = LockServiceClient::new(connection.channel());
    let ended = async {
        let opened = timeout(OPEN_TIMEOUT, lock.keep_alive_stream(first)).await;
        let Ok(opened) = opened else { return Ok(()) };
        let mut responses = opened?.into_inner();
        while let Some(response) = responses.message().await? {
            response.news.into_iter().for_each(&mut tell);
        }
        Ok(())
    };
    ended.await.map_err(|status: tonic::Status| {
        let error = Error::from_status(&status);
        if error.reason().is_none() {
            node.hang_up(&connection);
        }
        error
    })
}
