//! What a node measures. Names and help texts stand side by side; `docs/metrics.md` is generated from them.

mod durations;

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use prometheus::core::Collector;
use prometheus::process_collector::ProcessCollector;
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry, TextEncoder,
};
use tonic::{Code, Status};
use trefoil_core::ShardId;
use trefoil_core::machine::{Counts, Gauges};
use trefoil_core::replica::Role;
use trefoil_core::replica::obstacles::{self, Obstacles};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;
use trefoil_proto::operation::{Facts, Method};
use trefoil_proto::status::to_status;

use self::durations::LogDurations;
use crate::shared::clock;
use crate::shared::observer::{Observer, PeerOperation};

const PREFIX: &str = "trefoil";

/// Upper bounds in seconds, from a cached read to a long poll.
const CALL_SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5,
    5.0, 10.0, 60.0,
];
/// Upper bounds in seconds, from one write to a whole state file.
const DISK_SECONDS: &[f64] = &[
    0.000_1, 0.000_25, 0.000_5, 0.001, 0.002_5, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0,
    30.0,
];

/// Registers what a node itself counts: one row for each metric, with its kind, name, meaning and labels or bounds. The fields are
/// this crate's alone, so that one that nobody counts is dead code.
macro_rules! own {
    ($($field:ident: $kind:ident($($argument:expr),*);)*) => {
        /// What a node itself counts.
        #[derive(Debug)]
        pub(crate) struct Own {
            $(pub(crate) $field: own!(@$kind),)*
        }

        impl Own {
            fn register(r: &Registrar<'_>) -> Result<Self, prometheus::Error> {
                Ok(Self { $($field: r.$kind($($argument),*)?,)* })
            }
        }
    };
    (@counter) => { IntCounter };
    (@counters) => { IntCounterVec };
    (@gauge) => { IntGauge };
    (@gauges) => { IntGaugeVec };
    (@histogram) => { Histogram };
    (@histograms) => { HistogramVec };
}

own! {
    cache_hits: counter("cache_hits_total", "Gets answered to a client with a value.");
    cache_misses: counter("cache_misses_total", "Gets answered to a client without a value.");
    fence_validations: counter("fence_validations_total", "Fencing tokens that this node asked the shards of their locks about: once for each token and shard.");
    fences_refused: counter("fences_refused_total", "Calls by this node that were refused because a newer holder of their fence's lock was there, or nobody held it under their token.");
    raft_role: gauges("raft_role", "Role of this node in a shard: 0 follower, 1 candidate, 2 leader.", &["shard"]);
    raft_current_term: gauges("raft_current_term", "Raft term of a shard.", &["shard"]);
    two_histories: counter("two_histories_total", "Times that a shard stopped on this node since a peer has another history of it: a person must decide.");
    state_diverged: counter("state_diverged_total", "Times that a peer had another state at the same index: a fault that must be looked into.");
    state_damage: counters("state_damage_total", "Times that the state of a shard was found damaged on this node: it is rebuilt from a peer.", &["shard"]);
    state_damaged: gauges("state_damaged", "1 while the state of a shard is damaged on this node and not rebuilt.", &["shard"]);
    state_disputed: gauges("state_disputed", "1 while this node leads a shard whose replicas hold different states and no majority agrees: it refuses everything.", &["shard"]);
    rpc_latency: histograms("rpc_latency_seconds", "Time between nodes from a message to its answer.", &["op"]);
    wal_fsync: histogram("wal_fsync_seconds", "Time to write and sync one batch of the Raft log.", DISK_SECONDS);
    checkpoint: histogram("checkpoint_seconds", "Time to write one checkpoint of a shard's state.", DISK_SECONDS);
    checkpoint_bytes: counter("checkpoint_written_bytes_total", "Bytes of changed state that checkpoints wrote.");
    scrub_bytes: counter("scrub_bytes_total", "Bytes of state files that were read to see whether the disk still has them as they were written.");
    scrub_finished: gauge("scrub_finished_timestamp_seconds", "Unix time at which all state files had been read so, 0 before the first time; it takes a day or longer from one to the next.");
    disk_free: gauge("disk_free_bytes", "Free bytes of the disk that holds the data directory.");
    disk_low: gauge("disk_low", "1 while so little of the disk is free that other nodes should lead, and that what takes room is refused unless a majority of the others has it.");
    obstacles: gauges("leader_obstacles", "Shards that this node should not lead, by what keeps it from that: `no_room`, `draining`, `slow_link`, `slow_disk`, `stopping`, `damaged`.", &["obstacle"]);
    calls_forwarded: counters("calls_forwarded_total", "Commands and queries that this node sent on to the leader of their shard, retries included: what clients that know the leaders (docs/routing.md) save.", &["shard"]);
    calls_shed: counter("calls_shed_total", "Calls refused before any work because too many were in flight.");
    connections: gauge("connections", "Open client connections.");
    connections_refused: counter("connections_refused_total", "Client connections refused by a cap.");
    pipeline_streams: gauge("pipeline_streams", "Open pipelined streams.");
    watchers: gauge("watchers", "Open watches.");
    watch_events: counter("watch_events_total", "Events told to those who watch.");
}

/// The metrics of one node, on the registry that it was given.
#[derive(Debug)]
pub struct Metrics {
    registry: Registry,
    pub(crate) own: Own,
    /// What the machines count, in the order of [`Counts::totals`] and [`Counts::times`].
    totals: Vec<IntCounter>,
    times: Vec<LogDurations>,
    /// What only the leader of a shard tells, in the order of [`Gauges::each`].
    gauges: Vec<IntGaugeVec>,
    /// Shards that this node leads. Held while their gauges are written, so that none outlives a leadership.
    led: Mutex<BTreeSet<ShardId>>,
    handled: IntCounterVec,
    refused: Vec<(Reason, IntCounter)>,
    /// One for each of [`Method::ALL`], in that order.
    methods: Vec<MethodMetrics>,
    watches_ended: IntCounterVec,
}

/// Why the node ended a watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// The node does not have all events after its position.
    Compacted,
    /// It read too slowly.
    Behind,
    /// The shard has no leader.
    Leaderless,
}

impl WatchEnd {
    const ALL: [Self; 3] = [Self::Compacted, Self::Behind, Self::Leaderless];

    fn name(self) -> &'static str {
        match self {
            Self::Compacted => "compacted",
            Self::Behind => "behind",
            Self::Leaderless => "leaderless",
        }
    }
}

#[derive(Debug)]
struct MethodMetrics {
    started: IntCounter,
    ok: IntCounter,
    handling: Option<Times>,
}

/// Times of the calls of a service: those that may wait by their own wish tell nothing of how fast it is.
#[derive(Clone, Debug)]
struct Times {
    short: Histogram,
    waits: Histogram,
}

/// Registers metrics under the common prefix.
struct Registrar<'a>(&'a Registry);

impl Registrar<'_> {
    fn add<C: Collector + Clone + 'static>(
        &self,
        metric: Result<C, prometheus::Error>,
    ) -> Result<C, prometheus::Error> {
        let metric = metric?;
        self.0.register(Box::new(metric.clone()))?;
        Ok(metric)
    }

    fn counter(&self, name: &str, help: &str) -> Result<IntCounter, prometheus::Error> {
        self.add(IntCounter::with_opts(Opts::new(name, help).namespace(PREFIX)))
    }

    /// A histogram of log time.
    fn log_durations(&self, name: &str, help: &str) -> Result<LogDurations, prometheus::Error> {
        self.add(LogDurations::new(&Opts::new(name, help).namespace(PREFIX)))
    }

    fn counters(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntCounterVec, prometheus::Error> {
        self.add(IntCounterVec::new(Opts::new(name, help).namespace(PREFIX), labels))
    }

    fn gauge(&self, name: &str, help: &str) -> Result<IntGauge, prometheus::Error> {
        self.add(IntGauge::with_opts(Opts::new(name, help).namespace(PREFIX)))
    }

    fn gauges(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<IntGaugeVec, prometheus::Error> {
        self.add(IntGaugeVec::new(Opts::new(name, help).namespace(PREFIX), labels))
    }

    fn histogram(
        &self,
        name: &str,
        help: &str,
        bounds: &[f64],
    ) -> Result<Histogram, prometheus::Error> {
        self.add(Histogram::with_opts(
            HistogramOpts::new(name, help).namespace(PREFIX).buckets(bounds.to_vec()),
        ))
    }

    fn histograms(
        &self,
        name: &str,
        help: &str,
        labels: &[&str],
    ) -> Result<HistogramVec, prometheus::Error> {
        let options =
            HistogramOpts::new(name, help).namespace(PREFIX).buckets(CALL_SECONDS.to_vec());
        self.add(HistogramVec::new(options, labels))
    }
}

impl Metrics {
    /// Registers everything.
    ///
    /// # Errors
    /// When the registry has one of the names already.
    pub fn new(registry: Registry) -> Result<Arc<Self>, prometheus::Error> {
        let r = Registrar(&registry);
        let (handled, methods) = Self::calls(&r)?;
        let refused = r.counters(
            "calls_refused_total",
            "Calls that were refused, by the reason in their ErrorInfo (docs/errors.md).",
            &["reason"],
        )?;
        let refused = Reason::ALL
            .iter()
            .map(|reason| (*reason, refused.with_label_values(&[reason.name()])))
            .collect();
        // Memory, CPU time, threads and open files, under the names that all exporters use.
        r.0.register(Box::new(ProcessCollector::for_self()))?;
        let build =
            r.gauges("build_info", "Always 1; the labels say what runs.", &["version", "commit"])?;
        build.with_label_values(&[crate::VERSION, crate::COMMIT]).set(1);
        let watches_ended = r.counters(
            "watches_ended_total",
            "Watches that the node ended: the position is compacted, the watcher fell behind, or the shard has no leader.",
            &["reason"],
        )?;
        for end in WatchEnd::ALL {
            watches_ended.with_label_values(&[end.name()]);
        }
        let of_leader = |help: &str| format!("{help}, told by the shard's leader.");
        let counts = Counts::default();
        let totals = counts.totals();
        let times = counts.times();
        let gauges = Gauges::default();
        let gauges = gauges.each().map(|(name, help, _)| {
            let help = format!("{help}, told by the shard's leader alone.");
            r.gauges(name, &help, &["shard"])
        });
        let metrics = Self {
            own: Own::register(&r)?,
            totals: totals
                .map(|(name, help, _)| r.counter(name, &of_leader(help)))
                .collect::<Result<_, _>>()?,
            times: times
                .map(|(name, help, _)| r.log_durations(name, &of_leader(help)))
                .collect::<Result<_, _>>()?,
            gauges: gauges.collect::<Result<_, _>>()?,
            led: Mutex::default(),
            handled,
            refused,
            methods,
            watches_ended,
            registry,
        };
        metrics.obstacles(&[]);
        Ok(Arc::new(metrics))
    }

    /// Calls by method, and the counter of those that did not end well.
    fn calls(r: &Registrar<'_>) -> Result<(IntCounterVec, Vec<MethodMetrics>), prometheus::Error> {
        let started = r.add(IntCounterVec::new(
            Opts::new("grpc_server_started_total", "Calls that began, unary and pipelined."),
            &["grpc_type", "grpc_service", "grpc_method"],
        ))?;
        let handled = r.add(IntCounterVec::new(
            Opts::new("grpc_server_handled_total", "Calls that ended, by gRPC code."),
            &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
        ))?;
        let handling = HistogramOpts::new(
            "grpc_server_handling_seconds",
            "Time from a unary or pipelined call's start to its end; `waits` tells calls apart that asked to wait.",
        );
        let handling = r.add(HistogramVec::new(
            handling.buckets(CALL_SECONDS.to_vec()),
            &["grpc_service", "waits"],
        ))?;
        let times = |method: &Method| Times {
            short: handling.with_label_values(&[method.facts().service, "false"]),
            waits: handling.with_label_values(&[method.facts().service, "true"]),
        };
        let methods = Method::ALL
            .iter()
            .map(|method| {
                let Facts { shape, service, name, .. } = *method.facts();
                MethodMetrics {
                    started: started.with_label_values(&[shape, service, name]),
                    ok: handled.with_label_values(&[shape, service, name, code_name(Code::Ok)]),
                    handling: method.is_unary().then(|| times(method)),
                }
            })
            .collect();
        Ok((handled, methods))
    }

    /// A call begins.
    #[must_use]
    pub fn begin(self: &Arc<Self>, method: Method) -> Handling {
        self.methods[method.index()].started.inc();
        let waits = false;
        Handling { metrics: Arc::clone(self), method, waits, started: Instant::now(), ended: false }
    }

    /// A call is refused: its status.
    #[must_use]
    pub fn refuse(&self, refusal: &Refusal, has_request_id: bool) -> Status {
        let reason = refusal.reason();
        if let Some((_, count)) = self.refused.iter().find(|(of, _)| *of == reason) {
            count.inc();
        }
        to_status(refusal, has_request_id)
    }

    /// A watch was refused or ended.
    pub fn watch_ended(&self, end: WatchEnd) {
        self.watches_ended.with_label_values(&[end.name()]).inc();
    }

    /// Everything in the text format of Prometheus.
    ///
    /// # Errors
    /// When a metric cannot be encoded.
    pub fn encode(&self) -> Result<String, prometheus::Error> {
        let own = TextEncoder::new().encode_to_string(&self.registry.gather())?;
        Ok(own + &engine())
    }

    /// The registry.
    #[must_use]
    pub fn registry(&self) -> &Registry {
        &self.registry
    }
}

/// Counts are the leader's to tell, so that a sum over the nodes is right.
impl Observer for Metrics {
    fn role(&self, shard: ShardId, role: Role, term: u64) {
        let label = shard.to_string();
        self.own.raft_role.with_label_values(&[&label]).set(role as i64);
        self.own
            .raft_current_term
            .with_label_values(&[&label])
            .set(i64::try_from(term).unwrap_or(i64::MAX));
        // An alert sees that something rises only where it was there before.
        for counter in [&self.own.state_damage, &self.own.calls_forwarded] {
            counter.with_label_values(&[&label]);
        }
        for gauge in [&self.own.state_damaged, &self.own.state_disputed] {
            gauge.with_label_values(&[&label]);
        }
        let mut led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        if role == Role::Leader {
            led.insert(shard);
        } else if led.remove(&shard) {
            for gauge in &self.gauges {
                // It may never have been set.
                gauge.remove_label_values(&[&label]).ok();
            }
        }
    }

    fn applied(&self, shard: ShardId, is_leader: bool, counts: &Counts, gauges: &Gauges) {
        if !is_leader {
            return;
        }
        for (counter, (.., more)) in self.totals.iter().zip(counts.totals()) {
            counter.inc_by(more);
        }
        for (histogram, (.., more)) in self.times.iter().zip(counts.times()) {
            histogram.add(more);
        }
        let led = self.led.lock().unwrap_or_else(PoisonError::into_inner);
        if led.contains(&shard) {
            let label = shard.to_string();
            for (gauge, (.., number)) in self.gauges.iter().zip(gauges.each()) {
                gauge.with_label_values(&[&label]).set(i64::try_from(number).unwrap_or(i64::MAX));
            }
        }
    }

    fn fsync(&self, seconds: f64) {
        self.own.wal_fsync.observe(seconds);
    }

    fn checkpoint(&self, _: ShardId, seconds: f64, bytes: u64) {
        self.own.checkpoint.observe(seconds);
        self.own.checkpoint_bytes.inc_by(bytes);
    }

    fn scrubbed(&self, bytes: u64, finished: bool) {
        self.own.scrub_bytes.inc_by(bytes);
        if finished {
            let wall_s = clock::wall_us() / 1_000_000;
            self.own.scrub_finished.set(i64::try_from(wall_s).unwrap_or(i64::MAX));
        }
    }

    fn disk(&self, free_bytes: u64, low: bool) {
        self.own.disk_free.set(i64::try_from(free_bytes).unwrap_or(i64::MAX));
        self.own.disk_low.set(i64::from(low));
    }

    fn obstacles(&self, of_shards: &[Obstacles]) {
        for obstacle in Obstacles::known() {
            let shards = of_shards.iter().filter(|set| set.has(obstacle)).count();
            let gauge = self.own.obstacles.with_label_values(&[obstacles::name(obstacle)]);
            gauge.set(i64::try_from(shards).unwrap_or(i64::MAX));
        }
    }

    fn rpc(&self, operation: PeerOperation, seconds: f64) {
        self.own.rpc_latency.with_label_values(&[operation.name()]).observe(seconds);
    }

    fn diverged(&self, _: ShardId) {
        self.own.state_diverged.inc();
    }

    fn damage(&self, shard: ShardId) {
        let shard = shard.to_string();
        self.own.state_damage.with_label_values(&[&shard]).inc();
        self.own.state_damaged.with_label_values(&[&shard]).set(1);
    }

    fn whole(&self, shard: ShardId) {
        self.own.state_damaged.with_label_values(&[&shard.to_string()]).set(0);
    }

    fn disputed(&self, shard: ShardId, disputed: bool) {
        self.own.state_disputed.with_label_values(&[&shard.to_string()]).set(disputed.into());
    }

    fn two_histories(&self, _: ShardId) {
        self.own.two_histories.inc();
    }

    fn forwarded(&self, shard: ShardId) {
        self.own.calls_forwarded.with_label_values(&[&shard.to_string()]).inc();
    }
}

/// One call from its start to its end. A call that is dropped before it has ended was cancelled.
#[derive(Debug)]
pub struct Handling {
    metrics: Arc<Metrics>,
    method: Method,
    waits: bool,
    started: Instant,
    ended: bool,
}

impl Handling {
    /// The call may wait, as it asked to.
    #[must_use]
    pub fn waits(mut self, waits: bool) -> Self {
        self.waits = waits;
        self
    }

    /// The call ended.
    pub fn end(mut self, code: Code) {
        self.record(code);
    }

    fn record(&mut self, code: Code) {
        if std::mem::replace(&mut self.ended, true) {
            return;
        }
        let metrics = &self.metrics.methods[self.method.index()];
        if let Some(times) = &metrics.handling {
            let times = if self.waits { &times.waits } else { &times.short };
            times.observe(self.started.elapsed().as_secs_f64());
        }
        if code == Code::Ok {
            metrics.ok.inc();
        } else {
            let Facts { shape, service, name, .. } = *self.method.facts();
            self.metrics.handled.with_label_values(&[shape, service, name, code_name(code)]).inc();
        }
    }
}

impl Drop for Handling {
    fn drop(&mut self) {
        self.record(Code::Cancelled);
    }
}

/// The names that gRPC metrics use in every language.
fn code_name(code: Code) -> &'static str {
    match code {
        Code::Ok => "OK",
        Code::Cancelled => "Canceled",
        Code::Unknown => "Unknown",
        Code::InvalidArgument => "InvalidArgument",
        Code::DeadlineExceeded => "DeadlineExceeded",
        Code::NotFound => "NotFound",
        Code::AlreadyExists => "AlreadyExists",
        Code::PermissionDenied => "PermissionDenied",
        Code::ResourceExhausted => "ResourceExhausted",
        Code::FailedPrecondition => "FailedPrecondition",
        Code::Aborted => "Aborted",
        Code::OutOfRange => "OutOfRange",
        Code::Unimplemented => "Unimplemented",
        Code::Internal => "Internal",
        Code::Unavailable => "Unavailable",
        Code::DataLoss => "DataLoss",
        Code::Unauthenticated => "Unauthenticated",
    }
}

/// What raft-engine measures: it counts on the registry of the whole process, of its own version of the library.
fn engine() -> String {
    let families = prometheus_engine::gather();
    prometheus_engine::TextEncoder::new().encode_to_string(&families).unwrap_or_default()
}
