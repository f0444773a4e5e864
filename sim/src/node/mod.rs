//! A node: its disk, its clocks, and for each shard a replica with the machine that its applier owns.

pub mod forwarding;
pub mod membership;
pub mod process;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::rc::Rc;

use raft_proto::eraftpb::HardState;
use trefoil_core::machine::{Applied, Machine};
use trefoil_core::replica::{ApplyRange, Read, Replica, ReplicaConfig, RoleChange, Tuning};
use trefoil_core::{CallId, NodeId, Now, ShardId};
use trefoil_proto::internal::v1::Refusal;
use trefoil_server::storage::LogWrite;

use self::forwarding::{CallOrigin, CallStream, Served};
use self::membership::Membership;
use self::process::ReplicaNotice;
use crate::check::ballot::Ballot;
use crate::check::handed::Handed;
use crate::config::MILLISECOND;
use crate::disk::options::DiskOptions;
use crate::disk::state::{CheckpointJob, Image, MachineStore};
use crate::disk::{FoundShards, SimDisk};

/// Wall clock at the start of every run, in ms since 1970.
const WALL_START_MS: u64 = 1_700_000_000_000;

/// Work of an applier, first in first out.
#[derive(Debug)]
pub enum ApplierTask {
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
    /// Put a received state, in a file of this generation, in the place of a damaged one.
    Restore(u64),
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
    /// Memory that the machine has for what is remembered of requests.
    windows_bytes: usize,
    /// What the machine has.
    pub store: MachineStore,
    /// The state is damaged: machine and store above are nobody's.
    pub damaged: bool,
    /// Work that waits for the applier.
    pub tasks: VecDeque<ApplierTask>,
    /// Whether the applier works on the first task.
    pub working: bool,
    /// Bytes of entries since the last checkpoint, in place of the bytes of changed state.
    pub overlay_bytes: u64,
    /// The checkpoint that is being written.
    pub checkpoint: Option<CheckpointJob>,
    /// Snapshots that are open for peers.
    pub open: BTreeMap<NodeId, Rc<Image>>,
    /// What it has done about its term.
    pub ballot: Ballot,
    /// What it owes to those who wait while it leads.
    pub handed: Handed,
    /// Whether log time was followed since the start.
    pub followed: bool,
    /// Whether the log still says that its end is in doubt.
    pub doubted: bool,
    /// What each process of a peer was told of this replica.
    pub told: BTreeMap<NodeId, (u32, ReplicaNotice)>,
    /// When each peer said what is known of its replica.
    pub heard: BTreeMap<NodeId, u64>,
    /// Who it said last that it is.
    pub role: RoleChange,
    /// Since when it knows no leader, by the boot clock; nothing where it knows one.
    pub leaderless_since_ms: u64,
}

/// One node.
#[derive(Debug)]
pub struct SimNode {
    /// Its id.
    pub id: NodeId,
    /// Its disk.
    pub disk: SimDisk,
    /// The disk with which it stopped last, where an older copy has taken its place.
    pub shelf: Option<Box<SimDisk>>,
    /// A peer knows that its directory is not the one that it was: it has ended, and waits for its operator.
    pub ended: bool,
    /// What the running process knows of who is a member.
    pub member: Option<Membership>,
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
    /// Syncs do not end.
    pub hung: bool,
    /// Writes that are being synced.
    pub writing: Vec<LogWrite>,
    /// The disk had no room for the next write.
    pub full: bool,
    /// Others take the room that should be free: enough is left for what makes room.
    pub scarce: bool,
    /// There is little room on the disk.
    pub low: bool,
    /// It does not start: what it has on disk is damaged.
    pub refused: bool,
    /// When it started last.
    pub started_at: u64,
    /// Who waits for an answer of its replicas.
    pub calls: BTreeMap<CallId, CallOrigin>,
    /// Calls whose grants were claimed by the node in between.
    pub claimed: BTreeSet<CallId>,
    /// Calls of clients that it carries out.
    pub served: BTreeMap<u64, Served>,
    /// Its streams for calls to its peers.
    pub streams: BTreeMap<NodeId, CallStream>,
    /// When it tells peers again that it is alive.
    pub alive_at: u64,
    last_call: CallId,
    clock: Clock,
}

/// The clocks of a node.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    /// Microseconds of the boot clock at `since_us`, and before it.
    pub boot_us: u64,
    /// Virtual time.
    pub since_us: u64,
    /// How fast the boot clock runs, in a thousand.
    pub rate: u64,
    /// Error of the wall clock.
    pub skew_ms: i64,
}

impl Clock {
    fn boot_us(&self, now_us: u64) -> u64 {
        self.boot_us + now_us.saturating_sub(self.since_us) * self.rate / 1_000
    }
}

impl SimNode {
    /// A node that has just been set up and is not running.
    #[must_use]
    pub fn new(
        (id, incarnation): (NodeId, u64),
        shards: u32,
        clock: Clock,
        options: DiskOptions,
    ) -> Self {
        Self {
            id,
            disk: SimDisk::new(incarnation, 0..=shards, options),
            shelf: None,
            ended: false,
            member: None,
            hosts: BTreeMap::new(),
            up: false,
            life: 0,
            paused_until: 0,
            deaf_us: (0, 0),
            sync_floor_us: 0,
            hung: false,
            writing: Vec::new(),
            full: false,
            scarce: false,
            low: false,
            refused: false,
            started_at: 0,
            calls: BTreeMap::new(),
            claimed: BTreeSet::new(),
            served: BTreeMap::new(),
            streams: BTreeMap::new(),
            alive_at: 0,
            last_call: 0,
            clock,
        }
    }

    /// Whether its disk is not the one with which it could take part.
    #[must_use]
    pub fn is_out(&self) -> bool {
        self.disk.rotten || self.refused || self.ended || self.shelf.is_some()
    }

    /// The clocks of this node.
    #[must_use]
    pub fn clocks(&self, now_us: u64) -> Now {
        let boot_ms = self.clock.boot_us(now_us) / MILLISECOND;
        let wall_ms = WALL_START_MS + now_us / MILLISECOND;
        Now { boot_ms, wall_ms: wall_ms.saturating_add_signed(self.clock.skew_ms) }
    }

    /// The machine itself starts again: so does its boot clock.
    pub fn reboot(&mut self, now_us: u64) {
        (self.clock.boot_us, self.clock.since_us) = (0, now_us);
    }

    /// The boot clock stands still until a time, as that of a virtual machine that is moved.
    pub fn stall(&mut self, now_us: u64, until_us: u64) {
        (self.clock.boot_us, self.clock.since_us) = (self.clock.boot_us(now_us), until_us);
    }

    /// A clock that was to stand still longer goes on now.
    pub fn resume(&mut self, now_us: u64) {
        self.clock.since_us = self.clock.since_us.min(now_us);
    }

    /// Somebody sets the wall clock.
    pub fn set_wall_clock(&mut self, skew_ms: i64) {
        self.clock.skew_ms = skew_ms;
    }

    /// How long so much time of the boot clock takes.
    #[must_use]
    pub fn real_us(&self, boot_us: u64) -> u64 {
        boot_us * 1_000 / self.clock.rate
    }

    /// Starts the process with what its disk holds.
    ///
    /// # Errors
    /// When a replica refuses it.
    pub fn start(
        &mut self,
        now_us: u64,
        setup: &Setup,
        shards: FoundShards,
        seed: u64,
    ) -> Result<(), String> {
        let now = self.clocks(now_us);
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        for (shard, (boot, state)) in shards {
            let damaged = state.is_none();
            let store = state.unwrap_or_else(nobodys);
            let config = ReplicaConfig {
                node: self.id,
                shard,
                voters: (1..=setup.nodes).collect(),
                preferred_leader: 1 + u64::from(shard) % setup.nodes,
                seed,
                tuning: setup.tuning,
            };
            let mut host = Host {
                replica: Replica::new(config, &boot, now, &logger)?,
                machine: Machine::open(&store, shard, setup.shards),
                windows_bytes: windows_bytes(seed),
                store,
                damaged,
                tasks: VecDeque::new(),
                working: false,
                overlay_bytes: 0,
                checkpoint: None,
                open: BTreeMap::new(),
                ballot: Ballot::default(),
                handed: Handed::default(),
                followed: false,
                doubted: boot.uncertain,
                told: BTreeMap::new(),
                heard: BTreeMap::new(),
                role: RoleChange::default(),
                leaderless_since_ms: now.boot_ms,
            };
            host.machine.limit_windows(host.windows_bytes);
            self.hosts.insert(shard, host);
        }
        self.up = true;
        self.life += 1;
        self.started_at = now_us;
        Ok(())
    }

    /// The process dies, and the shards of its memory with it.
    pub fn die(&mut self) -> BTreeMap<ShardId, Host> {
        self.up = false;
        self.paused_until = 0;
        (self.full, self.low) = (false, false);
        self.writing.clear();
        self.member = None;
        std::mem::take(&mut self.hosts)
    }

    /// Names a call.
    pub fn call(&mut self, caller: CallOrigin) -> CallId {
        self.last_call += 1;
        self.calls.insert(self.last_call, caller);
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
    /// Sizes of the disks.
    pub disk: DiskOptions,
}

/// A state in the place of a damaged one.
fn nobodys() -> MachineStore {
    MachineStore::Memory(Image::newborn(0).store)
}

/// Memory of a node for what is remembered of requests: enough, or so little that windows come and go. Nothing but where
/// they are depends on it.
fn windows_bytes(seed: u64) -> usize {
    if seed.is_multiple_of(2) { usize::MAX } else { usize::from(seed.to_le_bytes()[1]) << 2 }
}

impl Host {
    /// Opens the machine of another state.
    pub fn open_machine(&mut self, shard: ShardId, shards: u32) {
        self.machine = Machine::open(&self.store, shard, shards);
        self.machine.limit_windows(self.windows_bytes);
    }

    /// The state turned out to be damaged, and is dropped; calls that waited in its machine are returned.
    pub fn lose_state(&mut self, shard: ShardId, shards: u32) -> Vec<CallId> {
        let calls = self.machine.step_down();
        self.store = nobodys();
        self.open_machine(shard, shards);
        self.damaged = true;
        self.overlay_bytes = 0;
        self.checkpoint = None;
        self.open.clear();
        calls
    }

    /// Bytes of changes since the last checkpoint.
    #[must_use]
    pub fn changed_bytes(&self) -> u64 {
        match &self.store {
            MachineStore::Memory(_) => self.overlay_bytes,
            MachineStore::File(store) => store.overlay_bytes(),
        }
    }

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
            overlay_bytes: self.changed_bytes(),
            ..Applied::default()
        }
    }
}
