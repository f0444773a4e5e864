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

/// When the first timer is due, as far as that is known without a look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum NextDue {
    #[default]
    Unknown,
    /// Then, in log time; none when there is no timer.
    Known(Option<u64>),
}

/// Which timers a command has set and cleared: the earliest of each.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct TimerChanges {
    set_ms: Option<u64>,
    cleared_ms: Option<u64>,
}

impl NextDue {
    /// Whether a timer may be due at `now_ms`.
    pub(super) fn may_be_due(self, now_ms: u64) -> bool {
        match self {
            Self::Unknown => true,
            Self::Known(due_ms) => due_ms.is_some_and(|due_ms| due_ms <= now_ms),
        }
    }

    /// Goes on after a command.
    pub(super) fn change(&mut self, changes: TimerChanges) {
        let Self::Known(due_ms) = *self else { return };
        let first = [due_ms, changes.set_ms].into_iter().flatten().min();
        let may_be_gone = changes.cleared_ms.is_some_and(|cleared| Some(cleared) <= first);
        *self = if may_be_gone { Self::Unknown } else { Self::Known(first) };
    }

    /// The time, after a look where that is needed.
    pub(super) fn look(&mut self, store: &impl Store) -> Option<u64> {
        let due_ms = match *self {
            Self::Known(due_ms) => due_ms,
            Self::Unknown => next_due_ms(store),
        };
        debug_assert_eq!(due_ms, next_due_ms(store), "what is known of the first timer holds");
        *self = Self::Known(due_ms);
        due_ms
    }
}

/// Kinds that may have timers.
const KINDS: [Kind; 6] =
    [Kind::Session, Kind::Wait, Kind::Lock, Kind::Lease, Kind::CacheItem, Kind::RequestClient];

/// Bytes before `rest`: system slot, kind of the record, due time, slot, kind.
const HEAD: usize = 2 + 1 + 8 + 2 + 1;

/// Sets a timer for a record of the context's slot.
pub(super) fn set(context: &mut CommandContext<'_>, due_ms: u64, kind: Kind, rest: &[u8]) {
    let key = key(context.slot, due_ms, kind, rest);
    let earliest = &mut context.output.timers.set_ms;
    *earliest = Some(earliest.unwrap_or(due_ms).min(due_ms));
    context.txn.put(key, Bytes::new());
}

/// Clears a timer that was set with exactly these values.
pub(super) fn clear(context: &mut CommandContext<'_>, due_ms: u64, kind: Kind, rest: &[u8]) {
    let key = key(context.slot, due_ms, kind, rest);
    delete(context, key.into());
}

/// The timer has fired.
pub(super) fn fired(context: &mut CommandContext<'_>, timer: &Timer) {
    delete(context, timer.key.clone());
}

fn delete(context: &mut CommandContext<'_>, key: Bytes) {
    let due_ms = due_ms(&key);
    let earliest = &mut context.output.timers.cleared_ms;
    *earliest = Some(earliest.unwrap_or(due_ms).min(due_ms));
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
