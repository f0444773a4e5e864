//! Queues: a batch goes to its partitions, an acknowledgement to the one that its lease names.

use std::collections::BTreeMap;
use std::sync::Arc;

use tokio::task::JoinSet;
use trefoil_core::check::PART_MARK;
use trefoil_core::lease::LeaseId;
use trefoil_core::slot;
use trefoil_proto::common::v1::{Reason, RequestId};
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::internal::v1::{Catalogue, EnqueueTo, OpenPartition, Refusal};
use trefoil_proto::queue::v1::{
    AckRequest, AckResponse, EnqueueRequest, EnqueueResponse, Message, QueueLayout,
};
use trefoil_proto::reason::{RefusalEffect, Retry};

use super::catalogue::KnownQueue;
use super::{Api, Context, Shards, expect_answer, other_answer, partly};

/// What of a batch goes to one partition.
struct Part {
    partition: u32,
    request_id: Option<RequestId>,
    /// Places of the messages in the request.
    places: Vec<usize>,
    messages: Vec<Message>,
}

impl<S: Shards> Api<S> {
    pub(super) async fn enqueue(
        self: &Arc<Self>,
        context: &Context,
        request: EnqueueRequest,
    ) -> Result<EnqueueResponse, Refusal> {
        let EnqueueRequest { namespace, queue, messages, request_id, fence: _ } = request;
        let known = self.find_or_create_queue(&namespace, &queue, context).await?;
        let catalogue = known.catalogue;
        let mut message_ids = vec![None; messages.len()];
        let mut parts = self.parts(&known, messages, request_id.as_ref());
        let ends = if parts.len() == 1 {
            let part = parts.remove(0);
            let places = part.places.clone();
            vec![(places, self.enqueue_to(&catalogue, part, context).await)]
        } else {
            let mut running = JoinSet::new();
            for part in parts {
                let (api, context, places) =
                    (Arc::clone(self), context.clone(), part.places.clone());
                running.spawn(
                    async move { (places, api.enqueue_to(&catalogue, part, &context).await) },
                );
            }
            running.join_all().await
        };
        let mut headers = BTreeMap::new();
        let mut refusals = Vec::new();
        for (places, end) in ends {
            match end {
                Ok(stored) => {
                    headers.insert(places.first().copied(), stored.header);
                    for (place, id) in places.into_iter().zip(stored.message_ids) {
                        message_ids[place] = Some(id);
                    }
                }
                Err(refusal) => refusals.push(self.heed(&namespace, &queue, refusal)),
            }
        }
        if let Some(refusal) = judge(refusals, !headers.is_empty()) {
            return Err(refusal);
        }
        // That of the first message, so that a retry has the same.
        let header = headers.into_values().next().flatten();
        let message_ids =
            message_ids.into_iter().collect::<Option<_>>().ok_or_else(other_answer)?;
        let Catalogue { queue_id, partitions, version, .. } = catalogue;
        let layout = Some(QueueLayout { queue_id, partitions, version });
        Ok(EnqueueResponse { header, message_ids, layout })
    }

    /// Sorts a batch by partition. A retry must sort alike, so what has no key goes where the request id says.
    fn parts(
        &self,
        known: &KnownQueue,
        messages: Vec<Message>,
        id: Option<&RequestId>,
    ) -> Vec<Part> {
        let partitions = known.catalogue.partitions.max(1);
        let keyless = id.map_or_else(
            || known.turns.enqueue(partitions),
            |id| slot::keyless(&id.client, id.sequence, partitions),
        );
        let mut sorted = BTreeMap::<u32, (Vec<usize>, Vec<Message>)>::new();
        for (place, message) in messages.into_iter().enumerate() {
            let partition = if message.key.is_empty() {
                keyless
            } else {
                slot::partition(&message.key, partitions)
            };
            let part = sorted.entry(partition).or_default();
            part.0.push(place);
            part.1.push(message);
        }
        let mut on_shard = BTreeMap::<u32, u32>::new();
        let parts = sorted.into_iter().map(|(partition, (places, messages))| {
            let count =
                on_shard.entry(self.shard(self.slot_of(&known.catalogue, partition))).or_default();
            let request_id = id.map(|id| derived(id, *count));
            *count += 1;
            Part { partition, request_id, places, messages }
        });
        parts.collect()
    }

    /// Stores the messages of one partition, which is opened when they are its first.
    async fn enqueue_to(
        &self,
        catalogue: &Catalogue,
        part: Part,
        context: &Context,
    ) -> Result<EnqueueResponse, Refusal> {
        let Part { partition, request_id, messages, places: _ } = part;
        let slot = self.slot_of(catalogue, partition);
        let &Catalogue { queue_id, version: catalogue_version, .. } = catalogue;
        let command =
            Command::EnqueueTo(EnqueueTo { queue_id, partition, catalogue_version, messages });
        let decided = match self.fenced(slot, request_id.clone(), command.clone(), context).await {
            Err(refusal) if refusal.reason() == Reason::PartitionNotOpen => {
                let open = Command::OpenPartition(OpenPartition {
                    queue_id,
                    partition,
                    catalogue_version,
                });
                // To open it again is no error, so an open end is none either: what follows shows it.
                match self.fenced(slot, None, open, context).await {
                    Err(refusal) if refusal.reason().row().effect != RefusalEffect::Unknown => {
                        return Err(refusal);
                    }
                    _ => self.fenced(slot, request_id, command, context).await?,
                }
            }
            end => end?,
        };
        expect_answer!(decided, Enqueue)
    }

    pub(super) async fn ack(
        &self,
        context: &Context,
        request: AckRequest,
    ) -> Result<AckResponse, Refusal> {
        let known = self.find_queue(&request.namespace, &request.queue, &context.ask).await?;
        // What no shard has granted for this queue is refused here: a guess costs no entry.
        let lease = LeaseId::of_queue(&known.catalogue, &request.lease_id)?;
        let slot = self.slot_of(&known.catalogue, lease.partition);
        match self.fenced(slot, request.request_id, Command::AckLease(lease.ack()), context).await {
            Err(refusal) => Err(self.heed(&request.namespace, &request.queue, refusal)),
            Ok(decided) => expect_answer!(decided, Ack),
        }
    }

    pub(super) fn slot_of(&self, catalogue: &Catalogue, partition: u32) -> u16 {
        slot::of_partition(catalogue.queue_id, partition, self.shards.shards())
    }
}

/// The request id of a part of a request. A shard knows a request by its client and sequence, and partitions of one
/// shard are commands of their own: all but the first go under a client name that no client can have.
fn derived(id: &RequestId, count: u32) -> RequestId {
    let client =
        if count == 0 { id.client.clone() } else { format!("{}{PART_MARK}{count}", id.client) };
    RequestId { client, ..id.clone() }
}

/// How a batch ended whose parts were refused like this; none when none was.
fn judge(refusals: Vec<Refusal>, some_stored: bool) -> Option<Refusal> {
    let row = |refusal: &Refusal| refusal.reason().row();
    let open_ended = refusals.iter().any(|refusal| row(refusal).effect == RefusalEffect::Unknown);
    // Where no retry of one part can help, none of the batch can: that is what there is to say.
    let worst = refusals.into_iter().min_by_key(|refusal| {
        let row = row(refusal);
        (row.retry != Retry::Never, row.effect != RefusalEffect::Unknown)
    })?;
    Some(if some_stored || open_ended { partly(&worst) } else { worst })
}

#[cfg(test)]
mod tests {
    use super::super::refusal;
    use super::*;

    fn refused(reason: Reason) -> Refusal {
        refusal(reason, "no")
    }

    #[test]
    fn a_batch_is_definite_only_when_nothing_was_stored() {
        assert_eq!(judge(Vec::new(), true), None);
        let overloaded = || vec![refused(Reason::Overloaded), refused(Reason::NotLeader)];
        assert_eq!(judge(overloaded(), false).unwrap().reason(), Reason::Overloaded);
        let partly = judge(overloaded(), true).unwrap();
        assert_eq!(
            (partly.reason(), partly.metadata["cause"].as_str()),
            (Reason::MaybeApplied, "OVERLOADED")
        );
        let open = vec![refused(Reason::Overloaded), refused(Reason::MaybeApplied)];
        assert_eq!(judge(open, false).unwrap().reason(), Reason::MaybeApplied);
        let forgotten = vec![refused(Reason::MaybeApplied), refused(Reason::RequestForgotten)];
        assert_eq!(judge(forgotten, true).unwrap().reason(), Reason::RequestForgotten);
        let for_good = vec![refused(Reason::Overloaded), refused(Reason::Fenced)];
        assert_eq!(judge(for_good.clone(), false).unwrap().reason(), Reason::Fenced);
        let partly = judge(for_good, true).unwrap();
        assert_eq!(
            (partly.reason(), partly.metadata["cause"].as_str()),
            (Reason::PartlyApplied, "FENCED")
        );
    }

    #[test]
    fn parts_of_one_request_have_ids_of_their_own() {
        let id = RequestId { client: "c".to_owned(), sequence: 7, ..RequestId::default() };
        assert_eq!(derived(&id, 0), id);
        assert_eq!(derived(&id, 2), RequestId { client: "c#2".to_owned(), ..id });
    }
}
