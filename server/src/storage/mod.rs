//! What a node keeps on disk: the Raft log of all shards in one engine, and one state file for each shard.
//!
//! In reading order: [`directory`] (whose data it is), [`log`] with [`files`] and [`mark`] (what is acknowledged is
//! never cut off), [`state`] (a file under changes in memory: `overlay`, `merge`, `gaps`), [`state_file`] over [`blocks`] (no byte unverified), [`generations`], [`checkpoint`], [`snapshot`], [`reserve`], [`node`] (all of it at the start).

mod backend;
pub mod blocks;
pub mod checkpoint;
pub mod directory;
mod durable;
pub mod evidence;
pub mod fault;
pub mod files;
mod gaps;
pub mod generations;
pub mod log;
pub mod mark;
mod merge;
pub mod node;
mod overlay;
mod pace;
mod records;
pub mod regions;
mod reserve;
mod scrub;
pub mod snapshot;
pub mod state;
pub mod state_file;

use bytes::Bytes;
use raft_proto::eraftpb::{Entry, HardState};
use trefoil_core::ShardId;
use trefoil_core::replica::{Boot, PersistBatch};

pub use self::directory::{DataDirectory, Expected, Identity};
pub use self::evidence::{Damaged, Unusable};
pub use self::fault::{OpenError, StorageError, die};
pub use self::log::EngineLog;
pub use self::reserve::Reserve;
pub use self::scrub::Scrubbed;
pub use self::state::StateStore;

/// The batch of one shard, to be written with those of other shards and synced once.
#[derive(Debug)]
pub enum LogWrite {
    /// Entries and hard state.
    Append(ShardId, PersistBatch),
    /// A snapshot becomes the state: the log is empty after (index, term), and `generation` names the state file.
    Install {
        /// The shard.
        shard: ShardId,
        /// Hard state whose commit is the snapshot's index.
        hard_state: HardState,
        /// Index and term of the snapshot.
        truncated: (u64, u64),
        /// Generation of the state file.
        generation: u64,
    },
    /// The state moved to another file, with nothing else changed.
    Move {
        /// The shard.
        shard: ShardId,
        /// Generation of the state file.
        generation: u64,
    },
    /// The state is damaged: no start believes it before another one has taken its place.
    Damage(ShardId),
    /// A received state takes the place of the damaged one, and the log stays as it is.
    Rebuild {
        /// The shard.
        shard: ShardId,
        /// Generation of the state file.
        generation: u64,
    },
}

/// The Raft log of all shards of a node. One thread writes; others read.
pub trait LogStore: Send + Sync + 'static {
    /// Writes all batches atomically and syncs them once.
    ///
    /// # Errors
    /// Only when nothing was written and the same batch may be tried again (no space). A failed sync must end the process.
    fn write(&self, writes: &[LogWrite]) -> Result<(), std::io::Error>;
    /// Entries `first..last` of a shard, at most `max_bytes` but at least one where there is one.
    fn entries(&self, shard: ShardId, first: u64, last: u64, max_bytes: u64) -> Vec<Entry>;
    /// Drops entries up to an index with the next batch that is written; `term` is the term at `to`.
    fn compact(&self, shard: ShardId, to: u64, term: u64);
    /// Bytes of the files, for metrics.
    fn bytes(&self) -> u64;
}

/// What a shard has on disk at the start.
#[derive(Debug)]
pub struct Recovered {
    /// The shard.
    pub shard: ShardId,
    /// For the replica.
    pub boot: Boot,
    /// Generation of the state file that the log names.
    pub generation: u64,
    /// What was found, where the state is damaged.
    pub damage: Option<String>,
}

/// A record of a snapshot on its way.
pub type Record = (Bytes, Bytes);
