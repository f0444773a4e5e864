//! The list of metrics, and the pages of the documentation that are made from tables.
//!
//! `UPDATE_DOCS=1 cargo test -p trefoil-server --test metrics` writes the pages anew.

#![allow(clippy::unwrap_used, reason = "a test ends where something is wrong")]

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use prometheus::Registry;
use prometheus::proto::MetricFamily;
use trefoil_core::limits;
use trefoil_core::machine::{Counts, Durations, Gauges};
use trefoil_core::replica::Role;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::reason::{DOMAIN, RefusalEffect, Retry};
use trefoil_server::metrics::Metrics;
use trefoil_server::node::{Observer as _, PeerOperation};

const NOTE: &str = "<!-- Written by server/tests/metrics.rs with UPDATE_DOCS=1: change the table, not this page. -->\n";

/// Metrics of a node that has seen everything once, so that every family shows.
fn seen() -> Arc<Metrics> {
    let metrics = Metrics::new(Registry::new()).unwrap();
    metrics.role(1, Role::Leader, 2);
    metrics.applied(1, true, &Counts::default(), &Gauges { queue_backlog: 3, ..Gauges::default() });
    metrics.rpc(PeerOperation::AppendEntries, 0.001);
    metrics.damage(1);
    metrics.disputed(1, true);
    metrics.encode().unwrap();
    metrics
}

fn labels(family: &MetricFamily) -> String {
    let first = family.get_metric().first().expect("a family has a metric");
    let labels = first.get_label().iter().map(|label| format!("`{}`", label.name()));
    labels.collect::<Vec<_>>().join(", ")
}

fn kind(family: &MetricFamily) -> String {
    format!("{:?}", family.get_field_type()).to_lowercase()
}

/// Compares a page with what the tables say, or writes it.
fn hold(page: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(page);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, text).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(found == text, "docs/{page} is not what the table says: run with UPDATE_DOCS=1");
}

#[test]
fn every_metric_is_documented() {
    let mut text = format!(
        "# Metrics\n\n{NOTE}\nEvery node serves them at `/metrics` of its client port, and of `--metrics-listen`.\n\
         Counts of locks, queues and the cache's expiry are told by the leader of each shard alone: add them up over \
         the nodes.\nThe `raft_engine_*` metrics of the log's store are there, too, as that library documents them.\n\n\
         | name | type | labels | meaning |\n| --- | --- | --- | --- |\n"
    );
    for family in seen().registry().gather() {
        let (name, help) = (family.name(), family.help());
        writeln!(text, "| `{name}` | {} | {} | {help} |", kind(&family), labels(&family)).unwrap();
    }
    hold("metrics.md", &text);
}

#[test]
fn the_list_is_what_dashboards_know() {
    let names = seen().registry().gather().iter().map(|f| f.name().to_owned()).collect::<Vec<_>>();
    let golden = "
        grpc_server_handled_total grpc_server_handling_seconds grpc_server_started_total
        process_cpu_seconds_total process_max_fds process_open_fds process_resident_memory_bytes process_start_time_seconds
        process_threads process_virtual_memory_bytes
        trefoil_barriers_tripped_total trefoil_build_info trefoil_cache_expired_total trefoil_cache_hits_total trefoil_cache_misses_total
        trefoil_calls_forwarded_total trefoil_calls_refused_total trefoil_calls_shed_total trefoil_checkpoint_seconds trefoil_checkpoint_written_bytes_total
        trefoil_connections trefoil_connections_refused_total trefoil_deadlock_searches_cut_total
        trefoil_deadlocks_total trefoil_disk_free_bytes trefoil_disk_low trefoil_fence_validations_total
        trefoil_fences_refused_total trefoil_latches_opened_total trefoil_leader_obstacles trefoil_leaders_elected_total
        trefoil_leases_expired_total
        trefoil_locks_acquired_total trefoil_locks_blocked_total trefoil_locks_converted_total
        trefoil_locks_forced_total trefoil_locks_held trefoil_locks_hold_seconds trefoil_locks_released_total
        trefoil_locks_timeouts_total trefoil_locks_wait_seconds trefoil_locks_waiting
        trefoil_permits trefoil_permits_acquired_total trefoil_permits_blocked_total trefoil_permits_in_use
        trefoil_permits_released_total trefoil_permits_timeouts_total trefoil_permits_wait_seconds trefoil_pipeline_streams
        trefoil_queue_acked_total trefoil_queue_dequeued_total trefoil_queue_enqueued_total trefoil_queue_lag
        trefoil_raft_current_term trefoil_raft_role trefoil_rpc_latency_seconds
        trefoil_scrub_bytes_total trefoil_scrub_finished_timestamp_seconds trefoil_semaphores trefoil_sessions trefoil_sessions_expired_total
        trefoil_state_damage_total trefoil_state_damaged trefoil_state_disputed trefoil_state_diverged_total trefoil_two_histories_total
        trefoil_wal_fsync_seconds trefoil_watch_events_total trefoil_watchers
        trefoil_watches_ended_total";
    assert_eq!(names, golden.split_whitespace().collect::<Vec<_>>());
}

#[test]
fn alerts_are_about_metrics_that_there_are() {
    let names = seen().registry().gather().iter().map(|f| f.name().to_owned()).collect::<Vec<_>>();
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/alerts.yml");
    let alerts = std::fs::read_to_string(path).unwrap();
    let words = alerts.split(|char: char| !(char.is_ascii_alphanumeric() || char == '_'));
    let of_node = |word: &&str| {
        ["trefoil_", "grpc_server_", "process_"].iter().any(|prefix| word.starts_with(prefix))
    };
    let used = words.filter(of_node).map(|word| word.trim_end_matches("_bucket"));
    let used = used.collect::<std::collections::BTreeSet<_>>();
    assert!(used.len() >= 15, "{used:?}");
    for name in used {
        assert!(names.iter().any(|known| known == name), "there is no metric {name}");
    }
}

#[test]
fn names_and_help_follow_the_rules_of_prometheus() {
    for family in seen().registry().gather() {
        let (name, kind) = (family.name(), kind(&family));
        assert!(family.help().ends_with('.'), "{name} has no sentence of help");
        assert_eq!(name.ends_with("_total"), kind == "counter", "{name} is a {kind}");
        let is_moment =
            name.ends_with("_timestamp_seconds") || name == "process_start_time_seconds";
        let is_duration = name.ends_with("_seconds") && !is_moment;
        assert_eq!(is_duration, kind == "histogram", "{name} is a {kind}");
    }
}

fn gauges(n: u64) -> Gauges {
    Gauges {
        queue_backlog: n,
        locks_held: n + 1,
        locks_waiting: n + 2,
        sessions: n + 3,
        semaphores: n + 4,
        permits: n + 5,
        permits_in_use: n + 6,
    }
}

#[test]
fn times_of_locks_are_histograms_in_seconds() {
    let metrics = Metrics::new(Registry::new()).unwrap();
    metrics.role(1, Role::Leader, 2);
    let mut lock_waits = Durations::default();
    [0, 2, 700, 4_000_000].into_iter().for_each(|ms| lock_waits.record(ms));
    let counts = Counts { lock_waits, lock_timeouts: 2, permits_acquired: 3, ..Counts::default() };
    metrics.applied(1, true, &counts, &gauges(1));
    metrics.applied(1, true, &counts, &gauges(1));
    metrics.applied(1, false, &counts, &gauges(1));
    let page = metrics.encode().unwrap();
    for line in [
        "trefoil_locks_wait_seconds_bucket{le=\"0.001\"} 2",
        "trefoil_locks_wait_seconds_bucket{le=\"0.002\"} 4",
        "trefoil_locks_wait_seconds_bucket{le=\"0.5\"} 4",
        "trefoil_locks_wait_seconds_bucket{le=\"1\"} 6",
        "trefoil_locks_wait_seconds_bucket{le=\"3600\"} 6",
        "trefoil_locks_wait_seconds_bucket{le=\"+Inf\"} 8",
        "trefoil_locks_wait_seconds_sum 8001.404",
        "trefoil_locks_wait_seconds_count 8",
        "trefoil_locks_hold_seconds_count 0",
        "trefoil_locks_timeouts_total 4",
        "trefoil_locks_held{shard=\"1\"} 2",
        "trefoil_locks_waiting{shard=\"1\"} 3",
        "trefoil_sessions{shard=\"1\"} 4",
        "trefoil_semaphores{shard=\"1\"} 5",
        "trefoil_permits{shard=\"1\"} 6",
        "trefoil_permits_in_use{shard=\"1\"} 7",
        "trefoil_permits_acquired_total 6",
    ] {
        assert!(page.lines().any(|shown| shown == line), "{line} is not in\n{page}");
    }
    metrics.role(1, Role::Follower, 3);
    let page = metrics.encode().unwrap();
    assert!(!page.contains("trefoil_locks_held{") && !page.contains("trefoil_sessions{"), "{page}");
}

#[test]
fn only_the_leader_tells_lag_and_counts() {
    let metrics = Metrics::new(Registry::new()).unwrap();
    let counts = Counts { enqueued: 5, ..Counts::default() };
    let shows = |line: &str| metrics.encode().unwrap().lines().any(|shown| shown == line);
    metrics.role(1, Role::Follower, 4);
    metrics.applied(1, false, &counts, &gauges(5));
    assert!(
        shows("trefoil_raft_role{shard=\"1\"} 0")
            && shows("trefoil_raft_current_term{shard=\"1\"} 4")
    );
    assert!(shows("trefoil_queue_enqueued_total 0"));
    // What operators are paged for is there before it happens.
    for name in ["state_damage_total", "state_damaged", "state_disputed"] {
        assert!(shows(&format!("trefoil_{name}{{shard=\"1\"}} 0")), "{name}");
    }
    assert!(!metrics.encode().unwrap().contains("trefoil_queue_lag{"));

    metrics.role(1, Role::Leader, 5);
    metrics.applied(1, true, &counts, &gauges(7));
    assert!(shows("trefoil_queue_enqueued_total 5") && shows("trefoil_queue_lag{shard=\"1\"} 7"));

    metrics.role(1, Role::Follower, 6);
    // The applier may be behind the change.
    metrics.applied(1, true, &counts, &gauges(8));
    assert!(!metrics.encode().unwrap().contains("trefoil_queue_lag{"));
}

#[test]
fn every_reason_is_documented() {
    let mut text = format!(
        "# Errors\n\n{NOTE}\nEvery error of Trefoil's services carries a `google.rpc.ErrorInfo` with domain `{DOMAIN}` and one of these reasons. \
         Its metadata names the facts,\nsuch as `field` and `limit`.\n\n\
         `retry` says whether the same request is worth sending again: never, `later`, when somebody has made room,\n\
         after a pause, at another node or the leader that the metadata names, or with the same request id. `effect`\n\
         says what may have happened: nothing at all, by no try of the same request id; nothing by the try that was\n\
         refused, while one before it whose end was not seen may have had its effect; or that nobody can say.\n\n\
         | reason | gRPC code | retry | effect | meaning |\n| --- | --- | --- | --- | --- |\n"
    );
    for reason in Reason::ALL {
        let row = reason.row();
        let retry = match row.retry {
            Retry::Never => "no",
            Retry::Later => "later",
            Retry::Freely => "yes",
            Retry::Elsewhere => "yes, elsewhere",
            Retry::WithRequestId => "with the same request id",
        };
        let effect = match row.effect {
            RefusalEffect::NoTry => "none",
            RefusalEffect::NotThisTry => "none of this try",
            RefusalEffect::Unknown => "unknown",
        };
        let code = tonic::Code::from(row.code);
        let name = reason.name();
        writeln!(text, "| `{name}` | {code:?} | {retry} | {effect} | {} |", row.meaning).unwrap();
    }
    hold("errors.md", &text);
}

#[test]
fn every_limit_is_documented() {
    let mut text = format!(
        "# Limits\n\n{NOTE}\nThey are compiled in; `core/src/limits.rs` holds them and their relations.\n\n\
         | limit | value | meaning |\n| --- | ---: | --- |\n"
    );
    for limit in limits::ALL {
        writeln!(text, "| `{}` | {} | {} |", limit.name, thousands(limit.value), limit.meaning)
            .unwrap();
    }
    hold("limits.md", &text);
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let groups = digits.as_bytes().rchunks(3).rev();
    groups.map(|group| String::from_utf8_lossy(group)).collect::<Vec<_>>().join(",")
}
