//! Locks on three real nodes, by unary calls and by the client library, beside etcd in the same run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tonic::transport::Channel;
use trefoil_client::{Client, Guard, Session};
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_proto::lock::v1::{
    AcquireRequest, CloseSessionRequest, OpenSessionRequest, ReleaseRequest,
};

use crate::cluster::{BenchNodes, ServerProcess};
use crate::etcd::{self, Lease};
use crate::figures::{as_f64, histogram, micros, ms};
use crate::progress::wait;
use crate::way::{NodesInTurn, WAIT, Way, channels, text};
use crate::{BenchError, BenchOutput};

/// TTL of all sessions and leases.
const TTL: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct LockBench {
    #[command(flatten)]
    nodes: BenchNodes,
    /// The `etcd` binary to compare with; without one its rows are left out.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Concurrent callers with a lock of their own, one row each.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64")]
    callers: Vec<usize>,
    /// Callers that pass one lock around.
    #[arg(long, default_value_t = 16)]
    waiters: usize,
    /// Seconds of each row.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
}

/// One caller who locks.
pub(crate) enum LockCaller {
    Unary { nodes: NodesInTurn, session_id: u64 },
    Library(Session),
    Etcd(Lease),
}

/// What it holds.
enum LockHandle {
    Token(u64),
    Guard(Guard),
    Key(Vec<u8>),
}

/// What is measured.
enum System {
    Trefoil(Way),
    Etcd(Vec<Channel>),
}

/// What one caller has done.
struct CallerFigures {
    latencies: Histogram<u64>,
    failure: Option<String>,
}

/// Runs everything and prints two tables.
///
/// # Errors
/// When the nodes do not start, or a session cannot be opened.
pub(crate) async fn run(options: LockBench, out: &mut BenchOutput) -> Result<(), BenchError> {
    let cluster = options.nodes.start()?;
    let etcd =
        options.etcd.as_ref().map(|etcd| etcd::start(etcd, &options.nodes.folder)).transpose()?;
    let client = Client::connect(cluster.endpoints.clone()).await?;
    let nodes = NodesInTurn::connect(&cluster.endpoints).await?;
    let mut systems = vec![
        ("trefoil unary", System::Trefoil(Way::Unary(nodes)), &cluster.nodes),
        ("trefoil library", System::Trefoil(Way::Library(client)), &cluster.nodes),
    ];
    if let Some(etcd) = &etcd {
        systems.push(("etcd", System::Etcd(channels(&etcd.endpoints).await?), &etcd.nodes));
    }
    let length = Duration::from_secs(options.seconds);
    out.line("Acquire and release of a lock of one's own");
    out.line("what             callers   per second   p50 ms   p99 ms   server us/pair");
    for callers in &options.callers {
        for (name, system, nodes) in &systems {
            let names = (0..*callers).map(|n| format!("own-{n}")).collect();
            let before = cpu_seconds(nodes);
            let done = drive(system, names, length, name).await?;
            let all = together(&done);
            let cpu_us = (cpu_seconds(nodes) - before) * 1e6 / as_f64(all.len().max(1));
            out.line(&format!(
                "{name:<16} {callers:>7} {} {cpu_us:>16.1}{}",
                row(&all, length),
                failed(&done)
            ));
        }
    }
    out.line(&format!("One lock passed around {} callers", options.waiters));
    out.line("what             callers   per second   p50 ms   p99 ms   most over least");
    for (name, system, _) in &systems {
        let names = vec!["shared".to_owned(); options.waiters];
        let done = drive(system, names, length, name).await?;
        let counts = done.iter().map(|done| done.latencies.len());
        let (least, most) = (counts.clone().min().unwrap_or(0), counts.max().unwrap_or(0));
        let fairness = as_f64(most) / as_f64(least.max(1));
        let all = together(&done);
        out.line(&format!(
            "{name:<16} {:>7} {} {fairness:>16.3}{}",
            options.waiters,
            row(&all, length),
            failed(&done)
        ));
    }
    Ok(())
}

/// Every caller acquires and releases its lock until the time is over.
async fn drive(
    system: &System,
    locks: Vec<String>,
    length: Duration,
    name: &str,
) -> Result<Vec<CallerFigures>, BenchError> {
    let mut callers = Vec::new();
    for n in 0..locks.len() {
        callers.push(system.caller(n).await?);
    }
    let together = Arc::new(tokio::sync::Barrier::new(locks.len()));
    let tasks = callers.into_iter().zip(locks).map(|(caller, lock)| {
        let together = Arc::clone(&together);
        tokio::spawn(async move {
            together.wait().await;
            caller.repeat(&lock, Instant::now() + length).await
        })
    });
    let tasks = tasks.collect::<Vec<_>>();
    wait(length.as_secs(), name).await?;
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await?);
    }
    Ok(done)
}

impl System {
    /// One more caller, with a session of its own.
    async fn caller(&self, n: usize) -> Result<LockCaller, BenchError> {
        Ok(match self {
            Self::Trefoil(way) => LockCaller::open(way.of_caller(n)).await?,
            Self::Etcd(channels) => {
                let ttl_seconds = i64::try_from(TTL.as_secs())?;
                LockCaller::Etcd(
                    Lease::grant(channels[n % channels.len()].clone(), ttl_seconds).await?,
                )
            }
        })
    }
}

impl LockCaller {
    /// One with a session of its own.
    ///
    /// # Errors
    /// When the session cannot be opened.
    pub(crate) async fn open(way: Way) -> Result<Self, BenchError> {
        Ok(match way {
            Way::Unary(mut nodes) => {
                let ttl_ms = u64::try_from(TTL.as_millis())?;
                let request = OpenSessionRequest { ttl_ms, ..OpenSessionRequest::default() };
                let mut locks = LockServiceClient::new(nodes.next());
                let session_id = locks.open_session(request).await?.into_inner().session_id;
                Self::Unary { nodes, session_id }
            }
            Way::Library(client) => Self::Library(client.session(TTL).await?),
        })
    }

    async fn repeat(mut self, lock: &str, until: Instant) -> CallerFigures {
        let mut done = CallerFigures { latencies: histogram(), failure: None };
        while Instant::now() < until {
            let begun = Instant::now();
            if let Err(failure) = self.pair(lock).await {
                done.failure = Some(failure);
                break;
            }
            done.latencies.saturating_record(micros(begun.elapsed()));
        }
        done
    }

    /// Acquires the lock and releases it.
    pub(crate) async fn pair(&mut self, lock: &str) -> Result<(), String> {
        let held = self.acquire(lock).await?;
        self.release(lock, held).await
    }

    /// Closes its session.
    pub(crate) async fn close(self) -> Result<(), String> {
        match self {
            Self::Unary { mut nodes, session_id } => {
                let request = CloseSessionRequest { session_id, ..CloseSessionRequest::default() };
                let mut locks = LockServiceClient::new(nodes.next());
                locks.close_session(request).await.map(drop).map_err(text)
            }
            Self::Library(session) => session.close().await.map_err(text),
            // The lease of a cluster that ends with this program.
            Self::Etcd(_) => Ok(()),
        }
    }

    async fn acquire(&mut self, lock: &str) -> Result<LockHandle, String> {
        let held = || "the lock was not acquired".to_owned();
        match self {
            Self::Unary { nodes, session_id } => {
                let request = AcquireRequest {
                    session_id: *session_id,
                    name: lock.to_owned(),
                    wait_ms: u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX),
                    ..AcquireRequest::default()
                };
                let mut locks = LockServiceClient::new(nodes.next());
                let response = locks.acquire(request).await.map_err(text)?.into_inner();
                if response.acquired {
                    Ok(LockHandle::Token(response.fencing_token))
                } else {
                    Err(held())
                }
            }
            Self::Library(session) => {
                let guard = session.lock(lock).wait(WAIT).acquire().await.map_err(text)?;
                guard.map(LockHandle::Guard).ok_or_else(held)
            }
            Self::Etcd(lease) => lease.lock(lock).await.map(LockHandle::Key).map_err(text),
        }
    }

    async fn release(&mut self, lock: &str, held: LockHandle) -> Result<(), String> {
        match (self, held) {
            (Self::Unary { nodes, session_id }, LockHandle::Token(fencing_token)) => {
                let request = ReleaseRequest {
                    session_id: *session_id,
                    name: lock.to_owned(),
                    fencing_token,
                    ..ReleaseRequest::default()
                };
                let mut locks = LockServiceClient::new(nodes.next());
                locks.release(request).await.map(drop).map_err(text)
            }
            (Self::Library(_), LockHandle::Guard(guard)) => guard.release().await.map_err(text),
            (Self::Etcd(lease), LockHandle::Key(key)) => lease.unlock(key).await.map_err(text),
            _ => Err("what is held is of another system".to_owned()),
        }
    }
}

fn cpu_seconds(nodes: &[ServerProcess]) -> f64 {
    nodes.iter().map(ServerProcess::cpu_seconds).sum()
}

fn together(done: &[CallerFigures]) -> Histogram<u64> {
    let mut all = histogram();
    done.iter().for_each(|done| all += &done.latencies);
    all
}

fn row(all: &Histogram<u64>, length: Duration) -> String {
    let rate = as_f64(all.len()) / length.as_secs_f64();
    format!("{rate:>12.0} {:>8.2} {:>8.2}", ms(all, 0.5), ms(all, 0.99))
}

fn failed(done: &[CallerFigures]) -> String {
    let failures = done.iter().filter_map(|done| done.failure.as_ref()).collect::<Vec<_>>();
    failures
        .first()
        .map_or(String::new(), |first| format!("   {} stopped: {first}", failures.len()))
}
