//! Namespaces through the front: every shard is told before a call answers, and a removal is whole or did not happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tonic::Code;
use tonic::transport::Channel;
use trefoil_proto::cluster::v1::{
    self as api, NamespaceSettings, QueueCreation, UnknownNamespaces,
};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::internal::v1::command::Operation as Command;
use trefoil_proto::lock::v1::{CloseSessionRequest, OpenSessionRequest};
use trefoil_proto::pipeline::v1::call::Operation;
use trefoil_proto::pipeline::v1::reply::Outcome;

use crate::support::operations::{enqueue, message, put};
use crate::support::{refused, unary, usual};

async fn create(channel: &Channel, name: &str, settings: NamespaceSettings) -> Outcome {
    let (name, settings) = (name.to_owned(), Some(settings));
    let request = api::CreateNamespaceRequest { name, settings, request_id: None };
    unary(channel, Operation::CreateNamespace(request)).await.unwrap()
}

async fn get(channel: &Channel, name: &str) -> Result<api::GetNamespaceResponse, Reason> {
    let request = api::GetNamespaceRequest { name: name.to_owned() };
    match unary(channel, Operation::GetNamespace(request)).await {
        Ok(Outcome::GetNamespace(got)) => Ok(got),
        end => Err(refused(end).1.reason()),
    }
}

async fn delete(channel: &Channel, name: &str) -> Result<(), Refusal> {
    let request = api::DeleteNamespaceRequest { name: name.to_owned(), ..Default::default() };
    match unary(channel, Operation::DeleteNamespace(request)).await {
        Ok(_) => Ok(()),
        end => Err(refused(end).1),
    }
}

async fn open(channel: &Channel, namespace: &str) -> Result<u64, Refusal> {
    let namespace = namespace.to_owned();
    let request = OpenSessionRequest { namespace, ttl_ms: 60_000, ..Default::default() };
    match unary(channel, Operation::OpenSession(request)).await {
        Ok(Outcome::OpenSession(opened)) => Ok(opened.session_id),
        end => Err(refused(end).1),
    }
}

#[tokio::test]
async fn limits_hold_on_the_shard_of_the_locks_as_soon_as_the_call_has_answered() {
    let served = usual().await;
    let channel = &served.channel;
    for n in 0..10 {
        let name = format!("tenant-{n}");
        create(channel, &name, NamespaceSettings { sessions_max: 1, ..Default::default() }).await;
        let session_id = open(channel, &name).await.unwrap();
        let refusal = open(channel, &name).await.unwrap_err();
        assert_eq!(refusal.reason(), Reason::LimitReached);
        assert_eq!(refusal.metadata["limit"], "sessions_max");
        let got = get(channel, &name).await.unwrap();
        assert_eq!((got.in_force, got.usage.unwrap().sessions), (true, 1));

        let refusal = delete(channel, &name).await.unwrap_err();
        assert_eq!(refusal.reason(), Reason::NamespaceInUse);
        assert_eq!(refusal.metadata["sessions"], "1");
        let got = get(channel, &name).await.unwrap();
        assert!(got.in_force && !got.namespace.unwrap().deleting, "it is as before");
        let close = CloseSessionRequest { namespace: name.clone(), session_id, request_id: None };
        unary(channel, Operation::CloseSession(close)).await.unwrap();
        delete(channel, &name).await.unwrap();
        assert_eq!(get(channel, &name).await.unwrap_err(), Reason::UnknownNamespace);
        // It goes on as one that was never declared.
        assert!(open(channel, &name).await.is_ok() && open(channel, &name).await.is_ok());
    }
}

#[tokio::test]
async fn a_shard_that_cannot_answer_is_told_later() {
    let served = usual().await;
    let (channel, fake) = (&served.channel, &served.fake);
    let refusals = Arc::new(AtomicUsize::new(0));
    let count = Arc::clone(&refusals);
    fake.set_fault(move |_, command| match &command.operation {
        Some(Command::ConfigureNamespace(_) | Command::NamespaceStep(_)) => {
            let n = count.fetch_add(1, Ordering::Relaxed);
            // Some are applied, and nobody sees it.
            [Some(Reason::NoQuorum), None, Some(Reason::MaybeApplied)][n % 3]
        }
        _ => None,
    });
    create(channel, "a", NamespaceSettings { locks_max: 5, ..Default::default() }).await;
    assert!(get(channel, "a").await.unwrap().in_force);
    delete(channel, "a").await.unwrap();
    assert_eq!(get(channel, "a").await.unwrap_err(), Reason::UnknownNamespace);
    assert!(refusals.load(Ordering::Relaxed) > 6);
}

#[tokio::test]
async fn a_decision_that_other_shards_refuse_is_told_as_done_in_part() {
    let served = usual().await;
    let (channel, fake) = (&served.channel, &served.fake);
    fake.set_fault(|_, command| match &command.operation {
        Some(Command::ConfigureNamespace(_) | Command::ConfigureNamespacePolicy(_)) => {
            Some(Reason::PermissionDenied)
        }
        _ => None,
    });
    let name = "a".to_owned();
    let create = api::CreateNamespaceRequest { name: name.clone(), ..Default::default() };
    let policy = api::SetNamespacePolicyRequest {
        unknown: UnknownNamespaces::Refused.into(),
        ..Default::default()
    };
    let delete = api::DeleteNamespaceRequest { name, ..Default::default() };
    for operation in [
        Operation::CreateNamespace(create),
        Operation::SetNamespacePolicy(policy),
        Operation::DeleteNamespace(delete),
    ] {
        let (code, refusal) = refused(unary(channel, operation).await);
        assert_eq!((code, refusal.reason()), (Code::Aborted, Reason::PartlyApplied));
        assert_eq!(refusal.metadata["cause"], "PERMISSION_DENIED");
    }
}

#[tokio::test]
async fn a_namespace_older_than_a_removal_is_told_again_under_a_newer_version() {
    let served = usual().await;
    let (channel, fake) = (&served.channel, &served.fake);
    create(channel, "old", NamespaceSettings::default()).await;
    // Another one is declared, and the shards hear of it only after "old" is gone.
    fake.set_fault(|_, command| match &command.operation {
        Some(Command::ConfigureNamespace(it)) if it.namespace == "late" => Some(Reason::NoQuorum),
        _ => None,
    });
    let late = {
        let channel = channel.clone();
        tokio::spawn(async move {
            create(&channel, "late", NamespaceSettings { locks_max: 3, ..Default::default() }).await
        })
    };
    fake.logged(|operation| matches!(operation, Command::CreateNamespace(it) if it.name == "late"))
        .await;
    delete(channel, "old").await.unwrap();
    fake.clear_fault();
    let Outcome::CreateNamespace(created) = late.await.unwrap() else { panic!("it is declared") };
    let got = get(channel, "late").await.unwrap();
    assert!(got.in_force, "{got:?}");
    assert_eq!(got.namespace, created.namespace);
    assert!(got.namespace.unwrap().version > 3, "declared as 2, removed as 3");
}

#[tokio::test]
async fn undeclared_namespaces_are_refused_everywhere_when_the_policy_says_so() {
    let served = usual().await;
    let channel = &served.channel;
    let policy = |unknown: UnknownNamespaces| {
        let unknown = unknown.into();
        Operation::SetNamespacePolicy(api::SetNamespacePolicyRequest {
            unknown,
            ..Default::default()
        })
    };
    let used = |namespace: &'static str| async move {
        let mut reasons = Vec::new();
        for n in 0..20 {
            let namespace = namespace.to_owned();
            let mut put = put(&format!("key-{n}"), "v");
            put.namespace.clone_from(&namespace);
            let mut enqueue = enqueue("q", vec![message("k", "v")]);
            enqueue.namespace = namespace;
            for operation in [Operation::Put(put), Operation::Enqueue(enqueue)] {
                let end = unary(channel, operation).await;
                reasons.push(end.is_err().then(|| refused(end).1.reason()));
            }
        }
        reasons.push(open(channel, namespace).await.err().map(|refusal| refusal.reason()));
        reasons.dedup();
        reasons
    };
    assert_eq!(used("before").await, [None]);
    unary(channel, policy(UnknownNamespaces::Refused)).await.unwrap();
    assert_eq!(used("other").await, [Some(Reason::UnknownNamespace)]);
    assert_eq!(used("default").await, [None]);
    create(channel, "declared", NamespaceSettings::default()).await;
    assert_eq!(used("declared").await, [None]);
    let shown = unary(channel, Operation::GetNamespacePolicy(api::GetNamespacePolicyRequest {}));
    let Outcome::GetNamespacePolicy(shown) = shown.await.unwrap() else { panic!("it is shown") };
    assert_eq!((shown.unknown(), shown.in_force), (UnknownNamespaces::Refused, true));
    unary(channel, policy(UnknownNamespaces::Created)).await.unwrap();
    assert_eq!(used("other").await, [None]);
}

#[tokio::test]
async fn a_namespace_says_whether_the_first_use_of_a_queue_creates_it() {
    let served = usual().await;
    let channel = &served.channel;
    let mut settings = NamespaceSettings { queues_max: 1, ..Default::default() };
    create(channel, "a", settings).await;
    settings.set_queue_creation(QueueCreation::Refused);
    create(channel, "b", settings).await;
    let enqueue = |namespace: &str, queue: &str| {
        let mut enqueue = enqueue(queue, vec![message("k", "v")]);
        namespace.clone_into(&mut enqueue.namespace);
        unary(channel, Operation::Enqueue(enqueue))
    };
    enqueue("a", "one").await.unwrap();
    let refusal = refused(enqueue("a", "two").await).1;
    assert_eq!(
        (refusal.reason(), &*refusal.metadata["limit"]),
        (Reason::LimitReached, "queues_max")
    );
    assert_eq!(refused(enqueue("b", "one").await).1.reason(), Reason::UnknownQueue);
    assert_eq!(get(channel, "a").await.unwrap().usage.unwrap().queues, 1);
    assert_eq!(delete(channel, "a").await.unwrap_err().metadata["queues"], "1");
}
