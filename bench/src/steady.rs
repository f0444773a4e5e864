//! Unary calls at a steady rate against a running cluster while its nodes are stopped, killed or cut off: each call is
//! tried at one node, once again at another, and then until it succeeds. Only the first two tries are what is promised.

use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use tokio::time::{MissedTickBehavior, interval, sleep};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};
use trefoil_proto::cache::v1::PutRequest;
use trefoil_proto::cache::v1::cache_service_client::CacheServiceClient;
use trefoil_proto::common::v1::{RequestId, Value, value};
use trefoil_proto::lock::v1::lock_service_client::LockServiceClient;
use trefoil_proto::lock::v1::{AcquireRequest, OpenSessionRequest, ReleaseRequest};
use trefoil_proto::queue::v1::queue_service_client::QueueServiceClient;
use trefoil_proto::queue::v1::{EnqueueRequest, Message};
use trefoil_proto::reason::Retry;
use trefoil_proto::status::from_status;

use crate::{BenchError, BenchOutput};

/// Pause before the second try, and between those after it.
const PAUSE: Duration = Duration::from_millis(50);
/// A call that no try brings to its end within this time ends the program.
const PATIENCE: Duration = Duration::from_secs(60);
const SESSION_TTL_MS: u64 = 60_000;

/// What to call.
#[derive(Debug, clap::Args)]
pub(crate) struct SteadyBench {
    /// Nodes of the cluster, separated by commas.
    #[arg(long, value_delimiter = ',', required = true)]
    endpoints: Vec<String>,
    /// Service to call: locks are acquired and released, messages enqueued, keys put.
    #[arg(long)]
    service: MeasuredService,
    /// Concurrent callers.
    #[arg(long, default_value_t = 16)]
    callers: u64,
    /// Calls per second of each caller.
    #[arg(long, default_value_t = 10)]
    rate: u32,
    /// Seconds.
    #[arg(long, default_value_t = 10)]
    seconds: u64,
    /// Time of one try in ms, after which the next node is asked.
    #[arg(long, default_value_t = 5_000)]
    try_ms: u64,
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum MeasuredService {
    Lock,
    Queue,
    Cache,
}

/// One caller with its own key or lock, session and request ids.
struct SteadyCaller {
    service: MeasuredService,
    channels: Vec<Channel>,
    /// Where the next call begins.
    next: usize,
    client: String,
    sequence: u64,
    session_id: u64,
    holds: bool,
    seen: SteadyFigures,
}

/// What came of the calls.
struct SteadyFigures {
    latency_us: Histogram<u64>,
    /// Calls whose first try failed, and what it said.
    failed_once: Vec<String>,
    /// Calls whose second try failed, too.
    failed_twice: Vec<String>,
}

/// Calls, and prints what came of it.
///
/// # Errors
/// When a call failed at two nodes, or never succeeded.
pub(crate) async fn run(options: SteadyBench, out: &mut BenchOutput) -> Result<(), BenchError> {
    let mut channels = Vec::new();
    for endpoint in &options.endpoints {
        let endpoint = Endpoint::from_shared(endpoint.clone())?
            .connect_timeout(Duration::from_millis(500))
            .timeout(Duration::from_millis(options.try_ms))
            .http2_keep_alive_interval(Duration::from_secs(1))
            .keep_alive_timeout(Duration::from_secs(1))
            .tcp_nodelay(true);
        channels.push(endpoint.connect_lazy());
    }
    let mut callers = JoinSet::new();
    for number in 0..options.callers {
        let mut caller = SteadyCaller::new(number, options.service, channels.clone())?;
        let until = Duration::from_secs(options.seconds);
        let pause = Duration::from_secs(1) / options.rate.max(1);
        callers.spawn(async move { caller.call_until(until, pause).await.map(|()| caller.seen) });
    }
    let mut all = SteadyFigures::new()?;
    while let Some(seen) = callers.join_next().await {
        all.add(seen??)?;
    }
    all.print(out);
    if all.failed_twice.is_empty() { Ok(()) } else { Err("calls failed at two nodes".into()) }
}

impl SteadyCaller {
    fn new(
        number: u64,
        service: MeasuredService,
        channels: Vec<Channel>,
    ) -> Result<Self, BenchError> {
        Ok(Self {
            service,
            next: usize::try_from(number)? % channels.len(),
            channels,
            client: format!("{:032x}", rand::random::<u128>()),
            sequence: 0,
            session_id: 0,
            holds: false,
            seen: SteadyFigures::new()?,
        })
    }

    async fn call_until(&mut self, time: Duration, pause: Duration) -> Result<(), String> {
        let started = Instant::now();
        let mut ticks = interval(pause);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while started.elapsed() < time {
            ticks.tick().await;
            self.call().await?;
        }
        Ok(())
    }

    /// One call from its first try to its success.
    async fn call(&mut self) -> Result<(), String> {
        self.sequence += 1;
        let started = Instant::now();
        let mut attempt = 0;
        let mut tries = 0;
        loop {
            let node = self.next;
            self.next = (self.next + 1) % self.channels.len();
            let Err(status) = self.attempt(self.channels[node].clone(), attempt).await else {
                break;
            };
            let line = format!("node {}: {:?}: {}", node + 1, status.code(), status.message());
            match tries {
                0 => self.seen.failed_once.push(line),
                1 => self.seen.failed_twice.push(line),
                _ if started.elapsed() > PATIENCE => return Err(line),
                _ => {}
            }
            tries += 1;
            attempt += u32::from(may_be_applied(&status));
            sleep(PAUSE).await;
        }
        let latency_us = u64::try_from(started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.seen.latency_us.saturating_record(latency_us);
        Ok(())
    }

    async fn attempt(&mut self, channel: Channel, attempt: u32) -> Result<(), Status> {
        let request_id = Some(RequestId {
            client: self.client.clone(),
            sequence: self.sequence,
            first_unacknowledged: self.sequence,
            attempt,
        });
        let key = format!("steady-{}", self.client);
        let value = Some(Value { kind: Some(value::Kind::Text(self.sequence.to_string())) });
        match self.service {
            MeasuredService::Cache => {
                let put = PutRequest { key, value, request_id, ..PutRequest::default() };
                CacheServiceClient::new(channel).put(put).await.map(drop)
            }
            MeasuredService::Queue => {
                let message = Message { key, value, ..Message::default() };
                let enqueue = EnqueueRequest {
                    queue: "steady".to_owned(),
                    messages: vec![message],
                    request_id,
                    ..EnqueueRequest::default()
                };
                QueueServiceClient::new(channel).enqueue(enqueue).await.map(drop)
            }
            MeasuredService::Lock => {
                self.lock(LockServiceClient::new(channel), key, request_id).await
            }
        }
    }

    /// Opens a session with the first call, then acquires and releases by turns.
    async fn lock(
        &mut self,
        mut locks: LockServiceClient<Channel>,
        name: String,
        request_id: Option<RequestId>,
    ) -> Result<(), Status> {
        let session_id = self.session_id;
        if session_id == 0 {
            let owner = self.client.clone();
            let open = OpenSessionRequest {
                ttl_ms: SESSION_TTL_MS,
                owner,
                request_id,
                ..OpenSessionRequest::default()
            };
            self.session_id = locks.open_session(open).await?.into_inner().session_id;
        } else if self.holds {
            let release =
                ReleaseRequest { session_id, name, request_id, ..ReleaseRequest::default() };
            locks.release(release).await?;
            self.holds = false;
        } else {
            let acquire =
                AcquireRequest { session_id, name, request_id, ..AcquireRequest::default() };
            self.holds = locks.acquire(acquire).await?.into_inner().acquired;
            if !self.holds {
                // The try before this one was given up, which cancels it for good: the next one is another request.
                self.sequence += 1;
                return Err(Status::internal("a lock that nobody else wants was not acquired"));
            }
        }
        Ok(())
    }
}

/// Whether a try that failed may have taken effect all the same.
fn may_be_applied(status: &Status) -> bool {
    from_status(status).is_none_or(|refusal| refusal.reason().row().retry == Retry::WithRequestId)
}

impl SteadyFigures {
    fn new() -> Result<Self, BenchError> {
        let latency_us = Histogram::new_with_bounds(1, 3_600_000_000, 3)?;
        Ok(Self { latency_us, failed_once: Vec::new(), failed_twice: Vec::new() })
    }

    fn add(&mut self, other: Self) -> Result<(), BenchError> {
        self.latency_us.add(other.latency_us)?;
        self.failed_once.extend(other.failed_once);
        self.failed_twice.extend(other.failed_twice);
        Ok(())
    }

    fn print(&self, out: &mut BenchOutput) {
        let ms = |quantile| self.latency_us.value_at_quantile(quantile) / 1_000;
        out.line(&format!(
            "{} calls succeeded; first tries that failed: {}; second tries that failed: {}; \
             ms to success: p50 {}, p99 {}, max {}",
            self.latency_us.len(),
            self.failed_once.len(),
            self.failed_twice.len(),
            ms(0.5),
            ms(0.99),
            ms(1.0)
        ));
        for (which, lines) in [("first", &self.failed_once), ("second", &self.failed_twice)] {
            let mut kinds = lines.clone();
            kinds.sort();
            for same in kinds.chunk_by(|one, other| one == other) {
                out.line(&format!("  {which} try, {} times: {}", same.len(), same[0]));
            }
        }
    }
}
