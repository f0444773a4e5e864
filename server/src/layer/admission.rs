//! How many calls may be in flight: refused before any work rather than late, and never at the cost of what ends work.

use std::sync::Arc;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use trefoil_core::limits::{
    CLIENT_CALLS_MAX, CLIENT_CALLS_RESERVED, CLIENT_STREAMS_MAX, CLIENT_WAITING_MAX,
};
use trefoil_proto::common::v1::Reason;
use trefoil_proto::internal::v1::Refusal;

use crate::api::method::Load;

/// The places of one node.
#[derive(Debug)]
pub struct Admission {
    work: Arc<Semaphore>,
    priority: Arc<Semaphore>,
    waiting: Arc<Semaphore>,
    streams: Arc<Semaphore>,
}

/// One place, given back when it is dropped.
#[derive(Debug)]
pub struct Permit {
    _place: OwnedSemaphorePermit,
}

impl Default for Admission {
    fn default() -> Self {
        let places = |count| Arc::new(Semaphore::new(count));
        Self {
            work: places(CLIENT_CALLS_MAX),
            priority: places(CLIENT_CALLS_RESERVED),
            waiting: places(CLIENT_WAITING_MAX),
            streams: places(CLIENT_STREAMS_MAX),
        }
    }
}

impl Admission {
    /// A place for a call that begins.
    ///
    /// # Errors
    /// OVERLOADED: nothing happened.
    pub fn admit(&self, load: Load) -> Result<Permit, Refusal> {
        match load {
            Load::Work => take(&self.work),
            Load::Priority => take(&self.work).or_else(|_| take(&self.priority)),
            Load::Stream => take(&self.streams),
        }
    }

    /// A place for a call that is about to wait, instead of its place among the working ones.
    ///
    /// # Errors
    /// OVERLOADED: nothing happened.
    pub fn wait(&self) -> Result<Permit, Refusal> {
        take(&self.waiting)
    }
}

fn take(places: &Arc<Semaphore>) -> Result<Permit, Refusal> {
    let place = Arc::clone(places)
        .try_acquire_owned()
        .map_err(|_| overloaded("the node has too many calls in flight"))?;
    Ok(Permit { _place: place })
}

/// Too much to do.
pub(crate) fn overloaded(message: &str) -> Refusal {
    Refusal { reason: Reason::Overloaded.into(), message: message.to_owned(), ..Refusal::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_ends_work_has_places_of_its_own() {
        let admission = Admission::default();
        let work =
            (0..CLIENT_CALLS_MAX).map(|_| admission.admit(Load::Work).unwrap()).collect::<Vec<_>>();
        let refusal = admission.admit(Load::Work).unwrap_err();
        assert_eq!(refusal.reason(), Reason::Overloaded);
        let priority = (0..CLIENT_CALLS_RESERVED)
            .map(|_| admission.admit(Load::Priority).unwrap())
            .collect::<Vec<_>>();
        assert!(admission.admit(Load::Priority).is_err());
        admission.wait().unwrap();
        admission.admit(Load::Stream).unwrap();
        drop((work, priority));
        admission.admit(Load::Work).unwrap();
    }
}
