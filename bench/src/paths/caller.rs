//! One caller of a row, and what it does again and again.

use bytes::Bytes;
use rand::Rng as _;

use super::{PathBench, PathWork};
use crate::BenchError;
use crate::locks::LockCaller;
use crate::memory;
use crate::way::Way;

/// The one queue, with as many partitions as a queue has where nothing is said.
pub(super) const QUEUE: &str = "paths";

/// With all that it needs for an operation.
pub(super) enum PathCaller {
    Put { way: Way, keys: usize, value: Bytes },
    Get { way: Way, keys: usize },
    Lock { caller: LockCaller, lock: String },
    Queue { way: Way, batch: u32, value: Bytes },
}

impl PathCaller {
    /// The one of this number.
    ///
    /// # Errors
    /// When it needs a session and cannot open it.
    pub(super) async fn new(
        work: PathWork,
        way: Way,
        n: usize,
        options: &PathBench,
    ) -> Result<Self, BenchError> {
        let (keys, value) = (options.keys, Bytes::from(vec![b'x'; options.value]));
        Ok(match work {
            PathWork::Put => Self::Put { way, keys, value },
            PathWork::Get => Self::Get { way, keys },
            PathWork::Lock => {
                Self::Lock { caller: LockCaller::open(way).await?, lock: format!("own-{n}") }
            }
            PathWork::HandOff => {
                Self::Lock { caller: LockCaller::open(way).await?, lock: "shared".to_owned() }
            }
            PathWork::Queue => Self::Queue { way, batch: 1, value },
            PathWork::QueueBatch => Self::Queue { way, batch: options.batch, value },
        })
    }

    /// One operation.
    ///
    /// # Errors
    /// What the first of its calls that failed says.
    pub(super) async fn once(&mut self) -> Result<(), String> {
        match self {
            Self::Put { way, keys, value } => way.put(key_of(*keys), value.clone()).await,
            Self::Get { way, keys } => match way.get(key_of(*keys)).await {
                Ok(false) => Err("a key that was written is not there".to_owned()),
                Ok(true) => Ok(()),
                Err(failure) => Err(failure),
            },
            Self::Lock { caller, lock } => caller.pair(lock).await,
            Self::Queue { way, batch, value } => cycle(way, *batch, value).await,
        }
    }

    /// Leaves nothing that the nodes would have to end later.
    ///
    /// # Errors
    /// When its session cannot be closed.
    pub(super) async fn end(self) -> Result<(), String> {
        match self {
            Self::Lock { caller, .. } => caller.close().await,
            _ => Ok(()),
        }
    }
}

fn key_of(keys: usize) -> String {
    memory::key(rand::rng().random_range(0..keys))
}

/// Enqueues a batch, and takes and acknowledges as many messages: those of others as well, since others take these.
async fn cycle(way: &mut Way, batch: u32, value: &Bytes) -> Result<(), String> {
    way.enqueue(QUEUE, value, batch).await?;
    let mut left = batch;
    while left > 0 {
        let leases = way.dequeue(QUEUE, left).await?;
        if leases.is_empty() {
            return Err("no message came in time".to_owned());
        }
        for lease_id in leases {
            way.ack(QUEUE, lease_id).await?;
            left -= 1;
        }
    }
    Ok(())
}
