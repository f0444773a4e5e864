//! The requests of the client: what each is answered by, and which node and connection it takes.

use crate::contract::Contract;
use crate::operation::Operation;
use crate::text::{CodeWriter, path};

/// Rows for the macro of `client/src/operation.rs`, which includes them.
#[must_use]
pub fn client(contract: &Contract) -> String {
    let mut code = CodeWriter::new();
    code.line("operations! {");
    for operation in contract.unary() {
        let request = path("trefoil_proto", operation.request.full_name());
        let response = path("trefoil_proto", operation.response.full_name());
        let Operation { name, has_request_id, .. } = operation;
        code.line(format_args!("{name}: {request} => {response} {{"));
        code.line(format_args!("{},", key(operation)));
        code.line(format_args!("{},", lane(operation)));
        if *has_request_id {
            code.line("id = request_id,");
        }
        if operation.waiting != "Never" {
            code.line("wait = wait_ms,");
        }
        if operation.routing == "Messages" {
            code.line("layout = layout,");
        }
        code.line("}");
    }
    code.line("}");
    code.finish()
}

fn key(operation: &Operation) -> &'static str {
    match operation.routing.as_str() {
        "Locks" => "|request, _| RoutingKey::locks(&request.namespace)",
        "Key" => "|request, _| RoutingKey::cache(&request.namespace, &request.key)",
        "Meta" => "|_, _| RoutingKey::Shard(META_SHARD)",
        "Shard" => "|request, _| RoutingKey::Shard(request.shard)",
        "Messages" => "|request, layouts| layouts.routing_key(request)",
        "Lease" => "|request, _| RoutingKey::lease(&request.lease_id)",
        _ => "|_, _| RoutingKey::Any",
    }
}

fn lane(operation: &Operation) -> &'static str {
    let keeps =
        |change: &crate::operation::CommandFacts| change.session.as_deref() == Some("Keeps");
    match operation.waiting.as_str() {
        "Never" if operation.change.as_ref().is_some_and(keeps) => "|_| Lane::Renewals",
        "Never" => "|_| Lane::Calls",
        _ => "|request| unless_at_once(request.wait_ms)",
    }
}
