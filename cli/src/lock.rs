//! `trefoil lock`: acquire and release; `run` has a file of its own.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;

use crate::args::{ClientArgs, duration};
use crate::client::connect;
use crate::exit::{Failure, NOTHING};
use crate::output::{self, Format, Report};
use crate::run::RunArgs;

/// What to do with a lock.
#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// Acquire a lock and leave it held until its TTL is over or it is released; exits with 2 when another holds it.
    Acquire(AcquireArgs),
    /// Release what acquire left held.
    Release(ReleaseArgs),
    /// Run a command while the lock is held, and exit with its code; exits with 2 when another holds the lock.
    Run(RunArgs),
}

/// What to acquire.
#[derive(Debug, Args)]
pub(crate) struct AcquireArgs {
    /// The lock, 1 to 255 bytes.
    name: String,
    /// How long it stays held, 100 ms to 24 h.
    #[arg(long, env = "TREFOIL_LOCK_TTL", value_name = "TIME", default_value = "60s", value_parser = duration)]
    ttl: Duration,
    /// How long to wait for it.
    #[arg(long, env = "TREFOIL_LOCK_WAIT", value_name = "TIME", default_value = "0s", value_parser = duration)]
    wait: Duration,
    /// Who this is, for operators.
    #[arg(
        long,
        env = "TREFOIL_LOCK_OWNER",
        value_name = "NAME",
        default_value = "trefoil lock acquire"
    )]
    owner: String,
}

/// What to release.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The lock.
    name: String,
    /// The session that acquire wrote.
    #[arg(long, env = "TREFOIL_LOCK_SESSION", value_name = "ID")]
    session: u64,
    /// The fencing token that acquire wrote; left out, whatever grant the session has.
    #[arg(long, env = "TREFOIL_FENCING_TOKEN", value_name = "NUMBER", default_value_t = 0)]
    token: u64,
}

#[derive(Serialize)]
struct Acquired {
    lock: String,
    acquired: bool,
    session_id: Option<u64>,
    fencing_token: Option<u64>,
    held_for_ms: Option<u128>,
}

#[derive(Serialize)]
struct Released {
    lock: String,
    released: bool,
}

pub(crate) async fn run(
    command: LockCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, Failure> {
    match command {
        LockCommand::Acquire(acquire) => self::acquire(acquire, args, format).await,
        LockCommand::Release(release) => {
            let locks = connect(args).await?.locks();
            locks.release(release.session, release.name.as_str(), release.token).await?;
            output::print(format, &Released { lock: release.name, released: true })?;
            Ok(ExitCode::SUCCESS)
        }
        LockCommand::Run(run) => crate::run::run(run, args).await,
    }
}

async fn acquire(
    args: AcquireArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, Failure> {
    let session = connect(client).await?.locks().open_session(args.ttl).owner(args.owner).await?;
    let Some(guard) = session.lock(args.name.as_str()).wait(args.wait).acquire().await? else {
        session.close().await?;
        let missed = Acquired {
            lock: args.name,
            acquired: false,
            session_id: None,
            fencing_token: None,
            held_for_ms: None,
        };
        output::print(format, &missed)?;
        return Ok(ExitCode::from(NOTHING));
    };
    let acquired = Acquired {
        lock: args.name,
        acquired: true,
        session_id: Some(session.id()),
        fencing_token: Some(guard.token()),
        held_for_ms: Some(guard.remaining().as_millis()),
    };
    session.leave();
    output::print(format, &acquired)?;
    Ok(ExitCode::SUCCESS)
}

impl Report for Acquired {
    fn text(&self) -> String {
        let (Some(session), Some(token), Some(ms)) =
            (self.session_id, self.fencing_token, self.held_for_ms)
        else {
            return format!("{} is held by another", self.lock);
        };
        output::fields([
            ("lock", self.lock.clone()),
            ("session", session.to_string()),
            ("fencing token", token.to_string()),
            ("held for", format!("{ms} ms")),
        ])
    }
}

impl Report for Released {
    fn text(&self) -> String {
        format!("{} released", self.lock)
    }
}
