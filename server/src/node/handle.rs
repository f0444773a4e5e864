//! How the rest of the server asks shards: here or at the node that leads, tried again until the deadline.

use std::sync::Arc;
use std::time::Duration;

use rand::Rng as _;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout_at};
use trefoil_core::replica::{Input, Reply};
use trefoil_core::{CallId, NodeId, ShardId};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Command, Query, Refusal};

use super::calls::Waiter;
use super::shared::Shared;
use super::table::ShardState;
use super::work::{Answered, Ask, Failure, Work, open_reply, refusal};
use super::{Member, clock};
use crate::peer::Links;
use crate::watch::Feeds;

const PAUSE_MIN: Duration = Duration::from_millis(10);
const PAUSE_MAX: Duration = Duration::from_millis(200);
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
    /// Carries out a command at its shard, wherever that is led. What certainly did not happen is tried again until
    /// the deadline; what may have happened only where that is safe: with a request id, or where doing it twice is
    /// doing it once. Dropping the future gives the call up; a command that was proposed goes on.
    ///
    /// # Errors
    /// The state's own refusals; OVERLOADED before any work; NOT_LEADER or NO_QUORUM when the deadline came and
    /// nothing happened; MAYBE_APPLIED when the end was not seen.
    pub async fn command(
        &self,
        shard: ShardId,
        command: Command,
        ask: &Ask,
    ) -> Result<Answered, Refusal> {
        self.call(shard, Work::Command(command), ask).await
    }

    /// Asks a linearizable query. Dropping the future gives it up.
    ///
    /// # Errors
    /// As [`Self::command`], but never MAYBE_APPLIED.
    pub async fn query(
        &self,
        shard: ShardId,
        query: Query,
        ask: &Ask,
    ) -> Result<Answered, Refusal> {
        self.call(shard, Work::Query(query), ask).await
    }

    async fn call(&self, shard: ShardId, mut work: Work, ask: &Ask) -> Result<Answered, Refusal> {
        if !self.shared.table.has(shard) {
            return Err(refusal(Reason::Internal, "the cluster has no such shard"));
        }
        let _permit = self.shared.calls.admit(work.share(), work.bytes())?;
        let mut moves = self.shared.table.moves();
        let mut pause = PAUSE_MIN;
        let mut unseen = None;
        let mut hint = None;
        loop {
            moves.mark_unchanged();
            let (why, failure) = match self.attempt(shard, &work, hint.take(), ask).await {
                Ok(answered) => return Ok(answered),
                Err(failed) => failed,
            };
            match failure {
                Failure::Final => return Err(final_word(why, unseen)),
                Failure::Unknown if !work.is_repeatable() => return Err(why),
                Failure::Unknown => {
                    work.count_attempt();
                    unseen = Some(why);
                }
                Failure::Definite => hint = hinted(&why),
            }
            if self.shared.is_closed() {
                return Err(
                    unseen.unwrap_or_else(|| refusal(Reason::Stopping, "the node is stopping"))
                );
            }
            let rest = jitter(pause);
            pause = (pause * 2).min(PAUSE_MAX);
            if Instant::now() + rest >= ask.deadline {
                return Err(unseen.unwrap_or_else(|| self.shared.unreached(shard)));
            }
            tokio::select! {
                () = tokio::time::sleep(rest) => (),
                // A new leader is worth a look at once. The sender lives as long as this handle.
                _ = moves.changed() => (),
            }
        }
    }

    async fn attempt(
        &self,
        shard: ShardId,
        work: &Work,
        hint: Option<NodeId>,
        ask: &Ask,
    ) -> Result<Answered, (Refusal, Failure)> {
        let leader = hint
            .filter(|hint| *hint != self.shared.node)
            .or_else(|| self.shared.table.leader(shard));
        let seen = match leader {
            None => return Err((self.shared.unreached(shard), Failure::Definite)),
            Some(leader) if leader == self.shared.node => {
                timeout_at(ask.deadline, self.ask_here(shard, work, ask.deadline)).await
            }
            Some(leader) => {
                timeout_at(ask.deadline, self.links.forward(leader, shard, work, ask)).await
            }
        };
        seen.unwrap_or_else(|_| {
            // Too late for another attempt.
            let why = match work {
                Work::Command(_) => work.unseen(),
                Work::Query(_) => self.shared.unreached(shard),
            };
            Err((why, Failure::Final))
        })
    }

    async fn ask_here(
        &self,
        shard: ShardId,
        work: &Work,
        deadline: Instant,
    ) -> Result<Answered, (Refusal, Failure)> {
        let (sender, receiver) = oneshot::channel();
        let deadline_ms = clock::boot_deadline(deadline);
        let submitted = self.shared.submit(shard, work.clone(), deadline_ms, Waiter::Here(sender));
        let call = submitted.map_err(|refusal| {
            let failure = super::work::failure(refusal.reason());
            (refusal, failure)
        })?;
        let _local = Local { shared: &self.shared, shard, call };
        match receiver.await {
            Ok(reply) => open_reply(self.shared.node, shard, reply),
            // The node's threads have ended.
            Err(_) => Err((work.unseen(), Failure::Unknown)),
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
            return Err(self.shared.unreached(shard));
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

    /// The members of the cluster, in the order of their ids.
    #[must_use]
    pub fn members(&self) -> &[Member] {
        &self.shared.members
    }

    /// Id of the cluster.
    #[must_use]
    pub fn cluster_id(&self) -> [u8; 16] {
        self.shared.cluster_id
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

/// What to say of a call whose last attempt ended for good, after an attempt whose end was not seen: that the last one
/// was refused before the state saw it says nothing about the first.
fn final_word(why: Refusal, unseen: Option<Refusal>) -> Refusal {
    match why.reason() {
        Reason::DeadlinePassed | Reason::Overloaded | Reason::DiskFull => unseen.unwrap_or(why),
        _ => why,
    }
}

/// The leader that a refusal names.
fn hinted(refusal: &Refusal) -> Option<NodeId> {
    refusal.metadata.get("leader")?.parse().ok()
}

fn jitter(pause: Duration) -> Duration {
    pause.mul_f64(rand::rng().random_range(0.5..=1.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unseen_end_is_not_hidden_by_a_later_refusal() {
        let maybe = refusal(Reason::MaybeApplied, "not seen");
        let late = refusal(Reason::DeadlinePassed, "late");
        assert_eq!(final_word(late.clone(), Some(maybe.clone())), maybe);
        assert_eq!(final_word(late.clone(), None), late);
        let decided = refusal(Reason::NotHolder, "another holds it");
        assert_eq!(final_word(decided.clone(), Some(maybe)), decided);
    }

    #[test]
    fn pauses_are_spread_and_bounded() {
        for _ in 0..100 {
            let pause = jitter(PAUSE_MAX);
            assert!(pause >= PAUSE_MAX / 2 && pause <= PAUSE_MAX);
        }
    }
}
