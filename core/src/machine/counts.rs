//! What happened, counted for metrics; no part of the state.

use super::measure::Durations;

/// What happened, for metrics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Locks granted.
    pub locks_acquired: u64,
    /// Locks released, by call, close or expiry.
    pub locks_released: u64,
    /// Grants that an operator took away.
    pub locks_forced: u64,
    /// Grants whose mode was changed.
    pub locks_converted: u64,
    /// Acquires and conversions that had to wait or were told that the lock is held.
    pub locks_blocked: u64,
    /// Waits that ended at their deadline.
    pub lock_timeouts: u64,
    /// Log time that granted waits took.
    pub lock_waits: Durations,
    /// Log time for which holders who let go had held their locks.
    pub lock_holds: Durations,
    /// Grants of permits. These, and what is counted of permits below, are counted among locks as well.
    pub permits_acquired: u64,
    /// Grants of permits that ended, in whatever way.
    pub permits_released: u64,
    /// Calls that had to wait for permits or were told that too few are left.
    pub permits_blocked: u64,
    /// Waits for permits that ended at their deadline.
    pub permit_timeouts: u64,
    /// Log time that granted waits for permits took.
    pub permit_waits: Durations,
    /// Grants that became leaderships.
    pub leaders_elected: u64,
    /// Latches that were counted down to zero.
    pub latches_opened: u64,
    /// Barriers whose parties had all entered.
    pub barriers_tripped: u64,
    /// Waits that were refused because they would have closed a circle.
    pub deadlocks: u64,
    /// Searches for a circle that ended because they had looked at as much as they may.
    pub deadlock_searches_cut: u64,
    /// Sessions that expired.
    pub sessions_expired: u64,
    /// Messages stored.
    pub enqueued: u64,
    /// Deliveries leased.
    pub dequeued: u64,
    /// Messages acknowledged.
    pub acked: u64,
    /// Leases that ran out.
    pub leases_expired: u64,
    /// Cache values that expired.
    pub cache_expired: u64,
}

impl Counts {
    /// Adds another count to this one.
    pub fn add(&mut self, other: &Self) {
        self.locks_acquired += other.locks_acquired;
        self.locks_released += other.locks_released;
        self.locks_forced += other.locks_forced;
        self.locks_converted += other.locks_converted;
        self.locks_blocked += other.locks_blocked;
        self.lock_timeouts += other.lock_timeouts;
        self.lock_waits.add(&other.lock_waits);
        self.lock_holds.add(&other.lock_holds);
        self.permits_acquired += other.permits_acquired;
        self.permits_released += other.permits_released;
        self.permits_blocked += other.permits_blocked;
        self.permit_timeouts += other.permit_timeouts;
        self.permit_waits.add(&other.permit_waits);
        self.leaders_elected += other.leaders_elected;
        self.latches_opened += other.latches_opened;
        self.barriers_tripped += other.barriers_tripped;
        self.deadlocks += other.deadlocks;
        self.deadlock_searches_cut += other.deadlock_searches_cut;
        self.sessions_expired += other.sessions_expired;
        self.enqueued += other.enqueued;
        self.dequeued += other.dequeued;
        self.acked += other.acked;
        self.leases_expired += other.leases_expired;
        self.cache_expired += other.cache_expired;
    }
}
