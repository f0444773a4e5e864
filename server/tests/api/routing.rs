//! What a client is told from which it computes the shard of what it asks for.

use trefoil_proto::cluster::v1::{SlotMap, StatusRequest};
use trefoil_proto::common::v1::ResponseHeader;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::queue::v1::{EnqueueRequest, EnqueueResponse, QueueLayout};
use trefoil_proto::slot;
use trefoil_server::api::Shards as _;

use crate::support::operations::*;
use crate::support::{Served, unary, usual};

async fn store(served: &Served, request: EnqueueRequest) -> EnqueueResponse {
    match unary(&served.channel, Operation::Enqueue(request)).await {
        Ok(Outcome::Enqueue(response)) => response,
        other => panic!("{other:?}"),
    }
}

fn shard_of(header: Option<ResponseHeader>) -> u32 {
    header.expect("an answer has a header").shard
}

#[tokio::test]
async fn status_tells_the_map_by_which_keys_are_found() {
    let served = usual().await;
    let end = unary(&served.channel, Operation::Status(StatusRequest::default())).await;
    let Ok(Outcome::Status(status)) = end else { panic!("{end:?}") };
    let shards = served.fake.shards();
    let map = SlotMap { epoch: slot::MAP_EPOCH, slots: slot::SLOTS.into(), data_shards: shards };
    assert_eq!(status.slot_map, Some(map));
    for n in 0..20 {
        let key = format!("key-{n}");
        let end = unary(&served.channel, Operation::Put(put(&key, "v"))).await;
        let Ok(Outcome::Put(stored)) = end else { panic!("{end:?}") };
        assert_eq!(shard_of(stored.header), slot::shard(slot::of_cache("default", &key), shards));
    }
    let end = unary(&served.channel, Operation::OpenSession(open_session(60_000))).await;
    let Ok(Outcome::OpenSession(opened)) = end else { panic!("{end:?}") };
    assert_eq!(shard_of(opened.header), slot::shard(slot::of_locks("default"), shards));
}

#[tokio::test]
async fn an_enqueue_tells_where_messages_and_leases_of_its_queue_are() {
    let served = usual().await;
    let shards = served.fake.shards();
    for queue in ["other", "q"] {
        unary(&served.channel, Operation::CreateQueue(create_queue(queue, 5))).await.unwrap();
    }
    for n in 0..20_u32 {
        let key = if n % 2 == 0 { format!("key-{n}") } else { String::new() };
        let mut request = enqueue("q", vec![message(&key, "v")]);
        request.request_id = id(u64::from(n) + 1);
        let named = request.request_id.clone().expect("it has an id");
        let stored = store(&served, request).await;
        let Some(QueueLayout { queue_id: 2, partitions: 5, version: 1.. }) = stored.layout else {
            panic!("{stored:?}")
        };
        let partition = if key.is_empty() {
            slot::keyless(&named.client, named.sequence, 5)
        } else {
            slot::partition(&key, 5)
        };
        assert_eq!(slot::place(&stored.message_ids[0]), Some((2, partition)));
        let shard = slot::shard(slot::of_partition(2, partition, shards), shards);
        assert_eq!(shard_of(stored.header), shard);
    }
    let end = unary(&served.channel, Operation::Dequeue(dequeue("q", 20, 0))).await;
    let Ok(Outcome::Dequeue(taken)) = end else { panic!("{end:?}") };
    assert_eq!(taken.deliveries.len(), 20);
    for delivery in taken.deliveries {
        assert!(delivery.lease_id.starts_with(&format!("{}-", delivery.message_id)));
        let (queue_id, partition) = slot::place(&delivery.lease_id).expect("it has a place");
        let end = unary(&served.channel, Operation::Ack(ack("q", &delivery.lease_id))).await;
        let Ok(Outcome::Ack(settled)) = end else { panic!("{end:?}") };
        let shard = slot::shard(slot::of_partition(queue_id, partition, shards), shards);
        assert_eq!(shard_of(settled.header), shard);
    }
}
