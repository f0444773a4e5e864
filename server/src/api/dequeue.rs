//! Dequeue: look where something is ready, ask one shard at a time, wait for all of them at once.
//!
//! A grant that does not reach its consumer is returned, so that the message is not held back for a whole lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use prost::Message;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use trefoil_core::lease::LeaseId;
use trefoil_core::limits::{BATCH_BYTES_MAX, DELIVERIES_MAX, LEADERLESS_MS};
use trefoil_core::turns::{Group, groups};
use trefoil_proto::common::v1::{Reason, RequestId, ResponseHeader};
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::internal::v1::{
    AckLease, AwaitReady, Catalogue, DequeueFrom, Refusal, ReturnLeases, answer,
};
use trefoil_proto::queue::v1::{Delivery, DequeueRequest, DequeueResponse};

use super::clean_up::{Leftover, TakeBack, Unseen};
use super::{ANSWER_TIME, Api, Context, Decided, RETRY_PAUSE, Shards, other_answer, refusal};
use crate::calls::repeat::may_help;

/// A poll asks again this often: a hint that went to a consumer who then took nothing is not repeated.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// One Dequeue.
struct Poll<'a, S: Shards> {
    api: &'a Arc<Api<S>>,
    context: &'a Context,
    catalogue: Catalogue,
    request_id: Option<RequestId>,
    lease_ms: u64,
    max_messages: usize,
    header: Option<ResponseHeader>,
    began: Instant,
    /// For how long the call had waited when it asked for the first of its leases.
    waited: Option<Duration>,
    leases_over: u32,
    grants: Unseen<S, Grants>,
    /// The last shard that could not be asked.
    unasked: Option<Refusal>,
}

impl<S: Shards> Api<S> {
    pub(super) async fn dequeue(
        self: &Arc<Self>,
        context: &Context,
        request: DequeueRequest,
    ) -> Result<DequeueResponse, Refusal> {
        let began = Instant::now();
        let DequeueRequest { namespace, queue, wait_ms, request_id, .. } = &request;
        let latest = context.ask.deadline.checked_sub(ANSWER_TIME).unwrap_or(began);
        let until = (began + Duration::from_millis(*wait_ms)).min(latest);
        let patience = (*wait_ms > 0).then_some(until);
        let Some(known) = self.await_queue(namespace, queue, patience, &context.ask).await? else {
            let waited_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(0);
            return Ok(DequeueResponse { waited_ms, ..DequeueResponse::default() });
        };
        let catalogue = known.catalogue;
        let first = known.turns.dequeue(catalogue.partitions);
        let groups = groups(catalogue.queue_id, catalogue.partitions, first, self.shards.shards());
        let is_retry = request_id.as_ref().is_some_and(|id| id.attempt > 0);
        let keep = request_id.is_some();
        let mut poll = Poll {
            api: self,
            context,
            catalogue,
            // A repeated grant is harmless, and a shard that does not know the client must not refuse for ever.
            request_id: request_id.clone().map(|id| RequestId { attempt: 0, ..id }),
            lease_ms: request.lease_ms,
            max_messages: usize::try_from(request.max_messages).unwrap_or(usize::MAX),
            header: None,
            began,
            waited: None,
            leases_over: 0,
            grants: Unseen::new(self, context, Grants { catalogue, keep, ..Grants::default() }),
            unasked: None,
        };
        if is_retry {
            // What it was granted the first time is no longer ready: every shard says what it remembers.
            for group in &groups {
                let end = poll.take(group, 0).await;
                end.map_err(|refusal| self.heed(namespace, queue, refusal))?;
            }
            if poll.is_remembered() {
                return Ok(poll.answer());
            }
        }
        let mut ready = poll.look(&groups).await?;
        let mut is_last = *wait_ms == 0;
        loop {
            for group in &ready {
                if poll.wanted() == 0 {
                    break;
                }
                match poll.take(group, poll.wanted()).await {
                    // What came from shards that the fence has passed is delivered.
                    Err(refusal) if is_fenced(&refusal) && poll.has_any() => break,
                    end => end.map_err(|refusal| self.heed(namespace, queue, refusal))?,
                }
            }
            if poll.has_any() {
                return Ok(poll.answer());
            }
            if is_last {
                return poll.unasked.take().map_or_else(|| Ok(poll.answer()), Err);
            }
            ready = match poll.wait(&groups, until).await {
                Some(group) => vec![group],
                // The last look says whether there is nothing, or a shard that could not be asked.
                None => {
                    is_last = true;
                    poll.look(&groups).await?
                }
            };
        }
    }

    /// Which partitions of a shard have something, and where that was decided.
    async fn ready(
        &self,
        catalogue: &Catalogue,
        group: &Group,
        wait: bool,
        context: &Context,
    ) -> Result<(Vec<u32>, ResponseHeader), Refusal> {
        let query =
            AwaitReady { queue_id: catalogue.queue_id, partitions: group.partitions.clone(), wait };
        let Decided { header, answer } =
            self.fenced_query(group.slot, Query::AwaitReady(query), context).await?;
        let answer::Answer::Ready(ready) = answer else { return Err(other_answer()) };
        Ok((ready.partitions, header))
    }

    /// Waits until a shard has something, however often its leader changes meanwhile.
    async fn await_ready(&self, catalogue: &Catalogue, group: &Group, context: &Context) -> Group {
        loop {
            match timeout(ASK_AGAIN, self.ready(catalogue, group, true, context)).await {
                Ok(Ok((partitions, _))) if !partitions.is_empty() => {
                    return Group { slot: group.slot, partitions };
                }
                Ok(Ok(_)) | Err(_) => {}
                Ok(Err(_)) => sleep(RETRY_PAUSE).await,
            }
        }
    }
}

impl<S: Shards> Poll<'_, S> {
    /// Which shards have something now. One that the fence does not pass ends the call.
    async fn look(&mut self, groups: &[Group]) -> Result<Vec<Group>, Refusal> {
        self.unasked = None;
        let mut asked = JoinSet::new();
        for (place, group) in groups.iter().cloned().enumerate() {
            let (api, catalogue, context) =
                (Arc::clone(self.api), self.catalogue, self.context.clone());
            asked.spawn(async move {
                (place, group.slot, api.ready(&catalogue, &group, false, &context).await)
            });
        }
        let mut answers = asked.join_all().await;
        answers.sort_by_key(|(place, ..)| *place);
        let mut ready = Vec::new();
        let mut has_any_answered = false;
        for (_, slot, answer) in answers {
            match answer {
                Ok((partitions, header)) => {
                    has_any_answered = true;
                    self.header = Some(header);
                    if !partitions.is_empty() {
                        ready.push(Group { slot, partitions });
                    }
                }
                Err(refusal) if is_fenced(&refusal) => return Err(refusal),
                Err(refusal) => self.unasked = Some(refusal),
            }
        }
        // Where no shard has a leader, nothing is worth waiting for.
        match self.unasked.take_if(|why| why.reason() == Reason::NoQuorum && !has_any_answered) {
            Some(refusal) => Err(refusal),
            None => Ok(ready),
        }
    }

    /// Waits for the first shard that has something; none when the time is up.
    async fn wait(&mut self, groups: &[Group], until: Instant) -> Option<Group> {
        if self.unasked.take().is_some() {
            sleep(RETRY_PAUSE).await;
        }
        let mut waiting = JoinSet::new();
        for group in groups {
            let (api, catalogue, group) = (Arc::clone(self.api), self.catalogue, group.clone());
            let mut context = self.context.clone();
            // Whoever waits here leases nothing yet: the fence is for what comes after.
            (context.ask.deadline, context.fence) = (until, None);
            waiting.spawn(async move { api.await_ready(&catalogue, &group, &context).await });
        }
        tokio::select! {
            ready = timeout_at(until, waiting.join_next()) => ready.ok()??.ok(),
            () = self.deserted(groups) => None,
        }
    }

    /// Waits until no shard of these has had a leader for so long that calls for it are refused.
    async fn deserted(&self, groups: &[Group]) {
        let has_leader =
            |group: &Group| self.api.shards.leader(self.api.shard(group.slot)).is_some();
        let (longest, mut since) = (Duration::from_millis(LEADERLESS_MS), Instant::now());
        while since.elapsed() < longest {
            sleep(longest / 4).await;
            if groups.iter().any(has_leader) {
                since = Instant::now();
            }
        }
    }

    /// How many messages are still wanted.
    fn wanted(&self) -> usize {
        if self.grants.left.bytes >= BATCH_BYTES_MAX {
            return 0;
        }
        self.max_messages.saturating_sub(self.grants.left.deliveries.len())
    }

    /// Asks one shard for so many messages; for none, what it remembers of the first try.
    async fn take(&mut self, group: &Group, max_messages: usize) -> Result<(), Refusal> {
        let waited = self.began.elapsed();
        let command = Command::DequeueFrom(DequeueFrom {
            queue_id: self.catalogue.queue_id,
            partitions: group.partitions.clone(),
            max_messages: u32::try_from(max_messages).unwrap_or(u32::MAX),
            lease_ms: self.lease_ms,
            catalogue_version: self.catalogue.version,
        });
        let (api, slot, context) = (Arc::clone(self.api), group.slot, self.context.clone());
        let id = self.request_id.clone();
        let Grants { catalogue, keep, .. } = self.grants.left;
        let empty = Grants { catalogue, keep, ..Grants::default() };
        let mut grants = Unseen::new(self.api, self.context, empty);
        let (sender, receiver) = oneshot::channel();
        // On its own, so that a grant is seen even when the caller is gone.
        tokio::spawn(async move {
            let end = match api.fenced(slot, id, command, &context).await {
                Ok(Decided { header, answer: answer::Answer::Dequeue(response) }) => {
                    grants.left.deliveries = response.deliveries;
                    Ok((header, grants, response.leases_over))
                }
                Ok(_) => Err(other_answer()),
                Err(refusal) => Err(refusal),
            };
            // Dropped here or on its way, the grants are returned.
            drop(sender.send(end));
        });
        match receiver
            .await
            .unwrap_or_else(|_| Err(refusal(Reason::Internal, "a call ended without an answer")))
        {
            Ok((header, mut granted, leases_over)) => {
                self.header = Some(header);
                let deliveries = std::mem::take(&mut granted.left.deliveries);
                if !deliveries.is_empty() {
                    self.waited.get_or_insert(waited);
                }
                self.leases_over = self.leases_over.saturating_add(leases_over);
                self.grants.left.bytes +=
                    deliveries.iter().map(Message::encoded_len).sum::<usize>();
                self.grants.left.deliveries.extend(deliveries);
                Ok(())
            }
            // Other shards may have something; what is there already is delivered.
            Err(refusal) if may_help(&refusal) && refusal.reason() != Reason::StaleMap => {
                self.unasked = Some(refusal);
                Ok(())
            }
            Err(refusal) => Err(refusal),
        }
    }

    fn has_any(&self) -> bool {
        !self.grants.left.deliveries.is_empty()
    }

    /// Whether a first try was granted something.
    fn is_remembered(&self) -> bool {
        self.has_any() || self.leases_over > 0
    }

    fn answer(&mut self) -> DequeueResponse {
        let mut deliveries = std::mem::take(&mut self.grants.left.deliveries);
        let key = self.catalogue.lease_key.unwrap_or_default();
        for delivery in &mut deliveries {
            if let Ok(lease) = delivery.lease_id.parse::<LeaseId>() {
                delivery.lease_id = lease.sealed(&key);
            }
        }
        let waited = self.waited.unwrap_or_else(|| self.began.elapsed());
        DequeueResponse {
            header: self.header.take(),
            deliveries,
            waited_ms: u64::try_from(waited.as_millis()).unwrap_or(0),
            leases_over: self.leases_over,
        }
    }
}

fn is_fenced(refusal: &Refusal) -> bool {
    refusal.reason() == Reason::Fenced
}

/// Deliveries on their way to a consumer.
#[derive(Debug, Default)]
struct Grants {
    catalogue: Catalogue,
    /// The consumer can ask again under its request id and then gets the same leases: they are not returned unless it
    /// said that it does not want them.
    keep: bool,
    deliveries: Vec<Delivery>,
    /// Their size in an answer.
    bytes: usize,
}

impl Leftover for Grants {
    fn take_back<S: Shards>(self, api: &Api<S>, is_unwanted: bool) -> Vec<TakeBack> {
        if self.keep && !is_unwanted {
            return Vec::new();
        }
        let queue_id = self.catalogue.queue_id;
        let mut by_shard = BTreeMap::<u32, (u16, Vec<AckLease>)>::new();
        for delivery in self.deliveries {
            let Ok(lease) = delivery.lease_id.parse::<LeaseId>() else { continue };
            let slot = api.slot_of(&self.catalogue, lease.partition);
            let (_, leases) = by_shard.entry(api.shard(slot)).or_insert_with(|| (slot, Vec::new()));
            leases.push(lease.ack());
        }
        let mut returns = Vec::new();
        for (slot, leases) in by_shard.into_values() {
            returns.extend(leases.chunks(DELIVERIES_MAX).map(|leases| {
                let leases = ReturnLeases { queue_id, leases: leases.to_vec() };
                TakeBack { slot, command: Command::ReturnLeases(leases), pause: Duration::ZERO }
            }));
        }
        returns
    }
}
