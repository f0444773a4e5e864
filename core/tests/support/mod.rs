//! A machine on a store in memory, for golden scripts and property tests of the services.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use bytes::Bytes;
use prost::Message as _;
use trefoil_core::machine::invariants::LockState;
use trefoil_core::machine::{Applied, Machine, Outcome, QueryOutcome};
use trefoil_core::slot::MAP_EPOCH;
use trefoil_core::store::MemoryStore;
use trefoil_core::{BIRTH_TERM, CallId, DRAWN_BYTES, MACHINE_VERSION, Position, ShardId};
use trefoil_proto::common::v1::{Fence, RequestId};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    Answer, CallName, CheckedFence, Command, Drawn, Entry, Query, TokenStanding, answer, query,
};

/// Wall clock at log time 0.
pub const WALL_MS: u64 = 1_750_000_000_000;

/// Records of a state that is looked at after each entry.
const RECORDS_CHECKED_MAX: usize = 500;

/// One shard of a cluster with one data shard.
#[derive(Debug)]
pub struct Harness {
    pub machine: Machine,
    pub store: MemoryStore,
    pub term: u64,
    pub now_ms: u64,
    /// What the client asks for from now on under its request ids.
    pub asks: u64,
    /// Tries that its node made before, and what that had applied before the first of them.
    pub tried: (u32, u64),
    /// Answers of the last entry that were remembered ones.
    pub recalled: Vec<(u32, Position)>,
    /// Counters were set to what there is not.
    pub pretends: bool,
    calls: CallId,
    /// Which shard it is, of how many.
    place: (ShardId, u32),
    /// The newest session of each namespace: what is drawn for them counts, so that tests can name them.
    sessions: BTreeMap<String, u64>,
    /// Request ids under which sessions were opened.
    opens: BTreeSet<(String, u64)>,
}

impl Harness {
    /// A newborn shard whose first term has begun and outlived its grace. `shard` 1 holds every slot, 0 is the meta shard.
    pub fn new(shard: ShardId) -> Self {
        Self::forgetful(shard, 0)
    }

    /// One that forgets idle request clients after so many ms.
    pub fn forgetful(shard: ShardId, idle_ms: u64) -> Self {
        let mut store = MemoryStore::default();
        Machine::bootstrap_forgetful(&mut store, idle_ms);
        let mut machine = Machine::open(&store, shard, 1);
        machine.lead(true);
        let (term, now_ms, calls) = (BIRTH_TERM, 0, 0);
        let (asks, tried, recalled) = (0, (0, 0), Vec::new());
        let (sessions, opens) = (BTreeMap::new(), BTreeSet::new());
        let mut harness = Self {
            place: (shard, 1),
            machine,
            store,
            term,
            now_ms,
            asks,
            tried,
            recalled,
            pretends: false,
            calls,
            sessions,
            opens,
        };
        harness.new_term();
        harness.advance(10_000);
        harness
    }

    /// Another leader begins: its empty entry, then one that stamps the term's start.
    pub fn new_term(&mut self) -> Applied {
        self.term += 1;
        let index = self.machine.progress().index + 1;
        self.machine.apply(&mut self.store, index, self.term, &[]);
        self.apply(Vec::new())
    }

    /// Applies one entry with these commands at the present log time.
    pub fn apply(&mut self, mut commands: Vec<Command>) -> Applied {
        let opened = self.draw(&mut commands);
        let applied = self.apply_as_it_is(commands);
        for (outcome, opened) in applied.outcomes.iter().zip(opened) {
            if let (Outcome::Answered(Answer { answer: Some(answer) }), Some(namespace)) =
                (outcome, opened)
                && let answer::Answer::OpenSession(opened) = answer
            {
                let newest = self.sessions.entry(namespace).or_default();
                *newest = opened.session_id.max(*newest);
            }
        }
        applied
    }

    /// The same without chance where the commands have none.
    pub fn apply_as_it_is(&mut self, mut commands: Vec<Command>) -> Applied {
        for command in commands.iter_mut().filter(|command| command.request_id.is_some()) {
            command.fingerprint = self.asks;
            (command.node_attempt, command.not_before_ms) = self.tried;
        }
        let index = self.machine.progress().index + 1;
        let entry = Entry {
            log_time_ms: self.now_ms,
            wall_ms: WALL_MS + self.now_ms,
            term: self.term,
            machine_version: MACHINE_VERSION,
            commands,
            digest_point: false,
        };
        let applied = self.machine.apply(&mut self.store, index, self.term, &entry.encode_to_vec());
        self.recalled.clone_from(&applied.recalled);
        // Looking at a large state after each entry would take the time of all tests.
        let is_small = self.store.records.len() <= RECORDS_CHECKED_MAX;
        if !self.pretends && (is_small || index.is_multiple_of(64)) {
            assert_eq!(self.machine.check(&self.store), Ok(()));
        }
        applied
    }

    /// Starts again from what it has stored. Every second time it keeps no request window longer than for an entry.
    pub fn reopen(&mut self) {
        self.open(self.place.0, self.place.1);
    }

    /// The same as that shard of so many.
    pub fn open(&mut self, shard: ShardId, shards: u32) {
        self.place = (shard, shards);
        self.machine.freeze(&mut self.store);
        let is_small = self.machine.progress().index.is_multiple_of(2);
        self.machine = Machine::open(&self.store, shard, shards);
        self.machine.lead(true);
        if is_small {
            self.machine.limit_windows(0);
        }
    }

    /// What there is of locks.
    pub fn lock_state(&self) -> LockState {
        LockState::of(&self.machine.records(&self.store))
    }

    /// Hash of the whole state.
    pub fn digest(&self) -> u64 {
        self.machine.digest(&self.store)
    }

    /// A line of a script about request ids: `asks N`, `tried TIMES NOT_BEFORE_MS`, or `recalled`.
    pub fn request_line(&mut self, name: &str, numbers: &[u64]) -> Option<String> {
        match (name, numbers) {
            ("asks", [asks]) => self.asks = *asks,
            ("tried", [times, not_before_ms]) => {
                self.tried = (u32::try_from(*times).expect("a few tries"), *not_before_ms);
            }
            ("recalled", []) => {
                let places = self.recalled.iter().map(|(ordinal, first)| {
                    let Position { term, index, ordinal: of, log_time_ms } = first;
                    let of = if *of == u32::MAX { "end".to_owned() } else { of.to_string() };
                    format!("command {ordinal} at {index}.{of} of term {term}, {log_time_ms} ms\n")
                });
                return Some(places.collect());
            }
            _ => return None,
        }
        Some(String::new())
    }

    /// Draws what the commands need, as a node does, and says for which namespaces they open sessions.
    fn draw(&mut self, commands: &mut [Command]) -> Vec<Option<String>> {
        let index = self.machine.progress().index + 1;
        let known = &mut self.opens;
        let mut newest = self.sessions.clone();
        let draw = |command: &mut Command| {
            let operation = command.operation.as_ref().filter(|_| command.chance.is_none())?;
            if !operation.draws_chance() {
                return None;
            }
            let Operation::OpenSession(open) = operation else {
                command.chance = Some(Drawn { high: 1, low: index });
                return None;
            };
            let newest = newest.entry(open.namespace.clone()).or_default();
            let low = *newest + 1;
            // A retry opens none.
            let id = command.request_id.as_ref().map(|id| (id.client.clone(), id.sequence));
            if id.is_none_or(|id| known.insert(id)) {
                *newest = low;
            }
            let namespace = open.namespace.clone();
            command.chance = Some(Drawn { high: 0, low });
            Some(namespace)
        };
        commands.iter_mut().map(draw).collect()
    }

    /// Moves log time and lets timers fire.
    pub fn advance(&mut self, ms: u64) -> Applied {
        self.now_ms += ms;
        self.apply(Vec::new())
    }

    /// Asks at the present log time.
    pub fn query(&mut self, slot: u16, agent: u64, query: query::Query) -> (CallId, QueryOutcome) {
        self.fenced_query(slot, agent, query, None)
    }

    /// Asks under a fence.
    pub fn fenced_query(
        &mut self,
        slot: u16,
        agent: u64,
        query: query::Query,
        fence: Option<CheckedFence>,
    ) -> (CallId, QueryOutcome) {
        self.calls += 1;
        let (slot, query) = (slot.into(), Some(query));
        let query = Query { slot, map_epoch: MAP_EPOCH, agent, query, fence };
        (self.calls, self.machine.query(&self.store, self.calls, &query, self.now_ms))
    }
}

/// What a node would have drawn for a call without request id: something else for each text.
pub fn drawn(text: &str) -> Bytes {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    let mut bytes = [0; DRAWN_BYTES];
    bytes[..8].copy_from_slice(&hasher.finish().to_be_bytes());
    Bytes::copy_from_slice(&bytes)
}

/// The name of a call: a request id, what was drawn where that is written as `drawn/text`, or what was drawn for the call that is
/// described where nothing is written.
pub fn call_name(id: Option<&str>, call: &str) -> CallName {
    match id {
        Some(id) if !id.starts_with("drawn/") => {
            CallName { request_id: Some(request_id(id)), ..CallName::default() }
        }
        id => CallName { drawn: drawn(id.unwrap_or(call)), ..CallName::default() },
    }
}

/// How a call is described that waits or acquires: each of its session for the same locks is the same call where nothing
/// else was drawn for it.
fn describe(operation: &Operation) -> Option<String> {
    Some(match operation {
        Operation::Acquire(r) if !r.locks.is_empty() => {
            let names = r.locks.iter().map(|wish| wish.name.as_str()).collect::<Vec<_>>();
            format!("{} {}", r.session_id, names.join(" "))
        }
        Operation::Acquire(r) => format!("{} {}", r.session_id, r.name),
        Operation::Campaign(r) => format!("{} campaigns {}", r.session_id, r.name),
        Operation::AcquirePermits(r) => format!("{} {}", r.session_id, r.name),
        Operation::EnterBarrier(r) => format!("{} {}", r.session_id, r.name),
        Operation::Convert(r) => format!("{} converts {}", r.session_id, r.name),
        _ => return None,
    })
}

/// A command for a slot.
pub fn command(
    slot: u16,
    agent: u64,
    request_id: Option<RequestId>,
    operation: Operation,
) -> Command {
    let drawn = match (&request_id, describe(&operation)) {
        (None, Some(call)) => drawn(&call),
        _ => Bytes::new(),
    };
    Command {
        request_id,
        drawn,
        slot: slot.into(),
        map_epoch: MAP_EPOCH,
        agent,
        operation: Some(operation),
        ..Command::default()
    }
}

thread_local! {
    /// Tokens of pages that were shown, by the item that they end with: scripts name them by that.
    static TOKENS: RefCell<BTreeMap<String, String>> = RefCell::default();
}

/// How a script shows a token of a page.
pub fn shown_token(token: &str) -> String {
    let last = token.get(16..).unwrap_or_default().to_owned();
    TOKENS.with_borrow_mut(|tokens| tokens.insert(last.clone(), token.to_owned()));
    last
}

/// The token that a script means.
pub fn given_token(last: &str) -> String {
    TOKENS.with_borrow(|tokens| tokens.get(last).cloned()).unwrap_or_else(|| last.to_owned())
}

/// A command of node 1 by the id that a script writes, see [`call_name`].
pub fn called(slot: u16, id: Option<&str>, operation: Operation) -> Command {
    match id {
        Some(id) if id.starts_with("drawn/") => {
            Command { drawn: drawn(id), ..command(slot, 1, None, operation) }
        }
        id => command(slot, 1, id.map(request_id), operation),
    }
}

/// A fence written as `lock/token`, with `/writer`, `/reader` or `/lost` where the lock's shard was asked, and `/index`
/// when that was.
pub fn checked_fence(text: &str) -> CheckedFence {
    let mut parts = text.split('/');
    let lock = parts.next().expect("a lock").to_owned();
    let token = parts.next().expect("a token").parse().expect("a number");
    let standing = match parts.next() {
        None => TokenStanding::Unspecified,
        Some("writer") => TokenStanding::Writer,
        Some("reader") => TokenStanding::Reader,
        Some("lost") => TokenStanding::NotHeld,
        Some(other) => panic!("{other} is no standing"),
    };
    let as_of = parts.next().map_or(0, |index| index.parse().expect("an index"));
    let fence = Fence { namespace: "default".to_owned(), lock, token };
    CheckedFence { fence: Some(fence), standing: standing.into(), as_of, holder_token: 0 }
}

/// A request id written as `client/sequence`, `client/sequence/first_unacknowledged` or with `/attempt` after that.
pub fn request_id(text: &str) -> RequestId {
    let mut parts = text.split('/');
    let client = parts.next().expect("a client").to_owned();
    let mut number = || parts.next().map_or(0, |part| part.parse().expect("a number"));
    let (sequence, first_unacknowledged) = (number(), number());
    RequestId {
        client,
        sequence,
        first_unacknowledged,
        attempt: u32::try_from(number()).expect("an attempt"),
    }
}

/// All that an entry said, one line each, with nothing for what did not happen.
pub fn show(applied: &Applied) -> String {
    let mut text = String::new();
    for outcome in &applied.outcomes {
        match outcome {
            Outcome::Answered(answer) => writeln!(text, "{}", show_answer(answer)),
            Outcome::Waiting(_) => writeln!(text, "waits"),
        }
        .expect("text grows");
    }
    for settled in &applied.settled {
        writeln!(text, "settled {}", show_answer(&settled.answer)).expect("text grows");
    }
    for (call, answer) in &applied.polls {
        writeln!(text, "poll {call} {}", show_answer(answer)).expect("text grows");
    }
    text
}

/// How many records there are of each kind that there is.
pub fn show_records(counts: &[(&str, usize)]) -> String {
    let lines = counts.iter().filter(|(_, count)| *count > 0);
    lines.map(|(kind, count)| format!("{kind}: {count}\n")).collect()
}

/// One answer in one line: its debug form without defaults' noise.
pub fn show_answer(answer: &Answer) -> String {
    match &answer.answer {
        Some(answer::Answer::Refusal(refusal)) => {
            let facts = refusal
                .metadata
                .iter()
                .map(|(key, value)| format!(" {key}={value}"))
                .collect::<String>();
            format!("refused {}: {}{facts}", refusal.reason().name(), refusal.message)
        }
        Some(other) => format!("{other:?}").replace("header: None, ", ""),
        None => "nothing".to_owned(),
    }
}
