//! Starts that are refused: at once, with a line that says what to do and an exit code.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use tokio::time::sleep;

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
    refused(&cluster.nodes[0], &[("--cluster-token", "other")], "belongs to another cluster");

    // Emptied: it may have voted and acknowledged with what is gone.
    let saved = own.with_extension("saved");
    fs::rename(&own, &saved).unwrap();
    refused(&cluster.nodes[0], &[], "knows this node by another data directory");

    fs::remove_dir_all(&own).unwrap();
    fs::rename(&saved, &own).unwrap();
    cluster.nodes[0].start();
    cluster.ready().await;
}

#[tokio::test]
async fn a_disk_that_cannot_be_trusted_is_refused_with_74() {
    let mut cluster = Cluster::start().await;
    assert_eq!(cluster.nodes[0].stop().code(), Some(0));
    let own = cluster.nodes[0].data_dir.clone();
    let spoil = |file: &Path, how: &dyn Fn(&mut Vec<u8>), because: &[&str]| {
        let saved = fs::read(file).unwrap();
        let mut bytes = saved.clone();
        how(&mut bytes);
        fs::write(file, &bytes).unwrap();
        let (code, error) = cluster.nodes[0].start_refused(&[]);
        assert_eq!(code, Some(74), "{}: {error}", file.display());
        let line = error.lines().last().unwrap_or_default();
        assert!(because.iter().any(|words| line.contains(words)), "{}: {error}", file.display());
        assert_eq!(fs::read(file).unwrap(), bytes, "nothing is changed");
        fs::write(file, saved).unwrap();
    };
    let flip = |bytes: &mut Vec<u8>| bytes[30] ^= 1;
    spoil(&own.join("identity"), &flip, &["identity is damaged"]);
    spoil(&own.join("log.mark"), &|bytes| bytes.fill(0), &["log.mark"]);
    let log = fs::read_dir(own.join("log")).unwrap().map(|entry| entry.unwrap().path());
    let log =
        log.filter(|path| path.extension().is_some_and(|end| end == "raftlog")).max().unwrap();
    spoil(&log, &|bytes| bytes.truncate(40), &["ends at"]);
    spoil(&log, &|bytes| bytes[20..200].fill(0xff), &["is damaged"]);
    cluster.nodes[0].start();
    cluster.ready().await;
}

#[tokio::test]
async fn an_older_copy_is_refused_with_74_and_two_emptied_nodes_wait_for_the_third() {
    let mut cluster = Cluster::start().await;
    assert_eq!(cluster.nodes[1].stop().code(), Some(0));
    let own = cluster.nodes[1].data_dir.clone();
    let older = own.with_extension("older");
    copy(&own, &older);
    cluster.nodes[1].start();
    cluster.ready().await;
    let client = cluster.client().await;
    for n in 0..20 {
        client.cache().put(format!("key-{n}"), "v").await.unwrap();
    }
    assert_eq!(cluster.nodes[1].stop().code(), Some(0));
    let newest = own.with_extension("newest");
    fs::rename(&own, &newest).unwrap();
    copy(&older, &own);
    let (code, error) = cluster.nodes[1].start_refused(&[]);
    assert_eq!(code, Some(74), "{error}");
    assert!(error.contains(own.to_str().unwrap()) && error.contains("is an older copy"), "{error}");
    fs::remove_dir_all(&own).unwrap();
    fs::rename(&newest, &own).unwrap();
    cluster.nodes[1].start();
    cluster.ready().await;

    // Two lose everything while the third is away.
    for node in &mut cluster.nodes {
        assert_eq!(node.stop().code(), Some(0));
    }
    for node in &mut cluster.nodes[..2] {
        fs::rename(&node.data_dir, node.data_dir.with_extension("saved")).unwrap();
        node.start();
    }
    sleep(Duration::from_secs(2)).await;
    let refused = cluster.client().await.cache().get("key-1").await.unwrap_err();
    assert!(refused.to_string().contains("not formed yet"), "{refused}");
    cluster.nodes[2].start();
    for n in 0..2 {
        let (code, log) = cluster.nodes[n].ended().await;
        assert_eq!(code, Some(1), "{log}");
        assert!(
            log.contains("belongs to a formed cluster") && log.contains("replace this node"),
            "{log}"
        );
        let own = cluster.nodes[n].data_dir.clone();
        fs::remove_dir_all(&own).unwrap();
        fs::rename(own.with_extension("saved"), &own).unwrap();
        cluster.nodes[n].start();
    }
    cluster.ready().await;
    assert!(cluster.client().await.cache().get("key-1").await.unwrap().is_some());
}

fn copy(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(copied.success());
}
