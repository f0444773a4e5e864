//! `trefoil lock run`: a command that runs only while the lock is held.
//!
//! The command learns its fencing token from the environment. It is killed when the lock is lost; should this
//! program itself be killed with -9, the command goes on, and only the token keeps it from doing harm.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use trefoil_client::Guard;

use crate::args::{ClientArgs, duration};
use crate::client::connect;
use crate::exit::{Failure, NOTHING};
use crate::lock::{Mode, acquire_lock};
use crate::output;

/// Exit code of a shell for a command that does not exist.
const NO_COMMAND: u8 = 127;
/// Exit code of a shell for a command that ended by a signal: this and its number.
const BY_SIGNAL: i32 = 128;
/// Signals that wait to be forwarded, at most.
const SIGNALS_MAX: usize = 16;

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    /// The lock, 1 to 255 bytes.
    name: String,
    /// How soon another may have the lock when this program dies, 100 ms to 24 h.
    #[arg(long, env = "TREFOIL_LOCK_TTL", value_name = "TIME", default_value = "10s", value_parser = duration)]
    ttl: Duration,
    /// How long to wait for it, at most 24 h.
    #[arg(long, env = "TREFOIL_LOCK_WAIT", value_name = "TIME", default_value = "24h", value_parser = duration)]
    wait: Duration,
    /// Together with whom.
    #[arg(
        long,
        env = "TREFOIL_LOCK_MODE",
        value_name = "MODE",
        value_enum,
        default_value = "exclusive"
    )]
    mode: Mode,
    /// For how long nobody gets it after it was lost, at most 60s.
    #[arg(long, env = "TREFOIL_LOCK_DELAY", value_name = "TIME", default_value = "0s", value_parser = duration)]
    lock_delay: Duration,
    /// Say on standard error how many stand before this call while it waits.
    #[arg(long, env = "TREFOIL_LOCK_PROGRESS")]
    progress: bool,
    /// Who this is, for operators.
    #[arg(
        long,
        env = "TREFOIL_LOCK_OWNER",
        value_name = "NAME",
        default_value = "trefoil lock run"
    )]
    owner: String,
    /// The command and its arguments. It finds its token in TREFOIL_FENCING_TOKEN, the lock in TREFOIL_LOCK.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

pub(crate) async fn run(args: RunArgs, client: &ClientArgs) -> Result<ExitCode, Failure> {
    let mut signals = signals()?;
    let locks = connect(client).await?.locks();
    let session =
        locks.open_session(args.ttl).owner(args.owner).lock_delay(args.lock_delay).await?;
    let lock = session.lock(args.name.as_str()).mode(args.mode.into()).wait(args.wait);
    let acquire = acquire_lock(lock, args.progress);
    let acquired = tokio::select! {
        acquired = acquire => acquired?,
        Some(signal) = signals.recv() => {
            session.close().await?;
            return Ok(ExitCode::from(code_of_signal(signal.as_raw())));
        }
    };
    let Some(guard) = acquired else {
        session.close().await?;
        return Err(Failure::new(format!("{} is held by another", args.name))
            .next("Wait longer for it with --wait.")
            .code(NOTHING));
    };
    let ended = watch(&args.command, &guard, &mut signals).await;
    if guard.remaining() > Duration::ZERO
        && let Err(error) = guard.release().await
    {
        output::note(&format!("trefoil: the lock was not released: {error}"));
    }
    if session.remaining() > Duration::ZERO {
        // The lock is released; a session that is left over expires.
        session.close().await.ok();
    }
    ended
}

/// Runs the command to its end, or kills it when the lock is lost.
async fn watch(
    command: &[OsString],
    guard: &Guard,
    signals: &mut mpsc::Receiver<Signal>,
) -> Result<ExitCode, Failure> {
    let mut child = start(command, guard)?;
    loop {
        tokio::select! {
            ended = child.wait() => {
                let status = ended.map_err(|error| Failure::new(format!("cannot wait for the command: {error}")))?;
                return Ok(ExitCode::from(code(status)));
            }
            Some(signal) = signals.recv() => forward(&child, signal),
            () = guard.lost() => {
                // At this moment another may hold the lock: there is no time to be gentle.
                child.kill().await.ok();
                return Err(Failure::new(format!("the lock {} was lost, so the command was killed", guard.name()))
                    .next("Look at `trefoil status`; a longer --ttl outlasts longer faults."));
            }
        }
    }
}

fn start(command: &[OsString], guard: &Guard) -> Result<Child, Failure> {
    let (program, arguments) =
        command.split_first().ok_or_else(|| Failure::usage("a command is missing after --"))?;
    Command::new(program)
        .args(arguments)
        .env("TREFOIL_FENCING_TOKEN", guard.token().to_string())
        .env("TREFOIL_LOCK", guard.name())
        .kill_on_drop(true)
        .spawn()
        .map_err(|error| {
            Failure::new(format!("cannot run {}: {error}", program.to_string_lossy()))
                .code(NO_COMMAND)
        })
}

/// The signals that end or concern the command.
fn signals() -> Result<mpsc::Receiver<Signal>, Failure> {
    let (sender, receiver) = mpsc::channel(SIGNALS_MAX);
    for kind in [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP, Signal::USR1, Signal::USR2] {
        let mut stream = signal(SignalKind::from_raw(kind.as_raw()))
            .map_err(|error| Failure::new(format!("cannot listen for signals: {error}")))?;
        let sender = sender.clone();
        tokio::spawn(async move {
            while stream.recv().await.is_some() && sender.send(kind).await.is_ok() {}
        });
    }
    Ok(receiver)
}

/// Passes a signal on. Ctrl-C at a terminal reaches the command without help, and twice would be too much.
fn forward(child: &Child, signal: Signal) {
    if matches!(signal, Signal::INT | Signal::QUIT) && std::io::stdin().is_terminal() {
        return;
    }
    let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
    if let Some(pid) = pid {
        // It may have ended just now: then its end is next.
        kill_process(pid, signal).ok();
    }
}

fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => code_of_signal(signal),
        (None, None) => 1,
    }
}

fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(BY_SIGNAL + signal).unwrap_or(1)
}
