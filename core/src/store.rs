//! The ordered key-value store under the machines, and the transaction that a command writes through.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;
use prost::Message;
use xxhash_rust::xxh3::xxh3_64_with_seed;

/// An ordered map of byte strings.
///
/// Reads cannot fail: an implementation that cannot read what it holds must end the process, because a replica
/// that guesses is worse than one that is down.
pub trait Store {
    /// The value of a key.
    fn get(&self, key: &[u8]) -> Option<Bytes>;
    /// The first `limit` records with `start <= key < end`, in order.
    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Vec<(Bytes, Bytes)>;
    /// Sets a key.
    fn put(&mut self, key: Bytes, value: Bytes);
    /// Removes a key; a missing one is no error.
    fn delete(&mut self, key: &[u8]);
}

/// A store in memory, for tests and the simulator.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MemoryStore {
    /// The records.
    pub records: BTreeMap<Bytes, Bytes>,
}

impl Store for MemoryStore {
    fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.records.get(key).cloned()
    }

    fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
        if start >= end {
            return Vec::new();
        }
        let range = self.records.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
        range.take(limit).map(|(key, value)| (key.clone(), value.clone())).collect()
    }

    fn put(&mut self, key: Bytes, value: Bytes) {
        self.records.insert(key, value);
    }

    fn delete(&mut self, key: &[u8]) {
        self.records.remove(key);
    }
}

/// The writes of one command: all of them or, when it is dropped, none.
pub struct Txn<'a> {
    store: &'a mut dyn Store,
    writes: BTreeMap<Bytes, TxnWrite>,
}

#[derive(Clone, Debug)]
struct TxnWrite {
    value: Option<Bytes>,
    /// Whoever wrote keeps it in memory.
    is_noted: bool,
}

impl std::fmt::Debug for Txn<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Txn").field("writes", &self.writes.len()).finish_non_exhaustive()
    }
}

impl<'a> Txn<'a> {
    /// Begins on a store.
    pub fn new(store: &'a mut dyn Store) -> Self {
        Self { store, writes: BTreeMap::new() }
    }

    /// The value of a key, own writes included.
    #[must_use]
    pub fn get(&self, key: &[u8]) -> Option<Bytes> {
        self.writes.get(key).map_or_else(|| self.store.get(key), |write| write.value.clone())
    }

    /// The decoded value of a key.
    ///
    /// # Panics
    /// When the value is not a `M`: the state is not what this version wrote.
    #[must_use]
    pub fn get_message<M: Message + Default>(&self, key: &[u8]) -> Option<M> {
        self.get(key).map(|value| decode(&value))
    }

    /// The first `limit` records with `start <= key < end`, own writes included.
    #[must_use]
    pub fn scan(&self, start: &[u8], end: &[u8], limit: usize) -> Vec<(Bytes, Bytes)> {
        if start >= end {
            return Vec::new();
        }
        let own = self.writes.range::<[u8], _>((Bound::Included(start), Bound::Excluded(end)));
        let own = own.collect::<Vec<_>>();
        // Each own deletion can hide one record of the store.
        let hidden = own.iter().filter(|(_, write)| write.value.is_none()).count();
        let below = self.store.scan(start, end, limit.saturating_add(hidden));
        let mut merged =
            below.into_iter().map(|(key, value)| (key, Some(value))).collect::<BTreeMap<_, _>>();
        merged.extend(own.into_iter().map(|(key, write)| (key.clone(), write.value.clone())));
        merged.into_iter().filter_map(|(key, value)| Some((key, value?))).take(limit).collect()
    }

    /// Sets a key.
    pub fn put(&mut self, key: impl Into<Bytes>, value: impl Into<Bytes>) {
        self.write(key.into(), Some(value.into()), false);
    }

    /// Sets a key to an encoded message.
    pub fn put_message<M: Message>(&mut self, key: impl Into<Bytes>, message: &M) {
        self.put(key, message.encode_to_vec());
    }

    /// Removes a key.
    pub fn delete(&mut self, key: impl Into<Bytes>) {
        self.write(key.into(), None, false);
    }

    /// Says what is to become of a key whose value is kept in memory until the state is frozen: it counts as a write, and
    /// the store hears nothing of it yet.
    pub fn note(&mut self, key: impl Into<Bytes>, value: Option<Bytes>) {
        self.write(key.into(), value, true);
    }

    fn write(&mut self, key: Bytes, value: Option<Bytes>, is_noted: bool) {
        self.writes.insert(key, TxnWrite { value, is_noted });
    }

    /// Keys written so far.
    #[must_use]
    pub fn keys_written(&self) -> usize {
        self.writes.len()
    }

    /// Writes everything to the store and extends `chain`, the hash of all writes so far.
    pub fn commit(self, chain: &mut u64) {
        for (key, TxnWrite { value, is_noted }) in self.writes {
            *chain = xxh3_64_with_seed(&key, *chain);
            if let Some(value) = &value {
                *chain = xxh3_64_with_seed(value, chain.wrapping_add(1));
            }
            match value {
                _ if is_noted => {}
                Some(value) => self.store.put(key, value),
                None => self.store.delete(&key),
            }
        }
    }
}

/// Decodes a stored value.
///
/// # Panics
/// When it is not a `M`: the state is not what this version wrote, and going on would diverge.
#[must_use]
pub fn decode<M: Message + Default>(value: &[u8]) -> M {
    M::decode(value).expect("a stored value is what this version wrote")
}

/// The end of the range of all keys that begin with `prefix`.
///
/// # Panics
/// When the prefix is empty or all 0xff: there is no such end.
#[must_use]
pub fn prefix_end(prefix: &[u8]) -> Vec<u8> {
    let mut end = prefix.to_vec();
    while let Some(last) = end.pop() {
        if last < u8::MAX {
            end.push(last + 1);
            return end;
        }
    }
    panic!("a key prefix has an end");
}
