//! Ranges of keys that hold no record, as scans found them, so that the next one need not pass the same deletions again.
//!
//! A deletion of a stored record stays in memory until a checkpoint has written it. What is taken from the front of its range
//! (timers that are due, first waiters, oldest messages) leaves more and more of them there: without this every look at the
//! front would pass them all, which takes quadratic time when many timers are due at once.

use std::collections::BTreeMap;
use std::ops::Bound;

use bytes::Bytes;

/// Deletions in a row that are worth remembering.
pub(super) const PASSED_MIN: usize = 4;
/// Gaps that are remembered: beyond them all are forgotten, and found again.
const GAPS_MAX: usize = 1_000;

/// Start of each gap, and its end, which is not part of it. They neither overlap nor touch.
#[derive(Debug, Default)]
pub(super) struct Gaps(BTreeMap<Bytes, Bytes>);

impl Gaps {
    /// The end of the gap that a key is in.
    pub(super) fn end_of(&self, key: &[u8]) -> Option<Bytes> {
        self.around(key).map(|(_, end)| end.clone())
    }

    /// There is nothing from `start` to `end`.
    pub(super) fn note(&mut self, start: &[u8], end: &[u8]) {
        if self.0.len() >= GAPS_MAX {
            self.0.clear();
        }
        let (mut start, mut end) = (Bytes::copy_from_slice(start), Bytes::copy_from_slice(end));
        while let Some((other, until)) = self.up_to(&end)
            && *until >= start
        {
            let (other, until) = (other.clone(), until.clone());
            self.0.remove(&other);
            start = start.min(other);
            end = end.max(until);
        }
        self.0.insert(start, end);
    }

    /// A record was put: a gap that it is in falls in two.
    pub(super) fn put(&mut self, key: &[u8]) {
        let Some((start, end)) = self.around(key) else { return };
        let (start, end, next) = (start.clone(), end.clone(), next(key));
        self.0.remove(&start);
        if start < key {
            self.0.insert(start, Bytes::copy_from_slice(key));
        }
        if next < end {
            self.0.insert(next, end);
        }
    }

    /// A record was deleted: what a put has split becomes one again.
    pub(super) fn delete(&mut self, key: &[u8]) {
        if self.up_to(key).is_some_and(|(_, end)| end == key) {
            self.note(key, &next(key));
        }
    }

    pub(super) fn forget(&mut self) {
        self.0.clear();
    }

    fn around(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.up_to(key).filter(|(_, end)| *end > key)
    }

    /// The last gap that starts at a key or before it.
    fn up_to(&self, key: &[u8]) -> Option<(&Bytes, &Bytes)> {
        self.0.range::<[u8], _>((Bound::Unbounded, Bound::Included(key))).next_back()
    }
}

/// The key that comes right after another.
fn next(key: &[u8]) -> Bytes {
    [key, &[0]].concat().into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gaps(gaps: &Gaps) -> Vec<(&str, &str)> {
        let text = |bytes| std::str::from_utf8(bytes).expect("letters");
        gaps.0.iter().map(|(start, end)| (text(start), text(end))).collect()
    }

    #[test]
    fn gaps_that_touch_are_one() {
        let mut found = Gaps::default();
        found.note(b"b", b"d");
        found.note(b"f", b"h");
        assert_eq!(gaps(&found), [("b", "d"), ("f", "h")]);
        found.note(b"h", b"k");
        found.note(b"c", b"e");
        assert_eq!(gaps(&found), [("b", "e"), ("f", "k")]);
        found.note(b"a", b"g");
        assert_eq!(gaps(&found), [("a", "k")]);
        assert_eq!(found.end_of(b"a").as_deref(), Some(&b"k"[..]));
        assert_eq!((found.end_of(b"k"), found.end_of(b"A")), (None, None));
    }

    #[test]
    fn a_record_splits_a_gap_until_it_is_gone() {
        let mut found = Gaps::default();
        found.note(b"b", b"h");
        found.put(b"d");
        assert_eq!(gaps(&found), [("b", "d"), ("d\0", "h")]);
        found.put(b"b");
        assert_eq!(gaps(&found), [("b\0", "d"), ("d\0", "h")]);
        found.delete(b"d");
        assert_eq!(gaps(&found), [("b\0", "h")]);
        found.delete(b"x");
        assert_eq!(gaps(&found), [("b\0", "h")], "nobody looked there");
    }

    #[test]
    fn so_many_gaps_and_no_more_are_kept() {
        let mut found = Gaps::default();
        for n in 0..3 * u32::try_from(GAPS_MAX).expect("few") {
            found.note(&(2 * n).to_be_bytes(), &(2 * n + 1).to_be_bytes());
            assert!(found.0.len() <= GAPS_MAX);
        }
    }
}
