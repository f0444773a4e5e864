//! The hot paths on three real nodes: how fast each is and what it costs, for one binary or two in turns.

mod caller;
mod counters;
mod row;
mod table;
mod window;

use std::path::{Path, PathBuf};

use clap::ValueEnum;
use trefoil_client::Client;

use self::caller::{PathCaller, QUEUE};
use self::row::PathRow;
use self::table::PathTable;
use crate::cluster::{BenchCluster, BenchNodes};
use crate::memory;
use crate::way::{NodesInTurn, Way};
use crate::{BenchError, BenchOutput};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct PathBench {
    #[command(flatten)]
    nodes: BenchNodes,
    /// Another `trefoil` binary, the old one: each row is measured with it and with the new one in turn.
    #[arg(long)]
    against: Option<PathBuf>,
    /// How often each row is measured; ratios are those of the medians.
    #[arg(long, default_value_t = 1)]
    rounds: usize,
    /// What the callers do.
    #[arg(long, value_enum, value_delimiter = ',')]
    #[arg(default_value = "put,get,lock,queue,queue-batch,hand-off")]
    work: Vec<PathWork>,
    /// How they call; a hand-off is by the library alone.
    #[arg(long, value_enum, value_delimiter = ',', default_value = "library,unary")]
    through: Vec<Through>,
    /// Concurrent callers, one row each.
    #[arg(long, value_delimiter = ',', default_value = "1,16,64,256,1024")]
    callers: Vec<usize>,
    /// Callers that pass one lock around.
    #[arg(long, default_value_t = 16)]
    waiters: usize,
    /// Seconds that are measured of each row; less than 10 is for a look only.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Different keys, each written once before.
    #[arg(long, default_value_t = 10_000)]
    keys: usize,
    /// Bytes of a value.
    #[arg(long, default_value_t = 256)]
    value: usize,
    /// Messages of one operation of `queue-batch`.
    #[arg(long, default_value_t = 10)]
    batch: u32,
    /// Says below each row what the threads of the nodes used.
    #[arg(long)]
    threads: bool,
    /// Prints one JSON document instead of a table.
    #[arg(long)]
    json: bool,
}

/// One operation of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum PathWork {
    /// Puts a key drawn from all.
    Put,
    /// Gets a key drawn from all.
    Get,
    /// Acquires and releases a lock of its own.
    Lock,
    /// Enqueues a message, dequeues one and acknowledges it.
    Queue,
    /// The same with several messages in one call; each is acknowledged by itself.
    QueueBatch,
    /// Acquires and releases the one lock that all wait for.
    HandOff,
}

/// How calls are sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Through {
    /// By one client of the library for all callers.
    Library,
    /// As plain gRPC, at each node in turn.
    Unary,
}

/// What one row measures.
#[derive(Clone, Copy, Debug)]
struct PathPlan {
    work: PathWork,
    through: Through,
    callers: usize,
}

/// One binary under test.
struct PathSide {
    name: &'static str,
    cluster: BenchCluster,
    client: Client,
    nodes: NodesInTurn,
}

/// Runs everything and prints a table or a document.
///
/// # Errors
/// When the nodes do not start, a key cannot be written or a session not be opened.
pub(crate) async fn run(options: PathBench, out: &mut BenchOutput) -> Result<(), BenchError> {
    let mut sides = Vec::new();
    if let Some(against) = &options.against {
        sides.push(PathSide::start(against, &options, "old").await?);
    }
    sides.push(PathSide::start(&options.nodes.trefoil, &options, "new").await?);
    let mut table = PathTable::new(options.threads, options.json);
    table.head(out);
    for plan in options.plans() {
        let mut rows = Vec::new();
        for round in 1..=options.rounds {
            for side in &sides {
                let row = side.measure(plan, round, &options).await?;
                table.row(&row, out);
                rows.push(row);
            }
        }
        table.end_of_plan(rows, out);
    }
    table.end(out)
}

impl PathBench {
    fn plans(&self) -> Vec<PathPlan> {
        let mut plans = Vec::new();
        for work in &self.work {
            if *work == PathWork::HandOff {
                let (through, callers) = (Through::Library, self.waiters);
                plans.push(PathPlan { work: *work, through, callers });
                continue;
            }
            for callers in &self.callers {
                let of = |through: &Through| PathPlan {
                    work: *work,
                    through: *through,
                    callers: *callers,
                };
                plans.extend(self.through.iter().map(of));
            }
        }
        plans
    }
}

impl PathSide {
    async fn start(
        trefoil: &Path,
        options: &PathBench,
        name: &'static str,
    ) -> Result<Self, BenchError> {
        let cluster = BenchCluster::start(trefoil, &options.nodes.folder, name)?;
        let client = Client::connect(cluster.endpoints.clone()).await?;
        let nodes = NodesInTurn::connect(&cluster.endpoints).await?;
        client.queue(QUEUE).create(0).await?;
        memory::write(&client, 0..options.keys, options.value).await?;
        Ok(Self { name, cluster, client, nodes })
    }

    async fn measure(
        &self,
        plan: PathPlan,
        round: usize,
        options: &PathBench,
    ) -> Result<PathRow, BenchError> {
        let mut callers = Vec::new();
        for n in 0..plan.callers {
            let way = match plan.through {
                Through::Library => Way::Library(self.client.clone()),
                Through::Unary => Way::Unary(self.nodes.of_caller(n)),
            };
            callers.push(PathCaller::new(plan.work, way, n, options).await?);
        }
        let seen = window::measure(self, callers, &plan.to_string(), options.seconds).await?;
        Ok(PathRow::new(plan, self.name, round, &seen))
    }
}

impl std::fmt::Display for PathPlan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:<11} {:<7} {:>7}", name(self.work), name(self.through), self.callers)
    }
}

/// As it stands on the command line.
fn name(value: impl ValueEnum) -> String {
    value.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned())
}
