//! `trefoil lock run`: a command that runs only while the lock is held.
//!
//! The command learns its fencing token from the environment. When the lock is lost it is ended, with all that it
//! started, unless it is only to be warned; should this program itself be killed with -9, the command goes on, and only
//! the token keeps it from doing harm.

use std::ffi::OsString;
use std::io::IsTerminal as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, ExitStatus};
use std::time::Duration;

use clap::Args;
use rustix::process::{
    Pid, Signal, kill_process, kill_process_group, test_kill_process, test_kill_process_group,
};
use tokio::process::{Child, Command};
use tokio::time::{Instant, sleep, timeout};
use trefoil_client::{Guard, Guards, Session};

use crate::args::{ClientArgs, duration};
use crate::exit::{CommandFailure, LOST, NOTHING};
use crate::lock_set::{SessionSettings, WantedLocks, WishArgs};
use crate::output;
use crate::session::{Signals, Waited, close, code_of_signal};

/// Exit code of a shell for a command that does not exist.
const NO_COMMAND: u8 = 127;
/// How long the lock is being released once the command has ended.
const RELEASE: Duration = Duration::from_secs(3);
/// Pause between two looks whether all that was told to end has ended.
const LOOK: Duration = Duration::from_millis(50);

/// What becomes of the command when the lock is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnLost {
    /// It is killed at once.
    Kill,
    /// It is told to end, and killed when it has not within --grace.
    Term,
    /// It goes on; a line on standard error says that the lock is gone.
    Warn,
}

/// What to run.
#[derive(Debug, Args)]
pub(crate) struct RunArgs {
    #[command(flatten)]
    wish: WishArgs,
    /// How soon another may have the lock when this program dies, 100 ms to 24 h.
    #[arg(long, env = "TREFOIL_LOCK_TTL", value_name = "TIME", default_value = "10s", value_parser = duration)]
    ttl: Duration,
    /// How long to wait for it, at most 24 h.
    #[arg(long, env = "TREFOIL_LOCK_WAIT", value_name = "TIME", default_value = "24h", value_parser = duration)]
    wait: Duration,
    /// What becomes of the command, and of all that it started, when the lock is lost.
    #[arg(
        long,
        env = "TREFOIL_LOCK_ON_LOST",
        value_name = "WHAT",
        value_enum,
        default_value = "term"
    )]
    on_lost: OnLost,
    /// How long it may take to end then.
    #[arg(long, env = "TREFOIL_LOCK_GRACE", value_name = "TIME", default_value = "5s", value_parser = duration)]
    grace: Duration,
    /// What to do when somebody asks for the lock (`trefoil lock request-release`).
    #[arg(
        long,
        env = "TREFOIL_LOCK_ON_REQUEST",
        value_name = "WHAT",
        value_enum,
        default_value = "warn"
    )]
    on_request: OnRequest,
    /// Who this is, for operators.
    #[arg(
        long,
        env = "TREFOIL_LOCK_OWNER",
        value_name = "NAME",
        default_value = "trefoil lock run"
    )]
    owner: String,
    /// The command and its arguments. It finds its token in TREFOIL_FENCING_TOKEN, the lock in TREFOIL_LOCK, and each
    /// lock with its token in TREFOIL_LOCKS.
    #[arg(last = true, required = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// What follows when somebody asks for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum OnRequest {
    /// Nothing.
    Ignore,
    /// A line on standard error.
    Warn,
    /// That, and SIGTERM for the command.
    Term,
}

pub(crate) async fn run(args: RunArgs, client: &ClientArgs) -> Result<ExitCode, CommandFailure> {
    let mut signals = Signals::heard()?;
    let RunArgs { wish, wait, ttl, owner, .. } = args;
    let WishArgs { name, mode, with, progress, lock_delay, metadata } = wish;
    let wanted = WantedLocks { name, mode, with, wait };
    let holder = SessionSettings { ttl, owner, lock_delay, metadata };
    let waited = wanted.acquire_under(holder, client, &mut signals, progress).await?;
    let (session, guards) = match waited {
        Waited::Got(session, guards) => (session, guards),
        Waited::Signal(signal) => return Ok(ExitCode::from(code_of_signal(signal.as_raw()))),
        Waited::Missed => return Err(missed(&wanted.names())),
    };
    let orders = Orders { on_lost: args.on_lost, grace: args.grace, on_request: args.on_request };
    let ended = match RunningCommand::start(&args.command, &wanted.name, &guards) {
        Ok(mut job) => job.watch(&wanted.names().join(", "), &guards, &mut signals, orders).await,
        Err(failure) => Err(failure),
    };
    // Where no node answers, the lock goes with its session.
    timeout(RELEASE, release(guards, session)).await.ok();
    ended
}

fn missed(names: &[&str]) -> CommandFailure {
    let is_missed = if names.len() == 1 { "is held by another" } else { "are not all free" };
    CommandFailure::new(format!("{} {is_missed}", names.join(", ")))
        .next("Wait longer for it with --wait.")
        .code(NOTHING)
}

async fn release(guards: Guards, session: Session) {
    if guards.remaining() > Duration::ZERO
        && let Err(error) = guards.release().await
    {
        output::note(&format!("trefoil: the lock was not released: {error}"));
    }
    if session.remaining() > Duration::ZERO {
        close(Some(session)).await;
    }
}

/// What follows on what happens to the lock.
#[derive(Clone, Copy)]
struct Orders {
    on_lost: OnLost,
    grace: Duration,
    on_request: OnRequest,
}

/// The command while it runs.
struct RunningCommand {
    child: Child,
    pid: Option<Pid>,
    /// Whether it leads a process group of its own. At a terminal it stays in the group of this program: another one
    /// could not read from the terminal.
    leads: bool,
}

impl RunningCommand {
    fn start(command: &[OsString], name: &str, guards: &Guards) -> Result<Self, CommandFailure> {
        let (program, arguments) = command
            .split_first()
            .ok_or_else(|| CommandFailure::usage("a command is missing after --"))?;
        let leads = !std::io::stdin().is_terminal();
        let token = guards.get(name).map_or(0, Guard::token);
        let tokens = guards.iter().map(|guard| format!("{}:{}", guard.name(), guard.token()));
        let mut command = Command::new(program);
        command
            .args(arguments)
            .env("TREFOIL_FENCING_TOKEN", token.to_string())
            .env("TREFOIL_LOCK", name)
            .env("TREFOIL_LOCKS", tokens.collect::<Vec<_>>().join("\n"))
            .kill_on_drop(true);
        if leads {
            command.process_group(0);
        }
        let child = command.spawn().map_err(|error| {
            CommandFailure::new(format!("cannot run {}: {error}", program.to_string_lossy()))
                .code(NO_COMMAND)
        })?;
        let pid = child.id().and_then(|id| i32::try_from(id).ok()).and_then(Pid::from_raw);
        Ok(Self { child, pid, leads })
    }

    /// Waits for the end of the command, and ends it when the lock is lost.
    async fn watch(
        &mut self,
        names: &str,
        guards: &Guards,
        signals: &mut Signals,
        orders: Orders,
    ) -> Result<ExitCode, CommandFailure> {
        let mut listens = orders.on_request != OnRequest::Ignore;
        let mut is_warned = false;
        loop {
            tokio::select! {
                ended = self.child.wait() => {
                    let status = ended.map_err(|error| CommandFailure::new(format!("cannot wait for the command: {error}")))?;
                    return Ok(ExitCode::from(code(status)));
                }
                signal = signals.next() => self.forward(signal),
                asked = guards.release_requested(), if listens => {
                    // Once is enough.
                    listens = false;
                    let why = if asked.reason.is_empty() { "no reason given" } else { &asked.reason };
                    output::note(&format!("trefoil: {} asks for {}: {why}", asked.requester, asked.name));
                    if orders.on_request == OnRequest::Term {
                        self.signal(Signal::TERM);
                    }
                }
                () = guards.lost(), if !is_warned => {
                    if orders.on_lost == OnLost::Warn {
                        output::note(&format!("trefoil: the lock {names} was lost, and the command goes on"));
                        is_warned = true;
                        continue;
                    }
                    self.end(orders.on_lost, orders.grace).await;
                    return Err(CommandFailure::new(format!("the lock {names} was lost, so the command was ended"))
                        .next("Look at `trefoil status`; a longer --ttl outlasts longer faults.")
                        .code(LOST));
                }
            }
        }
    }

    /// Ends the command and all that it started. From now on another may hold the lock.
    async fn end(&mut self, on_lost: OnLost, grace: Duration) {
        if on_lost == OnLost::Term {
            let deadline = Instant::now() + grace;
            self.signal(Signal::TERM);
            // What stands still hears of it only when it goes on.
            self.signal(Signal::CONT);
            while self.is_there() && Instant::now() < deadline {
                sleep(LOOK.min(deadline - Instant::now())).await;
            }
        }
        self.signal(Signal::KILL);
        self.child.wait().await.ok();
    }

    /// Whether anything of it is left to be ended.
    fn is_there(&mut self) -> bool {
        let has_ended = matches!(self.child.try_wait(), Ok(Some(_)));
        match self.pid {
            Some(pid) if self.leads => test_kill_process_group(pid).is_ok(),
            Some(pid) => !has_ended && test_kill_process(pid).is_ok(),
            None => false,
        }
    }

    /// Passes a signal on. Ctrl-C at a terminal reaches the command without help, and twice would be too much.
    fn forward(&self, signal: Signal) {
        if self.leads || !matches!(signal, Signal::INT | Signal::QUIT) {
            self.signal(signal);
        }
    }

    fn signal(&self, signal: Signal) {
        // It may have ended just now: then there is nothing to do.
        match self.pid {
            Some(pid) if self.leads => kill_process_group(pid, signal).ok(),
            // Once it was waited for, its number may be another's.
            Some(pid) if self.child.id().is_some() => kill_process(pid, signal).ok(),
            _ => None,
        };
    }
}

fn code(status: ExitStatus) -> u8 {
    match (status.code(), status.signal()) {
        (Some(code), _) => u8::try_from(code).unwrap_or(1),
        (None, Some(signal)) => code_of_signal(signal),
        (None, None) => 1,
    }
}
