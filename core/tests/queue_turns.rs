//! Every mix of calls from several nodes: partitions fill evenly, and every message is delivered after a bounded number of
//! Dequeues, whatever is enqueued after it.

mod support;

use std::collections::BTreeMap;

use proptest::prelude::*;
use support::{Harness, command};
use trefoil_core::lease::LeaseId;
use trefoil_core::machine::Outcome;
use trefoil_core::slot::{of_partition, shard};
use trefoil_core::turns;
use trefoil_proto::common::v1::{Value, value};
use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Answer, DequeueFrom, EnqueueTo, OpenPartition, answer};
use trefoil_proto::queue::v1::Message;

const QUEUE: u64 = 3;

/// A call at a node.
#[derive(Clone, Copy, Debug)]
enum Op {
    Enqueue(usize),
    Dequeue(usize, u32),
}

/// How a node counts.
#[derive(Clone, Copy, Debug, Default)]
struct Node {
    seed: u64,
    enqueues: u64,
    dequeues: u64,
}

/// A message that waits.
#[derive(Clone, Copy, Debug)]
struct Waiting {
    /// Dequeues before it was enqueued, and messages of its shard that waited then.
    dequeues: u64,
    ahead: u64,
}

struct World {
    partitions: u32,
    shards: BTreeMap<u32, Harness>,
    nodes: Vec<Node>,
    waiting: BTreeMap<String, Waiting>,
    filled: BTreeMap<u32, u64>,
    dequeues: u64,
}

impl World {
    fn new(partitions: u32, shards: u32, nodes: usize, seed: u64) -> Self {
        let all = (1..=shards).map(|shard| {
            let mut harness = Harness::new(shard);
            harness.open(shard, shards);
            (shard, harness)
        });
        let nodes = (0..nodes as u64).map(|n| Node { seed: seed ^ (n << 40), ..Node::default() });
        let mut world = Self {
            partitions,
            shards: all.collect(),
            nodes: nodes.collect(),
            waiting: BTreeMap::new(),
            filled: (0..partitions).map(|partition| (partition, 0)).collect(),
            dequeues: 0,
        };
        for partition in 0..partitions {
            let open = OpenPartition { queue_id: QUEUE, partition, catalogue_version: 1 };
            world.send(world.slot(partition), Operation::OpenPartition(open));
        }
        world
    }

    fn count(&self) -> u32 {
        u32::try_from(self.shards.len()).expect("few shards")
    }

    fn slot(&self, partition: u32) -> u16 {
        of_partition(QUEUE, partition, self.count())
    }

    fn send(&mut self, slot: u16, operation: Operation) -> answer::Answer {
        let shard = shard(slot, self.count());
        let harness = self.shards.get_mut(&shard).expect("a shard");
        let applied = harness.apply(vec![command(slot, 1, None, operation)]);
        let Outcome::Answered(Answer { answer: Some(answer) }) = &applied.outcomes[0] else {
            panic!("queues answer at once")
        };
        answer.clone()
    }

    fn run(&mut self, op: Op) {
        // No two messages are of one moment.
        self.shards.values_mut().for_each(|harness| harness.now_ms += 1);
        match op {
            Op::Enqueue(node) => self.enqueue(node),
            Op::Dequeue(node, max) => self.dequeue(node, max),
        }
    }

    fn enqueue(&mut self, node: usize) {
        let node = &mut self.nodes[node];
        let partition = turns::partition(node.seed, node.enqueues, self.partitions);
        node.enqueues += 1;
        *self.filled.entry(partition).or_default() += 1;
        let value = Some(Value { kind: Some(value::Kind::Text("x".to_owned())) });
        let messages = vec![Message { value, ..Message::default() }];
        let enqueue = EnqueueTo { queue_id: QUEUE, partition, catalogue_version: 1, messages };
        let slot = self.slot(partition);
        let answer::Answer::Enqueue(stored) = self.send(slot, Operation::EnqueueTo(enqueue)) else {
            panic!("it is stored")
        };
        let here = shard(slot, self.count());
        let is_here = |id: &&String| {
            let partition = id.split('-').nth(1).expect("queue-partition-sequence");
            shard(self.slot(partition.parse().expect("a number")), self.count()) == here
        };
        let ahead = self.waiting.keys().filter(is_here).count() as u64;
        let waiting = Waiting { dequeues: self.dequeues, ahead };
        self.waiting.insert(stored.message_ids[0].clone(), waiting);
    }

    fn dequeue(&mut self, node: usize, max: u32) {
        self.dequeues += 1;
        let node = &mut self.nodes[node];
        let first = turns::partition(!node.seed, node.dequeues, self.partitions);
        node.dequeues += 1;
        let mut left = max;
        for group in turns::groups(QUEUE, self.partitions, first, self.count()) {
            let dequeue = DequeueFrom {
                queue_id: QUEUE,
                partitions: group.partitions,
                max_messages: left,
                lease_ms: 1_000_000,
                catalogue_version: 1,
            };
            let told = self.send(group.slot, Operation::DequeueFrom(dequeue));
            let answer::Answer::Dequeue(told) = told else { panic!("{told:?}") };
            for delivery in told.deliveries {
                left -= 1;
                let lease = delivery.lease_id.parse::<LeaseId>().expect("a lease id");
                let slot = self.slot(lease.partition);
                let acked = self.send(slot, Operation::AckLease(lease.ack()));
                assert!(matches!(acked, answer::Answer::Ack(_)));
                self.waiting.remove(&delivery.message_id).expect("it waited");
            }
        }
        assert!(left == 0 || self.waiting.is_empty(), "a Dequeue takes what there is");
        for (id, waiting) in &self.waiting {
            // A shard has a turn in each cycle of each node, and gives the oldest first.
            let cycles = 2 * (waiting.ahead + 1) * u64::from(self.partitions);
            let most = cycles * self.nodes.len() as u64;
            assert!(self.dequeues - waiting.dequeues <= most, "{id} starves: {waiting:?}");
        }
    }

    fn check_even(&self) {
        let counts = self.filled.values();
        let (least, most) = (counts.clone().min().unwrap_or(&0), counts.max().unwrap_or(&0));
        assert!(most - least <= self.nodes.len() as u64, "{:?}", self.filled);
    }
}

fn ops() -> impl Strategy<Value = (usize, Vec<Op>)> {
    let pattern = (1..=3_usize).prop_flat_map(|nodes| {
        let op = prop_oneof![
            (0..nodes).prop_map(Op::Enqueue),
            (0..nodes, 1..4_u32).prop_map(|(node, max)| Op::Dequeue(node, max)),
        ];
        // The same calls again and again, as programs do.
        (Just(nodes), proptest::collection::vec(op, 1..12))
    });
    (pattern, 1..30_usize).prop_map(|((nodes, pattern), times)| {
        let count = pattern.len() * times;
        (nodes, pattern.into_iter().cycle().take(count).collect())
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_message_starves_and_partitions_fill_evenly(
        partitions in 1..=16_u32,
        shards in 1..=8_u32,
        seed in any::<u64>(),
        (nodes, ops) in ops(),
    ) {
        let mut world = World::new(partitions, shards, nodes, seed);
        for op in ops {
            world.run(op);
            world.check_even();
        }
        while !world.waiting.is_empty() {
            world.run(Op::Dequeue(0, 1));
        }
    }
}

#[test]
fn calls_that_alternate_reach_every_partition() {
    for partitions in 1..=16 {
        let mut world = World::new(partitions, 6, 1, 42);
        for _ in 0..300 {
            world.run(Op::Enqueue(0));
            world.run(Op::Dequeue(0, 1));
        }
        assert!(world.waiting.is_empty());
        world.check_even();
    }
}

#[test]
fn consumers_that_just_keep_up_leave_nothing_behind() {
    let mut world = World::new(8, 6, 1, 7);
    for _ in 0..40 {
        world.run(Op::Enqueue(0));
    }
    for _ in 0..400 {
        world.run(Op::Enqueue(0));
        world.run(Op::Dequeue(0, 1));
        let oldest = world.waiting.values().map(|waiting| world.dequeues - waiting.dequeues).max();
        // Forty wait at any time: the oldest has waited about as many turns, not some multiple of them.
        assert!(oldest.unwrap_or(0) <= 3 * 40, "{oldest:?}");
    }
}
