//! What happened, line by line: the last lines to be read by people, all of them in one running hash.

use std::collections::VecDeque;
use std::fmt;

use xxhash_rust::xxh3::Xxh3;

/// Lines that are kept where nobody asks for more.
pub const LINES: usize = 400;

/// The events of a run.
#[derive(Clone)]
pub struct Trace {
    hash: Xxh3,
    lines: VecDeque<String>,
    kept: usize,
    count: u64,
}

impl fmt::Debug for Trace {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Trace").field("count", &self.count).finish_non_exhaustive()
    }
}

impl Trace {
    /// Begins, and keeps so many of the last lines.
    #[must_use]
    pub fn keeping(kept: usize) -> Self {
        Self { hash: Xxh3::new(), lines: VecDeque::with_capacity(kept.min(LINES)), kept, count: 0 }
    }

    /// Adds a line at a time in microseconds.
    pub fn add(&mut self, now_us: u64, line: fmt::Arguments<'_>) {
        let line = format!("{}.{:06} {line}", now_us / 1_000_000, now_us % 1_000_000);
        self.hash.update(line.as_bytes());
        self.hash.update(b"\n");
        self.count += 1;
        if self.lines.len() >= self.kept {
            self.lines.pop_front();
        }
        self.lines.push_back(line);
    }

    /// Hash of all lines so far.
    #[must_use]
    pub fn hash(&self) -> u64 {
        self.hash.digest()
    }

    /// Number of lines so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.count
    }

    /// The last lines.
    pub fn last(&self, lines: usize) -> impl Iterator<Item = &str> {
        self.lines.iter().skip(self.lines.len().saturating_sub(lines)).map(String::as_str)
    }
}
