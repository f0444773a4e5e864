//! One handler for each operation, whichever way it came: check, authorize, command or query, answer.
//!
//! `unary` and `pipeline` are the two ways in; neither knows what an operation does, and no handler knows by which
//! way it was called.

mod acquire_stream;
mod background;
mod barrier;
mod cache;
mod catalogue;
mod cluster;
mod dequeue;
mod election;
mod fence;
mod fingerprint;
mod keep_alive_stream;
mod lock;
pub mod method;
mod namespace;
mod observe;
pub mod operation;
pub mod pipeline;
mod queue;
pub mod routes;
mod semaphore;
pub mod shards;
pub mod told;
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
use trefoil_core::machine::needs_chance;
use trefoil_core::slot::MAP_EPOCH;
use trefoil_core::{ShardId, slot};
use trefoil_proto::common::v1::{Reason, RequestId, ResponseHeader};
use trefoil_proto::internal::v1::{
    CallName, CheckedFence, Command, Drawn, Query, Refusal, answer, command, query,
};
pub use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::reason::{Effect, Retry};

use self::background::Background;
use self::catalogue::Catalogues;
use self::fence::{Fences, Shown};
use self::operation::{Facts, Operation};
pub use self::shards::{Answered, Ask, Member, ShardState, Shards};
use crate::authorize::{Authorizer, Principal, access, authorize};
use crate::config::Service;
use crate::layer::admission::{Admission, Permit};
use crate::metrics::Metrics;

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
    background: Background,
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
    pub permit: Arc<Permit>,
    /// Set before the call is dropped because the caller said so, and not because the caller is gone: whoever is gone
    /// may come back by another way and ask again.
    pub cancelled: Option<Arc<AtomicBool>>,
}

/// What a handler needs beside its request.
#[derive(Clone, Debug)]
struct Context {
    ask: Ask,
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
            background: Background::default(),
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
        operation::check(&mut operation)?;
        let facts = operation::facts(&operation);
        facts.resource.each(|on| (self.authorizer)(&caller.principal, facts.action, on))?;
        self.service_is_on(&facts)?;
        let longest = Duration::from_millis(CALL_TIMEOUT_MS + facts.wait_ms);
        let deadline = Instant::now() + answer_within(caller.timeout, longest);
        let access = Arc::new(access(&caller.principal, facts.action, facts.resource));
        let wait_ms = facts.wait_ms;
        let fingerprint = fingerprint::of(&mut operation);
        let fence = self.shown(&caller.principal, &mut operation)?;
        let ask = Ask { access, deadline, fingerprint };
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

    fn service_is_on(&self, facts: &Facts<'_>) -> Result<(), Refusal> {
        facts.service.map_or(Ok(()), |service| self.is_on(service))
    }

    fn is_on(&self, service: Service) -> Result<(), Refusal> {
        if self.settings.services.contains(&service) {
            return Ok(());
        }
        let message = format!("this cluster does not serve {}", service.name());
        Err(refusal(Reason::ServiceOff, message))
    }

    #[allow(clippy::too_many_lines, reason = "one table")]
    async fn dispatch(
        self: &Arc<Self>,
        context: &Context,
        operation: Operation,
    ) -> Result<Outcome, Refusal> {
        Ok(match operation {
            Operation::OpenSession(request) => {
                Outcome::OpenSession(self.open_session(context, request).await?)
            }
            Operation::KeepAlive(request) => {
                Outcome::KeepAlive(self.keep_alive(context, request).await?)
            }
            Operation::CloseSession(request) => {
                Outcome::CloseSession(self.close_session(context, request).await?)
            }
            Operation::Acquire(request) => Outcome::Acquire(self.acquire(context, request).await?),
            Operation::Release(request) => Outcome::Release(self.release(context, request).await?),
            Operation::Convert(request) => Outcome::Convert(self.convert(context, request).await?),
            Operation::ReleaseAll(request) => {
                Outcome::ReleaseAll(self.release_all(context, request).await?)
            }
            Operation::DescribeLock(request) => {
                Outcome::DescribeLock(self.describe_lock(context, request).await?)
            }
            Operation::ListLocks(request) => {
                Outcome::ListLocks(self.list_locks(context, request).await?)
            }
            Operation::GetSession(request) => {
                Outcome::GetSession(self.get_session(context, request).await?)
            }
            Operation::ForceRelease(request) => {
                Outcome::ForceRelease(self.force_release(context, request).await?)
            }
            Operation::ValidateToken(request) => {
                Outcome::ValidateToken(self.validate_token(context, request).await?)
            }
            Operation::RequestRelease(request) => {
                Outcome::RequestRelease(self.request_release(context, request).await?)
            }
            Operation::ListDeadlocks(request) => {
                Outcome::ListDeadlocks(self.list_deadlocks(context, request).await?)
            }
            Operation::ListSessions(request) => {
                Outcome::ListSessions(self.list_sessions(context, request).await?)
            }
            Operation::Campaign(request) => {
                Outcome::Campaign(self.campaign(context, request).await?)
            }
            Operation::Proclaim(request) => {
                Outcome::Proclaim(self.proclaim(context, request).await?)
            }
            Operation::Leader(request) => Outcome::Leader(self.leader(context, request).await?),
            Operation::Resign(request) => Outcome::Resign(self.resign(context, request).await?),
            Operation::SetLatch(request) => {
                Outcome::SetLatch(self.set_latch(context, request).await?)
            }
            Operation::CountDown(request) => {
                Outcome::CountDown(self.count_down(context, request).await?)
            }
            Operation::AwaitLatch(request) => {
                Outcome::AwaitLatch(Box::pin(self.await_latch(context, request)).await?)
            }
            Operation::GetLatch(request) => {
                Outcome::GetLatch(self.get_latch(context, request).await?)
            }
            Operation::DeleteLatch(request) => {
                Outcome::DeleteLatch(self.delete_latch(context, request).await?)
            }
            Operation::ListLatches(request) => {
                Outcome::ListLatches(self.list_latches(context, request).await?)
            }
            Operation::EnterBarrier(request) => {
                Outcome::EnterBarrier(Box::pin(self.enter_barrier(context, request)).await?)
            }
            Operation::LeaveBarrier(request) => {
                Outcome::LeaveBarrier(Box::pin(self.leave_barrier(context, request)).await?)
            }
            Operation::GetBarrier(request) => {
                Outcome::GetBarrier(self.get_barrier(context, request).await?)
            }
            Operation::ListBarriers(request) => {
                Outcome::ListBarriers(self.list_barriers(context, request).await?)
            }
            Operation::SetPermits(request) => {
                Outcome::SetPermits(self.set_permits(context, request).await?)
            }
            Operation::DeleteSemaphore(request) => {
                Outcome::DeleteSemaphore(self.delete_semaphore(context, request).await?)
            }
            Operation::AcquirePermits(request) => {
                Outcome::AcquirePermits(self.acquire_permits(context, request).await?)
            }
            Operation::ReleasePermits(request) => {
                Outcome::ReleasePermits(self.release_permits(context, request).await?)
            }
            Operation::DescribeSemaphore(request) => {
                Outcome::DescribeSemaphore(self.describe_semaphore(context, request).await?)
            }
            Operation::ListSemaphores(request) => {
                Outcome::ListSemaphores(self.list_semaphores(context, request).await?)
            }
            Operation::CreateQueue(request) => {
                Outcome::CreateQueue(self.create_queue(context, request).await?)
            }
            Operation::Enqueue(request) => Outcome::Enqueue(self.enqueue(context, request).await?),
            // Much larger than the others.
            Operation::Dequeue(request) => {
                Outcome::Dequeue(Box::pin(self.dequeue(context, request)).await?)
            }
            Operation::Ack(request) => Outcome::Ack(self.ack(context, request).await?),
            Operation::Put(request) => Outcome::Put(self.put(context, request).await?),
            Operation::Get(request) => Outcome::Get(self.get(context, request).await?),
            Operation::Delete(request) => Outcome::Delete(self.delete(context, request).await?),
            Operation::Status(request) if request.all_nodes => {
                Outcome::Status(self.status_of_all().await)
            }
            Operation::Status(_) => Outcome::Status(self.status()),
            Operation::CreateNamespace(request) => {
                Outcome::CreateNamespace(self.create_namespace(context, request).await?)
            }
            Operation::UpdateNamespace(request) => {
                Outcome::UpdateNamespace(self.update_namespace(context, request).await?)
            }
            Operation::GetNamespace(request) => {
                Outcome::GetNamespace(self.get_namespace(context, request).await?)
            }
            Operation::ListNamespaces(request) => {
                Outcome::ListNamespaces(self.list_namespaces(context, request).await?)
            }
            Operation::DeleteNamespace(request) => {
                Outcome::DeleteNamespace(self.delete_namespace(context, request).await?)
            }
            Operation::GetNamespacePolicy(request) => {
                Outcome::GetNamespacePolicy(self.get_namespace_policy(context, request).await?)
            }
            Operation::SetNamespacePolicy(request) => {
                Outcome::SetNamespacePolicy(self.set_namespace_policy(context, request).await?)
            }
            Operation::TransferLeader(request) => {
                Outcome::TransferLeader(self.transfer_leader(&request).await?)
            }
        })
    }

    /// Has one command applied at the shard of its slot.
    async fn command(
        &self,
        slot: u16,
        request_id: Option<RequestId>,
        operation: command::Operation,
        ask: &Ask,
    ) -> Result<Decided, Refusal> {
        self.send(slot, request_id, operation, None, ask).await
    }

    /// The same for a call that waits or acquires, by the name that all its commands say.
    async fn called(
        &self,
        slot: u16,
        call: CallName,
        operation: command::Operation,
        ask: &Ask,
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
        ask: &Ask,
    ) -> Result<Decided, Refusal> {
        let command = Command { fence, ..self.compose(slot, request_id, operation, ask) };
        self.decided(self.shards.command(self.shard(slot), command, ask).await?)
    }

    fn compose(
        &self,
        slot: u16,
        request_id: Option<RequestId>,
        operation: command::Operation,
        ask: &Ask,
    ) -> Command {
        let fingerprint = request_id.as_ref().map_or(0, |_| ask.fingerprint);
        let chance = needs_chance(&operation).then(|| Drawn { high: random(), low: random() });
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
    async fn query(&self, slot: u16, query: query::Query, ask: &Ask) -> Result<Decided, Refusal> {
        self.ask(slot, query, None, ask).await
    }

    async fn ask(
        &self,
        slot: u16,
        query: query::Query,
        fence: Option<CheckedFence>,
        ask: &Ask,
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
        (Effect::Unknown, _) => return cause.clone(),
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
