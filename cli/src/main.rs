//! The one binary of Trefoil: reads the command line, runs the command, exits with its code.

mod args;
mod client;
mod commands;
mod exit;
mod output;

mod barrier;
mod bench;
mod cache;
mod dev;
mod election;
mod health;
mod latch;
mod lock;
mod lock_set;
mod lock_view;
mod lock_watch;
mod manual;
mod mode;
mod namespace;
mod queue;
mod run;
mod semaphore;
mod serve;
mod session;
mod status;
mod value;
mod version;

use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory as _, Parser as _};

use commands::{Command, CommandLine};
use exit::CommandFailure;

/// Time that work in the background has left when the command is done, such as closing a session.
const LINGER: Duration = Duration::from_millis(200);

fn main() -> ExitCode {
    trefoil_server::storage::evidence::abort_on_panic();
    let arguments = match CommandLine::try_parse() {
        Ok(arguments) => arguments,
        Err(refusal) => return exit::usage(&refusal),
    };
    let runtime = tokio::runtime::Runtime::new();
    let ended = runtime
        .map_err(|error| CommandFailure::new(format!("cannot start threads: {error}")))
        .and_then(|runtime| {
            let ended = runtime.block_on(dispatch(arguments));
            runtime.shutdown_timeout(LINGER);
            ended
        });
    match ended {
        Ok(code) => code,
        Err(failure) => output::report(&failure),
    }
}

async fn dispatch(arguments: CommandLine) -> Result<ExitCode, CommandFailure> {
    let CommandLine { output, client, command } = arguments;
    match command {
        Command::Serve(serve) => serve::run(*serve).await,
        Command::Dev(dev) => dev::run(dev, output).await,
        Command::Status => status::run(&client, output).await,
        Command::Lock(lock) => lock::run(lock, &client, output).await,
        Command::Election(election) => election::run(election, &client, output).await,
        Command::Semaphore(command) => semaphore::run(command, &client, output).await,
        Command::Latch(latch) => latch::run(latch, &client, output).await,
        Command::Barrier(barrier) => barrier::run(barrier, &client, output).await,
        Command::Queue(queue) => queue::run(queue, &client, output).await,
        Command::Cache(cache) => cache::run(cache, &client, output).await,
        Command::Namespace(command) => namespace::run(command, &client, output).await,
        Command::Bench(bench) => bench::run(bench, &client, output).await,
        Command::Health(health) => health::run(&health, &client, output).await,
        Command::Version => version::run(output),
        Command::Completions { shell } => manual::completions(shell, CommandLine::command()),
        Command::Man { dir } => manual::man(&dir, CommandLine::command()),
    }
}
