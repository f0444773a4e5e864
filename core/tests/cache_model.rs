//! Random histories of the cache against a model: a register with versions and an end, and who holds its line.

#[path = "support/books.rs"]
mod books;
mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use support::{Harness, command};
use trefoil_core::machine::{Applied, Outcome, QueryOutcome};
use trefoil_core::slot::of_cache;
use trefoil_proto::cache::v1::{DeleteRequest, GetRequest, GetResponse, LineState, PutRequest};
use trefoil_proto::common::v1::{Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, Command, answer, query};

/// A change of one key by one node.
#[derive(Clone, Debug)]
enum Op {
    Put { key: u8, node: u64, ttl_ms: u64 },
    Delete { key: u8, node: u64 },
}

/// One step of the shard.
#[derive(Clone, Debug)]
enum Step {
    /// Commands of one entry.
    Entry(Vec<Op>),
    /// A read by one node, with the leader's clock ahead of log time.
    Get {
        key: u8,
        node: u64,
        ahead_ms: u64,
    },
    Advance(u64),
    NewTerm,
    /// One of the two machines starts again from its store.
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let ttl = prop_oneof![Just(0), 1..100_u64];
    prop_oneof![
        3 => (0..3_u8, 1..4_u64, ttl).prop_map(|(key, node, ttl_ms)| Op::Put { key, node, ttl_ms }),
        1 => (0..3_u8, 1..4_u64).prop_map(|(key, node)| Op::Delete { key, node }),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let ahead = prop_oneof![Just(0), 0..100_u64];
    prop_oneof![
        4 => proptest::collection::vec(op(), 1..4).prop_map(Step::Entry),
        8 => (0..3_u8, 1..4_u64, ahead)
            .prop_map(|(key, node, ahead_ms)| Step::Get { key, node, ahead_ms }),
        3 => (0..60_u64).prop_map(Step::Advance),
        1 => Just(Step::NewTerm),
        1 => Just(Step::Reopen),
    ]
}

/// One key of the model.
#[derive(Clone, Debug, Default)]
struct Register {
    /// Text, version and end; an end of 0 is none.
    value: Option<(String, u64, u64)>,
    /// The highest version that the key ever had.
    version: u64,
    /// Lines as each node holds them, none of them Invalid.
    lines: BTreeMap<u64, LineState>,
}

impl Register {
    /// What a read of this node makes of all lines.
    fn read(&mut self, node: u64) -> LineState {
        if !self.lines.contains_key(&node) {
            let state =
                if self.lines.is_empty() { LineState::Exclusive } else { LineState::Shared };
            self.lines.values_mut().for_each(|line| *line = LineState::Shared);
            self.lines.insert(node, state);
        }
        self.lines[&node]
    }

    /// A later version of the key: it rises for ever.
    fn rise(&mut self, version: u64) {
        assert!(version > self.version, "version {version} after {}", self.version);
        self.version = version;
    }
}

/// Two machines that apply the same entries, and the model.
struct World {
    machines: [Harness; 2],
    keys: BTreeMap<u8, Register>,
    puts: u64,
}

impl World {
    fn new() -> Self {
        let machines = [Harness::new(1), Harness::new(1)];
        Self { machines, keys: (0..3).map(|key| (key, Register::default())).collect(), puts: 0 }
    }

    fn now_ms(&self) -> u64 {
        self.machines[0].now_ms
    }

    /// Lets both machines do the same; they must agree in all that they say.
    fn both(&mut self, act: impl Fn(&mut Harness) -> Applied) -> Applied {
        let [first, second] = self.machines.each_mut().map(act);
        assert_eq!(first, second);
        first
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Entry(ops) => self.entry(ops),
            Step::Get { key, node, ahead_ms } => self.get(*key, *node, *ahead_ms),
            Step::Advance(ms) => {
                let applied = self.both(|machine| machine.advance(*ms));
                let now_ms = self.now_ms();
                let mut expired = 0;
                for register in self.keys.values_mut() {
                    if register.value.as_ref().is_some_and(|(_, _, end)| (1..=now_ms).contains(end))
                    {
                        (register.value, expired) = (None, expired + 1);
                        register.lines.clear();
                    }
                }
                assert_eq!(applied.counts.cache_expired, expired);
            }
            Step::NewTerm => {
                self.both(Harness::new_term);
                self.keys.values_mut().for_each(|register| register.lines.clear());
            }
            Step::Reopen => self.machines[1].reopen(),
        }
        books::check_cache(&self.machines[0].store);
        let [first, second] = self.machines.each_ref().map(|machine| machine.digest());
        assert_eq!(first, second, "a machine that started again has the same state");
    }

    fn entry(&mut self, ops: &[Op]) {
        let first_put = self.puts + 1;
        let commands = ops.iter().map(|op| self.command(op)).collect::<Vec<_>>();
        let applied = self.both(|machine| machine.apply(commands.clone()));
        let (now_ms, mut put) = (self.now_ms(), first_put);
        for (op, outcome) in ops.iter().zip(&applied.outcomes) {
            let Outcome::Answered(Answer { answer: Some(answer) }) = outcome else {
                panic!("the cache answers at once")
            };
            match (op, answer) {
                (Op::Put { key, node, ttl_ms }, answer::Answer::Put(response)) => {
                    let register = self.keys.get_mut(key).expect("every key");
                    register.rise(response.version);
                    let end = if *ttl_ms == 0 { 0 } else { now_ms + ttl_ms };
                    register.value = Some((format!("value {put}"), response.version, end));
                    register.lines = BTreeMap::from([(*node, LineState::Modified)]);
                    assert_eq!(response.state(), LineState::Modified);
                    put += 1;
                }
                (Op::Delete { key, .. }, answer::Answer::Delete(response)) => {
                    let register = self.keys.get_mut(key).expect("every key");
                    assert_eq!(response.deleted, register.value.take().is_some());
                    if response.deleted {
                        register.rise(response.version);
                        register.lines.clear();
                    } else {
                        assert_eq!(response.version, 0);
                    }
                }
                other => panic!("no such answer: {other:?}"),
            }
        }
    }

    fn command(&mut self, op: &Op) -> Command {
        let namespace = "n".to_owned();
        match op {
            Op::Put { key, node, ttl_ms } => {
                self.puts += 1;
                let kind = value::Kind::Text(format!("value {}", self.puts));
                let (key, value) = (key.to_string(), Some(Value { kind: Some(kind) }));
                let slot = of_cache(&namespace, &key);
                let put = PutRequest {
                    namespace,
                    key,
                    value,
                    ttl_ms: *ttl_ms,
                    request_id: None,
                    fence: None,
                };
                command(slot, *node, None, Operation::Put(put))
            }
            Op::Delete { key, node } => {
                let key = key.to_string();
                let slot = of_cache(&namespace, &key);
                let delete = DeleteRequest { namespace, key, request_id: None, fence: None };
                command(slot, *node, None, Operation::Delete(delete))
            }
        }
    }

    /// Only the first machine is the leader's: the other one is never asked.
    fn get(&mut self, key: u8, node: u64, ahead_ms: u64) {
        let (log_time_ms, machine) = (self.now_ms(), &mut self.machines[0]);
        let (namespace, name) = ("n".to_owned(), key.to_string());
        let slot = of_cache(&namespace, &name);
        machine.now_ms += ahead_ms;
        let get = query::Query::Get(GetRequest { namespace, key: name, fence: None });
        let (_, outcome) = machine.query(slot, node, get);
        machine.now_ms -= ahead_ms;
        let register = self.keys.get_mut(&key).expect("every key");
        let expected = match register.value.clone() {
            None => GetResponse { state: LineState::Invalid.into(), ..GetResponse::default() },
            Some((_, _, end)) if end > 0 && end <= log_time_ms + ahead_ms => {
                assert_eq!(outcome, QueryOutcome::Due(end));
                return;
            }
            Some((text, version, end)) => GetResponse {
                header: None,
                hit: true,
                value: Some(Value { kind: Some(value::Kind::Text(text)) }),
                version,
                state: register.read(node).into(),
                ttl_ms: if end == 0 { 0 } else { end - log_time_ms - ahead_ms },
            },
        };
        assert_eq!(outcome, QueryOutcome::Answered(answer::Answer::Get(expected).into()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_key_is_a_register_with_versions_and_an_end(steps in proptest::collection::vec(step(), 1..80)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
    }
}
