//! Scripts of the lock service and of request ids: what each command answers, entry by entry.

#[path = "support/lock_line.rs"]
mod lock_line;
#[path = "support/lock_watch.rs"]
mod lock_watch;
#[path = "support/operator.rs"]
mod operator;
mod support;

use std::collections::BTreeMap;
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;

use bytes::Bytes;
use prost::Message as _;
use test_each_file::test_each_path;
use trefoil_core::key::{Key, Kind};
use trefoil_core::machine::{
    Applied, Body, Counts, Machine, Outcome, QueryOutcome, Settled, WaiterId, caller_lost,
};
use trefoil_core::slot;
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::query::Query as Q;
use trefoil_proto::internal::v1::{
    Answer, CallName, CancelAcquire, Command, ForceStep, ReleaseHeld, answer,
};
use trefoil_proto::lock::v1::{self as api, LockMode};

use self::lock_line::{
    Line, acquire, acquire_all, command_of, in_slot, many, mode_of, open, operation, question,
};
use self::lock_watch::Watcher;
use self::support::{Harness, call_name, command, request_id, show_answer, show_records};

test_each_path! { in "./core/tests/scripts/lock" => run }

/// Waiters that are shown one by one.
const SHOWN_MAX: usize = 16;

fn run(path: &Path) {
    goldenscript::run(&mut Runner::new(), path).expect("a script runs");
}

struct Runner {
    harness: Harness,
    together: Option<Vec<Command>>,
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
        if let Some(operation) = operation(line) {
            return Ok(self.command(command_of(line, operation)));
        }
        if let Some(commands) = many(line) {
            return Ok(self.last_of(commands));
        }
        if let Some(question) = question(line) {
            return Ok(self.ask(question));
        }
        Ok(match line {
            Line::Together => {
                self.together = Some(Vec::new());
                String::new()
            }
            Line::Apply => {
                let commands = self.together.take().ok_or("nothing is together")?;
                self.entry(commands)
            }
            Line::Advance(ms) => {
                let applied = self.harness.advance(*ms);
                self.show(&[], &applied)
            }
            Line::Sleep(ms) => {
                self.harness.now_ms += ms;
                String::new()
            }
            Line::Lose { waiter, ago } => self.lose(waiter, *ago)?,
            Line::Settle => self.settle(),
            Line::NewTerm => {
                let applied = self.harness.new_term();
                self.show(&[], &applied)
            }
            Line::Reopen => {
                self.harness.reopen();
                String::new()
            }
            Line::Asks(what) => self.harness.request_line("asks", &[*what]).ok_or("a number")?,
            Line::Tried { times, not_before } => {
                self.harness.request_line("tried", &[*times, *not_before]).ok_or("numbers")?
            }
            Line::Recalled => self.harness.request_line("recalled", &[]).ok_or("nothing")?,
            Line::Crowd { name, count, ttl, wait, mode } => {
                let mode = mode_of(mode.as_deref());
                self.crowd(*count, *ttl, |id| acquire(id, name.clone(), *wait, mode))
            }
            Line::CrowdAll { locks, count, ttl, wait } => {
                self.crowd(*count, *ttl, |id| acquire_all(id, locks, *wait, None))
            }
            Line::Hoard { sessions, locks, ttl } => self.hoard(*sessions, *locks, *ttl),
            Line::Garbage => self.garbage(),
            Line::ReleaseAll(session) => self.release_all(*session),
            Line::Force { name, token } => self.force(name, *token),
            Line::Pretend { sessions, locks, waits } => self.pretend(*sessions, *locks, *waits),
            Line::Deadlock { times } => self.deadlock(*times),
            Line::Locks => self.locks(),
            Line::Sessions => self.sessions(),
            Line::Records => self.records(),
            Line::Events => std::mem::take(&mut self.events),
            Line::Counts => show_counts(&std::mem::take(&mut self.counts)),
            _ => return Err("a command has an operation".into()),
        })
    }
}

impl Runner {
    fn new() -> Self {
        Self {
            harness: Harness::new(1),
            together: None,
            waiters: BTreeMap::new(),
            counts: Counts::default(),
            watcher: Watcher::default(),
            events: String::new(),
        }
    }

    fn command(&mut self, command: Command) -> String {
        match &mut self.together {
            Some(commands) => {
                commands.push(command);
                String::new()
            }
            None => self.entry(vec![command]),
        }
    }

    fn lose(&mut self, waiter: &str, ago: u64) -> Result<String, Box<dyn Error>> {
        let called = self.waiters.iter().find(|(_, called)| *called == waiter);
        let (waiter, _) = called.ok_or("nobody waits so")?;
        let (slot, operation) = caller_lost(waiter, self.harness.machine.progress().index - ago);
        Ok(self.command(command(slot, 1, None, operation)))
    }

    fn entry(&mut self, commands: Vec<Command>) -> String {
        let is_due =
            Machine::next_due_ms(&self.harness.store).is_some_and(|due| due <= self.harness.now_ms);
        let remembers = commands.iter().any(|command| command.request_id.is_some());
        let before = (!is_due && !remembers).then(|| self.state_beside_progress());
        let applied = self.harness.apply(commands.clone());
        let is_refused = |outcome: &Outcome| matches!(outcome, Outcome::Answered(answer) if changes_nothing(answer));
        if applied.outcomes.iter().all(is_refused)
            && let Some(before) = before
        {
            assert!(self.state_beside_progress() == before, "a refused command changes nothing");
        }
        self.show(&commands, &applied)
    }

    fn show(&mut self, commands: &[Command], applied: &Applied) -> String {
        self.counts.add(&applied.counts);
        let mut text = String::new();
        for (command, outcome) in commands.iter().zip(&applied.outcomes) {
            match outcome {
                Outcome::Answered(answer) => {
                    writeln!(text, "{}", show(answer)).expect("text grows")
                }
                Outcome::Waiting(waiter) => {
                    let called =
                        self.waiters.entry(waiter.clone()).or_insert_with(|| waiter_name(command));
                    writeln!(text, "waits as {called}").expect("text grows");
                }
            }
        }
        text.push_str(&self.show_settled(applied));
        self.watch(applied);
        if !self.harness.pretends {
            let state = self.harness.lock_state();
            self.watcher.check(&state);
        }
        text
    }

    fn watch(&mut self, applied: &Applied) {
        self.watcher.see(applied);
        for (ordinal, event) in applied.events.iter().enumerate() {
            let Body::Lock(event) = &event.body;
            let shown = lock_watch::show(event);
            writeln!(self.events, "{}.{ordinal} {shown}", applied.index).expect("text grows");
        }
    }

    /// Each waiter that ended; many of them are counted by their answer.
    fn show_settled(&self, applied: &Applied) -> String {
        if applied.settled.len() > SHOWN_MAX {
            let mut counts = BTreeMap::<_, usize>::new();
            for settled in &applied.settled {
                *counts.entry(show(&settled.answer)).or_default() += 1;
            }
            return counts
                .iter()
                .map(|(answer, count)| format!("settled {count} waiters: {answer}\n"))
                .collect();
        }
        let line = |settled: &Settled| {
            let called =
                self.waiters.get(&settled.waiter).map_or("what nobody waits for", String::as_str);
            format!("settled {called}: {}\n", show(&settled.answer))
        };
        applied.settled.iter().map(line).collect()
    }

    fn settle(&mut self) -> String {
        let (mut entries, mut text) = (0, String::new());
        while Machine::next_due_ms(&self.harness.store)
            .is_some_and(|due| due <= self.harness.now_ms)
        {
            let applied = self.harness.apply(Vec::new());
            text.push_str(&self.show(&[], &applied));
            entries += 1;
            assert!(entries < 1_000, "what is due comes to an end");
        }
        format!("{text}nothing is due after {entries} entries\n")
    }

    fn last_of(&mut self, commands: Vec<Command>) -> String {
        let text = self.entry(commands);
        text.lines().last().map_or_else(String::new, |line| format!("... {line}\n"))
    }

    fn force(&mut self, name: &str, fencing_token: u64) -> String {
        let (mut token, mut text) = (0, String::new());
        loop {
            let (namespace, name) = ("default".to_owned(), name.to_owned());
            let step = ForceStep { namespace, name, fencing_token, token };
            let command = in_slot(Operation::ForceStep(step), None);
            let applied = self.harness.apply(vec![command.clone()]);
            text.push_str(&self.show(&[command], &applied));
            match &applied.outcomes[0] {
                Outcome::Answered(Answer { answer: Some(answer::Answer::ForcedStep(step)) })
                    if step.more =>
                {
                    token = step.token;
                }
                _ => return text,
            }
        }
    }

    fn release_all(&mut self, session_id: u64) -> String {
        let (mut after, mut up_to_token, mut text) = (String::new(), 0, String::new());
        loop {
            let namespace = "default".to_owned();
            let release = ReleaseHeld { namespace, session_id, after, up_to_token };
            let command = in_slot(Operation::ReleaseHeld(release), None);
            let applied = self.harness.apply(vec![command.clone()]);
            text.push_str(&self.show(&[command], &applied));
            let Outcome::Answered(Answer { answer: Some(answer::Answer::ReleasedHeld(released)) }) =
                &applied.outcomes[0]
            else {
                return text;
            };
            (after, up_to_token) = (released.after.clone(), released.up_to_token);
            if after.is_empty() {
                return text;
            }
        }
    }

    fn deadlock(&mut self, times: u64) -> String {
        let exclusive = |session, name: &str, wait| {
            in_slot(acquire(session, name.to_owned(), wait, LockMode::Exclusive), None)
        };
        let mut commands =
            vec![exclusive(1, "x", 0), exclusive(2, "y", 0), exclusive(1, "y", 50_000)];
        commands.extend((0..times).map(|_| exclusive(2, "x", 1)));
        self.last_of(commands)
    }

    fn ask(&mut self, query: Q) -> String {
        match self.harness.query(slot::of_locks("default"), 1, query).1 {
            QueryOutcome::Answered(answer) => operator::show(&answer),
            other => panic!("an operator waits for {other:?}"),
        }
    }

    fn hoard(&mut self, sessions: u64, locks: u64, ttl: u64) -> String {
        let mut commands = (0..sessions).map(|_| in_slot(open(ttl), None)).collect::<Vec<_>>();
        let acquire = |n| {
            let name = format!("hoard-{n}");
            in_slot(acquire(1 + n % sessions, name, 0, LockMode::Exclusive), None)
        };
        commands.extend((0..sessions * locks).map(acquire));
        self.last_of(commands)
    }

    fn crowd(&mut self, count: u64, ttl: u64, acquire: impl Fn(u64) -> Operation) -> String {
        let first = self.harness.apply(vec![in_slot(open(ttl), None)]);
        let Some(Outcome::Answered(Answer { answer: Some(answer::Answer::OpenSession(opened)) })) =
            first.outcomes.first()
        else {
            panic!("a session opens");
        };
        let ids = opened.session_id..opened.session_id + count;
        let mut commands = (1..count).map(|_| in_slot(open(ttl), None)).collect::<Vec<_>>();
        commands.extend(ids.map(|id| in_slot(acquire(id), None)));
        self.last_of(commands)
    }

    /// Content that only a faulty or newer node could have proposed is answered like any other.
    fn garbage(&mut self) -> String {
        let long = "x".repeat(300);
        let mut commands = Vec::new();
        for (namespace, name) in
            [("", "a"), (&long[..], "a"), ("default", ""), ("default", &long[..])]
        {
            let (namespace, name) = (namespace.to_owned(), name.to_owned());
            let acquire = api::AcquireRequest {
                namespace: namespace.clone(),
                session_id: 1,
                name,
                ..Default::default()
            };
            let slot = slot::of_locks("default");
            commands.push(command(slot, 1, None, Operation::Acquire(acquire.clone())));
            let unknown = api::AcquireRequest { mode: 9, ..acquire.clone() };
            commands.push(command(slot, 1, None, Operation::Acquire(unknown)));
            let convert = api::ConvertRequest {
                namespace: acquire.namespace.clone(),
                session_id: 1,
                name: acquire.name.clone(),
                ..Default::default()
            };
            commands.push(command(slot, 1, None, Operation::Convert(convert)));
            let release = api::ReleaseRequest {
                namespace,
                session_id: 1,
                name: acquire.name,
                ..Default::default()
            };
            commands.push(command(slot, 1, None, Operation::Release(release)));
        }
        let open_request = |namespace: &str, ttl_ms| {
            let namespace = namespace.to_owned();
            Operation::OpenSession(api::OpenSessionRequest {
                namespace,
                ttl_ms,
                ..Default::default()
            })
        };
        let elsewhere = (slot::of_locks("default") + 1) % slot::SLOTS;
        commands.push(command(elsewhere, 1, None, open_request("default", 1_000)));
        commands.push(command(slot::SYSTEM_SLOT, 1, None, open_request("default", 1_000)));
        for id in ["", "/1", "c/0", "c/1/2", &format!("{long}/1")] {
            commands.push(in_slot(open(1_000), Some(request_id(id))));
        }
        commands.extend(unnamed());
        let mut nothing = in_slot(open(1_000), None);
        nothing.operation = None;
        commands.push(nothing);
        commands.push(in_slot(Operation::KeepAlive(api::KeepAliveRequest::default()), None));
        let before = self.state_beside_progress();
        let text = self.entry(commands);
        assert!(self.state_beside_progress() == before, "a refused command changes nothing");
        text
    }

    fn pretend(&mut self, sessions: u64, locks: u64, waits: u64) -> String {
        self.harness.pretends = true;
        let key =
            Bytes::from(Key::new(slot::of_locks("default"), Kind::LockNamespace).tail(b"default"));
        let mut counters = self.harness.lock_state().namespaces["default"];
        (counters.sessions, counters.locks, counters.waits) = (sessions, locks, waits);
        self.harness.store.records.insert(key, counters.encode_to_vec().into());
        String::new()
    }

    fn locks(&self) -> String {
        let state = self.harness.lock_state();
        let mut text = String::new();
        for ((namespace, name), lock) in &state.locks {
            let place = (namespace.clone(), name.clone(), 0);
            let of_lock = state.waiters.range(place.clone()..);
            let waiters =
                of_lock.take_while(|((of, other, _), _)| (of, other) == (namespace, name));
            let waiters =
                waiters.map(|(_, waiter)| format!(" {}", waiter.session_id)).collect::<Vec<_>>();
            let shown = if waiters.len() > SHOWN_MAX {
                format!(" {} sessions", waiters.len())
            } else {
                waiters.concat()
            };
            let mut holders = Vec::new();
            if lock.session_id > 0 {
                let mode = if lock.mode() == LockMode::Update { " to update" } else { "" };
                holders
                    .push(format!("session {} with token {}{mode}", lock.session_id, lock.token));
            }
            if lock.shared > 0 {
                let shared = state.holders.range(place..);
                let shared =
                    shared.take_while(|((of, other, _), _)| (of, other) == (namespace, name));
                let shared =
                    shared.map(|((.., token), holder)| format!("{}/{token}", holder.session_id));
                let shared = shared.take(SHOWN_MAX).collect::<Vec<_>>().join(" ");
                holders.push(format!("shared by {} ({shared})", lock.shared));
            }
            let delays = [
                (lock.shared_delay_until_ms, " for writers"),
                (lock.update_delay_until_ms, " for updaters and writers"),
                (lock.exclusive_delay_until_ms, ""),
            ];
            for (until_ms, whom) in delays.into_iter().filter(|(until_ms, _)| *until_ms > 0) {
                holders.push(format!("delayed until {until_ms}{whom}"));
            }
            let holder = if holders.is_empty() { "free".to_owned() } else { holders.join(", ") };
            writeln!(
                text,
                "{name}: {holder}, waiting:{}",
                if shown.is_empty() { " none" } else { &shown }
            )
            .expect("text grows");
        }
        if text.is_empty() { "no locks\n".to_owned() } else { text }
    }

    fn sessions(&self) -> String {
        let state = self.harness.lock_state();
        let show = |((_, id), session): (&(String, u64), &trefoil_proto::internal::v1::Session)| {
            let ended = if session.ended { ", ended" } else { "" };
            let age = self.harness.now_ms - session.renewed_at_ms;
            format!(
                "{id}: renewed {age} ms ago, claims {} locks, holds {}{ended}\n",
                session.claims, session.held
            )
        };
        let text = state.sessions.iter().map(show).collect::<String>();
        if text.is_empty() { "no sessions\n".to_owned() } else { text }
    }

    /// How many records there are of each kind.
    fn records(&self) -> String {
        let state = self.harness.lock_state();
        let counts = [
            ("namespaces", state.namespaces.len()),
            ("sessions", state.sessions.len()),
            ("metadata", state.metadata.len()),
            ("locks", state.locks.len()),
            ("holders", state.holders.len()),
            ("waiters", state.waiters.len()),
            ("waits", state.waits.len()),
            ("claims", state.claims.len()),
            ("proclaimed", state.proclaimed.len()),
            ("deadlocks", state.deadlocks.len()),
            ("timers", state.timers.len()),
            ("clients", state.clients.len()),
            ("answers", state.answers.len()),
        ];
        show_records(&counts)
    }

    fn state_beside_progress(&self) -> BTreeMap<Bytes, Bytes> {
        let progress = Bytes::from(Key::system(Kind::Progress));
        let mut records = self.harness.store.records.clone();
        records.remove(&progress);
        records
    }
}

/// Cancels and an Acquire that do not say which call they are.
fn unnamed() -> Vec<Command> {
    let long = "x".repeat(300);
    let calls = [
        None,
        Some(call_name(Some(&format!("{long}/1")), "")),
        Some(CallName { drawn: Bytes::from_static(b"short"), ..CallName::default() }),
    ];
    let cancel = |call| CancelAcquire {
        namespace: "default".to_owned(),
        session_id: 1,
        name: "a".to_owned(),
        call,
        ..CancelAcquire::default()
    };
    let cancels = calls.map(|call| in_slot(Operation::CancelAcquire(cancel(call)), None));
    let acquire = in_slot(acquire(1, "a".to_owned(), 0, LockMode::Exclusive), None);
    cancels.into_iter().chain([Command { drawn: Bytes::new(), ..acquire }]).collect()
}

fn waiter_name(command: &Command) -> String {
    let (session_id, name, how) = match &command.operation {
        Some(Operation::Acquire(request)) if !request.locks.is_empty() => {
            let names = request.locks.iter().map(|wish| wish.name.as_str()).collect::<Vec<_>>();
            (request.session_id, names.join("+"), "for")
        }
        Some(Operation::Acquire(request)) => (request.session_id, request.name.clone(), "for"),
        Some(Operation::Campaign(request)) => (request.session_id, request.name.clone(), "for"),
        Some(Operation::Convert(request)) => {
            (request.session_id, request.name.clone(), "to convert")
        }
        _ => panic!("only an acquire, a campaign or a convert waits"),
    };
    let id = command.request_id.as_ref().map(|id| format!(" {}/{}", id.client, id.sequence));
    format!("{session_id} {how} {name}{}", id.unwrap_or_default())
}

/// A refusal of which nothing is kept.
fn changes_nothing(answer: &Answer) -> bool {
    matches!(&answer.answer, Some(answer::Answer::Refusal(refusal)) if refusal.reason() != Reason::Deadlock)
}

fn show(answer: &Answer) -> String {
    use answer::Answer as A;
    match &answer.answer {
        Some(A::OpenSession(opened)) => format!("session {}", opened.session_id),
        Some(A::KeepAlive(alive)) => format!("alive for {} ms", alive.remaining_ms),
        Some(A::CloseSession(closed)) => format!("closed, released {}", closed.released),
        Some(A::Acquire(acquire)) if !acquire.locks.is_empty() => {
            let lock = |of: &api::LockGrant| {
                format!(" {}{} {}", of.name, operator::weak(of.mode()), of.fencing_token)
            };
            format!("acquired all:{}", acquire.locks.iter().map(lock).collect::<String>())
        }
        Some(A::Acquire(acquire)) if acquire.acquired => {
            format!("acquired{}, token {}", operator::weak(acquire.mode()), acquire.fencing_token)
        }
        Some(A::Convert(convert)) if convert.converted => {
            format!("converted{}, token {}", operator::mode(convert.mode()), convert.fencing_token)
        }
        Some(A::Convert(convert)) => {
            format!("not converted, held with token {}", convert.holder_token)
        }
        Some(A::ForcedStep(step)) => {
            format!("forced {} to release, token {}", step.released, step.token)
        }
        Some(A::ReleasedHeld(released)) => format!("released {}", released.released),
        Some(A::Acquire(acquire)) if acquire.holder_token == 0 => {
            "not acquired, no holder".to_owned()
        }
        Some(A::Acquire(acquire)) => {
            let held = if acquire.held_lock.is_empty() { "" } else { ": " };
            let held = format!("{held}{}", acquire.held_lock);
            format!("not acquired, held with token {}{held}", acquire.holder_token)
        }
        Some(A::Release(_)) => "released".to_owned(),
        Some(A::Proclaim(_)) => "proclaimed".to_owned(),
        Some(A::Done(_)) => "done".to_owned(),
        Some(A::RequestRelease(asked)) => format!("asked {}", asked.asked),
        _ => show_answer(answer),
    }
}

fn show_counts(counts: &Counts) -> String {
    format!(
        "acquired {}, converted {}, released {}, blocked {}, expired {}, waited {} ms, held {} ms{}{}{}\n",
        counts.locks_acquired,
        counts.locks_converted,
        counts.locks_released,
        counts.locks_blocked,
        counts.sessions_expired,
        counts.lock_waits.sum_ms,
        counts.lock_holds.sum_ms,
        match counts.lock_timeouts {
            0 => String::new(),
            timeouts => format!(", timeouts {timeouts}"),
        },
        match counts.leaders_elected {
            0 => String::new(),
            leaders => format!(", leaders {leaders}"),
        },
        match (counts.deadlocks, counts.deadlock_searches_cut) {
            (0, 0) => String::new(),
            (found, cut) => format!(", deadlocks {found}, searches cut {cut}"),
        }
    )
}
