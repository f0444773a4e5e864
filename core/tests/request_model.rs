//! Random tries of requests against what they may do: one effect for each request id, however often it is tried and
//! whatever was forgotten meanwhile, and the first answer again wherever that is still kept.

mod support;

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;

use proptest::prelude::*;
use proptest::strategy::ValueTree as _;
use support::{Harness, command};
use trefoil_core::Position;
use trefoil_core::machine::Outcome;
use trefoil_core::slot::of_cache;
use trefoil_proto::cache::v1::PutRequest;
use trefoil_proto::common::v1::{Reason, RequestId, Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, Command, answer};

/// Log time after which an idle client is forgotten here.
const IDLE_MS: u64 = 1_000;

/// Sequences that a client uses before it is unknown.
const SEQUENCES: u64 = 6;

/// Client and sequence.
type Id = (u8, u64);

#[derive(Clone, Debug)]
enum Step {
    /// A client asks for something, possibly for another thing under an id that it has used.
    Ask {
        id: Id,
        asks: u64,
        floor: u64,
    },
    /// The same, and the first try is lost on its way.
    Lose {
        id: Id,
        asks: u64,
    },
    /// It asks again, without knowing what became of its tries.
    AskAgain {
        id: Id,
        floor: u64,
    },
    /// The node that it spoke to tries again. It knew of something so long before its first try.
    TryAgain {
        id: Id,
        earlier_ms: u64,
    },
    Advance(u64),
    NewTerm,
    Reopen,
}

fn step() -> impl Strategy<Value = Step> {
    let id = || (0..3_u8, 1..SEQUENCES);
    let floor = || prop_oneof![4 => Just(0), 1 => 0..6_u64];
    let earlier = prop_oneof![2 => Just(0), 1 => 0..2 * IDLE_MS];
    prop_oneof![
        8 => (id(), 1..4_u64, floor()).prop_map(|(id, asks, floor)| Step::Ask { id, asks, floor }),
        4 => (id(), 1..4_u64).prop_map(|(id, asks)| Step::Lose { id, asks }),
        6 => (id(), floor()).prop_map(|(id, floor)| Step::AskAgain { id, floor }),
        6 => (id(), earlier).prop_map(|(id, earlier_ms)| Step::TryAgain { id, earlier_ms }),
        5 => (0..IDLE_MS / 2).prop_map(Step::Advance),
        2 => (0..3 * IDLE_MS).prop_map(Step::Advance),
        1 => Just(Step::NewTerm),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Clone, Debug)]
struct Kept {
    asks: u64,
    answer: Answer,
    at: Position,
}

#[derive(Clone, Debug, Default)]
struct Client {
    seen_at_ms: u64,
    floor: u64,
    /// By which sequence it became known, and who had been forgotten by then.
    first: u64,
    known_from_ms: u64,
    kept: BTreeMap<u64, Kept>,
}

#[derive(Debug)]
struct World {
    harness: Harness,
    /// What is asked for under an id, and what had been applied before the first try of that.
    asked: BTreeMap<Id, u64>,
    since_ms: BTreeMap<(Id, u64), u64>,
    /// What had an effect.
    effects: BTreeMap<(Id, u64), Position>,
    clients: BTreeMap<u8, Client>,
    /// Above which the sequences of each client are by now.
    base: BTreeMap<u8, u64>,
    known_from_ms: u64,
    /// Answers that were given again, other operations that were refused, retries that were executed, and forgotten.
    seen: [u64; 4],
}

impl World {
    fn new() -> Self {
        let harness = Harness::forgetful(1, IDLE_MS);
        Self {
            harness,
            asked: BTreeMap::new(),
            since_ms: BTreeMap::new(),
            effects: BTreeMap::new(),
            clients: BTreeMap::new(),
            base: BTreeMap::new(),
            known_from_ms: 0,
            seen: [0; 4],
        }
    }

    /// Sequences and floors as they are sent: those since the client was unknown, or those before.
    fn numbered(&self, (name, sequence): Id, floor: u64, before: bool) -> (Id, u64) {
        let base = self.base.get(&name).copied().unwrap_or_default();
        let base = if before { base.saturating_sub(SEQUENCES) } else { base };
        ((name, base + sequence), if floor > 0 { base + floor } else { 0 })
    }

    fn step(&mut self, step: &Step) {
        match *step {
            Step::Ask { id, asks, floor } => {
                // Who comes back after a while goes on with higher sequences.
                if !self.clients.contains_key(&id.0) {
                    *self.base.entry(id.0).or_default() += SEQUENCES;
                }
                let (id, floor) = self.numbered(id, floor, false);
                self.asked.insert(id, asks);
                // A client that has asked for this before knows that it does so again.
                let is_again = self.since_ms.contains_key(&(id, asks));
                self.since_ms.entry((id, asks)).or_insert(self.harness.now_ms);
                self.send(id, asks, floor, u32::from(is_again), (0, 0));
            }
            Step::Lose { id, asks } => {
                let (id, _) = self.numbered(id, 0, false);
                if let Entry::Vacant(unasked) = self.asked.entry(id) {
                    unasked.insert(asks);
                    self.since_ms.insert((id, asks), self.harness.now_ms);
                }
            }
            Step::AskAgain { id, floor } => {
                let (id, floor) = self.numbered(id, floor, id.1 % 2 == 1);
                if let Some(&asks) = self.asked.get(&id) {
                    self.send(id, asks, floor, 1, (0, 0));
                }
            }
            Step::TryAgain { id, earlier_ms } => {
                let (id, _) = self.numbered(id, 0, earlier_ms % 2 == 1);
                if let Some(&asks) = self.asked.get(&id) {
                    let not_before_ms = self.since_ms[&(id, asks)].saturating_sub(earlier_ms);
                    self.send(id, asks, 0, 0, (1, not_before_ms));
                }
            }
            Step::Advance(ms) => {
                self.harness.now_ms += ms;
                self.forget();
                self.harness.apply(Vec::new());
            }
            Step::NewTerm => {
                self.harness.new_term();
            }
            Step::Reopen => self.harness.reopen(),
        }
    }

    fn forget(&mut self) {
        let now_ms = self.harness.now_ms;
        let known_from_ms = &mut self.known_from_ms;
        self.clients.retain(|_, client| {
            let stays = client.seen_at_ms + IDLE_MS > now_ms;
            if !stays {
                *known_from_ms = (*known_from_ms).max(client.seen_at_ms + 1);
            }
            stays
        });
    }

    fn send(&mut self, id: Id, asks: u64, floor: u64, attempt: u32, tried: (u32, u64)) {
        let (client, sequence) = id;
        let request_id = RequestId {
            client: format!("client-{client}"),
            sequence,
            first_unacknowledged: floor.min(sequence),
            attempt,
        };
        (self.harness.asks, self.harness.tried) = (asks, tried);
        let applied = self.harness.apply(vec![put(request_id.clone())]);
        let [Outcome::Answered(answer)] = &applied.outcomes[..] else { panic!("{applied:?}") };
        let here = Position {
            term: applied.term,
            index: applied.index,
            ordinal: 0,
            log_time_ms: applied.log_time_ms,
        };
        let told = applied.recalled.first().map_or(here, |(_, at)| *at);
        let is_retry = attempt > 0 || tried.0 > 0;
        match reason(answer) {
            None if applied.recalled.is_empty() => {
                let before = self.effects.insert((id, asks), here);
                // Whatever the state knows: a retry has no second effect.
                let twice = before.is_some() && is_retry;
                assert!(!twice, "{id:?} had its effect at {before:?} and again at {here:?}");
                self.seen[2] += u64::from(is_retry);
            }
            None => self.seen[0] += 1,
            Some(Reason::InvalidField) => self.seen[1] += 1,
            Some(Reason::RequestForgotten) => self.seen[3] += 1,
            Some(_) => panic!("{answer:?}"),
        }
        self.expect(&request_id, id, (asks, tried), (answer, told));
    }

    /// What the shard may have said, by what it still knows.
    fn expect(
        &mut self,
        request_id: &RequestId,
        (name, sequence): Id,
        (asks, tried): (u64, (u32, u64)),
        (answer, told): (&Answer, Position),
    ) {
        let Some(client) = self.clients.get(&name) else {
            let since_ms = if request_id.attempt > 0 { 0 } else { tried.1 };
            let is_retry = request_id.attempt > 0 || tried.0 > 0;
            if is_retry && since_ms < self.known_from_ms {
                return assert_eq!(reason(answer), Some(Reason::RequestForgotten));
            }
            return self.keep((request_id, tried.0), name, asks, answer, told);
        };
        if sequence < client.floor {
            return assert_eq!(reason(answer), Some(Reason::RequestForgotten));
        }
        let since_ms = if request_id.attempt > 0 { 0 } else { tried.1 };
        let is_retry = request_id.attempt > 0 || tried.0 > 0;
        match client.kept.get(&sequence).cloned() {
            None if is_retry && sequence < client.first && since_ms < client.known_from_ms => {
                assert_eq!(reason(answer), Some(Reason::RequestForgotten));
            }
            Some(kept) if kept.asks != asks => {
                assert_eq!(reason(answer), Some(Reason::InvalidField));
                let Some(answer::Answer::Refusal(refusal)) = &answer.answer else { return };
                assert_eq!(refusal.metadata["field"], "request_id");
            }
            Some(kept) => {
                assert_eq!(
                    (answer, told),
                    (&kept.answer, kept.at),
                    "the first answer, and its place"
                );
                self.keep((request_id, tried.0), name, asks, answer, told);
            }
            None => self.keep((request_id, tried.0), name, asks, answer, told),
        }
    }

    fn keep(
        &mut self,
        (id, tried): (&RequestId, u32),
        name: u8,
        asks: u64,
        answer: &Answer,
        at: Position,
    ) {
        assert_eq!(reason(answer), None, "{id:?} is executed, or was");
        let is_first = id.attempt == 0 && tried == 0;
        let first = if is_first { id.sequence } else { u64::MAX };
        let known_from_ms = self.known_from_ms;
        let newborn = || Client { first, known_from_ms, ..Client::default() };
        let client = self.clients.entry(name).or_insert_with(newborn);
        client.seen_at_ms = self.harness.now_ms;
        client.floor = client.floor.max(id.first_unacknowledged);
        client.kept = client.kept.split_off(&client.floor);
        client.kept.insert(id.sequence, Kept { asks, answer: answer.clone(), at });
    }
}

fn put(id: RequestId) -> Command {
    let (namespace, key) = ("default".to_owned(), "k".to_owned());
    let slot = of_cache(&namespace, &key);
    let value = Some(Value { kind: Some(value::Kind::Text("v".to_owned())) });
    let put = PutRequest { namespace, key, value, ..PutRequest::default() };
    command(slot, 1, Some(id), Operation::Put(put))
}

fn reason(answer: &Answer) -> Option<Reason> {
    match &answer.answer {
        Some(answer::Answer::Refusal(refusal)) => Some(refusal.reason()),
        _ => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_request_id_has_one_effect_and_one_answer(
        steps in proptest::collection::vec(step(), 20..120)
    ) {
        let mut world = World::new();
        for step in &steps {
            world.step(step);
        }
    }
}

#[test]
fn long_histories_meet_every_case() {
    let mut runner = proptest::test_runner::TestRunner::deterministic();
    let mut world = World::new();
    for _ in 0..5_000 {
        let step = step().new_tree(&mut runner).expect("a step").current();
        world.step(&step);
    }
    assert!(world.seen.iter().all(|count| *count > 50), "{:?}", world.seen);
}
