//! The session of one command: it is closed when the command ends, unless its holder was told of it.

use std::process::ExitCode;
use std::time::Duration;

use rustix::process::Signal;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::timeout;
use trefoil_client::{Client, OpenSession, Session};

use crate::args::ClientArgs;
use crate::client::connect;
use crate::exit::{CommandFailure, NOTHING};
use crate::output::{self, CommandOutput, Format};

/// Exit code of a shell for a command that ended by a signal: this and its number.
const BY_SIGNAL: i32 = 128;
/// Signals that wait to be heard, at most.
const SIGNALS_MAX: usize = 16;
/// How long a command that ends tries to close its session; one that is left over expires.
const CLOSE: Duration = Duration::from_secs(1);

/// Signals that would end this program.
pub(crate) struct Signals(mpsc::Receiver<Signal>);

/// What came of what a command waited for.
pub(crate) enum Waited<T> {
    /// It has it, under this session.
    Got(Session, T),
    /// It was not to be had.
    Missed,
    /// A signal came first.
    Signal(Signal),
}

impl Signals {
    /// From now on they do not end it.
    pub(crate) fn heard() -> Result<Self, CommandFailure> {
        let (sender, receiver) = mpsc::channel(SIGNALS_MAX);
        for kind in
            [Signal::INT, Signal::QUIT, Signal::TERM, Signal::HUP, Signal::USR1, Signal::USR2]
        {
            let mut stream = signal(SignalKind::from_raw(kind.as_raw())).map_err(|error| {
                CommandFailure::new(format!("cannot listen for signals: {error}"))
            })?;
            let sender = sender.clone();
            tokio::spawn(async move {
                while stream.recv().await.is_some() && sender.send(kind).await.is_ok() {}
            });
        }
        Ok(Self(receiver))
    }

    /// The next one.
    pub(crate) async fn next(&mut self) -> Signal {
        // There are senders for as long as the program runs.
        self.0.recv().await.unwrap_or(Signal::TERM)
    }
}

/// The exit code of a shell.
pub(crate) fn code_of_signal(signal: i32) -> u8 {
    u8::try_from(BY_SIGNAL + signal).unwrap_or(1)
}

/// Opens a session and waits under it, until a signal comes. Whatever was not got leaves no session behind.
pub(crate) async fn wait_under<T>(
    args: &ClientArgs,
    signals: &mut Signals,
    open: impl FnOnce(&Client) -> OpenSession,
    wait: impl AsyncFnOnce(&Client, &Session) -> Result<Option<T>, CommandFailure>,
) -> Result<Waited<T>, CommandFailure> {
    let mut opened = None;
    let end = tokio::select! {
        got = async {
            let client = connect(args).await?;
            let session = opened.insert(open(&client).await?);
            wait(&client, session).await
        } => got,
        signal = signals.next() => {
            close(opened).await;
            return Ok(Waited::Signal(signal));
        }
    };
    match (end, opened) {
        (Ok(Some(got)), Some(session)) => Ok(Waited::Got(session, got)),
        (end, opened) => {
            close(opened).await;
            end.map(|_| Waited::Missed)
        }
    }
}

/// Closes a session, where that is done soon.
pub(crate) async fn close(session: Option<Session>) {
    if let Some(session) = session {
        timeout(CLOSE, session.close()).await.ok();
    }
}

/// Writes what a session has and leaves it to whoever reads that, or writes what was missed.
pub(crate) async fn leave<T, R: CommandOutput>(
    waited: Waited<T>,
    format: Format,
    report: impl FnOnce(Option<(&Session, &T)>) -> R,
) -> Result<ExitCode, CommandFailure> {
    let (session, got) = match waited {
        Waited::Signal(signal) => return Ok(ExitCode::from(code_of_signal(signal.as_raw()))),
        Waited::Missed => {
            output::print(format, &report(None))?;
            return Ok(ExitCode::from(NOTHING));
        }
        Waited::Got(session, got) => (session, got),
    };
    let told = output::print(format, &report(Some((&session, &got))));
    if matches!(told, Ok(true)) {
        session.leave();
        return Ok(ExitCode::SUCCESS);
    }
    // Nobody could release what nobody knows of.
    close(Some(session)).await;
    told.and_then(|_| Err(CommandFailure::new("nobody read the result, so the session was closed")))
}
