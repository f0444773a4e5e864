//! The course of a run: faults, then peace until every client has its answer, then the final state is read and
//! everything is compared.

use std::cell::RefCell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use trefoil_proto::lock::v1::LockMode;

use crate::check::{self, Violation, history};
use crate::client::SimClient;
use crate::config::{MILLISECOND, SECOND};
use crate::disk::Rot;
use crate::event::SimEvent;
use crate::node::Host;
use crate::phase::RunPhase;
use crate::stats::Stats;
use crate::trace::{self, Trace};
use crate::workload::Workload;
use crate::world::{World, trace};

/// How long clients may take to end their calls, and replicas to catch up, once faults are over.
const PATIENCE_US: u64 = 60 * SECOND;
/// How long a majority that works may take to answer every call, while faults go on elsewhere.
const CORE_US: u64 = 45 * SECOND;
/// How long a run is at least, and how many calls it answers.
const TIME_US_MIN: u64 = 60 * SECOND;
/// See [`TIME_US_MIN`].
const ANSWERS_MIN: u64 = 500;
/// How long that may take once faults are over.
const CALM_US: u64 = 400 * SECOND;
/// How long the final state may take to be read.
const AUDIT_US: u64 = 180 * SECOND;
/// How long a majority that was emptied may take to end.
const EMPTIED_US: u64 = 60 * SECOND;
/// How often the course of a run is looked at.
const WATCH_US: u64 = 50 * MILLISECOND;

/// The promise that a run ends.
const PROGRESS: &str = "a majority that works makes progress";

/// What came of a seed.
#[derive(Clone, Debug)]
pub struct SeedReport {
    /// The seed.
    pub seed: u64,
    /// Hash of all events: equal for equal seeds.
    pub hash: u64,
    /// Virtual time in microseconds.
    pub virtual_us: u64,
    /// What was reached.
    pub stats: Stats,
    /// Broken promises.
    pub violations: Vec<Violation>,
    /// The last events, when a promise was broken.
    pub trace: Vec<String>,
}

/// Runs a seed to its end, or to the first broken promise. A panic of the code under test is one.
#[must_use]
pub fn run(seed: u64) -> SeedReport {
    run_keeping(seed, trace::LINES)
}

/// [`run`], with so many of the last lines of the trace.
#[must_use]
pub fn run_keeping(seed: u64, lines: usize) -> SeedReport {
    let trace = Rc::new(RefCell::new(Trace::keeping(lines)));
    let shared = Rc::clone(&trace);
    let ran = catch_unwind(AssertUnwindSafe(move || {
        let mut world = World::new(seed, shared);
        world.begin();
        while world.violations.is_empty() && world.phase != RunPhase::Done && world.next() {}
        world.finish();
        (world.now, world.stats, world.violations)
    }));
    let (virtual_us, stats, violations) = ran.unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().cloned();
        let text = text.or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
        let what = text.unwrap_or_else(|| "of an unknown kind".to_owned());
        (0, Stats::default(), vec![Violation::new("nothing panics", what)])
    });
    let trace = trace.borrow();
    let lines = if violations.is_empty() {
        Vec::new()
    } else {
        trace.last(usize::MAX).map(str::to_owned).collect()
    };
    SeedReport { seed, hash: trace.hash(), virtual_us, stats, violations, trace: lines }
}

impl World {
    /// Goes on to the next phase when this one is over.
    pub(crate) fn watch(&mut self) {
        self.at(self.now + WATCH_US, SimEvent::Watch);
        match self.phase {
            RunPhase::Chaos if self.now >= self.shared.config.chaos_us => {
                self.shared.patient = true;
                if self.shared.config.liveness {
                    self.choose_core();
                    self.enter(RunPhase::Core, CORE_US);
                } else {
                    self.heal();
                    self.enter(RunPhase::Calm, CALM_US);
                }
            }
            RunPhase::Core if self.core_has_answered() => {
                self.stats.cores += 1;
                self.core.clear();
                self.heal();
                self.enter(RunPhase::Calm, CALM_US);
            }
            RunPhase::Calm
                if self.now >= TIME_US_MIN && self.shared.calls_answered >= ANSWERS_MIN =>
            {
                self.shared.stopping = true;
                self.enter(RunPhase::Settling, PATIENCE_US);
            }
            RunPhase::Settling
                if self.clients.values().all(SimClient::is_idle) && self.clients[&0].is_done() =>
            {
                self.audit_from = self.now;
                let id = self.clients.last_key_value().map_or(0, |(last, _)| last + 1);
                self.clients.insert(id, SimClient::new(id, Workload::auditor()));
                self.at(self.now, SimEvent::Wake(id, 0));
                self.enter(RunPhase::Audit, AUDIT_US);
            }
            RunPhase::Audit
                if self.clients.values().all(SimClient::is_idle) && self.auditor_is_done() =>
            {
                self.enter(RunPhase::Converging, PATIENCE_US);
            }
            RunPhase::Converging if self.has_converged() => {
                self.judge();
                if self.violations.is_empty() && self.can_empty() {
                    self.enter(RunPhase::Emptied, EMPTIED_US);
                    self.empty_a_majority();
                } else {
                    self.enter(RunPhase::Done, u64::MAX / 2);
                }
            }
            RunPhase::Emptied if self.emptied_are_gone() => {
                self.stats.emptied += 1;
                self.enter(RunPhase::Done, u64::MAX / 2);
            }
            _ if self.phase != RunPhase::Chaos && self.now > self.phase_ends_at => {
                let what = format!("{:?} did not end in time", self.phase);
                self.violations.push(Violation::new(PROGRESS, what));
            }
            _ => {}
        }
    }

    fn enter(&mut self, phase: RunPhase, for_us: u64) {
        trace!(self, "phase {phase:?}");
        self.phase = phase;
        self.phase_ends_at = self.now + for_us;
    }

    fn auditor_is_done(&self) -> bool {
        self.clients.last_key_value().is_some_and(|(_, client)| client.is_done())
    }

    /// Whether every call that was under way when the core was chosen has ended.
    fn core_has_answered(&self) -> bool {
        self.awaited.iter().all(|(id, ended)| self.clients[id].ended().0 >= *ended)
    }

    fn has_converged(&self) -> bool {
        (0..=self.setup.shards).all(|shard| {
            // One that lost a write may be in the majority by now: it leads, and a snapshot of it went to another.
            let digest =
                |host: &Host| self.lost_write(shard).then(|| host.machine.digest(&host.store));
            let mut indexes =
                self.nodes.values().filter(|node| !node.refused && !node.ended).map(|node| {
                    let whole = node.disk.rot_of(shard).is_none_or(|rot| rot == Rot::Old);
                    let host = node.hosts.get(&shard).filter(|host| whole && !host.damaged);
                    host.map(|host| {
                        let status = host.replica.status(node.clocks(self.now));
                        (host.machine.progress().index, status.last_index, digest(host))
                    })
                });
            let first = indexes.next().flatten();
            first.is_some_and(|(applied, last, _)| applied == last)
                && indexes.all(|other| other == first)
        })
    }

    /// Judges the run as a whole.
    fn judge(&mut self) {
        // Where wall clocks decided, a value may be gone at any time.
        if self.stats.wall_clock_decided > 0 {
            self.clocks.error_us = u64::MAX / 2;
        }
        let history = &self.shared.history;
        self.violations.extend(check::all(history, self.audit_from, self.clocks));
        self.violations.extend(self.shared.ledger.check());
        self.compare_states();
    }

    /// Counts what it has reached.
    pub(crate) fn finish(&mut self) {
        self.count_calls();
        for (node, at) in &self.nodes {
            trace!(self, "n{node} has {:x} on its disk", at.disk.volume.digest());
        }
        if let Some(found) = self.violations.first() {
            trace!(self, "{found}");
        }
    }

    fn compare_states(&mut self) {
        for shard in 0..=self.setup.shards {
            let mut digests = check::agreement::Agreement::on_states();
            for (node, at) in &self.nodes {
                let Some(host) = at.hosts.get(&shard) else { continue };
                let progress = host.machine.progress();
                let seen =
                    digests.saw(shard, progress.index, host.machine.digest(&host.store), *node);
                self.violations.extend(seen.err());
                if progress.queue_backlog > 0 {
                    let what = format!(
                        "n{node}/s{shard} counts {} messages after all were settled",
                        progress.queue_backlog
                    );
                    self.violations.push(Violation::new("the backlog of queues is counted", what));
                }
            }
        }
    }

    fn count_calls(&mut self) {
        let calls = &self.shared.history.calls;
        self.stats.calls = calls.len() as u64;
        self.stats.answered = self.shared.history.answered().count() as u64;
        self.stats.open = self.shared.calls_open;
        self.stats.retries = self.shared.retries;
        self.stats.reused_ids = self.shared.reused_ids;
        self.stats.late_retries = self.shared.late_retries;
        self.stats.others_refused = self.shared.ledger.others_refused;
        self.stats.hang_ups = self.shared.hang_ups;
        let services = &self.agreements.services;
        self.stats.delays = services.grants.delays;
        self.stats.leaders_told = services.leaders.told;
        self.stats.latches_opened = services.latches.opened;
        self.stats.barriers_begun = services.barriers.begun;
        self.stats.permits_handed_on = services.permits.handed_on;
        self.stats.fenced = services.fences.refused;
        self.stats.dedup_hits = self.shared.ledger.hits;
        for (_, _, outcome) in self.shared.history.answered() {
            match outcome {
                history::RecordedOutcome::Delivered(list) => {
                    self.stats.deliveries += list.len() as u64;
                    self.stats.redeliveries +=
                        list.iter().filter(|delivery| delivery.count > 1).count() as u64;
                }
                history::RecordedOutcome::Got { value: Some(_) } => self.stats.cache_hits += 1,
                history::RecordedOutcome::Acquired { mode, .. }
                | history::RecordedOutcome::Converted { mode, .. } => {
                    self.stats.shared_grants += u64::from(*mode == LockMode::Shared);
                }
                history::RecordedOutcome::AcquiredAll { grants } => {
                    self.stats.together += 1;
                    let shared = grants.iter().filter(|(.., mode)| *mode == LockMode::Shared);
                    self.stats.shared_grants += shared.count() as u64;
                }
                history::RecordedOutcome::Validated { .. }
                | history::RecordedOutcome::Described { .. } => {
                    self.stats.lock_reads += 1;
                }
                _ => {}
            }
        }
    }
}
