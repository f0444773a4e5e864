//! Random histories of a queue against a model of it, and against what was promised to clients.

#[path = "support/books.rs"]
mod books;
mod support;

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use proptest::sample::{Index, select};
use support::{Harness, command};
use trefoil_core::lease::LeaseId;
use trefoil_core::machine::{Applied, Outcome};
use trefoil_core::slot::{of_partition, shard};
use trefoil_proto::common::v1::{Reason, Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{
    AckLease, Answer, Command, DequeueFrom, EnqueueTo, OpenPartition, ReturnLeases, answer,
};
use trefoil_proto::queue::v1::{Delivery, Message};

/// Partitions of one shard out of three, each in a slot of its own.
const PARTITIONS: [u32; 3] = [0, 3, 6];
/// A partition of that shard that is never opened.
const CLOSED: u32 = 9;
const SHARDS: u32 = 3;

/// What one command does. Leases are picked among all that were ever granted, so most picks are old ones.
#[derive(Clone, Debug)]
enum Op {
    Enqueue { partition: u32, count: usize },
    Dequeue { partitions: Vec<u32>, max: u32, lease_ms: u64 },
    Ack(Index),
    AckNewest(Index),
    Return(Vec<Index>),
}

/// One step of the shard.
#[derive(Clone, Debug)]
enum Step {
    /// Commands of one entry.
    Entry(Vec<Op>),
    Advance(u64),
    NewTerm,
    /// One of the two machines starts again from its store.
    Reopen,
}

fn op() -> impl Strategy<Value = Op> {
    let listed = proptest::collection::vec(select(&[0, 3, 6, CLOSED]), 1..4);
    prop_oneof![
        3 => (select(&PARTITIONS), 1..4_usize).prop_map(|(partition, count)| Op::Enqueue { partition, count }),
        4 => (listed, 0..5_u32, prop_oneof![Just(10), Just(50), Just(200)])
            .prop_map(|(partitions, max, lease_ms)| Op::Dequeue { partitions, max, lease_ms }),
        2 => any::<Index>().prop_map(Op::Ack),
        2 => any::<Index>().prop_map(Op::AckNewest),
        1 => proptest::collection::vec(any::<Index>(), 1..4).prop_map(Op::Return),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => proptest::collection::vec(op(), 1..5).prop_map(Step::Entry),
        3 => (0..80_u64).prop_map(Step::Advance),
        1 => Just(Step::NewTerm),
        1 => Just(Step::Reopen),
    ]
}

/// Partition, then sequence.
type MessageId = (u32, u64);

/// A message of the model.
#[derive(Clone, Debug, Default)]
struct Model {
    messages: BTreeMap<MessageId, Stored>,
    next: BTreeMap<u32, u64>,
    enqueued: u64,
}

#[derive(Clone, Debug, Default)]
struct Stored {
    text: String,
    leases: u64,
    deliveries: u32,
    /// Number and deadline.
    lease: Option<(u64, u64)>,
    /// Since when it has been ready to be delivered.
    ready_ms: u64,
}

/// What a client saw of a delivery: message, lease, delivery count, text.
type Seen = (MessageId, u64, u32, String);

/// What the model answers.
#[derive(Clone, Debug, PartialEq)]
enum Expected {
    Ids(Vec<MessageId>),
    Deliveries(Vec<Seen>),
    Acked,
    Refused(Reason),
    Done,
}

impl Model {
    fn expire(&mut self, now_ms: u64) {
        for message in self.messages.values_mut() {
            if message.lease.take_if(|(_, deadline)| *deadline <= now_ms).is_some() {
                message.ready_ms = now_ms;
            }
        }
    }

    fn text(&mut self) -> String {
        self.enqueued += 1;
        format!("message {}", self.enqueued)
    }

    fn enqueue(&mut self, partition: u32, texts: &[String], now_ms: u64) -> Expected {
        let next = self.next.entry(partition).or_insert(1);
        let mut ids = Vec::new();
        for text in texts {
            ids.push((partition, *next));
            let stored = Stored { text: text.clone(), ready_ms: now_ms, ..Stored::default() };
            self.messages.insert((partition, *next), stored);
            *next += 1;
        }
        Expected::Ids(ids)
    }

    fn dequeue(&mut self, partitions: &[u32], max: u32, deadline: u64) -> Expected {
        let mut seen = Vec::new();
        while seen.len() < max as usize {
            // The first ready message of each partition; of these the one that has been ready for longest.
            let firsts = partitions.iter().filter_map(|partition| {
                let mut messages = self.messages.range((*partition, 0)..=(*partition, u64::MAX));
                messages.find(|(_, message)| message.lease.is_none())
            });
            let Some((id, _)) = firsts.min_by_key(|(_, message)| message.ready_ms) else { break };
            let id = *id;
            let message = self.messages.get_mut(&id).expect("it was found");
            message.leases += 1;
            message.deliveries += 1;
            message.lease = Some((message.leases, deadline));
            seen.push((id, message.leases, message.deliveries, message.text.clone()));
        }
        Expected::Deliveries(seen)
    }

    fn ack(&mut self, id: MessageId, lease: u64) -> Expected {
        match self.messages.get(&id).map(|message| message.lease) {
            None => Expected::Refused(Reason::UnknownMessage),
            Some(Some((newest, _))) if newest == lease => {
                self.messages.remove(&id);
                Expected::Acked
            }
            Some(_) => Expected::Refused(Reason::StaleLease),
        }
    }

    fn give_back(&mut self, id: MessageId, lease: u64, now_ms: u64) {
        if let Some(message) = self.messages.get_mut(&id)
            && message.lease.is_some_and(|(newest, _)| newest == lease)
        {
            message.lease = None;
            message.ready_ms = now_ms;
            message.deliveries -= 1;
        }
    }
}

/// What clients were promised, judged by their history alone.
#[derive(Debug, Default)]
struct Promises {
    /// Text of each message whose enqueue was answered.
    enqueued: BTreeMap<MessageId, String>,
    acked: BTreeSet<MessageId>,
    /// Until when nobody else may get a message.
    held: BTreeMap<MessageId, u64>,
    leases: BTreeSet<(MessageId, u64)>,
    /// The highest sequence of each partition that was ever delivered.
    delivered: BTreeMap<u32, u64>,
}

impl Promises {
    fn delivered(&mut self, (id, lease, _, text): &Seen, now_ms: u64, deadline: u64) {
        assert_eq!(self.enqueued.get(id), Some(text), "no phantom");
        assert!(!self.acked.contains(id), "an acknowledged message never comes back");
        assert!(self.held.get(id).is_none_or(|held| *held <= now_ms), "a valid lease is exclusive");
        assert!(self.leases.insert((*id, *lease)), "a lease has one meaning");
        self.held.insert(*id, deadline);
        let highest = self.delivered.entry(id.0).or_default();
        if id.1 > *highest {
            assert_eq!(id.1, *highest + 1, "first deliveries are in order");
            *highest = id.1;
        }
    }
}

/// Two machines that apply the same entries, the model and the promises.
struct World {
    machines: [Harness; 2],
    model: Model,
    promises: Promises,
    /// Every lease that was granted.
    granted: Vec<(MessageId, u64)>,
    /// Their secrets.
    secrets: BTreeMap<(MessageId, u64), u64>,
}

impl World {
    fn new() -> Self {
        let slots = PARTITIONS.map(|partition| of_partition(1, partition, SHARDS));
        assert!(slots[0] != slots[1] && slots[1] != slots[2]);
        let machines = [Harness::new(0), Harness::new(0)].map(|mut machine| {
            open(&mut machine);
            machine
        });
        let mut world = Self {
            machines,
            model: Model::default(),
            promises: Promises::default(),
            granted: Vec::new(),
            secrets: BTreeMap::new(),
        };
        let opened = PARTITIONS.map(|partition| {
            let request = OpenPartition { queue_id: 1, partition, catalogue_version: 1 };
            send(partition, Operation::OpenPartition(request))
        });
        world.apply(opened.to_vec());
        world
    }

    fn now_ms(&self) -> u64 {
        self.machines[0].now_ms
    }

    /// Applies an entry to both machines, which must agree in all that they say.
    fn apply(&mut self, commands: Vec<Command>) -> Applied {
        let [first, second] =
            self.machines.each_mut().map(|machine| machine.apply(commands.clone()));
        assert_eq!(first, second);
        first
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Entry(ops) => self.entry(ops),
            Step::Advance(ms) => {
                let [first, second] = self.machines.each_mut().map(|machine| machine.advance(*ms));
                assert_eq!(first, second);
                let now_ms = self.now_ms();
                let leased = |model: &Model| {
                    model.messages.values().filter(|message| message.lease.is_some()).count() as u64
                };
                let before = leased(&self.model);
                self.model.expire(now_ms);
                assert_eq!(first.counts.leases_expired, before - leased(&self.model));
            }
            Step::NewTerm => {
                let [first, second] = self.machines.each_mut().map(Harness::new_term);
                assert_eq!(first, second);
            }
            Step::Reopen => {
                let machine = &mut self.machines[1];
                open(machine);
            }
        }
        self.check();
    }

    fn entry(&mut self, ops: &[Op]) {
        let (commands, expected) =
            ops.iter().filter_map(|op| self.plan(op)).unzip::<_, _, Vec<_>, Vec<_>>();
        let applied = self.apply(commands.clone());
        let now_ms = self.now_ms();
        for ((command, expected), outcome) in commands.iter().zip(&expected).zip(&applied.outcomes)
        {
            let (answer, leases) = answered(outcome);
            assert_eq!(&self.numbered(answer, &leases), expected, "{command:?}");
            self.promise(command, expected, now_ms);
        }
        let count = |of: fn(&Expected) -> usize| expected.iter().map(of).sum::<usize>() as u64;
        assert_eq!(
            applied.counts.enqueued,
            count(|e| if let Expected::Ids(ids) = e { ids.len() } else { 0 })
        );
        assert_eq!(
            applied.counts.dequeued,
            count(|e| if let Expected::Deliveries(d) = e { d.len() } else { 0 })
        );
        assert_eq!(applied.counts.acked, count(|e| usize::from(*e == Expected::Acked)));
    }

    /// Deliveries with the number of each lease: that of a message's secrets counts from 1. A secret that is known already is
    /// that of another lease, which must not be.
    fn numbered(&mut self, mut answer: Expected, leases: &[LeaseId]) -> Expected {
        let Expected::Deliveries(deliveries) = &mut answer else { return answer };
        for (seen, lease) in deliveries.iter_mut().zip(leases) {
            assert!(!self.secrets.values().any(|secret| *secret == lease.secret));
            let known = self.secrets.range((seen.0, 0)..=(seen.0, u64::MAX)).count() as u64;
            seen.1 = known + 1;
            self.secrets.insert((seen.0, seen.1), lease.secret);
        }
        answer
    }

    fn lease(&self, id: MessageId, number: u64) -> AckLease {
        let secret = self.secrets[&(id, number)];
        AckLease { queue_id: 1, partition: id.0, sequence: id.1, secret }
    }

    /// The command of an operation and the model's answer; none when there is no lease to pick yet.
    fn plan(&mut self, op: &Op) -> Option<(Command, Expected)> {
        let now_ms = self.now_ms();
        match op {
            Op::Enqueue { partition, count } => {
                let texts =
                    std::iter::repeat_with(|| self.model.text()).take(*count).collect::<Vec<_>>();
                let messages = texts.iter().map(|text| message(text)).collect();
                let enqueue = EnqueueTo {
                    queue_id: 1,
                    partition: *partition,
                    catalogue_version: 1,
                    messages,
                };
                let expected = self.model.enqueue(*partition, &texts, now_ms);
                Some((send(*partition, Operation::EnqueueTo(enqueue)), expected))
            }
            Op::Dequeue { partitions, max, lease_ms } => {
                let dequeue = DequeueFrom {
                    queue_id: 1,
                    partitions: partitions.clone(),
                    max_messages: *max,
                    lease_ms: *lease_ms,
                    catalogue_version: 1,
                };
                let expected = self.model.dequeue(partitions, *max, now_ms + lease_ms);
                // The slot of the command need not be that of the partitions.
                Some((send(0, Operation::DequeueFrom(dequeue)), expected))
            }
            Op::Ack(_) | Op::AckNewest(_) | Op::Return(_) if self.granted.is_empty() => None,
            Op::Ack(index) => {
                let (id, number) = *index.get(&self.granted);
                let ack = Operation::AckLease(self.lease(id, number));
                Some((send(id.0, ack), self.model.ack(id, number)))
            }
            Op::AckNewest(index) => {
                let recent = self.granted.len().saturating_sub(5);
                let (id, number) = *index.get(&self.granted[recent..]);
                let ack = Operation::AckLease(self.lease(id, number));
                Some((send(id.0, ack), self.model.ack(id, number)))
            }
            Op::Return(indices) => {
                let picked =
                    indices.iter().map(|index| *index.get(&self.granted)).collect::<Vec<_>>();
                let leases = picked.iter().map(|(id, number)| self.lease(*id, *number)).collect();
                picked.iter().for_each(|(id, number)| self.model.give_back(*id, *number, now_ms));
                let give_back = ReturnLeases { queue_id: 1, leases };
                Some((send(0, Operation::ReturnLeases(give_back)), Expected::Done))
            }
        }
    }

    fn promise(&mut self, command: &Command, answer: &Expected, now_ms: u64) {
        match (&command.operation, answer) {
            (Some(Operation::EnqueueTo(enqueue)), Expected::Ids(ids)) => {
                let texts = enqueue.messages.iter().map(|message| text(message.value.as_ref()));
                self.promises.enqueued.extend(ids.iter().copied().zip(texts));
            }
            (Some(Operation::DequeueFrom(dequeue)), Expected::Deliveries(deliveries)) => {
                for seen in deliveries {
                    self.promises.delivered(seen, now_ms, now_ms + dequeue.lease_ms);
                    self.granted.push((seen.0, seen.1));
                }
            }
            (Some(Operation::AckLease(lease)), Expected::Acked) => {
                assert!(self.promises.acked.insert((lease.partition, lease.sequence)));
            }
            (Some(Operation::ReturnLeases(give_back)), Expected::Done) => {
                for lease in &give_back.leases {
                    let id = (lease.partition, lease.sequence);
                    let newest = self.secrets.range((id, 0)..=(id, u64::MAX)).next_back();
                    if newest.is_some_and(|(_, secret)| *secret == lease.secret) {
                        self.promises.held.remove(&id);
                    }
                }
            }
            (_, Expected::Refused(_)) => {}
            other => panic!("no such answer: {other:?}"),
        }
    }

    fn check(&self) {
        let stored = self.model.messages.len() as u64;
        for machine in &self.machines {
            assert_eq!(machine.machine.progress().queue_backlog, stored);
        }
        assert_eq!(books::check_queues(&self.machines[0].store), stored);
        let [first, second] = self.machines.each_ref().map(|machine| machine.digest());
        assert_eq!(first, second, "a machine that started again has the same state");
        let kept = self.promises.enqueued.keys().filter(|id| !self.promises.acked.contains(id));
        assert!(kept.eq(self.model.messages.keys()), "nothing is lost, and nothing is left over");
    }

    /// Takes all that is left: every message that was enqueued and not acknowledged comes, each once.
    fn drain(&mut self) {
        self.step(&Step::Advance(1_000));
        let left = self.model.messages.len();
        let first = self.granted.len();
        for _ in 0..=left {
            self.step(&Step::Entry(vec![Op::Dequeue {
                partitions: PARTITIONS.to_vec(),
                max: 7,
                lease_ms: 1_000,
            }]));
        }
        let drained = self.granted.split_off(first);
        assert_eq!(drained.len(), left);
        self.granted = drained;
        for n in 0..left {
            let (id, number) = self.granted[n];
            let lease = self.lease(id, number);
            let applied = self.apply(vec![send(id.0, Operation::AckLease(lease))]);
            assert_eq!(answered(&applied.outcomes[0]).0, Expected::Acked);
        }
        assert_eq!(books::check_queues(&self.machines[0].store), 0);
    }
}

/// The shard of the partitions, from its store.
fn open(machine: &mut Harness) {
    machine.open(shard(of_partition(1, PARTITIONS[0], SHARDS), SHARDS), SHARDS);
}

fn send(partition: u32, operation: Operation) -> Command {
    command(of_partition(1, partition, SHARDS), 1, None, operation)
}

fn message(text: &str) -> Message {
    let value = Value { kind: Some(value::Kind::Text(text.to_owned())) };
    Message { value: Some(value), ..Message::default() }
}

fn text(value: Option<&Value>) -> String {
    match value.and_then(|value| value.kind.as_ref()) {
        Some(value::Kind::Text(text)) => text.clone(),
        other => panic!("only text was enqueued, not {other:?}"),
    }
}

/// What was answered, and the leases of deliveries.
fn answered(outcome: &Outcome) -> (Expected, Vec<LeaseId>) {
    let Outcome::Answered(Answer { answer: Some(answer) }) = outcome else {
        panic!("queues answer at once")
    };
    let mut leases = Vec::new();
    let answer = match answer {
        answer::Answer::Enqueue(response) => {
            Expected::Ids(response.message_ids.iter().map(|id| message_id(id)).collect())
        }
        answer::Answer::Dequeue(response) => {
            leases.extend(response.deliveries.iter().map(lease_id));
            Expected::Deliveries(response.deliveries.iter().map(seen).collect())
        }
        answer::Answer::Ack(_) => Expected::Acked,
        answer::Answer::Done(_) => Expected::Done,
        answer::Answer::Refusal(refusal) => Expected::Refused(refusal.reason()),
        other => panic!("no answer of a queue: {other:?}"),
    };
    (answer, leases)
}

fn message_id(id: &str) -> MessageId {
    let id = id.strip_prefix("1-").expect("a message of queue 1");
    let (partition, sequence) = id.split_once('-').expect("partition-sequence");
    (partition.parse().expect("a number"), sequence.parse().expect("a number"))
}

fn lease_id(delivery: &Delivery) -> LeaseId {
    delivery.lease_id.parse().expect("a lease id")
}

/// A delivery whose lease has no number yet.
fn seen(delivery: &Delivery) -> Seen {
    let LeaseId { queue_id, partition, sequence, .. } = lease_id(delivery);
    assert_eq!((queue_id, message_id(&delivery.message_id)), (1, (partition, sequence)));
    ((partition, sequence), 0, delivery.delivery_count, text(delivery.value.as_ref()))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_queue_does_what_its_model_does(steps in proptest::collection::vec(step(), 1..60)) {
        let mut world = World::new();
        steps.iter().for_each(|step| world.step(step));
        world.drain();
    }
}
