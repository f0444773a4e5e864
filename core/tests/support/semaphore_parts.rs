//! What the model of semaphores keeps: holders, the line, and what its test has met.

#![allow(unreachable_pub, reason = "a part of a test")]

use std::collections::BTreeSet;

use trefoil_core::machine::WaiterId;

use crate::models::seen;

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

seen! {
    granted_at_once,
    handed_on,
    /// Somebody who wants few waits behind one who wants many, though there is enough for him.
    not_overtaken,
    timed_out,
    too_many,
    too_many_later,
    over_full,
    again,
    other_number,
    cancelled_waits,
    cancelled_grants,
    forced,
    deleted,
    kept,
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
