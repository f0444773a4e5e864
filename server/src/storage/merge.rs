//! Three sorted sources as one: the newest change of a key wins, and a deletion hides what is below it.

use std::iter::Peekable;

use bytes::Bytes;
use redb::AccessGuard;

use super::overlay::Changes;
use super::state_file::StateFile;

type Layer<'a> = Peekable<Changes<'a>>;
type ValueGuard<'a> = AccessGuard<'a, &'static [u8]>;

/// The records of a range, in order.
pub(super) struct Merge<'a> {
    file: &'a StateFile,
    overlay: Layer<'a>,
    frozen: Option<Layer<'a>>,
    base: redb::Range<'a, &'static [u8], &'static [u8]>,
    /// The next record of the base.
    head: Option<(ValueGuard<'a>, ValueGuard<'a>)>,
    passed: usize,
}

impl<'a> Merge<'a> {
    pub(super) fn new(
        file: &'a StateFile,
        overlay: Changes<'a>,
        frozen: Option<Changes<'a>>,
        base: redb::Range<'a, &'static [u8], &'static [u8]>,
    ) -> Self {
        let frozen = frozen.map(Iterator::peekable);
        let overlay = overlay.peekable();
        let mut merge = Self { file, overlay, frozen, base, head: None, passed: 0 };
        merge.advance_base();
        merge
    }

    /// Deletions that came by so far.
    pub(super) fn passed(&self) -> usize {
        self.passed
    }

    fn advance_base(&mut self) {
        self.head =
            self.base.next().map(|record| record.unwrap_or_else(|error| self.file.damaged(error)));
    }

    /// The next change of the two layers, the overlay's where both have the key, and the base without it.
    fn next_change(&mut self) -> Option<(&'a Bytes, Option<&'a Bytes>)> {
        let overlay = self.overlay.peek().map(|(key, _)| *key);
        let frozen = self.frozen.as_mut().and_then(|frozen| frozen.peek().map(|(key, _)| *key));
        let smallest = match (overlay, frozen) {
            (Some(overlay), Some(frozen)) => overlay.min(frozen),
            (Some(key), None) | (None, Some(key)) => key,
            (None, None) => return None,
        };
        if let Some((key, _)) = &self.head
            && key.value() < smallest.as_ref()
        {
            return None;
        }
        if self.head.as_ref().is_some_and(|(key, _)| key.value() == smallest.as_ref()) {
            self.advance_base();
        }
        let below = match &mut self.frozen {
            Some(layer) if frozen == Some(smallest) => layer.next(),
            _ => None,
        };
        let change = if overlay == Some(smallest) { self.overlay.next() } else { below };
        change.map(|(key, value)| (key, value.as_ref()))
    }
}

impl Iterator for Merge<'_> {
    type Item = (Bytes, Bytes);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            match self.next_change() {
                Some((key, Some(value))) => return Some((key.clone(), value.clone())),
                Some((_, None)) => self.passed += 1,
                None => {
                    let (key, value) = self.head.take()?;
                    let record = (
                        Bytes::copy_from_slice(key.value()),
                        self.file.verified(key.value(), value.value()),
                    );
                    self.advance_base();
                    return Some(record);
                }
            }
        }
    }
}
