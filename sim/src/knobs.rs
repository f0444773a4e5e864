//! What a seed decides before anything happens: which faults there are, how often, and how large things are.
//!
//! Each seed leaves some kinds of faults out, so that one kind cannot hide another (swarm testing: A. Groce and
//! others, 2012).

use trefoil_core::replica::Tuning;

use crate::dice::Dice;

/// Microseconds of a second.
pub const SECOND: u64 = 1_000_000;
/// Microseconds of a millisecond.
pub const MILLISECOND: u64 = 1_000;

/// Rates and sizes of one run. Times are microseconds of virtual time; rates are in a thousand.
#[derive(Clone, Debug)]
pub struct Knobs {
    /// Nodes of the cluster.
    pub nodes: u64,
    /// Data shards beside the meta shard.
    pub shards: u32,
    /// Clients of all kinds.
    pub clients: u64,
    /// How long faults go on.
    pub chaos_us: u64,
    /// Keys of the cache.
    pub keys: u64,
    /// Partitions of each queue.
    pub partitions: u32,
    /// Longest pause of a client between two calls.
    pub think_us: u64,

    /// Longest delay of a message.
    pub delay_us: u64,
    /// Messages lost.
    pub loss: u64,
    /// Messages delivered twice.
    pub duplication: u64,
    /// Messages that overtake others of their stream.
    pub reordering: u64,
    /// Snapshot streams that break.
    pub broken_streams: u64,

    /// Longest sync of the log.
    pub sync_us: u64,
    /// Longest application of an entry.
    pub apply_us: u64,
    /// Longest checkpoint.
    pub checkpoint_us: u64,

    /// Longest pause between two faults.
    pub calm_us: u64,
    /// Kinds of faults that happen.
    pub faults: Vec<FaultKind>,
    /// Whether one node stays away while the others must already serve again.
    pub one_stays_down: bool,
    /// Sizes of the replicas.
    pub tuning: Tuning,
}

/// What can go wrong from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A process dies and starts again.
    Crash,
    /// A machine loses power: its boot clock starts again.
    PowerLoss,
    /// All processes die at once.
    CrashAll,
    /// A node is cut off from all others.
    Isolate,
    /// Messages of one link are lost in one direction.
    OneWay,
    /// A process stands still.
    Pause,
    /// A disk is slow.
    SlowDisk,
    /// An operator moves a leadership.
    Transfer,
    /// The disk asks for a checkpoint.
    Checkpoint,
}

impl FaultKind {
    const ALL: [Self; 9] = [
        Self::Crash,
        Self::PowerLoss,
        Self::CrashAll,
        Self::Isolate,
        Self::OneWay,
        Self::Pause,
        Self::SlowDisk,
        Self::Transfer,
        Self::Checkpoint,
    ];
}

impl Knobs {
    /// Draws the knobs of a run.
    pub fn draw(dice: &mut Dice) -> Self {
        let nodes = *dice.pick(&[1, 3, 3, 3, 3, 3, 3, 5]);
        let faults = FaultKind::ALL.into_iter().filter(|_| dice.chance(600)).collect();
        let mut sometimes = |per_mille: u64, most: u64| {
            if dice.chance(per_mille) { dice.between(1, most) } else { 0 }
        };
        let (loss, duplication, reordering) =
            (sometimes(500, 100), sometimes(300, 50), sometimes(200, 50));
        let broken_streams = sometimes(500, 500);
        Self {
            nodes,
            shards: u32::try_from(dice.between(1, 2)).expect("a small number"),
            clients: dice.between(6, 12),
            chaos_us: dice.between(10, 40) * SECOND,
            keys: dice.between(2, 8),
            partitions: u32::try_from(dice.between(1, 3)).expect("a small number"),
            think_us: dice.between_doublings(10, 1_000) * MILLISECOND,
            delay_us: dice.between_doublings(1, 64) * MILLISECOND,
            loss,
            duplication,
            reordering,
            broken_streams,
            sync_us: dice.between_doublings(1, 64) * MILLISECOND,
            apply_us: dice.between_doublings(1, 32) * 100,
            checkpoint_us: dice.between_doublings(1, 1_000) * MILLISECOND,
            calm_us: dice.between_doublings(1, 16) * SECOND,
            faults,
            one_stays_down: nodes > 1 && dice.chance(300),
            tuning: Tuning {
                checkpoint_log_bytes: dice.between_doublings(256, 1 << 20),
                checkpoint_overlay_bytes: dice.between_doublings(256, 1 << 20),
                log_cache_bytes: usize::try_from(dice.between_doublings(64, 1 << 20))
                    .expect("a small number"),
                log_bytes_max: dice.between_doublings(512, 1 << 20),
            },
        }
    }
}
