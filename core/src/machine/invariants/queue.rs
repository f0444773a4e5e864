//! Partitions: each message is fresh, ready or leased.

use std::collections::{BTreeMap, BTreeSet};

use bytes::{Buf as _, Bytes};
use trefoil_proto::internal::v1::{Lease, Partition, Progress};

use super::{ensure, equal};
use crate::key::Kind;
use crate::store::decode;

/// Queue and partition.
type PartitionId = (u64, u32);

/// What there is of one partition, by sequence.
#[derive(Default)]
struct FoundPartition {
    partition: Option<Partition>,
    messages: Vec<u64>,
    ready: Vec<u64>,
    leased: Vec<u64>,
}

pub(super) fn check(records: &[(Bytes, Bytes)], progress: &Progress) -> Result<(), String> {
    let (mut timers, mut expected) = (BTreeSet::new(), BTreeSet::new());
    let mut all = BTreeMap::<PartitionId, FoundPartition>::new();
    for (key, value) in records {
        let mut key = key.clone();
        let (slot, kind) = (key.get_u16(), key.get_u8());
        if kind == Kind::Timer as u8 {
            let (due_ms, slot, kind) = (key.get_u64(), key.get_u16(), key.get_u8());
            if kind == Kind::Lease as u8 {
                timers.insert((due_ms, slot, key));
            }
            continue;
        }
        let is = |of: Kind| kind == of as u8;
        if !(is(Kind::Partition) || is(Kind::Message) || is(Kind::Ready) || is(Kind::Lease)) {
            continue;
        }
        let rest = key.clone();
        let found = all.entry((key.get_u64(), key.get_u32())).or_default();
        if is(Kind::Partition) {
            found.partition = Some(decode(value));
        } else if is(Kind::Message) {
            found.messages.push(key.get_u64());
        } else if is(Kind::Ready) {
            found.ready.push(key.get_u64());
        } else {
            expected.insert((decode::<Lease>(value).deadline_ms, slot, rest));
            found.leased.push(key.get_u64());
        }
    }
    equal!(timers, expected, "timers are those of leases");
    all.values().try_for_each(FoundPartition::check)?;
    let messages = all.values().map(|found| found.messages.len() as u64).sum::<u64>();
    equal!(progress.queue_backlog, messages, "a shard counts its messages");
    Ok(())
}

impl FoundPartition {
    fn check(&self) -> Result<(), String> {
        let Some(partition) = self.partition else {
            return Err("a partition that is not open has messages".to_owned());
        };
        let Partition { messages, leased, fresh_from, next_sequence, .. } = partition;
        equal!(messages, self.messages.len() as u64, "a partition counts its messages");
        equal!(leased, self.leased.len() as u64, "a partition counts its leases");
        ensure!(fresh_from <= next_sequence, "what is fresh begins before the end");
        let last = self.messages.last().copied().unwrap_or(0);
        ensure!(last < next_sequence, "a sequence was given");
        let delivered = self.messages.iter().copied().filter(|sequence| *sequence < fresh_from);
        let mut known = [self.ready.as_slice(), &self.leased].concat();
        known.sort_unstable();
        let delivered = delivered.collect::<Vec<_>>();
        equal!(delivered, known, "a message that was delivered is ready or leased, once");
        Ok(())
    }
}
