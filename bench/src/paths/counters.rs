//! What the nodes count themselves: their metrics, and how far their logs are.

use std::collections::BTreeMap;
use std::time::Instant;

use super::PathSide;
use crate::BenchError;
use crate::cluster::page;
use crate::figures::as_f64;

/// Operations of the rows that are commands.
const COMMANDS: [&str; 6] = ["Put", "Acquire", "Release", "Enqueue", "Dequeue", "Ack"];

/// All at one moment.
#[derive(Debug)]
pub(super) struct NodeCounters {
    at: Instant,
    /// Each series of the metrics, summed over the nodes.
    series: BTreeMap<String, f64>,
    /// Entries that the shards committed; none where a node did not tell.
    entries: Option<u64>,
}

/// How fast they grow, a second.
#[derive(Debug)]
pub(super) struct CounterRates {
    pub(super) forwarded: Option<f64>,
    pub(super) commands: Option<f64>,
    pub(super) entries: Option<f64>,
    pub(super) messages: Option<f64>,
    pub(super) syncs: Option<f64>,
    /// As they are, not by the second.
    pub(super) checkpoints: Option<f64>,
}

impl NodeCounters {
    /// Asks all nodes.
    ///
    /// # Errors
    /// When one does not give its metrics.
    pub(super) async fn read(side: &PathSide) -> Result<Self, BenchError> {
        let at = Instant::now();
        let mut series = BTreeMap::new();
        for endpoint in &side.cluster.endpoints {
            for line in page(endpoint.trim_start_matches("http://"), "/metrics")?.lines() {
                if let Some((name, value)) = line.rsplit_once(' ')
                    && let Ok(value) = value.parse::<f64>()
                {
                    *series.entry(name.to_owned()).or_default() += value;
                }
            }
        }
        Ok(Self { at, series, entries: entries(side).await })
    }

    /// What was counted since an earlier look.
    pub(super) fn since(&self, earlier: &Self) -> CounterRates {
        let seconds = (self.at - earlier.at).as_secs_f64();
        let grown = |name: &str| Some(self.total(name, "")? - earlier.total(name, "")?);
        let rate = |name: &str| Some(grown(name)? / seconds);
        let handled = |of: &Self| {
            let ok = |method| format!(r#"grpc_code="OK",grpc_method="{method}""#);
            COMMANDS
                .iter()
                .filter_map(|method| of.total("grpc_server_handled_total", &ok(method)))
                .sum::<f64>()
        };
        let entries = self.entries.zip(earlier.entries).map(|(now, then)| now.saturating_sub(then));
        CounterRates {
            forwarded: rate("trefoil_calls_forwarded_total"),
            commands: Some((handled(self) - handled(earlier)) / seconds),
            entries: entries.map(|entries| as_f64(entries) / seconds),
            messages: rate("trefoil_rpc_latency_seconds_count"),
            syncs: rate("trefoil_wal_fsync_seconds_count"),
            checkpoints: grown("trefoil_checkpoint_seconds_count"),
        }
    }

    /// Sum over a metric's series with these labels; none where there is none.
    fn total(&self, name: &str, labels: &str) -> Option<f64> {
        let mut found = self
            .series
            .range(name.to_owned()..)
            .take_while(|(series, _)| series.starts_with(name))
            .filter(|(series, _)| {
                series[name.len()..].is_empty() || series.as_bytes()[name.len()] == b'{'
            })
            .filter(|(series, _)| series.contains(labels))
            .map(|(_, value)| *value)
            .peekable();
        found.peek().is_some().then(|| found.sum())
    }
}

/// Entries that all shards have committed, as far as any node knows.
async fn entries(side: &PathSide) -> Option<u64> {
    let mut committed = BTreeMap::<u32, u64>::new();
    for node in side.client.cluster().status().await {
        for shard in node.status.ok()?.shards {
            let index = committed.entry(shard.shard).or_default();
            *index = shard.commit_index.max(*index);
        }
    }
    Some(committed.values().sum())
}
