//! `trefoil latch`: set, count down, wait, show, delete.

use std::process::ExitCode;
use std::time::Duration;

use clap::Subcommand;
use serde::Serialize;
use trefoil_client::proto::lock::v1::LatchInfo;

use crate::args::{ClientArgs, duration};
use crate::client::connect;
use crate::exit::{Failure, NOTHING};
use crate::output::{self, Format, Report};

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
struct Set {
    latch: String,
    round: u64,
}

#[derive(Serialize)]
struct Counted {
    latch: String,
    count: u64,
}

#[derive(Serialize)]
struct Waited {
    latch: String,
    open: bool,
}

#[derive(Serialize)]
struct Deleted {
    latch: String,
}

#[derive(Serialize)]
struct Shown {
    name: String,
    count: u64,
    set_count: u64,
    round: u64,
    age_ms: u64,
}

#[derive(Serialize)]
struct Listed {
    latches: Vec<Shown>,
}

pub(crate) async fn run(
    command: LatchCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, Failure> {
    let locks = connect(args).await?.locks();
    match command {
        LatchCommand::Set { name, count, expected } => {
            let mut set = locks.latch(name.as_str()).set(count);
            if let Some(expected) = expected {
                set = set.expecting(expected);
            }
            output::print(format, &Set { round: set.await?, latch: name })?;
        }
        LatchCommand::CountDown { name, by } => {
            let count = locks.latch(name.as_str()).count_down(by).await?;
            output::print(format, &Counted { latch: name, count })?;
        }
        LatchCommand::Wait { name, wait } => {
            let open = locks.latch(name.as_str()).wait(wait).await?;
            output::print(format, &Waited { latch: name, open })?;
            return Ok(if open { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) });
        }
        LatchCommand::Get { name } => {
            output::print(format, &Shown::from(locks.latch(name).get().await?))?;
        }
        LatchCommand::Delete { name } => {
            locks.latch(name.as_str()).delete().await?;
            output::print(format, &Deleted { latch: name })?;
        }
        LatchCommand::List { prefix } => {
            let (mut latches, mut page) = (Vec::new(), None);
            loop {
                let listed = locks.latches(prefix.as_str(), page).await?;
                latches.extend(listed.items.into_iter().map(Shown::from));
                page = listed.next;
                if page.is_none() {
                    break;
                }
            }
            output::print(format, &Listed { latches })?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

impl From<LatchInfo> for Shown {
    fn from(latch: LatchInfo) -> Self {
        let LatchInfo { name, count, set_count, round, age_ms } = latch;
        Self { name, count, set_count, round, age_ms }
    }
}

impl Report for Set {
    fn text(&self) -> String {
        format!("{} set, round {}", self.latch, self.round)
    }
}

impl Report for Counted {
    fn text(&self) -> String {
        match self.count {
            0 => format!("{} is open", self.latch),
            count => format!("{} counted down to {count}", self.latch),
        }
    }
}

impl Report for Waited {
    fn text(&self) -> String {
        format!("{} is {}", self.latch, if self.open { "open" } else { "not open" })
    }
}

impl Report for Deleted {
    fn text(&self) -> String {
        format!("{} deleted", self.latch)
    }
}

impl Report for Shown {
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

impl Report for Listed {
    fn text(&self) -> String {
        let row = |latch: &Shown| {
            let numbers = [latch.count, latch.set_count, latch.round, latch.age_ms];
            let numbers = numbers.iter().map(u64::to_string);
            [latch.name.clone()].into_iter().chain(numbers).collect()
        };
        let header = ["LATCH", "COUNT", "SET TO", "ROUND", "AGE MS"];
        output::table(&header, &[1, 2, 3, 4], self.latches.iter().map(row))
    }
}
