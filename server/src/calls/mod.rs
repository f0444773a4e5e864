//! The calls in flight on this node: how many may be, and who waits for which.
//!
//! A call comes with its [`context`], takes a [`permit`] and is opened here; it is answered to a task of this node, or on
//! the stream of the peer that [`forwarded`] it. What is harmless may be tried again ([`repeat`]).

pub(crate) mod context;
pub(crate) mod forwarded;
pub(crate) mod permit;
pub(crate) mod repeat;

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;
use trefoil_core::CallId;
use trefoil_core::replica::Reply;
use trefoil_proto::common::v1::AdmissionClass;
use trefoil_proto::internal::v1::Refusal;

use self::forwarded::ForwardedCall;
use self::permit::{Load, Permit};

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

impl Calls {
    /// Makes room for a call of this many bytes, or refuses it with OVERLOADED before any work.
    pub(crate) fn admit(&self, class: AdmissionClass, bytes: usize) -> Result<Permit, Refusal> {
        Permit::take(&self.load, class, bytes)
    }

    /// Calls in flight, those of waiting callers included.
    pub(crate) fn in_flight(&self) -> usize {
        self.load.calls()
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
        if let Some(Waiter::Peer(call)) = self.stripe(id).get(&id) {
            call.offer();
        }
    }

    /// Answers a call. One that is closed, or answered before, is none any more.
    pub(crate) fn answer(&self, id: CallId, reply: Reply) {
        let waiter = self.stripe(id).remove(&id);
        match waiter {
            // A receiver that has gone away wants no answer.
            Some(Waiter::Here(sender)) => drop(sender.send(reply)),
            Some(Waiter::Peer(call)) => call.answer(reply),
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
    use trefoil_core::limits::{CALLS_BYTES_MAX, CALLS_MAX, CALLS_RESERVED, CALLS_WAITING_MAX};
    use trefoil_proto::common::v1::Reason;

    use super::context::refusal;
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
