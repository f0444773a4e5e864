//! Log time never runs ahead: between two entries no more of it passes than of real time, so nothing ends early.

use std::collections::BTreeMap;

use trefoil_core::ShardId;

use super::{Clocks, Violation};

const INVARIANT: &str = "log time does not run faster than time";

/// How far log time of each shard is behind real time.
#[derive(Clone, Debug)]
pub struct LogTime {
    clocks: Clocks,
    /// The largest lag of an entry so far, as log time minus real time in microseconds.
    least_lead: BTreeMap<ShardId, i64>,
}

impl LogTime {
    /// Allows for clocks that are wrong.
    #[must_use]
    pub fn new(clocks: Clocks) -> Self {
        Self { clocks, least_lead: BTreeMap::new() }
    }

    /// Every replica has restarted, so that wall clocks decided, and those are wrong by any time.
    pub fn jumps(&mut self, shard: ShardId) {
        self.least_lead.remove(&shard);
    }

    /// An entry was stamped: its log time in ms, and when that was, in microseconds. Told in the order of the log.
    ///
    /// # Errors
    /// When more log time than real time has passed since an entry before it.
    pub fn stamped(
        &mut self,
        shard: ShardId,
        log_time_ms: u64,
        at_us: u64,
    ) -> Result<(), Violation> {
        let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let fastest = at_us.saturating_mul(1_000 + self.clocks.drift_per_mille) / 1_000;
        let lead = signed(log_time_ms.saturating_mul(1_000)) - signed(fastest);
        let least = self.least_lead.entry(shard).or_insert(lead);
        let gained = lead - *least;
        *least = lead.min(*least);
        if gained <= signed(self.clocks.error_us) {
            return Ok(());
        }
        let what = format!(
            "shard {shard} gained {gained} µs on time at {at_us}, log time {log_time_ms} ms"
        );
        Err(Violation::new(INVARIANT, what))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn log_time_may_fall_behind_and_not_run_ahead() {
        let mut time = LogTime::new(Clocks { error_us: 1_000, drift_per_mille: 0 });
        assert_eq!(time.stamped(1, 10, 500_000), Ok(()));
        assert_eq!(time.stamped(1, 110, 600_000), Ok(()));
        assert_eq!(time.stamped(2, 700, 600_000), Ok(()));
        assert_eq!(time.stamped(1, 110, 700_000), Ok(()), "it stood still");
        assert_eq!(time.stamped(1, 211, 800_000), Ok(()));
        assert!(time.stamped(1, 411, 900_000).is_err());
    }
}
