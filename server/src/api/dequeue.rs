//! Dequeue: look where something is ready, ask one shard at a time, wait for all of them at once.
//!
//! A grant that does not reach its consumer is returned, so that the message is not held back for a whole lease.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use prost::Message;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use trefoil_core::limits::{BATCH_BYTES_MAX, DELIVERIES_MAX};
use trefoil_core::machine::parse_lease_id;
use trefoil_proto::common::v1::{Reason, RequestId, ResponseHeader};
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::query::Query;
use trefoil_proto::internal::v1::{
    AckLease, AwaitReady, Catalogue, DequeueFrom, Refusal, ReturnLeases, answer,
};
use trefoil_proto::queue::v1::{Delivery, DequeueRequest, DequeueResponse};

use super::background::may_help;
use super::{Api, Context, Decided, Shards, other_answer, refusal};

/// A poll asks again this often: a hint that went to a consumer who then took nothing is not repeated.
const ASK_AGAIN: Duration = Duration::from_secs(5);
/// Pause before a shard without a leader is asked again.
const RETRY_PAUSE: Duration = Duration::from_millis(100);
/// Time kept back of the caller's deadline to answer that nothing came.
const ANSWER_TIME: Duration = Duration::from_millis(50);

/// Partitions of one shard.
#[derive(Clone, Debug)]
struct Group {
    /// Slot of the first of them, which leads to the shard.
    slot: u16,
    partitions: Vec<u32>,
}

/// One Dequeue.
struct Poll<'a, S: Shards> {
    api: &'a Arc<Api<S>>,
    context: &'a Context,
    catalogue: Catalogue,
    request_id: Option<RequestId>,
    lease_ms: u64,
    max_messages: usize,
    header: Option<ResponseHeader>,
    grants: Grants<S>,
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
        let DequeueRequest {
            namespace,
            queue,
            max_messages,
            wait_ms,
            lease_ms,
            request_id,
            fence: _,
        } = request;
        let latest = context.ask.deadline.checked_sub(ANSWER_TIME).unwrap_or(began);
        let until = (began + Duration::from_millis(wait_ms)).min(latest);
        let catalogue = self.find_queue(&namespace, &queue, &context.ask).await?;
        let groups = self.groups(&catalogue);
        let is_retry = request_id.as_ref().is_some_and(|id| id.attempt > 0);
        let keep = request_id.is_some();
        let mut poll = Poll {
            api: self,
            context,
            catalogue,
            // A repeated grant is harmless, and a shard that does not know the client must not refuse for ever.
            request_id: request_id.map(|id| RequestId { attempt: 0, ..id }),
            lease_ms,
            max_messages: usize::try_from(max_messages).unwrap_or(usize::MAX),
            header: None,
            grants: Grants::new(Arc::clone(self), context, catalogue, keep),
            unasked: None,
        };
        // What a retry was granted the first time is no longer ready: it asks everywhere.
        let mut ready = if is_retry { groups.clone() } else { poll.look(&groups).await? };
        let mut is_last = wait_ms == 0;
        loop {
            for group in &ready {
                match poll.take(group).await {
                    // What came from shards that the fence has passed is delivered.
                    Err(refusal) if is_fenced(&refusal) && poll.has_any() => break,
                    end => end.map_err(|refusal| self.heed(&namespace, &queue, refusal))?,
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

    /// The partitions of a queue by shard, beginning somewhere else each time so that consumers spread.
    fn groups(&self, catalogue: &Catalogue) -> Vec<Group> {
        let mut groups = BTreeMap::<u32, Group>::new();
        for partition in 0..catalogue.partitions {
            let slot = self.slot_of(catalogue, partition);
            let group = groups
                .entry(self.shard(slot))
                .or_insert_with(|| Group { slot, partitions: Vec::new() });
            group.partitions.push(partition);
        }
        let round = self.next_round();
        let mut groups = groups.into_values().collect::<Vec<_>>();
        let count = groups.len().max(1);
        groups.rotate_left(round % count);
        for group in &mut groups {
            let partitions = group.partitions.len();
            group.partitions.rotate_left(round / count % partitions);
        }
        groups
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
        for (_, slot, answer) in answers {
            match answer {
                Ok((partitions, header)) => {
                    self.header = Some(header);
                    if !partitions.is_empty() {
                        ready.push(Group { slot, partitions });
                    }
                }
                Err(refusal) if is_fenced(&refusal) => return Err(refusal),
                Err(refusal) => self.unasked = Some(refusal),
            }
        }
        Ok(ready)
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
        timeout_at(until, waiting.join_next()).await.ok()??.ok()
    }

    /// Asks one shard for as many messages as are still wanted.
    async fn take(&mut self, group: &Group) -> Result<(), Refusal> {
        let remains = self.max_messages.saturating_sub(self.grants.deliveries.len());
        if remains == 0 || self.grants.bytes >= BATCH_BYTES_MAX {
            return Ok(());
        }
        let command = Command::DequeueFrom(DequeueFrom {
            queue_id: self.catalogue.queue_id,
            partitions: group.partitions.clone(),
            max_messages: u32::try_from(remains).unwrap_or(u32::MAX),
            lease_ms: self.lease_ms,
            catalogue_version: self.catalogue.version,
        });
        let (api, slot, context) = (Arc::clone(self.api), group.slot, self.context.clone());
        let id = self.request_id.clone();
        let mut grants = self.grants.empty();
        let (sender, receiver) = oneshot::channel();
        // On its own, so that a grant is seen even when the caller is gone.
        tokio::spawn(async move {
            let end = match api.fenced(slot, id, command, &context).await {
                Ok(Decided { header, answer: answer::Answer::Dequeue(response) }) => {
                    grants.deliveries = response.deliveries;
                    Ok((header, grants))
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
            Ok((header, mut granted)) => {
                self.header = Some(header);
                let deliveries = std::mem::take(&mut granted.deliveries);
                self.grants.bytes += deliveries.iter().map(Message::encoded_len).sum::<usize>();
                self.grants.deliveries.extend(deliveries);
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
        !self.grants.deliveries.is_empty()
    }

    fn answer(&mut self) -> DequeueResponse {
        DequeueResponse {
            header: self.header.take(),
            deliveries: std::mem::take(&mut self.grants.deliveries),
        }
    }
}

fn is_fenced(refusal: &Refusal) -> bool {
    refusal.reason() == Reason::Fenced
}

/// Deliveries on their way to a consumer. Those that are still here when this is dropped are returned.
struct Grants<S: Shards> {
    api: Arc<Api<S>>,
    context: Context,
    catalogue: Catalogue,
    /// The consumer can ask again under its request id and then gets the same leases: they are not returned unless it
    /// said that it does not want them.
    keep: bool,
    deliveries: Vec<Delivery>,
    /// Their size in an answer.
    bytes: usize,
}

impl<S: Shards> Grants<S> {
    fn new(api: Arc<Api<S>>, context: &Context, catalogue: Catalogue, keep: bool) -> Self {
        Self { api, context: context.clone(), catalogue, keep, deliveries: Vec::new(), bytes: 0 }
    }

    fn empty(&self) -> Self {
        Self::new(Arc::clone(&self.api), &self.context, self.catalogue, self.keep)
    }
}

impl<S: Shards> Drop for Grants<S> {
    fn drop(&mut self) {
        let told = self.context.cancelled.as_ref().is_some_and(|told| told.load(Ordering::Relaxed));
        if self.deliveries.is_empty() || (self.keep && !told) {
            return;
        }
        let queue_id = self.catalogue.queue_id;
        let mut by_shard = BTreeMap::<u32, (u16, Vec<AckLease>)>::new();
        for delivery in self.deliveries.drain(..) {
            let Some((partition, sequence, lease)) = parse_lease_id(&delivery.lease_id) else {
                continue;
            };
            let slot = self.api.slot_of(&self.catalogue, partition);
            let (_, leases) =
                by_shard.entry(self.api.shard(slot)).or_insert_with(|| (slot, Vec::new()));
            leases.push(AckLease { queue_id, partition, sequence, lease });
        }
        for (slot, leases) in by_shard.into_values() {
            for leases in leases.chunks(DELIVERIES_MAX) {
                let command =
                    Command::ReturnLeases(ReturnLeases { queue_id, leases: leases.to_vec() });
                self.api.clean_up(slot, command, &self.context.ask.access, Duration::ZERO);
            }
        }
    }
}
