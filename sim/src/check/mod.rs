//! What must hold of a recorded history, one invariant in each file.
//!
//! Nothing here knows how the history came about: the simulator and the tests with real processes share it. Each
//! checker is told the whole history and returns the violations that it found; each has tests that feed it a
//! broken history and see it fail.

pub mod agreement;
pub mod ballot;
pub mod barriers;
pub mod completeness;
pub mod crash;
pub mod durable;
pub mod expiry;
pub mod fences;
pub mod formed;
pub mod grants;
pub mod handed;
pub mod history;
mod keys;
pub mod latches;
pub mod leaders;
pub mod leases;
pub mod linear;
pub mod lives;
pub mod lock;
pub mod matching;
pub mod order;
pub mod permits;
pub mod plain;
pub mod queue;
pub mod quorum;
pub mod register;
pub mod requests;
pub mod services;
pub mod time;

use std::fmt;

use self::history::History;

/// A promise that was broken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The promise.
    pub invariant: &'static str,
    /// How it was broken.
    pub what: String,
}

impl Violation {
    /// Names a promise and how it was broken.
    #[must_use]
    pub fn new(invariant: &'static str, what: impl Into<String>) -> Self {
        Self { invariant, what: what.into() }
    }
}

/// What the clocks of nodes may be wrong by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Clocks {
    /// At any moment, in microseconds: when every replica has restarted their wall clocks decide.
    pub error_us: u64,
    /// How much faster than time they may run, in a thousand.
    pub drift_per_mille: u64,
}

impl Default for Clocks {
    fn default() -> Self {
        Self { error_us: 100_000, drift_per_mille: 0 }
    }
}

impl Clocks {
    /// How little time may have passed while a clock says this much.
    #[must_use]
    pub fn at_least(self, us: u64) -> u64 {
        (us.saturating_mul(1_000) / (1_000 + self.drift_per_mille)).saturating_sub(self.error_us)
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.invariant, self.what)
    }
}

/// Everything that can be told from the clients' history alone. Gets and Dequeues called at `audit_from` or later
/// are taken for the final state: every key is read and every queue is drained by then.
#[must_use]
pub fn all(history: &History, audit_from: u64, clocks: Clocks) -> Vec<Violation> {
    let mut found = order::check(history);
    found.extend(lock::check(history));
    found.extend(queue::check(history));
    found.extend(leases::check(history));
    found.extend(register::check(history));
    found.extend(linear::check(history, linear::STEPS_MAX, clocks));
    found.extend(durable::check(history, audit_from));
    found
}
