//! The figures of one row, and the columns that show them.

use std::collections::BTreeMap;

use serde::Serialize;

use super::window::WindowFigures;
use super::{PathPlan, PathWork, name};
use crate::figures::{as_f64, ms};

/// One row; what is there per operation is of all nodes together.
#[derive(Clone, Debug, Serialize)]
pub(super) struct PathRow {
    pub(super) work: String,
    pub(super) through: String,
    pub(super) callers: usize,
    /// `old` or `new`.
    pub(super) binary: &'static str,
    pub(super) round: usize,
    seconds: f64,
    operations: u64,
    pub(super) failures: u64,
    /// What the first failure says, also before and after the time that counts.
    pub(super) failure: Option<String>,
    per_second: f64,
    p50_ms: f64,
    p90_ms: f64,
    p99_ms: f64,
    server_us: f64,
    node_us: Vec<f64>,
    pub(super) thread_us: BTreeMap<String, f64>,
    client_us: f64,
    context_switches: f64,
    forwarded: Option<f64>,
    commands_per_entry: Option<f64>,
    entries: Option<f64>,
    messages: Option<f64>,
    log_syncs: Option<f64>,
    /// All that happened meanwhile.
    checkpoints: Option<f64>,
    resident_mib: Vec<f64>,
    /// Operations of the caller with most over those of the one with fewest, of a hand-off.
    fairness: Option<f64>,
}

/// One column of figures.
pub(super) struct PathColumn {
    pub(super) head: &'static str,
    pub(super) decimals: usize,
    pub(super) of: fn(&PathRow) -> Option<f64>,
}

const fn column(
    head: &'static str,
    decimals: usize,
    of: fn(&PathRow) -> Option<f64>,
) -> PathColumn {
    PathColumn { head, decimals, of }
}

/// All of them, from the left to the right.
pub(super) const COLUMNS: [PathColumn; 20] = [
    column("per second", 0, |row| Some(row.per_second)),
    column("p50 ms", 2, |row| Some(row.p50_ms)),
    column("p90 ms", 2, |row| Some(row.p90_ms)),
    column("p99 ms", 2, |row| Some(row.p99_ms)),
    column("server us", 1, |row| Some(row.server_us)),
    column("n1 us", 1, |row| row.node_us.first().copied()),
    column("n2 us", 1, |row| row.node_us.get(1).copied()),
    column("n3 us", 1, |row| row.node_us.get(2).copied()),
    column("client us", 1, |row| Some(row.client_us)),
    column("switches", 2, |row| Some(row.context_switches)),
    column("forwarded", 2, |row| row.forwarded),
    column("entries", 3, |row| row.entries),
    column("commands/entry", 1, |row| row.commands_per_entry),
    column("messages", 2, |row| row.messages),
    column("syncs", 3, |row| row.log_syncs),
    column("checkpoints", 0, |row| row.checkpoints),
    column("n1 MiB", 0, |row| row.resident_mib.first().copied()),
    column("n2 MiB", 0, |row| row.resident_mib.get(1).copied()),
    column("n3 MiB", 0, |row| row.resident_mib.get(2).copied()),
    column("most/fewest", 3, |row| row.fairness),
];

impl PathRow {
    pub(super) fn new(
        plan: PathPlan,
        binary: &'static str,
        round: usize,
        seen: &WindowFigures,
    ) -> Self {
        let operations = seen.latencies.len();
        let count = as_f64(operations.max(1));
        let (per_second, rates) = (count / seen.seconds, &seen.rates);
        let us = |seconds: f64| seconds * 1e6 / count;
        let mut thread_us = BTreeMap::new();
        for (thread, cpu) in seen.nodes.iter().flat_map(|node| &node.threads) {
            *thread_us.entry(thread.clone()).or_default() += us(*cpu);
        }
        let of_each = |rate: Option<f64>| rate.map(|rate| rate / per_second);
        let (fewest, most) = (seen.each.iter().min(), seen.each.iter().max());
        let fairness = fewest.zip(most).map(|(fewest, most)| as_f64(*most) / as_f64(*fewest));
        Self {
            work: name(plan.work),
            through: name(plan.through),
            callers: plan.callers,
            binary,
            round,
            seconds: seen.seconds,
            operations,
            failures: seen.failures,
            failure: seen.failure.clone(),
            per_second: as_f64(operations) / seen.seconds,
            p50_ms: ms(&seen.latencies, 0.5),
            p90_ms: ms(&seen.latencies, 0.9),
            p99_ms: ms(&seen.latencies, 0.99),
            server_us: us(seen.nodes.iter().map(|node| node.cpu).sum()),
            node_us: seen.nodes.iter().map(|node| us(node.cpu)).collect(),
            thread_us,
            client_us: us(seen.client),
            context_switches: seen.nodes.iter().map(|node| node.switches).sum::<f64>() / count,
            forwarded: of_each(rates.forwarded),
            commands_per_entry: quotient(rates.commands, rates.entries),
            entries: of_each(rates.entries),
            messages: of_each(rates.messages),
            log_syncs: of_each(rates.syncs),
            checkpoints: rates.checkpoints,
            resident_mib: seen.resident_mib.clone(),
            fairness: fairness.filter(|_| plan.work == PathWork::HandOff),
        }
    }
}

/// One over the other, where both are there and it means something.
pub(super) fn quotient(one: Option<f64>, other: Option<f64>) -> Option<f64> {
    one.zip(other).map(|(one, other)| one / other).filter(|quotient| quotient.is_finite())
}
