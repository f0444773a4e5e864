//! `trefoil latch`: set, count down, wait, show, delete.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use trefoil_client::proto::lock::v1::LatchInfo;

use crate::args::{ClientArgs, duration};
use crate::client::{all_rows, connect};
use crate::exit::{CommandFailure, NOTHING};
use crate::output::{self, CommandOutput, Format};

/// What to do with a latch.
#[derive(Debug, Subcommand)]
pub(crate) enum LatchCommand {
    /// Set a latch that is open or not there.
    Set {
        /// The latch, 1 to 255 bytes.
        name: String,
        /// Where to count down from, at least 1.
        count: u64,
        /// Only where the latch has this count now; so one that counts down can be changed.
        #[arg(long, env = "TREFOIL_LATCH_EXPECTED", value_name = "COUNT")]
        expected: Option<u64>,
    },
    /// Count a latch down; at zero it is open.
    CountDown {
        /// The latch.
        name: String,
        /// By how much.
        #[arg(long, env = "TREFOIL_LATCH_BY", value_name = "NUMBER", default_value_t = 1)]
        by: u64,
    },
    /// Wait until a latch is open; exits with 2 when it was not in time.
    Wait {
        /// The latch.
        name: String,
        /// How long to wait.
        #[arg(long, env = "TREFOIL_LATCH_WAIT", value_name = "TIME", default_value = "1h", value_parser = duration)]
        wait: Duration,
    },
    /// Show a latch.
    Get {
        /// The latch.
        name: String,
    },
    /// Delete a latch; whoever waits for it is refused.
    Delete {
        /// The latch.
        name: String,
    },
    /// List the latches.
    List {
        /// Only those whose names begin with this.
        #[arg(default_value = "")]
        prefix: String,
    },
}

#[derive(Serialize)]
struct LatchSetOutput {
    latch: String,
    round: u64,
}

#[derive(Serialize)]
struct LatchCountDownOutput {
    latch: String,
    count: u64,
}

#[derive(Serialize)]
struct LatchWaitOutput {
    latch: String,
    open: bool,
}

#[derive(Serialize)]
struct LatchDeleteOutput {
    latch: String,
}

#[derive(Serialize)]
struct LatchRow {
    name: String,
    count: u64,
    set_count: u64,
    round: u64,
    age_ms: u64,
}

#[derive(Serialize)]
struct LatchListOutput {
    latches: Vec<LatchRow>,
}

pub(crate) async fn run(
    command: LatchCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let locks = connect(args).await?.locks();
    match command {
        LatchCommand::Set { name, count, expected } => {
            let mut set = locks.latch(name.as_str()).set(count);
            if let Some(expected) = expected {
                set = set.expecting(expected);
            }
            output::print(format, &LatchSetOutput { round: set.await?, latch: name })?;
        }
        LatchCommand::CountDown { name, by } => {
            let count = locks.latch(name.as_str()).count_down(by).await?;
            output::print(format, &LatchCountDownOutput { latch: name, count })?;
        }
        LatchCommand::Wait { name, wait } => {
            let open = locks.latch(name.as_str()).wait(wait).await?;
            output::print(format, &LatchWaitOutput { latch: name, open })?;
            return Ok(if open { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) });
        }
        LatchCommand::Get { name } => {
            output::print(format, &LatchRow::from(locks.latch(name).get().await?))?;
        }
        LatchCommand::Delete { name } => {
            locks.latch(name.as_str()).delete().await?;
            output::print(format, &LatchDeleteOutput { latch: name })?;
        }
        LatchCommand::List { prefix } => {
            let latches = all_rows(|page| locks.latches(prefix.as_str(), page)).await?;
            output::print(format, &LatchListOutput { latches })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl From<LatchInfo> for LatchRow {
    fn from(latch: LatchInfo) -> Self {
        let LatchInfo { name, count, set_count, round, age_ms } = latch;
        Self { name, count, set_count, round, age_ms }
    }
}

impl CommandOutput for LatchSetOutput {
    fn text(&self) -> String {
        format!("{} set, round {}", self.latch, self.round)
    }
}

impl CommandOutput for LatchCountDownOutput {
    fn text(&self) -> String {
        match self.count {
            0 => format!("{} is open", self.latch),
            count => format!("{} counted down to {count}", self.latch),
        }
    }
}

impl CommandOutput for LatchWaitOutput {
    fn text(&self) -> String {
        format!("{} is {}", self.latch, if self.open { "open" } else { "not open" })
    }
}

impl CommandOutput for LatchDeleteOutput {
    fn text(&self) -> String {
        format!("{} deleted", self.latch)
    }
}

impl CommandOutput for LatchRow {
    fn text(&self) -> String {
        output::fields([
            ("latch", self.name.clone()),
            ("count", self.count.to_string()),
            ("set to", self.set_count.to_string()),
            ("round", self.round.to_string()),
            ("age", format!("{} ms", self.age_ms)),
        ])
    }
}

impl CommandOutput for LatchListOutput {
    fn text(&self) -> String {
        let row = |latch: &LatchRow| {
            let numbers = [latch.count, latch.set_count, latch.round, latch.age_ms];
            let numbers = numbers.iter().map(u64::to_string);
            [latch.name.clone()].into_iter().chain(numbers).collect()
        };
        let header = ["LATCH", "COUNT", "SET TO", "ROUND", "AGE MS"];
        output::table(&header, &[1, 2, 3, 4], self.latches.iter().map(row))
    }
}
