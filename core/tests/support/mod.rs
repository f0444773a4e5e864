//! A machine on a store in memory, for golden scripts and property tests of the services.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::fmt::Write as _;

use prost::Message as _;
use trefoil_core::machine::{Applied, Machine, Outcome, QueryOutcome};
use trefoil_core::slot::MAP_EPOCH;
use trefoil_core::store::MemoryStore;
use trefoil_core::{BIRTH_TERM, CallId, MACHINE_VERSION, ShardId};
use trefoil_proto::common::v1::{Fence, RequestId};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    Answer, CheckedFence, Command, Entry, Query, TokenStanding, answer, query,
};

/// One shard of a cluster with one data shard.
#[derive(Debug)]
pub struct Harness {
    pub machine: Machine,
    pub store: MemoryStore,
    pub term: u64,
    pub now_ms: u64,
    calls: CallId,
}

impl Harness {
    /// A newborn shard whose first term has begun and outlived its grace. `shard` 1 holds every slot, 0 is the meta shard.
    pub fn new(shard: ShardId) -> Self {
        let mut store = MemoryStore::default();
        Machine::bootstrap(&mut store);
        let machine = Machine::open(&store, shard, 1);
        let mut harness = Self { machine, store, term: BIRTH_TERM, now_ms: 0, calls: 0 };
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
    pub fn apply(&mut self, commands: Vec<Command>) -> Applied {
        let entry = Entry {
            log_time_ms: self.now_ms,
            wall_ms: 0,
            term: self.term,
            machine_version: MACHINE_VERSION,
            commands,
        };
        let index = self.machine.progress().index + 1;
        self.machine.apply(&mut self.store, index, self.term, &entry.encode_to_vec())
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

/// A command for a slot.
pub fn command(
    slot: u16,
    agent: u64,
    request_id: Option<RequestId>,
    operation: Operation,
) -> Command {
    Command {
        request_id,
        slot: slot.into(),
        map_epoch: MAP_EPOCH,
        agent,
        operation: Some(operation),
        fence: None,
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
