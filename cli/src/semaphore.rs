//! `trefoil semaphore`: set, acquire, release, show, delete.

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::Serialize;
use trefoil_client::proto::lock::v1::{
    DescribeSemaphoreResponse, LockHolder, LockWaiter, SemaphoreInfo,
};
use trefoil_client::{Client, PermitGuard, Session};

use crate::args::{ClientArgs, HoldArgs};
use crate::client::{all_rows, connect};
use crate::exit::CommandFailure;
use crate::output::{self, CommandOutput, Format};
use crate::session::{Signals, leave, wait_under};

/// What to do with a semaphore.
#[derive(Debug, Subcommand)]
pub(crate) enum SemaphoreCommand {
    /// Make a semaphore, or change how many permits one has.
    Set {
        /// The semaphore, 1 to 255 bytes; no lock in use has that name.
        name: String,
        /// How many permits, 1 to 1,000,000.
        permits: u64,
    },
    /// Take permits until the TTL is over or they are released; exits with 2 when too few were left.
    Acquire(AcquirePermitsArgs),
    /// Give back the permits of a session: the next in order hold theirs at once.
    Release {
        /// The semaphore.
        name: String,
        /// The session that acquire wrote.
        #[arg(long, env = "TREFOIL_LOCK_SESSION", value_name = "ID")]
        session: u64,
        /// The fencing token that acquire wrote; left out, whatever the session holds.
        #[arg(long, env = "TREFOIL_FENCING_TOKEN", value_name = "NUMBER", default_value_t = 0)]
        token: u64,
    },
    /// Take permits away from whoever holds them.
    ForceRelease {
        /// The semaphore.
        name: String,
        /// The token of the one grant to take away; left out, all of them.
        #[arg(long, env = "TREFOIL_FENCING_TOKEN", value_name = "NUMBER", default_value_t = 0)]
        token: u64,
    },
    /// Show a semaphore: its holders, and its waiters in order.
    Describe {
        /// The semaphore.
        name: String,
    },
    /// List the semaphores.
    List {
        /// Only those whose names begin with this.
        #[arg(default_value = "")]
        prefix: String,
    },
    /// Delete a semaphore that nobody uses.
    Delete {
        /// The semaphore.
        name: String,
    },
}

/// What to take.
#[derive(Debug, Args)]
pub(crate) struct AcquirePermitsArgs {
    /// The semaphore.
    name: String,
    /// How many permits, all or none.
    #[arg(default_value_t = 1)]
    permits: u64,
    #[command(flatten)]
    hold: HoldArgs,
}

#[derive(Serialize)]
struct SemaphoreSetOutput {
    semaphore: String,
    permits: u64,
    permits_before: u64,
}

#[derive(Serialize)]
struct SemaphoreAcquireOutput {
    semaphore: String,
    acquired: bool,
    permits: u64,
    #[serde(serialize_with = "output::some_id")]
    session_id: Option<u64>,
    fencing_token: Option<u64>,
    held_for_ms: Option<u128>,
}

#[derive(Serialize)]
struct SemaphoreForceReleaseOutput {
    semaphore: String,
    released: u32,
    fencing_token: u64,
}

#[derive(Serialize)]
struct SemaphoreDoneOutput {
    semaphore: String,
    done: &'static str,
}

#[derive(Serialize)]
struct SemaphoreRow {
    name: String,
    permits: u64,
    in_use: u64,
    holder_count: u64,
    waiter_count: u64,
}

#[derive(Serialize)]
struct SemaphoreListOutput {
    semaphores: Vec<SemaphoreRow>,
}

#[derive(Serialize)]
struct SemaphoreDescribeOutput {
    #[serde(flatten)]
    semaphore: SemaphoreRow,
    holders: Vec<PermitHolderRow>,
    waiters: Vec<PermitWaiterRow>,
}

#[derive(Serialize)]
struct PermitHolderRow {
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
    permits: u64,
    fencing_token: u64,
    held_ms: u64,
}

#[derive(Serialize)]
struct PermitWaiterRow {
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
    permits: u64,
    waiting_ms: u64,
    remaining_ms: u64,
}

pub(crate) async fn run(
    command: SemaphoreCommand,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let locks = connect(args).await?.locks();
    let done = |semaphore, done| output::print(format, &SemaphoreDoneOutput { semaphore, done });
    match command {
        SemaphoreCommand::Set { name, permits } => {
            let permits_before = locks.semaphore(name.as_str()).set(permits).await?;
            output::print(
                format,
                &SemaphoreSetOutput { semaphore: name, permits, permits_before },
            )?;
        }
        SemaphoreCommand::Acquire(acquire) => return self::acquire(acquire, args, format).await,
        SemaphoreCommand::Release { name, session, token } => {
            locks.semaphore(name.as_str()).release(session, token).await?;
            done(name, "released")?;
        }
        SemaphoreCommand::ForceRelease { name, token } => {
            let forced = locks.force_release(name.as_str(), token).await?;
            let (released, fencing_token) = (forced.released, forced.fencing_token);
            output::print(
                format,
                &SemaphoreForceReleaseOutput { semaphore: name, released, fencing_token },
            )?;
        }
        SemaphoreCommand::Describe { name } => {
            let described = locks.semaphore(name).describe().await?;
            output::print(format, &SemaphoreDescribeOutput::from(described))?;
        }
        SemaphoreCommand::List { prefix } => {
            let semaphores = all_rows(|page| locks.semaphores(prefix.as_str(), page)).await?;
            output::print(format, &SemaphoreListOutput { semaphores })?;
        }
        SemaphoreCommand::Delete { name } => {
            locks.semaphore(name.as_str()).delete().await?;
            done(name, "deleted")?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn acquire(
    args: AcquirePermitsArgs,
    client: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let AcquirePermitsArgs { name, permits, hold } = args;
    let wait = hold.wait;
    let open = |client: &Client| hold.open(client, "trefoil semaphore acquire");
    let acquire = async |_: &Client, session: &Session| {
        Ok(session.semaphore(name.as_str()).permits(permits).wait(wait).acquire().await?)
    };
    let waited = wait_under(client, &mut Signals::heard()?, open, acquire).await?;
    let report = |got: Option<(&Session, &PermitGuard)>| SemaphoreAcquireOutput {
        semaphore: name.clone(),
        acquired: got.is_some(),
        permits: got.map_or(0, |(_, guard)| guard.permits()),
        session_id: got.map(|(session, _)| session.id()),
        fencing_token: got.map(|(_, guard)| guard.token()),
        held_for_ms: got.map(|(_, guard)| guard.remaining().as_millis()),
    };
    leave(waited, format, report).await
}

impl From<SemaphoreInfo> for SemaphoreRow {
    fn from(semaphore: SemaphoreInfo) -> Self {
        let SemaphoreInfo { name, permits, in_use, holder_count, waiter_count } = semaphore;
        Self { name, permits, in_use, holder_count, waiter_count }
    }
}

impl From<DescribeSemaphoreResponse> for SemaphoreDescribeOutput {
    fn from(described: DescribeSemaphoreResponse) -> Self {
        Self {
            semaphore: described.semaphore.unwrap_or_default().into(),
            holders: described.holders.into_iter().map(PermitHolderRow::from).collect(),
            waiters: described.waiters.into_iter().map(PermitWaiterRow::from).collect(),
        }
    }
}

impl From<LockHolder> for PermitHolderRow {
    fn from(holder: LockHolder) -> Self {
        let LockHolder { session_id, owner, permits, fencing_token, held_ms, .. } = holder;
        Self { session_id, owner, permits, fencing_token, held_ms }
    }
}

impl From<LockWaiter> for PermitWaiterRow {
    fn from(waiter: LockWaiter) -> Self {
        let LockWaiter { session_id, owner, permits, waiting_ms, remaining_ms, .. } = waiter;
        Self { session_id, owner, permits, waiting_ms, remaining_ms }
    }
}

impl CommandOutput for SemaphoreSetOutput {
    fn text(&self) -> String {
        match self.permits_before {
            before if before == 0 || before == self.permits => {
                format!("{} set to {}", self.semaphore, self.permits)
            }
            before => format!("{} set to {} instead of {before}", self.semaphore, self.permits),
        }
    }
}

impl CommandOutput for SemaphoreAcquireOutput {
    fn text(&self) -> String {
        let (Some(session), Some(token), Some(ms)) =
            (self.session_id, self.fencing_token, self.held_for_ms)
        else {
            return format!("{} has too few permits left", self.semaphore);
        };
        output::fields([
            ("semaphore", self.semaphore.clone()),
            ("permits", self.permits.to_string()),
            ("session", session.to_string()),
            ("fencing token", token.to_string()),
            ("held for", format!("{ms} ms")),
        ])
    }
}

impl CommandOutput for SemaphoreForceReleaseOutput {
    fn text(&self) -> String {
        let Self { semaphore, released, fencing_token } = self;
        format!("{released} taken away of {semaphore}, newer token {fencing_token}")
    }
}

impl CommandOutput for SemaphoreDoneOutput {
    fn text(&self) -> String {
        format!("{} {}", self.semaphore, self.done)
    }
}

impl CommandOutput for SemaphoreListOutput {
    fn text(&self) -> String {
        let row = |of: &SemaphoreRow| {
            let numbers = [of.permits, of.in_use, of.holder_count, of.waiter_count];
            let numbers = numbers.iter().map(u64::to_string);
            [of.name.clone()].into_iter().chain(numbers).collect()
        };
        let header = ["SEMAPHORE", "PERMITS", "IN USE", "HOLDERS", "WAITERS"];
        output::table(&header, &[1, 2, 3, 4], self.semaphores.iter().map(row))
    }
}

impl CommandOutput for SemaphoreDescribeOutput {
    fn text(&self) -> String {
        let SemaphoreRow { name, permits, in_use, holder_count, waiter_count } = &self.semaphore;
        let mut text = output::fields([
            ("semaphore", name.clone()),
            ("permits", permits.to_string()),
            ("in use", in_use.to_string()),
            ("holders", holder_count.to_string()),
            ("waiters", waiter_count.to_string()),
        ]);
        if !self.holders.is_empty() {
            let row = |of: &PermitHolderRow| {
                let numbers = [of.permits, of.fencing_token, of.held_ms].map(|n| n.to_string());
                [of.session_id.to_string(), of.owner.clone()].into_iter().chain(numbers).collect()
            };
            let header = ["HOLDER", "OWNER", "PERMITS", "TOKEN", "HELD MS"];
            let table = output::table(&header, &[0, 2, 3, 4], self.holders.iter().map(row));
            text.push_str(&format!("\n\n{table}"));
        }
        if !self.waiters.is_empty() {
            let row = |of: &PermitWaiterRow| {
                let numbers = [of.permits, of.waiting_ms, of.remaining_ms].map(|n| n.to_string());
                [of.session_id.to_string(), of.owner.clone()].into_iter().chain(numbers).collect()
            };
            let header = ["WAITER", "OWNER", "PERMITS", "WAITING MS", "REMAINING MS"];
            let table = output::table(&header, &[0, 2, 3, 4], self.waiters.iter().map(row));
            text.push_str(&format!("\n\n{table}"));
        }
        text
    }
}
