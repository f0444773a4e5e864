//! The calls in flight on this node: how many may be, and who waits for which.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use trefoil_core::CallId;
use trefoil_core::limits::{
    CALLS_BYTES_MAX, CALLS_BYTES_RESERVED, CALLS_MAX, CALLS_RESERVED, CALLS_WAITING_MAX,
};
use trefoil_core::replica::Reply;
use trefoil_proto::common::v1::{AdmissionClass, Reason};
use trefoil_proto::internal::v1::Refusal;

use super::call_context::refusal;
use crate::peer::ForwardedCall;

const STRIPES: usize = 16;

/// Who waits for a reply.
#[derive(Debug)]
pub(crate) enum Waiter {
    /// A task of this node.
    Here(oneshot::Sender<Reply>),
    /// A peer that forwarded the call.
    Peer(ForwardedCall),
}

/// Calls in flight on this node.
#[derive(Debug, Default)]
pub(crate) struct Calls {
    /// Striped, so that threads seldom meet.
    waiting: [Mutex<HashMap<CallId, Waiter>>; STRIPES],
    last: AtomicU64,
    load: Arc<Load>,
}

#[derive(Debug, Default)]
struct Load {
    calls: AtomicUsize,
    /// Of these, those that wait.
    waiting: AtomicUsize,
    bytes: AtomicUsize,
}

/// A place among the calls in flight, free again when it is dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    load: Arc<Load>,
    waits: bool,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.load.calls.fetch_sub(1, Ordering::Relaxed);
        self.load.waiting.fetch_sub(usize::from(self.waits), Ordering::Relaxed);
        self.load.bytes.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}

impl Calls {
    /// Makes room for a call of this many bytes, or refuses it with OVERLOADED before any work.
    pub(crate) fn admit(&self, class: AdmissionClass, bytes: usize) -> Result<Permit, Refusal> {
        let (calls_max, bytes_max) = match class {
            AdmissionClass::Reserved => (CALLS_MAX, CALLS_BYTES_MAX),
            _ => (CALLS_MAX - CALLS_RESERVED, CALLS_BYTES_MAX - CALLS_BYTES_RESERVED),
        };
        let waits = class == AdmissionClass::Waiting;
        let permit = Permit { load: Arc::clone(&self.load), waits, bytes };
        let calls = self.load.calls.fetch_add(1, Ordering::Relaxed);
        let waiting = self.load.waiting.fetch_add(usize::from(waits), Ordering::Relaxed);
        let before = self.load.bytes.fetch_add(bytes, Ordering::Relaxed);
        // A refused permit gives back what it took when it is dropped.
        let full = calls >= calls_max || (waits && waiting >= CALLS_WAITING_MAX);
        if full || before + bytes > bytes_max {
            return Err(refusal(
                Reason::Overloaded,
                "the node has as many calls in flight as it may have",
            ));
        }
        Ok(permit)
    }

    /// Calls in flight, those of waiting callers included.
    pub(crate) fn in_flight(&self) -> usize {
        self.load.calls.load(Ordering::Relaxed)
    }

    /// Opens a call. Ids begin at 1: 0 means that nobody asked.
    pub(crate) fn open(&self, waiter: Waiter) -> CallId {
        let id = self.last.fetch_add(1, Ordering::Relaxed) + 1;
        self.stripe(id).insert(id, waiter);
        id
    }

    /// Forgets a call; false when it was answered before.
    pub(crate) fn close(&self, id: CallId) -> bool {
        self.stripe(id).remove(&id).is_some()
    }

    /// Asks the node that forwarded a call whether its caller is still there.
    pub(crate) fn offer(&self, id: CallId) {
        if let Some(Waiter::Peer(asked)) = self.stripe(id).get(&id) {
            asked.offer();
        }
    }

    /// Answers a call. One that is closed, or answered before, is none any more.
    pub(crate) fn answer(&self, id: CallId, reply: Reply) {
        let waiter = self.stripe(id).remove(&id);
        match waiter {
            // A receiver that has gone away wants no answer.
            Some(Waiter::Here(sender)) => drop(sender.send(reply)),
            Some(Waiter::Peer(asked)) => asked.answer(reply),
            None => (),
        }
    }

    /// Tasks of this node wait no longer: the ends of their calls are not seen.
    pub(crate) fn forsake(&self) {
        for stripe in &self.waiting {
            let mut waiting = stripe.lock().unwrap_or_else(PoisonError::into_inner);
            waiting.retain(|_, waiter| matches!(waiter, Waiter::Peer(_)));
        }
    }

    fn stripe(&self, id: CallId) -> MutexGuard<'_, HashMap<CallId, Waiter>> {
        let stripe = usize::try_from(id % STRIPES as u64).expect("a remainder is small");
        self.waiting[stripe].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_that_wait_leave_room_for_others_and_those_for_the_reserved_share() {
        let calls = Calls::default();
        let waiting =
            (0..CALLS_WAITING_MAX).map(|_| calls.admit(AdmissionClass::Waiting, 1).unwrap());
        let mut held = waiting.collect::<Vec<_>>();
        assert_eq!(
            calls.admit(AdmissionClass::Waiting, 1).unwrap_err().reason(),
            Reason::Overloaded
        );
        let ordinary = CALLS_WAITING_MAX..CALLS_MAX - CALLS_RESERVED;
        held.extend(ordinary.map(|_| calls.admit(AdmissionClass::Ordinary, 1).unwrap()));
        assert_eq!(
            calls.admit(AdmissionClass::Ordinary, 1).unwrap_err().reason(),
            Reason::Overloaded
        );
        held.push(calls.admit(AdmissionClass::Reserved, 1).unwrap());
        assert_eq!(calls.in_flight(), held.len());
        held.clear();
        assert_eq!(calls.in_flight(), 0);
        assert!(calls.admit(AdmissionClass::Ordinary, CALLS_BYTES_MAX).is_err(), "bytes count too");
        assert_eq!(calls.in_flight(), 0, "a refused call takes no room");
    }

    #[test]
    fn a_call_is_answered_once() {
        let calls = Calls::default();
        let (sender, mut receiver) = oneshot::channel();
        let id = calls.open(Waiter::Here(sender));
        assert!(id > 0);
        let reply = Reply::Refused(refusal(Reason::NoQuorum, "no leader"));
        calls.answer(id, reply.clone());
        calls.answer(id, Reply::Refused(Refusal::default()));
        assert_eq!(receiver.try_recv().unwrap(), reply);
        assert!(!calls.close(id));
    }
}
