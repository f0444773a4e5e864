//! Chance in commands: what applies them draws nothing, so the node that makes them does.

use trefoil_proto::internal::v1::command::Operation;
use trefoil_proto::internal::v1::{Command, Drawn, Refusal};

use crate::check;

/// Whether a command of this operation needs chance.
#[must_use]
pub fn needs_chance(operation: &Operation) -> bool {
    use Operation::{CreateQueue, DequeueFrom, OpenSession};
    matches!(operation, OpenSession(_) | CreateQueue(_) | DequeueFrom(_))
}

/// What was drawn for a command.
pub(super) fn drawn(command: &Command) -> Result<Drawn, Refusal> {
    command.chance.ok_or_else(|| check::invalid("chance", "set"))
}
