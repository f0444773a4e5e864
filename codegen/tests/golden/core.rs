// Written by trefoil-codegen from the options in proto/.
/// Has a command carried out by its service.
pub(super) fn execute(context: &mut CommandContext<'_>, operation: &Operation) -> CommandResult {
    match operation {
        Operation::OpenGate(request) => handlers::open_gate(context, request),
        Operation::AwaitGate(request) => handlers::await_gate(context, request),
        Operation::CloseGate(request) => handlers::close_gate(context, request),
        Operation::LoseGate(request) => handlers::lose_gate(context, request),
    }
}

/// Has a query answered by its service.
pub(super) fn answer<S: Store>(context: &mut QueryContext<'_, S>, query: &Query) -> QueryOutcome {
    match query {
        Query::GetGate(request) => handlers::get_gate(context, request),
    }
}
