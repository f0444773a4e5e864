//! How fast: measurements that print, and assert nothing.

mod cluster;
mod echo;
mod etcd;
mod figures;
mod framed;
mod locks;
mod memory;
mod paths;
mod progress;
mod puts;
mod sessions;
mod steady;
mod store;
mod usage;
mod way;

use std::io::Write as _;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Why a measurement could not be made.
pub(crate) type BenchError = Box<dyn std::error::Error>;

/// Standard output.
#[derive(Debug)]
pub(crate) struct BenchOutput;

impl BenchOutput {
    /// Prints a line.
    pub(crate) fn line(&mut self, text: &str) {
        // A reader that went away needs no figures.
        writeln!(std::io::stdout(), "{text}").ok();
    }
}

#[derive(Debug, Parser)]
#[command(
    name = "trefoil-bench",
    about = "Measures Trefoil beside what it can be compared with, in one run"
)]
struct BenchArguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Puts, gets, locks and queues by the library and unary: rate, latency and what an operation costs the nodes; also
    /// beside another binary.
    Paths(paths::PathBench),
    /// Durable puts on three nodes, unary and pipelined, beside a bare tonic echo.
    Puts(puts::PutBench),
    /// Acquire and release, alone and in turn, unary and by the client library, beside etcd.
    Locks(locks::LockBench),
    /// Many sessions held, and half of them expiring at once while others work.
    Sessions(sessions::SessionBench),
    /// What the nodes keep in memory: idle, after ten thousand keys and after a million.
    Memory(memory::MemoryBench),
    /// Unary calls against a running cluster whose nodes are stopped or killed meanwhile: what fails, once and twice.
    Steady(steady::SteadyBench),
    /// Uniform puts on the state store, redb beside fjall.
    Store(store::StoreBench),
    /// A bare tonic server that answers puts at once; prints its port.
    Echo,
}

#[tokio::main]
async fn main() -> ExitCode {
    let ended = match BenchArguments::parse().what {
        What::Paths(options) => paths::run(options, &mut BenchOutput).await,
        What::Puts(options) => puts::run(options, &mut BenchOutput).await,
        What::Locks(options) => locks::run(options, &mut BenchOutput).await,
        What::Sessions(options) => sessions::run(options, &mut BenchOutput).await,
        What::Memory(options) => memory::run(options, &mut BenchOutput).await,
        What::Steady(options) => steady::run(options, &mut BenchOutput).await,
        What::Store(options) => store::run(&options, &mut BenchOutput),
        What::Echo => echo::serve().await,
    };
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            writeln!(std::io::stderr(), "trefoil-bench: {failure}").ok();
            ExitCode::FAILURE
        }
    }
}
