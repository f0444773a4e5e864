//! A client of semaphores: says how many permits there are, takes some, waits, hangs up, and gives them back.

use trefoil_core::limits::SESSION_TTL_MS_MIN;
use trefoil_proto::common::v1::Reason;

use crate::check::history::{Action, RecordedOutcome};
use crate::client_context::ClientContext;
use crate::config::SECOND;
use crate::workload::lock::{ask, wait};
use crate::workload::planned::Wish;

/// Semaphores of the namespace.
const SEMAPHORES: [&str; 2] = ["beds", "cups"];
/// The most permits that a semaphore has.
const PERMITS_MAX: u64 = 4;

/// What a client of semaphores has.
#[derive(Debug)]
pub struct SemaphoreClient {
    namespace: String,
    session: Option<u64>,
    /// Semaphore, permits and token.
    held: Option<(String, u64, u64)>,
}

impl SemaphoreClient {
    /// One without a session.
    #[must_use]
    pub fn new(namespace: &str) -> Self {
        Self { namespace: namespace.to_owned(), session: None, held: None }
    }

    /// What it wants next.
    pub fn next(&mut self, shared: &mut ClientContext) -> Wish {
        let namespace = self.namespace.clone();
        let rng = &mut shared.rng;
        let Some(session) = self.session else {
            let ttl_ms = rng.between(SESSION_TTL_MS_MIN, 5_000);
            return ask(Action::OpenSession { namespace, ttl_ms, delay_ms: 0 }, shared);
        };
        let semaphore = (*rng.pick(&SEMAPHORES)).to_owned();
        let action = match (rng.between(0, 39), self.held.clone()) {
            (0 | 1, _) => Action::CloseSession { namespace, session },
            // A holder that stands still: its session may expire.
            (2, _) => return Wish::Rest(rng.between(1, 8) * SECOND),
            (3..=5, _) => {
                let permits = rng.between(1, PERMITS_MAX);
                Action::SetPermits { namespace, semaphore, permits }
            }
            // An operator.
            (6, Some((lock, _, token))) => Action::ForceRelease { namespace, lock, token },
            (7..=10, _) => Action::KeepAlive { namespace, session },
            (11..=20, Some((semaphore, _, token))) => {
                Action::GivePermits { namespace, session, semaphore, token }
            }
            // The same again, or another number.
            (21..=23, Some((semaphore, ..))) => {
                let (permits, wait_ms) = (rng.between(1, PERMITS_MAX), wait(rng));
                Action::TakePermits { namespace, session, semaphore, permits, wait_ms }
            }
            (24.., Some(_)) => return Wish::Rest(rng.between(1, 400) * SECOND / 1_000),
            (_, None) => {
                let (permits, wait_ms) = (rng.between(1, PERMITS_MAX), wait(rng));
                Action::TakePermits { namespace, session, semaphore, permits, wait_ms }
            }
        };
        ask(action, shared)
    }

    /// A recorded call was answered.
    pub fn learned(&mut self, action: &Action, outcome: &RecordedOutcome) {
        match (action, outcome) {
            (_, RecordedOutcome::SessionOpened { session }) => {
                (self.session, self.held) = (Some(*session), None);
            }
            (
                _,
                RecordedOutcome::SessionClosed | RecordedOutcome::Refused(Reason::SessionExpired),
            ) => {
                (self.session, self.held) = (None, None);
            }
            (
                Action::TakePermits { semaphore, permits, .. },
                RecordedOutcome::PermitsTaken { token },
            ) => self.held = Some((semaphore.clone(), *permits, *token)),
            (Action::GivePermits { .. }, _) => self.held = None,
            _ => {}
        }
    }
}
