//! The root of all loggers: JSON for machines or a terminal for people, on standard error, never blocking a replica.

use std::io;

use slog::{Drain, Logger, o};
use slog_async::{AsyncGuard, OverflowStrategy};
use slog_scope::GlobalLoggerGuard;

use crate::config::{LogFormat, LogLevel};

/// Lines that may wait to be written; further ones are dropped and counted in the log itself.
const LINES_WAITING_MAX: usize = 4_096;

/// As long as it lives, libraries that know no logger of ours, such as raft-engine, write to the log, too.
pub(crate) struct Others {
    _logger: GlobalLoggerGuard,
}

impl Drop for Others {
    fn drop(&mut self) {
        // Where the logger is gone a line would be a panic.
        log::set_max_level(log::LevelFilter::Off);
    }
}

/// Takes in the lines of such libraries: once in a process.
pub(crate) fn adopt(logger: &Logger, level: LogLevel) -> Others {
    let level = match level {
        LogLevel::Error => log::Level::Error,
        LogLevel::Warning => log::Level::Warn,
        LogLevel::Info => log::Level::Info,
        LogLevel::Debug => log::Level::Debug,
        LogLevel::Trace => log::Level::Trace,
    };
    let others = Others { _logger: slog_scope::set_global_logger(logger.clone()) };
    // A second node in a process goes by what the first one set.
    slog_stdlog::init_with_level(level).ok();
    others
}

/// The root logger, and a guard that writes out what still waits when it is dropped.
pub fn root(format: LogFormat, level: LogLevel) -> (Logger, AsyncGuard) {
    match format {
        LogFormat::Json => {
            let json =
                slog_json::Json::new(io::stderr()).set_flush(true).add_default_keys().build();
            detach(json.fuse(), level)
        }
        LogFormat::Terminal => {
            let decorator = slog_term::TermDecorator::new().stderr().build();
            detach(slog_term::FullFormat::new(decorator).build().fuse(), level)
        }
    }
}

fn detach<D>(drain: D, level: LogLevel) -> (Logger, AsyncGuard)
where
    D: Drain<Ok = (), Err = slog::Never> + Send + 'static,
{
    let waiting = slog_async::Async::new(drain)
        .chan_size(LINES_WAITING_MAX)
        .overflow_strategy(OverflowStrategy::DropAndReport)
        .thread_name("log".to_owned());
    let (waiting, guard) = waiting.build_with_guard();
    // The filter comes first, so that lines below the level cost nothing and push nothing out.
    let filtered = waiting.filter_level(level.into()).fuse();
    (Logger::root(filtered, o!("version" => env!("CARGO_PKG_VERSION"))), guard)
}

impl From<LogLevel> for slog::Level {
    fn from(level: LogLevel) -> Self {
        match level {
            LogLevel::Error => Self::Error,
            LogLevel::Warning => Self::Warning,
            LogLevel::Info => Self::Info,
            LogLevel::Debug => Self::Debug,
            LogLevel::Trace => Self::Trace,
        }
    }
}
