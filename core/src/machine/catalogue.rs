//! Which queues there are: kept by the meta shard.

use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::{Catalogue, CatalogueCounters, FindQueue, Refusal, answer};
use trefoil_proto::queue::v1::{CreateQueueRequest, CreateQueueResponse};

use super::context::{
    CommandContext, CommandOutcome, CommandResult, QueryContext, QueryOutcome, answered, refuse,
    refuse_with,
};
use super::namespace;
use crate::check;
use crate::key::{Key, Kind};
use crate::limits::{NAME_BYTES_MAX, PARTITIONS_MAX};
use crate::slot::SYSTEM_SLOT;
use crate::store::{Store, decode};

/// Names in a refusal what the namespace says of creating queues by their first use: "allowed" or "refused".
pub const QUEUE_CREATION: &str = "queue_creation";

/// Creates a queue with an id of its own; the same queue again is no error.
pub(super) fn create_queue(
    context: &mut CommandContext<'_>,
    request: &CreateQueueRequest,
) -> CommandResult {
    let drawn = context.drawn()?;
    check_place(context.slot, &request.namespace, &request.queue)?;
    check::number("partitions", request.partitions.into(), 1, PARTITIONS_MAX.into())?;
    let key = queue_key(&request.namespace, &request.queue);
    if let Some(known) = context.txn.get_message::<Catalogue>(key.bytes()) {
        if known.partitions == request.partitions {
            return Ok(created(known.partitions, false));
        }
        let facts = [("partitions", known.partitions.to_string())];
        return Err(refuse_with(
            Reason::QueueExists,
            "the queue has another number of partitions",
            facts,
        ));
    }
    namespace::admit_queue(context, &request.namespace)?;
    let counters_key = Key::system(Kind::CatalogueCounters);
    let mut counters =
        context.txn.get_message::<CatalogueCounters>(counters_key.bytes()).unwrap_or_default();
    counters.last_queue_id += 1;
    let queue = Catalogue {
        queue_id: counters.last_queue_id,
        partitions: request.partitions,
        version: 1,
        lease_key: Some(drawn),
    };
    context.txn.put_message(counters_key, &counters);
    context.txn.put_message(key, &queue);
    Ok(created(request.partitions, true))
}

/// What is known of a queue.
pub(super) fn find_queue(
    context: &QueryContext<'_, impl Store>,
    request: &FindQueue,
) -> QueryOutcome {
    let QueryContext { store, slot, .. } = *context;
    if let Err(refusal) = check_place(slot, &request.namespace, &request.queue) {
        return answered(refusal);
    }
    match store.get(queue_key(&request.namespace, &request.queue).bytes()) {
        Some(queue) => answered(answer::Answer::Catalogue(decode(&queue))),
        None => {
            let mut refusal = refuse(Reason::UnknownQueue, "there is no such queue");
            if let Some(creation) = namespace::queue_creation(store, &request.namespace) {
                refusal.metadata.insert(QUEUE_CREATION.to_owned(), creation.to_owned());
            }
            answered(refusal)
        }
    }
}

fn check_place(slot: u16, namespace: &str, queue: &str) -> Result<(), Refusal> {
    if slot != SYSTEM_SLOT {
        return Err(refuse(
            Reason::StaleMap,
            "the catalogue lives in the system slot of the meta shard",
        ));
    }
    check::text("namespace", namespace, 1, NAME_BYTES_MAX)?;
    check::text("queue", queue, 1, NAME_BYTES_MAX)
}

fn queue_key(namespace: &str, queue: &str) -> Key {
    Key::system(Kind::Catalogue).text(namespace).tail(queue.as_bytes())
}

fn created(partitions: u32, created: bool) -> CommandOutcome {
    CommandOutcome::Answer(answer::Answer::CreateQueue(CreateQueueResponse {
        header: None,
        partitions,
        created,
    }))
}
