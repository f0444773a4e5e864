//! The harness: a cluster of real nodes in scratch directories on free ports.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::{Instant, sleep};
use trefoil_client::proto::cluster::v1::StatusResponse;
use trefoil_client::{Client, Error};

/// As `trefoil dev` picks them.
#[path = "../../src/dev/port.rs"]
mod port;

/// The binary under test.
pub(crate) const TREFOIL: &str = env!("CARGO_BIN_EXE_trefoil");

/// Time for anything to come true.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// Lines of a node's log that are shown when a test fails.
const LOG_LINES: usize = 25;

/// Clusters of several tests at once would only measure how they disturb each other.
static ALONE: Mutex<()> = Mutex::const_new(());

/// The right to run processes.
pub(crate) async fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().await
}

/// A running cluster. Dropped, its processes are killed and its data goes.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Node>,
    dir: TempDir,
    _alone: MutexGuard<'static, ()>,
}

/// One node.
pub(crate) struct Node {
    pub(crate) name: String,
    pub(crate) listen: SocketAddr,
    pub(crate) peer_listen: SocketAddr,
    pub(crate) data_dir: PathBuf,
    log: PathBuf,
    arguments: Vec<String>,
    process: Option<Child>,
}

impl Cluster {
    /// Three nodes that serve.
    pub(crate) async fn start() -> Self {
        let mut cluster = Self::prepare(3, &[]).await;
        for node in &mut cluster.nodes {
            node.start();
        }
        cluster.ready().await;
        cluster
    }

    /// Nodes that are not started yet, with further flags.
    pub(crate) async fn prepare(size: usize, flags: &[&str]) -> Self {
        let ports = free_ports(2 * size);
        Self::prepare_at(&ports, &ports[size..], flags).await
    }

    /// The same, where peers are reached at these addresses and listen elsewhere.
    pub(crate) async fn prepare_behind(peers: &[SocketAddr], flags: &[&str]) -> Self {
        Self::prepare_at(&free_ports(2 * peers.len()), peers, flags).await
    }

    async fn prepare_at(ports: &[SocketAddr], peers: &[SocketAddr], flags: &[&str]) -> Self {
        let alone = alone().await;
        let dir = TempDir::new().unwrap();
        let size = peers.len();
        let name = |n: usize| format!("n{}", n + 1);
        let members =
            (0..size).map(|n| format!("{}={}", name(n), peers[n])).collect::<Vec<_>>().join(",");
        let node = |n: usize| {
            let data_dir = dir.path().join(name(n));
            let mut arguments = ["serve", "--name", &name(n), "--initial-cluster", &members]
                .map(str::to_owned)
                .to_vec();
            arguments.extend(["--listen".to_owned(), ports[n].to_string()]);
            arguments.extend(["--peer-listen".to_owned(), ports[size + n].to_string()]);
            arguments.extend(["--data-dir".to_owned(), data_dir.display().to_string()]);
            arguments.extend(flags.iter().map(|&flag| flag.to_owned()));
            let log = dir.path().join(format!("{}.log", name(n)));
            let (listen, peer_listen) = (ports[n], ports[size + n]);
            Node { name: name(n), listen, peer_listen, data_dir, log, arguments, process: None }
        };
        Self { nodes: (0..size).map(node).collect(), dir, _alone: alone }
    }

    pub(crate) fn dir(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn endpoints(&self) -> Vec<String> {
        self.nodes.iter().map(Node::endpoint).collect()
    }

    /// The value of TREFOIL_ENDPOINTS.
    pub(crate) fn endpoint_list(&self) -> String {
        self.endpoints().join(",")
    }

    /// A client of its own.
    pub(crate) async fn client(&self) -> Client {
        Client::connect(self.endpoints()).await.unwrap()
    }

    /// Waits until every running node serves and agrees on a leader for each shard.
    pub(crate) async fn ready(&self) {
        let running = self.nodes.iter().filter(|node| node.process.is_some()).collect::<Vec<_>>();
        let deadline = Instant::now() + PATIENCE;
        loop {
            let mut waiting_for = None;
            for node in &running {
                if !node.is_ready().await {
                    waiting_for = Some(&node.name);
                    break;
                }
            }
            let Some(name) = waiting_for else { return };
            assert!(Instant::now() < deadline, "{name} is not ready within {PATIENCE:?}");
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// The node that leads most shards, as it says itself.
    pub(crate) async fn busiest(&self) -> usize {
        let mut led = Vec::new();
        for (n, node) in self.nodes.iter().enumerate() {
            let status = node.status().await;
            let count = status
                .map_or(0, |status| status.shards.iter().filter(|shard| shard.role == 2).count());
            led.push((count, n));
        }
        led.into_iter().max().expect("a cluster has nodes").1
    }
}

impl Node {
    pub(crate) fn endpoint(&self) -> String {
        format!("http://{}", self.listen)
    }

    pub(crate) fn start(&mut self) {
        assert!(self.process.is_none(), "{} runs already", self.name);
        let log = File::options().create(true).append(true).open(&self.log).unwrap();
        let mut command = Command::new(TREFOIL);
        command.args(&self.arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(log);
        self.process = Some(clean(&mut command).spawn().unwrap());
    }

    /// Starts it with other values of some flags and waits for its end: for starts that are refused.
    pub(crate) fn start_refused(&self, flags: &[(&str, &str)]) -> (Option<i32>, String) {
        let mut arguments = self.arguments.clone();
        for (flag, value) in flags {
            match arguments.iter().position(|argument| argument == flag) {
                Some(at) => (*value).clone_into(&mut arguments[at + 1]),
                None => arguments.extend([(*flag).to_owned(), (*value).to_owned()]),
            }
        }
        let mut command = Command::new(TREFOIL);
        let output = clean(&mut command).args(arguments).stdin(Stdio::null()).output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    }

    /// kill -9.
    pub(crate) fn kill(&mut self) {
        let mut process = self.process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    /// SIGTERM, and the end that follows.
    pub(crate) fn stop(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.process.take().expect("it runs").wait().unwrap()
    }

    /// Waits for an end of its own: the exit code, and the log.
    pub(crate) async fn ended(&mut self) -> (Option<i32>, String) {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.process.as_mut().expect("it runs").try_wait().unwrap() {
                self.process = None;
                return (status.code(), std::fs::read_to_string(&self.log).unwrap());
            }
            assert!(Instant::now() < deadline, "{} goes on", self.name);
            sleep(Duration::from_millis(50)).await;
        }
    }

    /// SIGSTOP.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
    }

    /// SIGCONT.
    pub(crate) fn resume(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        kill_process(pid(self.id()), signal).unwrap();
    }

    /// The id of its process.
    pub(crate) fn id(&self) -> u32 {
        self.process.as_ref().expect("it runs").id()
    }

    /// What it says of itself.
    pub(crate) async fn status(&self) -> Result<StatusResponse, Error> {
        let client = Client::builder([self.endpoint()]).timeout(Duration::from_secs(1)).build()?;
        client.cluster().status_of(&self.endpoint()).await
    }

    async fn is_ready(&self) -> bool {
        let Ok(status) = self.status().await else { return false };
        !status.shards.is_empty() && status.shards.iter().all(|shard| shard.leader_id != 0)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                process.kill().ok();
                process.wait().ok();
            }
            if std::thread::panicking() {
                let log = std::fs::read_to_string(&node.log).unwrap_or_default();
                let lines = log.lines().collect::<Vec<_>>();
                eprintln!("== the log of {} ends:", node.name);
                for line in &lines[lines.len().saturating_sub(LOG_LINES)..] {
                    eprintln!("{line}");
                }
            }
        }
    }
}

/// A command of the binary against a cluster.
pub(crate) fn trefoil(cluster: &Cluster, arguments: &[&str]) -> Command {
    let mut command = Command::new(TREFOIL);
    clean(&mut command)
        .args(arguments)
        .env("TREFOIL_ENDPOINTS", cluster.endpoint_list())
        .stdin(Stdio::null());
    command
}

/// Runs it to its end: exit code, standard output, standard error.
pub(crate) fn run(cluster: &Cluster, arguments: &[&str]) -> (i32, String, String) {
    let output = trefoil(cluster, arguments).output().unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap_or(-1), text(output.stdout), text(output.stderr))
}

/// Without the variables of whoever runs the tests.
pub(crate) fn clean(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("TREFOIL_") {
            command.env_remove(name);
        }
    }
    command
}

pub(crate) fn pid(id: u32) -> Pid {
    Pid::from_raw(i32::try_from(id).unwrap()).unwrap()
}

/// Whether a process is there and no zombie.
pub(crate) fn is_alive(id: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{id}/stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().unwrap_or("").trim_start().starts_with('Z'))
}

/// Ports that nobody else has now, each another.
pub(crate) fn free_ports(count: usize) -> Vec<SocketAddr> {
    let free = |_| port::free(Ipv4Addr::LOCALHOST.into()).unwrap();
    let held = (0..count).map(free).collect::<Vec<_>>();
    held.iter().map(|listener| listener.local_addr().unwrap()).collect()
}

/// Waits for something that must come true.
pub(crate) async fn eventually(what: &str, mut condition: impl AsyncFnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition().await {
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        sleep(Duration::from_millis(50)).await;
    }
}
