//! `trefoil election`: campaign, proclaim, resign, and who leads.

use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use serde::Serialize;
use trefoil_client::proto::lock::v1::ProclaimRequest;
use trefoil_client::{Client, Leader, Leadership, Session};

use crate::args::{ClientArgs, HoldArgs, duration};
use crate::client::connect;
use crate::exit::{CommandFailure, NOTHING};
use crate::output::{self, CommandOutput, Format};
use crate::session::{Signals, leave, wait_under};
use crate::value::{ShownValue, given};

/// What to do with an election.
#[derive(Debug, Subcommand)]
pub(crate) enum ElectionCommand {
    /// Become the leader and stay it until the TTL is over or it resigns; exits with 2 when another leads.
    Campaign(CampaignArgs),
    /// Change the value of a leader.
    Proclaim {
        /// The election.
        name: String,
        /// The new value as text; - reads bytes from standard input.
        value: String,
        #[command(flatten)]
        leadership: LeadershipArgs,
    },
    /// Show who leads, and what it proclaims; exits with 2 when nobody does.
    Leader {
        /// The election.
        name: String,
        /// Write the bytes of the value alone.
        #[arg(long, env = "TREFOIL_ELECTION_RAW")]
        raw: bool,
    },
    /// Show who leads now, and then each change, a line for each.
    Observe {
        /// The election.
        name: String,
    },
    /// End a leadership: the next one in order leads at once.
    Resign {
        /// The election.
        name: String,
        #[command(flatten)]
        leadership: LeadershipArgs,
    },
}

/// In what to campaign.
#[derive(Debug, Args)]
pub(crate) struct CampaignArgs {
    /// The election, 1 to 255 bytes; it is the lock of that name.
    name: String,
    /// What to proclaim as text, at most 64 KiB; - reads bytes from standard input.
    #[arg(default_value = "")]
    value: String,
    #[command(flatten)]
    hold: HoldArgs,
    /// For how long nobody leads after it was lost, at most 60s.
    #[arg(long, env = "TREFOIL_LOCK_DELAY", value_name = "TIME", default_value = "0s", value_parser = duration)]
    lock_delay: Duration,
}

/// Whose leadership.
#[derive(Clone, Copy, Debug, Args)]
pub(crate) struct LeadershipArgs {
    /// The session that campaign wrote.
    #[arg(long, env = "TREFOIL_LOCK_SESSION", value_name = "ID")]
    session: u64,
    /// The fencing token that campaign wrote.
    #[arg(long, env = "TREFOIL_FENCING_TOKEN", value_name = "NUMBER")]
    token: u64,
}

#[derive(Serialize)]
struct ElectionCampaignOutput {
    election: String,
    elected: bool,
    #[serde(serialize_with = "output::some_id")]
    session_id: Option<u64>,
    fencing_token: Option<u64>,
    leads_for_ms: Option<u128>,
}

#[derive(Serialize)]
struct ElectionLeaderOutput {
    election: String,
    leader: Option<LeaderRow>,
}

/// One line of it.
#[derive(Serialize)]
#[serde(transparent)]
struct ElectionObserveOutput(ElectionLeaderOutput);

#[derive(Serialize)]
struct LeaderRow {
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
    value: ShownValue,
    fencing_token: u64,
    leading_ms: u128,
}

#[derive(Serialize)]
struct ElectionDoneOutput {
    election: String,
    done: &'static str,
}

pub(crate) async fn run(
    command: ElectionCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    match command {
        ElectionCommand::Campaign(campaign) => self::campaign(campaign, args, format).await,
        ElectionCommand::Proclaim { name, value, leadership } => {
            proclaim(name, value, leadership, args, format).await
        }
        ElectionCommand::Observe { name } => observe(name, args, format).await,
        ElectionCommand::Leader { name, raw } => leader(name, raw, args, format).await,
        ElectionCommand::Resign { name, leadership: LeadershipArgs { session, token } } => {
            connect(args).await?.locks().resign(session, name.as_str(), token).await?;
            output::print(format, &ElectionDoneOutput { election: name, done: "resigned" })?;
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn campaign(
    args: CampaignArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let CampaignArgs { name, value, hold, lock_delay } = args;
    let value = given(value)?;
    let wait = hold.wait;
    let open =
        |client: &Client| hold.open(client, "trefoil election campaign").lock_delay(lock_delay);
    let campaign = async |_: &Client, session: &Session| {
        Ok(session.election(name.as_str()).value(value).wait(wait).campaign().await?)
    };
    let waited = wait_under(client, &mut Signals::heard()?, open, campaign).await?;
    let report = |got: Option<(&Session, &Leadership)>| ElectionCampaignOutput {
        election: name.clone(),
        elected: got.is_some(),
        session_id: got.map(|(session, _)| session.id()),
        fencing_token: got.map(|(_, leadership)| leadership.token()),
        leads_for_ms: got.map(|(_, leadership)| leadership.remaining().as_millis()),
    };
    leave(waited, format, report).await
}

async fn proclaim(
    name: String,
    value: String,
    leadership: LeadershipArgs,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let request = ProclaimRequest {
        namespace: args.namespace.clone(),
        session_id: leadership.session,
        name: name.clone(),
        fencing_token: leadership.token,
        value: Some(given(value)?.into()),
        request_id: None,
    };
    connect(args).await?.call(request).await?;
    output::print(format, &ElectionDoneOutput { election: name, done: "proclaimed" })?;
    Ok(ExitCode::SUCCESS)
}

async fn leader(
    name: String,
    raw: bool,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let found = connect(args).await?.locks().leader(name.as_str()).await?;
    let code = if found.is_some() { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) };
    match found {
        Some(leader) if raw => output::raw(leader.value.as_bytes())?,
        None if raw => true,
        found => output::print(
            format,
            &ElectionLeaderOutput { election: name, leader: found.map(LeaderRow::from) },
        )?,
    };
    Ok(code)
}

async fn observe(
    name: String,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let mut observation = connect(args).await?.locks().observe(name.as_str());
    loop {
        let leader = observation.next().await?.map(LeaderRow::from);
        if !output::line(
            format,
            &ElectionObserveOutput(ElectionLeaderOutput { election: name.clone(), leader }),
        )? {
            return Ok(ExitCode::SUCCESS);
        }
    }
}

impl From<Leader> for LeaderRow {
    fn from(leader: Leader) -> Self {
        Self {
            session_id: leader.session_id,
            owner: leader.owner,
            value: ShownValue::from(&leader.value),
            fencing_token: leader.token,
            leading_ms: leader.leading.as_millis(),
        }
    }
}

impl CommandOutput for ElectionObserveOutput {
    fn text(&self) -> String {
        let ElectionLeaderOutput { election, leader } = &self.0;
        let Some(leader) = leader else { return format!("{election}  nobody leads") };
        let LeaderRow { session_id, owner, value, fencing_token, .. } = leader;
        let owner = if owner.is_empty() { String::new() } else { format!(" ({owner})") };
        format!("{election}  session {session_id}{owner} token {fencing_token}: {value}")
    }
}

impl CommandOutput for ElectionCampaignOutput {
    fn text(&self) -> String {
        let (Some(session), Some(token), Some(ms)) =
            (self.session_id, self.fencing_token, self.leads_for_ms)
        else {
            return format!("another leads {}", self.election);
        };
        output::fields([
            ("election", self.election.clone()),
            ("session", session.to_string()),
            ("fencing token", token.to_string()),
            ("leads for", format!("{ms} ms")),
        ])
    }
}

impl CommandOutput for ElectionLeaderOutput {
    fn text(&self) -> String {
        let Some(leader) = &self.leader else { return format!("nobody leads {}", self.election) };
        output::fields([
            ("election", self.election.clone()),
            ("session", leader.session_id.to_string()),
            ("owner", leader.owner.clone()),
            ("value", leader.value.to_string()),
            ("fencing token", leader.fencing_token.to_string()),
            ("leading for", format!("{} ms", leader.leading_ms)),
        ])
    }
}

impl CommandOutput for ElectionDoneOutput {
    fn text(&self) -> String {
        format!("{} {}", self.election, self.done)
    }
}
