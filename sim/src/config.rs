//! What a seed decides before anything happens: which faults there are, how often, and how large things are.
//!
//! Each seed leaves some kinds of faults out, so that one kind cannot hide another (swarm testing: A. Groce and
//! others, 2012).

use trefoil_core::replica::Tuning;

use crate::disk::options::DiskOptions;
use crate::rng::Rng;

/// Seeds in a thousand whose state files are the real ones: they take several times as long.
const REAL_STATE_PER_MILLE: u64 = 100;

/// Seeds in a thousand whose cluster is formed in pieces.
const IN_PIECES_PER_MILLE: u64 = 250;
/// Seeds in a thousand that end with a majority that is emptied.
const EMPTIES_PER_MILLE: u64 = 100;

/// Microseconds of a second.
pub const SECOND: u64 = 1_000_000;
/// Microseconds of a millisecond.
pub const MILLISECOND: u64 = 1_000;

/// Rates and sizes of one run. Times are microseconds of virtual time; rates are in a thousand.
#[derive(Clone, Debug)]
pub struct RunConfig {
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
    /// Clients that ask again under their request id only when they may have been forgotten.
    pub dawdlers: u64,

    /// Longest delay of a message.
    pub delay_us: u64,
    /// Messages lost.
    pub loss: u64,
    /// Messages delivered twice.
    pub duplication: u64,
    /// Messages that overtake others of their stream.
    pub reordering: u64,
    /// Messages delivered again much later.
    pub replay: u64,
    /// Snapshot streams that break.
    pub broken_streams: u64,
    /// Links that are much slower than the others.
    pub slow_links: u64,

    /// How much faster or slower than time boot clocks may run.
    pub drift_per_mille: u64,
    /// Whether wall clocks are wrong by any time.
    pub wrong_wall_clocks: bool,

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
    /// Whether faults go on outside a chosen majority while that must serve; otherwise all of them end.
    pub liveness: bool,
    /// Whether nodes start one after the other, and one dies before the cluster is formed.
    pub in_pieces: bool,
    /// Whether a majority of the directories is emptied when everything else was judged.
    pub empties: bool,
    /// Sizes of the disks.
    pub disk: DiskOptions,
    /// Sizes of the replicas.
    pub tuning: Tuning,
}

/// What can go wrong from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FaultKind {
    /// A process dies and starts again.
    Crash,
    /// A machine loses power: its boot clock starts again, and what was not synced is gone.
    PowerLoss,
    /// All processes die at once.
    CrashAll,
    /// A node is cut off from all others.
    Isolate,
    /// Messages of one link are lost in one direction.
    OneWay,
    /// The nodes fall into two groups, cut off from each other in one direction or both.
    Split,
    /// Two groups see each other only through one node.
    Bridge,
    /// Each node sees only its neighbours.
    Ring,
    /// A link comes and goes.
    Flap,
    /// What a node sends has little room on its way.
    NarrowLink,
    /// A process stands still.
    Pause,
    /// A process stands still, and so does its boot clock.
    Suspend,
    /// A disk is slow.
    SlowDisk,
    /// A disk syncs nothing.
    HungDisk,
    /// A disk has little room.
    FullDisk,
    /// A read, write or sync of the log fails.
    DiskError,
    /// A bit of a log turns over, on a minority of nodes.
    BitFlip,
    /// A loss of power, and a bit of what the mark did not know of yet turns over: on one node at a time.
    RottenTail,
    /// A state file is gone, cannot be read, or is older in places than what was written: on one node at a time.
    DamagedState,
    /// A node starts with a copy of its disk from before, where all others remember a later start of it.
    OlderCopy,
    /// Somebody sets a wall clock.
    WallClock,
    /// An operator moves a leadership.
    Transfer,
    /// The disk asks for a checkpoint.
    Checkpoint,
}

impl FaultKind {
    const ALL: [Self; 23] = [
        Self::Crash,
        Self::PowerLoss,
        Self::CrashAll,
        Self::Isolate,
        Self::OneWay,
        Self::Split,
        Self::Bridge,
        Self::Ring,
        Self::Flap,
        Self::NarrowLink,
        Self::Pause,
        Self::Suspend,
        Self::SlowDisk,
        Self::HungDisk,
        Self::FullDisk,
        Self::DiskError,
        Self::BitFlip,
        Self::RottenTail,
        Self::DamagedState,
        Self::OlderCopy,
        Self::WallClock,
        Self::Transfer,
        Self::Checkpoint,
    ];

    /// Whether a node may lose what it had.
    #[must_use]
    pub fn loses_data(self) -> bool {
        [Self::BitFlip, Self::RottenTail, Self::DamagedState, Self::OlderCopy].contains(&self)
    }

    /// Kinds that a seed has. What damages a log below the mark is left to a minority, and a node that lost the end
    /// of its log is one more: a seed has the one or the other.
    fn draw(rng: &mut Rng, wrong_wall_clocks: bool) -> Vec<Self> {
        let mut kinds = Self::ALL.into_iter().filter(|_| rng.chance(350)).collect::<Vec<_>>();
        if kinds.contains(&Self::BitFlip) && rng.chance(500) {
            kinds.retain(|kind| ![Self::PowerLoss, Self::RottenTail].contains(kind));
        } else {
            kinds.retain(|kind| *kind != Self::BitFlip);
        }
        if kinds.contains(&Self::BitFlip) || kinds.contains(&Self::RottenTail) {
            kinds.retain(|kind| *kind != Self::DamagedState);
        }
        // So is a node that an older copy keeps out.
        if kinds.contains(&Self::OlderCopy) {
            let spared = rng.chance(500);
            let others = |kind: &Self| kind.loses_data() && *kind != Self::OlderCopy;
            if !spared {
                kinds.retain(|kind| !others(kind));
            } else if kinds.iter().any(others) {
                kinds.retain(|kind| *kind != Self::OlderCopy);
            }
        }
        if !wrong_wall_clocks {
            kinds.retain(|kind| *kind != Self::WallClock);
        }
        kinds
    }
}

impl RunConfig {
    /// Draws the configuration of a run.
    pub fn draw(rng: &mut Rng) -> Self {
        let mut config = Self::draw_all(rng);
        // There are few real state files, and bits turn over in those alone.
        if config.disk.real_state
            && !config.faults.iter().any(|kind| kind.loses_data())
            && rng.chance(700)
        {
            config.faults.push(FaultKind::DamagedState);
        }
        config
    }

    fn draw_all(rng: &mut Rng) -> Self {
        let nodes = *rng.pick(&[1, 3, 3, 3, 3, 3, 3, 5]);
        let wrong_wall_clocks = rng.chance(250);
        let faults = FaultKind::draw(rng, wrong_wall_clocks);
        let mut sometimes = |per_mille: u64, most: u64| {
            if rng.chance(per_mille) { rng.between(1, most) } else { 0 }
        };
        let (loss, duplication, reordering) =
            (sometimes(500, 100), sometimes(300, 50), sometimes(200, 50));
        let (replay, broken_streams, slow_links) =
            (sometimes(300, 20), sometimes(500, 500), sometimes(400, 300));
        let drift_per_mille = sometimes(500, 100);
        // Wrong wall clocks can make log time jump by more than an idle client is known.
        let forgets = !wrong_wall_clocks && rng.chance(250);
        let idle_ms = if forgets { rng.between(8_000, 15_000) } else { 0 };
        Self {
            nodes,
            shards: u32::try_from(rng.between(1, 2)).expect("a small number"),
            clients: rng.between(6, 11),
            chaos_us: rng.between(45, 75) * SECOND,
            keys: rng.between(2, 8),
            partitions: u32::try_from(rng.between(1, 3)).expect("a small number"),
            think_us: rng.between_doublings(50, 1_000) * MILLISECOND,
            dawdlers: if forgets { rng.between(10, 100) } else { 0 },
            delay_us: rng.between_doublings(1, 64) * MILLISECOND,
            loss,
            duplication,
            reordering,
            replay,
            broken_streams,
            slow_links,
            drift_per_mille,
            wrong_wall_clocks,
            sync_us: rng.between_doublings(1, 64) * MILLISECOND,
            apply_us: rng.between_doublings(1, 32) * 100,
            checkpoint_us: rng.between_doublings(1, 1_000) * MILLISECOND,
            calm_us: rng.between_doublings(1, 16) * SECOND,
            faults,
            liveness: nodes > 1 && rng.chance(500),
            in_pieces: nodes > 1 && rng.chance(IN_PIECES_PER_MILLE),
            empties: nodes > 1 && rng.chance(EMPTIES_PER_MILLE),
            disk: DiskOptions {
                segment_bytes: rng.between_doublings(4 << 10, 64 << 10),
                real_state: rng.chance(REAL_STATE_PER_MILLE),
                request_client_idle_ms: idle_ms,
            },
            tuning: Tuning {
                checkpoint_log_bytes: rng.between_doublings(256, 1 << 20),
                checkpoint_overlay_bytes: rng.between_doublings(256, 1 << 20),
                log_cache_bytes: usize::try_from(rng.between_doublings(64, 1 << 20))
                    .expect("a small number"),
                log_bytes_max: rng.between_doublings(512, 1 << 20),
                digest_entries: rng.between_doublings(2, 32),
                digest_age_ms: rng.between_doublings(250, 4_000),
            },
        }
    }
}
