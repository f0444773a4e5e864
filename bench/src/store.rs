//! Uniform puts through changes in memory with checkpoints: redb, as the server uses it, beside fjall.
//!
//! This is what a state file has to bear at its worst: every checkpoint touches leaves all over the tree. A small
//! synced append runs beside it and tells what the Raft log would feel.

use std::collections::BTreeMap;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use clap::ValueEnum;
use hdrhistogram::Histogram;
use rand::{RngCore as _, SeedableRng as _};
use trefoil_core::store::Store as _;
use trefoil_server::storage::StateStore;
use trefoil_server::storage::checkpoint::Written;

use crate::figures::{as_f64, micros};
use crate::usage::cpu_seconds;
use crate::{BenchError, BenchOutput};

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct StoreBench {
    /// Engines, one row each.
    #[arg(
        long,
        value_enum,
        value_delimiter = ',',
        default_value = "redb,fjall-batch,fjall-ingest"
    )]
    engines: Vec<Engine>,
    /// Different keys.
    #[arg(long, default_value_t = 1_000_000)]
    keys: u64,
    /// Puts; as many as there are keys where this is not given.
    #[arg(long)]
    puts: Option<u64>,
    /// Bytes of a value.
    #[arg(long, default_value_t = 100)]
    bytes: usize,
    /// MiB of changes that make a checkpoint.
    #[arg(long, default_value_t = 32)]
    checkpoint_mib: u64,
    /// MiB of memory for pages.
    #[arg(long, default_value_t = 64)]
    cache_mib: usize,
    /// MiB a second that a checkpoint of redb writes at most; 0 is no limit.
    #[arg(long, default_value_t = 0)]
    rate_mib: u64,
    /// Folder for the data; it should be on the disk that counts.
    #[arg(long, default_value = "target")]
    folder: PathBuf,
}

/// A state store.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Engine {
    /// The server's: each checkpoint is one synced transaction.
    Redb,
    /// Each checkpoint is one batch, synced through fjall's journal.
    FjallBatch,
    /// Each checkpoint is one sorted table, past fjall's journal.
    FjallIngest,
}

type ChangedRecords = BTreeMap<Bytes, Bytes>;
type CheckpointTask = Box<dyn FnOnce() -> Result<Option<Written>, BenchError> + Send>;

/// What changes in memory, and is written from time to time.
enum StoreUnderTest {
    Redb {
        store: Box<StateStore>,
        rate: Option<u64>,
    },
    Fjall {
        database: fjall::Database,
        records: fjall::Keyspace,
        ingest: bool,
        changes: ChangedRecords,
        bytes: u64,
    },
}

impl StoreUnderTest {
    fn open(engine: Engine, folder: &Path, options: &StoreBench) -> Result<Self, BenchError> {
        let cache_bytes = options.cache_mib << 20;
        let ingest = match engine {
            Engine::Redb => {
                let rate = (options.rate_mib > 0).then_some(options.rate_mib << 20);
                return Ok(Self::Redb {
                    store: Box::new(StateStore::create(folder, 1, 1, cache_bytes)?),
                    rate,
                });
            }
            Engine::FjallBatch => false,
            Engine::FjallIngest => true,
        };
        let database = fjall::Database::builder(folder).cache_size(cache_bytes as u64).open()?;
        let records = database.keyspace("records", fjall::KeyspaceCreateOptions::default)?;
        Ok(Self::Fjall { database, records, ingest, changes: ChangedRecords::new(), bytes: 0 })
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        match self {
            Self::Redb { store, .. } => store.put(key, value),
            Self::Fjall { changes, bytes, .. } => {
                // As the server counts: what a change takes beside key and value.
                let added = (key.len() + value.len() + 96) as u64;
                if changes.insert(key, value).is_none() {
                    *bytes += added;
                }
            }
        }
    }

    fn get(&self, key: &[u8]) -> Result<bool, BenchError> {
        Ok(match self {
            Self::Redb { store, .. } => store.get(key).is_some(),
            Self::Fjall { records, .. } => records.get(key)?.is_some(),
        })
    }

    /// Bytes of changes that no checkpoint has taken yet, and whether one runs.
    fn changed(&self, running: u64) -> u64 {
        match self {
            Self::Redb { store, .. } => store.overlay_bytes() - running,
            Self::Fjall { bytes, .. } => *bytes,
        }
    }

    fn freeze(&mut self) -> Option<CheckpointTask> {
        match self {
            Self::Redb { store, rate } => {
                let (checkpoint, rate) = (store.freeze()?, *rate);
                Some(Box::new(move || Ok(Some(checkpoint.write_in_place(rate)?))))
            }
            Self::Fjall { database, records, ingest, changes, bytes } => {
                let changes = std::mem::take(changes);
                *bytes = 0;
                let (database, records, ingest) = (database.clone(), records.clone(), *ingest);
                Some(Box::new(move || {
                    if ingest {
                        let mut ingestion = records.start_ingestion()?;
                        for (key, value) in &changes {
                            ingestion.write(key.as_ref(), value.as_ref())?;
                        }
                        ingestion.finish()?;
                    } else {
                        let mut batch =
                            database.batch().durability(Some(fjall::PersistMode::SyncData));
                        for (key, value) in &changes {
                            batch.insert(&records, key.as_ref(), value.as_ref());
                        }
                        batch.commit()?;
                    }
                    Ok(None)
                }))
            }
        }
    }

    fn finish(&mut self, written: Option<Written>) {
        if let (Self::Redb { store, .. }, Some(written)) = (self, written) {
            store.finish(written);
        }
    }

    /// Waits until what was put off is done, a minute at most.
    fn settle(&self) {
        let Self::Fjall { database, .. } = self else { return };
        let deadline = Instant::now() + Duration::from_secs(60);
        while Instant::now() < deadline
            && (database.active_compactions() > 0 || database.outstanding_flushes() > 0)
        {
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn file_bytes(&self) -> Result<u64, BenchError> {
        Ok(match self {
            Self::Redb { store, .. } => store.file().bytes(),
            Self::Fjall { database, .. } => database.disk_space()?,
        })
    }
}

/// Measures each engine in turn.
///
/// # Errors
/// When an engine fails.
pub(crate) fn run(options: &StoreBench, out: &mut BenchOutput) -> Result<(), BenchError> {
    let puts = options.puts.unwrap_or(options.keys);
    out.line(&format!(
        "{puts} uniform puts over {} keys, {}-byte values, checkpoints of {} MiB, {} MiB of page cache",
        options.keys, options.bytes, options.checkpoint_mib, options.cache_mib
    ));
    out.line(
        "engine        seconds  cpu_s  us_cpu/put  written_mib  written/put  file_mib  get_us  absent_us  fsync_p50_us  fsync_p99_us  fsync_max_us  checkpoints  longest_s",
    );
    for engine in &options.engines {
        let folder = options.folder.join(format!("bench-store-{}-{engine:?}", std::process::id()));
        std::fs::create_dir_all(&folder)?;
        let row = measure(*engine, &folder, options, puts);
        std::fs::remove_dir_all(&folder)?;
        out.line(&row?);
    }
    Ok(())
}

fn measure(
    engine: Engine,
    folder: &Path,
    options: &StoreBench,
    puts: u64,
) -> Result<String, BenchError> {
    let mut state = StoreUnderTest::open(engine, folder, options)?;
    let stop = Arc::new(AtomicBool::new(false));
    let log = {
        let (path, stop) = (folder.join("append"), Arc::clone(&stop));
        std::thread::spawn(move || append(&path, &stop))
    };
    let before = ProcessUsage::now()?;
    let begun = Instant::now();
    let (checkpoints, longest) = fill(&mut state, options, puts)?;
    let seconds = begun.elapsed().as_secs_f64();
    state.settle();
    let used = ProcessUsage::now()?;
    stop.store(true, Ordering::Release);
    let synced = log.join().map_err(|_| "the appending thread failed")??;
    let (get, absent) = (read(&state, options.keys, 0)?, read(&state, options.keys, options.keys)?);
    let cpu = used.cpu_seconds - before.cpu_seconds;
    let written = used.written_bytes - before.written_bytes;
    Ok(format!(
        "{:<12} {seconds:>8.1} {cpu:>6.1} {:>11.2} {:>12} {:>12} {:>9} {get:>7.1} {absent:>10.1} {:>13} {:>13} {:>13} {checkpoints:>12} {longest:>10.1}",
        engine.to_possible_value().map_or_else(String::new, |name| name.get_name().to_owned()),
        cpu * 1e6 / as_f64(puts),
        written >> 20,
        written / puts,
        state.file_bytes()? >> 20,
        synced.value_at_quantile(0.5),
        synced.value_at_quantile(0.99),
        synced.max(),
    ))
}

/// Puts, with a checkpoint on another thread whenever enough has changed; who is faster than that waits.
fn fill(
    state: &mut StoreUnderTest,
    options: &StoreBench,
    puts: u64,
) -> Result<(u32, f64), BenchError> {
    let mut random = rand::rngs::SmallRng::seed_from_u64(7);
    let limit = options.checkpoint_mib << 20;
    let mut running = None;
    let (mut frozen_bytes, mut checkpoints, mut longest) = (0, 0, 0.0_f64);
    for n in 0..=puts {
        let last = n == puts;
        if !last {
            let mut value = vec![0; options.bytes];
            random.fill_bytes(&mut value);
            state.put(key(random.next_u64() % options.keys), value.into());
        }
        if state.changed(frozen_bytes) < limit && !last {
            continue;
        }
        join(state, &mut running, &mut longest)?;
        frozen_bytes = state.changed(0);
        if let Some(job) = state.freeze() {
            checkpoints += 1;
            running = Some(std::thread::spawn(move || {
                let begun = Instant::now();
                job()
                    .map(|written| (written, begun.elapsed().as_secs_f64()))
                    .map_err(|failure| failure.to_string())
            }));
        }
    }
    join(state, &mut running, &mut longest)?;
    Ok((checkpoints, longest))
}

type RunningCheckpoint = std::thread::JoinHandle<Result<(Option<Written>, f64), String>>;

fn join(
    state: &mut StoreUnderTest,
    running: &mut Option<RunningCheckpoint>,
    longest: &mut f64,
) -> Result<(), BenchError> {
    if let Some(running) = running.take() {
        let (written, seconds) = running.join().map_err(|_| "a checkpoint failed")??;
        state.finish(written);
        *longest = longest.max(seconds);
    }
    Ok(())
}

/// A key of 19 bytes, spread evenly: a slot, a kind, and what names the record.
fn key(n: u64) -> Bytes {
    let mixed = (n ^ (n >> 31)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mixed = (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let mut key = Vec::with_capacity(19);
    key.extend_from_slice(&mixed.to_be_bytes()[..2]);
    key.push(49);
    key.extend_from_slice(&mixed.to_be_bytes());
    key.extend_from_slice(&n.to_be_bytes());
    key.into()
}

/// Mean of uniform reads in microseconds, of keys from `first` on.
fn read(state: &StoreUnderTest, keys: u64, first: u64) -> Result<f64, BenchError> {
    const READS: u64 = 50_000;
    let mut random = rand::rngs::SmallRng::seed_from_u64(8);
    let begun = Instant::now();
    let mut found = 0_u64;
    for _ in 0..READS {
        found += u64::from(state.get(&key(first + random.next_u64() % keys))?);
    }
    if first >= keys && found > 0 {
        return Err("a key was found that was never put".into());
    }
    Ok(begun.elapsed().as_secs_f64() * 1e6 / as_f64(READS))
}

/// A small synced append every few milliseconds: what the Raft log feels.
fn append(path: &Path, stop: &AtomicBool) -> Result<Histogram<u64>, std::io::Error> {
    let mut file = std::fs::File::create(path)?;
    let mut histogram = Histogram::new_with_max(60_000_000, 3).map_err(std::io::Error::other)?;
    while !stop.load(Ordering::Acquire) {
        let begun = Instant::now();
        file.write_all(&[1; 256])?;
        file.sync_data()?;
        histogram.saturating_record(micros(begun.elapsed()));
        std::thread::park_timeout(Duration::from_millis(3));
    }
    Ok(histogram)
}

/// What this process has used.
struct ProcessUsage {
    cpu_seconds: f64,
    written_bytes: u64,
}

impl ProcessUsage {
    fn now() -> Result<Self, BenchError> {
        let io = std::fs::read_to_string("/proc/self/io")?;
        let written = io.lines().find_map(|line| line.strip_prefix("write_bytes: ")?.parse().ok());
        let written_bytes = written.ok_or("/proc/self/io does not say what was written")?;
        Ok(Self { cpu_seconds: cpu_seconds("/proc/self/stat"), written_bytes })
    }
}
