//! `trefoil bench ping`: ClusterService.Status on every node, many times; then on all nodes together.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use tokio::task::JoinSet;
use trefoil_client::Cluster;

use crate::args::ClientArgs;
use crate::client::connect;
use crate::exit::CommandFailure;
use crate::output::{self, CommandOutput, Format};

/// Digits of a latency that are kept.
const DIGITS: u8 = 3;

/// What to measure.
#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// Ask every node for its status, many times: successes, throughput, latency of each node and of the cluster.
    Ping(PingArgs),
}

/// How often.
#[derive(Clone, Debug, Args)]
pub(crate) struct PingArgs {
    /// Calls to each node.
    #[arg(long, env = "TREFOIL_BENCH_COUNT", value_name = "NUMBER", default_value_t = 1_000)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..))]
    count: u64,
    /// Calls at the same time.
    #[arg(long, env = "TREFOIL_BENCH_CONCURRENCY", value_name = "NUMBER", default_value_t = 1)]
    #[arg(value_parser = clap::value_parser!(u64).range(1..=4_096))]
    concurrency: u64,
}

#[derive(Serialize)]
struct BenchPingOutput {
    count: u64,
    concurrency: u64,
    nodes: Vec<PingRow>,
    cluster: PingRow,
}

#[derive(Serialize)]
struct PingRow {
    endpoint: String,
    calls: u64,
    successes: u64,
    total_ms: f64,
    calls_per_second: f64,
    mean_ms: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    max_ms: f64,
}

/// What one caller saw.
struct PingResults {
    successes: u64,
    latency_us: Histogram<u64>,
}

pub(crate) async fn run(
    command: BenchCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let BenchCommand::Ping(ping) = command;
    let cluster = connect(args).await?.cluster();
    let endpoints = cluster.endpoints();
    let nodes = u64::try_from(endpoints.len()).unwrap_or(1);
    let bar = bar(ping.count * nodes * 2);
    let mut report = Vec::new();
    for endpoint in &endpoints {
        report.push(
            phase(&cluster, endpoint, std::slice::from_ref(endpoint), ping.count, &ping, &bar)
                .await?,
        );
    }
    let together = phase(&cluster, "cluster", &endpoints, ping.count * nodes, &ping, &bar).await?;
    bar.finish_and_clear();
    let is_clean = report.iter().chain([&together]).all(|row| row.successes == row.calls);
    let PingArgs { count, concurrency } = ping;
    output::print(
        format,
        &BenchPingOutput { count, concurrency, nodes: report, cluster: together },
    )?;
    Ok(if is_clean { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Calls the endpoints in turn, `calls` times in all.
async fn phase(
    cluster: &Cluster,
    name: &str,
    endpoints: &[String],
    calls: u64,
    args: &PingArgs,
    bar: &ProgressBar,
) -> Result<PingRow, CommandFailure> {
    let endpoints = Arc::<[String]>::from(endpoints);
    let next = Arc::new(AtomicU64::new(0));
    let started = Instant::now();
    let mut callers = JoinSet::new();
    for _ in 0..args.concurrency.min(calls) {
        let (cluster, endpoints, next, bar) =
            (cluster.clone(), Arc::clone(&endpoints), Arc::clone(&next), bar.clone());
        callers.spawn(async move {
            let mut seen = PingResults::new()?;
            loop {
                let n = next.fetch_add(1, Ordering::Relaxed);
                if n >= calls {
                    return Ok::<_, CommandFailure>(seen);
                }
                let turn = usize::try_from(n).unwrap_or(0) % endpoints.len();
                seen.call(&cluster, &endpoints[turn]).await;
                bar.inc(1);
            }
        });
    }
    let mut all = PingResults::new()?;
    for seen in callers.join_all().await {
        let seen = seen?;
        all.successes += seen.successes;
        let added = all.latency_us.add(&seen.latency_us);
        added.map_err(|error| CommandFailure::new(format!("cannot add latencies: {error}")))?;
    }
    Ok(all.row(name, calls, started.elapsed()))
}

impl PingResults {
    fn new() -> Result<Self, CommandFailure> {
        let latency_us =
            Histogram::new(DIGITS).map_err(|error| CommandFailure::new(error.to_string()))?;
        Ok(Self { successes: 0, latency_us })
    }

    async fn call(&mut self, cluster: &Cluster, endpoint: &str) {
        let started = Instant::now();
        if cluster.status_of(endpoint).await.is_ok() {
            self.successes += 1;
            // It grows by itself, so every latency fits.
            self.latency_us.saturating_record(
                u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX),
            );
        }
    }

    fn row(&self, endpoint: &str, calls: u64, total: Duration) -> PingRow {
        let at = |quantile: f64| ms(self.latency_us.value_at_quantile(quantile));
        let successes = u32::try_from(self.successes).map_or(f64::INFINITY, f64::from);
        PingRow {
            endpoint: endpoint.to_owned(),
            calls,
            successes: self.successes,
            total_ms: total.as_secs_f64() * 1_000.0,
            calls_per_second: successes / total.as_secs_f64(),
            mean_ms: self.latency_us.mean() / 1_000.0,
            p50_ms: at(0.5),
            p90_ms: at(0.9),
            p99_ms: at(0.99),
            max_ms: ms(self.latency_us.max()),
        }
    }
}

fn ms(us: u64) -> f64 {
    Duration::from_micros(us).as_secs_f64() * 1_000.0
}

fn bar(calls: u64) -> ProgressBar {
    let style = ProgressStyle::with_template("{wide_bar} {pos}/{len} calls, {per_sec}");
    let bar = ProgressBar::with_draw_target(Some(calls), ProgressDrawTarget::stderr());
    bar.with_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()))
}

impl CommandOutput for BenchPingOutput {
    fn text(&self) -> String {
        let row = |row: &PingRow| {
            vec![
                row.endpoint.clone(),
                format!("{}/{}", row.successes, row.calls),
                format!("{:.1}", row.total_ms),
                format!("{:.0}", row.calls_per_second),
                format!("{:.3}", row.mean_ms),
                format!("{:.3}", row.p50_ms),
                format!("{:.3}", row.p90_ms),
                format!("{:.3}", row.p99_ms),
                format!("{:.3}", row.max_ms),
            ]
        };
        output::table(
            &["NODE", "SUCCESSES", "TOTAL MS", "CALLS/S", "MEAN MS", "P50", "P90", "P99", "MAX"],
            &[1, 2, 3, 4, 5, 6, 7, 8],
            self.nodes.iter().chain([&self.cluster]).map(row),
        )
    }
}
