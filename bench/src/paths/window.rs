//! The time that is measured: callers work before it begins and after it ends, so that it sees them at full speed only.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::time::sleep;

use super::PathSide;
use super::caller::PathCaller;
use super::counters::{CounterRates, NodeCounters};
use crate::BenchError;
use crate::cluster::ServerProcess;
use crate::figures::{histogram, micros};
use crate::progress::wait;
use crate::usage::{UsageSoFar, UsedMeanwhile, cpu_seconds};

/// How long callers work before they are measured.
const WARM_UP: Duration = Duration::from_secs(1);
/// Pause of a caller whose operation failed.
const PAUSE: Duration = Duration::from_millis(10);

/// What came of it.
#[derive(Debug)]
pub(super) struct WindowFigures {
    pub(super) seconds: f64,
    pub(super) latencies: Histogram<u64>,
    /// Operations of each caller.
    pub(super) each: Vec<u64>,
    pub(super) failures: u64,
    pub(super) failure: Option<String>,
    pub(super) nodes: Vec<UsedMeanwhile>,
    /// CPU seconds of this program.
    pub(super) client: f64,
    pub(super) rates: CounterRates,
    pub(super) resident_mib: Vec<f64>,
}

/// What callers are told.
#[derive(Debug, Default)]
struct WindowSignals {
    counted: AtomicBool,
    over: AtomicBool,
}

/// What one caller has done while it counted.
struct CallerCount {
    latencies: Histogram<u64>,
    failures: u64,
    failure: Option<String>,
}

/// CPU of everybody at one moment.
struct UsageOfAll {
    nodes: Vec<UsageSoFar>,
    client: f64,
}

/// Lets the callers work, and looks at both ends of the time that counts.
///
/// # Errors
/// When a node does not answer or has ended.
pub(super) async fn measure(
    side: &PathSide,
    callers: Vec<PathCaller>,
    what: &str,
    seconds: u64,
) -> Result<WindowFigures, BenchError> {
    let signals = Arc::new(WindowSignals::default());
    let repeat = |caller| tokio::spawn(repeat(caller, Arc::clone(&signals)));
    let tasks = callers.into_iter().map(repeat).collect::<Vec<_>>();
    sleep(WARM_UP).await;
    let counters = NodeCounters::read(side).await?;
    // In the same order at both ends: both times are as long, and asking for metrics is in none of them.
    let usage = UsageOfAll::read(side)?;
    signals.counted.store(true, Ordering::Relaxed);
    let begun = Instant::now();
    wait(seconds, what).await?;
    let usage_after = UsageOfAll::read(side)?;
    signals.counted.store(false, Ordering::Relaxed);
    let seconds = begun.elapsed().as_secs_f64();
    let resident_mib = side.cluster.nodes.iter().map(ServerProcess::resident_mib).collect();
    let rates = NodeCounters::read(side).await?.since(&counters);
    signals.over.store(true, Ordering::Relaxed);
    let mut figures = WindowFigures {
        seconds,
        latencies: histogram(),
        each: Vec::new(),
        failures: 0,
        failure: None,
        nodes: usage_after.nodes.iter().zip(&usage.nodes).map(|(n, then)| n.since(then)).collect(),
        client: usage_after.client - usage.client,
        rates,
        resident_mib,
    };
    for task in tasks {
        figures.add(task.await?);
    }
    Ok(figures)
}

async fn repeat(mut caller: PathCaller, signals: Arc<WindowSignals>) -> CallerCount {
    let mut count = CallerCount { latencies: histogram(), failures: 0, failure: None };
    while !signals.over.load(Ordering::Relaxed) {
        let begun = Instant::now();
        let ended = caller.once().await;
        let counts = signals.counted.load(Ordering::Relaxed);
        match ended {
            Ok(()) if counts => count.latencies.saturating_record(micros(begun.elapsed())),
            Ok(()) => {}
            Err(failure) => {
                count.failures += u64::from(counts);
                count.failure.get_or_insert(failure);
                sleep(PAUSE).await;
            }
        }
    }
    if let Err(failure) = caller.end().await {
        count.failure.get_or_insert(failure);
    }
    count
}

impl WindowFigures {
    fn add(&mut self, count: CallerCount) {
        self.each.push(count.latencies.len());
        self.latencies += count.latencies;
        self.failures += count.failures;
        self.failure = self.failure.take().or(count.failure);
    }
}

impl UsageOfAll {
    fn read(side: &PathSide) -> Result<Self, BenchError> {
        let nodes =
            side.cluster.nodes.iter().map(ServerProcess::usage).collect::<Result<_, _>>()?;
        Ok(Self { nodes, client: cpu_seconds("/proc/self/stat") })
    }
}
