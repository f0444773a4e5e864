//! Real processes to measure: three servers of a cluster, or an echo server.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::usage::{self, UsageSoFar};

/// A process that ends with this value.
#[derive(Debug)]
pub(crate) struct ServerProcess(Child);

impl Drop for ServerProcess {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

impl ServerProcess {
    pub(crate) fn new(child: Child) -> Self {
        Self(child)
    }

    /// CPU seconds of user and system so far.
    #[must_use]
    pub(crate) fn cpu_seconds(&self) -> f64 {
        usage::cpu_seconds(&format!("/proc/{}/stat", self.0.id()))
    }

    /// What it and its threads have used so far.
    ///
    /// # Errors
    /// When it has ended.
    pub(crate) fn usage(&self) -> io::Result<UsageSoFar> {
        UsageSoFar::of(self.0.id())
    }

    /// Resident memory in MiB.
    #[must_use]
    pub(crate) fn resident_mib(&self) -> f64 {
        let status =
            std::fs::read_to_string(format!("/proc/{}/status", self.0.id())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<f64>().unwrap_or_default() / 1024.0
    }
}

/// Which nodes to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct BenchNodes {
    /// The `trefoil` binary to measure.
    #[arg(long, default_value = "target/release/trefoil")]
    pub(crate) trefoil: PathBuf,
    /// Folder for the data of the nodes; it should be on the disk that counts.
    #[arg(long, default_value = "target")]
    pub(crate) folder: PathBuf,
}

impl BenchNodes {
    /// A cluster of them.
    ///
    /// # Errors
    /// See [`BenchCluster::start`].
    pub(crate) fn start(&self) -> io::Result<BenchCluster> {
        BenchCluster::start(&self.trefoil, &self.folder, "trefoil")
    }
}

/// Three servers on loopback with their own data directories.
#[derive(Debug)]
pub(crate) struct BenchCluster {
    /// Client endpoints.
    pub(crate) endpoints: Vec<String>,
    /// The processes, in the order of the endpoints.
    pub(crate) nodes: Vec<ServerProcess>,
    folder: PathBuf,
}

impl Drop for BenchCluster {
    fn drop(&mut self) {
        self.nodes.clear();
        // Scratch: what cannot be removed stays in the temporary folder.
        std::fs::remove_dir_all(&self.folder).ok();
    }
}

fn not_started(trefoil: &Path, error: &io::Error) -> io::Error {
    let binary = trefoil.display();
    let what = format!("{binary}: {error}: build it (cargo build --release), or say where it is");
    io::Error::new(error.kind(), what)
}

impl BenchCluster {
    /// One without servers, and the folder for their data.
    pub(crate) fn empty(parent: &Path, of: &str) -> io::Result<(Self, PathBuf)> {
        let folder = parent.join(format!("{of}-bench-{}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let cluster = Self { endpoints: Vec::new(), nodes: Vec::new(), folder: folder.clone() };
        Ok((cluster, folder))
    }

    /// Starts `trefoil serve` three times, with data in a folder of the name `of`, and waits until every node is ready.
    ///
    /// # Errors
    /// When the binary cannot be started, or the nodes are not ready within 30 s.
    pub(crate) fn start(trefoil: &Path, parent: &Path, of: &str) -> io::Result<Self> {
        let (mut cluster, folder) = Self::empty(parent, of)?;
        let ports = free_ports(6)?;
        let peers = (0..3)
            .map(|n| format!("n{}=127.0.0.1:{}", n + 1, ports[n + 3]))
            .collect::<Vec<_>>()
            .join(",");
        for n in 0..3 {
            let child = Command::new(trefoil)
                .args([
                    "serve",
                    "--name",
                    &format!("n{}", n + 1),
                    "--initial-cluster",
                    &peers,
                    "--cluster-token",
                    "bench",
                ])
                .args(["--listen", &format!("127.0.0.1:{}", ports[n]), "--log-level", "warning"])
                .args(["--peer-listen", &format!("127.0.0.1:{}", ports[n + 3])])
                .arg("--data-dir")
                .arg(folder.join(format!("n{}", n + 1)))
                .stdin(Stdio::null())
                .spawn()
                .map_err(|error| not_started(trefoil, &error))?;
            cluster.nodes.push(ServerProcess(child));
            cluster.endpoints.push(format!("http://127.0.0.1:{}", ports[n]));
        }
        await_ready(&ports[..3], "/readyz")?;
        Ok(cluster)
    }

    /// CPU seconds of all nodes.
    #[must_use]
    pub(crate) fn cpu_seconds(&self) -> f64 {
        self.nodes.iter().map(ServerProcess::cpu_seconds).sum()
    }

    /// Resident MiB of each node.
    #[must_use]
    pub(crate) fn resident(&self) -> String {
        let all = self.nodes.iter().map(|node| format!("{:.0}", node.resident_mib()));
        all.collect::<Vec<_>>().join(", ")
    }
}

/// Starts this program again as an echo server; returns its endpoint.
///
/// # Errors
/// When it does not start.
pub(crate) fn echo() -> io::Result<(ServerProcess, String)> {
    let mut child =
        Command::new(std::env::current_exe()?).arg("echo").stdout(Stdio::piped()).spawn()?;
    let mut port = String::new();
    let out = child
        .stdout
        .take()
        .ok_or_else(|| io::Error::other("the echo server has no standard output"))?;
    BufReader::new(out).read_line(&mut port)?;
    Ok((ServerProcess(child), format!("http://127.0.0.1:{}", port.trim())))
}

/// Waits until every port answers a path with 200.
///
/// # Errors
/// When one does not within 30 s.
pub(crate) fn await_ready(ports: &[u16], path: &str) -> io::Result<()> {
    let patience = Instant::now() + Duration::from_secs(30);
    for port in ports {
        while !is_ready(*port, path) {
            if Instant::now() > patience {
                return Err(io::Error::other("the nodes are not ready after 30 s"));
            }
            // Nothing else runs here while the cluster starts.
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
    Ok(())
}

pub(crate) fn free_ports(count: usize) -> io::Result<Vec<u16>> {
    let listeners =
        (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<io::Result<Vec<_>>>()?;
    listeners.iter().map(|listener| Ok(listener.local_addr()?.port())).collect()
}

fn is_ready(port: u16, path: &str) -> bool {
    page(&format!("127.0.0.1:{port}"), path).is_ok()
}

/// What an address answers at a path over HTTP, headers and all.
///
/// # Errors
/// When it does not answer with 200.
pub(crate) fn page(address: &str, path: &str) -> io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(5)))?;
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    if answer.split(' ').nth(1) == Some("200") {
        Ok(answer)
    } else {
        Err(io::Error::other(format!("{address}{path} answers {answer:.20}")))
    }
}
