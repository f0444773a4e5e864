//! Starts that are refused: at once, with a line that says what to do and an exit code.

use std::fs;
use std::process::Command;

use crate::support::{Cluster, Node, TREFOIL, clean};

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
async fn a_directory_that_is_not_its_own_is_refused_with_what_to_do() {
    let mut cluster = Cluster::start().await;
    let refused = |node: &Node, flags: &[(&str, &str)], because: &str| {
        let (code, error) = node.start_refused(flags);
        assert_eq!(code, Some(1), "{error}");
        assert!(error.contains(because), "{because}: {error}");
    };
    let elsewhere = ("127.0.0.1:0", "127.0.0.1:0");
    let beside = [("--listen", elsewhere.0), ("--peer-listen", elsewhere.1)];
    refused(&cluster.nodes[0], &beside, "is in use by another process");
    refused(&cluster.nodes[0], &[], "stop the process that has it, or choose another");

    let own = cluster.nodes[0].data_dir.clone();
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    let of_first = ("--data-dir", own.to_str().unwrap());
    refused(&cluster.nodes[1], &[beside[0], beside[1], of_first], "belongs to node n1");
    refused(&cluster.nodes[0], &[("--shards", "3")], "was made with --shards 6, not 3");
    refused(&cluster.nodes[0], &[("--services", "lock")], "--services");
    refused(&cluster.nodes[0], &[("--cluster-token", "other")], "belongs to cluster");

    // Emptied: it may have voted and acknowledged with what is gone.
    let saved = own.with_extension("saved");
    fs::rename(&own, &saved).unwrap();
    refused(&cluster.nodes[0], &[], "knows this node by another data directory");

    fs::remove_dir_all(&own).unwrap();
    fs::rename(&saved, &own).unwrap();
    cluster.nodes[0].start();
    cluster.ready().await;
}
