//! One call from first try to end: which node, when again, and what is known when it is given up.
//!
//! A try that was certainly not executed is repeated as it was. A try whose end was not seen is repeated with
//! the same request id and a higher attempt, so that the shard answers what it answered first.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use trefoil_proto::REQUEST_BYTES_MAX;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::pipeline::v1::{call, reply};
use trefoil_proto::reason::{RefusalEffect, Retry, invalid};

use crate::boot::BootInstant;
use crate::error::Error;
use crate::inner::SharedClient;
use crate::lane::Lane;
use crate::node::{Failed, RemoteNode};
use crate::operation::Request;
use crate::routing_key::RoutingKey;
use crate::stream::StreamError;

/// Tries of one call at most.
const TRIES_MAX: u32 = 64;
/// Back-off between tries: doubled each time, half of it random.
const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(500);
/// A try without a wait gets a quarter of the call's time, so that a silent node does not use all of it up.
const TRY_SHARE: u32 = 4;
const TRY_MIN: Duration = Duration::from_millis(250);

/// What has happened to a call so far.
pub(crate) struct RetryState {
    mutation: bool,
    deadline: Instant,
    timeout: Duration,
    tries: u32,
    /// Tries whose end was not seen.
    attempt: u32,
    /// Nodes that failed since the last pause.
    avoid: Vec<Arc<RemoteNode>>,
    /// The leader that a refusal named.
    hint: Option<Arc<RemoteNode>>,
    /// Why the last try failed.
    last: Option<Error>,
}

/// Runs a call to its end, at any node. What the answer promises is counted from the moment before the try was sent that it
/// answers.
pub(crate) async fn run<R: Request>(
    inner: &Arc<SharedClient>,
    mut request: R,
    timeout: Duration,
) -> Result<(R::Response, BootInstant), Error> {
    let started = Instant::now();
    let lane = request.lane();
    let wait = Duration::from_millis(request.wait_ms().map_or(0, |wait_ms| *wait_ms));
    let mut state = RetryState::new(R::MUTATION, started + wait + timeout, timeout);
    let ticket = R::MUTATION.then(|| inner.ids(lane).begin());
    loop {
        if let Some(ticket) = &ticket {
            request.stamp(ticket.id(state.attempt));
        }
        if let Some(wait_ms) = request.wait_ms() {
            let left = wait.saturating_sub(started.elapsed()).as_millis();
            *wait_ms = u64::try_from(left).unwrap_or(u64::MAX);
        }
        let operation = request.clone().operation();
        fits(&operation)?;
        let node = state.node(inner, request.routing_key(&inner.layouts));
        let sent = BootInstant::now();
        let deadline = state.try_deadline(lane);
        let is_last = !R::MUTATION || deadline == state.deadline;
        let pause = match node.call(lane, operation, deadline, is_last).await {
            Ok(reply::Outcome::Error(error)) => {
                state.refused(inner, &node, Error::from_reply(error))?
            }
            Ok(outcome) => {
                let response = R::response(outcome).ok_or(Error::Protocol)?;
                request.learn(&response, &inner.layouts);
                if R::header(&response).is_some_and(|header| inner.routes.is_behind(header)) {
                    inner.refresh();
                }
                return Ok((response, sent));
            }
            Err(failed) => state.failed(inner, node, failed)?,
        };
        state.pause(pause).await?;
    }
}

/// Refuses at once what every node would refuse.
fn fits(operation: &call::Operation) -> Result<(), Error> {
    if operation.encoded_len() <= REQUEST_BYTES_MAX {
        return Ok(());
    }
    Err(invalid("request", format_args!("at most {REQUEST_BYTES_MAX} bytes")).into())
}

impl RetryState {
    pub(crate) fn new(mutation: bool, deadline: Instant, timeout: Duration) -> Self {
        Self {
            mutation,
            deadline,
            timeout,
            tries: 0,
            attempt: 0,
            avoid: Vec::new(),
            hint: None,
            last: None,
        }
    }

    /// Tries whose end was not seen.
    pub(crate) fn attempt(&self) -> u32 {
        self.attempt
    }

    /// The node to ask next.
    pub(crate) fn node(&mut self, inner: &SharedClient, key: RoutingKey) -> Arc<RemoteNode> {
        self.hint.take().unwrap_or_else(|| inner.routes.pick(key, &self.avoid))
    }

    fn try_deadline(&self, lane: Lane) -> Instant {
        let share = Instant::now() + (self.timeout / TRY_SHARE).max(TRY_MIN);
        match lane {
            Lane::Waits => self.deadline,
            Lane::Calls | Lane::Renewals => share.min(self.deadline),
        }
    }

    /// After a try that got no reply: another node at once.
    pub(crate) fn failed(
        &mut self,
        inner: &Arc<SharedClient>,
        node: Arc<RemoteNode>,
        failed: Failed,
    ) -> Result<Duration, Error> {
        let error = match failed {
            Failed::Dial(error) => error,
            Failed::Call(StreamError::NotSent) => Error::broken(node.endpoint()),
            Failed::Call(StreamError::LateUnsent) => Error::late(self.timeout),
            Failed::Call(StreamError::Broken) => {
                self.attempt += 1;
                Error::broken(node.endpoint())
            }
            Failed::Call(StreamError::Late) => {
                self.attempt += 1;
                node.leave_alone();
                Error::late(self.timeout)
            }
        };
        inner.refresh();
        self.last = Some(error);
        self.avoid.push(node);
        let is_round = self.avoid.len() >= inner.routes.nodes().len();
        Ok(if is_round { self.backoff() } else { Duration::ZERO })
    }

    /// After a refusal: the end of the call, or a pause.
    pub(crate) fn refused(
        &mut self,
        inner: &Arc<SharedClient>,
        node: &Arc<RemoteNode>,
        error: Error,
    ) -> Result<Duration, Error> {
        let Some(reason) = error.reason() else {
            // Not an answer of Trefoil: whatever it was, the call may have gone through.
            self.attempt += 1;
            let again = error.is_retryable();
            self.last = Some(error);
            return if again { Ok(self.backoff()) } else { Err(self.end()) };
        };
        let row = reason.row();
        if row.effect == RefusalEffect::Unknown {
            self.attempt += 1;
        }
        if row.retry == Retry::Elsewhere {
            self.hint = hint(inner, node, &error);
            inner.refresh();
        }
        if reason == Reason::Stopping {
            node.leave_alone();
            self.avoid.push(Arc::clone(node));
        }
        self.last = Some(error);
        match row.retry {
            Retry::Never | Retry::Later => Err(self.end()),
            Retry::Freely | Retry::Elsewhere | Retry::WithRequestId => Ok(self.backoff()),
        }
    }

    pub(crate) async fn pause(&mut self, pause: Duration) -> Result<(), Error> {
        self.tries += 1;
        if self.tries >= TRIES_MAX || Instant::now() + pause >= self.deadline {
            return Err(self.end());
        }
        if !pause.is_zero() {
            sleep(pause).await;
            self.avoid.clear();
        }
        Ok(())
    }

    fn backoff(&self) -> Duration {
        let full = PAUSE_MIN.saturating_mul(1 << self.tries.min(10)).min(PAUSE_MAX);
        full.mul_f64(rand::random_range(0.5..1.0))
    }

    /// What the caller is told.
    fn end(&mut self) -> Error {
        let last = self.last.take().unwrap_or_else(|| Error::late(self.timeout));
        if self.mutation && self.attempt > 0 && last.effect() != RefusalEffect::NoTry {
            Error::MaybeApplied { last: Box::new(last) }
        } else {
            last
        }
    }
}

/// The leader that the refusal names, unless it is the node that refused.
fn hint(
    inner: &Arc<SharedClient>,
    refused_by: &Arc<RemoteNode>,
    error: &Error,
) -> Option<Arc<RemoteNode>> {
    let Error::Refused { metadata, .. } = error else { return None };
    let leader = inner.routes.at(metadata.get("leader_endpoint")?)?;
    (leader.may_be_asked() && !Arc::ptr_eq(&leader, refused_by)).then_some(leader)
}
