//! `trefoil barrier`: enter, leave, and see who is in.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use trefoil_client::proto::lock::v1::{BarrierInfo, LeaveBarrierRequest};
use trefoil_client::{Client, Entrance, Session};

use crate::args::{ClientArgs, duration};
use crate::client::{all_rows, connect};
use crate::exit::{CommandFailure, NOTHING};
use crate::output::{self, CommandOutput, Format};
use crate::session::{self, Signals, wait_under};

/// What to do with a barrier.
#[derive(Debug, Subcommand)]
pub(crate) enum BarrierCommand {
    /// Wait until all parties have entered, and stay in until the TTL is over or leave; exits with 2 when they were not in time.
    Enter(EnterArgs),
    /// Leave, and wait until all have left; exits with 2 when they had not in time.
    Leave(LeaveArgs),
    /// Show a barrier and who is in it.
    Get {
        /// The barrier.
        name: String,
    },
    /// List the barriers that somebody is in.
    List {
        /// Only those whose names begin with this.
        #[arg(default_value = "")]
        prefix: String,
    },
}

/// What to enter.
#[derive(Debug, Args)]
pub(crate) struct EnterArgs {
    /// The barrier, 1 to 255 bytes.
    name: String,
    /// How many enter together, the same for all: 1 to 1,000.
    parties: u32,
    /// How long it stays in, 100 ms to 24 h.
    #[arg(long, env = "TREFOIL_LOCK_TTL", value_name = "TIME", default_value = "60s", value_parser = duration)]
    ttl: Duration,
    /// How long to wait for the others.
    #[arg(long, env = "TREFOIL_BARRIER_WAIT", value_name = "TIME", default_value = "1h", value_parser = duration)]
    wait: Duration,
    /// Who this is, for operators.
    #[arg(
        long,
        env = "TREFOIL_LOCK_OWNER",
        value_name = "NAME",
        default_value = "trefoil barrier enter"
    )]
    owner: String,
}

/// What to leave.
#[derive(Debug, Args)]
pub(crate) struct LeaveArgs {
    /// The barrier.
    name: String,
    /// The session that enter wrote.
    #[arg(long, env = "TREFOIL_LOCK_SESSION", value_name = "ID")]
    session: u64,
    /// The round that enter wrote; left out, whatever round the session is in.
    #[arg(long, env = "TREFOIL_BARRIER_ROUND", value_name = "NUMBER", default_value_t = 0)]
    round: u64,
    /// How long to wait for the others.
    #[arg(long, env = "TREFOIL_BARRIER_WAIT", value_name = "TIME", default_value = "1h", value_parser = duration)]
    wait: Duration,
}

#[derive(Serialize)]
struct BarrierEnterOutput {
    barrier: String,
    entered: bool,
    #[serde(serialize_with = "output::some_id")]
    session_id: Option<u64>,
    round: Option<u64>,
}

#[derive(Serialize)]
struct BarrierLeaveOutput {
    barrier: String,
    all_left: bool,
    present: u32,
}

#[derive(Serialize)]
struct BarrierRow {
    name: String,
    parties: u32,
    present: u32,
    leaving: bool,
    round: u64,
    age_ms: u64,
}

#[derive(Serialize)]
struct BarrierGetOutput {
    barrier: BarrierRow,
    sessions: Vec<BarrierPartyRow>,
}

#[derive(Serialize)]
struct BarrierPartyRow {
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
}

#[derive(Serialize)]
struct BarrierListOutput {
    barriers: Vec<BarrierRow>,
}

pub(crate) async fn run(
    command: BarrierCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    match command {
        BarrierCommand::Enter(enter) => self::enter(enter, args, format).await,
        BarrierCommand::Leave(leave) => self::leave(leave, args, format).await,
        BarrierCommand::Get { name } => get(name, args, format).await,
        BarrierCommand::List { prefix } => list(prefix, args, format).await,
    }
}

async fn enter(
    args: EnterArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let EnterArgs { name, parties, ttl, wait, owner, .. } = args;
    let open = |client: &Client| client.session(ttl).owner(owner);
    let enter = async |_: &Client, session: &Session| {
        Ok(session.barrier(name.as_str(), parties).enter(wait).await?)
    };
    let waited = wait_under(client, &mut Signals::heard()?, open, enter).await?;
    let report = |got: Option<(&Session, &Entrance)>| BarrierEnterOutput {
        barrier: name.clone(),
        entered: got.is_some(),
        session_id: got.map(|(session, _)| session.id()),
        round: got.map(|(_, entrance)| entrance.round()),
    };
    session::leave(waited, format, report).await
}

async fn leave(
    args: LeaveArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let request = LeaveBarrierRequest {
        namespace: client.namespace.clone(),
        session_id: args.session,
        name: args.name.clone(),
        round: args.round,
        wait_ms: u64::try_from(args.wait.as_millis()).unwrap_or(u64::MAX),
        request_id: None,
    };
    let response = connect(client).await?.call(request).await?;
    let left = BarrierLeaveOutput {
        barrier: args.name,
        all_left: response.all_left,
        present: response.present,
    };
    output::print(format, &left)?;
    Ok(if left.all_left { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) })
}

async fn get(name: String, args: &ClientArgs, format: Format) -> Result<ExitCode, CommandFailure> {
    let got = connect(args).await?.locks().barrier(name).await?;
    let sessions = got.sessions.into_iter();
    let described = BarrierGetOutput {
        barrier: got.barrier.unwrap_or_default().into(),
        sessions: sessions
            .map(|party| BarrierPartyRow { session_id: party.session_id, owner: party.owner })
            .collect(),
    };
    output::print(format, &described)?;
    Ok(ExitCode::SUCCESS)
}

async fn list(
    prefix: String,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let locks = connect(args).await?.locks();
    let barriers = all_rows(|page| locks.barriers(prefix.as_str(), page)).await?;
    output::print(format, &BarrierListOutput { barriers })?;
    Ok(ExitCode::SUCCESS)
}

impl From<BarrierInfo> for BarrierRow {
    fn from(barrier: BarrierInfo) -> Self {
        let BarrierInfo { name, parties, present, leaving, round, age_ms } = barrier;
        Self { name, parties, present, leaving, round, age_ms }
    }
}

impl BarrierRow {
    fn row(&self) -> Vec<String> {
        vec![
            self.name.clone(),
            self.parties.to_string(),
            self.present.to_string(),
            if self.leaving { "leaving" } else { "entering" }.to_owned(),
            self.round.to_string(),
            self.age_ms.to_string(),
        ]
    }
}

const HEADER: [&str; 6] = ["BARRIER", "PARTIES", "PRESENT", "STATE", "ROUND", "AGE MS"];
const NUMBERS: [usize; 4] = [1, 2, 4, 5];

impl CommandOutput for BarrierEnterOutput {
    fn text(&self) -> String {
        let (Some(session), Some(round)) = (self.session_id, self.round) else {
            return format!("not all have entered {}", self.barrier);
        };
        output::fields([
            ("barrier", self.barrier.clone()),
            ("session", session.to_string()),
            ("round", round.to_string()),
        ])
    }
}

impl CommandOutput for BarrierLeaveOutput {
    fn text(&self) -> String {
        if self.all_left {
            return format!("all have left {}", self.barrier);
        }
        format!("{} left, {} sessions are still in it", self.barrier, self.present)
    }
}

impl CommandOutput for BarrierGetOutput {
    fn text(&self) -> String {
        let barrier = output::table(&HEADER, &NUMBERS, [self.barrier.row()]);
        let rows = self.sessions.iter();
        let rows = rows.map(|party| vec![party.session_id.to_string(), party.owner.clone()]);
        format!("{barrier}\n\n{}", output::table(&["SESSION", "OWNER"], &[0], rows))
    }
}

impl CommandOutput for BarrierListOutput {
    fn text(&self) -> String {
        output::table(&HEADER, &NUMBERS, self.barriers.iter().map(BarrierRow::row))
    }
}
