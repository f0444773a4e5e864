//! What a crash left of a log: all that was synced, nothing but what was written, no gap in it or between it and the
//! state.

use trefoil_core::ShardId;
use trefoil_core::replica::Boot;

use super::Violation;
use crate::disk::shadow::ShadowLog;

const KEPT: &str = "what was synced is there after a crash";
const WHOLE: &str = "log and state leave no gap at any crash";

/// One shard's log before and after a crash.
#[derive(Clone, Copy, Debug)]
pub struct Logs<'a> {
    /// What was synced.
    pub synced: &'a ShadowLog,
    /// The same with what was being written.
    pub maybe: &'a ShadowLog,
    /// What is there.
    pub found: &'a ShadowLog,
}

/// Compares them, and the log with the state's `applied` index in `boot`.
#[must_use]
pub fn check(shard: ShardId, logs: &Logs<'_>, boot: &Boot) -> Vec<Violation> {
    let mut found = Vec::new();
    let log = logs.found;
    if log != logs.synced && log != logs.maybe {
        let what = format!("shard {shard}: {:?}, synced {:?}", ends(log), ends(logs.synced));
        found.push(Violation::new(KEPT, what));
    }
    let indexes = log.entries.keys().copied();
    let contiguous = indexes.eq(log.truncated.0 + 1..=log.last());
    let terms = log.entries.values().map(|entry| entry.0);
    let first = terms.clone().next().unwrap_or(log.truncated.1);
    let rising = terms.clone().is_sorted()
        && first >= log.truncated.1
        && terms.max() <= Some(log.hard_state.term);
    let applied = boot.applied.0;
    let fits = (log.truncated.0..=log.last()).contains(&applied)
        && log.hard_state.commit <= log.last()
        && log.entries.get(&applied).is_none_or(|entry| entry.0 == boot.applied.1);
    if !contiguous || !rising || !fits {
        let what = format!(
            "shard {shard}: the log holds {:?} with {} entries, the state is at {:?}",
            ends(log),
            log.entries.len(),
            boot.applied
        );
        found.push(Violation::new(WHOLE, what));
    }
    found
}

/// Before the first entry, the last one, term and commit.
fn ends(log: &ShadowLog) -> ((u64, u64), u64, u64, u64) {
    (log.truncated, log.last(), log.hard_state.term, log.hard_state.commit)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn log(last: u64) -> ShadowLog {
        let mut log = ShadowLog::newborn();
        log.hard_state.term = 3;
        log.entries = (11..=last).map(|index| (index, (2, 10))).collect();
        log
    }

    fn first(synced: u64, maybe: u64, found: &ShadowLog, applied: u64) -> Option<&'static str> {
        let boot = Boot { applied: (applied, 2), ..Boot::default() };
        let (synced, maybe) = (log(synced), log(maybe));
        let logs = Logs { synced: &synced, maybe: &maybe, found };
        check(1, &logs, &boot).first().map(|violation| violation.invariant)
    }

    #[test]
    fn what_was_synced_and_what_was_being_written_pass() {
        assert_eq!(first(20, 25, &log(20), 15), None);
        assert_eq!(first(20, 25, &log(25), 25), None);
    }

    #[test]
    fn a_lost_entry_is_found() {
        assert_eq!(first(20, 25, &log(19), 15), Some(KEPT));
        assert_eq!(first(20, 25, &log(26), 15), Some(KEPT));
    }

    #[test]
    fn a_gap_is_found() {
        let mut gap = log(20);
        gap.entries.remove(&15);
        assert_eq!(
            check(
                1,
                &Logs { synced: &gap, maybe: &gap, found: &gap },
                &Boot { applied: (12, 2), ..Boot::default() }
            )[0]
            .invariant,
            WHOLE
        );
        assert_eq!(first(20, 20, &log(20), 21), Some(WHOLE));
        assert_eq!(first(20, 20, &log(20), 9), Some(WHOLE));
    }
}
