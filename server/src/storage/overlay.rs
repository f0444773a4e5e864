//! What changed since a checkpoint, in memory. What is only ever asked for by its whole key lies in a hash table, so that the
//! most frequent reads and writes need no search; the rest is in order.

use std::collections::{BTreeMap, HashMap, btree_map};
use std::ops::Bound;
use std::vec;

use bytes::Bytes;
use trefoil_core::key::{self, Kind};

/// Bytes that a change takes beside key and value: its place in the table, two shared buffers.
const CHANGE_BYTES: usize = 96;

/// A value, or none where the key is deleted.
pub(super) type Change = Option<Bytes>;

/// Changes of a state, none older than those of the layers below.
#[derive(Debug, Default)]
pub(super) struct Overlay {
    ordered: BTreeMap<Bytes, Change>,
    points: HashMap<Bytes, Change>,
    bytes: u64,
}

/// Changes of a range, in order.
pub(super) enum Changes<'a> {
    Ordered(btree_map::Range<'a, Bytes, Change>),
    Sorted(vec::IntoIter<(&'a Bytes, &'a Change)>),
}

impl Overlay {
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(super) fn len(&self) -> usize {
        self.ordered.len() + self.points.len()
    }

    /// Bytes of memory.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// What became of a key; none where it has not changed.
    pub(super) fn get(&self, key: &[u8]) -> Option<&Change> {
        if is_point(key) { self.points.get(key) } else { self.ordered.get(key) }
    }

    pub(super) fn insert(&mut self, key: Bytes, change: Change) {
        self.bytes += bytes_of(&key, &change);
        let length = key.len();
        let before = if is_point(&key) {
            self.points.insert(key, change)
        } else {
            self.ordered.insert(key, change)
        };
        if let Some(before) = before {
            self.bytes -= (length + CHANGE_BYTES + before.map_or(0, |value| value.len())) as u64;
        }
    }

    /// Forgets that a key has changed.
    pub(super) fn remove(&mut self, key: &[u8]) {
        let removed = if is_point(key) {
            self.points.remove_entry(key)
        } else {
            self.ordered.remove_entry(key)
        };
        if let Some((key, change)) = removed {
            self.bytes -= bytes_of(&key, &change);
        }
    }

    /// The changes of a range.
    pub(super) fn range(&self, range: (Bound<&[u8]>, Bound<&[u8]>)) -> Changes<'_> {
        let ordered = self.ordered.range::<[u8], _>(range);
        if !may_hold_points(range) || self.points.is_empty() {
            return Changes::Ordered(ordered);
        }
        let contains = |key: &Bytes| std::ops::RangeBounds::<[u8]>::contains(&range, key.as_ref());
        let points = self.points.iter().filter(|(key, _)| contains(key));
        let mut all = ordered.chain(points).collect::<Vec<_>>();
        all.sort_unstable_by_key(|(key, _)| *key);
        Changes::Sorted(all.into_iter())
    }

    /// All changes.
    pub(super) fn all(&self) -> Changes<'_> {
        self.range((Bound::Unbounded, Bound::Unbounded))
    }
}

impl<'a> Iterator for Changes<'a> {
    type Item = (&'a Bytes, &'a Change);

    fn next(&mut self) -> Option<Self::Item> {
        match self {
            Self::Ordered(changes) => changes.next(),
            Self::Sorted(changes) => changes.next(),
        }
    }
}

fn bytes_of(key: &Bytes, change: &Change) -> u64 {
    (key.len() + CHANGE_BYTES + change.as_ref().map_or(0, Bytes::len)) as u64
}

fn is_point(key: &[u8]) -> bool {
    key::kind(key).is_some_and(Kind::is_asked_for_whole)
}

/// Whether a range is not that of one kind which is kept in order.
fn may_hold_points((start, end): (Bound<&[u8]>, Bound<&[u8]>)) -> bool {
    let (Bound::Included(start), Bound::Excluded(end)) = (start, end) else { return true };
    let Some((of, _)) = start.split_first_chunk::<{ key::HEAD_BYTES }>() else { return true };
    let ends_before_next = end.starts_with(of) || trefoil_core::store::prefix_end(of) == end;
    is_point(start) || !ends_before_next
}
