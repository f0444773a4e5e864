//! When something is due: an index by log time over all services of a shard.
//!
//! A timer only says when to look. Whether a deadline has passed is always judged by the stored value itself.

use bytes::Bytes;

use super::context::CommandContext;
use crate::key::{Key, Kind};
use crate::slot::SYSTEM_SLOT;
use crate::store::{Store, prefix_end};

/// A timer that is due.
pub(super) struct Timer {
    pub(super) key: Bytes,
    pub(super) slot: u16,
    pub(super) kind: Kind,
    /// What the service added to find its record.
    pub(super) rest: Bytes,
}

/// Kinds that may have timers.
const KINDS: [Kind; 6] =
    [Kind::Session, Kind::Wait, Kind::Lock, Kind::Lease, Kind::CacheItem, Kind::RequestClient];

/// Bytes before `rest`: system slot, kind of the record, due time, slot, kind.
const HEAD: usize = 2 + 1 + 8 + 2 + 1;

/// Sets a timer for a record of the context's slot.
pub(super) fn set(context: &mut CommandContext<'_>, due_ms: u64, kind: Kind, rest: &[u8]) {
    let key = key(context.slot, due_ms, kind, rest);
    context.txn.put(key, Bytes::new());
}

/// Clears a timer that was set with exactly these values.
pub(super) fn clear(context: &mut CommandContext<'_>, due_ms: u64, kind: Kind, rest: &[u8]) {
    let key = key(context.slot, due_ms, kind, rest);
    context.txn.delete(key);
}

/// The first `limit` timers that are due at `now_ms`, oldest first.
pub(super) fn due(store: &impl Store, now_ms: u64, limit: usize) -> Vec<Timer> {
    let start = Key::system(Kind::Timer);
    let end = Key::system(Kind::Timer).u64(now_ms.saturating_add(1));
    store.scan(start.bytes(), end.bytes(), limit).into_iter().map(|(key, _)| parse(key)).collect()
}

/// When the first timer is due, in log time.
pub(super) fn next_due_ms(store: &impl Store) -> Option<u64> {
    let start = Key::system(Kind::Timer);
    let first = store.scan(start.bytes(), &prefix_end(start.bytes()), 1);
    first.first().map(|(key, _)| due_ms(key))
}

fn key(slot: u16, due_ms: u64, kind: Kind, rest: &[u8]) -> Key {
    Key::system(Kind::Timer).u64(due_ms).tail(&slot.to_be_bytes()).tail(&[kind as u8]).tail(rest)
}

fn due_ms(key: &[u8]) -> u64 {
    u64::from_be_bytes(key[3..11].try_into().expect("a timer key has a due time"))
}

fn parse(key: Bytes) -> Timer {
    let slot = u16::from_be_bytes(key[11..13].try_into().expect("a timer key has a slot"));
    debug_assert!(slot < crate::slot::SLOTS || slot == SYSTEM_SLOT);
    let kind = KINDS
        .into_iter()
        .find(|kind| *kind as u8 == key[HEAD - 1])
        .expect("a timer key has a kind");
    let rest = key.slice(HEAD..);
    Timer { key, slot, kind, rest }
}
