//! Starts the node's threads and ends them in order.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use trefoil_core::ShardId;
use trefoil_core::limits::RESERVE_BYTES;
use trefoil_core::replica::Replica;

use super::applier::{Applier, Owned};
use super::config::StartError;
use super::digests;
use super::files::Files;
use super::formation;
use super::jobs::Workers;
use super::keeper::{DiskKeeper, FullDisk};
use super::reader;
use super::replicas::Replicas;
use super::scrub::Scrub;
use super::writer::LogWriter;
use crate::peer::Links;
use crate::shared::Shared;
use crate::shared::mailbox::Mailbox;
use crate::storage::{EngineLog, Reserve};

/// Threads that apply, at most.
const APPLIERS_MAX: usize = 2;
/// Longest wait for the first word of peers.
const HOLD: Duration = Duration::from_secs(1);

/// Longest wait for a file that a stream is reading or writing.
const STREAMS_WAIT: Duration = Duration::from_secs(1);

/// What the threads begin with.
#[derive(Debug)]
pub(super) struct Parts {
    pub(super) shared: Arc<Shared>,
    pub(super) links: Arc<Links>,
    pub(super) log: Arc<EngineLog>,
    pub(super) owned: BTreeMap<ShardId, Owned>,
    pub(super) replicas: Vec<Replica>,
    pub(super) root: PathBuf,
    pub(super) min_free_bytes: u64,
    pub(super) cache_bytes: usize,
    pub(super) force_new_cluster: bool,
}

/// The running threads.
#[derive(Debug)]
pub(super) struct Threads {
    shared: Arc<Shared>,
    workers: Workers,
    keeper: Arc<Mailbox<()>>,
    replicas: Vec<JoinHandle<()>>,
    writers: Vec<JoinHandle<()>>,
    others: Vec<JoinHandle<()>>,
}

/// A node that has lost a thread must not go on: it would hold leaderships and answer nobody. In a release build a
/// panic ends the process anyhow.
struct AbortOnPanic;

impl Drop for AbortOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            std::process::abort();
        }
    }
}

fn spawn(name: String, body: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, StartError> {
    let body = move || {
        let _guard = AbortOnPanic;
        body();
    };
    let spawned = std::thread::Builder::new().name(name).spawn(body);
    spawned.map_err(|error| StartError::System { what: "a thread", error })
}

fn digester(shared: &Arc<Shared>, workers: &Workers) -> Result<JoinHandle<()>, StartError> {
    let (shared, jobs) = (Arc::clone(shared), Arc::clone(&workers.digests));
    spawn("digests".to_owned(), move || digests::run(&shared, &jobs))
}

fn log_reader(
    shared: &Arc<Shared>,
    log: &Arc<EngineLog>,
    workers: &Workers,
) -> Result<JoinHandle<()>, StartError> {
    let (shared, log, jobs) = (Arc::clone(shared), Arc::clone(log), Arc::clone(&workers.reader));
    spawn("log-reader".to_owned(), move || reader::run(&shared, &log, &jobs))
}

/// Reads what is in the state files that are whole.
fn scrub_of(owned: &BTreeMap<ShardId, Owned>) -> Scrub {
    let file = |owned: &Owned| Some(owned.state.as_ref()?.store.file().clone());
    Scrub::new(owned.iter().filter_map(|(shard, owned)| Some((*shard, file(owned)?))).collect())
}

fn workers() -> Workers {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let applier = |_| Arc::new(Mailbox::new("applier"));
    Workers {
        writer: Arc::new(Mailbox::new("log-writer")),
        reader: Arc::new(Mailbox::new("log-reader")),
        appliers: (0..cores.min(APPLIERS_MAX)).map(applier).collect(),
        files: Arc::new(Mailbox::new("checkpoint")),
        digests: Arc::new(Mailbox::new("digests")),
    }
}

impl Threads {
    pub(super) fn start(parts: Parts) -> Result<Self, StartError> {
        let Parts { shared, links, log, mut owned, replicas, root, .. } = parts;
        let (min_free_bytes, cache_bytes) = (parts.min_free_bytes, parts.cache_bytes);
        let workers = workers();
        let keeper = Arc::new(Mailbox::new("keeper"));
        let reserve = Arc::new(Reserve::open(&root, RESERVE_BYTES));
        let full = FullDisk { reserve: Arc::clone(&reserve), keeper: Arc::clone(&keeper) };
        let mut threads = Self {
            shared: Arc::clone(&shared),
            workers: workers.clone(),
            keeper: Arc::clone(&keeper),
            replicas: Vec::new(),
            writers: Vec::new(),
            others: vec![digester(&shared, &workers)?],
        };

        let scrub = scrub_of(&owned);
        for (n, jobs) in workers.appliers.iter().enumerate() {
            let applier = Applier {
                shared: Arc::clone(&shared),
                log: Arc::clone(&log),
                root: root.clone(),
                cache_bytes,
                jobs: Arc::clone(jobs),
                workers: workers.clone(),
                links: Arc::clone(&links),
                shards: owned.extract_if(.., |shard, _| workers.applier(*shard) == n).collect(),
            };
            threads.others.push(spawn(format!("applier-{n}"), move || applier.run())?);
        }
        let (jobs, writer_log) = (Arc::clone(&workers.writer), Arc::clone(&log));
        let writer = LogWriter {
            shared: Arc::clone(&shared),
            log: writer_log,
            jobs,
            workers: workers.clone(),
            full: full.clone(),
            mark_due: None,
        };
        threads.writers.push(spawn("log-writer".to_owned(), move || writer.run())?);

        threads.others.push(log_reader(&shared, &log, &workers)?);

        let (jobs, root_of_files) = (Arc::clone(&workers.files), root.clone());
        let files = Files {
            shared: Arc::clone(&shared),
            root: root_of_files,
            cache_bytes,
            jobs,
            workers: workers.clone(),
            full,
            scrub,
        };
        threads.others.push(spawn("checkpoint".to_owned(), move || files.run())?);

        let keeper = DiskKeeper {
            shared: Arc::clone(&shared),
            log,
            root,
            min_free_bytes,
            reserve,
            wake: keeper,
            disk_low: false,
        };
        threads.others.push(spawn("keeper".to_owned(), move || keeper.run())?);

        let replicas = Replicas::new(Arc::clone(&shared), replicas, workers, Arc::clone(&links));
        let force = parts.force_new_cluster;
        let run = move || {
            let held = formation::wait(&shared, &links, force);
            links.wait_for_first_words(HOLD);
            replicas.run(held);
        };
        threads.replicas.push(spawn("replicas".to_owned(), run)?);
        Ok(threads)
    }

    /// Ends the threads: first who gives work, then who does it. Blocks.
    pub(super) fn stop(self) {
        self.shared.inbox.close();
        join(self.replicas);
        self.workers.writer.close();
        join(self.writers);
        for applier in &self.workers.appliers {
            applier.close();
        }
        self.workers.reader.close();
        self.workers.files.close();
        self.workers.digests.close();
        self.keeper.close();
        join(self.others);
    }
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        thread.join().expect("a panic of a thread ends the process");
    }
}

/// The runtime of the peer streams: its own, so that a burst of clients does not delay a heartbeat.
#[derive(Debug)]
pub(super) struct PeerRuntime(Option<tokio::runtime::Runtime>);

impl PeerRuntime {
    pub(super) fn start() -> Result<Self, StartError> {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder
            .worker_threads(2)
            .max_blocking_threads(16)
            .thread_name("peer")
            .enable_all()
            .build();
        let runtime = runtime
            .map_err(|error| StartError::System { what: "the runtime of the peers", error })?;
        Ok(Self(Some(runtime)))
    }

    /// Ends every stream and closes the peer port. Blocks.
    pub(super) fn stop(mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_timeout(STREAMS_WAIT);
        }
    }

    pub(super) fn handle(&self) -> tokio::runtime::Handle {
        self.0.as_ref().expect("it runs until it is dropped").handle().clone()
    }
}

impl Drop for PeerRuntime {
    fn drop(&mut self) {
        if let Some(runtime) = self.0.take() {
            runtime.shutdown_background();
        }
    }
}
