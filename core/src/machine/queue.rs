//! Partitions of queues: messages, leases, acknowledgement.
//!
//! A message is stored under its sequence. Those from `fresh_from` on were never delivered, and all of them are ready.
//! Beside each one below stands a Lease record with a timer or, when its lease is over, a Ready record: so it is ready
//! again in its old place, before all fresh ones.

use bytes::Bytes;
use prost::Message as _;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{
    AckLease, Answer, AwaitReady, DequeueFrom, Drawn, EnqueueTo, Lease, OpenPartition, Partition,
    Ready, Refusal, ReturnLeases, StoredMessage, answer,
};
use trefoil_proto::queue::v1::{AckResponse, Delivery, DequeueResponse, EnqueueResponse};

use super::context::{
    CommandContext, CommandOutcome, CommandResult, Outcome, QueryContext, QueryOutcome, answered,
    done, refuse, refuse_with,
};
use super::timers;
use crate::key::{Key, Kind};
use crate::lease::LeaseId;
use crate::limits::{BATCH_BYTES_MAX, BATCH_ITEMS_MAX, DELIVERIES_MAX, PARTITIONS_MAX};
use crate::store::{Store, Txn, decode, prefix_end};
use crate::{check, slot};

/// Partitions of a Dequeue whose first messages are compared: of more, the next are looked at when these have no more.
const HEADS_MAX: usize = 16;

/// A partition begins to exist, or learns of a newer version of its queue.
pub(super) fn open_partition(
    context: &mut CommandContext<'_>,
    request: &OpenPartition,
) -> CommandResult {
    let place = PartitionKeys::of_command(context, request.queue_id, request.partition)?;
    check::number("partition", request.partition.into(), 0, u64::from(PARTITIONS_MAX) - 1)?;
    let known = place.find(&context.txn);
    let newborn = || Partition { next_sequence: 1, fresh_from: 1, ..Partition::default() };
    let mut partition = known.unwrap_or_else(newborn);
    if request.catalogue_version < partition.catalogue_version {
        return Err(other_version(&partition));
    }
    partition.catalogue_version = request.catalogue_version;
    context.txn.put_message(place.key(Kind::Partition), &partition);
    Ok(done())
}

/// Appends messages to a partition.
pub(super) fn enqueue_to(context: &mut CommandContext<'_>, request: &EnqueueTo) -> CommandResult {
    let place = PartitionKeys::of_command(context, request.queue_id, request.partition)?;
    at_most("messages", request.messages.len(), BATCH_ITEMS_MAX as u64)?;
    let mut partition = place.open(&context.txn)?;
    same_version(&partition, request.catalogue_version)?;
    let mut message_ids = Vec::with_capacity(request.messages.len());
    for (n, message) in request.messages.iter().enumerate() {
        if check::value_bytes(message.value.as_ref()).is_none() {
            return Err(check::invalid(
                &format!("messages[{n}].value"),
                "set: either data or text",
            ));
        }
        let sequence = partition.next_sequence;
        let stored = StoredMessage {
            key: message.key.clone(),
            value: message.value.clone(),
            headers: message.headers.clone(),
            enqueued_at_ms: context.now_ms,
            enqueued_at_unix_ms: context.wall_ms,
        };
        context.txn.put_message(place.record(Kind::Message, sequence), &stored);
        message_ids.push(place.message_id(sequence));
        partition.next_sequence += 1;
        partition.messages += 1;
        context.output.counts.enqueued(1);
        context.output.backlog += 1;
        place.tell_ready(context);
    }
    context.txn.put_message(place.key(Kind::Partition), &partition);
    Ok(CommandOutcome::Answer(answer::Answer::Enqueue(EnqueueResponse {
        message_ids,
        ..EnqueueResponse::default()
    })))
}

/// Leases ready messages of the partitions: of all their first ones the one that has been ready for longest, then the next. A
/// partition that is not open has nothing.
pub(super) fn dequeue_from(
    context: &mut CommandContext<'_>,
    request: &DequeueFrom,
) -> CommandResult {
    let drawn = context.drawn()?;
    at_most("partitions", request.partitions.len(), PARTITIONS_MAX.into())?;
    let places =
        PartitionKeys::of_all(context.slot, request.queue_id, &request.partitions, context.shards)?;
    let most = usize::try_from(request.max_messages).unwrap_or(usize::MAX).min(DELIVERIES_MAX);
    let mut batch =
        DeliveryBatch { drawn, lease_ms: request.lease_ms, most, bytes: 0, deliveries: vec![] };
    for places in places.chunks(HEADS_MAX) {
        let mut heads = heads(context, places, request.catalogue_version, batch.left())?;
        let all = batch.take(context, &mut heads);
        for head in heads.iter().filter(|head| head.has_given) {
            context.txn.put_message(head.place.key(Kind::Partition), &head.partition);
        }
        if !all {
            break;
        }
    }
    context.output.counts.dequeued(batch.deliveries.len() as u64);
    let response = DequeueResponse { deliveries: batch.deliveries, ..DequeueResponse::default() };
    Ok(CommandOutcome::Answer(answer::Answer::Dequeue(response)))
}

/// Whether a dequeue found nothing. That is no answer to keep: a long poll asks again under the same request id.
pub(super) fn took_nothing(outcome: &Outcome) -> bool {
    let Outcome::Answered(Answer { answer: Some(answer::Answer::Dequeue(response)) }) = outcome
    else {
        return false;
    };
    is_nothing(response)
}

/// See [`took_nothing`].
pub(super) fn is_nothing(response: &DequeueResponse) -> bool {
    response.deliveries.is_empty() && response.leases_over == 0
}

/// What a remembered answer is now: what is left of its leases, without those that are over.
pub(super) fn what_is_left(context: &CommandContext<'_>, response: &mut DequeueResponse) {
    if crate::mutant!(WholeLeaseAgain) {
        return;
    }
    let before = response.deliveries.len();
    response.deliveries.retain_mut(|delivery| {
        let id = delivery.lease_id.parse::<LeaseId>();
        let lease = id.ok().and_then(|id| {
            let place = PartitionKeys::new(id.queue_id, id.partition, context.shards);
            place.lease(&context.txn, id.sequence).filter(|lease| lease.secret == id.secret)
        });
        delivery.lease_ms =
            lease.map_or(0, |lease| lease.deadline_ms.saturating_sub(context.now_ms));
        delivery.lease_ms > 0
    });
    let over = before - response.deliveries.len();
    response.leases_over =
        response.leases_over.saturating_add(u32::try_from(over).unwrap_or(u32::MAX));
}

/// Settles a message, by its newest lease and before that runs out.
pub(super) fn ack_lease(context: &mut CommandContext<'_>, request: &AckLease) -> CommandResult {
    let place = PartitionKeys::of_command(context, request.queue_id, request.partition)?;
    let mut partition = place.open(&context.txn)?;
    let Some(lease) = place.lease(&context.txn, request.sequence) else {
        if place.is_ready(&context.txn, &partition, request.sequence) {
            return Err(refuse(Reason::StaleLease, "the lease ran out or was returned"));
        }
        return Err(refuse(
            Reason::UnknownMessage,
            "the message was acknowledged before, or never enqueued",
        ));
    };
    if lease.secret != request.secret && !crate::mutant!(OldLeaseSettles) {
        return Err(refuse(Reason::StaleLease, "another lease of the message is the newest"));
    }
    if lease.deadline_ms <= context.now_ms {
        return Err(refuse(Reason::StaleLease, "the lease ran out"));
    }
    if !crate::mutant!(AckedComesBack) {
        place.end_lease(context, request.sequence, &lease);
        context.txn.delete(place.record(Kind::Message, request.sequence));
    }
    partition.messages -= 1;
    partition.leased -= 1;
    context.txn.put_message(place.key(Kind::Partition), &partition);
    context.output.counts.acked(1);
    context.output.backlog -= 1;
    Ok(CommandOutcome::Answer(answer::Answer::Ack(AckResponse { header: None })))
}

/// Deliveries that did not reach their consumer are ready again and do not count. Leases that are over stay over.
pub(super) fn return_leases(
    context: &mut CommandContext<'_>,
    request: &ReturnLeases,
) -> CommandResult {
    at_most("leases", request.leases.len(), DELIVERIES_MAX as u64)?;
    let partitions = request.leases.iter().map(|lease| lease.partition).collect::<Vec<_>>();
    let places =
        PartitionKeys::of_all(context.slot, request.queue_id, &partitions, context.shards)?;
    for (place, returned) in places.iter().zip(&request.leases) {
        let lease = place.lease(&context.txn, returned.sequence);
        let newest = lease
            .filter(|lease| lease.secret == returned.secret && lease.deadline_ms > context.now_ms);
        if let Some(mut lease) = newest {
            place.end_lease(context, returned.sequence, &lease);
            lease.deliveries = lease.deliveries.saturating_sub(1);
            place.comes_back(context, returned.sequence, lease);
        }
    }
    Ok(done())
}

/// A lease may have run out: its own deadline decides.
pub(super) fn lease_due(context: &mut CommandContext<'_>, rest: &Bytes) {
    let (place, sequence) = PartitionKeys::of_timer(context.slot, rest);
    let Some(lease) = place.lease(&context.txn, sequence) else { return };
    if lease.deadline_ms <= context.now_ms {
        context.txn.delete(place.record(Kind::Lease, sequence));
        context.output.counts.leases_expired(1);
        place.comes_back(context, sequence, lease);
    }
}

/// Which partitions have something to deliver; waits until one has, when asked to.
pub(super) fn await_ready(
    context: &mut QueryContext<'_, impl Store>,
    request: &AwaitReady,
) -> QueryOutcome {
    let QueryContext { store, slot, shards, call, .. } = *context;
    let places = at_most("partitions", request.partitions.len(), PARTITIONS_MAX.into())
        .and_then(|()| PartitionKeys::of_all(slot, request.queue_id, &request.partitions, shards));
    let places = match places {
        Ok(places) => places,
        Err(refusal) => return answered(refusal),
    };
    let ready = places.iter().filter(|place| place.has_ready(store));
    let partitions = ready.map(|place| place.partition).collect::<Vec<_>>();
    if !partitions.is_empty() || !request.wait {
        return answered(answer::Answer::Ready(Ready { partitions }));
    }
    if context.polls.wait(call, request.queue_id, &request.partitions) {
        QueryOutcome::Parked
    } else {
        answered(refuse(Reason::Overloaded, "too many long polls wait at this shard"))
    }
}

/// The next message of a partition.
struct Head {
    place: PartitionKeys,
    partition: Partition,
    ready: std::vec::IntoIter<(u64, Lease)>,
    first: Option<First>,
    has_given: bool,
}

struct First {
    sequence: u64,
    last: Lease,
    message: StoredMessage,
    bytes: usize,
}

/// The first messages of partitions, each of which may give so many.
fn heads(
    context: &CommandContext<'_>,
    places: &[PartitionKeys],
    catalogue_version: u64,
    limit: usize,
) -> Result<Vec<Head>, Refusal> {
    let mut heads = Vec::<Head>::with_capacity(places.len());
    for place in places {
        let is_listed_twice = heads.iter().any(|head| head.place.partition == place.partition);
        let Some(partition) = place.find(&context.txn).filter(|_| !is_listed_twice) else {
            continue;
        };
        same_version(&partition, catalogue_version)?;
        let ready = place.ready(&context.txn, &partition, limit).into_iter();
        let mut head = Head { place: *place, partition, ready, first: None, has_given: false };
        head.next(context);
        heads.push(head);
    }
    Ok(heads)
}

impl Head {
    /// Goes on to the next message.
    fn next(&mut self, context: &CommandContext<'_>) -> Option<First> {
        let next = self.ready.next().map(|(sequence, last)| {
            let key = self.place.record(Kind::Message, sequence);
            let message = context.txn.get(key.bytes()).expect("a ready message is stored");
            let bytes = message.len();
            // Decoded from the shared buffer, so that the value is not copied.
            let message =
                StoredMessage::decode(message).expect("a stored value is what this version wrote");
            First { sequence, last, message, bytes }
        });
        std::mem::replace(&mut self.first, next)
    }
}

impl First {
    /// Log time since which it has been ready, in ms.
    fn since_ms(&self) -> u64 {
        if self.last.lease == 0 { self.message.enqueued_at_ms } else { self.last.ready_at_ms }
    }
}

/// Deliveries of one command.
struct DeliveryBatch {
    drawn: Drawn,
    lease_ms: u64,
    most: usize,
    bytes: usize,
    deliveries: Vec<Delivery>,
}

impl DeliveryBatch {
    fn left(&self) -> usize {
        self.most - self.deliveries.len()
    }

    /// Takes messages in the order in which they became ready; true when it could have taken more.
    fn take(&mut self, context: &mut CommandContext<'_>, heads: &mut [Head]) -> bool {
        while self.left() > 0 {
            let oldest = heads.iter_mut().filter_map(|head| {
                let since_ms = head.first.as_ref()?.since_ms();
                Some((since_ms, head))
            });
            // Of equals the one that was listed first.
            let Some((_, head)) = oldest.min_by_key(|(since_ms, _)| *since_ms) else { return true };
            let bytes = head.first.as_ref().map_or(0, |first| first.bytes);
            if !self.deliveries.is_empty() && self.bytes + bytes > BATCH_BYTES_MAX {
                return false;
            }
            let Some(first) = head.next(context) else { return true };
            self.bytes += bytes;
            head.has_given = true;
            head.partition.leased += 1;
            head.partition.fresh_from = head.partition.fresh_from.max(first.sequence + 1);
            self.deliveries.push(deliver(context, &head.place, first, self.lease_ms, &self.drawn));
        }
        false
    }
}

/// Leases one message.
fn deliver(
    context: &mut CommandContext<'_>,
    place: &PartitionKeys,
    first: First,
    lease_ms: u64,
    drawn: &Drawn,
) -> Delivery {
    let First { sequence, last, message, bytes: _ } = first;
    let number = last.lease + 1;
    let id = LeaseId::drawn(place.queue_id, place.partition, sequence, number, drawn);
    let lease = Lease {
        lease: number,
        deliveries: last.deliveries.saturating_add(1),
        deadline_ms: if crate::mutant!(EarlyLeaseEnd) {
            context.now_ms
        } else {
            context.now_ms.saturating_add(lease_ms)
        },
        secret: id.secret,
        ready_at_ms: 0,
    };
    if last.lease > 0 {
        context.txn.delete(place.record(Kind::Ready, sequence));
    }
    context.txn.put_message(place.record(Kind::Lease, sequence), &lease);
    if !crate::mutant!(OrphanedLease) {
        place.with_timer(context, lease.deadline_ms, sequence, timers::set);
    }
    Delivery {
        message_id: place.message_id(sequence),
        key: message.key,
        value: message.value,
        headers: message.headers,
        lease_id: id.to_string(),
        delivery_count: lease.deliveries,
        enqueued_at_ms: message.enqueued_at_ms,
        enqueued_at_unix_ms: message.enqueued_at_unix_ms,
        lease_ms,
    }
}

fn at_most(field: &str, count: usize, limit: u64) -> Result<(), Refusal> {
    if count as u64 <= limit {
        Ok(())
    } else {
        Err(check::invalid(field, format_args!("at most {limit} {field}")))
    }
}

fn same_version(partition: &Partition, catalogue_version: u64) -> Result<(), Refusal> {
    if partition.catalogue_version == catalogue_version {
        Ok(())
    } else {
        Err(other_version(partition))
    }
}

fn other_version(partition: &Partition) -> Refusal {
    let facts = [("catalogue_version", partition.catalogue_version.to_string())];
    refuse_with(Reason::StaleMap, "the command was made by another version of the catalogue", facts)
}

/// Where the records of a partition are.
#[derive(Clone, Copy)]
struct PartitionKeys {
    slot: u16,
    queue_id: u64,
    partition: u32,
}

impl PartitionKeys {
    /// A partition of this shard's slot map.
    fn new(queue_id: u64, partition: u32, shards: u32) -> Self {
        Self { slot: slot::of_partition(queue_id, partition, shards), queue_id, partition }
    }

    /// The partition of a command that was sent to its slot.
    fn of_command(
        context: &CommandContext<'_>,
        queue_id: u64,
        partition: u32,
    ) -> Result<Self, Refusal> {
        let place = Self::new(queue_id, partition, context.shards);
        if place.slot != context.slot {
            return Err(refuse(Reason::StaleMap, "the partition lives in another slot"));
        }
        Ok(place)
    }

    /// Partitions that must all be of the shard that holds `slot`.
    fn of_all(
        slot: u16,
        queue_id: u64,
        partitions: &[u32],
        shards: u32,
    ) -> Result<Vec<Self>, Refusal> {
        let places = partitions
            .iter()
            .map(|partition| Self::new(queue_id, *partition, shards))
            .collect::<Vec<_>>();
        let shard = slot::shard(slot, shards);
        if places.iter().any(|place| slot::shard(place.slot, shards) != shard) {
            return Err(refuse(Reason::StaleMap, "a partition lives on another shard"));
        }
        Ok(places)
    }

    /// The partition and sequence that a timer was set for.
    fn of_timer(slot: u16, rest: &[u8]) -> (Self, u64) {
        let mut rest = rest;
        let (queue_id, partition, sequence) = (
            bytes::Buf::get_u64(&mut rest),
            bytes::Buf::get_u32(&mut rest),
            bytes::Buf::get_u64(&mut rest),
        );
        (Self { slot, queue_id, partition }, sequence)
    }

    /// Id of a message as clients see it.
    fn message_id(&self, sequence: u64) -> String {
        format!("{}-{}-{sequence}", self.queue_id, self.partition)
    }

    fn key(&self, kind: Kind) -> Key {
        Key::new(self.slot, kind).u64(self.queue_id).u32(self.partition)
    }

    fn record(&self, kind: Kind, sequence: u64) -> Key {
        self.key(kind).u64(sequence)
    }

    fn find(&self, txn: &Txn<'_>) -> Option<Partition> {
        txn.get_message(self.key(Kind::Partition).bytes())
    }

    fn open(&self, txn: &Txn<'_>) -> Result<Partition, Refusal> {
        let facts = [("partition", self.partition.to_string())];
        self.find(txn).ok_or_else(|| {
            refuse_with(Reason::PartitionNotOpen, "the partition is not open", facts)
        })
    }

    fn lease(&self, txn: &Txn<'_>, sequence: u64) -> Option<Lease> {
        txn.get_message(self.record(Kind::Lease, sequence).bytes())
    }

    /// The first ready messages with their last leases: those that came back, then those that were never delivered.
    fn ready(&self, txn: &Txn<'_>, partition: &Partition, limit: usize) -> Vec<(u64, Lease)> {
        let start = self.key(Kind::Ready);
        let sequence = |key: &[u8]| {
            u64::from_be_bytes(key[start.bytes().len()..].try_into().expect("a sequence"))
        };
        let back = txn.scan(start.bytes(), &prefix_end(start.bytes()), limit);
        let back = back.into_iter().map(|(key, last)| (sequence(&key), decode(&last)));
        let fresh = partition.fresh_from..partition.next_sequence;
        back.chain(fresh.map(|sequence| (sequence, Lease::default()))).take(limit).collect()
    }

    fn has_ready(&self, store: &impl Store) -> bool {
        let partition = store.get(self.key(Kind::Partition).bytes());
        let partition = partition.map_or_else(Partition::default, |value| decode(&value));
        let back = self.key(Kind::Ready);
        partition.fresh_from < partition.next_sequence
            || !store.scan(back.bytes(), &prefix_end(back.bytes()), 1).is_empty()
    }

    /// Whether a message waits to be delivered.
    fn is_ready(&self, txn: &Txn<'_>, partition: &Partition, sequence: u64) -> bool {
        (partition.fresh_from..partition.next_sequence).contains(&sequence)
            || txn.get(self.record(Kind::Ready, sequence).bytes()).is_some()
    }

    /// There is one more message to deliver: one of those who wait for it is to look.
    fn tell_ready(&self, context: &mut CommandContext<'_>) {
        context.output.ready.push((self.queue_id, self.partition));
    }

    /// A message that was leased is ready again, in its old place.
    fn comes_back(&self, context: &mut CommandContext<'_>, sequence: u64, lease: Lease) {
        let mut partition = self.find(&context.txn).expect("a partition with a lease is open");
        partition.leased -= 1;
        context.txn.put_message(self.key(Kind::Partition), &partition);
        let last = Lease { deadline_ms: 0, secret: 0, ready_at_ms: context.now_ms, ..lease };
        context.txn.put_message(self.record(Kind::Ready, sequence), &last);
        self.tell_ready(context);
    }

    /// Removes a lease before its time, and its timer.
    fn end_lease(&self, context: &mut CommandContext<'_>, sequence: u64, lease: &Lease) {
        context.txn.delete(self.record(Kind::Lease, sequence));
        self.with_timer(context, lease.deadline_ms, sequence, timers::clear);
    }

    /// Sets or clears the timer of a lease in the partition's own slot, which need not be the command's.
    fn with_timer(
        &self,
        context: &mut CommandContext<'_>,
        due_ms: u64,
        sequence: u64,
        change: fn(&mut CommandContext<'_>, u64, Kind, &[u8]),
    ) {
        let mut rest = Vec::with_capacity(8 + 4 + 8);
        rest.extend_from_slice(&self.queue_id.to_be_bytes());
        rest.extend_from_slice(&self.partition.to_be_bytes());
        rest.extend_from_slice(&sequence.to_be_bytes());
        let slot = std::mem::replace(&mut context.slot, self.slot);
        change(context, due_ms, Kind::Lease, &rest);
        context.slot = slot;
    }
}
