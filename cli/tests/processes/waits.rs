//! Elections, latches and barriers on real nodes, of which the one that leads is killed while they wait; waits that would
//! never end.

use std::time::{Duration, Instant};

use trefoil_client::{Client, Error, Reason};

use crate::services::json;
use crate::support::{Cluster, eventually, run};

const WAIT: Duration = Duration::from_secs(60);

/// Which node leads the shard of the namespace's locks.
pub(crate) async fn leading(client: &Client) -> usize {
    let header = client.locks().barrier("b").await.unwrap().header.unwrap();
    let nodes = client.cluster().status().await;
    let shards = nodes.into_iter().filter_map(|node| node.status.ok()).flat_map(|node| {
        let id = node.header.map_or(0, |header| header.node_id);
        node.shards.into_iter().map(move |shard| (id, shard))
    });
    let mut led = shards.filter(|(_, shard)| shard.shard == header.shard && shard.role == 2);
    usize::try_from(led.next().expect("the shard has a leader").0).unwrap() - 1
}

#[tokio::test]
async fn what_waits_outlives_the_node_that_leads() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client().await;
    let open = async |owner: &str| client.session(WAIT).owner(owner).await.unwrap();
    let (one, other) = (open("one").await, open("other").await);

    let leadership = one.election("e").value("at one").campaign().await.unwrap().expect("free");
    let mut observation = client.locks().observe("e");
    let mut sees = async || {
        let leader = observation.next().await.unwrap();
        leader.map(|leader| leader.value.as_text().unwrap_or_default().to_owned())
    };
    assert_eq!(sees().await.as_deref(), Some("at one"));
    let latch = client.locks().latch("t");
    latch.set(1).await.unwrap();
    let next = tokio::spawn(other.election("e").value("at other").wait(WAIT).campaign());
    let opens = tokio::spawn({
        let latch = latch.clone();
        async move { latch.wait(WAIT).await }
    });
    let enters = tokio::spawn({
        let barrier = one.barrier("b", 2);
        async move { barrier.enter(WAIT).await }
    });
    eventually("all of them wait", async || {
        let there = client.locks().barrier("b").await.unwrap().barrier.unwrap().present;
        there == 1 && client.locks().describe("e").await.unwrap().waiter_count == 1
    })
    .await;

    let killed = leading(&client).await;
    cluster.nodes[killed].kill();
    leadership.proclaim("still at one").await.unwrap();
    assert_eq!(sees().await.as_deref(), Some("still at one"));
    let leader = client.locks().leader("e").await.unwrap().expect("its session lives");
    assert_eq!((leader.value.as_text(), leader.token), (Some("still at one"), leadership.token()));

    assert_eq!(latch.count_down(1).await.unwrap(), 0);
    assert!(opens.await.unwrap().unwrap(), "the wait saw it");
    let second = other.barrier("b", 2).enter(WAIT).await.unwrap().expect("both are there");
    let first = enters.await.unwrap().unwrap().expect("both are there");
    assert_eq!(first.round(), second.round());
    let leaves = tokio::spawn(first.leave(WAIT));
    assert!(second.leave(WAIT).await.unwrap() && leaves.await.unwrap().unwrap());

    let token = leadership.token();
    leadership.resign().await.unwrap();
    let next = next.await.unwrap().unwrap().expect("it was its turn");
    assert!(next.token() > token);
    let leader = client.locks().leader("e").await.unwrap().expect("the next one leads");
    assert_eq!((leader.value.as_text(), leader.owner.as_str()), (Some("at other"), "other"));
    assert_eq!(sees().await.as_deref(), Some("at other"));
    other.close().await.unwrap();
    assert_eq!(sees().await, None);
    assert_eq!(client.locks().leader("e").await.unwrap(), None);
    let refused = next.proclaim("late").await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::SessionExpired));
}

#[tokio::test]
async fn elections_latches_and_barriers_through_the_command_line() {
    let cluster = Cluster::start().await;
    let json = |arguments: &[&str]| json(&cluster, arguments);
    assert_eq!(json(&["election", "leader", "e"]).0, 2);
    let (code, led) = json(&["election", "campaign", "e", "here", "--ttl", "60s"]);
    assert_eq!((code, led["elected"].as_bool()), (0, Some(true)));
    assert_eq!(json(&["election", "campaign", "e", "there"]).0, 2);
    let (session, token) =
        (led["session_id"].as_str().unwrap().to_owned(), led["fencing_token"].to_string());
    let of_it = ["--session", &session, "--token", &token];
    assert_eq!(json(&[&["election", "proclaim", "e", "moved"], &of_it[..]].concat()).0, 0);
    let (code, leader) = json(&["election", "leader", "e"]);
    assert_eq!((code, leader["leader"]["value"]["text"].as_str()), (0, Some("moved")));
    assert_eq!(run(&cluster, &["election", "leader", "e", "--raw"]).1, "moved");
    assert_eq!(json(&[&["election", "resign", "e"], &of_it[..]].concat()).0, 0);

    let (code, set) = json(&["latch", "set", "t", "2"]);
    assert_eq!((code, set["round"].as_u64().is_some()), (0, true));
    assert_eq!(run(&cluster, &["latch", "set", "t", "2"]).0, 1, "it counts down");
    assert_eq!(json(&["latch", "wait", "t", "--wait", "100ms"]).0, 2);
    let (code, counted) = json(&["latch", "count-down", "t", "--by", "7"]);
    assert_eq!((code, counted["count"].as_u64()), (0, Some(0)));
    assert_eq!(json(&["latch", "wait", "t"]).0, 0);
    assert_eq!(json(&["latch", "list"]).1["latches"][0]["set_count"], 2);
    assert_eq!(json(&["latch", "delete", "t"]).0, 0);
    assert_eq!(run(&cluster, &["latch", "get", "t"]).0, 1, "it is gone");

    assert_eq!(json(&["barrier", "enter", "b", "2", "--wait", "100ms"]).0, 2);
    let (code, entered) = json(&["barrier", "enter", "b", "1", "--ttl", "60s"]);
    assert_eq!((code, entered["entered"].as_bool()), (0, Some(true)));
    let (session, round) =
        (entered["session_id"].as_str().unwrap().to_owned(), entered["round"].to_string());
    let (_, got) = json(&["barrier", "get", "b"]);
    assert_eq!(
        (got["barrier"]["leaving"].as_bool(), got["sessions"].as_array().map(Vec::len)),
        (Some(true), Some(1))
    );
    let leave = ["barrier", "leave", "b", "--session", &session, "--round", &round];
    let (code, left) = json(&leave);
    assert_eq!((code, left["all_left"].as_bool()), (0, Some(true)));
}

#[tokio::test]
async fn who_closes_a_circle_is_told_all_of_it_at_once() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let open = async |owner: &str| client.session(WAIT).owner(owner).await.unwrap();
    let (one, other) = (open("one").await, open("other").await);
    let take = async |session: &trefoil_client::Session, name| {
        session.lock(name).wait(WAIT).acquire().await
    };
    let _a = take(&one, "a").await.unwrap().expect("free");
    let b = take(&other, "b").await.unwrap().expect("free");
    let waits = tokio::spawn(one.lock("b").wait(WAIT).acquire());
    eventually("the first one waits", async || {
        client.locks().describe("b").await.unwrap().waiter_count == 1
    })
    .await;

    let begun = Instant::now();
    let refused = take(&other, "a").await.unwrap_err();
    let took = begun.elapsed();
    println!("refused after {took:?}: {refused}");
    assert!(took < WAIT / 10, "it did not wait");
    let Error::Refused { reason: Reason::Deadlock, metadata, .. } = refused else {
        panic!("{refused}")
    };
    let fact = |edge: u8, name: &str| metadata[&format!("edge_{edge}_{name}")].as_str();
    let edge = |n| ["session_id", "lock", "mode", "waits_for", "held_mode"].map(|f| fact(n, f));
    let (one_id, other_id) = (one.id().to_string(), other.id().to_string());
    assert_eq!(edge(0), [&other_id, "a", "EXCLUSIVE", &one_id, "EXCLUSIVE"]);
    assert_eq!(edge(1), [&one_id, "b", "EXCLUSIVE", &other_id, "EXCLUSIVE"]);
    assert!([0, 1].into_iter().all(|n| fact(n, "held_ms").parse::<u64>().is_ok()));
    assert_eq!(client.locks().deadlocks().await.unwrap().len(), 1);

    b.release().await.unwrap();
    assert!(waits.await.unwrap().unwrap().is_some(), "the other one goes on");
}
