//! `trefoil serve`: one node, until it is told to stop.

use std::io::Read as _;
use std::process::ExitCode;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use trefoil_server::config::ServeArgs;
use trefoil_server::server;

use crate::exit::CommandFailure;

/// One node.
#[derive(Debug, Args)]
pub(crate) struct ServeCommand {
    #[command(flatten)]
    args: ServeArgs,
    /// Stop when standard input is closed, and so with the program that started this one.
    #[arg(long, hide = true)]
    exit_with_stdin: bool,
}

pub(crate) async fn run(command: ServeCommand) -> Result<ExitCode, CommandFailure> {
    let config =
        command.args.resolve().map_err(|error| CommandFailure::usage(error.to_string()))?;
    let stop = StopRequest::listen(command.exit_with_stdin)?;
    let served = server::serve(config, stop.wait()).await;
    served.map_err(|exit| CommandFailure::new(exit.to_string()).code(exit.code()))?;
    Ok(ExitCode::SUCCESS)
}

/// Whatever tells the node to stop.
struct StopRequest {
    terminate: Signal,
    interrupt: Signal,
    stdin: Option<oneshot::Receiver<()>>,
}

impl StopRequest {
    fn listen(exit_with_stdin: bool) -> Result<Self, CommandFailure> {
        let listen = |kind| {
            signal(kind)
                .map_err(|error| CommandFailure::new(format!("cannot listen for signals: {error}")))
        };
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            stdin: exit_with_stdin.then(stdin_closed).transpose()?,
        })
    }

    async fn wait(mut self) {
        let stdin = async {
            match self.stdin.take() {
                Some(closed) => drop(closed.await),
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
            () = stdin => {}
        }
    }
}

/// A thread of its own, since a runtime would wait for a read that blocks.
fn stdin_closed() -> Result<oneshot::Receiver<()>, CommandFailure> {
    let (sender, closed) = oneshot::channel();
    let watch = move || {
        let mut bytes = [0; 64];
        while std::io::stdin().read(&mut bytes).is_ok_and(|read| read > 0) {}
        // The node may have ended by itself meanwhile.
        sender.send(()).ok();
    };
    let thread = std::thread::Builder::new().name("stdin".to_owned()).spawn(watch);
    thread
        .map(|_| closed)
        .map_err(|error| CommandFailure::new(format!("cannot start a thread: {error}")))
}
