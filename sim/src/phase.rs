//! The course of a run in phases.

/// Where a run is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunPhase {
    /// Faults happen.
    Chaos,
    /// A majority works, and faults go on elsewhere.
    Core,
    /// Faults are over; clients go on.
    Calm,
    /// Clients end their calls.
    Settling,
    /// The final state is read.
    Audit,
    /// All replicas catch up.
    Converging,
    /// A majority was emptied.
    Emptied,
    /// It is over.
    Done,
}
