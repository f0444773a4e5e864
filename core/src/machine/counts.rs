//! What happened, counted for metrics; no part of the state.
//!
//! One row for each count: its field, its metric and what it means. A count has a function of its name that counts, so that one
//! that nobody counts is dead code.

use super::measure::Durations;

macro_rules! counts {
    (
        totals { $($total:ident: $total_name:literal, $total_help:literal;)* }
        times { $($time:ident: $time_name:literal, $time_help:literal;)* }
    ) => {
        /// What happened, for metrics.
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
        pub struct Counts {
            $(#[doc = concat!($total_help, ".")] pub $total: u64,)*
            $(#[doc = concat!($time_help, ".")] pub $time: Durations,)*
        }

        impl Counts {
            /// Adds another count to this one.
            pub fn add(&mut self, other: &Self) {
                $(self.$total += other.$total;)*
                $(self.$time.add(&other.$time);)*
            }

            /// Name of its metric, meaning and number of each count.
            pub fn totals(&self) -> impl Iterator<Item = (&'static str, &'static str, u64)> {
                [$(($total_name, $total_help, self.$total)),*].into_iter()
            }

            /// The same of times, which are log time.
            pub fn times(&self) -> impl Iterator<Item = (&'static str, &'static str, &Durations)> {
                [$(($time_name, $time_help, &self.$time)),*].into_iter()
            }

            $(pub(super) fn $total(&mut self, more: u64) {
                self.$total += more;
            })*

            $(pub(super) fn $time(&mut self, ms: u64) {
                self.$time.record(ms);
            })*
        }
    };
}

counts! {
    totals {
        locks_acquired: "locks_acquired_total", "Locks granted";
        locks_released: "locks_released_total", "Locks released by call, close or expiry";
        locks_forced: "locks_forced_total", "Grants that an operator took away";
        locks_converted: "locks_converted_total", "Grants whose mode was changed";
        locks_blocked: "locks_blocked_total", "Acquires and conversions that found the lock held";
        lock_timeouts: "locks_timeouts_total", "Waits for locks that ended at their deadline";
        permits_acquired: "permits_acquired_total", "Grants of permits, which count as locks granted as well";
        permits_released: "permits_released_total", "Grants of permits that ended in any way";
        permits_blocked: "permits_blocked_total", "Calls for permits that found too few left or others before them";
        permit_timeouts: "permits_timeouts_total", "Waits for permits that ended at their deadline";
        leaders_elected: "leaders_elected_total", "Grants that made their session the leader of an election";
        latches_opened: "latches_opened_total", "Latches counted down to zero";
        barriers_tripped: "barriers_tripped_total", "Barriers whose parties had all entered";
        deadlocks: "deadlocks_total", "Waits refused because they would have closed a circle of sessions";
        deadlock_searches_cut: "deadlock_searches_cut_total", "Searches for a deadlock that ended at their bound, so that the call waits";
        sessions_expired: "sessions_expired_total", "Sessions that were not kept alive";
        enqueued: "queue_enqueued_total", "Messages stored";
        dequeued: "queue_dequeued_total", "Deliveries leased";
        acked: "queue_acked_total", "Messages acknowledged";
        leases_expired: "leases_expired_total", "Leases that ran out, so that their messages come again";
        cache_expired: "cache_expired_total", "Values whose TTL ran out";
    }
    times {
        lock_waits: "locks_wait_seconds", "Time from the begin of a wait to its grant";
        lock_holds: "locks_hold_seconds", "Time from a grant to the end of the hold";
        permit_waits: "permits_wait_seconds", "Time from the begin of a wait for permits to its grant";
    }
}
