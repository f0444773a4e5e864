//! One handler for each operation, whichever way it came: check, authorize, command or query, answer.
//!
//! `unary` and `pipeline` are the two ways in; neither knows what an operation does, and no handler knows by which
//! way it was called.

mod acquire_stream;
mod barrier;
pub mod bounds;
mod cache;
mod catalogue;
mod clean_up;
mod cluster;
mod dequeue;
mod election;
mod fence;
mod fingerprint;
mod generated;
mod keep_alive_stream;
mod lock;
mod namespace;
mod observe;
pub mod operation;
pub mod pipeline;
mod queue;
mod reflection;
pub mod routes;
mod semaphore;
pub mod server_stream;
pub mod shards;
pub mod unary;
mod watches;

use std::collections::BTreeSet;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rand::random;
use tokio::sync::watch;
use tokio::time::Instant;
use trefoil_core::limits::{ANSWER_MARGIN_MS, CALL_TIMEOUT_MS};
use trefoil_core::slot::MAP_EPOCH;
use trefoil_core::{ShardId, slot};
use trefoil_proto::common::v1::{Reason, RequestId, ResponseHeader};
use trefoil_proto::internal::v1::{
    CallName, CheckedFence, Command, Drawn, Query, Refusal, answer, command, query,
};
pub use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::reason::{RefusalEffect, Retry};

use self::catalogue::Catalogues;
use self::clean_up::CleanUps;
use self::fence::{Fences, Shown};
use self::operation::{CallFacts, Operation};
pub use self::shards::{Answered, CallContext, ClientEndpoint, ShardState, Shards};
use crate::authorize::{Authorizer, Principal, access, authorize};
use crate::config::Service;
use crate::layer::admission::{Admission, AdmissionPermit};
use crate::metrics::Metrics;

/// Pause before a shard without a leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Time kept back of the caller's deadline to answer that the wait is over.
const ANSWER_TIME: Duration = Duration::from_millis(50);

/// What handlers must know of the configuration.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Name of this node.
    pub node_name: String,
    /// Services that are on.
    pub services: BTreeSet<Service>,
    /// Whether the first Enqueue creates its queue.
    pub auto_create_queues: bool,
}

/// Everything that a node says to clients.
#[derive(Debug)]
pub struct Api<S> {
    shards: S,
    settings: Settings,
    started: Instant,
    /// In hexadecimal; empty until the cluster is formed.
    cluster_id: OnceLock<String>,
    authorizer: Authorizer,
    metrics: Arc<Metrics>,
    admission: Arc<Admission>,
    catalogues: Catalogues,
    fences: Fences,
    clean_ups: CleanUps,
    /// How near the end of the node is.
    phase: watch::Sender<Phase>,
}

/// How near the end of a node is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Serving,
    /// What waits is told to go elsewhere; everything else is still answered.
    Stopping,
    /// Nothing is answered any more.
    Ended,
}

/// Who calls, and under what conditions.
#[derive(Debug)]
pub struct Caller {
    /// Who.
    pub principal: Principal,
    /// When the caller gives up, from now; none where it did not say.
    pub timeout: Option<Duration>,
    /// The call's place among those in flight.
    pub permit: Arc<AdmissionPermit>,
    /// Set before the call is dropped because the caller said so, and not because the caller is gone: whoever is gone
    /// may come back by another way and ask again.
    pub cancelled: Option<Arc<AtomicBool>>,
}

/// What a handler needs beside its request.
#[derive(Clone, Debug)]
struct Context {
    ask: CallContext,
    /// The fence that the call shows.
    fence: Option<Arc<Shown>>,
    /// See [`Caller::cancelled`].
    cancelled: Option<Arc<AtomicBool>>,
}

impl<S: Shards> Api<S> {
    /// Puts a front before shards.
    #[must_use]
    pub fn new(shards: S, settings: Settings, metrics: Arc<Metrics>) -> Self {
        Self {
            shards,
            settings,
            started: Instant::now(),
            cluster_id: OnceLock::new(),
            authorizer: authorize,
            metrics,
            admission: Arc::default(),
            catalogues: Catalogues::default(),
            fences: Fences::default(),
            clean_ups: CleanUps::default(),
            phase: watch::Sender::new(Phase::Serving),
        }
    }

    /// Decides about calls by another function.
    #[must_use]
    pub fn with_authorizer(self, authorizer: Authorizer) -> Self {
        Self { authorizer, ..self }
    }

    /// The shards behind this front.
    pub fn shards(&self) -> &S {
        &self.shards
    }

    /// Where calls are counted.
    pub fn metrics(&self) -> &Arc<Metrics> {
        &self.metrics
    }

    /// The places for calls.
    pub fn admission(&self) -> &Arc<Admission> {
        &self.admission
    }

    /// The services that are on.
    pub fn services(&self) -> &BTreeSet<Service> {
        &self.settings.services
    }

    /// Whether every shard has a leader, as far as this node knows, and the node is not about to end.
    pub fn is_ready(&self) -> bool {
        *self.phase.borrow() == Phase::Serving
            && (0..=self.shards.shards()).all(|shard| self.shards.leader(shard).is_some())
    }

    /// The node is about to end: it says that it is not ready, and ends what waits.
    pub fn stop(&self) {
        self.phase.send_replace(Phase::Stopping);
    }

    /// The node has ended: so do the pipelined streams.
    pub fn end(&self) {
        self.phase.send_replace(Phase::Ended);
    }

    /// Carries out one operation.
    ///
    /// # Errors
    /// Whatever the table of reasons says.
    pub async fn call(
        self: &Arc<Self>,
        caller: Caller,
        mut operation: Operation,
    ) -> Result<Outcome, Refusal> {
        generated::check(&mut operation)?;
        let facts = operation::facts(&operation);
        facts.resource.each(|on| (self.authorizer)(&caller.principal, facts.action, on))?;
        self.service_is_on(&facts)?;
        let longest = Duration::from_millis(CALL_TIMEOUT_MS + facts.wait_ms);
        let deadline = Instant::now() + answer_within(caller.timeout, longest);
        let access = Arc::new(access(&caller.principal, facts.action, facts.resource));
        let wait_ms = facts.wait_ms;
        let fingerprint = fingerprint::of(&mut operation);
        let fence = self.shown(&caller.principal, &mut operation)?;
        let ask = CallContext { access, deadline, fingerprint };
        let context = Context { ask, fence, cancelled: caller.cancelled };
        if wait_ms == 0 {
            let outcome = self.dispatch(&context, operation).await;
            drop(caller.permit);
            return outcome;
        }
        let waiting = self.admission.wait(&caller.permit)?;
        drop(caller.permit);
        let mut phase = self.phase.subscribe();
        let outcome = tokio::select! {
            biased;
            // Nothing is begun once it stops. The sender lives as long as this front.
            _ = phase.wait_for(|phase| *phase != Phase::Serving) => Err(stopping()),
            outcome = self.dispatch(&context, operation) => outcome,
        };
        drop(waiting);
        outcome
    }

    fn service_is_on(&self, facts: &CallFacts<'_>) -> Result<(), Refusal> {
        facts.service.map_or(Ok(()), |service| self.is_on(service))
    }

    fn is_on(&self, service: Service) -> Result<(), Refusal> {
        if self.settings.services.contains(&service) {
            return Ok(());
        }
        let message = format!("this cluster does not serve {}", service.name());
        Err(refusal(Reason::ServiceOff, message))
    }

    /// Has one command applied at the shard of its slot.
    async fn command(
        &self,
        slot: u16,
        request_id: Option<RequestId>,
        operation: command::Operation,
        ask: &CallContext,
    ) -> Result<Decided, Refusal> {
        self.send(slot, request_id, operation, None, ask).await
    }

    /// The same for a call that waits or acquires, by the name that all its commands say.
    async fn called(
        &self,
        slot: u16,
        call: CallName,
        operation: command::Operation,
        ask: &CallContext,
    ) -> Result<Decided, Refusal> {
        let command = self.compose(slot, call.request_id, operation, ask);
        let command = Command { drawn: call.drawn, ..command };
        self.decided(self.shards.command(self.shard(slot), command, ask).await?)
    }

    async fn send(
        &self,
        slot: u16,
        request_id: Option<RequestId>,
        operation: command::Operation,
        fence: Option<CheckedFence>,
        ask: &CallContext,
    ) -> Result<Decided, Refusal> {
        let command = Command { fence, ..self.compose(slot, request_id, operation, ask) };
        self.decided(self.shards.command(self.shard(slot), command, ask).await?)
    }

    fn compose(
        &self,
        slot: u16,
        request_id: Option<RequestId>,
        operation: command::Operation,
        ask: &CallContext,
    ) -> Command {
        let fingerprint = request_id.as_ref().map_or(0, |_| ask.fingerprint);
        let chance = operation.draws_chance().then(|| Drawn { high: random(), low: random() });
        Command {
            request_id,
            slot: slot.into(),
            map_epoch: MAP_EPOCH,
            agent: self.shards.node_id(),
            operation: Some(operation),
            fingerprint,
            chance,
            ..Command::default()
        }
    }

    /// Asks the shard of a slot.
    async fn query(
        &self,
        slot: u16,
        query: query::Query,
        ask: &CallContext,
    ) -> Result<Decided, Refusal> {
        self.ask(slot, query, None, ask).await
    }

    async fn ask(
        &self,
        slot: u16,
        query: query::Query,
        fence: Option<CheckedFence>,
        ask: &CallContext,
    ) -> Result<Decided, Refusal> {
        let (agent, query) = (self.shards.node_id(), Some(query));
        let query = Query { slot: slot.into(), map_epoch: MAP_EPOCH, agent, query, fence };
        self.decided(self.shards.query(self.shard(slot), query, ask).await?)
    }

    fn shard(&self, slot: u16) -> ShardId {
        slot::shard(slot, self.shards.shards())
    }

    /// Id of the cluster in hexadecimal; empty before it is formed.
    fn cluster_id(&self) -> String {
        if let Some(id) = self.cluster_id.get() {
            return id.clone();
        }
        let id = self.shards.cluster_id().map(|id| format!("{:032x}", u128::from_be_bytes(id)));
        id.map(|id| self.cluster_id.get_or_init(|| id).clone()).unwrap_or_default()
    }

    fn decided(&self, answered: Answered) -> Result<Decided, Refusal> {
        let Answered { node: _, shard, position, answer } = answered;
        let answer =
            answer.answer.ok_or_else(|| refusal(Reason::Internal, "a shard gave no answer"))?;
        if let answer::Answer::Refusal(refusal) = answer {
            return Err(refusal);
        }
        let header = ResponseHeader {
            cluster_id: self.cluster_id(),
            node_id: self.shards.node_id(),
            shard,
            term: position.term,
            index: position.index,
            log_time_ms: position.log_time_ms,
        };
        Ok(Decided { header, answer })
    }
}

/// How long a call may take here: its answer is with its caller before that gives up.
fn answer_within(timeout: Option<Duration>, longest: Duration) -> Duration {
    let margin = |timeout: Duration| (timeout / 4).min(Duration::from_millis(ANSWER_MARGIN_MS));
    timeout.map_or(longest, |timeout| (timeout - margin(timeout)).min(longest))
}

/// An answer that is no refusal, with its header.
#[derive(Debug)]
struct Decided {
    header: ResponseHeader,
    answer: answer::Answer,
}

/// Takes the answer that an operation must have, with its header filled in.
macro_rules! expect_answer {
    ($decided:expr, $variant:ident) => {{
        let $crate::api::Decided { header, answer } = $decided;
        match answer {
            trefoil_proto::internal::v1::answer::Answer::$variant(mut response) => {
                response.header = Some(header);
                Ok(response)
            }
            _ => Err($crate::api::other_answer()),
        }
    }};
}
use expect_answer;

/// What to say of a call of which a part is done, or may be, when the rest was refused.
fn partly(cause: &Refusal) -> Refusal {
    let row = cause.reason().row();
    let (reason, message) = match (row.effect, row.retry) {
        // It says already that nobody knows.
        (RefusalEffect::Unknown, _) => return cause.clone(),
        (_, Retry::Never) => {
            (Reason::PartlyApplied, "a part of the call may be done, and the rest was refused")
        }
        _ => (Reason::MaybeApplied, "a part of the call may be done"),
    };
    let mut partly = refusal(reason, format!("{message}: {}", cause.message));
    partly.metadata.insert("cause".to_owned(), cause.reason().name().to_owned());
    partly
}

fn other_answer() -> Refusal {
    refusal(Reason::Internal, "a shard answered another question")
}

fn stopping() -> Refusal {
    refusal(Reason::Stopping, "the node is stopping")
}

/// A refusal of the front itself.
fn refusal(reason: Reason, message: impl Into<String>) -> Refusal {
    Refusal { reason: reason.into(), message: message.into(), ..Refusal::default() }
}
