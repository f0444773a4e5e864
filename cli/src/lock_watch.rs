//! `trefoil lock watch`: a line for each thing that happens to locks.

use std::process::ExitCode;

use clap::Args;
use serde::Serialize;
use trefoil_client::{LockEvent, WatchPosition};

use crate::args::ClientArgs;
use crate::client::connect;
use crate::exit::CommandFailure;
use crate::mode::mode_name;
use crate::output::{self, CommandOutput, Format};

/// What to watch.
#[derive(Debug, Args)]
pub(crate) struct WatchArgs {
    /// The lock; left out, all of them.
    name: Option<String>,
    /// Only locks whose names begin with this.
    #[arg(
        long,
        env = "TREFOIL_LOCK_PREFIX",
        value_name = "TEXT",
        default_value = "",
        conflicts_with = "name"
    )]
    prefix: String,
    /// Begin after this position, as a line names it (cluster/shard/index); left out, begin now.
    #[arg(long, env = "TREFOIL_WATCH_AFTER", value_name = "POSITION", value_parser = position)]
    after: Option<WatchPosition>,
}

#[derive(Serialize)]
struct LockWatchOutput {
    event: String,
    lock: String,
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
    mode: &'static str,
    fencing_token: Option<u64>,
    converts: bool,
    index: u64,
    ordinal: u32,
    log_time_ms: u64,
    /// What to begin after, to go on behind this.
    position: String,
}

pub(crate) async fn run(
    args: WatchArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let locks = connect(client).await?.locks();
    let mut watch = match args.name {
        Some(name) => locks.watch_one(name),
        None => locks.watch(args.prefix),
    };
    if let Some(position) = args.after {
        watch = watch.after(position);
    }
    let begun = watch.started().await?;
    output::note(&format!("trefoil: watching after {}", shown(&begun)));
    loop {
        let event = watch.next().await?;
        let position = shown(&watch.position().unwrap_or_default());
        if !output::line(format, &LockWatchOutput::new(event, position))? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

fn shown(position: &WatchPosition) -> String {
    let WatchPosition { index, ordinal, shard, cluster_id } = position;
    let ordinal = ordinal.map_or_else(String::new, |ordinal| format!("/{ordinal}"));
    format!("{cluster_id}/{shard}/{index}{ordinal}")
}

fn position(text: &str) -> Result<WatchPosition, String> {
    let mut parts = text.splitn(4, '/');
    let mut next = || parts.next().ok_or_else(|| format!("{text:?} must be cluster/shard/index"));
    let cluster_id = next()?.to_owned();
    let number = |part: &str| part.parse::<u64>().map_err(|_| format!("{part:?} is no number"));
    let (shard, index) = (number(next()?)?, number(next()?)?);
    let shard = u32::try_from(shard).map_err(|_| format!("{shard} is no shard"))?;
    let ordinal =
        parts.next().map(|part| part.parse().map_err(|_| format!("{part:?} is no number")));
    Ok(WatchPosition { index, ordinal: ordinal.transpose()?, shard, cluster_id })
}

impl LockWatchOutput {
    fn new(event: LockEvent, position: String) -> Self {
        let kind = event.kind().as_str_name().trim_start_matches("LOCK_EVENT_KIND_");
        Self {
            event: kind.to_lowercase(),
            mode: mode_name(event.mode()),
            session_id: event.session_id,
            fencing_token: (event.fencing_token > 0).then_some(event.fencing_token),
            converts: event.converts,
            index: event.index,
            ordinal: event.ordinal,
            log_time_ms: event.log_time_ms,
            position,
            lock: event.name,
            owner: event.owner,
        }
    }
}

impl CommandOutput for LockWatchOutput {
    fn text(&self) -> String {
        let Self { event, lock, session_id, owner, mode, index, .. } = self;
        let owner = if owner.is_empty() { String::new() } else { format!(" ({owner})") };
        let token = self.fencing_token.map_or_else(String::new, |token| format!(" token {token}"));
        let converts = if self.converts { " to convert" } else { "" };
        format!(
            "{index:>8}  {event:<10}  {lock}  session {session_id}{owner} {mode}{token}{converts}"
        )
    }
}
