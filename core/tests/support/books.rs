//! What must be true of the records of queues and of the cache after every entry.

#![allow(dead_code, unreachable_pub, reason = "each test file uses its part")]

use std::collections::{BTreeMap, BTreeSet};

use trefoil_core::key::Kind;
use trefoil_core::slot::SYSTEM_SLOT;
use trefoil_core::store::{MemoryStore, decode};
use trefoil_proto::internal::v1::{CacheItem, Lease, Partition};

/// Timers of a kind: due time, and the key of the record that each is for.
fn timers(store: &MemoryStore, kind: Kind) -> BTreeSet<(u64, Vec<u8>)> {
    let timers = of_kind(store, Kind::Timer).filter(|(key, _)| key[13] == kind as u8);
    timers
        .map(|(key, _)| {
            (u64::from_be_bytes(key[3..11].try_into().expect("8 bytes")), key[11..].to_vec())
        })
        .collect()
}

/// Records of a kind, with their whole key.
fn of_kind(store: &MemoryStore, kind: Kind) -> impl Iterator<Item = (&[u8], &[u8])> {
    let all = store.records.iter().map(|(key, value)| (&key[..], &value[..]));
    all.filter(move |(key, _)| {
        key[2] == kind as u8 && (kind != Kind::Timer || key[..2] == SYSTEM_SLOT.to_be_bytes())
    })
}

/// The place of a record without its kind: slot, queue, partition and, where there is one, sequence.
fn place(key: &[u8]) -> Vec<u8> {
    [&key[..2], &key[3..]].concat()
}

/// Every message is either ready or leased, every lease has exactly its timer, and the partitions count right.
/// Returns the number of messages.
pub fn check_queues(store: &MemoryStore) -> u64 {
    let messages =
        of_kind(store, Kind::Message).map(|(key, _)| place(key)).collect::<BTreeSet<_>>();
    let back = of_kind(store, Kind::Ready).map(|(key, _)| place(key)).collect::<BTreeSet<_>>();
    let fresh = fresh(store);
    assert!(back.is_disjoint(&fresh), "what was never delivered did not come back");
    let ready = &back | &fresh;
    let leases =
        of_kind(store, Kind::Lease).map(|(key, value)| (place(key), decode::<Lease>(value)));
    let leases = leases.collect::<BTreeMap<_, _>>();
    let leased = leases.keys().cloned().collect::<BTreeSet<_>>();
    assert!(ready.is_disjoint(&leased), "a message is ready or leased");
    assert_eq!(
        messages,
        &ready | &leased,
        "a stored message is ready or leased, and nothing else is"
    );

    let timed =
        of_kind(store, Kind::Lease).map(|(key, value)| (decode::<Lease>(value).deadline_ms, key));
    let timed = timed
        .map(|(due, key)| (due, [&key[..2], &[Kind::Lease as u8], &key[3..]].concat()))
        .collect();
    assert_eq!(timers(store, Kind::Lease), timed, "a lease has one timer");

    let mut counted = 0;
    for (key, value) in of_kind(store, Kind::Partition) {
        let partition = decode::<Partition>(value);
        let own = |set: &BTreeSet<Vec<u8>>| {
            set.iter().filter(|place| place.starts_with(&self::place(key))).count() as u64
        };
        assert_eq!((partition.messages, partition.leased), (own(&messages), own(&leased)));
        counted += partition.messages;
    }
    assert_eq!(counted, messages.len() as u64, "a message has an open partition");
    counted
}

/// Messages that were never delivered.
fn fresh(store: &MemoryStore) -> BTreeSet<Vec<u8>> {
    let partitions =
        of_kind(store, Kind::Partition).map(|(key, value)| (key, decode::<Partition>(value)));
    let fresh = partitions.flat_map(|(key, partition)| {
        let sequences = partition.fresh_from..partition.next_sequence;
        sequences.map(move |sequence| [&place(key)[..], &sequence.to_be_bytes()].concat())
    });
    fresh.collect()
}

/// Every value with an end has exactly its timer, and no version is above its slot's counter.
pub fn check_cache(store: &MemoryStore) {
    let items =
        of_kind(store, Kind::CacheItem).map(|(key, value)| (key, decode::<CacheItem>(value)));
    let items = items.collect::<BTreeMap<_, _>>();
    let ends = items.iter().filter(|(_, item)| item.expires_at_ms > 0);
    let ends = ends.map(|(key, item)| (item.expires_at_ms, key.to_vec())).collect();
    assert_eq!(timers(store, Kind::CacheItem), ends, "a value with an end has one timer");
    for (key, item) in &items {
        let counter = [&key[..2], &[Kind::CacheVersion as u8]].concat();
        let counter =
            u64::from_be_bytes(store.records[&counter[..]][..].try_into().expect("8 bytes"));
        assert!((1..=counter).contains(&item.version));
    }
}

/// All records but the shard's progress.
pub fn without_progress(store: &MemoryStore) -> MemoryStore {
    let mut store = store.clone();
    store
        .records
        .retain(|key, _| key[2] != Kind::Progress as u8 || key[..2] != SYSTEM_SLOT.to_be_bytes());
    store
}

/// Records as they stand on disk, in hexadecimal, without progress.
pub fn dump(store: &MemoryStore) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let records = without_progress(store);
    records.records.iter().map(|(key, value)| format!("{} = {}\n", hex(key), hex(value))).collect()
}
