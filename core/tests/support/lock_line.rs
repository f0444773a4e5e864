//! The lines of a script of the lock service, and the commands and questions that they stand for.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::BTreeMap;

use trefoil_core::slot;
use trefoil_proto::common::v1::{RequestId, Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    CallName, CancelAcquire, Command, FindPlace, FindReleaseRequests,
};
use trefoil_proto::lock::v1::{self as api, LockMode};

use crate::support::{call_name, called, command, given_token, request_id};

/// A line of a script. `id` is a request id: client/sequence/first_unacknowledged/attempt, from the left as needed. Written as
/// drawn/text it stands for what the node drew for a call without request id.
#[derive(goldenscript::Command)]
pub enum Line {
    Open {
        #[arg(key)]
        ttl: u64,
        /// Lock delay of the session.
        #[arg(key, optional)]
        delay: u64,
        /// Written as key:value,key:value.
        #[arg(key, optional)]
        metadata: String,
        #[arg(key)]
        id: Option<String>,
    },
    KeepAlive(u64),
    Close {
        session: u64,
        #[arg(key)]
        id: Option<String>,
    },
    Acquire {
        session: u64,
        name: String,
        #[arg(key, optional)]
        wait: u64,
        #[arg(key)]
        id: Option<String>,
        #[arg(key)]
        mode: Option<String>,
        /// Lock delay of the grant.
        #[arg(key)]
        delay: Option<u64>,
    },
    /// Several locks, all or none: names with their modes, as "a b:shared".
    AcquireAll {
        session: u64,
        locks: String,
        #[arg(key, optional)]
        wait: u64,
        #[arg(key)]
        id: Option<String>,
        #[arg(key)]
        delay: Option<u64>,
    },
    /// The caller of an acquire-all is gone.
    CancelAll {
        session: u64,
        locks: String,
        #[arg(key)]
        id: Option<String>,
    },
    Campaign {
        session: u64,
        name: String,
        /// What it proclaims; none where it is left out.
        #[arg(key)]
        value: Option<String>,
        #[arg(key, optional)]
        wait: u64,
        #[arg(key)]
        id: Option<String>,
    },
    /// One session campaigns in elections name-1 to name-n with a value of so many bytes, all in one entry.
    CampaignMany {
        session: u64,
        name: String,
        count: u64,
        #[arg(key, optional)]
        wait: u64,
        #[arg(key)]
        bytes: usize,
    },
    Proclaim {
        session: u64,
        name: String,
        token: u64,
        #[arg(key)]
        value: Option<String>,
        /// A value of so many bytes.
        #[arg(key)]
        bytes: Option<usize>,
        #[arg(key)]
        id: Option<String>,
    },
    Leader(String),
    Convert {
        session: u64,
        name: String,
        mode: String,
        #[arg(key, optional)]
        token: u64,
        #[arg(key, optional)]
        wait: u64,
        #[arg(key)]
        id: Option<String>,
    },
    Release {
        session: u64,
        name: String,
        #[arg(key, optional)]
        token: u64,
        #[arg(key)]
        id: Option<String>,
    },
    /// Takes a lock from its holders, by as many commands as that takes.
    Force {
        name: String,
        #[arg(key, optional)]
        token: u64,
    },
    /// Asks those who hold a lock to release it.
    Ask {
        name: String,
        #[arg(key, optional)]
        token: u64,
        #[arg(key, optional)]
        why: String,
    },
    /// What a session was asked to release.
    Asked {
        session: u64,
        #[arg(key, optional)]
        after: String,
    },
    Validate {
        name: String,
        token: u64,
    },
    /// Releases what a session holds, by as many commands as that takes.
    ReleaseAll(u64),
    /// `id` is that of the acquire or, with `converts`, of the convert.
    Cancel {
        session: u64,
        name: String,
        #[arg(key)]
        id: Option<String>,
        #[arg(key, optional)]
        converts: bool,
        /// Only what no entry after this one has brought.
        #[arg(key, optional)]
        as_of: u64,
    },
    /// Nobody is left to take the answer of a wait, so called, as of so many entries ago.
    Lose {
        waiter: String,
        #[arg(key, optional)]
        ago: u64,
    },
    /// One session acquires locks name-1 to name-n, all in one entry; only the last answer is shown.
    AcquireMany {
        session: u64,
        name: String,
        count: u64,
        #[arg(key, optional)]
        wait: u64,
        #[arg(key)]
        mode: Option<String>,
    },
    /// Sends many requests of a client, all in one entry; only the last answer is shown.
    OpenMany {
        client: String,
        count: u64,
        #[arg(key)]
        ttl: u64,
    },
    /// Opens as many sessions, each of which then waits for the lock, all in one entry.
    Crowd {
        name: String,
        count: u64,
        #[arg(key)]
        ttl: u64,
        #[arg(key)]
        wait: u64,
        #[arg(key)]
        mode: Option<String>,
    },
    /// Opens as many sessions, each of which then waits for all locks.
    CrowdAll {
        locks: String,
        count: u64,
        #[arg(key)]
        ttl: u64,
        #[arg(key)]
        wait: u64,
    },
    /// A session waits to convert each of the locks as often, every time for another client.
    ConvertMany {
        session: u64,
        locks: String,
        count: u64,
        #[arg(key)]
        wait: u64,
    },
    /// Opens as many sessions, each of which acquires as many locks of its own.
    Hoard {
        sessions: u64,
        #[arg(key)]
        locks: u64,
        #[arg(key)]
        ttl: u64,
    },
    /// Names, ids and slots that no checked request has.
    Garbage,
    /// Commands from here on come in one entry.
    Together,
    /// The entry ends.
    Apply,
    Advance(u64),
    /// Log time moves with the next entry.
    Sleep(u64),
    /// Entries follow, each at the same log time, until nothing is due any more.
    Settle,
    NewTerm,
    /// The machine is opened again from its store.
    Reopen,
    /// What clients ask for from now on under their request ids.
    Asks(u64),
    /// Tries that their node made before, and what that had applied before the first.
    Tried {
        times: u64,
        not_before: u64,
    },
    /// Where the remembered answers of the last entry were decided.
    Recalled,
    /// As if the namespace had so many sessions, locks or waits.
    Pretend {
        #[arg(key, optional)]
        sessions: u64,
        #[arg(key, optional)]
        locks: u64,
        #[arg(key, optional)]
        waits: u64,
    },
    /// What operators are shown.
    Describe(String),
    List {
        #[arg(key, optional)]
        prefix: String,
        #[arg(key, optional)]
        after: String,
        #[arg(key)]
        size: u32,
    },
    GetSession(u64),
    ListSessions {
        #[arg(key, optional)]
        after: String,
        #[arg(key)]
        size: u32,
    },
    ListDeadlocks,
    /// How many stand before a call that waits.
    Place {
        session: u64,
        name: String,
        #[arg(key)]
        id: Option<String>,
    },
    /// The same for a call that waits for several locks.
    PlaceAll {
        session: u64,
        locks: String,
    },
    /// Deadlocks between sessions 1 and 2 over two locks, over and over.
    Deadlock {
        #[arg(key)]
        times: u64,
    },
    Locks,
    Sessions,
    Records,
    Counts,
    /// What those who watch were told since the last such line.
    Events,
}

#[allow(clippy::too_many_lines, reason = "one table")]
pub fn operation(line: &Line) -> Option<Operation> {
    let namespace = "default".to_owned();
    Some(match line {
        Line::Open { ttl, delay, metadata, .. } => {
            Operation::OpenSession(api::OpenSessionRequest {
                namespace,
                ttl_ms: *ttl,
                lock_delay_ms: *delay,
                metadata: metadata_of(metadata),
                ..Default::default()
            })
        }
        Line::KeepAlive(session_id) => {
            Operation::KeepAlive(api::KeepAliveRequest { namespace, session_id: *session_id })
        }
        Line::Close { session, .. } => Operation::CloseSession(api::CloseSessionRequest {
            namespace,
            session_id: *session,
            request_id: None,
        }),
        Line::Acquire { session, name, wait, mode, delay, .. } => {
            Operation::Acquire(api::AcquireRequest {
                namespace,
                session_id: *session,
                name: name.clone(),
                wait_ms: *wait,
                request_id: None,
                mode: mode_of(mode.as_deref()).into(),
                lock_delay_ms: *delay,
                locks: Vec::new(),
            })
        }
        Line::Campaign { session, name, value: says, wait, .. } => {
            Operation::Campaign(campaign(*session, name.clone(), says.as_deref().map(text), *wait))
        }
        Line::Proclaim { session, name, token, value: says, bytes, .. } => {
            let long = bytes.map(|bytes| "x".repeat(bytes));
            let says = says.as_deref().or(long.as_deref()).map(text);
            Operation::Proclaim(proclaim(*session, name.clone(), *token, says))
        }
        Line::AcquireAll { session, locks, wait, delay, .. } => {
            acquire_all(*session, locks, *wait, *delay)
        }
        Line::CancelAll { session, locks, id } => Operation::CancelAcquire(CancelAcquire {
            namespace,
            session_id: *session,
            call: Some(call_of_all(*session, locks, id.as_deref())),
            locks: wishes(locks),
            ..Default::default()
        }),
        Line::Convert { session, name, mode, token, wait, .. } => {
            Operation::Convert(api::ConvertRequest {
                namespace,
                session_id: *session,
                name: name.clone(),
                fencing_token: *token,
                mode: mode_of(Some(mode)).into(),
                wait_ms: *wait,
                request_id: None,
            })
        }
        Line::Release { session, name, token, .. } => Operation::Release(api::ReleaseRequest {
            namespace,
            session_id: *session,
            name: name.clone(),
            fencing_token: *token,
            request_id: None,
        }),
        Line::Ask { name, token, why } => Operation::RequestRelease(api::RequestReleaseRequest {
            namespace,
            name: name.clone(),
            fencing_token: *token,
            requester: "operator".to_owned(),
            reason: why.clone(),
            request_id: None,
        }),
        Line::Cancel { session, name, id, converts, as_of } => {
            let converts = if *converts { " converts" } else { "" };
            let call = call_name(id.as_deref(), &format!("{session}{converts} {name}"));
            Operation::CancelAcquire(CancelAcquire {
                namespace,
                session_id: *session,
                name: name.clone(),
                call: Some(call),
                as_of: *as_of,
                ..Default::default()
            })
        }
        _ => return None,
    })
}

/// What a line asks as an operator.
pub fn question(line: &Line) -> Option<Q> {
    let namespace = "default".to_owned();
    Some(match line {
        Line::Describe(name) => {
            Q::DescribeLock(api::DescribeLockRequest { namespace, name: name.clone() })
        }
        Line::List { prefix, after, size } => Q::ListLocks(api::ListLocksRequest {
            namespace,
            prefix: prefix.clone(),
            page_size: *size,
            page_token: given_token(after),
        }),
        Line::GetSession(session_id) => {
            Q::GetSession(api::GetSessionRequest { namespace, session_id: *session_id })
        }
        Line::ListSessions { after, size } => Q::ListSessions(api::ListSessionsRequest {
            namespace,
            page_size: *size,
            page_token: given_token(after),
        }),
        Line::Validate { name, token } => Q::ValidateToken(api::ValidateTokenRequest {
            namespace,
            name: name.clone(),
            fencing_token: *token,
        }),
        Line::Leader(name) => Q::Leader(api::LeaderRequest { namespace, name: name.clone() }),
        Line::Place { session, name, id } => Q::FindPlace(FindPlace {
            namespace,
            session_id: *session,
            name: name.clone(),
            call: Some(call_name(id.as_deref(), &format!("{session} {name}"))),
            ..Default::default()
        }),
        Line::PlaceAll { session, locks } => Q::FindPlace(FindPlace {
            namespace,
            session_id: *session,
            call: Some(call_of_all(*session, locks, None)),
            locks: wishes(locks),
            ..Default::default()
        }),
        Line::Asked { session, after } => Q::FindReleaseRequests(FindReleaseRequests {
            namespace,
            session_id: *session,
            after: after.clone(),
        }),
        Line::ListDeadlocks => Q::ListDeadlocks(api::ListDeadlocksRequest { namespace }),
        _ => return None,
    })
}

/// The command of a line that stands for one.
pub fn command_of(line: &Line, operation: Operation) -> Command {
    called(slot::of_locks("default"), id_text(line), operation)
}

fn call_of_all(session: u64, locks: &str, id: Option<&str>) -> CallName {
    let names = wishes(locks).into_iter().map(|wish| wish.name).collect::<Vec<_>>();
    call_name(id, &format!("{session} {}", names.join(" ")))
}

fn id_text(line: &Line) -> Option<&str> {
    match line {
        Line::Open { id, .. }
        | Line::Close { id, .. }
        | Line::Acquire { id, .. }
        | Line::Campaign { id, .. }
        | Line::Proclaim { id, .. }
        | Line::AcquireAll { id, .. }
        | Line::Convert { id, .. }
        | Line::Release { id, .. } => id.as_deref(),
        _ => None,
    }
}

pub fn in_slot(operation: Operation, id: Option<RequestId>) -> Command {
    command(slot::of_locks("default"), 1, id, operation)
}

pub fn open(ttl_ms: u64) -> Operation {
    Operation::OpenSession(api::OpenSessionRequest {
        namespace: "default".to_owned(),
        ttl_ms,
        ..Default::default()
    })
}

pub fn acquire(session_id: u64, name: String, wait_ms: u64, mode: LockMode) -> Operation {
    let namespace = "default".to_owned();
    Operation::Acquire(api::AcquireRequest {
        namespace,
        session_id,
        name,
        wait_ms,
        request_id: None,
        mode: mode.into(),
        lock_delay_ms: None,
        locks: Vec::new(),
    })
}

fn metadata_of(text: &str) -> BTreeMap<String, String> {
    let entries = text.split(',').filter_map(|entry| entry.split_once(':'));
    entries.map(|(key, value)| (key.to_owned(), value.to_owned())).collect()
}

pub fn mode_of(mode: Option<&str>) -> LockMode {
    match mode {
        None => LockMode::Exclusive,
        Some(mode) => LockMode::from_str_name(&format!("LOCK_MODE_{}", mode.to_uppercase()))
            .expect("a mode is shared, update or exclusive"),
    }
}

pub fn campaign(
    session_id: u64,
    name: String,
    value: Option<Value>,
    wait_ms: u64,
) -> api::CampaignRequest {
    let namespace = "default".to_owned();
    api::CampaignRequest { namespace, session_id, name, value, wait_ms, ..Default::default() }
}

pub fn text(text: &str) -> Value {
    Value { kind: Some(value::Kind::Text(text.to_owned())) }
}

pub fn proclaim(
    session_id: u64,
    name: String,
    fencing_token: u64,
    value: Option<Value>,
) -> api::ProclaimRequest {
    let namespace = "default".to_owned();
    api::ProclaimRequest { namespace, session_id, name, fencing_token, value, request_id: None }
}

/// The commands of a line that stands for many of a kind.
pub fn many(line: &Line) -> Option<Vec<Command>> {
    Some(match line {
        Line::AcquireMany { session, name, count, wait, mode } => {
            let mode = mode_of(mode.as_deref());
            let acquires =
                (1..=*count).map(|n| acquire(*session, format!("{name}-{n}"), *wait, mode));
            acquires.map(|acquire| in_slot(acquire, None)).collect()
        }
        Line::CampaignMany { session, name, count, wait, bytes } => {
            let value = text(&"x".repeat(*bytes));
            let campaigns = (1..=*count)
                .map(|n| campaign(*session, format!("{name}-{n}"), Some(value.clone()), *wait));
            campaigns.map(|campaign| in_slot(Operation::Campaign(campaign), None)).collect()
        }
        Line::OpenMany { client, count, ttl } => {
            let id = |n| Some(request_id(&format!("{client}/{n}")));
            (1..=*count).map(|n| in_slot(open(*ttl), id(n))).collect()
        }
        Line::ConvertMany { session, locks, count, wait } => {
            let each = wishes(locks).into_iter();
            let all = each.flat_map(|wish| (1..=*count).map(move |n| (wish.name.clone(), n)));
            let commands = all.map(|(name, n)| {
                let id = request_id(&format!("{name}-{n}/1"));
                in_slot(convert(*session, name, LockMode::Exclusive, *wait), Some(id))
            });
            commands.collect()
        }
        _ => return None,
    })
}

/// The locks that a script names, each with its mode.
pub fn wishes(locks: &str) -> Vec<api::LockWish> {
    let wish = |lock: &str| {
        let (name, mode) = lock.split_once(':').unwrap_or((lock, "exclusive"));
        api::LockWish { name: name.to_owned(), mode: mode_of(Some(mode)).into() }
    };
    locks.split_whitespace().map(wish).collect()
}

pub fn acquire_all(session_id: u64, locks: &str, wait_ms: u64, delay: Option<u64>) -> Operation {
    Operation::Acquire(api::AcquireRequest {
        namespace: "default".to_owned(),
        session_id,
        wait_ms,
        lock_delay_ms: delay,
        locks: wishes(locks),
        ..Default::default()
    })
}

pub fn convert(session_id: u64, name: String, mode: LockMode, wait_ms: u64) -> Operation {
    Operation::Convert(api::ConvertRequest {
        namespace: "default".to_owned(),
        session_id,
        name,
        mode: mode.into(),
        wait_ms,
        ..Default::default()
    })
}
