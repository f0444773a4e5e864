//! `trefoil lock run`: one command at a time, and the next one after the TTL when the first dies with its holder.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use rustix::process::{Signal, kill_process, kill_process_group, test_kill_process_group};
use tokio::time::{Instant, sleep};

use crate::support::{Cluster, eventually, is_alive, pid, run, trefoil};

/// Writes its token when it starts and again when it ends.
fn script(file: &Path, seconds: &str) -> String {
    let file = file.display();
    format!(
        "echo start $TREFOIL_FENCING_TOKEN $$ >> {file}; sleep {seconds}; echo end $TREFOIL_FENCING_TOKEN >> {file}"
    )
}

fn start(cluster: &Cluster, file: &Path, ttl: &str, seconds: &str) -> Child {
    let script = script(file, seconds);
    trefoil(cluster, &["lock", "run", "job", "--ttl", ttl, "--", "sh", "-c", &script])
        .spawn()
        .unwrap()
}

/// Lines of the file: the word, the token, the pid of a start.
fn lines(file: &Path) -> Vec<(String, u64, u32)> {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = |line: &str| {
        let mut words = line.split(' ');
        let word = words.next()?.to_owned();
        Some((
            word,
            words.next()?.parse().ok()?,
            words.next().map_or(0, |id| id.parse().unwrap_or(0)),
        ))
    };
    text.lines().filter_map(line).collect()
}

#[tokio::test]
async fn the_second_command_starts_after_the_first_has_ended() {
    let cluster = Cluster::start().await;
    let file = cluster.dir().join("ran");
    let mut first = start(&cluster, &file, "10s", "1");
    eventually("the first runs", async || lines(&file).len() == 1).await;
    let mut second = start(&cluster, &file, "10s", "0");
    assert!(first.wait().unwrap().success());
    assert!(second.wait().unwrap().success());
    let ran = lines(&file);
    let words = ran.iter().map(|(word, ..)| word.as_str()).collect::<Vec<_>>();
    assert_eq!(words, ["start", "end", "start", "end"]);
    assert!(ran[0].1 == ran[1].1 && ran[2].1 == ran[3].1 && ran[2].1 > ran[0].1, "{ran:?}");

    let (code, ..) = run(&cluster, &["lock", "run", "job", "--", "sh", "-c", "exit 7"]);
    assert_eq!(code, 7, "the code is the command's");
    let (code, _, error) = run(&cluster, &["lock", "run", "job", "--", "no-such-command"]);
    assert_eq!(code, 127, "{error}");
}

#[tokio::test]
async fn a_command_runs_under_several_locks() {
    let cluster = Cluster::start().await;
    let both = ["--with", "part", "--with", "rates:shared"];
    let told = "echo $TREFOIL_LOCK $TREFOIL_FENCING_TOKEN; echo \"$TREFOIL_LOCKS\"";
    let arguments = [&["lock", "run", "job"][..], &both, &["--", "sh", "-c", told]].concat();
    let (code, said, error) = run(&cluster, &arguments);
    assert_eq!(code, 0, "{error}");
    assert_eq!(said.lines().collect::<Vec<_>>(), ["job 1", "job:1", "part:2", "rates:3"]);

    // They were released; now another holds one of them, and shares another.
    let (code, said, error) =
        run(&cluster, &["-o", "json", "lock", "acquire", "part", "--with", "rates:shared"]);
    assert_eq!(code, 0, "{error}");
    let said = serde_json::from_str::<serde_json::Value>(&said).unwrap();
    assert!(said["acquired"] == true && said["session_id"].is_string(), "{said}");
    let second = &said["locks"][1];
    assert!(second["lock"] == "rates" && second["mode"] == "shared", "{said}");
    let missed = [&["lock", "acquire", "job"][..], &both].concat();
    let (code, said, _) = run(&cluster, &missed);
    assert_eq!((code, said.trim()), (2, "job, part, rates are not all free"));
    let (code, ..) =
        run(&cluster, &["lock", "acquire", "job", "--with", "rates", "--mode", "shared"]);
    assert_eq!(code, 0);
    let missed = [&["lock", "run", "x", "--wait", "0s"][..], &both, &["--", "true"]].concat();
    let (code, _, error) = run(&cluster, &missed);
    assert!(code == 2 && error.contains("x, part, rates are not all free"), "{code} {error}");
}

#[tokio::test]
async fn a_holder_that_is_killed_gives_way_after_its_ttl_to_a_larger_token() {
    const TTL: Duration = Duration::from_secs(3);
    let cluster = Cluster::start().await;
    let file = cluster.dir().join("ran");
    let mut first = start(&cluster, &file, "3s", "60");
    eventually("the first runs", async || lines(&file).len() == 1).await;
    let mut second = start(&cluster, &file, "3s", "0");
    sleep(Duration::from_secs(1)).await;
    assert_eq!(lines(&file).len(), 1, "the second waits");

    let killed = Instant::now();
    first.kill().unwrap();
    first.wait().unwrap();
    assert!(second.wait().unwrap().success());
    let elapsed = killed.elapsed();
    let ran = lines(&file);
    assert!(ran[1].1 > ran[0].1, "{ran:?}");
    assert!(
        elapsed >= TTL * 2 / 3 - Duration::from_millis(500),
        "the renewed session lived on for {elapsed:?}"
    );
    assert!(elapsed <= TTL + Duration::from_secs(5), "it took {elapsed:?}");
    // Nobody was left to end the first command and its sleep.
    assert!(is_alive(ran[0].2), "the command goes on");
    kill_process_group(pid(ran[0].2), Signal::KILL).unwrap();
}

#[tokio::test]
async fn signals_reach_the_command_and_a_lost_lock_ends_all_that_it_started() {
    let mut cluster = Cluster::start().await;
    let file = cluster.dir().join("ran");
    let trap = format!(
        "trap 'echo end 0 >> {0}; exit 5' TERM; echo start 0 $$ >> {0}; while :; do sleep 0.1; done",
        file.display()
    );
    let mut held =
        trefoil(&cluster, &["lock", "run", "job", "--", "sh", "-c", &trap]).spawn().unwrap();
    eventually("it runs", async || lines(&file).len() == 1).await;
    kill_process(pid(held.id()), Signal::TERM).unwrap();
    assert_eq!(held.wait().unwrap().code(), Some(5));
    assert_eq!(lines(&file).len(), 2, "the command had the signal");

    let mut held = start(&cluster, &file, "2s", "60");
    eventually("it runs again", async || lines(&file).len() == 3).await;
    let command = lines(&file)[2].2;
    for node in &mut cluster.nodes {
        node.kill();
    }
    let lost = Instant::now();
    assert_eq!(held.wait().unwrap().code(), Some(75));
    assert!(lost.elapsed() < Duration::from_secs(4), "{:?}", lost.elapsed());
    assert!(!is_alive(command), "the command is dead before anybody else can hold the lock");
    assert!(is_gone(command).await, "and so is its sleep");
}

/// Whether nothing of a process group is left, soon.
async fn is_gone(group: u32) -> bool {
    // A killed process is a zombie until init has seen it.
    for _ in 0..100 {
        if test_kill_process_group(pid(group)).is_err() {
            return true;
        }
        sleep(Duration::from_millis(20)).await;
    }
    false
}

#[tokio::test]
async fn a_lost_lock_warns_kills_or_waits_as_it_was_told() {
    let mut cluster = Cluster::start().await;
    let dir = cluster.dir().to_owned();
    let mut started = Vec::new();
    // Each notes that it was told to end, and needs a second for that; the deaf one never ends.
    for (lock, flags, deaf) in [
        ("term", &["--on-lost", "term", "--grace", "20s"][..], false),
        ("deaf", &["--on-lost", "term", "--grace", "1s"], true),
        ("kill", &["--on-lost", "kill"], false),
        ("warn", &["--on-lost", "warn"], false),
    ] {
        let file = dir.join(lock).display().to_string();
        let then = if deaf { ":" } else { "sleep 1; exit 5" };
        let body = format!(
            "trap 'echo told >> {file}; {then}' TERM; echo start >> {file}; n=0; \
             while [ $n -lt 80 ]; do sleep 0.1; n=$((n+1)); done; echo done >> {file}; exit 6"
        );
        let mut arguments = vec!["lock", "run", lock, "--ttl", "2s"];
        arguments.extend(flags);
        arguments.extend(["--", "sh", "-c", &body]);
        let mut command = trefoil(&cluster, &arguments);
        started.push(command.stderr(Stdio::piped()).spawn().unwrap());
    }
    let written = |lock: &str| fs::read_to_string(dir.join(lock)).unwrap_or_default();
    eventually("all run", async || {
        ["term", "deaf", "kill", "warn"].iter().all(|lock| written(lock).contains("start"))
    })
    .await;
    for node in &mut cluster.nodes {
        node.kill();
    }
    let ends = started.into_iter().map(|run| run.wait_with_output().unwrap()).collect::<Vec<_>>();
    let codes = ends.iter().map(|end| end.status.code()).collect::<Vec<_>>();
    assert_eq!(codes, [Some(75), Some(75), Some(75), Some(6)]);
    assert_eq!(written("term"), "start\ntold\n");
    let deaf = written("deaf");
    assert!(deaf.contains("told") && !deaf.contains("done"), "it was killed in the end: {deaf}");
    assert_eq!(written("kill"), "start\n", "it was not told");
    assert_eq!(written("warn"), "start\ndone\n", "it was left alone");
    let warned = String::from_utf8_lossy(&ends[3].stderr).into_owned();
    assert!(warned.contains("the lock warn was lost, and the command goes on"), "{warned}");
}

#[tokio::test]
async fn a_command_ends_when_somebody_asks_for_its_lock() {
    let mut cluster = Cluster::start().await;
    let file = cluster.dir().join("ran");
    let script = format!(
        "trap 'exit 6' TERM; echo start 0 $$ >> {0}; while :; do sleep 0.1; done",
        file.display()
    );
    let run_held = ["lock", "run", "job", "--on-request", "term", "--", "sh", "-c", &script];
    let held = trefoil(&cluster, &run_held).stderr(Stdio::piped()).spawn().unwrap();
    eventually("it runs", async || lines(&file).len() == 1).await;
    // Whichever node its session stream is at, it is opened again at another one.
    cluster.nodes[1].kill();
    let ask = ["lock", "request-release", "job", "--owner", "ops", "--reason", "an upgrade"];
    let (code, out, error) = run(&cluster, &ask);
    assert_eq!(code, 0, "{error}");
    assert!(out.contains("1 holder of job asked"), "{out}");
    let ended = held.wait_with_output().unwrap();
    assert_eq!(ended.status.code(), Some(6), "the command had SIGTERM, and the code is its own");
    let said = String::from_utf8(ended.stderr).unwrap();
    assert!(said.contains("trefoil: ops asks for job: an upgrade"), "{said}");
    let (code, _, error) = run(&cluster, &ask);
    assert!(code == 1 && error.contains("NOT_HOLDER"), "{error}");
}
