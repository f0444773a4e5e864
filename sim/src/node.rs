//! A node: its disk, its clocks, and for each shard a replica with the machine that its applier owns.

use std::collections::{BTreeMap, VecDeque};
use std::rc::Rc;

use trefoil_core::machine::{Applied, Machine};
use trefoil_core::replica::{ApplyRange, Config, Read, Replica, Tuning};
use trefoil_core::store::MemoryStore;
use trefoil_core::{CallId, NodeId, Now, ShardId};
use trefoil_proto::internal::v1::Refusal;

use raft_proto::eraftpb::HardState;

use crate::disk::{Disk, Image};

/// Wall clock at the start of every run, in ms since 1970.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// Work of an applier, first in first out.
#[derive(Debug)]
pub enum Task {
    /// Apply entries.
    Apply(ApplyRange),
    /// Ask the machine.
    Query {
        /// The reads.
        reads: Vec<Read>,
        /// Term in which they are linearizable.
        term: u64,
        /// The leader's estimate of log time.
        now_ms: u64,
    },
    /// End a long poll.
    Cancel(CallId),
    /// Forget what only a leader keeps.
    StepDown(Refusal),
    /// Take a checkpoint.
    Checkpoint,
    /// Make a received snapshot the state.
    Install {
        /// Its file.
        generation: u64,
        /// Its index and term.
        at: (u64, u64),
        /// The hard state to write with it.
        hard_state: HardState,
    },
}

/// One shard on one node.
#[derive(Debug)]
pub struct Host {
    /// Decides.
    pub replica: Replica,
    /// Applies.
    pub machine: Machine,
    /// What the machine has.
    pub store: MemoryStore,
    /// Work that waits for the applier.
    pub tasks: VecDeque<Task>,
    /// Whether the applier works on the first task.
    pub working: bool,
    /// Bytes of entries since the last checkpoint, in place of the bytes of changed state.
    pub overlay_bytes: u64,
    /// Snapshots that are open for peers.
    pub open: BTreeMap<NodeId, Rc<Image>>,
    /// What each process of a peer was told about the end of this log.
    pub told: BTreeMap<NodeId, (u32, bool)>,
}

/// One node.
#[derive(Debug)]
pub struct Node {
    /// Its id.
    pub id: NodeId,
    /// Its disk.
    pub disk: Disk,
    /// The shards of the running process; empty while it is down.
    pub hosts: BTreeMap<ShardId, Host>,
    /// Whether the process runs.
    pub up: bool,
    /// Counts the processes of this node, so that what belongs to an old one is dropped.
    pub life: u32,
    /// Until when the process stands still.
    pub paused_until: u64,
    /// How much later it hears peers and clients again: their streams are read in any order then.
    pub deaf_us: (u64, u64),
    /// What a sync takes at least.
    pub sync_floor_us: u64,
    /// The end of the log was torn at the last crash: it looks as if more could be missing.
    pub torn: bool,
    /// Writes that are being synced.
    pub syncing: usize,
    /// Callers by call: (client, token, shard).
    pub calls: BTreeMap<CallId, (u64, u64, ShardId)>,
    last_call: CallId,
    /// Virtual time at which the boot clock was 0, possibly before the start of the run.
    booted_at_us: i64,
    /// Error of the wall clock.
    skew_ms: i64,
}

impl Node {
    /// A node that has just been set up and is not running.
    #[must_use]
    pub fn new(id: NodeId, shards: u32, age_us: u64, skew_ms: i64) -> Self {
        Self {
            id,
            disk: Disk::new(0..=shards),
            hosts: BTreeMap::new(),
            up: false,
            life: 0,
            paused_until: 0,
            deaf_us: (0, 0),
            sync_floor_us: 0,
            torn: false,
            syncing: 0,
            calls: BTreeMap::new(),
            last_call: 0,
            booted_at_us: -i64::try_from(age_us).expect("an age is a small number"),
            skew_ms,
        }
    }

    /// The clocks of this node.
    #[must_use]
    pub fn clocks(&self, now_us: u64) -> Now {
        let now_us = i64::try_from(now_us).expect("a run is short");
        let boot_ms = u64::try_from((now_us - self.booted_at_us) / 1_000)
            .expect("nodes boot before they run");
        let wall_ms = WALL_START_MS.saturating_add_signed(now_us / 1_000 + self.skew_ms);
        Now { boot_ms, wall_ms }
    }

    /// The machine itself starts again: so does its boot clock.
    pub fn reboot(&mut self, now_us: u64) {
        self.booted_at_us = i64::try_from(now_us).expect("a run is short");
    }

    /// Starts the process.
    ///
    /// # Errors
    /// When a replica refuses what is on the disk.
    pub fn start(
        &mut self,
        now_us: u64,
        setup: &Setup,
        uncertain: bool,
        seed: u64,
    ) -> Result<(), String> {
        let now = self.clocks(now_us);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        for shard in 0..=setup.shards {
            let boot = self.disk.boot(shard, uncertain);
            let config = Config {
                node: self.id,
                shard,
                voters: (1..=setup.nodes).collect(),
                preferred_leader: 1 + u64::from(shard) % setup.nodes,
                seed,
                tuning: setup.tuning,
            };
            let image = self.disk.image(shard);
            let store = image.store.clone();
            let host = Host {
                replica: Replica::new(config, &boot, now, &logger)?,
                machine: Machine::open(&store, shard, setup.shards),
                store,
                tasks: VecDeque::new(),
                working: false,
                overlay_bytes: 0,
                open: BTreeMap::new(),
                told: BTreeMap::new(),
            };
            self.hosts.insert(shard, host);
        }
        self.up = true;
        self.life += 1;
        Ok(())
    }

    /// The process dies; `kept` writes that were not synced have reached the disk. Says whether others were lost.
    pub fn crash(&mut self, kept: usize) -> bool {
        self.hosts.clear();
        self.up = false;
        self.paused_until = 0;
        self.syncing = 0;
        self.disk.crash(kept)
    }

    /// Names a call.
    pub fn call(&mut self, client: u64, token: u64, shard: ShardId) -> CallId {
        self.last_call += 1;
        self.calls.insert(self.last_call, (client, token, shard));
        self.last_call
    }
}

/// What all nodes of a cluster have in common.
#[derive(Clone, Copy, Debug)]
pub struct Setup {
    /// Nodes.
    pub nodes: u64,
    /// Data shards.
    pub shards: u32,
    /// Sizes of the replicas.
    pub tuning: Tuning,
}

impl Host {
    /// What the machine says of itself after a snapshot was installed.
    #[must_use]
    pub fn restored(&self) -> Applied {
        let progress = self.machine.progress();
        Applied {
            index: progress.index,
            term: progress.term,
            log_time_ms: progress.log_time_ms,
            wall_ms: progress.wall_ms,
            chain: progress.chain,
            queue_backlog: progress.queue_backlog,
            next_due_ms: Machine::next_due_ms(&self.store),
            ..Applied::default()
        }
    }
}
