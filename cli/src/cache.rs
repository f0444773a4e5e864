//! `trefoil cache`: put, get, delete.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use trefoil_client::{Entry, LineState, Stored};

use crate::args::{ClientArgs, FenceArgs, duration};
use crate::client::connect;
use crate::exit::{CommandFailure, NOTHING};
use crate::output::{self, CommandOutput, Format};
use crate::value::{ShownValue, given};

/// What to do with the cache.
#[derive(Debug, Subcommand)]
pub(crate) enum CacheCommand {
    /// Store a value.
    Put {
        /// The key, 1 byte to 1 KiB.
        key: String,
        /// The value as text; - reads bytes from standard input.
        value: String,
        /// How long the value lives; left out, until it is deleted.
        #[arg(long, env = "TREFOIL_CACHE_TTL", value_name = "TIME", value_parser = duration)]
        ttl: Option<Duration>,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// Read the latest value; exits with 2 when there is none.
    Get {
        /// The key.
        key: String,
        /// Write the bytes of the value alone.
        #[arg(long, env = "TREFOIL_CACHE_RAW")]
        raw: bool,
        #[command(flatten)]
        fence: FenceArgs,
    },
    /// Remove a key; exits with 2 when there was no value.
    Delete {
        /// The key.
        key: String,
        #[command(flatten)]
        fence: FenceArgs,
    },
}

#[derive(Serialize)]
struct CachePutOutput {
    version: u64,
    state: String,
    shard: u32,
    index: u64,
}

#[derive(Serialize)]
struct CacheGetOutput {
    hit: bool,
    value: Option<ShownValue>,
    version: Option<u64>,
    state: String,
    ttl_ms: Option<u128>,
}

#[derive(Serialize)]
struct CacheDeleteOutput {
    deleted: bool,
}

pub(crate) async fn run(
    command: CacheCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let cache = connect(args).await?.cache();
    match command {
        CacheCommand::Put { key, value, ttl, fence } => {
            let mut put = fence.cache(cache).put(key, given(value)?);
            if let Some(ttl) = ttl {
                if ttl.is_zero() {
                    let what =
                        "--ttl must be 1ms at least; left out, the value stays until it is deleted";
                    return Err(CommandFailure::usage(what));
                }
                put = put.ttl(ttl);
            }
            output::print(format, &CachePutOutput::from(put.await?))?;
            Ok(ExitCode::SUCCESS)
        }
        CacheCommand::Get { key, raw, fence } => {
            let entry = fence.cache(cache).get(key).await?;
            match &entry {
                Some(entry) if raw => output::raw(entry.value.as_bytes())?,
                None if raw => true,
                _ => output::print(format, &CacheGetOutput::from(entry.as_ref()))?,
            };
            Ok(if entry.is_some() { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) })
        }
        CacheCommand::Delete { key, fence } => {
            let deleted = fence.cache(cache).delete(key).await?;
            output::print(format, &CacheDeleteOutput { deleted })?;
            Ok(if deleted { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) })
        }
    }
}

fn state(state: LineState) -> String {
    state.as_str_name().trim_start_matches("LINE_STATE_").to_owned()
}

impl From<Stored> for CachePutOutput {
    fn from(stored: Stored) -> Self {
        Self {
            version: stored.version,
            state: state(stored.state),
            shard: stored.header.shard,
            index: stored.header.index,
        }
    }
}

impl From<Option<&Entry>> for CacheGetOutput {
    fn from(entry: Option<&Entry>) -> Self {
        Self {
            hit: entry.is_some(),
            value: entry.map(|entry| ShownValue::from(&entry.value)),
            version: entry.map(|entry| entry.version),
            state: state(entry.map_or(LineState::Invalid, |entry| entry.state)),
            ttl_ms: entry.and_then(|entry| entry.ttl).map(|ttl| ttl.as_millis()),
        }
    }
}

impl CommandOutput for CachePutOutput {
    fn text(&self) -> String {
        output::fields([
            ("version", self.version.to_string()),
            ("state", self.state.clone()),
            ("shard", self.shard.to_string()),
            ("index", self.index.to_string()),
        ])
    }
}

impl CommandOutput for CacheGetOutput {
    fn text(&self) -> String {
        let (Some(value), Some(version)) = (&self.value, self.version) else {
            return "no value".to_owned();
        };
        output::fields([
            ("value", value.to_string()),
            ("version", version.to_string()),
            ("state", self.state.clone()),
            ("ttl", self.ttl_ms.map_or_else(|| "none".to_owned(), |ms| format!("{ms} ms"))),
        ])
    }
}

impl CommandOutput for CacheDeleteOutput {
    fn text(&self) -> String {
        if self.deleted { "deleted".to_owned() } else { "no value".to_owned() }
    }
}
