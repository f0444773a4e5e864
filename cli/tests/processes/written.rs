//! What commands write: nothing is settled that was not written, all that was stored is told, and none of it reaches a
//! terminal as more than text.

use std::fs::OpenOptions;
use std::io::Write as _;
use std::process::Stdio;

use trefoil_client::Message;

use crate::services::json;
use crate::support::{Cluster, run, trefoil};

#[tokio::test]
async fn what_cannot_be_written_is_not_acknowledged() {
    let cluster = Cluster::start().await;
    let queue = cluster.client().await.queue("q");
    queue.create(1).await.unwrap();
    queue.enqueue([Message::new("kept")]).await.unwrap();
    let take = ["queue", "dequeue", "q", "--ack", "--lease", "1s", "--wait", "10s"];

    let full = || Stdio::from(OpenOptions::new().write(true).open("/dev/full").unwrap());
    let output = trefoil(&cluster, &take).stdout(full()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("cannot write to standard output"), "{error}");

    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let output = trefoil(&cluster, &take).stdout(writer).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("were not acknowledged"), "{error}");

    let output = trefoil(&cluster, &[&take[..], &["--raw"]].concat()).output().unwrap();
    assert_eq!((output.status.code(), &output.stdout[..]), (Some(0), &b"kept"[..]));
    assert_eq!(json(&cluster, &["queue", "dequeue", "q", "--wait", "1500ms"]).0, 2, "it is gone");
}

#[tokio::test]
async fn each_lease_has_a_result_whatever_becomes_of_the_others() {
    let cluster = Cluster::start().await;
    let queue = cluster.client().await.queue("q");
    queue.create(1).await.unwrap();
    queue.enqueue(["one", "two"].map(Message::new)).await.unwrap();
    let deliveries = queue.dequeue().max(2).await.unwrap();
    let (first, last) = (deliveries[0].lease_id(), deliveries[1].lease_id());
    let (code, settled) = json(&cluster, &["queue", "ack", "q", first, "bad", last]);
    let results = settled["results"].as_array().unwrap();
    let told = results.iter().map(|result| result["acknowledged"].as_bool().unwrap());
    assert_eq!((code, told.collect::<Vec<_>>()), (1, vec![true, false, true]));
    assert_eq!(results[1]["lease_id"], "bad");
    assert!(results[1]["error"].as_str().unwrap().contains("lease_id"), "{settled}");
    assert!(queue.dequeue().await.unwrap().is_empty());
}

#[tokio::test]
async fn bytes_are_told_whole_and_control_characters_move_no_cursor() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let evil = "a\u{1b}[2J\u{9b}\nb";
    client.cache().put("text", evil).await.unwrap();
    client.cache().put("bytes", vec![b'a', 0xff]).await.unwrap();
    let (code, text, _) = run(&cluster, &["cache", "get", "text"]);
    assert_eq!((code, text.contains(r"a\u{1b}[2J\u{9b}\nb")), (0, true), "{text}");
    assert_eq!(json(&cluster, &["cache", "get", "text"]).1["value"]["text"], evil);
    assert_eq!(json(&cluster, &["cache", "get", "bytes"]).1["value"]["data"], "Yf8=");
    assert_eq!(run(&cluster, &["cache", "get", "text", "--raw"]).1, evil);

    let session = client.session(std::time::Duration::from_secs(60)).owner(evil).await;
    let session = session.unwrap();
    let _guard = session.lock("l\u{1b}[31m").acquire().await.unwrap().unwrap();
    let _leads = session.election("e").value(evil).campaign().await.unwrap();
    client.queue("q").create(1).await.unwrap();
    client.queue("q").enqueue([Message::new(evil).key(evil)]).await.unwrap();
    for command in [
        &["lock", "list"][..],
        &["lock", "sessions"],
        &["lock", "session", &session.id().to_string()],
        &["lock", "describe", "l\u{1b}[31m"],
        &["election", "leader", "e"],
        &["queue", "dequeue", "q"],
        &["queue", "create", "no\u{1b}[31m", "--partitions", "9999"],
    ] {
        let (_, text, error) = run(&cluster, command);
        let raw = |c: char| c.is_control() && c != '\n';
        assert!(!text.contains(raw) && !error.contains(raw), "{command:?}: {text:?} {error:?}");
    }
}

#[tokio::test]
async fn standard_input_is_one_value_and_no_longer_than_that() {
    let cluster = Cluster::start().await;
    let put = |bytes: usize| {
        let mut child = trefoil(&cluster, &["cache", "put", "k", "-"]);
        let mut child = child.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        // Whoever has read enough closes the pipe.
        child.stdin.take().unwrap().write_all(&vec![b'x'; bytes]).ok();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8(output.stderr).unwrap())
    };
    let most = trefoil_core::limits::VALUE_BYTES_MAX;
    assert_eq!(put(most).0, Some(0));
    let (code, error) = put(8 * most);
    assert!(code == Some(64) && error.contains("1048576 bytes"), "{code:?} {error}");
    for wrong in
        [&["queue", "enqueue", "q", "-", "-"][..], &["cache", "put", "k", "v", "--ttl", "0s"]]
    {
        assert_eq!(run(&cluster, wrong).0, 64, "{wrong:?}");
    }
}
