//! Log time: the leader's stamp on every entry, carried on by each replica so that a new leader can continue it.

use super::input::PeerTime;
use crate::Now;
use crate::limits::WALL_ADVANCE_MS_MAX;

/// A lower bound of the shard's log time: nothing expires early by it.
#[derive(Clone, Copy, Debug)]
pub(super) struct LogClock {
    /// Log time at `at_ms`.
    log_time_ms: u64,
    /// Boot clock when it was learned.
    at_ms: u64,
    /// Log time of the last stamp, which is what the wall clock below belongs to.
    stamped_ms: u64,
    /// Wall clock of the last stamp, in ms since 1970; 0 when there was none.
    wall_ms: u64,
    /// Whether time has been followed since the stamp, here or at a peer that told.
    continuous: bool,
}

impl LogClock {
    /// Begins after a restart, when the time since the last stamp is not known.
    pub(super) fn new(log_time_ms: u64, wall_ms: u64, now: Now) -> Self {
        Self {
            log_time_ms,
            at_ms: now.boot_ms,
            stamped_ms: log_time_ms,
            wall_ms,
            continuous: false,
        }
    }

    /// The estimate at `now`.
    pub(super) fn read(&self, now: Now) -> u64 {
        self.log_time_ms + now.boot_ms.saturating_sub(self.at_ms)
    }

    pub(super) fn peer_time(&self, now: Now) -> PeerTime {
        PeerTime { log_time_ms: self.read(now), continuous: self.continuous }
    }

    /// An applied entry bore this stamp.
    pub(super) fn applied(&mut self, log_time_ms: u64, wall_ms: u64, now: Now) {
        self.stamped_ms = self.stamped_ms.max(log_time_ms);
        self.wall_ms = self.wall_ms.max(wall_ms);
        self.raise(log_time_ms, now);
    }

    /// The leader told its estimate, which is the one that counts, and holds for the entries of its own log: a higher
    /// one of ours is older than what the leader has stamped, and to come back to it later would end early what those
    /// entries set. The same goes for a replica with entries that this leader does not have: until its log is a part
    /// of the leader's it may be elected with them, and takes no time that is ahead of its own.
    pub(super) fn follow(&mut self, time: PeerTime, has_its_log: bool, now: Now) {
        if time.continuous {
            self.continuous = true;
            if has_its_log || time.log_time_ms < self.read(now) {
                self.set(time.log_time_ms, now);
            }
        }
    }

    /// A peer that has applied all that this replica has in its log told its estimate. It counts where this replica
    /// has not followed the time itself.
    pub(super) fn heard(&mut self, time: PeerTime, now: Now) {
        if !self.continuous {
            self.follow(time, true, now);
        }
    }

    /// Whether entries may be stamped: a leader that has not followed the time resumes it first.
    pub(super) fn may_stamp(&self) -> bool {
        self.continuous
    }

    /// This replica leads and has applied all that was stamped before. Where nobody has followed the time, every
    /// replica has restarted, and the wall clock says how long that took: never backwards, and not beyond a cap.
    pub(super) fn resume(&mut self, now: Now) {
        if (!self.continuous || crate::mutant!(WallClock)) && self.wall_ms > 0 {
            // From the stamp itself: the estimate has already moved on by the time since the restart.
            let away = now.wall_ms.saturating_sub(self.wall_ms).min(WALL_ADVANCE_MS_MAX);
            self.raise(self.stamped_ms.saturating_add(away), now);
        }
        self.continuous = true;
    }

    fn raise(&mut self, log_time_ms: u64, now: Now) {
        if log_time_ms > self.read(now) {
            self.set(log_time_ms, now);
        }
    }

    fn set(&mut self, log_time_ms: u64, now: Now) {
        self.log_time_ms = log_time_ms;
        // The present millisecond may be nearly over: counted from its begin, two replicas whose milliseconds begin
        // at different moments would push each other on with every message.
        self.at_ms = now.boot_ms + 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn now(boot_ms: u64, wall_ms: u64) -> Now {
        Now { boot_ms, wall_ms }
    }

    #[test]
    fn time_goes_on_from_what_was_followed() {
        let mut clock = LogClock::new(1_000, 50_000, now(7, 900_000));
        clock.heard(PeerTime { log_time_ms: 1_500, continuous: true }, now(10, 900_003));
        clock.resume(now(20, 900_013));
        assert_eq!(clock.read(now(25, 0)), 1_514, "less the begun millisecond");
    }

    #[test]
    fn the_wall_clock_counts_only_when_all_have_restarted_and_never_backwards() {
        let mut clock = LogClock::new(1_000, 50_000, now(0, 0));
        clock.resume(now(100, 60_000));
        assert_eq!(clock.read(now(100, 0)), 11_000);
        let mut clock = LogClock::new(1_000, 50_000, now(0, 0));
        clock.resume(now(100, 10));
        assert_eq!(clock.read(now(100, 0)), 1_100);
        let mut clock = LogClock::new(1_000, 50_000, now(0, 0));
        clock.resume(now(100, u64::MAX));
        assert_eq!(clock.read(now(100, 0)), 1_000 + WALL_ADVANCE_MS_MAX);
    }

    #[test]
    fn time_since_the_restart_is_not_counted_twice() {
        let mut clock = LogClock::new(0, 0, now(0, 60_000));
        clock.applied(1_000, 50_000, now(100, 60_100));
        clock.heard(PeerTime { log_time_ms: 1_900, continuous: false }, now(900, 60_900));
        clock.resume(now(1_000, 61_000));
        assert_eq!(clock.read(now(1_000, 61_000)), 12_000);
    }

    #[test]
    fn leaders_in_turn_do_not_push_each_other_on() {
        let now = |phase_us: u64, at_us: u64| now((at_us + phase_us) / 1_000, 0);
        let (mut left, mut right) =
            (LogClock::new(0, 0, now(0, 0)), LogClock::new(0, 0, now(500, 0)));
        left.resume(now(0, 0));
        for at_us in (0..1_000_000).step_by(100) {
            right.follow(left.peer_time(now(0, at_us)), true, now(500, at_us));
            left.follow(right.peer_time(now(500, at_us)), true, now(0, at_us));
        }
        assert!(left.read(now(0, 1_000_000)) <= 1_001);
    }

    #[test]
    fn only_the_leader_moves_a_clock_that_has_followed_the_time() {
        let told = |log_time_ms, continuous| PeerTime { log_time_ms, continuous };
        let mut clock = LogClock::new(0, 0, now(0, 0));
        clock.heard(told(9_000, false), now(200, 0));
        assert_eq!(clock.read(now(200, 0)), 200, "a peer that knows no better");
        clock.heard(told(1_000, true), now(200, 0));
        clock.heard(told(9_000, true), now(201, 0));
        assert_eq!(clock.read(now(201, 0)), 1_000);
        clock.follow(told(900, true), true, now(300, 0));
        assert_eq!(clock.read(now(300, 0)), 900, "the leader's counts, be it less");
    }

    #[test]
    fn a_leader_without_our_entries_moves_our_time_only_back() {
        let told = |log_time_ms| PeerTime { log_time_ms, continuous: true };
        let mut clock = LogClock::new(1_000, 0, now(0, 0));
        clock.follow(told(9_000), false, now(200, 0));
        assert_eq!(clock.read(now(301, 0)), 1_301, "it runs on");
        clock.follow(told(500), false, now(301, 0));
        assert_eq!(clock.read(now(302, 0)), 500);
        clock.follow(told(9_000), true, now(302, 0));
        assert_eq!(clock.read(now(303, 0)), 9_000);
    }
}
