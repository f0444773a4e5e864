//! The dispatch of commands and queries to the functions of their names.

use crate::contract::Contract;
use crate::text::{CodeWriter, snake};

/// Included by `core/src/machine/dispatch.rs`.
#[must_use]
pub fn core(contract: &Contract) -> String {
    let mut code = CodeWriter::new();
    code.line("/// Has a command carried out by its service.");
    code.line("pub(super) fn execute(context: &mut CommandContext<'_>, operation: &Operation) -> CommandResult {");
    code.line("match operation {");
    for step in contract.commands() {
        let (variant, handler) = (&step.variant, snake(&step.variant));
        code.line(format_args!(
            "Operation::{variant}(request) => handlers::{handler}(context, request),"
        ));
    }
    code.line("}");
    code.line("}");
    code.line("");
    code.line("/// Has a query answered by its service.");
    code.line("pub(super) fn answer<S: Store>(context: &mut QueryContext<'_, S>, query: &Query) -> QueryOutcome {");
    code.line("match query {");
    for step in contract.queries() {
        let (variant, handler) = (&step.variant, snake(&step.variant));
        code.line(format_args!(
            "Query::{variant}(request) => handlers::{handler}(context, request),"
        ));
    }
    code.line("}");
    code.line("}");
    code.finish()
}
