//! How the rest of the server asks shards: here or at the node that leads, tried again until the deadline.

use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use slog::warn;
use tokio::sync::{oneshot, watch};
use tokio::time::Instant;
use trefoil_core::call::{
    Act, Call, CallEvent, Failure, ShardRequest, View, failure, propose_by_ms, unreached, unseen,
};
use trefoil_core::replica::{Input, Reply};
use trefoil_core::{CallId, NodeId, ShardId};
use trefoil_proto::cluster::v1::StatusResponse;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Access, Command, Query, Refusal};

use crate::authorize::{Action, Principal, Resource, access};
use crate::calls::Waiter;
use crate::calls::context::{Answered, CallContext, admission, open_reply, refusal};
use crate::calls::repeat::repeat;
use crate::peer::Links;
use crate::shared::clock;
use crate::shared::identity::Member;
use crate::shared::table::ShardState;
use crate::shared::{Description, Shared};
use crate::watch::Feeds;

/// How long it is tried to take a grant back.
const TAKE_BACK_WAIT: Duration = Duration::from_secs(30);
/// Longest time that a leader takes to hand over.
const TRANSFER_WAIT: Duration = Duration::from_secs(3);

/// Asks the shards of the cluster through this node. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) links: Arc<Links>,
}

/// A call at this node's own replica; given up when it is dropped.
struct Local<'a> {
    shared: &'a Shared,
    shard: ShardId,
    call: CallId,
}

impl Drop for Local<'_> {
    fn drop(&mut self) {
        // Nothing is left to abandon where the call was answered.
        self.shared.abandon(self.shard, self.call);
    }
}

impl Handle {
    /// Carries out a command at its shard, wherever that is led, as [`trefoil_core::call`] decides. Dropping the future
    /// gives the call up; a command that was proposed goes on.
    ///
    /// # Errors
    /// The state's own refusals; OVERLOADED before any work; NO_QUORUM without a leader, NOT_LEADER or NO_QUORUM when
    /// the deadline came, STOPPING, each when nothing happened; MAYBE_APPLIED when the end was not seen.
    pub async fn command(
        &self,
        shard: ShardId,
        command: Command,
        ask: &CallContext,
    ) -> Result<Answered, Refusal> {
        self.call(shard, ShardRequest::Command(command), ask).await
    }

    /// Takes a grant back for this node, which nobody asked for; what cannot be taken back in time goes with its session.
    pub(super) async fn take_back(&self, shard: ShardId, command: Command) {
        let Some(Operation::CancelAcquire(cancel)) = &command.operation else { return };
        let resource = Resource::of_locks(&cancel.namespace, &cancel.name, &cancel.locks);
        let access = access(&Principal { address: None }, Action::UseLock, resource);
        let deadline = Instant::now() + TAKE_BACK_WAIT;
        let ask = CallContext { access: Arc::new(access), deadline, fingerprint: 0 };
        let taken = repeat(deadline, || self.command(shard, command.clone(), &ask)).await;
        if let Err(refusal) = taken {
            warn!(self.shared.logger, "a grant that nobody asked for stays until its session ends";
                "shard" => shard, "reason" => refusal.reason().name());
        }
    }

    /// Asks a linearizable query. Dropping the future gives it up.
    ///
    /// # Errors
    /// As [`Self::command`], but never MAYBE_APPLIED.
    pub async fn query(
        &self,
        shard: ShardId,
        query: Query,
        ask: &CallContext,
    ) -> Result<Answered, Refusal> {
        self.call(shard, ShardRequest::Query(query), ask).await
    }

    async fn call(
        &self,
        shard: ShardId,
        work: ShardRequest,
        ask: &CallContext,
    ) -> Result<Answered, Refusal> {
        if !self.shared.table.has(shard) {
            return Err(refusal(Reason::Internal, "the cluster has no such shard"));
        }
        let _permit = self.shared.calls.admit(admission(&work), work.bytes())?;
        let answer_by_ms = clock::boot_deadline(ask.deadline);
        let mut call = Call::new(work, answer_by_ms);
        let mut moves = self.shared.table.moves();
        let mut act = self.step(shard, &mut call, CallEvent::Look);
        loop {
            act = match act {
                Act::Try(to) => {
                    let work = call.work().clone();
                    let attempt = pin!(self.attempt(to, shard, work, &ask.access, answer_by_ms));
                    match self.follow(shard, &mut call, &mut moves, to, attempt).await {
                        Ok(answered) => return Ok(answered),
                        // An attempt that has not ended is given up as it is dropped.
                        Err(act) => act,
                    }
                }
                Act::Wait(until_ms) => {
                    tokio::select! {
                        () = clock::sleep_until(until_ms) => (),
                        // The sender lives as long as this handle.
                        _ = moves.changed() => (),
                    }
                    moves.mark_unchanged();
                    self.step(shard, &mut call, CallEvent::Look)
                }
                Act::End(refusal) => return Err(self.shared.explain(shard, refusal)),
                Act::Over => return Err(refusal(Reason::Internal, "the call is over")),
            };
        }
    }

    /// Waits for the end of a try, as long as the call does.
    async fn follow(
        &self,
        shard: ShardId,
        call: &mut Call,
        moves: &mut watch::Receiver<u64>,
        to: NodeId,
        mut attempt: Pin<&mut impl Future<Output = Result<Answered, (Refusal, Failure)>>>,
    ) -> Result<Answered, Act> {
        loop {
            moves.mark_unchanged();
            let act = self.step(shard, call, CallEvent::Look);
            let Act::Wait(until_ms) = act else { return Err(act) };
            tokio::select! {
                biased;
                end = attempt.as_mut() => {
                    return end.map_err(|(why, failure)| {
                        self.step(shard, call, CallEvent::Failed(why, failure))
                    });
                }
                () = clock::sleep_until(until_ms) => (),
                // This node's own replica says when it no longer leads.
                _ = moves.changed(), if to != self.shared.node => (),
            }
        }
    }

    fn step(&self, shard: ShardId, call: &mut Call, event: CallEvent) -> Act {
        let known = self.shared.table.leadership(shard);
        let view = View {
            node: self.shared.node,
            now_ms: clock::boot_ms(),
            leader: known.leader,
            term: known.term,
            leaderless_since_ms: known.leaderless_since_ms,
            applied_log_time_ms: known.applied_log_time_ms,
            stopping_since_ms: self.shared.closed_since_ms(),
            heard_ms: &|node| self.links.heard_ms(node),
            jitter: if event == CallEvent::Look { 0 } else { rand::rng().random_range(0..=1_000) },
        };
        call.step(&view, event).act
    }

    async fn attempt(
        &self,
        to: NodeId,
        shard: ShardId,
        work: ShardRequest,
        access: &Arc<Access>,
        answer_by_ms: u64,
    ) -> Result<Answered, (Refusal, Failure)> {
        let deadline_ms = propose_by_ms(clock::boot_ms(), answer_by_ms);
        if to != self.shared.node {
            return self.links.forward(to, shard, work, access, deadline_ms).await;
        }
        let (sender, receiver) = oneshot::channel();
        let is_command = matches!(work, ShardRequest::Command(_));
        let submitted = self.shared.submit(shard, work, deadline_ms, Waiter::Here(sender));
        let call = submitted.map_err(|refusal| {
            let failure = failure(refusal.reason());
            (refusal, failure)
        })?;
        let _local = Local { shared: &self.shared, shard, call };
        match receiver.await {
            Ok(reply) => open_reply(self.shared.node, shard, reply),
            // The node's threads have ended, or are about to.
            Err(_) => Err(unseen(is_command)),
        }
    }

    /// Hands a shard that this node leads to another node, and waits until that is done.
    ///
    /// # Errors
    /// NOT_LEADER with the leader where known, INVALID_FIELD for a node that is no other member, NO_QUORUM when the
    /// other node did not take over in time.
    pub async fn transfer_leader(&self, shard: ShardId, to: NodeId) -> Result<(), Refusal> {
        if !self.shared.table.has(shard) {
            return Err(trefoil_core::check::invalid(
                "shard",
                format_args!("0 to {}", self.shared.shards),
            ));
        }
        if !self.shared.table.leads(shard) {
            let leader = self.shared.table.leader(shard);
            let mut refusal = self.shared.with_endpoint(unreached(leader));
            if leader.is_some() {
                "this node does not lead the shard: ask its leader"
                    .clone_into(&mut refusal.message);
            }
            return Err(refusal);
        }
        self.hand_over(shard, Some(to)).await
    }

    pub(super) async fn hand_over(
        &self,
        shard: ShardId,
        to: Option<NodeId>,
    ) -> Result<(), Refusal> {
        let (sender, receiver) = oneshot::channel();
        let call = self.shared.calls.open(Waiter::Here(sender));
        let _local = Local { shared: &self.shared, shard, call };
        self.shared.tell(shard, Input::Transfer { call, to });
        match tokio::time::timeout(TRANSFER_WAIT, receiver).await {
            Ok(Ok(Reply::Answered(..))) => Ok(()),
            Ok(Ok(Reply::Refused(refusal))) => Err(refusal),
            Ok(Err(_)) | Err(_) => {
                Err(refusal(Reason::NoQuorum, "the other node did not take over in time"))
            }
        }
    }

    /// The state of every shard as this node sees it; shard 0 first.
    #[must_use]
    pub fn status(&self) -> Vec<ShardState> {
        self.shared.table.all()
    }

    /// Has peers told of this node what clients are told.
    pub(crate) fn describe_by(
        &self,
        describe: impl Fn() -> Option<StatusResponse> + Send + Sync + 'static,
    ) {
        self.shared.describe_by(Description(Box::new(describe)));
    }

    /// What another node says of itself.
    ///
    /// # Errors
    /// Why it did not say it.
    pub(crate) async fn ask_status(&self, node: NodeId) -> Result<StatusResponse, String> {
        self.links.describe(node).await
    }

    /// The members of the cluster, in the order of their ids.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.shared.members
    }

    /// Id of the cluster; none before it is formed.
    #[must_use]
    pub fn cluster_id(&self) -> Option<[u8; 16]> {
        self.shared.cluster_id.get().copied()
    }

    /// Raft id of this node.
    #[must_use]
    pub fn node_id(&self) -> NodeId {
        self.shared.node
    }

    /// Number of data shards; the meta shard comes on top.
    #[must_use]
    pub fn shards(&self) -> u32 {
        self.shared.shards
    }

    /// The node that leads a shard, as far as this node knows.
    #[must_use]
    pub fn leader(&self, shard: ShardId) -> Option<NodeId> {
        self.shared.table.leader(shard)
    }

    /// Where clients reach a node; none before it has introduced itself.
    #[must_use]
    pub fn endpoint_of(&self, node: NodeId) -> Option<String> {
        self.shared.endpoint_of(node)
    }

    /// What this node has applied lately, for those who watch.
    #[must_use]
    pub fn feeds(&self) -> &Arc<Feeds> {
        &self.shared.feeds
    }

    /// Calls in flight on this node, those of other nodes for its shards included.
    #[must_use]
    pub fn calls_in_flight(&self) -> usize {
        self.shared.calls.in_flight()
    }
}
