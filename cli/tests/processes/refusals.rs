//! Starts that are refused: at once, with a line that says what to do and an exit code.

use std::fs;
use std::process::Command;

use crate::support::{Cluster, TREFOIL, clean};

#[test]
fn wrong_usage_exits_with_64_and_names_the_flag() {
    let cases: [(&[&str], &str); 6] = [
        (&["serve"], "--name"),
        (
            &["serve", "--name", "n1", "--initial-cluster", "n2=127.0.0.1:1", "--data-dir", "d"],
            "n1",
        ),
        (&["serve", "--listen", "nowhere"], "--listen"),
        (&["cache", "get", "k", "--timeout", "5"], "--timeout"),
        (&["queue", "enqueue"], "<QUEUE>"),
        (&["no-such-command"], "no-such-command"),
    ];
    for (arguments, named) in cases {
        let mut command = Command::new(TREFOIL);
        let output = clean(&mut command).args(arguments).output().unwrap();
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(64), "{arguments:?}: {error}");
        assert!(error.contains(named), "{arguments:?}: {error}");
    }
}

#[test]
fn nobody_there_is_told_with_what_to_do() {
    let mut command = Command::new(TREFOIL);
    let output = clean(&mut command)
        .args(["cache", "get", "k", "--endpoints", "127.0.0.1:1"])
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("trefoil dev") && error.contains("--endpoints"), "{error}");
}

#[tokio::test]
async fn another_directory_than_its_own_is_refused() {
    let mut cluster = Cluster::start().await;

    // A second process on the directory of a running node.
    let (status, error) = cluster.nodes[0].start_refused(&[
        "--listen",
        "127.0.0.1:0",
        "--peer-listen",
        "127.0.0.1:0",
    ]);
    assert_ne!(status.code(), Some(0), "{error}");
    assert!(error.contains("in use"), "{error}");

    // The directory of another node.
    let first = cluster.nodes[0].data_dir.clone();
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    let other = cluster.nodes[1].start_refused(&["--data-dir", first.to_str().unwrap()]);
    assert_ne!(other.0.code(), Some(0), "{}", other.1);

    // What is fixed when a cluster is formed.
    let shards = cluster.nodes[0].start_refused(&["--shards", "3"]);
    assert_ne!(shards.0.code(), Some(0), "{}", shards.1);
    assert!(shards.1.contains("shards"), "{}", shards.1);

    // An emptied directory of a formed cluster.
    fs::remove_dir_all(&first).unwrap();
    let (status, error) = cluster.nodes[0].start_refused(&[]);
    assert_ne!(status.code(), Some(0), "{error}");
}
