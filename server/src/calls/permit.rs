//! Places for calls in flight.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use trefoil_core::limits::{
    CALLS_BYTES_MAX, CALLS_BYTES_RESERVED, CALLS_MAX, CALLS_RESERVED, CALLS_WAITING_MAX,
};
use trefoil_proto::common::v1::{AdmissionClass, Reason};
use trefoil_proto::internal::v1::Refusal;

use super::context::refusal;

/// What is in flight.
#[derive(Debug, Default)]
pub(super) struct Load {
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

impl Load {
    pub(super) fn calls(&self) -> usize {
        self.calls.load(Ordering::Relaxed)
    }
}

impl Permit {
    /// A place for a call of this many bytes.
    pub(super) fn take(
        load: &Arc<Load>,
        class: AdmissionClass,
        bytes: usize,
    ) -> Result<Self, Refusal> {
        let (calls_max, bytes_max) = match class {
            AdmissionClass::Reserved => (CALLS_MAX, CALLS_BYTES_MAX),
            _ => (CALLS_MAX - CALLS_RESERVED, CALLS_BYTES_MAX - CALLS_BYTES_RESERVED),
        };
        let waits = class == AdmissionClass::Waiting;
        let permit = Self { load: Arc::clone(load), waits, bytes };
        let calls = load.calls.fetch_add(1, Ordering::Relaxed);
        let waiting = load.waiting.fetch_add(usize::from(waits), Ordering::Relaxed);
        let before = load.bytes.fetch_add(bytes, Ordering::Relaxed);
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
}
