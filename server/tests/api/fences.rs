//! Fences: what a newer holder has used is closed to older ones, over all three services and by both ways in.

use tonic::Code;
use tonic::transport::Channel;
use trefoil_core::slot;
use trefoil_proto::cache::v1 as cache;
use trefoil_proto::common::v1::{Fence, Reason};
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1 as lock;
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;
use trefoil_proto::queue::v1 as queue;
use trefoil_server::authorize::{Action, Principal, Resource};
use trefoil_server::config::Service;

use crate::support::operations::*;
use crate::support::{Served, Setup, Stream, metric, refused, serve, unary, usual};

fn fence(token: u64) -> Option<Fence> {
    Some(Fence { lock: "l".to_owned(), token, ..Fence::default() })
}

fn fenced_put(key: &str, token: u64) -> Operation {
    Operation::Put(cache::PutRequest { fence: fence(token), ..put(key, "v") })
}

fn fenced_get(key: &str, token: u64) -> Operation {
    Operation::Get(cache::GetRequest { fence: fence(token), ..get(key) })
}

async fn session(channel: &Channel) -> u64 {
    let Ok(Outcome::OpenSession(opened)) =
        unary(channel, Operation::OpenSession(open_session(60_000))).await
    else {
        panic!("a session is opened")
    };
    opened.session_id
}

async fn grant(channel: &Channel, session: u64, mode: lock::LockMode) -> u64 {
    let request = lock::AcquireRequest { mode: mode.into(), ..acquire(session, "l", 0) };
    let Ok(Outcome::Acquire(granted)) = unary(channel, Operation::Acquire(request)).await else {
        panic!("a lock is asked for")
    };
    assert!(granted.acquired);
    granted.fencing_token
}

/// A token, and then that of the next holder.
async fn two_holders(channel: &Channel) -> (u64, u64) {
    let (first, second) = (session(channel).await, session(channel).await);
    let old = grant(channel, first, lock::LockMode::Exclusive).await;
    unary(channel, fenced_put("k", old)).await.unwrap();
    unary(channel, Operation::Release(release(first, "l"))).await.unwrap();
    let new = grant(channel, second, lock::LockMode::Exclusive).await;
    (old, new)
}

fn assert_fenced(end: Result<Outcome, tonic::Status>, token: u64) -> Refusal {
    let (code, refusal) = refused(end);
    assert_eq!((code, refusal.reason()), (Code::FailedPrecondition, Reason::Fenced), "{refusal:?}");
    assert_eq!(
        (refusal.metadata["lock"].as_str(), &refusal.metadata["token"]),
        ("l", &token.to_string())
    );
    refusal
}

#[tokio::test]
async fn an_older_holder_is_refused_after_a_newer_one_has_read_or_written() {
    let Served { channel, front: _front, .. } = usual().await;
    let (old, new) = two_holders(&channel).await;
    // Nobody newer was here yet: the shard knows the token, and it passes.
    unary(&channel, fenced_put("k", old)).await.unwrap();
    unary(&channel, fenced_get("k", new)).await.unwrap();
    let refusal = assert_fenced(unary(&channel, fenced_put("k", old)).await, old);
    assert_eq!(refusal.metadata["mark"], new.to_string());
    assert_fenced(unary(&channel, fenced_get("k", old)).await, old);
    let delete_it = cache::DeleteRequest { fence: fence(old), ..delete("k") };
    assert_fenced(unary(&channel, Operation::Delete(delete_it)).await, old);
    // The pipelined way is no way around it.
    let mut stream = Stream::open(&channel).await;
    assert_fenced(stream.call(1, fenced_put("k", old)).await, old);
    stream.call(2, fenced_put("k", new)).await.unwrap();
    // At a shard that has seen neither, the lock's shard says that the old one is nobody's.
    let other = (0..100).map(|n| format!("other-{n}"));
    let at = |key: &str| slot::shard(slot::of_cache("default", key), 3);
    let other = other.into_iter().find(|key| at(key) != at("k")).unwrap();
    let refusal = assert_fenced(unary(&channel, fenced_put(&other, old)).await, old);
    assert_eq!(refusal.metadata["holder_token"], new.to_string());
}

#[tokio::test]
async fn a_token_is_validated_once_for_all_calls_and_older_ones_cost_no_entry() {
    let Served { channel, front, fake, .. } = usual().await;
    let (old, new) = two_holders(&channel).await;
    let validations = || metric(front.api().metrics(), "trefoil_fence_validations_total");
    let before = validations();
    let calls = (0..50).map(|_| {
        let channel = channel.clone();
        tokio::spawn(async move { unary(&channel, fenced_put("k", new)).await.unwrap() })
    });
    for call in calls.collect::<Vec<_>>() {
        call.await.unwrap();
    }
    assert_eq!(validations() - before, 1.0);
    let puts = || fake.log().iter().filter(|command| matches!(command, Command::Put(_))).count();
    let before = (validations(), puts());
    for _ in 0..10 {
        assert_fenced(unary(&channel, fenced_put("k", old)).await, old);
    }
    assert!(puts() - before.1 <= 1, "what is known needs no entry");
    assert_eq!(validations(), before.0);
    assert_eq!(metric(front.api().metrics(), "trefoil_fences_refused_total"), 10.0);
}

#[tokio::test]
async fn a_retry_of_what_took_effect_is_answered_whoever_was_there_since() {
    let Served { channel, front: _front, .. } = usual().await;
    let (old, new) = two_holders(&channel).await;
    let mut request = cache::PutRequest { fence: fence(old), request_id: id(1), ..put("k", "v") };
    let first = unary(&channel, Operation::Put(request.clone())).await.unwrap();
    unary(&channel, fenced_put("k", new)).await.unwrap();
    assert_fenced(unary(&channel, fenced_put("k", old)).await, old);
    request.request_id.as_mut().unwrap().attempt = 1;
    let again = unary(&channel, Operation::Put(request)).await.unwrap();
    let (Outcome::Put(first), Outcome::Put(again)) = (first, again) else { panic!("two puts") };
    assert_eq!(first.version, again.version);
}

#[tokio::test]
async fn readers_pass_beside_each_other() {
    let Served { channel, front: _front, .. } = usual().await;
    let (one, two) = (session(&channel).await, session(&channel).await);
    let first = grant(&channel, one, lock::LockMode::Shared).await;
    let second = grant(&channel, two, lock::LockMode::Shared).await;
    for token in [second, first, second, first] {
        unary(&channel, fenced_put("k", token)).await.unwrap();
        unary(&channel, fenced_get("k", token)).await.unwrap();
    }
}

#[tokio::test]
async fn queues_refuse_older_holders_too() {
    let Served { channel, front: _front, .. } = usual().await;
    let (old, new) = two_holders(&channel).await;
    let fenced_enqueue = |key: &str, token| {
        let messages = vec![message(key, "v")];
        Operation::Enqueue(queue::EnqueueRequest { fence: fence(token), ..enqueue("q", messages) })
    };
    let fenced_dequeue = |token, wait_ms| {
        let request = dequeue("q", 1, wait_ms);
        Operation::Dequeue(queue::DequeueRequest { fence: fence(token), ..request })
    };
    let create = queue::CreateQueueRequest { fence: fence(new), ..create_queue("q", 1) };
    unary(&channel, Operation::CreateQueue(create.clone())).await.unwrap();
    let late = queue::CreateQueueRequest { fence: fence(old), ..create };
    assert_fenced(unary(&channel, Operation::CreateQueue(late)).await, old);
    unary(&channel, fenced_enqueue("a", new)).await.unwrap();
    assert_fenced(unary(&channel, fenced_enqueue("a", old)).await, old);
    assert_fenced(unary(&channel, fenced_dequeue(old, 0)).await, old);
    let Ok(Outcome::Dequeue(taken)) = unary(&channel, fenced_dequeue(new, 0)).await else {
        panic!("there is a message")
    };
    let fenced_ack = |token| {
        let request = ack("q", &taken.deliveries[0].lease_id);
        Operation::Ack(queue::AckRequest { fence: fence(token), ..request })
    };
    assert_fenced(unary(&channel, fenced_ack(old)).await, old);
    unary(&channel, fenced_ack(new)).await.unwrap();
    // It does not wait for what it may not have.
    assert_fenced(unary(&channel, fenced_dequeue(old, 60_000)).await, old);
}

#[tokio::test]
async fn a_batch_that_one_shard_refuses_says_that_a_part_may_be_stored() {
    let Served { channel, front: _front, .. } = usual().await;
    let one = session(&channel).await;
    let old = grant(&channel, one, lock::LockMode::Exclusive).await;
    unary(&channel, Operation::CreateQueue(create_queue("q", 8))).await.unwrap();
    let batch = |token, keys: std::ops::Range<u32>| {
        let messages = keys.map(|n| message(&format!("key-{n}"), "v")).collect();
        Operation::Enqueue(queue::EnqueueRequest { fence: fence(token), ..enqueue("q", messages) })
    };
    // All shards know the old token; then the next holder is at one of them.
    unary(&channel, batch(old, 0..40)).await.unwrap();
    unary(&channel, Operation::Release(release(one, "l"))).await.unwrap();
    let new = grant(&channel, session(&channel).await, lock::LockMode::Exclusive).await;
    unary(&channel, batch(new, 0..1)).await.unwrap();
    let (code, refusal) = refused(unary(&channel, batch(old, 0..40)).await);
    assert_eq!((code, refusal.reason()), (Code::Aborted, Reason::PartlyApplied));
    assert_eq!(refusal.metadata["cause"], "FENCED");
    unary(&channel, batch(new, 0..40)).await.unwrap();
    assert_fenced(unary(&channel, batch(old, 0..40)).await, old);
}

#[tokio::test]
async fn a_bad_fence_names_its_field() {
    let Served { channel, front: _front, .. } = usual().await;
    let bad = |namespace: &str, lock: &str, token| {
        let (namespace, lock) = (namespace.to_owned(), lock.to_owned());
        Some(Fence { namespace, lock, token })
    };
    let long = "x".repeat(256);
    for (fence, field) in [
        (bad("", "", 1), "fence.lock"),
        (bad("", &long, 1), "fence.lock"),
        (bad(&long, "l", 1), "fence.namespace"),
        (bad("", "l", 0), "fence.token"),
    ] {
        let messages = vec![message("k", "v")];
        for operation in [
            Operation::CreateQueue(queue::CreateQueueRequest {
                fence: fence.clone(),
                ..create_queue("q", 1)
            }),
            Operation::Enqueue(queue::EnqueueRequest {
                fence: fence.clone(),
                ..enqueue("q", messages)
            }),
            Operation::Dequeue(queue::DequeueRequest {
                fence: fence.clone(),
                ..dequeue("q", 1, 0)
            }),
            Operation::Ack(queue::AckRequest { fence: fence.clone(), ..ack("q", &no_lease()) }),
            Operation::Put(cache::PutRequest { fence: fence.clone(), ..put("k", "v") }),
            Operation::Get(cache::GetRequest { fence: fence.clone(), ..get("k") }),
            Operation::Delete(cache::DeleteRequest { fence: fence.clone(), ..delete("k") }),
        ] {
            let (code, refusal) = refused(unary(&channel, operation).await);
            assert_eq!((code, refusal.reason()), (Code::InvalidArgument, Reason::InvalidField));
            assert_eq!(refusal.metadata["field"], field);
        }
    }
}

#[tokio::test]
async fn whoever_may_not_use_the_lock_may_not_show_its_tokens() {
    fn no_locks(_: &Principal, action: Action, _: Resource<'_>) -> Result<(), Refusal> {
        if action == Action::UseLock {
            return Err(Refusal { reason: Reason::PermissionDenied.into(), ..Refusal::default() });
        }
        Ok(())
    }
    let served = serve(Setup { authorizer: no_locks, ..Setup::default() }).await;
    let (code, refusal) = refused(unary(&served.channel, fenced_put("k", 1)).await);
    assert_eq!((code, refusal.reason()), (Code::PermissionDenied, Reason::PermissionDenied));
    unary(&served.channel, Operation::Put(put("k", "v"))).await.unwrap();

    let services = [Service::Cache].into();
    let served = serve(Setup { services, ..Setup::default() }).await;
    let (code, refusal) = refused(unary(&served.channel, fenced_put("k", 1)).await);
    assert_eq!((code, refusal.reason()), (Code::Unimplemented, Reason::ServiceOff));
}

#[tokio::test]
async fn a_token_that_cannot_be_validated_is_refused_and_nothing_happens() {
    let Served { channel, fake, front: _front, .. } = usual().await;
    let (_, new) = two_holders(&channel).await;
    let before = fake.log().len();
    fake.set_leaderless(true);
    let (code, refusal) = refused(unary(&channel, fenced_put("k", new)).await);
    assert_eq!((code, refusal.reason()), (Code::Unavailable, Reason::NoQuorum));
    assert_eq!(fake.log().len(), before);
    fake.set_leaderless(false);
    unary(&channel, fenced_put("k", new)).await.unwrap();
}
