//! Replicas of one shard whose messages, writes and applies are carried out by hand, with a trace of all they want.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft_proto::eraftpb::{Entry, HardState};
use trefoil_core::machine::{Applied, Machine, QueryOutcome};
use trefoil_core::replica::{
    ApplyRange, Boot, Chain, Effect, Input, Peer, PersistBatch, Read, Replica, ReplicaConfig,
    Reply, Tuning,
};
use trefoil_core::store::MemoryStore;
use trefoil_core::{BIRTH_INDEX, BIRTH_TERM, CallId, NodeId, Now, Position, ShardId};
use trefoil_proto::internal::v1::{Command, Refusal};

/// The shard of all scripts; with one data shard it holds every slot.
pub(crate) const SHARD: ShardId = 1;

/// A state that a file holds.
#[derive(Clone, Debug)]
struct Image {
    store: MemoryStore,
    at: (u64, u64),
}

/// What a node's disk holds.
#[derive(Clone, Debug)]
struct Disk {
    hard_state: HardState,
    truncated: (u64, u64),
    entries: BTreeMap<u64, Entry>,
    image: Image,
    /// The image was found damaged.
    damaged: bool,
}

/// Work of the applier, in order.
#[derive(Debug)]
enum Task {
    Apply(ApplyRange),
    Query { reads: Vec<Read>, term: u64, now_ms: u64 },
    Cancel(CallId),
    StepDown(Refusal),
    Checkpoint,
}

/// A snapshot that waits for its log batch: generation, index, term, hard state.
type Install = (u64, u64, u64, HardState);

/// One replica and what it waits for.
#[derive(Debug)]
struct Member {
    replica: Replica,
    machine: Machine,
    store: MemoryStore,
    writes: VecDeque<PersistBatch>,
    tasks: VecDeque<Task>,
    install: Option<Install>,
    /// A state that is to take the place of the damaged one, by its generation.
    restore: Option<u64>,
    /// The state is not used: it is damaged.
    damaged: bool,
    open: BTreeMap<NodeId, Image>,
    received: BTreeMap<u64, Image>,
}

/// All replicas, and the messages between them.
#[derive(Debug)]
pub(crate) struct Cluster {
    now_ms: u64,
    /// How far clocks are behind that stood still, in ms.
    stood_ms: BTreeMap<NodeId, u64>,
    voters: Vec<NodeId>,
    tuning: Tuning,
    disks: BTreeMap<NodeId, Disk>,
    kept: BTreeMap<NodeId, Disk>,
    members: BTreeMap<NodeId, Member>,
    messages: VecDeque<(Box<Peer>, Option<Image>)>,
    cut: BTreeSet<(NodeId, NodeId)>,
    /// Snapshots under way do not arrive yet.
    pub(crate) holds_snapshots: bool,
    pub(crate) loses_entries_of: Option<NodeId>,
    generations: u64,
    /// What takes grants back.
    pub(crate) owed: Vec<Command>,
    /// What happened since the last command.
    pub(crate) trace: String,
}

impl Cluster {
    /// Newborn replicas 1 to `nodes`; the first is to lead.
    pub(crate) fn new(nodes: u64, tuning: Tuning) -> Self {
        let mut store = MemoryStore::default();
        Machine::bootstrap(&mut store);
        let at = (BIRTH_INDEX, BIRTH_TERM);
        let hard_state =
            HardState { term: BIRTH_TERM, commit: BIRTH_INDEX, ..HardState::default() };
        let disk = Disk {
            hard_state,
            truncated: at,
            entries: BTreeMap::new(),
            image: Image { store, at },
            damaged: false,
        };
        let mut cluster = Self {
            now_ms: 1_000,
            stood_ms: BTreeMap::new(),
            voters: (1..=nodes).collect(),
            tuning,
            disks: (1..=nodes).map(|node| (node, disk.clone())).collect(),
            kept: BTreeMap::new(),
            members: BTreeMap::new(),
            messages: VecDeque::new(),
            cut: BTreeSet::new(),
            holds_snapshots: false,
            loses_entries_of: None,
            generations: 0,
            owed: Vec::new(),
            trace: String::new(),
        };
        for node in 1..=nodes {
            cluster.start(node, false);
        }
        cluster
    }

    /// Takes the trace since the last time.
    pub(crate) fn take_trace(&mut self) -> String {
        std::mem::take(&mut self.trace)
    }

    /// Starts a replica from its disk.
    pub(crate) fn start(&mut self, node: NodeId, uncertain: bool) {
        let disk = &self.disks[&node];
        let mut terms = Vec::<(u64, u64)>::new();
        for (index, entry) in &disk.entries {
            if terms.last().is_none_or(|(_, term)| *term != entry.term) {
                terms.push((*index, entry.term));
            }
        }
        let store = disk.image.store.clone();
        let machine = Machine::open(&store, SHARD, 1);
        let boot = Boot {
            hard_state: disk.hard_state.clone(),
            truncated: disk.truncated,
            terms,
            last_index: disk.entries.last_key_value().map_or(disk.truncated.0, |(last, _)| *last),
            log_bytes: 100 * disk.entries.len() as u64,
            applied: if disk.damaged { disk.truncated } else { disk.image.at },
            log_time_ms: machine.progress().log_time_ms,
            wall_ms: machine.progress().wall_ms,
            next_due_ms: Machine::next_due_ms(&store),
            uncertain,
            damaged: disk.damaged,
        };
        let (voters, tuning) = (self.voters.clone(), self.tuning);
        let config =
            ReplicaConfig { node, shard: SHARD, voters, preferred_leader: 1, seed: 7, tuning };
        let logger = slog::Logger::root(slog::Discard, slog::o!());
        let replica =
            Replica::new(config, &boot, self.now(node), &logger).expect("the disk is sound");
        let member = Member {
            replica,
            machine,
            store,
            writes: VecDeque::new(),
            tasks: VecDeque::new(),
            install: None,
            restore: None,
            damaged: disk.damaged,
            open: BTreeMap::new(),
            received: BTreeMap::new(),
        };
        self.members.insert(node, member);
    }

    /// A process dies: only its disk stays.
    pub(crate) fn crash(&mut self, node: NodeId) {
        self.members.remove(&node);
    }

    /// Remembers what is on the disk of a node.
    pub(crate) fn keep_disk(&mut self, node: NodeId) {
        self.kept.insert(node, self.disks[&node].clone());
    }

    /// A node that does not run loses what was written since its disk was kept.
    pub(crate) fn lose_end(&mut self, node: NodeId) {
        let kept = self.kept.remove(&node).expect("the disk was kept");
        self.disks.insert(node, kept);
    }

    /// Cuts the links of a node in both directions.
    pub(crate) fn isolate(&mut self, node: NodeId) {
        for other in self.voters.iter().filter(|other| **other != node) {
            self.cut.extend([(node, *other), (*other, node)]);
        }
    }

    /// Mends all links.
    pub(crate) fn mend(&mut self) {
        self.cut.clear();
    }

    /// Loses the messages under way, to one node or to all.
    pub(crate) fn drop_messages(&mut self, to: Option<NodeId>) {
        self.messages.retain(|(peer, _)| to.is_some_and(|to| peer.message.to != to));
    }

    /// Lets a tick of time pass and tells it to these nodes.
    pub(crate) fn tick(&mut self, nodes: &[NodeId]) {
        self.now_ms += trefoil_core::limits::TICK_MS;
        for node in nodes {
            self.step(*node, Input::Tick);
        }
    }

    /// The nodes that run.
    pub(crate) fn running(&self) -> Vec<NodeId> {
        self.members.keys().copied().collect()
    }

    /// Time passes, and one node's clock stands still meanwhile.
    pub(crate) fn stand_still(&mut self, node: NodeId, ms: u64) {
        self.now_ms += ms;
        *self.stood_ms.entry(node).or_default() += ms;
    }

    /// The clock of all nodes that did not stand still, in ms.
    pub(crate) fn now_ms(&self) -> u64 {
        self.now_ms
    }

    /// What a replica says of itself.
    pub(crate) fn status(&self, node: NodeId) -> trefoil_core::replica::Status {
        self.members[&node].replica.status(self.now(node))
    }

    /// Whether a replica lost the end of its log.
    pub(crate) fn is_uncertain(&self, node: NodeId) -> bool {
        self.members[&node].replica.is_uncertain()
    }

    /// Tells all replicas which of them lost the end of their log.
    pub(crate) fn tell_uncertain(&mut self) {
        for node in
            self.running().into_iter().filter(|node| self.is_uncertain(*node)).collect::<Vec<_>>()
        {
            for peer in self.running().into_iter().filter(|peer| *peer != node) {
                self.step(peer, Input::Uncertain { node, uncertain: true });
            }
        }
    }

    /// Tells the other replicas what keeps a node from leading.
    pub(crate) fn tell_obstacles(&mut self, node: NodeId) {
        let obstacles = self.status(node).obstacles;
        for peer in self.running().into_iter().filter(|peer| *peer != node) {
            self.step(peer, Input::PeerObstacles { node, obstacles });
        }
    }

    fn now(&self, node: NodeId) -> Now {
        let boot_ms = self.now_ms - self.stood_ms.get(&node).unwrap_or(&0);
        Now { boot_ms, wall_ms: 1_700_000_000_000 + self.now_ms }
    }

    /// Tells an input to a replica.
    pub(crate) fn step(&mut self, node: NodeId, input: Input) {
        let now = self.now(node);
        let Some(member) = self.members.get_mut(&node) else { return };
        for effect in member.replica.step(now, input) {
            self.carry_out(node, effect);
        }
    }

    /// Delivers the messages that are under way now, in order; says whether there were any.
    pub(crate) fn deliver(&mut self) -> bool {
        let waits = |image: &Option<_>| self.holds_snapshots && image.is_some();
        let (waiting, messages) = std::mem::take(&mut self.messages)
            .into_iter()
            .partition::<Vec<_>, _>(|(_, image)| waits(image));
        self.messages = waiting.into();
        let any = !messages.is_empty();
        for (peer, image) in messages {
            let (from, to) = (peer.message.from, peer.message.to);
            let entries = !peer.message.entries.is_empty() && self.loses_entries_of == Some(from);
            let cut = self.cut.contains(&(from, to));
            let lost = cut || entries || !self.members.contains_key(&to);
            match image {
                Some(image) => {
                    if !lost {
                        self.generations += 1;
                        let generation = self.generations;
                        let member = self.members.get_mut(&to).expect("it runs");
                        member.received.insert(generation, image);
                        self.step(to, Input::SnapshotReceived { peer, generation });
                    }
                    self.step(from, Input::SnapshotSent { to, ok: !lost });
                }
                None if lost => {}
                None => self.step(to, Input::Peer(peer)),
            }
        }
        any
    }

    /// Syncs what a node has written; says whether there was anything.
    pub(crate) fn persist(&mut self, node: NodeId) -> bool {
        let Some(member) = self.members.get_mut(&node) else { return false };
        let writes = std::mem::take(&mut member.writes);
        let (install, restore) = (member.install.take(), member.restore.take());
        let any = !writes.is_empty() || install.is_some() || restore.is_some();
        let disk = self.disks.get_mut(&node).expect("every node has a disk");
        let mut last = None;
        for batch in writes {
            if let Some(first) = batch.entries.first() {
                disk.entries.split_off(&first.index);
            }
            disk.entries.extend(batch.entries.into_iter().map(|entry| (entry.index, entry)));
            disk.hard_state = batch.hard_state.unwrap_or_else(|| disk.hard_state.clone());
            last = Some(batch.number);
        }
        if let Some(number) = last {
            self.step(node, Input::Persisted(number));
        }
        if let Some(install) = install {
            self.install(node, install);
        }
        if let Some(generation) = restore {
            let applied = Box::new(self.take_image(node, generation));
            self.step(node, Input::Restored(applied));
        }
        any
    }

    /// The state of a node is found damaged.
    pub(crate) fn damage(&mut self, node: NodeId) {
        self.drop_state(node);
        self.step(node, Input::Damaged);
    }

    /// A record of a node's state is not what was written.
    pub(crate) fn lose_write(&mut self, node: NodeId) {
        let member = self.members.get_mut(&node).expect("it runs");
        member.store.records.insert(Bytes::from_static(&[1, 2, 3]), Bytes::from_static(b"old"));
    }

    fn drop_state(&mut self, node: NodeId) {
        self.members.get_mut(&node).expect("it runs").damaged = true;
        self.disks.get_mut(&node).expect("every node has a disk").damaged = true;
    }

    /// A received snapshot becomes the state.
    fn take_image(&mut self, node: NodeId, generation: u64) -> Applied {
        let member = self.members.get_mut(&node).expect("it runs");
        let image = member.received.remove(&generation).expect("it was received");
        let disk = self.disks.get_mut(&node).expect("every node has a disk");
        (disk.image, disk.damaged) = (image, false);
        member.damaged = false;
        member.store = disk.image.store.clone();
        member.machine = Machine::open(&member.store, SHARD, 1);
        let progress = member.machine.progress();
        Applied {
            index: progress.index,
            term: progress.term,
            log_time_ms: progress.log_time_ms,
            chain: progress.chain,
            ..Applied::default()
        }
    }

    fn install(&mut self, node: NodeId, (generation, index, term, hard_state): Install) {
        let applied = self.take_image(node, generation);
        let disk = self.disks.get_mut(&node).expect("every node has a disk");
        (disk.hard_state, disk.truncated) = (hard_state, (index, term));
        disk.entries.clear();
        self.step(node, Input::SnapshotInstalled { index, applied: Box::new(applied) });
    }

    /// Lets the applier of a node do all its work; says whether there was any.
    pub(crate) fn apply(&mut self, node: NodeId) -> bool {
        let Some(member) = self.members.get_mut(&node) else { return false };
        let tasks = std::mem::take(&mut member.tasks);
        let any = !tasks.is_empty();
        for task in tasks {
            self.work(node, task);
        }
        any
    }

    fn work(&mut self, node: NodeId, task: Task) {
        let member = self.members.get_mut(&node).expect("it runs");
        if member.damaged {
            return;
        }
        match task {
            Task::Apply(range) => {
                member.machine.lead(range.leads);
                let log = &self.disks[&node].entries;
                let stored = || {
                    let entries = log.range(range.first..=range.last);
                    entries.map(|(_, entry)| (entry.term, entry.data.clone())).collect()
                };
                let entries = range.entries.clone().unwrap_or_else(stored);
                let mut digests = Vec::new();
                let applied = (range.first..).zip(entries).map(|(index, (term, data))| {
                    let applied = member.machine.apply(&mut member.store, index, term, &data);
                    if applied.digest_point {
                        digests.push(Chain { index, hash: member.machine.digest(&member.store) });
                    }
                    applied
                });
                let applied = applied.collect();
                self.step(node, Input::Applied(applied));
                for digest in digests {
                    self.step(node, Input::Digested(digest));
                }
            }
            Task::Query { reads, term, now_ms } => {
                for read in reads {
                    let member = self.members.get_mut(&node).expect("it runs");
                    let outcome =
                        member.machine.query(&member.store, read.call, &read.query, now_ms);
                    let progress = member.machine.progress();
                    let (index, log_time_ms) = (progress.index, progress.log_time_ms);
                    match outcome {
                        QueryOutcome::Answered(answer) => {
                            let at = Position { term, index, ordinal: u32::MAX, log_time_ms };
                            self.show_reply(node, read.call, &Reply::Answered(at, answer));
                        }
                        QueryOutcome::Due(due_ms) => self.step(node, Input::Due { read, due_ms }),
                        QueryOutcome::Parked => {
                            self.note(node, format_args!("call {} waits", read.call))
                        }
                    }
                }
            }
            Task::Cancel(call) => member.machine.cancel(call),
            Task::StepDown(refusal) => {
                for call in member.machine.step_down() {
                    self.show_reply(node, call, &Reply::Refused(refusal.clone()));
                }
            }
            Task::Checkpoint => {
                member.machine.freeze(&mut member.store);
                let progress = member.machine.progress();
                let at = (progress.index, progress.term);
                let image = Image { store: member.store.clone(), at };
                self.disks.get_mut(&node).expect("every node has a disk").image = image;
                self.step(node, Input::Checkpointed { index: at.0, overlay_bytes: 0 });
            }
        }
    }

    fn carry_out(&mut self, node: NodeId, effect: Effect) {
        self.show(node, &effect);
        let member = self.members.get_mut(&node).expect("it runs");
        match effect {
            Effect::Send(peer) => self.messages.push_back((peer, None)),
            Effect::Persist(batch) => member.writes.push_back(batch),
            Effect::Apply(range) => member.tasks.push_back(Task::Apply(range)),
            Effect::Query { reads, term, now_ms } => {
                member.tasks.push_back(Task::Query { reads, term, now_ms });
            }
            Effect::CancelQuery(call) => member.tasks.push_back(Task::Cancel(call)),
            Effect::StepDown { refusal } => member.tasks.push_back(Task::StepDown(refusal)),
            Effect::Checkpoint => member.tasks.push_back(Task::Checkpoint),
            Effect::Fetch { ticket, first, last, .. } => {
                let log = &self.disks[&node].entries;
                let entries = log.range(first..last).map(|(_, entry)| entry.clone()).collect();
                self.step(node, Input::Fetched { ticket, entries });
            }
            Effect::Compact { to, .. } => {
                let disk = self.disks.get_mut(&node).expect("every node has a disk");
                let term = disk.entries[&to].term;
                disk.truncated = (to, term);
                disk.entries = disk.entries.split_off(&(to + 1));
            }
            Effect::OpenSnapshot(to) => {
                let image = self.disks[&node].image.clone();
                let (index, term) = image.at;
                member.open.insert(to, image);
                let snapshot = Some((index, term, Bytes::from_static(b"manifest")));
                self.step(node, Input::SnapshotOpened { to, snapshot });
            }
            Effect::SendSnapshot(peer) => {
                let image = member.open[&peer.message.to].clone();
                self.messages.push_back((peer, Some(image)));
            }
            Effect::CloseSnapshot(to) => {
                member.open.remove(&to);
            }
            Effect::InstallSnapshot { generation, index, term, hard_state } => {
                member.install = Some((generation, index, term, hard_state));
            }
            Effect::Restore { generation, .. } => member.restore = Some(generation),
            Effect::Outvoted { .. } => self.drop_state(node),
            Effect::DiscardSnapshot { generation } => {
                member.received.remove(&generation);
            }
            Effect::TakeBack(command) => self.owed.push(*command),
            Effect::Reply(..)
            | Effect::Offer(_)
            | Effect::Role(_)
            | Effect::TwoHistories { .. }
            | Effect::Diverged { .. }
            | Effect::Disputed(_) => {}
        }
    }
}
