//! The programs that the pages of the Rust client show, as they are: run against real nodes until they have done what they say.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use trefoil_client::Message;

use crate::support::{Cluster, eventually};

/// A program that runs, with what it says in a file. Dropped, it is killed.
struct Program {
    process: Child,
    said: PathBuf,
}

impl Program {
    /// `cargo test --workspace` builds the examples beside the tests.
    fn start(cluster: &Cluster, name: &str, run: &str) -> Self {
        let tests = std::env::current_exe().unwrap();
        let program = tests.ancestors().nth(2).unwrap().join("examples").join(name);
        assert!(program.exists(), "{program:?} is not built: run cargo test --workspace");
        let said = cluster.dir().join(format!("{name}-{run}"));
        let process = Command::new(program)
            .arg(&cluster.endpoints()[0])
            .stdout(std::fs::File::create(&said).unwrap())
            .stderr(Stdio::inherit())
            .spawn()
            .unwrap();
        Self { process, said }
    }

    fn said(&self) -> String {
        std::fs::read_to_string(&self.said).unwrap()
    }

    fn signal(&self, signal: Signal) {
        let pid = Pid::from_raw(self.process.id().cast_signed()).unwrap();
        kill_process(pid, signal).unwrap();
    }

    /// What it said, once it has ended well.
    async fn done(mut self) -> String {
        let name = format!("{:?} ends", self.said);
        eventually(&name, async || self.process.try_wait().unwrap().is_some()).await;
        let status = self.process.wait().unwrap();
        assert!(status.success(), "{status}: {}", self.said());
        self.said()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        self.process.kill().ok();
        self.process.wait().ok();
    }
}

#[tokio::test]
async fn a_worker_works_off_a_queue_and_ends_when_it_is_told_to() {
    let cluster = Cluster::start().await;
    let queue = cluster.client().await.queue("pictures");
    // It comes before its queue.
    let worker = Program::start(&cluster, "worker", "first");
    tokio::time::sleep(Duration::from_millis(300)).await;
    let ids = queue.enqueue((0..20).map(|n| Message::new(format!("{n}")))).await.unwrap();
    eventually("all is done", async || {
        let said = worker.said();
        ids.iter().all(|id| said.lines().any(|line| line == format!("done {id}")))
    })
    .await;
    worker.signal(Signal::INT);
    worker.done().await;
    assert!(queue.dequeue().await.unwrap().is_empty());
}

#[tokio::test]
async fn a_scheduler_goes_on_where_one_that_was_killed_left_off() {
    let cluster = Cluster::start().await;
    let runs = |program: &Program| {
        let numbers = |line: &str| line.strip_prefix("run ")?.parse::<u64>().ok();
        program.said().lines().filter_map(numbers).collect::<Vec<_>>()
    };
    let first = Program::start(&cluster, "scheduler", "first");
    eventually("the first runs", async || runs(&first).len() >= 2).await;
    let second = Program::start(&cluster, "scheduler", "second");
    tokio::time::sleep(Duration::from_millis(500)).await;
    assert!(runs(&second).is_empty(), "two of them run");
    first.signal(Signal::KILL);
    eventually("the second runs", async || runs(&second).len() >= 2).await;
    let (before, after) = (runs(&first), runs(&second));
    let last = *before.last().unwrap();
    // What was killed on its way out may have been stored without having been said.
    assert!(after[0] == last + 1 || after[0] == last + 2, "{before:?} then {after:?}");
    second.signal(Signal::INT);
    second.done().await;
}

#[tokio::test]
async fn a_look_up_loads_once_and_is_answered_by_the_cache_then() {
    let cluster = Cluster::start().await;
    for (run, source) in [("first", "loaded"), ("second", "from the cache")] {
        let said = Program::start(&cluster, "lookup", run).done().await;
        assert_eq!(said, format!("alice@example.org ({source})\n"));
    }
}

#[tokio::test]
async fn the_other_programs_end_well() {
    let cluster = Cluster::start().await;
    for name in ["lock", "readers", "transfer", "fenced_counter", "semaphore", "barrier"] {
        let said = Program::start(&cluster, name, "once").done().await;
        assert!(!said.is_empty(), "{name} says nothing");
    }
}
