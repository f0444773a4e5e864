//! `trefoil lock list`, `describe`, `sessions`, `session`: what operators see.

use std::collections::BTreeMap;
use std::process::ExitCode;

use serde::Serialize;
use trefoil_client::proto::lock::v1::{
    self, DeadlockEdge, DescribeLockResponse, GetSessionResponse, LockHolder, LockInfo, LockWaiter,
    SessionInfo, SessionLock,
};

use crate::args::ClientArgs;
use crate::client::{all_rows, connect};
use crate::exit::{CommandFailure, NOTHING};
use crate::mode::mode_name;
use crate::output::{self, CommandOutput, Format};

pub(crate) async fn list(
    prefix: String,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let locks = connect(args).await?.locks();
    let found = all_rows(|page| locks.list(prefix.as_str(), page)).await?;
    print(format, &LockListOutput { locks: found })
}

pub(crate) async fn describe(
    name: String,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let described = connect(args).await?.locks().describe(name.as_str()).await?;
    print(format, &LockDescribeOutput::new(name, described))
}

pub(crate) async fn sessions(
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let locks = connect(args).await?.locks();
    let found = all_rows(|page| locks.sessions(page)).await?;
    print(format, &LockSessionsOutput { sessions: found })
}

pub(crate) async fn session(
    id: u64,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let got = connect(args).await?.locks().session(id).await?;
    print(format, &LockSessionOutput::from(got))
}

pub(crate) async fn deadlocks(
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let found = connect(args).await?.locks().deadlocks().await?;
    print(
        format,
        &LockDeadlocksOutput { deadlocks: found.into_iter().map(DeadlockRow::from).collect() },
    )
}

pub(crate) async fn validate(
    name: String,
    token: u64,
    args: &ClientArgs,
    format: Format,
) -> Result<ExitCode, CommandFailure> {
    let answer = connect(args).await?.locks().validate(name.as_str(), token).await?;
    let validated = LockValidateOutput {
        lock: name,
        fencing_token: token,
        valid: answer.valid,
        holder: answer.holder.map(LockHolderRow::from),
    };
    output::print(format, &validated)?;
    Ok(if validated.valid { ExitCode::SUCCESS } else { ExitCode::from(NOTHING) })
}

fn print(format: Format, report: &impl CommandOutput) -> Result<ExitCode, CommandFailure> {
    output::print(format, report)?;
    Ok(ExitCode::SUCCESS)
}

#[derive(Serialize)]
struct LockListOutput {
    locks: Vec<LockRow>,
}

#[derive(Serialize)]
struct LockRow {
    name: String,
    mode: &'static str,
    holder_count: u64,
    waiter_count: u64,
    holder: Option<LockHolderRow>,
}

#[derive(Serialize)]
struct LockDescribeOutput {
    name: String,
    holder_count: u64,
    waiter_count: u64,
    delayed_ms: u64,
    holders: Vec<LockHolderRow>,
    waiters: Vec<LockWaiterRow>,
}

#[derive(Serialize)]
struct LockHolderRow {
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
    mode: &'static str,
    fencing_token: u64,
    held_ms: u64,
}

#[derive(Serialize)]
struct LockWaiterRow {
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
    mode: &'static str,
    converts: bool,
    waiting_ms: u64,
    remaining_ms: u64,
    /// Locks that it wants together.
    locks: u32,
}

#[derive(Serialize)]
struct LockSessionsOutput {
    sessions: Vec<SessionRow>,
}

#[derive(Default, Serialize)]
struct SessionRow {
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
    ttl_ms: u64,
    remaining_ms: u64,
    locks: u64,
    held: u64,
    metadata: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct LockSessionOutput {
    session: SessionRow,
    locks: Vec<SessionLockRow>,
}

#[derive(Serialize)]
struct SessionLockRow {
    name: String,
    mode: &'static str,
    fencing_token: u64,
    held_ms: u64,
    waits_for: &'static str,
    waiting_ms: u64,
}

#[derive(Serialize)]
struct LockValidateOutput {
    lock: String,
    fencing_token: u64,
    valid: bool,
    holder: Option<LockHolderRow>,
}

impl CommandOutput for LockValidateOutput {
    fn text(&self) -> String {
        let Self { lock, fencing_token, holder, .. } = self;
        match holder {
            Some(LockHolderRow { session_id, owner, mode, .. }) => {
                format!("valid: session {session_id} of {owner:?} holds {lock} ({mode})")
            }
            None => format!("not valid: nobody holds {lock} with token {fencing_token}"),
        }
    }
}

#[derive(Serialize)]
struct LockDeadlocksOutput {
    deadlocks: Vec<DeadlockRow>,
}

#[derive(Serialize)]
struct DeadlockRow {
    number: u64,
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    log_time_ms: u64,
    length: u32,
    edges: Vec<DeadlockEdgeRow>,
}

#[derive(Serialize)]
struct DeadlockEdgeRow {
    #[serde(serialize_with = "output::id")]
    session_id: u64,
    owner: String,
    lock: String,
    mode: &'static str,
    converts: bool,
    waiting_ms: u64,
    #[serde(serialize_with = "output::id")]
    waits_for: u64,
    held_mode: &'static str,
    fencing_token: u64,
    held_ms: u64,
}

impl From<v1::Deadlock> for DeadlockRow {
    fn from(deadlock: v1::Deadlock) -> Self {
        let v1::Deadlock { number, session_id, log_time_ms, length, edges } = deadlock;
        let edges = edges.into_iter().map(DeadlockEdgeRow::from).collect();
        Self { number, session_id, log_time_ms, length, edges }
    }
}

impl From<DeadlockEdge> for DeadlockEdgeRow {
    fn from(edge: DeadlockEdge) -> Self {
        Self {
            mode: mode_name(edge.mode()),
            held_mode: mode_name(edge.held_mode()),
            session_id: edge.session_id,
            owner: edge.owner,
            lock: edge.lock,
            converts: edge.converts,
            waiting_ms: edge.waiting_ms,
            waits_for: edge.waits_for,
            fencing_token: edge.fencing_token,
            held_ms: edge.held_ms,
        }
    }
}

impl CommandOutput for LockDeadlocksOutput {
    fn text(&self) -> String {
        let rows = self.deadlocks.iter().flat_map(|deadlock| {
            deadlock.edges.iter().map(|edge| {
                let held = !edge.held_mode.is_empty();
                vec![
                    deadlock.number.to_string(),
                    edge.session_id.to_string(),
                    edge.owner.clone(),
                    edge.lock.clone(),
                    edge.mode.to_owned(),
                    edge.waits_for.to_string(),
                    edge.held_mode.to_owned(),
                    if held { ms(edge.held_ms) } else { String::new() },
                ]
            })
        });
        let header =
            ["DEADLOCK", "SESSION", "OWNER", "WANTS", "MODE", "WAITS FOR", "WHO HAS", "FOR"];
        output::table(&header, &[0, 1, 5, 7], rows)
    }
}

impl From<LockInfo> for LockRow {
    fn from(info: LockInfo) -> Self {
        let mode = mode_name(info.mode());
        let LockInfo { name, holder_count, waiter_count, holder, .. } = info;
        Self { name, mode, holder_count, waiter_count, holder: holder.map(LockHolderRow::from) }
    }
}

impl From<LockHolder> for LockHolderRow {
    fn from(holder: LockHolder) -> Self {
        let mode = mode_name(holder.mode());
        let LockHolder { session_id, owner, fencing_token, held_ms, .. } = holder;
        Self { session_id, owner, mode, fencing_token, held_ms }
    }
}

impl From<LockWaiter> for LockWaiterRow {
    fn from(waiter: LockWaiter) -> Self {
        let mode = mode_name(waiter.mode());
        let LockWaiter { session_id, owner, converts, waiting_ms, remaining_ms, locks, .. } =
            waiter;
        Self { session_id, owner, mode, converts, waiting_ms, remaining_ms, locks }
    }
}

impl LockDescribeOutput {
    fn new(name: String, described: DescribeLockResponse) -> Self {
        Self {
            name,
            holder_count: described.holder_count,
            waiter_count: described.waiter_count,
            delayed_ms: described.delayed_ms,
            holders: described.holders.into_iter().map(LockHolderRow::from).collect(),
            waiters: described.waiters.into_iter().map(LockWaiterRow::from).collect(),
        }
    }
}

impl From<SessionInfo> for SessionRow {
    fn from(info: SessionInfo) -> Self {
        let SessionInfo { session_id, owner, ttl_ms, remaining_ms, locks, held, metadata } = info;
        Self { session_id, owner, ttl_ms, remaining_ms, locks, held, metadata }
    }
}

impl From<SessionLock> for SessionLockRow {
    fn from(lock: SessionLock) -> Self {
        let (mode, waits_for) = (mode_name(lock.mode()), mode_name(lock.waits_for()));
        let SessionLock { name, fencing_token, held_ms, waiting_ms, .. } = lock;
        Self { name, mode, fencing_token, held_ms, waits_for, waiting_ms }
    }
}

impl From<GetSessionResponse> for LockSessionOutput {
    fn from(got: GetSessionResponse) -> Self {
        Self {
            session: got.session.map(SessionRow::from).unwrap_or_default(),
            locks: got.locks.into_iter().map(SessionLockRow::from).collect(),
        }
    }
}

impl CommandOutput for LockListOutput {
    fn text(&self) -> String {
        let rows = self.locks.iter().map(|lock| {
            let holder = lock.holder.as_ref();
            vec![
                lock.name.clone(),
                lock.mode.to_owned(),
                lock.holder_count.to_string(),
                lock.waiter_count.to_string(),
                holder.map(|holder| holder.session_id.to_string()).unwrap_or_default(),
                holder.map(|holder| holder.owner.clone()).unwrap_or_default(),
                holder.map(|holder| holder.fencing_token.to_string()).unwrap_or_default(),
                holder.map(|holder| ms(holder.held_ms)).unwrap_or_default(),
            ]
        });
        let header =
            ["LOCK", "MODE", "HOLDERS", "WAITERS", "SESSION", "OWNER", "TOKEN", "HELD FOR"];
        output::table(&header, &[2, 3, 4, 6, 7], rows)
    }
}

impl CommandOutput for LockDescribeOutput {
    fn text(&self) -> String {
        let head = output::fields([
            ("lock", self.name.clone()),
            ("holders", self.holder_count.to_string()),
            ("waiters", self.waiter_count.to_string()),
            ("delayed for", ms(self.delayed_ms)),
        ]);
        let holders = self.holders.iter().map(|of| {
            let token = format!("token {}", of.fencing_token);
            let (session, owner) = (of.session_id.to_string(), of.owner.clone());
            vec!["holds".to_owned(), session, owner, of.mode.to_owned(), ms(of.held_ms), token]
        });
        let waiters = self.waiters.iter().map(|of| {
            let what = match (of.converts, of.locks) {
                (true, _) => "converts".to_owned(),
                (false, locks) if locks > 1 => format!("waits for {locks}"),
                (false, _) => "waits".to_owned(),
            };
            let more = format!("{} more", ms(of.remaining_ms));
            let (session, owner) = (of.session_id.to_string(), of.owner.clone());
            vec![what, session, owner, of.mode.to_owned(), ms(of.waiting_ms), more]
        });
        let header = ["", "SESSION", "OWNER", "MODE", "FOR", ""];
        format!("{head}\n\n{}", output::table(&header, &[1, 4], holders.chain(waiters)))
    }
}

impl CommandOutput for LockSessionsOutput {
    fn text(&self) -> String {
        let rows = self.sessions.iter().map(|session| {
            vec![
                session.session_id.to_string(),
                session.owner.clone(),
                ms(session.ttl_ms),
                ms(session.remaining_ms),
                session.held.to_string(),
                (session.locks.saturating_sub(session.held)).to_string(),
                entries(&session.metadata),
            ]
        });
        let header = ["SESSION", "OWNER", "TTL", "LEFT", "HOLDS", "WAITS FOR", "METADATA"];
        output::table(&header, &[0, 2, 3, 4, 5], rows)
    }
}

impl CommandOutput for LockSessionOutput {
    fn text(&self) -> String {
        let SessionRow { session_id, owner, ttl_ms, remaining_ms, metadata, .. } = &self.session;
        let head = output::fields([
            ("session", session_id.to_string()),
            ("owner", owner.clone()),
            ("ttl", ms(*ttl_ms)),
            ("left", ms(*remaining_ms)),
            ("metadata", entries(metadata)),
        ]);
        let rows = self.locks.iter().map(|lock| {
            let holds = !lock.mode.is_empty();
            let (token, held) = (lock.fencing_token.to_string(), ms(lock.held_ms));
            let waits = !lock.waits_for.is_empty();
            vec![
                lock.name.clone(),
                lock.mode.to_owned(),
                if holds { token } else { String::new() },
                if holds { held } else { String::new() },
                lock.waits_for.to_owned(),
                if waits { ms(lock.waiting_ms) } else { String::new() },
            ]
        });
        let header = ["LOCK", "HOLDS", "TOKEN", "FOR", "WAITS FOR", "FOR"];
        format!("{head}\n\n{}", output::table(&header, &[2, 3, 5], rows))
    }
}

/// Metadata in one line.
fn entries(metadata: &BTreeMap<String, String>) -> String {
    let entries = metadata.iter().map(|(key, value)| format!("{key}={value}"));
    entries.collect::<Vec<_>>().join(" ")
}

fn ms(ms: u64) -> String {
    format!("{ms} ms")
}
