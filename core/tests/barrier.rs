//! Scripts of latches and barriers: what each command answers, and which calls that wait end with it.

mod support;

use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use prost::Message as _;
use test_each_file::test_each_path;
use trefoil_core::key::{Key, Kind};
use trefoil_core::machine::{Applied, Counts, Outcome, QueryOutcome};
use trefoil_core::slot;
use trefoil_core::store::decode;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    Answer, AwaitBarrier, AwaitLatch, BarrierSeen, LatchSeen, LockNamespace, WithdrawBarrier,
    answer,
};
use trefoil_proto::lock::v1 as api;

use self::support::{
    Harness, call_name, called, given_token, request_id, show_answer, shown_token,
};

test_each_path! { in "./core/tests/scripts/barrier" => run }

fn run(path: &Path) {
    let runner = &mut Runner { harness: Harness::new(1), counts: Counts::default() };
    goldenscript::run(runner, path).expect("a script runs");
}

/// A line of a script. `id` is a request id: client/sequence/first_unacknowledged/attempt, from the left as needed.
#[derive(goldenscript::Command)]
enum Line {
    Open(u64),
    KeepAlive(u64),
    Close(u64),
    Set {
        name: String,
        count: u64,
        #[arg(key)]
        expected: Option<u64>,
        #[arg(key)]
        id: Option<String>,
    },
    CountDown {
        name: String,
        #[arg(key, optional)]
        by: u64,
        #[arg(key, optional)]
        round: u64,
        #[arg(key)]
        id: Option<String>,
    },
    Delete(String),
    /// Waits until a latch is open; with `look` it only looks.
    Await {
        name: String,
        #[arg(key, optional)]
        round: u64,
        #[arg(key, optional)]
        look: bool,
    },
    Latch(String),
    Latches {
        #[arg(key, optional)]
        prefix: String,
        #[arg(key, optional)]
        after: String,
        #[arg(key)]
        size: u32,
    },
    Enter {
        session: u64,
        name: String,
        parties: u32,
        #[arg(key, optional)]
        wait: u64,
        #[arg(key)]
        id: Option<String>,
    },
    Leave {
        session: u64,
        name: String,
        #[arg(key, optional)]
        round: u64,
        #[arg(key)]
        id: Option<String>,
    },
    Withdraw {
        session: u64,
        name: String,
        #[arg(key, optional)]
        round: u64,
        /// Stays where all have entered.
        #[arg(key, optional)]
        unless: bool,
        #[arg(key)]
        id: Option<String>,
    },
    /// As many sessions open with this TTL and enter, all in one entry.
    Crowd {
        name: String,
        count: u32,
        parties: u32,
        #[arg(key)]
        ttl: u64,
        #[arg(key)]
        wait: u64,
    },
    /// A session enters barriers name-1 to name-n, all in one entry.
    EnterMany {
        session: u64,
        name: String,
        count: u32,
    },
    /// Waits until all have entered.
    Entering {
        session: u64,
        name: String,
        round: u64,
    },
    /// Waits until all have left.
    Leaving {
        session: u64,
        name: String,
        round: u64,
    },
    Barrier(String),
    Barriers {
        #[arg(key, optional)]
        prefix: String,
        #[arg(key, optional)]
        after: String,
        #[arg(key)]
        size: u32,
    },
    /// The caller of a waiting call is gone.
    Gone(u64),
    Advance(u64),
    /// Log time moves with the next entry.
    Sleep(u64),
    /// As if the namespace had so many latches and barriers.
    Pretend {
        #[arg(key)]
        latches: u64,
        #[arg(key)]
        barriers: u64,
    },
    NewTerm,
    /// What only a leader keeps is gone.
    StepDown,
    Records,
    Counts,
}

struct Runner {
    harness: Harness,
    counts: Counts,
}

impl goldenscript::Runner for Runner {
    type Command = Line;

    fn run(&mut self, line: &Line, _: &goldenscript::Context) -> Result<String, Box<dyn Error>> {
        if let Some((operation, id)) = operation(line) {
            return Ok(self.entry(vec![(operation, id)]));
        }
        if let Some(query) = question(line) {
            let (call, outcome) = self.harness.query(slot::of_locks("default"), 1, query);
            return Ok(match outcome {
                QueryOutcome::Answered(answer) => format!("{}\n", show(&answer)),
                QueryOutcome::Parked => format!("waits as call {call}\n"),
                QueryOutcome::Due(_) => panic!("no latch or barrier has a time"),
            });
        }
        Ok(match line {
            Line::Crowd { name, count, parties, ttl, wait } => {
                self.crowd(name, *count, *parties, *ttl, *wait)
            }
            Line::EnterMany { session, name, count } => {
                let enter = |n| (enter(*session, format!("{name}-{n}"), 2, 60_000, None), None);
                last(&self.entry((1..=*count).map(enter).collect()))
            }
            Line::Gone(call) => {
                self.harness.machine.cancel(*call);
                String::new()
            }
            Line::Advance(ms) => {
                let applied = self.harness.advance(*ms);
                self.show(&applied)
            }
            Line::Sleep(ms) => {
                self.harness.now_ms += ms;
                String::new()
            }
            Line::Pretend { latches, barriers } => {
                self.pretend(*latches, *barriers);
                String::new()
            }
            Line::NewTerm => {
                let applied = self.harness.new_term();
                self.show(&applied)
            }
            Line::StepDown => {
                format!("calls that are told: {:?}\n", self.harness.machine.step_down())
            }
            Line::Records => self.records(),
            Line::Counts => {
                let Counts { latches_opened, barriers_tripped, .. } = self.counts;
                format!("latches opened {latches_opened}, barriers tripped {barriers_tripped}\n")
            }
            _ => return Err("a line is a command or a question".into()),
        })
    }
}

impl Runner {
    fn entry(&mut self, operations: Vec<(Operation, Option<String>)>) -> String {
        let slot = slot::of_locks("default");
        let commands =
            operations.into_iter().map(|(operation, id)| called(slot, id.as_deref(), operation));
        let applied = self.harness.apply(commands.collect());
        self.show(&applied)
    }

    fn crowd(&mut self, name: &str, count: u32, parties: u32, ttl: u64, wait: u64) -> String {
        let first = self.entry(vec![(open(ttl), None)]);
        let first = first.trim().trim_start_matches("session ").parse::<u64>().expect("an id");
        let ids = first..first + u64::from(count);
        let opens = (1..count).map(|_| (open(ttl), None));
        let enters = ids.map(|id| (enter(id, name.to_owned(), parties, wait, None), None));
        last(&self.entry(opens.chain(enters).collect()))
    }

    fn pretend(&mut self, latches: u64, barriers: u64) {
        self.harness.pretends = true;
        let key = Key::new(slot::of_locks("default"), Kind::LockNamespace).tail(b"default");
        let records = &mut self.harness.store.records;
        let counters = decode::<LockNamespace>(&records[key.bytes()]);
        let counters = LockNamespace { latches, barriers, ..counters };
        records.insert(key.into(), counters.encode_to_vec().into());
    }

    fn show(&mut self, applied: &Applied) -> String {
        self.counts.add(&applied.counts);
        let mut text = String::new();
        for outcome in &applied.outcomes {
            let Outcome::Answered(answer) = outcome else { panic!("nothing waits in the state") };
            writeln!(text, "{}", show(answer)).expect("text grows");
        }
        for (call, answer) in &applied.polls {
            writeln!(text, "call {call} ends: {}", show(answer)).expect("text grows");
        }
        text
    }

    fn records(&self) -> String {
        let state = self.harness.lock_state();
        let counts = [
            ("sessions", state.sessions.len()),
            ("latches", state.latches.len()),
            ("barriers", state.barriers.len()),
            ("entered", state.entered.len()),
            ("timers", state.timers.len()),
        ];
        let lines = counts.iter().filter(|(_, count)| *count > 0);
        lines.map(|(kind, count)| format!("{kind}: {count}\n")).collect()
    }
}

fn last(text: &str) -> String {
    text.lines().last().map_or_else(String::new, |line| format!("... {line}\n"))
}

fn operation(line: &Line) -> Option<(Operation, Option<String>)> {
    let namespace = "default".to_owned();
    let no_id = |operation| Some((operation, None));
    match line {
        Line::Open(ttl) => no_id(open(*ttl)),
        Line::KeepAlive(session_id) => no_id(Operation::KeepAlive(api::KeepAliveRequest {
            namespace,
            session_id: *session_id,
        })),
        Line::Close(session_id) => no_id(Operation::CloseSession(api::CloseSessionRequest {
            namespace,
            session_id: *session_id,
            request_id: None,
        })),
        Line::Set { name, count, expected, id } => {
            let (name, count, expected) = (name.clone(), *count, *expected);
            let set = api::SetLatchRequest { namespace, name, count, expected, request_id: None };
            Some((Operation::SetLatch(set), id.clone()))
        }
        Line::CountDown { name, by, round, id } => {
            let (name, by, round) = (name.clone(), *by, *round);
            let count = api::CountDownRequest { namespace, name, by, round, request_id: None };
            Some((Operation::CountDown(count), id.clone()))
        }
        Line::Delete(name) => no_id(Operation::DeleteLatch(api::DeleteLatchRequest {
            namespace,
            name: name.clone(),
            request_id: None,
        })),
        Line::Enter { session, name, parties, wait, id } => {
            Some((enter(*session, name.clone(), *parties, *wait, id.as_deref()), id.clone()))
        }
        Line::Leave { session, name, round, id } => {
            let leave = api::LeaveBarrierRequest {
                namespace,
                session_id: *session,
                name: name.clone(),
                round: *round,
                ..Default::default()
            };
            Some((Operation::LeaveBarrier(leave), id.clone()))
        }
        Line::Withdraw { session, name, round, unless, id } => {
            no_id(Operation::WithdrawBarrier(WithdrawBarrier {
                namespace,
                session_id: *session,
                name: name.clone(),
                round: *round,
                call: Some(call_name(id.as_deref(), &format!("{session} {name}"))),
                unless_tripped: *unless,
            }))
        }
        _ => None,
    }
}

fn open(ttl_ms: u64) -> Operation {
    let namespace = "default".to_owned();
    Operation::OpenSession(api::OpenSessionRequest { namespace, ttl_ms, ..Default::default() })
}

fn enter(session_id: u64, name: String, parties: u32, wait_ms: u64, id: Option<&str>) -> Operation {
    let request_id = id.filter(|id| !id.starts_with("drawn/")).map(request_id);
    let namespace = "default".to_owned();
    let enter =
        api::EnterBarrierRequest { namespace, session_id, name, parties, wait_ms, request_id };
    Operation::EnterBarrier(enter)
}

fn question(line: &Line) -> Option<Q> {
    let namespace = "default".to_owned();
    let barrier = |name: &String, session: &u64, round: &u64, enters| {
        let (namespace, name) = ("default".to_owned(), name.clone());
        let (session_id, round, wait) = (*session, *round, true);
        Q::AwaitBarrier(AwaitBarrier { namespace, name, session_id, round, enters, wait })
    };
    Some(match line {
        Line::Await { name, round, look } => {
            let (name, round) = (name.clone(), *round);
            Q::AwaitLatch(AwaitLatch { namespace, name, round, wait: !look })
        }
        Line::Latch(name) => Q::GetLatch(api::GetLatchRequest { namespace, name: name.clone() }),
        Line::Latches { prefix, after, size } => Q::ListLatches(api::ListLatchesRequest {
            namespace,
            prefix: prefix.clone(),
            page_size: *size,
            page_token: given_token(after),
        }),
        Line::Entering { session, name, round } => barrier(name, session, round, true),
        Line::Leaving { session, name, round } => barrier(name, session, round, false),
        Line::Barrier(name) => {
            Q::GetBarrier(api::GetBarrierRequest { namespace, name: name.clone() })
        }
        Line::Barriers { prefix, after, size } => Q::ListBarriers(api::ListBarriersRequest {
            namespace,
            prefix: prefix.clone(),
            page_size: *size,
            page_token: given_token(after),
        }),
        _ => return None,
    })
}

fn show(answer: &Answer) -> String {
    use answer::Answer as A;
    match answer.answer.as_ref().expect("an answer says something") {
        A::OpenSession(opened) => format!("session {}", opened.session_id),
        A::KeepAlive(_) => "alive".to_owned(),
        A::CloseSession(_) => "closed".to_owned(),
        A::SetLatch(set) => format!("set, round {}", set.round),
        A::CountDown(counted) => format!("{} left of round {}", counted.count, counted.round),
        A::DeleteLatch(_) => "deleted".to_owned(),
        A::LatchSeen(LatchSeen { count, round }) => format!("{count} left of round {round}"),
        A::GetLatch(got) => latch(got.latch.as_ref().expect("a latch is shown")),
        A::ListLatches(listed) => page(listed.latches.iter().map(latch), &listed.next_page_token),
        A::BarrierSeen(BarrierSeen { round, tripped, inside, present, over }) => {
            let place = if *inside { "in" } else { "out" };
            let state = match (over, tripped) {
                (true, _) => "over",
                (false, true) => "all have entered",
                (false, false) => "not all have entered",
            };
            format!("{place}, round {round}: {state}, {present} present")
        }
        A::GetBarrier(got) => {
            let ids = got.sessions.iter().map(|party| party.session_id).collect::<Vec<_>>();
            format!("{}: {ids:?}", barrier(got.barrier.as_ref().expect("a barrier is shown")))
        }
        A::ListBarriers(listed) => {
            page(listed.barriers.iter().map(barrier), &listed.next_page_token)
        }
        _ => show_answer(answer),
    }
}

fn latch(of: &api::LatchInfo) -> String {
    let api::LatchInfo { name, count, set_count, round, age_ms } = of;
    format!("{name}: {count} left of {set_count}, round {round} for {age_ms} ms")
}

fn barrier(of: &api::BarrierInfo) -> String {
    let api::BarrierInfo { name, parties, present, leaving, round, age_ms } = of;
    let state = if *leaving { "leaving" } else { "entering" };
    format!("{name}: {state}, {present} of {parties} present, round {round} for {age_ms} ms")
}

fn page(items: impl Iterator<Item = String>, next: &str) -> String {
    let lines = items.map(|item| format!("{item}\n")).collect::<String>();
    lines
        + &if next.is_empty() {
            "the end".to_owned()
        } else {
            format!("next: {}", shown_token(next))
        }
}
