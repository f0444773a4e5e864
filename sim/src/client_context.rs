//! What all clients of a run share: chance, the configuration, the history that they write.

use crate::calls::{Router, SimQueue};
use crate::check::Violation;
use crate::check::history::History;
use crate::check::requests::Ledger;
use crate::config::RunConfig;
use crate::rng::Rng;

/// What all clients share.
#[derive(Debug)]
pub struct ClientContext {
    /// Chance.
    pub rng: Rng,
    /// The configuration of the run.
    pub config: RunConfig,
    /// Builds requests.
    pub router: Router,
    /// What clients did.
    pub history: History,
    /// What they were told about request ids.
    pub ledger: Ledger,
    /// Queues that are ready to be used.
    pub queues: Vec<SimQueue>,
    /// No new calls are begun.
    pub stopping: bool,
    /// Nobody gives a call up any more: faults are over.
    pub patient: bool,
    /// Broken promises that clients noticed.
    pub violations: Vec<Violation>,
    /// Calls whose end was not seen.
    pub calls_open: u64,
    /// Calls that the state machine answered.
    pub calls_answered: u64,
    /// Retries under a request id.
    pub retries: u64,
    /// Request ids that a client used again for something else.
    pub reused_ids: u64,
    /// Retries that a client made when it may have been forgotten.
    pub late_retries: u64,
    /// Calls that a client hung up on.
    pub hang_ups: u64,
}
