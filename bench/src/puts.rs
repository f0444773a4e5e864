//! Durable puts on three real nodes, unary and pipelined, beside a bare tonic echo in the same run.

use std::future::Future;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use indicatif::{ProgressBar, ProgressStyle};
use rand::Rng as _;
use tonic::transport::{Channel, Endpoint};
use trefoil_client::Client;
use trefoil_proto::cache::v1::PutRequest;
use trefoil_proto::cache::v1::cache_service_client::CacheServiceClient;
use trefoil_proto::common::v1::{Value, value};

use crate::cluster::{BenchCluster, ServerProcess, echo};
use crate::framed::Framed;
use crate::{BenchError, BenchOutput};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct PutBench {
    /// The `trefoil` binary to measure.
    #[arg(long, default_value = "target/release/trefoil")]
    trefoil: PathBuf,
    /// Folder for the data of the nodes; it should be on the disk that counts.
    #[arg(long, default_value = "target")]
    folder: PathBuf,
    /// Concurrent callers, one row each.
    #[arg(long, value_delimiter = ',', default_value = "1,64,256")]
    callers: Vec<usize>,
    /// Seconds of each row.
    #[arg(long, default_value_t = 5)]
    seconds: u64,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    bytes: usize,
    /// Different keys.
    #[arg(long, default_value_t = 100_000)]
    keys: u64,
    /// Puts of the last part, after which memory is read; 0 leaves it out.
    #[arg(long, default_value_t = 1_000_000)]
    memory_puts: u64,
}

/// How a put is sent.
#[derive(Clone)]
enum Sender {
    Unary(CacheServiceClient<Channel>),
    Framed(Framed),
    Pipelined(Client),
}

impl Sender {
    async fn put(&mut self, key: String, value: Bytes) -> bool {
        match self {
            Self::Unary(client) => client.put(request(key, value)).await.is_ok(),
            Self::Framed(framed) => framed.put(request(key, value)).await,
            Self::Pipelined(client) => client.cache().put(key, value).await.is_ok(),
        }
    }
}

fn request(key: String, value: Bytes) -> PutRequest {
    let value = Some(Value { kind: Some(value::Kind::Data(value)) });
    PutRequest { key, value, ..PutRequest::default() }
}

/// Runs everything and prints a table.
///
/// # Errors
/// When the nodes or the echo server do not start, or a put fails.
pub(crate) async fn run(options: PutBench, out: &mut BenchOutput) -> Result<(), BenchError> {
    let cluster = BenchCluster::start(&options.trefoil, &options.folder)?;
    let (server, address) = echo()?;
    let idle = cluster.nodes.iter().map(ServerProcess::resident_mib).collect::<Vec<_>>();
    let channel = Endpoint::from_shared(address)?.tcp_nodelay(true).connect().await?;
    let client = Client::connect(cluster.endpoints.clone()).await?;
    let mut nodes = Vec::new();
    for endpoint in &cluster.endpoints {
        let channel = Endpoint::from_shared(endpoint.clone())?.tcp_nodelay(true).connect().await?;
        nodes.push(Sender::Unary(CacheServiceClient::new(channel)));
    }
    let ways: [(&str, Vec<Sender>, bool); 4] = [
        ("echo unary", vec![Sender::Unary(CacheServiceClient::new(channel.clone()))], false),
        ("echo framed", vec![Sender::Framed(Framed::open(channel).await?)], false),
        ("put unary", nodes, true),
        ("put pipelined", vec![Sender::Pipelined(client.clone())], true),
    ];
    out.line("what           callers     per second   p50 ms   p99 ms   max ms   server us/call");
    for callers in &options.callers {
        for (name, senders, durable) in &ways {
            let cpu = || if *durable { cluster.cpu_seconds() } else { server.cpu_seconds() };
            let load = PutLoad { callers: *callers, keys: options.keys, bytes: options.bytes };
            let stop = StopAfter::After(Duration::from_secs(options.seconds));
            let before = cpu();
            let (histogram, seconds, failed) = drive(&load, senders, stop, name).await;
            let count = histogram.len();
            let cpu_us = (cpu() - before) * 1e6 / as_f64(count.max(1));
            let ms = |quantile| as_f64(histogram.value_at_quantile(quantile)) / 1e3;
            out.line(&format!(
                "{name:<14} {callers:>7} {:>14.0} {:>8.2} {:>8.2} {:>8.2} {cpu_us:>16.1}{}",
                as_f64(count) / seconds,
                ms(0.5),
                ms(0.99),
                ms(1.0),
                if failed > 0 { format!("   {failed} failed") } else { String::new() },
            ));
        }
    }
    memory(&options, &cluster, client, &idle, out).await;
    Ok(())
}

async fn memory(
    options: &PutBench,
    cluster: &BenchCluster,
    client: Client,
    idle: &[f64],
    out: &mut BenchOutput,
) {
    let show = |values: &[f64]| {
        values.iter().map(|mib| format!("{mib:.0}")).collect::<Vec<_>>().join(", ")
    };
    out.line(&format!("resident MiB of idle nodes: {}", show(idle)));
    if options.memory_puts > 0 {
        let load = PutLoad { callers: 256, keys: options.memory_puts, bytes: options.bytes };
        let stop = StopAfter::Count(options.memory_puts);
        let (histogram, seconds, failed) =
            drive(&load, &[Sender::Pipelined(client)], stop, "memory").await;
        let after = cluster.nodes.iter().map(ServerProcess::resident_mib).collect::<Vec<_>>();
        out.line(&format!(
            "resident MiB after {} more puts in {seconds:.0} s ({failed} failed): {}",
            histogram.len(),
            show(&after)
        ));
    }
}

struct PutLoad {
    callers: usize,
    keys: u64,
    bytes: usize,
}

#[derive(Clone, Copy)]
enum StopAfter {
    After(Duration),
    Count(u64),
}

/// Runs the callers; returns latencies in us of what was answered, the time in seconds and the number of failures.
async fn drive(
    load: &PutLoad,
    senders: &[Sender],
    stop: StopAfter,
    name: &str,
) -> (Histogram<u64>, f64, u64) {
    let bar = ProgressBar::new(match stop {
        StopAfter::After(time) => time.as_secs(),
        StopAfter::Count(count) => count,
    });
    bar.set_style(
        ProgressStyle::default_bar()
            .template("{msg:14} {wide_bar} {pos}/{len}")
            .unwrap_or_else(|_| ProgressStyle::default_bar()),
    );
    bar.set_message(name.to_owned());
    let started = Instant::now();
    let done = Arc::new(AtomicU64::new(0));
    let tasks = (0..load.callers).map(|caller| {
        let sender = senders[caller % senders.len()].clone();
        tokio::spawn(call(sender, load.keys, load.bytes, stop, started, Arc::clone(&done)))
    });
    let tasks = tasks.collect::<Vec<_>>();
    let watch = watch(bar.clone(), stop, started, Arc::clone(&done));
    let mut histogram = empty();
    let mut failed = 0;
    tokio::pin!(watch);
    for task in tasks {
        let ended = tokio::select! {
            ended = task => ended,
            () = &mut watch => unreachable!("watching never ends"),
        };
        if let Ok((part, failures)) = ended {
            histogram += part;
            failed += failures;
        }
    }
    bar.finish_and_clear();
    (histogram, started.elapsed().as_secs_f64(), failed)
}

async fn watch(bar: ProgressBar, stop: StopAfter, started: Instant, done: Arc<AtomicU64>) {
    loop {
        tokio::time::sleep(Duration::from_millis(200)).await;
        bar.set_position(match stop {
            StopAfter::After(_) => started.elapsed().as_secs(),
            StopAfter::Count(_) => done.load(Ordering::Relaxed),
        });
    }
}

fn call(
    mut sender: Sender,
    keys: u64,
    bytes: usize,
    stop: StopAfter,
    started: Instant,
    done: Arc<AtomicU64>,
) -> impl Future<Output = (Histogram<u64>, u64)> {
    let value = Bytes::from(vec![b'x'; bytes]);
    async move {
        let (mut histogram, mut failed) = (empty(), 0);
        loop {
            let n = done.fetch_add(1, Ordering::Relaxed);
            let over = match stop {
                StopAfter::After(time) => started.elapsed() >= time,
                StopAfter::Count(count) => n >= count,
            };
            if over {
                return (histogram, failed);
            }
            let key = rand::rng().random_range(0..keys);
            let key = if matches!(stop, StopAfter::Count(_)) { n } else { key };
            let begun = Instant::now();
            if sender.put(format!("key-{key}"), value.clone()).await {
                histogram.saturating_record(
                    u64::try_from(begun.elapsed().as_micros()).unwrap_or(u64::MAX),
                );
            } else {
                failed += 1;
            }
        }
    }
}

fn empty() -> Histogram<u64> {
    Histogram::new_with_bounds(1, 60_000_000, 3).expect("the bounds are right")
}

#[allow(clippy::cast_precision_loss, reason = "figures for people")]
fn as_f64(number: u64) -> f64 {
    number as f64
}
