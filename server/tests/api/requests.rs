//! Request ids through the front: the first answer again with its header, and nothing else under the same id.

use std::collections::BTreeSet;

use tonic::transport::Channel;
use tonic::{Code, Status};
use trefoil_core::slot;
use trefoil_proto::common::v1::{Reason, RequestId, ResponseHeader};
use trefoil_proto::lock::v1::OpenSessionResponse;
use trefoil_proto::operation::Method;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::queue::v1::EnqueueRequest;

use crate::support::operations::*;
use crate::support::{Served, refused, unary, usual};

/// Gives a mutation a request id; none of what is none.
fn named(mut operation: Operation, id: Option<RequestId>) -> Option<Operation> {
    *operation.request_id_mut()? = id;
    Some(operation)
}

fn header(end: &Result<Outcome, Status>) -> Option<ResponseHeader> {
    end.as_ref().ok()?.header().cloned()
}

fn again(sequence: u64) -> Option<RequestId> {
    id(sequence).map(|id| RequestId { attempt: 1, ..id })
}

/// What was said, but for what is left of a promised time.
fn said(end: &Result<Outcome, Status>) -> String {
    match end.clone() {
        Ok(Outcome::OpenSession(opened)) => {
            format!("{:?}", OpenSessionResponse { remaining_ms: 0, ..opened })
        }
        Ok(Outcome::Dequeue(mut got)) => {
            got.deliveries.iter_mut().for_each(|delivery| delivery.lease_ms = 0);
            got.waited_ms = 0;
            format!("{got:?}")
        }
        Ok(outcome) => format!("{outcome:?}"),
        Err(status) => format!("{:?} {}", status.code(), status.message()),
    }
}

/// Does all that can be done, each mutation under an id of its own, and again; says under which id each was.
async fn everything(channel: &Channel) -> Vec<(u64, Operation)> {
    let mut done = Vec::new();
    let mut lease = String::new();
    for (sequence, mut operation) in (1..).zip(one_of_each()) {
        if let Operation::Ack(ack) = &mut operation {
            ack.lease_id.clone_from(&lease);
        }
        let Some(first) = named(operation.clone(), id(sequence)) else {
            unary(channel, operation).await.ok();
            continue;
        };
        let first = unary(channel, first).await;
        if let Ok(Outcome::Dequeue(got)) = &first {
            lease.clone_from(&got.deliveries[0].lease_id);
        }
        // Something else goes between, on every shard that there is.
        for key in 0..8 {
            unary(channel, Operation::Put(put(&format!("between-{key}"), "v"))).await.unwrap();
        }
        let retry = unary(channel, named(operation.clone(), again(sequence)).unwrap()).await;
        assert_eq!(header(&first), header(&retry), "{operation:?}");
        assert_eq!(said(&first), said(&retry), "{operation:?}");
        done.push((sequence, operation));
    }
    done
}

#[tokio::test]
async fn every_mutation_is_answered_again_with_its_first_header() {
    let Served { channel, front: _front, .. } = usual().await;
    let done = everything(&channel).await;
    let mutations = Method::ALL.iter().filter(|method| method.facts().has_request_id).count();
    assert_eq!(done.len(), mutations, "one of each mutation");
}

/// Operations of which all touch one shard: of locks, of one key, of the meta shard, of a queue with one partition.
fn place(operation: &Operation) -> u8 {
    match operation {
        Operation::Put(_) | Operation::Delete(_) => 1,
        Operation::CreateQueue(_)
        | Operation::CreateNamespace(_)
        | Operation::UpdateNamespace(_)
        | Operation::DeleteNamespace(_)
        | Operation::SetNamespacePolicy(_) => 2,
        Operation::Enqueue(_) | Operation::Dequeue(_) | Operation::Ack(_) => 3,
        _ => 0,
    }
}

#[tokio::test]
async fn another_operation_under_the_same_id_is_refused_and_named() {
    let Served { channel, fake, front: _front, .. } = usual().await;
    let done = everything(&channel).await;
    let commands = fake.log().len();
    let mut refusals = 0;
    for (sequence, first) in &done {
        let others = done.iter().filter(|(other, operation)| {
            other != sequence
                && place(operation) == place(first)
                && operation.method() != first.method()
        });
        for (_, other) in others {
            // Whether it says that it is a retry or not.
            for id in [id(*sequence), again(*sequence)] {
                let end = unary(&channel, named(other.clone(), id).unwrap()).await;
                if matches!(&end, Ok(Outcome::Dequeue(nothing)) if nothing.deliveries.is_empty()) {
                    // It has looked, and asked for nothing.
                    continue;
                }
                let (code, refusal) = refused(end);
                let found = (code, refusal.reason());
                let wanted = (Code::InvalidArgument, Reason::InvalidField);
                assert_eq!(found, wanted, "{other:?} under the id of {first:?}");
                assert_eq!(refusal.metadata["field"], "request_id");
                refusals += 1;
            }
        }
    }
    assert!(refusals > 600, "{refusals}");
    assert!(fake.log().len() >= commands + refusals, "the shards themselves refuse");
}

fn batch(sequence: u64, attempt: u32, keys: &[&str], value: &str) -> EnqueueRequest {
    let messages = keys.iter().map(|key| message(key, value)).collect();
    let request_id = id(sequence).map(|id| RequestId { attempt, ..id });
    EnqueueRequest { request_id, ..enqueue("q", messages) }
}

#[tokio::test]
async fn no_batch_is_answered_with_ids_that_are_missing() {
    let Served { channel, front: _front, .. } = usual().await;
    unary(&channel, Operation::CreateQueue(create_queue("q", 8))).await.unwrap();
    let keys = (0..20).map(|n| format!("key-{n}")).collect::<Vec<_>>();
    let keys = keys.iter().map(String::as_str).collect::<Vec<_>>();
    let mut stored = BTreeSet::new();
    let mut refusals = 0;
    for sequence in 1..=20 {
        let n = usize::try_from(sequence).unwrap();
        // A batch, then others under its id: more messages, fewer, other values, other keys, none of them with a key.
        let some = &keys[n % 7..n % 7 + 1 + n % 12];
        let none = vec![""; 1 + n % 3];
        let others = [&keys[..20], &keys[n % 7..=n % 7], &none[..]];
        let first = unary(&channel, Operation::Enqueue(batch(sequence, 0, some, "v"))).await;
        let Ok(Outcome::Enqueue(first)) = first else { panic!("{first:?}") };
        assert_eq!(first.message_ids.len(), some.len());
        stored.extend(first.message_ids.clone());
        for (attempt, other) in (0..2).flat_map(|attempt| others.map(|other| (attempt, other))) {
            match unary(&channel, Operation::Enqueue(batch(sequence, attempt, other, "w"))).await {
                // On another shard it is another request.
                Ok(Outcome::Enqueue(done)) => {
                    assert_eq!(done.message_ids.len(), other.len());
                    assert!(done.message_ids.iter().all(|id| !id.is_empty()), "{done:?}");
                    assert!(done.message_ids.iter().all(|id| !first.message_ids.contains(id)));
                }
                end => {
                    let (_, refusal) = refused(end);
                    let cause = refusal.metadata.get("cause").map(String::as_str);
                    let is_told = refusal.reason() == Reason::InvalidField
                        || refusal.reason() == Reason::PartlyApplied
                            && cause == Some("INVALID_FIELD");
                    assert!(is_told, "{refusal:?}");
                    refusals += 1;
                }
            }
        }
        let again = unary(&channel, Operation::Enqueue(batch(sequence, 1, some, "v"))).await;
        let Ok(Outcome::Enqueue(again)) = again else { panic!("{again:?}") };
        assert_eq!((again.header, again.message_ids), (first.header, first.message_ids));
    }
    assert!(refusals > 60, "{refusals}");
    assert!(!stored.contains(""));
}

#[tokio::test]
async fn on_another_shard_the_id_is_a_new_one() {
    let Served { channel, front: _front, .. } = usual().await;
    let shard = |key: &str| slot::shard(slot::of_cache("default", key), 3);
    let keys = (0..40).map(|n| format!("key-{n}")).collect::<Vec<_>>();
    let mut used = BTreeSet::new();
    for key in &keys {
        let request = named(Operation::Put(put(key, key)), id(5)).unwrap();
        let end = unary(&channel, request).await;
        let Ok(Outcome::Get(got)) = unary(&channel, Operation::Get(get(key))).await else {
            panic!("it is read")
        };
        if used.insert(shard(key)) {
            assert!(end.is_ok() && got.hit, "{end:?}");
        } else {
            assert_eq!(refused(end).1.metadata["field"], "request_id");
            assert!(!got.hit, "what was refused is not there");
        }
    }
    assert!(used.len() > 1);
}
