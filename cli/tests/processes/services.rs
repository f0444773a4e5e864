//! A fresh cluster serves all three services, through the client and through the command line.

use std::time::{Duration, Instant};

use serde_json::Value as Json;
use trefoil_client::proto::cluster::v1::StatusRequest;
use trefoil_client::proto::cluster::v1::cluster_service_client::ClusterServiceClient;
use trefoil_client::proto::queue::v1::queue_service_client::QueueServiceClient;
use trefoil_client::proto::queue::v1::{DequeueRequest, EnqueueRequest};
use trefoil_client::{Guard, LineState, Message, Reason};

use crate::raw::channel;
use crate::support::{Cluster, eventually, run};

#[tokio::test]
async fn all_three_services_through_the_client() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;

    let cache = client.cache();
    let stored = cache.put("greeting", "hello").ttl(Duration::from_secs(60)).await.unwrap();
    assert_eq!(stored.state, LineState::Modified);
    let entry = cache.get("greeting").await.unwrap().expect("it was put");
    assert_eq!((entry.value.as_text(), entry.version), (Some("hello"), stored.version));
    assert!(entry.ttl.is_some_and(|ttl| ttl <= Duration::from_secs(60)));
    assert!(cache.delete("greeting").await.unwrap());
    assert!(!cache.delete("greeting").await.unwrap());
    assert_eq!(cache.get("greeting").await.unwrap(), None);

    let session = client.session(Duration::from_secs(5)).owner("first").await.unwrap();
    let other = client.session(Duration::from_secs(5)).owner("second").await.unwrap();
    let guard = session.lock("printer").acquire().await.unwrap().expect("it is free");
    assert!(other.lock("printer").acquire().await.unwrap().is_none());
    let waiting = tokio::spawn(other.lock("printer").wait(Duration::from_secs(10)).acquire());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let token = guard.token();
    guard.release().await.unwrap();
    let second = waiting.await.unwrap().unwrap().expect("it was released");
    assert!(second.token() > token);
    second.release().await.unwrap();
    let wait = Duration::from_secs(10);
    let both = session.locks(["printer", "scanner"]).acquire().await.unwrap().expect("free");
    assert_eq!(other.locks(["tray", "scanner"]).acquire().await.unwrap().map(|_| ()), None);
    let waiting = tokio::spawn(other.locks(["tray", "scanner"]).wait(wait).acquire());
    tokio::time::sleep(Duration::from_millis(100)).await;
    let token = both.get("scanner").map(Guard::token);
    both.release().await.unwrap();
    let second = waiting.await.unwrap().unwrap().expect("all are released");
    assert!(second.get("scanner").map(Guard::token) > token && second.get("tray").is_some());
    second.release().await.unwrap();
    session.close().await.unwrap();
    let refused = client.locks().release(other.id(), "printer", 0).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::NotHolder));

    let queue = client.queue("jobs");
    assert!(queue.create(4).await.unwrap());
    assert!(!queue.create(4).await.unwrap());
    let clash = queue.create(5).await.unwrap_err();
    assert_eq!(clash.reason(), Some(Reason::QueueExists));
    let messages = (0..20).map(|n| {
        Message::new(format!("job {n}")).key(format!("key-{}", n % 5)).header("n", n.to_string())
    });
    let ids = queue.enqueue(messages).await.unwrap();
    assert_eq!(ids.len(), 20);
    let mut got = Vec::new();
    while got.len() < 20 {
        let deliveries = queue.dequeue().max(7).wait(Duration::from_secs(5)).await.unwrap();
        assert!(!deliveries.is_empty(), "{} of 20 came", got.len());
        for delivery in deliveries {
            assert_eq!(delivery.delivery_count(), 1);
            assert_eq!(
                delivery.value().as_text(),
                Some(format!("job {}", delivery.headers()["n"]).as_str())
            );
            delivery.ack().await.unwrap();
            got.push(delivery.message_id().to_owned());
        }
    }
    let mut sorted = (ids, got);
    sorted.0.sort();
    sorted.1.sort();
    assert_eq!(sorted.0, sorted.1);
    assert!(queue.dequeue().await.unwrap().is_empty());
}

#[tokio::test]
async fn leadership_moves_when_it_is_asked_for_and_calls_follow() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    client.cache().put("k", "v").await.unwrap();
    let header = client.cache().get("k").await.unwrap().unwrap().header;
    let leader = async || {
        let nodes = client.cluster().status().await;
        let shards = nodes.into_iter().filter_map(|node| node.status.ok()).flat_map(|node| {
            let id = node.header.map_or(0, |header| header.node_id);
            node.shards.into_iter().map(move |shard| (id, shard))
        });
        shards
            .filter(|(_, shard)| shard.shard == header.shard && shard.role == 2)
            .map(|(id, _)| id)
            .next()
    };
    let before = leader().await.expect("the shard has a leader");
    let after = before % 3 + 1;
    client.cluster().transfer_leader(header.shard, after).await.unwrap();
    eventually("the other node leads", async || leader().await == Some(after)).await;
    client.cache().put("k", "w").await.unwrap();
    let entry = client.cache().get("k").await.unwrap().unwrap();
    assert_eq!(entry.value.as_text(), Some("w"));
    assert!(entry.header.term > header.term);
}

#[tokio::test]
async fn all_three_services_through_the_command_line() {
    let cluster = Cluster::start().await;
    let json = |arguments: &[&str]| json(&cluster, arguments);

    let (code, put) = json(&["cache", "put", "k", "v", "--ttl", "60s"]);
    assert_eq!((code, put["version"].as_u64().is_some()), (0, true));
    let (code, get) = json(&["cache", "get", "k"]);
    assert_eq!((code, get["value"]["text"].as_str()), (0, Some("v")));
    assert_eq!(run(&cluster, &["cache", "get", "k", "--raw"]), (0, "v".to_owned(), String::new()));
    assert_eq!(json(&["cache", "delete", "k"]).0, 0);
    assert_eq!(json(&["cache", "get", "k"]).0, 2);

    assert_eq!(json(&["queue", "create", "q", "--partitions", "1"]).0, 0);
    let (code, enqueued) = json(&["queue", "enqueue", "q", "one", "two", "--key", "a"]);
    assert_eq!((code, enqueued["message_ids"].as_array().map(Vec::len)), (0, Some(2)));
    let (code, dequeued) = json(&["queue", "dequeue", "q", "--max", "5", "--wait", "5s"]);
    let deliveries = dequeued["deliveries"].as_array().unwrap();
    assert_eq!(
        (code, deliveries.len(), deliveries[0]["value"]["text"].as_str()),
        (0, 2, Some("one"))
    );
    for delivery in deliveries {
        assert_eq!(json(&["queue", "ack", "q", delivery["lease_id"].as_str().unwrap()]).0, 0);
    }
    assert_eq!(json(&["queue", "dequeue", "q"]).0, 2);

    let (code, held) = json(&["lock", "acquire", "l", "--ttl", "60s"]);
    assert_eq!(code, 0);
    assert_eq!(json(&["lock", "acquire", "l"]).0, 2);
    let (session, token) =
        (held["session_id"].as_str().unwrap().to_owned(), held["fencing_token"].to_string());
    assert_eq!(json(&["lock", "release", "l", "--session", &session, "--token", &token]).0, 0);
    let (code, again) = json(&["lock", "acquire", "l"]);
    assert!(
        code == 0 && again["fencing_token"].as_u64() > held["fencing_token"].as_u64(),
        "{again}"
    );

    let (code, status) = json(&["status"]);
    assert_eq!((code, status["nodes"].as_array().map(Vec::len)), (0, Some(3)));
    assert_eq!(status["shards"].as_array().map(Vec::len), Some(7));
    // On a busy machine a shard may be electing its leader just now.
    eventually("the node is healthy", async || json(&["health"]).0 == 0).await;
    let (code, ping) = json(&["bench", "ping", "--count", "50", "--concurrency", "4"]);
    assert_eq!((code, ping["cluster"]["successes"].as_u64()), (0, Some(150)));
    assert_eq!(ping["nodes"].as_array().map(Vec::len), Some(3));
}

#[tokio::test]
async fn locks_are_shared_converted_shown_and_taken_away_through_the_command_line() {
    let cluster = Cluster::start().await;
    let json = |arguments: &[&str]| json(&cluster, arguments);
    let (code, reader) =
        json(&["lock", "acquire", "page", "--mode", "shared", "--metadata", "host=a1,version=2"]);
    assert_eq!((code, reader["mode"].as_str()), (0, Some("shared")));
    let (code, updater) = json(&["lock", "acquire", "page", "--mode", "update"]);
    assert_eq!(code, 0);
    let (code, listed) = json(&["lock", "list", "p"]);
    let names = listed["locks"].as_array().unwrap().iter().map(|lock| lock["name"].as_str());
    assert_eq!((code, names.collect::<Vec<_>>()), (0, vec![Some("page")]));
    let (code, described) = json(&["lock", "describe", "page"]);
    assert_eq!(
        (code, described["holders"][1]["owner"].as_str()),
        (0, Some("trefoil lock acquire"))
    );
    let (code, sessions) = json(&["lock", "sessions"]);
    assert!(code == 0 && sessions["sessions"].as_array().unwrap().len() >= 2, "{sessions}");
    let session = |held: &Json| held["session_id"].as_str().unwrap().to_owned();
    let (code, got) = json(&["lock", "session", &session(&reader)]);
    let metadata = &got["session"]["metadata"];
    assert_eq!(
        (code, metadata["host"].as_str(), metadata["version"].as_str()),
        (0, Some("a1"), Some("2"))
    );
    let (_, table, _) = run(&cluster, &["lock", "sessions"]);
    assert!(table.contains("host=a1 version=2"), "{table}");
    let convert = ["lock", "convert", "page", "exclusive", "--session", &session(&updater)];
    assert_eq!(json(&convert).0, 2);
    let (code, released) = json(&["lock", "release", "--all", "--session", &session(&reader)]);
    assert_eq!((code, released["released"].as_u64()), (0, Some(1)));
    let (code, converted) = json(&convert);
    assert_eq!((code, converted["mode"].as_str()), (0, Some("exclusive")));
    let (code, got) = json(&["lock", "session", &session(&updater)]);
    assert_eq!((code, got["locks"][0]["mode"].as_str()), (0, Some("exclusive")));
    let token = converted["fencing_token"].to_string();
    let (code, valid) = json(&["lock", "validate", "page", &token]);
    assert_eq!((code, valid["holder"]["mode"].as_str()), (0, Some("exclusive")));
    let (code, forced) = json(&["lock", "force-release", "page"]);
    assert_eq!((code, forced["released"].as_u64()), (0, Some(1)));
    assert!(forced["fencing_token"].as_u64() > converted["fencing_token"].as_u64());
    assert_eq!(json(&["lock", "validate", "page", &token]).0, 2);
    let (code, again) = json(&["lock", "acquire", "page", "--lock-delay", "2s"]);
    assert_eq!((code, again["mode"].as_str()), (0, Some("exclusive")));
    let (code, deadlocks) = json(&["lock", "deadlocks"]);
    assert_eq!((code, deadlocks["deadlocks"].as_array().map(Vec::len)), (0, Some(0)));
    for shown in [&["lock", "describe", "page"][..], &["lock", "session", &session(&again)]] {
        let (code, text, _) = run(&cluster, shown);
        assert!(code == 0 && text.contains("exclusive"), "{text}");
    }
}

/// What a command writes as JSON, and its exit code.
pub(crate) fn json(cluster: &Cluster, arguments: &[&str]) -> (i32, Json) {
    let (code, out, err) = run(cluster, &[arguments, &["-o", "json"]].concat());
    let json = serde_json::from_str(&out).unwrap_or_else(|_| panic!("{arguments:?}: {out}{err}"));
    (code, json)
}

#[tokio::test]
async fn namespaces_are_declared_shown_and_removed_through_the_command_line() {
    let cluster = Cluster::start().await;
    let json = |arguments: &[&str]| json(&cluster, arguments);
    let create = ["namespace", "create", "a", "--sessions-max", "1", "--session-ttl-max", "30s"];
    let (code, created) = json(&create);
    assert_eq!((code, created["sessions_max"].as_u64()), (0, Some(1)));
    let (code, updated) = json(&["namespace", "update", "a", "--queue-creation", "refused"]);
    assert_eq!((code, updated["queue_creation"].as_str()), (0, Some("refused")));
    assert_eq!(updated["session_ttl_ms_max"].as_u64(), Some(30_000), "what was not said stays");
    let refused = |arguments: &[&str]| run(&cluster, &[&["--namespace", "a"], arguments].concat());
    assert_eq!(refused(&["lock", "acquire", "l", "--ttl", "30s"]).0, 0);
    let (code, _, error) = refused(&["lock", "acquire", "l", "--ttl", "30s"]);
    assert!(code == 1 && error.contains("sessions_max of 1 is reached"), "{error}");
    let (code, _, error) = refused(&["queue", "enqueue", "q", "one"]);
    assert!(code == 1 && error.contains("UNKNOWN_QUEUE"), "{error}");
    let (code, got) = json(&["namespace", "get", "a"]);
    let shown = (got["usage"]["sessions"].as_u64(), got["in_force"].as_bool());
    assert_eq!((code, shown), (0, (Some(1), Some(true))));
    let (code, _, error) = run(&cluster, &["namespace", "delete", "a"]);
    assert!(code == 1 && error.contains("NAMESPACE_IN_USE"), "{error}");
    assert_eq!(json(&["namespace", "create", "b"]).0, 0);
    let (code, listed) = json(&["namespace", "list"]);
    let names = listed["namespaces"].as_array().unwrap().iter().map(|of| of["name"].as_str());
    assert_eq!((code, names.collect::<Vec<_>>()), (0, vec![Some("a"), Some("b")]));
    let (_, table, _) = run(&cluster, &["namespace", "list"]);
    assert!(table.starts_with("NAMESPACE  VERSION"), "{table}");
    assert_eq!(json(&["namespace", "delete", "b"]).0, 0);
    assert_eq!(run(&cluster, &["namespace", "get", "b"]).0, 1);
    let (code, policy) = json(&["namespace", "policy", "refused"]);
    assert_eq!((code, policy["in_force"].as_bool()), (0, Some(true)));
    let (code, _, error) = run(&cluster, &["--namespace", "b", "cache", "put", "k", "v"]);
    assert!(code == 1 && error.contains("UNKNOWN_NAMESPACE"), "{error}");
    assert_eq!(json(&["namespace", "policy", "created"]).0, 0);
    assert_eq!(run(&cluster, &["--namespace", "b", "cache", "put", "k", "v"]).0, 0);
}

#[tokio::test]
async fn what_no_node_would_read_is_refused_by_the_client_at_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let began = Instant::now();
    let refused = client.cache().put("k", vec![0; 3 << 20]).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::InvalidField));
    assert!(refused.has_no_side_effects() && refused.to_string().contains("1572864"), "{refused}");
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_consumer_may_come_before_its_queue_at_another_node() {
    let cluster = Cluster::start().await;
    let connect = |node: usize| QueueServiceClient::new(channel(&cluster.nodes[node]));
    let (mut consumer, mut producer) = (connect(1), connect(0));
    let queue = "early".to_owned();
    let dequeue = DequeueRequest { queue: queue.clone(), wait_ms: 20_000, ..Default::default() };
    let store = async {
        tokio::time::sleep(Duration::from_millis(1_200)).await;
        let messages = vec![Message::new("first").into()];
        let request = EnqueueRequest { queue, messages, ..EnqueueRequest::default() };
        let stored = producer.enqueue(request).await.unwrap().into_inner();
        (Instant::now(), stored.message_ids)
    };
    let (taken, (stored, ids)) = tokio::join!(consumer.dequeue(dequeue), store);
    let taken = taken.unwrap().into_inner();
    assert_eq!(taken.deliveries[0].message_id, ids[0]);
    assert!(stored.elapsed() < Duration::from_secs(2), "{:?}", stored.elapsed());
}

#[tokio::test]
async fn a_node_gathers_the_status_of_the_others() {
    let mut cluster = Cluster::start().await;
    let ask = async |all_nodes: bool| {
        let mut node = ClusterServiceClient::new(channel(&cluster.nodes[0]));
        node.status(StatusRequest { all_nodes }).await.unwrap().into_inner()
    };
    assert!(ask(false).await.others.is_empty());
    let others = ask(true).await.others;
    let names = others.iter().map(|other| other.status.as_ref().unwrap().node_name.as_str());
    assert_eq!(names.collect::<Vec<_>>(), ["n2", "n3"]);
    assert!(others.iter().all(|other| other.status.as_ref().unwrap().shards.len() == 7));

    // However many ask at once, a peer is asked over one connection: its port has few for all.
    let node = ClusterServiceClient::new(channel(&cluster.nodes[0]));
    let mut asks = tokio::task::JoinSet::new();
    for _ in 0..500 {
        let mut node = node.clone();
        asks.spawn(async move { node.status(StatusRequest { all_nodes: true }).await });
    }
    for said in asks.join_all().await {
        let others = said.unwrap().into_inner().others;
        assert!(others.iter().all(|other| other.status.is_some()), "{others:?}");
    }
    let log = std::fs::read_to_string(cluster.dir().join("n1.log")).unwrap();
    assert!(!log.contains("lost a peer"), "{log}");

    // Where its client reaches the first node alone, it is shown all three.
    let (code, said) = json(&cluster, &["status", "--endpoints", &cluster.nodes[0].endpoint()]);
    let nodes = said["nodes"].as_array().unwrap();
    assert_eq!((code, nodes.len()), (0, 3), "{said}");

    cluster.nodes[2].kill();
    let mut node = ClusterServiceClient::new(channel(&cluster.nodes[0]));
    let began = Instant::now();
    let others = node.status(StatusRequest { all_nodes: true }).await.unwrap().into_inner().others;
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
    assert!(others[0].status.is_some() && others[1].status.is_none(), "{others:?}");
    assert!(!others[1].error.is_empty());
}
