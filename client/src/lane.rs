//! The streams of a node, so that no call stands behind those of another kind.

/// Which connection a call takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lane {
    /// The stream of ordinary calls, under its window.
    Calls,
    /// A stream on a connection of its own, so that a long wait holds up no other call.
    Waits,
    /// The same connection, outside the limit of waits: a renewal never stands behind them.
    Renewals,
}
