//! `trefoil lock`: acquire, convert and release; `run` and what operators see have files of their own.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use trefoil_client::{Guard, Guards, Session};

use crate::args::{ClientArgs, HoldArgs, duration};
use crate::client::connect;
use crate::exit::{CommandFailure, NOTHING};
use crate::lock_set::{SessionSettings, WantedLocks, WishArgs};
use crate::lock_view;
use crate::mode::{Mode, mode_name};
use crate::output::{self, CommandOutput, Format};
use crate::run::RunArgs;
use crate::session::{Signals, leave};

/// What to do with a lock.
#[derive(Debug, Subcommand)]
pub(crate) enum LockCommand {
    /// Acquire a lock, or several of them, all or none, and leave it held until its TTL is over or it is released; exits with
    /// 2 when another holds it.
    Acquire(AcquireLocksArgs),
    /// Change the mode of what acquire left held; exits with 2 when others are in the way.
    Convert(ConvertArgs),
    /// Release what acquire left held: one lock, or with --all everything that a session holds.
    Release(ReleaseArgs),
    /// Take a lock from whoever holds it; they are not told.
    ForceRelease {
        /// The lock.
        name: String,
        /// The token of the one grant to take away; left out, all of them.
        #[arg(long, env = "TREFOIL_FENCING_TOKEN", value_name = "NUMBER", default_value_t = 0)]
        token: u64,
    },
    /// Ask those who hold a lock to release it; they decide.
    RequestRelease(RequestArgs),
    /// Say whether a fencing token is that of a present holder; exits with 2 when not.
    Validate {
        /// The lock.
        name: String,
        /// The token.
        token: u64,
    },
    /// List the locks that are held or waited for.
    List {
        /// Only those whose names begin with this.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Show a lock: its holders, and its waiters in order.
    Describe {
        /// The lock.
        name: String,
    },
    /// Write a line for each thing that happens to locks, until Ctrl-C.
    Watch(crate::lock_watch::WatchArgs),
    /// List the last deadlocks, at most 100.
    Deadlocks,
    /// List the living sessions.
    Sessions,
    /// Show a session: what it holds and waits for.
    Session {
        /// Its id.
        id: u64,
    },
    /// Run a command while the lock is held, and exit with its code; exits with 2 when another holds the lock.
    Run(RunArgs),
}

/// What to acquire.
#[derive(Debug, Args)]
pub(crate) struct AcquireLocksArgs {
    #[command(flatten)]
    wish: WishArgs,
    #[command(flatten)]
    hold: HoldArgs,
}

/// What to convert.
#[derive(Debug, Args)]
pub(crate) struct ConvertArgs {
    /// The lock.
    name: String,
    /// The mode to hold it in from now on.
    #[arg(value_enum)]
    mode: Mode,
    /// The session that acquire wrote.
    #[arg(long, env = "TREFOIL_LOCK_SESSION", value_name = "ID")]
    session: u64,
    /// The fencing token that acquire wrote; left out, whatever grant the session has.
    #[arg(long, env = "TREFOIL_FENCING_TOKEN", value_name = "NUMBER", default_value_t = 0)]
    token: u64,
    /// How long to wait for the other holders.
    #[arg(long, env = "TREFOIL_LOCK_WAIT", value_name = "TIME", default_value = "0s", value_parser = duration)]
    wait: Duration,
}

/// Whom to ask, and why.
#[derive(Debug, Args)]
pub(crate) struct RequestArgs {
    /// The lock.
    name: String,
    /// The token of the one grant that is asked for; left out, all of them.
    #[arg(long, env = "TREFOIL_FENCING_TOKEN", value_name = "NUMBER", default_value_t = 0)]
    token: u64,
    /// Who asks.
    #[arg(
        long,
        env = "TREFOIL_LOCK_OWNER",
        value_name = "NAME",
        default_value = "trefoil lock request-release"
    )]
    owner: String,
    /// Why, for the holder.
    #[arg(long, env = "TREFOIL_LOCK_REASON", value_name = "TEXT", default_value = "")]
    reason: String,
}

/// What to release.
#[derive(Debug, Args)]
pub(crate) struct ReleaseArgs {
    /// The lock.
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    name: Option<String>,
    /// All locks of the session.
    #[arg(long, env = "TREFOIL_LOCK_ALL", conflicts_with = "token")]
    all: bool,
    /// The session that acquire wrote.
    #[arg(long, env = "TREFOIL_LOCK_SESSION", value_name = "ID")]
    session: u64,
    /// The fencing token that acquire wrote; left out, whatever grant the session has.
    #[arg(long, env = "TREFOIL_FENCING_TOKEN", value_name = "NUMBER")]
    token: Option<u64>,
}

#[derive(Serialize)]
struct LockAcquireOutput {
    lock: String,
    acquired: bool,
    mode: Option<&'static str>,
    #[serde(serialize_with = "output::some_id")]
    session_id: Option<u64>,
    fencing_token: Option<u64>,
    held_for_ms: Option<u128>,
}

#[derive(Serialize)]
struct LockConvertOutput {
    lock: String,
    converted: bool,
    mode: Option<&'static str>,
    fencing_token: Option<u64>,
}

#[derive(Serialize)]
struct LockForceReleaseOutput {
    lock: String,
    released: u32,
    fencing_token: u64,
}

#[derive(Serialize)]
struct LockRequestReleaseOutput {
    lock: String,
    asked: u32,
}

#[derive(Serialize)]
struct LockReleaseOutput {
    lock: Option<String>,
    released: u32,
}

pub(crate) async fn run(
    command: LockCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    match command {
        LockCommand::Acquire(acquire) => self::acquire(acquire, args, format).await,
        LockCommand::Convert(convert) => self::convert(convert, args, format).await,
        LockCommand::Release(release) => self::release(release, args, format).await,
        LockCommand::ForceRelease { name, token } => force_release(name, token, args, format).await,
        LockCommand::RequestRelease(request) => request_release(request, args, format).await,
        LockCommand::Validate { name, token } => {
            lock_view::validate(name, token, args, format).await
        }
        LockCommand::List { prefix } => lock_view::list(prefix, args, format).await,
        LockCommand::Describe { name } => lock_view::describe(name, args, format).await,
        LockCommand::Watch(watch) => crate::lock_watch::run(watch, args, format).await,
        LockCommand::Deadlocks => lock_view::deadlocks(args, format).await,
        LockCommand::Sessions => lock_view::sessions(args, format).await,
        LockCommand::Session { id } => lock_view::session(id, args, format).await,
        LockCommand::Run(run) => crate::run::run(run, args).await,
    }
}

async fn acquire(
    args: AcquireLocksArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let AcquireLocksArgs { wish, hold } = args;
    let WishArgs { name, mode, with, progress, lock_delay, metadata } = wish;
    let (wait, ttl) = (hold.wait, hold.ttl);
    let wanted = WantedLocks { name, mode, with, wait };
    let owner = hold.owner("trefoil lock acquire");
    let holder = SessionSettings { ttl, owner, lock_delay, metadata };
    let waited = wanted.acquire_under(holder, client, &mut Signals::heard()?, progress).await?;
    if wanted.with.is_empty() {
        leave(waited, format, |got| LockAcquireOutput::new(&wanted.name, got)).await
    } else {
        leave(waited, format, |got| wanted.report(got)).await
    }
}

impl LockAcquireOutput {
    fn new(name: &str, got: Option<(&Session, &Guards)>) -> Self {
        let guard = got.and_then(|(_, guards)| guards.get(name));
        Self {
            lock: name.to_owned(),
            acquired: got.is_some(),
            mode: guard.map(|guard| mode_name(guard.mode())),
            session_id: got.map(|(session, _)| session.id()),
            fencing_token: guard.map(Guard::token),
            held_for_ms: guard.map(|guard| guard.remaining().as_millis()),
        }
    }
}

async fn convert(
    args: ConvertArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let ConvertArgs { name, mode, session, token, wait } = args;
    let locks = connect(client).await?.locks();
    let response = locks.convert(session, name.as_str(), token, mode.into(), wait).await?;
    let converted = LockConvertOutput {
        lock: name,
        converted: response.converted,
        mode: response.converted.then(|| mode_name(response.mode())),
        fencing_token: response.converted.then_some(response.fencing_token),
    };
    output::print(format, &converted)?;
    Ok(if converted.converted { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) })
}

async fn release(
    args: ReleaseArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let locks = connect(client).await?.locks();
    let released = match &args.name {
        Some(name) => {
            locks.release(args.session, name.as_str(), args.token.unwrap_or(0)).await?;
            1
        }
        None => locks.release_all(args.session).await?,
    };
    output::print(format, &LockReleaseOutput { lock: args.name, released })?;
    Ok(ExitCode::SUCCESS)
}

async fn force_release(
    name: String,
    token: u64,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let response = connect(client).await?.locks().force_release(name.as_str(), token).await?;
    let forced = LockForceReleaseOutput {
        lock: name,
        released: response.released,
        fencing_token: response.fencing_token,
    };
    output::print(format, &forced)?;
    Ok(ExitCode::SUCCESS)
}

async fn request_release(
    args: RequestArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let RequestArgs { name, token, owner, reason } = args;
    let locks = connect(client).await?.locks();
    let asked = locks.request_release(name.as_str(), token, owner, reason).await?;
    output::print(format, &LockRequestReleaseOutput { lock: name, asked })?;
    Ok(ExitCode::SUCCESS)
}

impl CommandOutput for LockAcquireOutput {
    fn text(&self) -> String {
        let (Some(mode), Some(session), Some(token), Some(ms)) =
            (self.mode, self.session_id, self.fencing_token, self.held_for_ms)
        else {
            return format!("{} is held by another", self.lock);
        };
        output::fields([
            ("lock", self.lock.clone()),
            ("mode", mode.to_owned()),
            ("session", session.to_string()),
            ("fencing token", token.to_string()),
            ("held for", format!("{ms} ms")),
        ])
    }
}

impl CommandOutput for LockConvertOutput {
    fn text(&self) -> String {
        let (Some(mode), Some(token)) = (self.mode, self.fencing_token) else {
            return format!("{} is held by others as well, and was not converted", self.lock);
        };
        output::fields([
            ("lock", self.lock.clone()),
            ("mode", mode.to_owned()),
            ("fencing token", token.to_string()),
        ])
    }
}

impl CommandOutput for LockForceReleaseOutput {
    fn text(&self) -> String {
        let Self { lock, released, fencing_token } = self;
        let grants = output::counted(*released, "grant");
        format!("{grants} of {lock} taken away; all have tokens below {fencing_token}")
    }
}

impl CommandOutput for LockRequestReleaseOutput {
    fn text(&self) -> String {
        let holders = output::counted(self.asked, "holder");
        format!("{holders} of {} asked to release it", self.lock)
    }
}

impl CommandOutput for LockReleaseOutput {
    fn text(&self) -> String {
        match &self.lock {
            Some(lock) => format!("{lock} released"),
            None => format!("{} released", output::counted(self.released, "lock")),
        }
    }
}
