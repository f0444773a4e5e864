//! Commands that are ended while they wait, or that nobody hears: they end at once, and leave no session behind.

use std::fs::OpenOptions;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Signal, kill_process};
use tokio::time::sleep;

use crate::services::json;
use crate::support::{Cluster, TREFOIL, clean, eventually, pid, trefoil};

fn end(child: &Child, signal: Signal) {
    kill_process(pid(child.id()), signal).unwrap();
}

/// Exit code, standard error, and how long its end took from now.
fn ended(child: Child) -> (Option<i32>, String, Duration) {
    let began = Instant::now();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8(output.stderr).unwrap(), began.elapsed())
}

fn sessions(cluster: &Cluster) -> usize {
    json(cluster, &["lock", "sessions"]).1["sessions"].as_array().unwrap().len()
}

#[tokio::test]
async fn who_waits_ends_by_a_signal_and_leaves_no_session() {
    let cluster = Cluster::start().await;
    let client = cluster.client().await;
    let holder = client.session(Duration::from_secs(60)).owner("the holder").await.unwrap();
    let _lock = holder.lock("l").acquire().await.unwrap().unwrap();
    let _leads = holder.election("e").campaign().await.unwrap().unwrap();
    client.locks().semaphore("s").set(1).await.unwrap();
    let _permit = holder.semaphore("s").acquire().await.unwrap().unwrap();
    let wait = ["--wait", "60s"];
    for (command, signal, code) in [
        (&["lock", "acquire", "l"][..], Signal::TERM, 143),
        (&["lock", "acquire", "l", "--with", "m"], Signal::HUP, 129),
        (&["lock", "run", "l"], Signal::INT, 130),
        (&["election", "campaign", "e", "v"], Signal::TERM, 143),
        (&["semaphore", "acquire", "s"], Signal::TERM, 143),
        (&["barrier", "enter", "b", "2"], Signal::TERM, 143),
    ] {
        let rest: &[&str] = if command[1] == "run" { &["--", "true"] } else { &[] };
        let arguments = [command, &wait, rest].concat();
        let mut command = trefoil(&cluster, &arguments);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        eventually("it waits", async || sessions(&cluster) == 2).await;
        if arguments[0] == "lock" {
            sleep(Duration::from_millis(1_500)).await;
        }
        end(&child, signal);
        let (ended, error, after) = ended(child);
        assert_eq!(ended, Some(code), "{arguments:?}: {error}");
        assert!(after < Duration::from_secs(1), "{arguments:?} after {after:?}");
        assert_eq!(sessions(&cluster), 1, "{arguments:?} left a session");
        let tells = error.contains("waiting for l, held by the holder (session ");
        assert_eq!(tells, arguments[0] == "lock", "{arguments:?}: {error}");
    }
}

#[tokio::test]
async fn what_nobody_reads_of_leaves_no_session() {
    let cluster = Cluster::start().await;
    for command in [
        &["lock", "acquire", "l"][..],
        &["lock", "acquire", "l", "--with", "m"],
        &["election", "campaign", "e", "v"],
    ] {
        let full = OpenOptions::new().write(true).open("/dev/full").unwrap();
        let status = trefoil(&cluster, command).stdout(full).stderr(Stdio::null()).status();
        assert_eq!(status.unwrap().code(), Some(1), "{command:?}");
        assert_eq!(sessions(&cluster), 0, "{command:?}");
    }
}

#[tokio::test]
async fn where_no_node_answers_a_signal_ends_it_as_well() {
    // It takes connections, and says nothing.
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = silent.local_addr().unwrap().to_string();
    for arguments in [&["lock", "run", "l", "--", "true"][..], &["lock", "acquire", "l"]] {
        let mut command = Command::new(TREFOIL);
        let command = clean(&mut command).args(arguments).env("TREFOIL_ENDPOINTS", &endpoint);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        sleep(Duration::from_millis(500)).await;
        end(&child, Signal::TERM);
        let (code, error, after) = ended(child);
        assert_eq!(code, Some(143), "{error}");
        assert!(after < Duration::from_secs(1), "{after:?}");
    }
}
