//! Many sessions on three real nodes: what it costs to hold them, what others notice when half of them expire at once, and
//! what memory the nodes keep when all are gone.

use std::future::IntoFuture as _;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use hdrhistogram::Histogram;
use tokio::task::JoinSet;
use trefoil_client::{Client, Error, Session};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::lock::v1::{AcquireRequest, GetSessionRequest, OpenSessionRequest};

use crate::cluster::{BenchCluster, BenchNodes};
use crate::figures::{as_f64, histogram, micros, ms};
use crate::progress::{each, wait};
use crate::{BenchError, BenchOutput};

/// How long the clients are looked at before and after sessions expire.
const WINDOW: Duration = Duration::from_secs(3);
/// Seconds after the last session was closed until memory is looked at: time for a checkpoint of each shard.
const REST_SECONDS: u64 = 60;

/// What to measure.
#[derive(Debug, clap::Args)]
pub(crate) struct SessionBench {
    #[command(flatten)]
    nodes: BenchNodes,
    /// Sessions of one namespace, each renewed by the client library.
    #[arg(long, default_value_t = 100_000)]
    sessions: usize,
    /// Each session also holds a lock of its own.
    #[arg(long)]
    locks: bool,
    /// TTL of each in seconds.
    #[arg(long, default_value_t = 30)]
    ttl_seconds: u64,
    /// Seconds for which all of them are held.
    #[arg(long, default_value_t = 60)]
    hold_seconds: u64,
    /// How many of them are then left, replaced by as many of one end, and expire at once.
    #[arg(long, default_value_t = 50_000)]
    expire: usize,
    /// Clients that acquire and release locks of the same namespace all the while.
    #[arg(long, default_value_t = 16)]
    clients: usize,
}

/// Latencies of the clients since the last look, in us.
type SharedHistogram = Arc<Mutex<Histogram<u64>>>;

/// Runs everything and prints the figures.
///
/// # Errors
/// When the nodes do not start, a session cannot be opened, or one does not expire.
pub(crate) async fn run(options: SessionBench, out: &mut BenchOutput) -> Result<(), BenchError> {
    let cluster = options.nodes.start()?;
    let client = Client::connect(cluster.endpoints.clone()).await?;
    let ttl = Duration::from_secs(options.ttl_seconds);
    out.line(&format!("resident MiB of idle nodes: {}", cluster.resident()));

    let begun = Instant::now();
    let mut sessions =
        each(0..options.sessions, "opened", |_| client.session(ttl).into_future()).await?;
    let rate = as_f64(sessions.len() as u64) / begun.elapsed().as_secs_f64();
    out.line(&format!("{} sessions opened, {rate:.0} a second", sessions.len()));
    if options.locks {
        sessions = lock_each(&client, sessions).await?;
    }

    let latencies: SharedHistogram = Arc::new(Mutex::new(histogram()));
    let mut work = JoinSet::new();
    for n in 0..options.clients {
        let session = client.session(ttl).await?;
        work.spawn(lock_for_ever(session, n, Arc::clone(&latencies)));
    }
    let (before, cpu) = (Instant::now(), cluster.cpu_seconds());
    wait(options.hold_seconds, "held").await?;
    let cores = (cluster.cpu_seconds() - cpu) / before.elapsed().as_secs_f64();
    out.line(&format!(
        "held for {} s: {cores:.2} cores for three nodes, resident MiB {}",
        options.hold_seconds,
        cluster.resident()
    ));
    out.line(&format!("clients meanwhile: {}", figures(&take(&latencies)?)));
    let lost = sessions.iter().filter(|session| session.remaining().is_zero()).count();
    if lost > 0 {
        return Err(format!("{lost} sessions were lost").into());
    }

    let left = sessions.split_off(sessions.len().saturating_sub(options.expire));
    let count = left.len();
    left.into_iter().for_each(Session::leave);
    wait(options.ttl_seconds, "left").await?;
    expire(&cluster, &client, count, 2 * ttl, &latencies, out).await?;
    work.shutdown().await;
    let count = sessions.len();
    each(sessions, "closed", Session::close).await?;
    wait(REST_SECONDS, "rest").await?;
    out.line(&format!(
        "resident MiB {REST_SECONDS} s after the other {count} were closed: {}",
        cluster.resident()
    ));
    Ok(())
}

/// Lets each session acquire a lock that it keeps.
async fn lock_each(client: &Client, sessions: Vec<Session>) -> Result<Vec<Session>, BenchError> {
    let acquire = |session: Session| {
        // A guard would release it when it is dropped.
        let (client, session_id) = (client.clone(), session.id());
        let name = format!("own-{session_id}");
        async move {
            client.call(AcquireRequest { session_id, name, ..AcquireRequest::default() }).await?;
            Ok(session)
        }
    };
    each(sessions, "locked", acquire).await
}

/// Lets sessions expire all at once, and prints what the clients noticed.
async fn expire(
    cluster: &BenchCluster,
    client: &Client,
    count: usize,
    within: Duration,
    latencies: &SharedHistogram,
    out: &mut BenchOutput,
) -> Result<(), BenchError> {
    let end = Instant::now() + within;
    let ids = each(0..count, "opened", |_| open_until(client.clone(), end)).await?;
    if Instant::now() + WINDOW > end {
        return Err("they were not open in time".into());
    }
    tokio::time::sleep_until((end - WINDOW).into()).await;
    take(latencies)?;
    tokio::time::sleep_until(end.into()).await;
    let (before, cpu) = (take(latencies)?, cluster.cpu_seconds());
    tokio::time::sleep(WINDOW).await;
    let after = take(latencies)?;
    let cores = (cluster.cpu_seconds() - cpu) / WINDOW.as_secs_f64();
    if let Some(last_id) = ids.into_iter().max() {
        expired(client, last_id).await?;
    }
    out.line(&format!("clients in the {WINDOW:?} before: {}", figures(&before)));
    out.line(&format!(
        "{count} expired at once: {cores:.2} cores, clients in the {WINDOW:?} after: {}",
        figures(&after)
    ));
    let p99 = |histogram| ms(histogram, 0.99).max(1e-3);
    out.line(&format!("p99 after over p99 before: {:.2}", p99(&after) / p99(&before)));
    Ok(())
}

/// Opens a session that nobody renews and that expires at `end`; its id.
async fn open_until(client: Client, end: Instant) -> Result<u64, Error> {
    let ttl_ms = u64::try_from((end - Instant::now()).as_millis()).unwrap_or(u64::MAX);
    let request = OpenSessionRequest { ttl_ms, ..OpenSessionRequest::default() };
    Ok(client.call(request).await?.session_id)
}

/// Fails when a session is still there.
async fn expired(client: &Client, session_id: u64) -> Result<(), BenchError> {
    let request = GetSessionRequest { session_id, ..GetSessionRequest::default() };
    match client.call(request).await {
        Err(Error::Refused { reason: Reason::SessionExpired, .. }) => Ok(()),
        Ok(_) => Err(format!("session {session_id} has not expired").into()),
        Err(error) => Err(error.into()),
    }
}

async fn lock_for_ever(session: Session, n: usize, latencies: SharedHistogram) {
    loop {
        let begun = Instant::now();
        let lock = session.lock(format!("work-{n}")).wait(Duration::from_secs(10));
        let Ok(Some(guard)) = lock.acquire().await else { continue };
        if guard.release().await.is_ok()
            && let Ok(mut latencies) = latencies.lock()
        {
            latencies.saturating_record(micros(begun.elapsed()));
        }
    }
}

/// The latencies since the last look.
fn take(latencies: &SharedHistogram) -> Result<Histogram<u64>, BenchError> {
    let mut latencies = latencies.lock().map_err(|_| "a client panicked")?;
    Ok(std::mem::replace(&mut *latencies, histogram()))
}

fn figures(histogram: &Histogram<u64>) -> String {
    let ms = |quantile| ms(histogram, quantile);
    format!(
        "{} pairs of acquire and release, p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms",
        histogram.len(),
        ms(0.5),
        ms(0.99),
        ms(1.0)
    )
}
