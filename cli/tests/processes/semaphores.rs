//! Permits of a semaphore through the client and through the command line.

use std::time::Duration;

use trefoil_client::Reason;

use crate::services::json;
use crate::support::{Cluster, eventually, run};

const WAIT: Duration = Duration::from_secs(20);

#[tokio::test]
async fn permits_are_shared_in_order_and_come_back() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let semaphore = client.locks().semaphore("workers");
    let missing = semaphore.describe().await.unwrap_err();
    assert_eq!(missing.reason(), Some(Reason::UnknownSemaphore));
    assert_eq!(semaphore.set(3).await.unwrap(), 0);

    let open = async || client.session(Duration::from_secs(10)).await.unwrap();
    let (first, many, few) = (open().await, open().await, open().await);
    let held = first.semaphore("workers").permits(2).acquire().await.unwrap().expect("it is free");
    let many = tokio::spawn(many.semaphore("workers").permits(3).wait(WAIT).acquire());
    let waiting = async || semaphore.describe().await.unwrap().waiters.len();
    eventually("the first one waits", async || waiting().await == 1).await;
    let few = tokio::spawn(few.semaphore("workers").wait(WAIT).acquire());
    eventually("the second one waits", async || waiting().await == 2).await;
    let wrong = first.semaphore("workers").permits(1).acquire().await.unwrap_err();
    assert_eq!(wrong.reason(), Some(Reason::PermitsHeld));

    // A permit's token passes as a fence, and its holders do not shut each other out.
    client.cache().with_fence(&held).put("k", "v").await.unwrap();
    let token = held.token();
    drop(held);
    let many = many.await.unwrap().unwrap().expect("all three are free");
    assert!(many.token() > token && many.permits() == 3 && !few.is_finished());
    client.cache().with_fence(&many).put("k", "w").await.unwrap();
    many.release().await.unwrap();
    let few = few.await.unwrap().unwrap().expect("one is free");
    assert_eq!(semaphore.describe().await.unwrap().semaphore.unwrap().in_use, 1);
    few.release().await.unwrap();
    semaphore.delete().await.unwrap();
}

#[tokio::test]
async fn semaphores_through_the_command_line() {
    let cluster = Cluster::start().await;
    let json = |arguments: &[&str]| json(&cluster, arguments);

    let (code, set) = json(&["semaphore", "set", "s", "3"]);
    assert_eq!((code, set["permits_before"].as_u64()), (0, Some(0)));
    let (code, held) = json(&["semaphore", "acquire", "s", "2", "--ttl", "60s", "--owner", "one"]);
    assert_eq!((code, held["permits"].as_u64()), (0, Some(2)));
    let (code, missed) = json(&["semaphore", "acquire", "s", "2"]);
    assert_eq!((code, missed["acquired"].as_bool()), (2, Some(false)));
    let (code, shown) = json(&["semaphore", "describe", "s"]);
    assert_eq!((code, shown["in_use"].as_u64()), (0, Some(2)));
    assert_eq!(shown["holders"][0]["owner"].as_str(), Some("one"));
    let (code, text, _) = run(&cluster, &["semaphore", "list"]);
    let lines = text.lines().map(|line| line.split_whitespace().collect::<Vec<_>>());
    let expected = [
        vec!["SEMAPHORE", "PERMITS", "IN", "USE", "HOLDERS", "WAITERS"],
        vec!["s", "3", "2", "1", "0"],
    ];
    assert_eq!((code, lines.collect::<Vec<_>>()), (0, expected.to_vec()));
    let (session, token) =
        (held["session_id"].as_str().unwrap().to_owned(), held["fencing_token"].to_string());
    assert_ne!(run(&cluster, &["semaphore", "delete", "s"]).0, 0);
    let release = ["semaphore", "release", "s", "--session", &session, "--token", &token];
    assert_eq!(json(&release).0, 0);
    let (code, again) = json(&["semaphore", "acquire", "s"]);
    let token = again["fencing_token"].to_string();
    assert_eq!((code, again["permits"].as_u64()), (0, Some(1)));
    let (code, forced) = json(&["semaphore", "force-release", "s", "--token", &token]);
    assert_eq!((code, forced["released"].as_u64()), (0, Some(1)));
    assert_eq!(json(&["semaphore", "delete", "s"]).0, 0);
}
