//! The command line: every command. Every flag is also a variable.

use std::path::PathBuf;

use clap::{Parser, Subcommand};

use crate::args::ClientArgs;
use crate::output::Format;

/// Locks, queues and a coherent cache, replicated. One binary.
#[derive(Debug, Parser)]
#[command(name = "trefoil", version, propagate_version = false, arg_required_else_help = true)]
#[command(
    after_help = "Exit codes: 0 done; 1 failed; 2 nothing there (lock not acquired, queue empty, key missing); 64 wrong usage; 75 lock run lost its lock and ended the command."
)]
pub(crate) struct CommandLine {
    /// How results are written.
    #[arg(short, long, global = true, env = "TREFOIL_OUTPUT", value_enum, default_value_t)]
    pub(crate) output: Format,
    #[command(flatten)]
    pub(crate) client: ClientArgs,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one node.
    Serve(Box<crate::serve::ServeCommand>),
    /// Run three nodes on this machine, until Ctrl-C.
    Dev(crate::dev::DevArgs),
    /// Show every node and shard: roles, terms, leaders, lag.
    Status,
    /// Acquire and release locks, or run a command under one.
    #[command(subcommand)]
    Lock(crate::lock::LockCommand),
    /// Campaign, proclaim and resign, or show who leads.
    #[command(subcommand)]
    Election(crate::election::ElectionCommand),
    /// Take permits of semaphores and give them back, or change how many there are.
    #[command(subcommand)]
    Semaphore(crate::semaphore::SemaphoreCommand),
    /// Count latches down, and wait until they are open.
    #[command(subcommand)]
    Latch(crate::latch::LatchCommand),
    /// Enter and leave barriers together with others.
    #[command(subcommand)]
    Barrier(crate::barrier::BarrierCommand),
    /// Create queues, enqueue, dequeue and acknowledge.
    #[command(subcommand)]
    Queue(crate::queue::QueueCommand),
    /// Put, get and delete keys.
    #[command(subcommand)]
    Cache(crate::cache::CacheCommand),
    /// Declare namespaces with limits and policies, show and remove them.
    #[command(subcommand)]
    Namespace(crate::namespace::NamespaceCommand),
    /// Measure a running cluster.
    #[command(subcommand)]
    Bench(crate::bench::BenchCommand),
    /// Ask nodes whether they serve; exits with 1 when one does not.
    Health(crate::health::HealthArgs),
    /// Show the version, the commit and the versions of the formats.
    Version,
    /// Write the completions of a shell to standard output.
    Completions {
        /// The shell.
        shell: clap_complete::Shell,
    },
    /// Write the manual pages into a directory.
    Man {
        /// The directory, made when it is missing.
        #[arg(long, env = "TREFOIL_MAN_DIR", value_name = "DIR")]
        dir: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn every_flag_is_also_a_variable() {
        fn check(command: &clap::Command) {
            for argument in command.get_arguments().filter(|argument| !argument.is_positional()) {
                let known = ["help", "version"].contains(&argument.get_id().as_str())
                    || argument.is_hide_set();
                assert!(
                    known || argument.get_env().is_some(),
                    "{} --{}",
                    command.get_name(),
                    argument.get_id()
                );
            }
            command.get_subcommands().for_each(check);
        }
        CommandLine::command().debug_assert();
        check(&CommandLine::command());
    }
}
