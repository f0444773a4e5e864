//! Locks on three real nodes, by unary calls and by the client library, beside etcd in the same run.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use tonic::transport::{Channel, Endpoint};
use trefoil_client::{Client, Guard, Session};
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_proto::lock::v1::{AcquireRequest, OpenSessionRequest, ReleaseRequest};

use crate::cluster::{BenchCluster, ServerProcess};
use crate::etcd::{self, Lease};
use crate::{BenchError, BenchOutput};

/// TTL of all sessions and leases.
const TTL: Duration = Duration::from_secs(60);
/// Longer than any wait here.
const WAIT: Duration = Duration::from_secs(60);

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct LockBench {
    /// The `trefoil` binary to measure.
    #[arg(long, default_value = "target/release/trefoil")]
    trefoil: PathBuf,
    /// The `etcd` binary to compare with; without one its rows are left out.
    #[arg(long)]
    etcd: Option<PathBuf>,
    /// Folder for the data of the nodes; it should be on the disk that counts.
    #[arg(long, default_value = "target")]
    folder: PathBuf,
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
enum LockCaller {
    Unary { client: LockServiceClient<Channel>, session_id: u64 },
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
    Unary(Vec<Channel>),
    Library(Client),
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
    let cluster = BenchCluster::start(&options.trefoil, &options.folder)?;
    let etcd = options.etcd.as_ref().map(|etcd| etcd::start(etcd, &options.folder)).transpose()?;
    let client = Client::connect(cluster.endpoints.clone()).await?;
    let mut systems = vec![
        ("trefoil unary", System::Unary(channels(&cluster.endpoints).await?), &cluster.nodes),
        ("trefoil library", System::Library(client), &cluster.nodes),
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

async fn channels(endpoints: &[String]) -> Result<Vec<Channel>, BenchError> {
    let mut channels = Vec::new();
    for endpoint in endpoints {
        channels.push(Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true).connect().await?);
    }
    Ok(channels)
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
    let bar = ProgressBar::new(length.as_secs()).with_message(name.to_owned());
    bar.set_style(ProgressStyle::with_template("{msg:16} {wide_bar} {pos}/{len} s")?);
    let together = Arc::new(tokio::sync::Barrier::new(locks.len()));
    let tasks = callers.into_iter().zip(locks).map(|(caller, lock)| {
        let together = Arc::clone(&together);
        tokio::spawn(async move {
            together.wait().await;
            caller.repeat(&lock, Instant::now() + length).await
        })
    });
    let tasks = tasks.collect::<Vec<_>>();
    let ticks = tokio::spawn({
        let bar = bar.clone();
        async move {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                bar.inc(1);
            }
        }
    });
    let mut done = Vec::new();
    for task in tasks {
        done.push(task.await?);
    }
    ticks.abort();
    bar.finish_and_clear();
    Ok(done)
}

impl System {
    /// One more caller, with a session of its own.
    async fn caller(&self, n: usize) -> Result<LockCaller, BenchError> {
        Ok(match self {
            Self::Unary(channels) => {
                let mut client = LockServiceClient::new(channels[n % channels.len()].clone());
                let ttl_ms = u64::try_from(TTL.as_millis())?;
                let request = OpenSessionRequest { ttl_ms, ..OpenSessionRequest::default() };
                let session_id = client.open_session(request).await?.into_inner().session_id;
                LockCaller::Unary { client, session_id }
            }
            Self::Library(client) => LockCaller::Library(client.session(TTL).await?),
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
    async fn repeat(mut self, lock: &str, until: Instant) -> CallerFigures {
        let mut done = CallerFigures { latencies: histogram(), failure: None };
        while Instant::now() < until {
            let begun = Instant::now();
            let ended = match self.acquire(lock).await {
                Ok(held) => self.release(lock, held).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = ended {
                done.failure = Some(failure);
                break;
            }
            let micros = u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX);
            done.latencies.saturating_record(micros);
        }
        done
    }

    async fn acquire(&mut self, lock: &str) -> Result<LockHandle, String> {
        let held = || "the lock was not acquired".to_owned();
        match self {
            Self::Unary { client, session_id } => {
                let request = AcquireRequest {
                    session_id: *session_id,
                    name: lock.to_owned(),
                    wait_ms: u64::try_from(WAIT.as_millis()).unwrap_or(u64::MAX),
                    ..AcquireRequest::default()
                };
                let response = client.acquire(request).await.map_err(text)?.into_inner();
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
            (Self::Unary { client, session_id }, LockHandle::Token(fencing_token)) => {
                let request = ReleaseRequest {
                    session_id: *session_id,
                    name: lock.to_owned(),
                    fencing_token,
                    ..ReleaseRequest::default()
                };
                client.release(request).await.map(drop).map_err(text)
            }
            (Self::Library(_), LockHandle::Guard(guard)) => guard.release().await.map_err(text),
            (Self::Etcd(lease), LockHandle::Key(key)) => lease.unlock(key).await.map_err(text),
            _ => Err("what is held is of another system".to_owned()),
        }
    }
}

fn text(error: impl std::fmt::Display) -> String {
    error.to_string()
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
    let ms = |quantile| as_f64(all.value_at_quantile(quantile)) / 1e3;
    format!("{:>12.0} {:>8.2} {:>8.2}", as_f64(all.len()) / length.as_secs_f64(), ms(0.5), ms(0.99))
}

fn failed(done: &[CallerFigures]) -> String {
    let failures = done.iter().filter_map(|done| done.failure.as_ref()).collect::<Vec<_>>();
    failures
        .first()
        .map_or(String::new(), |first| format!("   {} stopped: {first}", failures.len()))
}

fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are right")
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn as_f64(number: u64) -> f64 {
    number as f64
}
