//! Scripts of semaphores: what each command answers, which calls that wait end with it, and what those who watch are told.

#[path = "support/lock_watch.rs"]
mod lock_watch;
#[path = "support/operator.rs"]
mod operator;
mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use prost::Message as _;
use test_each_file::test_each_path;
use trefoil_core::key::{Key, Kind};
use trefoil_core::machine::{
    Applied, Body, Counts, Machine, Outcome, QueryOutcome, WaiterId, caller_lost,
};
use trefoil_core::slot;
use trefoil_core::store::decode;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    Answer, CancelAcquire, Command, ForceStep, LockNamespace, ReleaseHeld, answer,
};
use trefoil_proto::lock::v1::{self as api, LockMode};

use self::lock_watch::Watcher;
use self::support::{Harness, call_name, called, command, given_token, show_answer, show_records};

test_each_path! { in "./core/tests/scripts/semaphore" => run }

/// Waiters that are shown one by one.
const SHOWN_MAX: usize = 8;

fn run(path: &Path) {
    goldenscript::run(&mut Runner::new(), path).expect("a script runs");
}

/// A line of a script. `id` is a request id: client/sequence/first_unacknowledged/attempt, from the left as needed.
#[derive(goldenscript::Command)]
enum Line {
    Open {
        #[arg(key)]
        ttl: u64,
        #[arg(key, optional)]
        delay: u64,
    },
    KeepAlive(u64),
    Close(u64),
    Set {
        name: String,
        permits: u64,
        #[arg(key)]
        id: Option<String>,
    },
    Delete(String),
    Take {
        session: u64,
        name: String,
        permits: u64,
        #[arg(key, optional)]
        wait: u64,
        #[arg(key)]
        id: Option<String>,
    },
    /// As many sessions open with this TTL and take permits, all in one entry.
    Crowd {
        name: String,
        count: u64,
        permits: u64,
        #[arg(key)]
        ttl: u64,
        #[arg(key, optional)]
        wait: u64,
    },
    /// A session takes the one permit that each of name-1 to name-n has, all in one entry.
    TakeMany {
        session: u64,
        name: String,
        count: u64,
        #[arg(key, optional)]
        wait: u64,
    },
    Give {
        session: u64,
        name: String,
        #[arg(key, optional)]
        token: u64,
    },
    /// The caller of a take is gone.
    Cancel {
        session: u64,
        name: String,
        permits: u64,
        #[arg(key)]
        id: Option<String>,
    },
    /// The call of that waiter has nobody left to take its answer.
    Lose(String),
    /// A lock of the same name.
    Acquire {
        session: u64,
        name: String,
        #[arg(key, optional)]
        wait: u64,
    },
    Release {
        session: u64,
        name: String,
    },
    Convert {
        session: u64,
        name: String,
    },
    Campaign {
        session: u64,
        name: String,
    },
    Proclaim {
        session: u64,
        name: String,
        token: u64,
    },
    Force {
        name: String,
        #[arg(key, optional)]
        token: u64,
    },
    ReleaseAll(u64),
    Describe(String),
    List {
        #[arg(key, optional)]
        prefix: String,
        #[arg(key, optional)]
        after: String,
        #[arg(key)]
        size: u32,
    },
    Locks,
    DescribeLock(String),
    Session(u64),
    Validate {
        name: String,
        token: u64,
    },
    Advance(u64),
    /// What is due fires, entry by entry.
    Settle,
    NewTerm,
    /// As if the namespace had so many locks.
    Pretend(u64),
    Records,
    Counts,
    Events,
}

struct Runner {
    harness: Harness,
    /// What each waiter is called in the script.
    waiters: BTreeMap<WaiterId, String>,
    counts: Counts,
    watcher: Watcher,
    /// Events that no line has shown yet.
    events: String,
}

impl goldenscript::Runner for Runner {
    type Command = Line;

    fn run(&mut self, line: &Line, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        if let Some((operation, id)) = operation(line) {
            return Ok(self.entry(vec![in_slot(operation, id)]));
        }
        if let Some(query) = question(line) {
            return Ok(match self.harness.query(slot::of_locks("default"), 1, query).1 {
                QueryOutcome::Answered(answer) => operator::show(&answer),
                other => panic!("a look waits for {other:?}"),
            });
        }
        Ok(match line {
            Line::Crowd { name, count, permits, ttl, wait } => {
                self.crowd(name, *count, *permits, *ttl, *wait)
            }
            Line::TakeMany { session, name, count, wait } => {
                let names = (1..=*count).map(|n| format!("{name}-{n}"));
                let both = |name: String| {
                    [
                        in_slot(set(name.clone(), 1), None),
                        in_slot(take(*session, name, 1, *wait), None),
                    ]
                };
                last(&self.entry(names.flat_map(both).collect()))
            }
            Line::Lose(waiter) => {
                let called = self.waiters.iter().find(|(_, called)| *called == waiter);
                let (waiter, _) = called.ok_or("nobody waits so")?;
                let (slot, lost) = caller_lost(waiter, self.harness.machine.progress().index);
                self.entry(vec![command(slot, 1, None, lost)])
            }
            Line::Advance(ms) => {
                let applied = self.harness.advance(*ms);
                self.show(&[], &applied)
            }
            Line::Settle => self.settle(),
            Line::NewTerm => {
                let applied = self.harness.new_term();
                self.show(&[], &applied)
            }
            Line::Pretend(locks) => {
                self.pretend(*locks);
                String::new()
            }
            Line::Records => self.records(),
            Line::Counts => show_counts(&std::mem::take(&mut self.counts)),
            Line::Events => std::mem::take(&mut self.events),
            _ => return Err("a line is a command or a question".into()),
        })
    }
}

impl Runner {
    fn new() -> Self {
        Self {
            harness: Harness::new(1),
            waiters: BTreeMap::new(),
            counts: Counts::default(),
            watcher: Watcher::default(),
            events: String::new(),
        }
    }

    fn entry(&mut self, commands: Vec<Command>) -> String {
        let applied = self.harness.apply(commands.clone());
        self.show(&commands, &applied)
    }

    fn crowd(&mut self, name: &str, count: u64, permits: u64, ttl: u64, wait: u64) -> String {
        let first = self.entry(vec![in_slot(open(ttl, 0), None)]);
        let first = first.trim().trim_start_matches("session ").parse::<u64>().expect("an id");
        let opens = (1..count).map(|_| in_slot(open(ttl, 0), None));
        let takes = (first..first + count)
            .map(|id| in_slot(take(id, name.to_owned(), permits, wait), None));
        last(&self.entry(opens.chain(takes).collect()))
    }

    fn settle(&mut self) -> String {
        let (mut entries, mut text) = (0, String::new());
        while Machine::next_due_ms(&self.harness.store)
            .is_some_and(|due| due <= self.harness.now_ms)
        {
            let applied = self.harness.apply(Vec::new());
            text.push_str(&self.show(&[], &applied));
            entries += 1;
            assert!(entries < 100, "what is due comes to an end");
        }
        format!("{text}nothing is due after {entries} entries\n")
    }

    fn pretend(&mut self, locks: u64) {
        self.harness.pretends = true;
        let key = Key::new(slot::of_locks("default"), Kind::LockNamespace).tail(b"default");
        let records = &mut self.harness.store.records;
        let counters = decode::<LockNamespace>(&records[key.bytes()]);
        let counters = LockNamespace { locks, ..counters };
        records.insert(key.into(), counters.encode_to_vec().into());
    }

    fn show(&mut self, commands: &[Command], applied: &Applied) -> String {
        self.counts.add(&applied.counts);
        let mut text = String::new();
        for (command, outcome) in commands.iter().zip(&applied.outcomes) {
            match outcome {
                Outcome::Answered(answer) => writeln!(text, "{}", show(answer)),
                Outcome::Waiting(waiter) => {
                    let called =
                        self.waiters.entry(waiter.clone()).or_insert_with(|| waiter_name(command));
                    writeln!(text, "waits as {called}")
                }
            }
            .expect("text grows");
        }
        text.push_str(&self.show_settled(applied));
        self.watcher.see(applied);
        for (ordinal, event) in applied.events.iter().enumerate() {
            let Body::Lock(event) = &event.body;
            let shown = lock_watch::show(event);
            writeln!(self.events, "{}.{ordinal} {shown}", applied.index).expect("text grows");
        }
        if !self.harness.pretends {
            let state = self.harness.lock_state();
            self.watcher.check(&state);
        }
        text
    }

    fn show_settled(&self, applied: &Applied) -> String {
        if applied.settled.len() > SHOWN_MAX {
            let shown = |answer| {
                let shown = show(answer);
                shown.split(", token").next().unwrap_or_default().to_owned()
            };
            let mut counts = BTreeMap::<_, usize>::new();
            for settled in &applied.settled {
                *counts.entry(shown(&settled.answer)).or_default() += 1;
            }
            let lines = counts.iter();
            return lines
                .map(|(answer, count)| format!("settled {count} waiters: {answer}\n"))
                .collect();
        }
        let lines = applied.settled.iter().map(|settled| {
            let called =
                self.waiters.get(&settled.waiter).map_or("what nobody waits for", String::as_str);
            format!("settled {called}: {}\n", show(&settled.answer))
        });
        lines.collect()
    }

    fn records(&self) -> String {
        let state = self.harness.lock_state();
        let counts = [
            ("sessions", state.sessions.len()),
            ("semaphores", state.semaphores.len()),
            ("locks", state.locks.len()),
            ("holders", state.holders.len()),
            ("waiters", state.waiters.len()),
            ("waits", state.waits.len()),
            ("claims", state.claims.len()),
            ("timers", state.timers.len()),
        ];
        show_records(&counts)
    }
}

fn in_slot(operation: Operation, id: Option<&str>) -> Command {
    called(slot::of_locks("default"), id, operation)
}

fn last(text: &str) -> String {
    text.lines().last().map_or_else(String::new, |line| format!("... {line}\n"))
}

fn waiter_name(command: &Command) -> String {
    let (session_id, name, permits) = match &command.operation {
        Some(Operation::AcquirePermits(r)) => (r.session_id, &r.name, r.permits),
        Some(Operation::Acquire(r)) => (r.session_id, &r.name, 0),
        _ => panic!("only an acquire waits"),
    };
    let id = command.request_id.as_ref().map(|id| format!(" {}/{}", id.client, id.sequence));
    format!("{session_id} for {permits} of {name}{}", id.unwrap_or_default())
}

fn open(ttl_ms: u64, lock_delay_ms: u64) -> Operation {
    let namespace = "default".to_owned();
    let open = api::OpenSessionRequest { namespace, ttl_ms, lock_delay_ms, ..Default::default() };
    Operation::OpenSession(open)
}

fn set(name: String, permits: u64) -> Operation {
    let (namespace, request_id) = ("default".to_owned(), None);
    Operation::SetPermits(api::SetPermitsRequest { namespace, name, permits, request_id })
}

fn take(session_id: u64, name: String, permits: u64, wait_ms: u64) -> Operation {
    let (namespace, request_id) = ("default".to_owned(), None);
    Operation::AcquirePermits(api::AcquirePermitsRequest {
        namespace,
        session_id,
        name,
        permits,
        wait_ms,
        request_id,
    })
}

#[allow(clippy::too_many_lines, reason = "one table")]
fn operation(line: &Line) -> Option<(Operation, Option<&str>)> {
    let namespace = "default".to_owned();
    let id = match line {
        Line::Set { id, .. } | Line::Take { id, .. } => id.as_deref(),
        _ => None,
    };
    let operation = match line {
        Line::Open { ttl, delay } => open(*ttl, *delay),
        Line::KeepAlive(session_id) => {
            Operation::KeepAlive(api::KeepAliveRequest { namespace, session_id: *session_id })
        }
        Line::Close(session_id) => Operation::CloseSession(api::CloseSessionRequest {
            namespace,
            session_id: *session_id,
            request_id: None,
        }),
        Line::Set { name, permits, .. } => set(name.clone(), *permits),
        Line::Delete(name) => Operation::DeleteSemaphore(api::DeleteSemaphoreRequest {
            namespace,
            name: name.clone(),
            request_id: None,
        }),
        Line::Take { session, name, permits, wait, .. } => {
            take(*session, name.clone(), *permits, *wait)
        }
        Line::Give { session, name, token } => {
            Operation::ReleasePermits(api::ReleasePermitsRequest {
                namespace,
                session_id: *session,
                name: name.clone(),
                fencing_token: *token,
                request_id: None,
            })
        }
        Line::Cancel { session, name, permits, id } => Operation::CancelAcquire(CancelAcquire {
            namespace,
            session_id: *session,
            name: name.clone(),
            call: Some(call_name(id.as_deref(), &format!("{session} {name}"))),
            permits: *permits,
            ..Default::default()
        }),
        Line::Acquire { session, name, wait } => Operation::Acquire(api::AcquireRequest {
            namespace,
            session_id: *session,
            name: name.clone(),
            wait_ms: *wait,
            ..Default::default()
        }),
        Line::Release { session, name } => Operation::Release(api::ReleaseRequest {
            namespace,
            session_id: *session,
            name: name.clone(),
            ..Default::default()
        }),
        Line::Convert { session, name } => Operation::Convert(api::ConvertRequest {
            namespace,
            session_id: *session,
            name: name.clone(),
            mode: LockMode::Exclusive.into(),
            ..Default::default()
        }),
        Line::Campaign { session, name } => Operation::Campaign(api::CampaignRequest {
            namespace,
            session_id: *session,
            name: name.clone(),
            ..Default::default()
        }),
        Line::Proclaim { session, name, token } => Operation::Proclaim(api::ProclaimRequest {
            namespace,
            session_id: *session,
            name: name.clone(),
            fencing_token: *token,
            ..Default::default()
        }),
        Line::Force { name, token } => Operation::ForceStep(ForceStep {
            namespace,
            name: name.clone(),
            fencing_token: *token,
            token: 0,
        }),
        Line::ReleaseAll(session_id) => Operation::ReleaseHeld(ReleaseHeld {
            namespace,
            session_id: *session_id,
            ..ReleaseHeld::default()
        }),
        _ => return None,
    };
    Some((operation, id))
}

fn question(line: &Line) -> Option<Q> {
    let namespace = "default".to_owned();
    Some(match line {
        Line::Describe(name) => {
            Q::DescribeSemaphore(api::DescribeSemaphoreRequest { namespace, name: name.clone() })
        }
        Line::List { prefix, after, size } => Q::ListSemaphores(api::ListSemaphoresRequest {
            namespace,
            prefix: prefix.clone(),
            page_size: *size,
            page_token: given_token(after),
        }),
        Line::Locks => {
            Q::ListLocks(api::ListLocksRequest { namespace, page_size: 100, ..Default::default() })
        }
        Line::DescribeLock(name) => {
            Q::DescribeLock(api::DescribeLockRequest { namespace, name: name.clone() })
        }
        Line::Session(session_id) => {
            Q::GetSession(api::GetSessionRequest { namespace, session_id: *session_id })
        }
        Line::Validate { name, token } => Q::ValidateToken(api::ValidateTokenRequest {
            namespace,
            name: name.clone(),
            fencing_token: *token,
        }),
        _ => return None,
    })
}

fn show(answer: &Answer) -> String {
    use answer::Answer as A;
    match answer.answer.as_ref().expect("an answer says something") {
        A::OpenSession(opened) => format!("session {}", opened.session_id),
        A::KeepAlive(_) => "alive".to_owned(),
        A::CloseSession(closed) => format!("closed, released {}", closed.released),
        A::SetPermits(set) => format!("set, had {}, {} in use", set.permits_before, set.in_use),
        A::DeleteSemaphore(_) => "deleted".to_owned(),
        A::AcquirePermits(got) if got.acquired => {
            assert_eq!((got.available, got.waiter_count), (0, 0));
            format!("has {}, token {}", got.permits, got.fencing_token)
        }
        A::AcquirePermits(got) => {
            assert_eq!((got.permits, got.fencing_token), (0, 0));
            format!("has none, {} available, {} wait", got.available, got.waiter_count)
        }
        A::ReleasePermits(_) => "given back".to_owned(),
        A::Acquire(got) if got.acquired => format!("acquired, token {}", got.fencing_token),
        A::Release(_) => "released".to_owned(),
        A::ForcedStep(step) => {
            let more = if step.more { ", more" } else { "" };
            format!("forced {} to release, token {}{more}", step.released, step.token)
        }
        A::ReleasedHeld(released) => format!("released {}", released.released),
        A::Done(_) => "done".to_owned(),
        _ => show_answer(answer),
    }
}

fn show_counts(counts: &Counts) -> String {
    format!(
        "permits: acquired {}, released {}, blocked {}, timeouts {}, waited {} ms; locks: acquired {}, released {}, blocked {}, timeouts {}\n",
        counts.permits_acquired,
        counts.permits_released,
        counts.permits_blocked,
        counts.permit_timeouts,
        counts.permit_waits.sum_ms,
        counts.locks_acquired,
        counts.locks_released,
        counts.locks_blocked,
        counts.lock_timeouts,
    )
}
