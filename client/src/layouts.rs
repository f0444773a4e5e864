//! Queues as nodes told of them: they say of a message in which partition it will be, before it is sent.

use std::collections::BTreeMap;
use std::sync::{PoisonError, RwLock};

use trefoil_proto::queue::v1::{EnqueueRequest, QueueLayout};
use trefoil_proto::slot;

use crate::routing_key::{RoutingKey, or_default};

/// Queues that are remembered. Which one gives way to a further one does not matter: it is told again.
const QUEUES_MAX: usize = 4_096;

/// The queues by their full names.
#[derive(Debug, Default)]
pub struct Layouts(RwLock<BTreeMap<String, QueueLayout>>);

impl Layouts {
    /// The partition of the first message; the node that gets them hands on what goes to others.
    pub(crate) fn routing_key(&self, request: &EnqueueRequest) -> RoutingKey {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let layout = known.get(&full_name(&request.namespace, &request.queue));
        let (Some(&QueueLayout { queue_id, partitions, .. }), Some(message)) =
            (layout, request.messages.first())
        else {
            return RoutingKey::Any;
        };
        let partition = match &request.request_id {
            _ if !message.key.is_empty() => slot::partition(&message.key, partitions),
            Some(id) => slot::keyless(&id.client, id.sequence, partitions),
            None => return RoutingKey::Any,
        };
        RoutingKey::Partition { queue_id, partition }
    }

    /// Remembers a queue; of two versions of one the newer.
    pub(crate) fn learn(&self, namespace: &str, queue: &str, told: Option<QueueLayout>) {
        let Some(told) = told else { return };
        let name = full_name(namespace, queue);
        let is_old =
            |known: &QueueLayout| known.queue_id == told.queue_id && known.version >= told.version;
        // Almost every answer tells what is known.
        if self.0.read().unwrap_or_else(PoisonError::into_inner).get(&name).is_some_and(is_old) {
            return;
        }
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if known.len() >= QUEUES_MAX && !known.contains_key(&name) {
            known.pop_first();
        }
        known.insert(name, told);
    }
}

/// Both names in one: the length keeps them apart.
fn full_name(namespace: &str, queue: &str) -> String {
    let namespace = or_default(namespace);
    format!("{}:{namespace}{queue}", namespace.len())
}

#[cfg(test)]
mod tests {
    use trefoil_proto::common::v1::RequestId;
    use trefoil_proto::queue::v1::Message;

    use super::*;

    fn request(queue: &str, key: &str) -> EnqueueRequest {
        let id = RequestId { client: "web-1".to_owned(), sequence: 42, ..RequestId::default() };
        EnqueueRequest {
            queue: queue.to_owned(),
            messages: vec![Message { key: key.to_owned(), ..Message::default() }],
            request_id: Some(id),
            ..EnqueueRequest::default()
        }
    }

    fn layout(queue_id: u64, partitions: u32, version: u64) -> Option<QueueLayout> {
        Some(QueueLayout { queue_id, partitions, version })
    }

    #[test]
    fn a_message_goes_where_the_queue_has_it() {
        let layouts = Layouts::default();
        assert_eq!(layouts.routing_key(&request("q", "order-17")), RoutingKey::Any);
        layouts.learn("default", "q", layout(3, 8, 1));
        let partition = |partition| RoutingKey::Partition { queue_id: 3, partition };
        assert_eq!(layouts.routing_key(&request("q", "order-17")), partition(6));
        let keyless = partition(slot::keyless("web-1", 42, 8));
        assert_eq!(layouts.routing_key(&request("q", "")), keyless, "as a retry must");
        let unnamed = EnqueueRequest { request_id: None, ..request("q", "") };
        assert_eq!(layouts.routing_key(&unnamed), RoutingKey::Any);
        let empty = EnqueueRequest { messages: Vec::new(), ..request("q", "") };
        assert_eq!(layouts.routing_key(&empty), RoutingKey::Any);
        for (namespace, queue) in [("other", "q"), ("default", "other")] {
            let other =
                EnqueueRequest { namespace: namespace.to_owned(), ..request(queue, "order-17") };
            assert_eq!(layouts.routing_key(&other), RoutingKey::Any, "{namespace} {queue}");
        }
    }

    #[test]
    fn the_newer_version_stays_and_another_queue_takes_the_name() {
        let layouts = Layouts::default();
        for (told, known) in
            [(layout(3, 8, 2), 3), (layout(3, 1, 1), 3), (None, 3), (layout(2, 8, 1), 2)]
        {
            layouts.learn("", "q", told);
            let partition = RoutingKey::Partition { queue_id: known, partition: 6 };
            assert_eq!(layouts.routing_key(&request("q", "order-17")), partition, "{told:?}");
        }
    }

    #[test]
    fn no_more_is_remembered_than_there_is_room_for() {
        let layouts = Layouts::default();
        for n in 0..=QUEUES_MAX {
            layouts.learn("", &n.to_string(), layout(1, 8, 1));
        }
        assert_eq!(layouts.0.read().unwrap().len(), QUEUES_MAX);
        let last = request(&QUEUES_MAX.to_string(), "order-17");
        assert_ne!(layouts.routing_key(&last), RoutingKey::Any);
    }
}
