//! The world: all that there is, and one queue of events in virtual time. What happens in it is in the files beside
//! this one, from `dispatch` on.

mod copies;
mod dispatch;
mod effects;
mod emptied;
mod faults;
mod member;
mod rot;
mod service;
mod storage;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use trefoil_core::replica::{Effect, Input};
use trefoil_core::{NodeId, ShardId};

use crate::calls::Router;
use crate::check::agreement::Agreement;
use crate::check::expiry::Expiry;
use crate::check::formed::Formed;
use crate::check::history::History;
use crate::check::matching::Matching;
use crate::check::plain::Plain;
use crate::check::requests::Ledger;
use crate::check::services::Services;
use crate::check::time::LogTime;
use crate::check::{Clocks, Violation};
use crate::client::SimClient;
use crate::client_context::ClientContext;
use crate::config::RunConfig;
use crate::disk::directory::DiskCopy;
use crate::event::SimEvent;
use crate::network::Network;
use crate::node::process::Process;
use crate::node::{Clock, Setup, SimNode};
use crate::phase::RunPhase;
use crate::rng::Rng;
use crate::stats::Stats;
use crate::trace::Trace;
use crate::workload::{Operator, TAKERS, Workload};

/// Everything there is.
#[derive(Debug)]
pub struct World {
    /// Virtual time in microseconds.
    pub(crate) now: u64,
    sequence: u64,
    /// Names of calls and streams that were given.
    pub(crate) names: u64,
    events: BTreeMap<(u64, u64), SimEvent>,
    pub(crate) setup: Setup,
    pub(crate) nodes: BTreeMap<NodeId, SimNode>,
    pub(crate) network: Network,
    pub(crate) clients: BTreeMap<u64, SimClient>,
    pub(crate) shared: ClientContext,
    pub(crate) trace: Rc<RefCell<Trace>>,
    pub(crate) phase: RunPhase,
    pub(crate) phase_ends_at: u64,
    /// The nodes that work although faults go on elsewhere; empty before they are chosen.
    pub(crate) core: BTreeSet<NodeId>,
    /// A node that has lost the end of its log although that was synced.
    pub(crate) lost_tail: Option<NodeId>,
    /// Copies of disks that were taken.
    pub(crate) copies: BTreeMap<NodeId, DiskCopy>,
    /// Nodes that were emptied at the end.
    pub(crate) emptied: BTreeSet<NodeId>,
    /// Calls that each client had ended when the core was chosen, or will have when the one under way ends.
    pub(crate) awaited: BTreeMap<u64, u64>,
    /// What clocks may be wrong by.
    pub(crate) clocks: Clocks,
    /// When the final state began to be read.
    pub(crate) audit_from: u64,
    pub(crate) agreements: Agreements,
    pub(crate) stats: Stats,
    pub(crate) violations: Vec<Violation>,
}

/// What replicas must agree on.
#[derive(Debug)]
pub(crate) struct Agreements {
    pub(crate) formed: Formed,
    pub(crate) leaders: Agreement,
    pub(crate) entries: Agreement,
    pub(crate) states: Agreement,
    /// Generations of states that are recorded as damaged.
    pub(crate) damaged: BTreeSet<(NodeId, ShardId, u64)>,
    pub(crate) logs: Matching,
    pub(crate) log_time: LogTime,
    pub(crate) expiry: Expiry,
    pub(crate) services: Services,
    pub(crate) plain: Plain,
    /// Highest term of each shard that had a leader.
    pub(crate) led: BTreeMap<ShardId, u64>,
    /// By the highest term that had had a leader: the highest index that was applied anywhere by then.
    pub(crate) applied_by: BTreeMap<(ShardId, u64), u64>,
    /// Terms of applied entries.
    pub(crate) terms: BTreeMap<(ShardId, u64), u64>,
    /// Terms in which a leader may have gone on by its wall clock.
    pub(crate) resumed: BTreeSet<(ShardId, u64)>,
    /// When the last entry of each shard was stamped.
    pub(crate) last_stamp: BTreeMap<ShardId, u64>,
    /// When an entry was first written: that is when it was stamped.
    pub(crate) stamped_at: BTreeMap<(ShardId, u64, u64), u64>,
    /// Last index of each shard that the ledger knows.
    pub(crate) ledger_index: BTreeMap<ShardId, u64>,
}

impl Agreements {
    fn new(clocks: Clocks) -> Self {
        Self {
            formed: Formed::default(),
            leaders: Agreement::on_leaders(),
            entries: Agreement::on_entries(),
            states: Agreement::on_states(),
            logs: Matching::default(),
            damaged: BTreeSet::new(),
            log_time: LogTime::new(clocks),
            expiry: Expiry::default(),
            services: Services::default(),
            plain: Plain::default(),
            led: BTreeMap::new(),
            applied_by: BTreeMap::new(),
            terms: BTreeMap::new(),
            resumed: BTreeSet::new(),
            last_stamp: BTreeMap::new(),
            stamped_at: BTreeMap::new(),
            ledger_index: BTreeMap::new(),
        }
    }

    /// Highest index of a shard that was applied anywhere.
    pub(crate) fn applied_index(&self, shard: ShardId) -> u64 {
        self.ledger_index.get(&shard).copied().unwrap_or_default()
    }

    /// Highest index of a shard that was applied anywhere before this term had a leader.
    pub(crate) fn applied_before(&self, shard: ShardId, term: u64) -> u64 {
        let before = self.applied_by.range((shard, 0)..(shard, term));
        before.map(|(_, index)| *index).max().unwrap_or_default()
    }
}

/// Writes a line of the trace.
macro_rules! trace {
    ($world:expr, $($line:tt)*) => {
        $world.trace.borrow_mut().add($world.now, format_args!($($line)*))
    };
}
pub(crate) use trace;

impl World {
    /// The world of a seed, before anything has happened.
    #[must_use]
    pub fn new(seed: u64, trace: Rc<RefCell<Trace>>) -> Self {
        let mut rng = Rng::new(seed);
        let config = RunConfig::draw(&mut rng);
        let (nodes, shards) = (config.nodes, config.shards);
        let setup = Setup { nodes, shards, tuning: config.tuning, disk: config.disk };
        let mut node = |id| {
            let skew_ms = i64::try_from(rng.between(0, 4)).expect("a small number") - 2;
            let drift = rng.between(0, 2 * config.drift_per_mille);
            let rate = 1_000 + drift - config.drift_per_mille;
            let boot_us = rng.between(0, 100_000_000);
            let clock = Clock { boot_us, since_us: 0, rate, skew_ms };
            (id, SimNode::new((id, rng.number()), setup.shards, clock, config.disk))
        };
        let nodes = (1..=setup.nodes).map(&mut node).collect();
        let operator = SimClient::new(0, Workload::Operator(Operator::default()));
        let others = (1..=config.clients)
            .chain(TAKERS)
            .map(|client| SimClient::new(client, Workload::of(client)));
        let clients =
            std::iter::once(operator).chain(others).map(|client| (client.id, client)).collect();
        let clocks = Clocks { drift_per_mille: config.drift_per_mille, ..Clocks::default() };
        let network = Network::draw(&mut rng, &config);
        let shared = ClientContext {
            rng,
            router: Router { shards: config.shards },
            history: History::default(),
            ledger: Ledger::forgetful(config.disk.request_client_idle_ms),
            queues: Vec::new(),
            stopping: false,
            patient: false,
            violations: Vec::new(),
            calls_open: 0,
            calls_answered: 0,
            retries: 0,
            reused_ids: 0,
            late_retries: 0,
            hang_ups: 0,
            config,
        };
        let agreements = Agreements::new(clocks);
        let world = Self {
            now: 0,
            sequence: 0,
            names: 0,
            events: BTreeMap::new(),
            setup,
            nodes,
            network,
            clients,
            shared,
            trace,
            phase: RunPhase::Chaos,
            phase_ends_at: 0,
            core: BTreeSet::new(),
            lost_tail: None,
            copies: BTreeMap::new(),
            emptied: BTreeSet::new(),
            awaited: BTreeMap::new(),
            clocks,
            audit_from: u64::MAX,
            agreements,
            stats: Stats::default(),
            violations: Vec::new(),
        };
        trace!(world, "seed {seed}: {:?}", world.shared.config);
        world
    }

    /// Lets something happen at a time.
    pub(crate) fn at(&mut self, at: u64, event: SimEvent) {
        self.sequence += 1;
        self.events.insert((at.max(self.now), self.sequence), event);
    }

    /// Lets something happen after a while, drawn up to `most_us`.
    pub(crate) fn soon(&mut self, most_us: u64, event: SimEvent) {
        let delay = self.shared.rng.between(1, most_us.max(1));
        self.at(self.now + delay, event);
    }

    /// The running process of a node.
    pub(crate) fn process(&self, node: NodeId) -> Process {
        Process { node, life: self.nodes[&node].life }
    }

    pub(crate) fn is_running(&self, process: Process) -> bool {
        let node = &self.nodes[&process.node];
        node.up && node.life == process.life
    }

    pub(crate) fn node(&mut self, node: NodeId) -> &mut SimNode {
        self.nodes.get_mut(&node).expect("every id has a node")
    }

    /// Tells an input to a replica and carries out what it wants.
    pub(crate) fn step(&mut self, node: NodeId, shard: ShardId, input: Input) {
        let now_us = self.now;
        let Some(input) = self.admit(node, shard, input) else { return };
        if let Input::Peer(peer) = &input {
            self.follows(node, shard, peer);
        }
        let host = self.node(node);
        let now = host.clocks(now_us);
        let Some(host) = host.hosts.get_mut(&shard) else { return };
        let is_tick = matches!(input, Input::Tick);
        let effects = host.replica.step(now, input);
        host.handed.acts(&effects, now.boot_ms);
        if effects.iter().any(|effect| matches!(effect, Effect::Disputed(true))) {
            host.handed.stop(host.replica.status(now).last_index);
        }
        let late = if is_tick { host.handed.judge(now.boot_ms) } else { None };
        self.violations.extend(late);
        self.carry_out(node, shard, effects);
    }
}
