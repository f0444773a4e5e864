//! The page that describes every operation.

use std::fmt::Write as _;

use crate::contract::Contract;
use crate::operation::{Operation, RpcKind, field_comment};

/// `docs/reference.md`.
#[must_use]
pub fn reference(contract: &Contract) -> String {
    let mut page = String::from(HEAD);
    for service in contract.services().iter().filter(|service| !service.operations.is_empty()) {
        let name = format!("{}.{}", service.package, service.name);
        write!(page, "\n## {name}\n\n{}\n", service.comment).expect(INFALLIBLE);
        for operation in &service.operations {
            describe(&mut page, operation);
        }
    }
    page
}

const INFALLIBLE: &str = "a string takes everything";

const HEAD: &str = "# Operations

<!-- Written by codegen/tests/reference.rs with UPDATE_DOCS=1: change the comments and options in proto/, not this page. -->

Every RPC of the client port, as `proto/` describes it: what it does, what it asks of its caller and of a node, and its fields
with their limits. Reasons of errors are explained in [errors.md](errors.md); every call may also end with those that are about
the cluster and not about what was asked, such as `NOT_LEADER`, `NO_QUORUM`, `OVERLOADED` or `STOPPING`.

| word | meaning |
| --- | --- |
| right | what the caller must be allowed to do, and to what |
| admission | what it counts against when there is much to do: `ordinary` calls in flight, a `reserved` share of what ends work or keeps locks, the `stream`s, or `renewal`, a share of streams that keep sessions |
| retry | whether it may be sent again after an end that was not seen: `request id`, with the same one; `idempotent`, always |
| frees space | it is taken even when the disk is nearly full |
| fence | it can be refused for an outdated fencing token |
";

fn describe(page: &mut String, operation: &Operation) {
    write!(page, "\n### {}\n\n{}\n\n", operation.rpc, operation.comment).expect(INFALLIBLE);
    writeln!(page, "{}", facts(operation).join(" · ")).expect(INFALLIBLE);
    let mut fields = operation.request.fields().peekable();
    if fields.peek().is_some() && operation.kind != RpcKind::Carrier {
        page.push_str("\n| field | type | meaning |\n| --- | --- | --- |\n");
        for field in fields {
            let (name, comment) = (field.name(), field_comment(&field));
            writeln!(page, "| `{name}` | {} | {comment} |", kind(&field)).expect(INFALLIBLE);
        }
    }
}

fn facts(operation: &Operation) -> Vec<String> {
    let mut facts = vec![match operation.kind {
        RpcKind::Command => "command".to_owned(),
        RpcKind::Query => "query".to_owned(),
        RpcKind::Stream => "stream".to_owned(),
        RpcKind::Carrier => "carries other operations".to_owned(),
    }];
    if operation.kind != RpcKind::Carrier {
        let (action, resource) = (words(&operation.action), words(&operation.resource));
        facts.push(format!("right: {action} on a {resource}"));
    }
    facts.push(format!("admission: {}", words(&operation.admission)));
    match &operation.change {
        _ if operation.has_request_id => facts.push("retry: request id".to_owned()),
        Some(change) if change.is_idempotent => facts.push("retry: idempotent".to_owned()),
        Some(_) => facts.push("retry: no".to_owned()),
        None => {}
    }
    if operation.waiting != "Never" {
        facts.push("waits up to `wait_ms`".to_owned());
    }
    if operation.change.as_ref().is_some_and(|change| change.frees_space) {
        facts.push("frees space".to_owned());
    }
    if operation.has_fence {
        facts.push("fence".to_owned());
    }
    facts
}

/// `UseLock` as `use lock`.
fn words(name: &str) -> String {
    crate::text::snake(name).replace('_', " ")
}

fn kind(field: &prost_reflect::FieldDescriptor) -> String {
    let kind = field.kind();
    let name = kind.as_message().map_or_else(
        || {
            kind.as_enum()
                .map_or_else(|| format!("{kind:?}").to_lowercase(), |it| it.name().to_owned())
        },
        |it| it.name().to_owned(),
    );
    match (field.is_map(), field.is_list()) {
        (true, _) => "map".to_owned(),
        (_, true) => format!("{name}, repeated"),
        _ => name,
    }
}
