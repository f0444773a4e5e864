//! `trefoil dev`: three nodes on this machine that end with this program, however it ends.

mod child;
mod layout;
mod port;
mod report;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use indicatif::{ProgressBar, ProgressDrawTarget};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::{Instant, sleep};
use tonic_health::pb::health_check_response::ServingStatus;
use trefoil_client::Client;

use crate::exit::CommandFailure;
use crate::health;
use crate::output::{self, Format};
use crate::status::StatusOutput;
use child::Child;
use layout::Layout;
use report::DevOutput;

/// Time for all nodes to serve.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
const READY_PAUSE: Duration = Duration::from_millis(100);
/// Time for nodes to hand over and flush when they are told to stop.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);

/// Three nodes.
#[derive(Debug, Args)]
pub(crate) struct DevArgs {
    /// Keep the data here, and find it again [default: a temporary directory that is removed at the end].
    #[arg(long, env = "TREFOIL_DEV_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// Three addresses for clients, port 0 for any free one [default: 127.0.0.1:7001 to 7003 where they are free, else others].
    #[arg(long, env = "TREFOIL_DEV_LISTEN", value_name = "A,B,C", value_delimiter = ',')]
    listen: Vec<SocketAddr>,
}

pub(crate) async fn run(args: DevArgs, format: Format) -> Result<ExitCode, CommandFailure> {
    let mut stop = StopSignals::listen()?;
    let layout = Layout::prepare(args.data_dir, &args.listen)?;
    let mut children = Vec::new();
    for node in layout.nodes() {
        children.push(Child::start(&layout, node)?);
    }
    let ready = tokio::select! {
        ready = ready(&mut children) => Some(ready),
        () = stop.wait() => None,
    };
    let ended = match ready {
        Some(Ok(status)) => {
            output::print(format, &DevOutput::new(&layout, &children, status))?;
            watch(&mut children, &mut stop).await
        }
        Some(Err(failure)) => Err(failure),
        None => Ok(ExitCode::SUCCESS),
    };
    stop_all(children).await;
    ended
}

/// Waits until every node serves and every shard has a leader.
async fn ready(children: &mut [Child]) -> Result<StatusOutput, CommandFailure> {
    let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
    bar.set_message("starting three nodes");
    bar.enable_steady_tick(READY_PAUSE);
    let deadline = Instant::now() + READY_TIMEOUT;
    let endpoints = children.iter().map(Child::endpoint).collect::<Vec<_>>();
    loop {
        for child in &mut *children {
            if let Some(ended) = child.ended() {
                return Err(CommandFailure::new(format!(
                    "{} ended at its start, {ended}",
                    child.name()
                ))
                .next(child.last_words()));
            }
        }
        if let Some(status) = look(&endpoints).await {
            bar.finish_and_clear();
            return Ok(status);
        }
        if Instant::now() >= deadline {
            let words = children.iter().map(Child::last_words).collect::<Vec<_>>().join("\n");
            return Err(CommandFailure::new(format!(
                "not ready within {} s",
                READY_TIMEOUT.as_secs()
            ))
            .next(words));
        }
        sleep(READY_PAUSE).await;
    }
}

/// The status, once everything is there.
async fn look(endpoints: &[String]) -> Option<StatusOutput> {
    for endpoint in endpoints {
        if health::check(endpoint, "").await != Ok(ServingStatus::Serving) {
            return None;
        }
    }
    let client = Client::connect(endpoints.iter().cloned()).await.ok()?;
    let status = StatusOutput::new(client.cluster().status().await);
    (status.is_whole() && status.nodes.len() == endpoints.len()).then_some(status)
}

/// Goes on until it is told to stop or no node is left.
async fn watch(children: &mut [Child], stop: &mut StopSignals) -> Result<ExitCode, CommandFailure> {
    loop {
        tokio::select! {
            () = stop.wait() => return Ok(ExitCode::SUCCESS),
            () = sleep(READY_PAUSE) => {}
        }
        for child in &mut *children {
            if let Some(ended) = child.ended() {
                output::note(&format!(
                    "trefoil: {} ended, {ended}; its log: {}",
                    child.name(),
                    child.log().display()
                ));
            }
        }
        if children.iter().all(Child::has_ended) {
            return Err(CommandFailure::new("no node is left"));
        }
    }
}

async fn stop_all(children: Vec<Child>) {
    for child in &children {
        child.terminate();
    }
    let deadline = Instant::now() + STOP_TIMEOUT;
    for child in children {
        child.wait(deadline).await;
    }
}

/// Ctrl-C and what service managers send.
struct StopSignals {
    interrupt: Signal,
    terminate: Signal,
    hang_up: Signal,
}

impl StopSignals {
    fn listen() -> Result<Self, CommandFailure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CommandFailure::new(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hang_up: listen(SignalKind::hangup())?,
        })
    }

    async fn wait(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = self.hang_up.recv() => {}
        }
    }
}
