//! What the model of semaphores keeps: holders, the line, and what its test has met.

#![allow(unreachable_pub, reason = "a part of a test")]

use std::collections::BTreeSet;

use trefoil_core::machine::WaiterId;

/// How a call for permits ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum End {
    /// It has so many; the token is found out.
    Granted(u64),
    None,
    TooMany,
    HoldsOthers,
    Expired,
}

#[derive(Clone, Debug)]
pub struct Holder {
    pub session: u64,
    pub permits: u64,
    pub token: u64,
    /// Calls that were answered with it: it is released when all of them were cancelled.
    pub callers: BTreeSet<(u64, u64)>,
}

#[derive(Clone, Debug)]
pub struct Waiter {
    pub id: WaiterId,
    pub session: u64,
    pub permits: u64,
    pub deadline_ms: u64,
    pub call: u64,
}

#[derive(Debug, Default)]
pub struct Semaphore {
    pub permits: u64,
    pub holders: Vec<Holder>,
    pub line: Vec<Waiter>,
}

/// How often what the test is about has happened.
#[derive(Clone, Copy, Debug, Default)]
pub struct Seen {
    pub granted_at_once: u64,
    pub handed_on: u64,
    /// Somebody who wants few waits behind one who wants many, though there is enough for him.
    pub not_overtaken: u64,
    pub timed_out: u64,
    pub too_many: u64,
    pub too_many_later: u64,
    pub over_full: u64,
    pub again: u64,
    pub other_number: u64,
    pub cancelled_waits: u64,
    pub cancelled_grants: u64,
    pub forced: u64,
    pub deleted: u64,
    pub kept: u64,
}

impl Holder {
    pub fn new(session: u64, permits: u64, token: u64, calls: &[u64]) -> Self {
        let callers = calls.iter().map(|call| (permits, *call)).collect();
        Self { session, permits, token, callers }
    }

    /// A call was answered with it.
    pub fn add_acquirer(&mut self, call: (u64, u64)) {
        self.callers.insert(call);
    }
}

impl Semaphore {
    pub fn in_use(&self) -> u64 {
        self.holders.iter().map(|holder| holder.permits).sum()
    }

    pub fn room(&self) -> u64 {
        self.permits.saturating_sub(self.in_use())
    }

    pub fn holder(&self, session: u64) -> Option<&Holder> {
        self.holders.iter().find(|holder| holder.session == session)
    }
}

impl Seen {
    pub fn all(&self) -> [u64; 14] {
        [
            self.granted_at_once,
            self.handed_on,
            self.not_overtaken,
            self.timed_out,
            self.too_many,
            self.too_many_later,
            self.over_full,
            self.again,
            self.other_number,
            self.cancelled_waits,
            self.cancelled_grants,
            self.forced,
            self.deleted,
            self.kept,
        ]
    }

    pub fn add(&mut self, other: &Self) {
        self.granted_at_once += other.granted_at_once;
        self.handed_on += other.handed_on;
        self.not_overtaken += other.not_overtaken;
        self.timed_out += other.timed_out;
        self.too_many += other.too_many;
        self.too_many_later += other.too_many_later;
        self.over_full += other.over_full;
        self.again += other.again;
        self.other_number += other.other_number;
        self.cancelled_waits += other.cancelled_waits;
        self.cancelled_grants += other.cancelled_grants;
        self.forced += other.forced;
        self.deleted += other.deleted;
        self.kept += other.kept;
    }
}
