//! What a shard tells of locks beside counts: times that it saw end, and how much there is now.

use trefoil_proto::internal::v1::Progress;

/// Upper bounds of the buckets of [`Durations`] in ms; what is longer goes into a last one.
pub const DURATION_BOUNDS_MS: [u64; 15] =
    [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 10_000, 60_000, 600_000, 3_600_000];

/// Times in ms of log time, by size.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Durations {
    /// How many fell into each bucket.
    pub buckets: [u64; DURATION_BOUNDS_MS.len() + 1],
    /// All of them together.
    pub sum_ms: u64,
}

impl Durations {
    /// One more.
    pub fn record(&mut self, ms: u64) {
        self.buckets[DURATION_BOUNDS_MS.partition_point(|bound| *bound < ms)] += 1;
        self.sum_ms = self.sum_ms.saturating_add(ms);
    }

    /// Adds others to these.
    pub fn add(&mut self, other: &Self) {
        self.sum_ms = self.sum_ms.saturating_add(other.sum_ms);
        for (mine, more) in self.buckets.iter_mut().zip(other.buckets) {
            *mine += more;
        }
    }

    /// How many there are.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// How much there is on a shard now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Gauges {
    /// Messages neither acknowledged, dead nor expired.
    pub queue_backlog: u64,
    /// Grants of locks.
    pub locks_held: u64,
    /// Calls that wait for locks.
    pub locks_waiting: u64,
    /// Sessions, those included that are over and not swept away yet.
    pub sessions: u64,
    /// Semaphores.
    pub semaphores: u64,
    /// The permits that they have.
    pub permits: u64,
    /// The permits that are held.
    pub permits_in_use: u64,
}

impl From<&Progress> for Gauges {
    fn from(progress: &Progress) -> Self {
        Self {
            queue_backlog: progress.queue_backlog,
            locks_held: progress.locks_held,
            locks_waiting: progress.locks_waiting,
            sessions: progress.sessions,
            semaphores: progress.semaphores,
            permits: progress.permits,
            permits_in_use: progress.permits_in_use,
        }
    }
}

/// How a command changes what there is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Changes {
    pub(super) locks_held: i64,
    pub(super) locks_waiting: i64,
    pub(super) sessions: i64,
    pub(super) semaphores: i64,
    pub(super) permits: i64,
    pub(super) permits_in_use: i64,
}

impl Changes {
    pub(super) fn apply(self, progress: &mut Progress) {
        for (number, change) in [
            (&mut progress.locks_held, self.locks_held),
            (&mut progress.locks_waiting, self.locks_waiting),
            (&mut progress.sessions, self.sessions),
            (&mut progress.semaphores, self.semaphores),
            (&mut progress.permits, self.permits),
            (&mut progress.permits_in_use, self.permits_in_use),
        ] {
            *number = number.saturating_add_signed(change);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_falls_below_its_bound() {
        let mut durations = Durations::default();
        for ms in [0, 1, 2, 3, 5, 3_600_000, 3_600_001, u64::MAX] {
            durations.record(ms);
        }
        assert_eq!(durations.buckets, [2, 1, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 2]);
        assert_eq!((durations.count(), durations.sum_ms), (8, u64::MAX));
    }
}
