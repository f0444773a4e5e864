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

macro_rules! gauges {
    ($($gauge:ident: $name:literal, $help:literal;)*) => {
        /// How much there is on a shard now.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Gauges {
            $(#[doc = concat!($help, ".")] pub $gauge: u64,)*
        }

        impl Gauges {
            /// Name of its metric, meaning and number of each.
            pub fn each(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$(($name, $help, self.$gauge)),*].into_iter()
            }
        }

        impl From<&Progress> for Gauges {
            fn from(progress: &Progress) -> Self {
                Self { $($gauge: progress.$gauge),* }
            }
        }
    };
}

gauges! {
    queue_backlog: "queue_lag", "Messages accepted and not yet acknowledged, dead or expired";
    locks_held: "locks_held", "Grants of locks";
    locks_waiting: "locks_waiting", "Calls that wait for locks";
    sessions: "sessions", "Open sessions";
    semaphores: "semaphores", "Semaphores";
    permits: "permits", "Permits that all semaphores have";
    permits_in_use: "permits_in_use", "Permits that are held";
}

/// How a command changes what there is.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct GaugeChanges {
    pub(super) locks_held: i64,
    pub(super) locks_waiting: i64,
    pub(super) sessions: i64,
    pub(super) semaphores: i64,
    pub(super) permits: i64,
    pub(super) permits_in_use: i64,
}

impl GaugeChanges {
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
