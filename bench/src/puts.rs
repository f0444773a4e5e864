//! Durable puts on three real nodes, unary and pipelined, beside a bare tonic echo in the same run.

use std::time::{Duration, Instant};

use bytes::Bytes;
use hdrhistogram::Histogram;
use rand::Rng as _;
use trefoil_client::Client;

use crate::cluster::{BenchNodes, echo};
use crate::figures::{as_f64, histogram, micros, ms};
use crate::framed::Framed;
use crate::progress::wait;
use crate::way::{NodesInTurn, Way, channels, put_request};
use crate::{BenchError, BenchOutput};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct PutBench {
    #[command(flatten)]
    nodes: BenchNodes,
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
}

/// How a put is sent.
#[derive(Clone)]
enum Sender {
    Call(Way),
    Framed(Framed),
}

impl Sender {
    async fn put(&mut self, key: String, value: Bytes) -> bool {
        match self {
            Self::Call(way) => way.put(key, value).await.is_ok(),
            Self::Framed(framed) => framed.put(put_request(key, value)).await,
        }
    }
}

/// Runs everything and prints a table.
///
/// # Errors
/// When the nodes or the echo server do not start.
pub(crate) async fn run(options: PutBench, out: &mut BenchOutput) -> Result<(), BenchError> {
    let cluster = options.nodes.start()?;
    let (server, address) = echo()?;
    let echo = [address];
    let framed = Framed::open(channels(&echo).await?.remove(0)).await?;
    let unary = |nodes| Sender::Call(Way::Unary(nodes));
    let client = Client::connect(cluster.endpoints.clone()).await?;
    let ways = [
        ("echo unary", unary(NodesInTurn::connect(&echo).await?), false),
        ("echo framed", Sender::Framed(framed), false),
        ("put unary", unary(NodesInTurn::connect(&cluster.endpoints).await?), true),
        ("put pipelined", Sender::Call(Way::Library(client)), true),
    ];
    out.line("what           callers     per second   p50 ms   p99 ms   max ms   server us/call");
    for callers in &options.callers {
        for (name, sender, durable) in &ways {
            let cpu = || if *durable { cluster.cpu_seconds() } else { server.cpu_seconds() };
            let (before, begun) = (cpu(), Instant::now());
            let (histogram, failed) = drive(&options, *callers, sender, name).await?;
            let (seconds, count) = (begun.elapsed().as_secs_f64(), as_f64(histogram.len()));
            let cpu_us = (cpu() - before) * 1e6 / count.max(1.0);
            out.line(&format!(
                "{name:<14} {callers:>7} {:>14.0} {:>8.2} {:>8.2} {:>8.2} {cpu_us:>16.1}{}",
                count / seconds,
                ms(&histogram, 0.5),
                ms(&histogram, 0.99),
                ms(&histogram, 1.0),
                if failed > 0 { format!("   {failed} failed") } else { String::new() },
            ));
        }
    }
    Ok(())
}

/// Runs the callers; returns latencies of what was answered and the number of failures.
async fn drive(
    options: &PutBench,
    callers: usize,
    sender: &Sender,
    name: &str,
) -> Result<(Histogram<u64>, u64), BenchError> {
    let until = Instant::now() + Duration::from_secs(options.seconds);
    let (keys, value) = (options.keys, Bytes::from(vec![b'x'; options.bytes]));
    let tasks = (0..callers).map(|caller| {
        let sender = match sender {
            Sender::Call(way) => Sender::Call(way.of_caller(caller)),
            Sender::Framed(framed) => Sender::Framed(framed.clone()),
        };
        tokio::spawn(call(sender, keys, value.clone(), until))
    });
    let tasks = tasks.collect::<Vec<_>>();
    wait(options.seconds, name).await?;
    let (mut all, mut failed) = (histogram(), 0);
    for task in tasks {
        let (part, failures) = task.await?;
        all += part;
        failed += failures;
    }
    Ok((all, failed))
}

async fn call(
    mut sender: Sender,
    keys: u64,
    value: Bytes,
    until: Instant,
) -> (Histogram<u64>, u64) {
    let (mut histogram, mut failed) = (histogram(), 0);
    while Instant::now() < until {
        let key = rand::rng().random_range(0..keys);
        let begun = Instant::now();
        if sender.put(format!("key-{key}"), value.clone()).await {
            histogram.saturating_record(micros(begun.elapsed()));
        } else {
            failed += 1;
        }
    }
    (histogram, failed)
}
