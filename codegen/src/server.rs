//! What a node does with each operation: check it, carry it out, serve it by itself.

use crate::contract::Contract;
use crate::operation::{ContractError, Operation, RpcKind, RpcService, error};
use crate::text::{CodeWriter, path, snake};

/// Included by `server/src/api/generated.rs`.
///
/// # Errors
/// When an operation cannot be handed on to its shard as it stands.
pub fn server(contract: &Contract) -> Result<String, ContractError> {
    let mut code = CodeWriter::new();
    check(&mut code, contract);
    dispatch(&mut code, contract)?;
    for service in contract.services() {
        let is_carrier = |it: &Operation| it.kind == RpcKind::Carrier;
        if !service.operations.is_empty() && !service.operations.iter().any(is_carrier) {
            serve(&mut code, service);
        }
    }
    add(&mut code, contract);
    Ok(code.finish())
}

/// Included by the server's tests: each operation as a unary call.
#[must_use]
pub fn server_calls(contract: &Contract) -> String {
    let mut code = CodeWriter::new();
    code.line("/// What a unary call of an operation ends with.");
    code.line("#[allow(clippy::too_many_lines, reason = \"an arm for each operation\")]");
    code.line("pub(crate) async fn unary(");
    code.line("channel: &Channel,");
    code.line("operation: Operation,");
    code.line(") -> Result<Outcome, tonic::Status> {");
    code.line("Ok(match operation {");
    for service in contract.services() {
        let module = format!("{}_client", snake(&service.name));
        let client =
            path("trefoil_proto", &format!("{}.{module}.{}Client", service.package, service.name));
        for operation in service.operations.iter().filter(|it| it.is_unary()) {
            let (name, rpc) = (&operation.name, snake(&operation.rpc));
            code.line(format_args!("Operation::{name}(request) => {{"));
            code.line(format_args!("let mut client = {client}::new(channel.clone());"));
            code.line(format_args!("Outcome::{name}(client.{rpc}(request).await?.into_inner())"));
            code.line("}");
        }
    }
    code.line("})");
    code.line("}");
    code.finish()
}

fn check(code: &mut CodeWriter, contract: &Contract) {
    code.line("/// Refuses bad fields, and fills in what may be left out.");
    code.line("///");
    code.line("/// # Errors");
    code.line("/// INVALID_FIELD, naming the field and the limit.");
    code.line("pub(super) fn check(operation: &mut Operation) -> Result<(), Refusal> {");
    code.line("match operation {");
    for operation in contract.unary() {
        code.line(format_args!("Operation::{}(request) => request.check(),", operation.name));
    }
    code.line("}");
    code.line("}");
    code.line("");
}

fn dispatch(code: &mut CodeWriter, contract: &Contract) -> Result<(), ContractError> {
    code.line("impl<S: Shards> Api<S> {");
    code.line("/// Carries out what was checked and allowed.");
    code.line("#[allow(clippy::too_many_lines, reason = \"an arm for each operation\")]");
    code.line("pub(super) async fn dispatch(");
    code.line("self: &Arc<Self>,");
    code.line("context: &Context,");
    code.line("operation: Operation,");
    code.line(") -> Result<Outcome, Refusal> {");
    code.line("Ok(match operation {");
    for operation in contract.unary() {
        if operation.is_direct {
            hand_on(code, operation)?;
        } else {
            compose(code, operation);
        }
    }
    code.line("})");
    code.line("}");
    code.line("}");
    code.line("");
    Ok(())
}

/// An operation that is one command or query.
fn hand_on(code: &mut CodeWriter, operation: &Operation) -> Result<(), ContractError> {
    let Operation { name, full_name, routing, .. } = operation;
    let slot = match routing.as_str() {
        "Locks" => "slot::of_locks(&request.namespace)",
        "Key" => "slot::of_cache(&request.namespace, &request.key)",
        "Meta" => "slot::SYSTEM_SLOT",
        _ => return Err(error(full_name, "is not of one shard: it needs a handler of its own")),
    };
    let mutable = if operation.has_request_id { "mut " } else { "" };
    code.line(format_args!("Operation::{name}({mutable}request) => {{"));
    code.line(format_args!("let slot = {slot};"));
    match operation.kind {
        RpcKind::Command => {
            let id = if operation.has_request_id { "request.request_id.take()" } else { "None" };
            code.line(format_args!("let id = {id};"));
            let (call, context) = if operation.has_fence {
                ("fenced", "context")
            } else {
                ("command", "&context.ask")
            };
            code.line(format_args!(
                "let decided = self.{call}(slot, id, Command::{name}(request), {context}).await?;"
            ));
        }
        _ if operation.has_fence => {
            return Err(error(full_name, "reads under a fence: it needs a handler of its own"));
        }
        _ => code.line(format_args!(
            "let decided = self.query(slot, Query::{name}(request), &context.ask).await?;"
        )),
    }
    code.line(format_args!("Outcome::{name}(expect_answer!(decided, {name})?)"));
    code.line("}");
    Ok(())
}

/// An operation with a handler. One that waits at the node has much state of its own, and goes on the heap.
fn compose(code: &mut CodeWriter, operation: &Operation) {
    let (name, handler) = (&operation.name, snake(&operation.name));
    let call = format!("self.{handler}(context, request)");
    let call = if operation.waiting == "AtNode" { format!("Box::pin({call})") } else { call };
    code.line(format_args!("Operation::{name}(request) => Outcome::{name}({call}.await?),"));
}

fn server_module(service: &RpcService) -> String {
    let module = format!("{}_server", snake(&service.name));
    path("trefoil_proto", &format!("{}.{module}", service.package))
}

fn serve(code: &mut CodeWriter, service: &RpcService) {
    code.line("#[tonic::async_trait]");
    code.line(format_args!(
        "impl<S: Shards> {}::{} for Unary<S> {{",
        server_module(service),
        service.name
    ));
    for operation in &service.operations {
        let request = path("trefoil_proto", operation.request.full_name());
        let response = path("trefoil_proto", operation.response.full_name());
        let (name, handler) = (&operation.name, snake(&operation.rpc));
        if !operation.is_unary() {
            stream(code, operation, &request, &response);
            continue;
        }
        code.line(format_args!("async fn {handler}("));
        code.line("&self,");
        code.line(format_args!("request: Request<{request}>,"));
        code.line(format_args!(") -> Result<Response<{response}>, Status> {{"));
        code.line(format_args!("match self.serve(request, Operation::{name}).await? {{"));
        code.line(format_args!("Outcome::{name}(response) => Ok(Response::new(response)),"));
        code.line("_ => Err(self.refuse(&other_answer(), false)),");
        code.line("}");
        code.line("}");
    }
    code.line("}");
    code.line("");
}

fn stream(code: &mut CodeWriter, operation: &Operation, request: &str, response: &str) {
    let (name, handler) = (&operation.name, snake(&operation.rpc));
    let takes =
        if operation.takes_stream { format!("Streaming<{request}>") } else { request.to_owned() };
    code.line(format_args!("type {name}Stream = ServerStream<{response}>;"));
    code.line("");
    code.line(format_args!("async fn {handler}("));
    code.line("&self,");
    code.line(format_args!("mut request: Request<{takes}>,"));
    code.line(format_args!(") -> Result<Response<Self::{name}Stream>, Status> {{"));
    code.line(format_args!("let caller = self.caller(&mut request, Method::{name})?;"));
    code.line("let request = request.into_inner();");
    code.line(format_args!("let has_request_id = {};", nested_request_id(operation)));
    code.line(format_args!("let stream = self.api.{handler}(caller, request).await;"));
    code.line("stream.map(Response::new).map_err(|refusal| self.refuse(&refusal, has_request_id))");
    code.line("}");
}

/// Whether the request of a stream wraps one that has a request id.
fn nested_request_id(operation: &Operation) -> String {
    let wraps = operation.request.fields().find(|field| {
        let kind = field.kind();
        let inner = kind.as_message().filter(|_| !field.is_list() && !operation.takes_stream);
        inner.is_some_and(|inner| inner.get_field_by_name("request_id").is_some())
    });
    wraps.map_or_else(
        || "false".to_owned(),
        |field| {
            format!("request.{}.as_ref().is_some_and(|it| it.request_id.is_some())", field.name())
        },
    )
}

fn add(code: &mut CodeWriter, contract: &Contract) {
    code.line("/// Adds the unary services, each with the bounds that every one of them has.");
    code.line(
        "pub(super) fn add_services<S: Shards>(routes: Routes, unary: &Unary<S>) -> Routes {",
    );
    code.line("routes");
    for service in contract.services() {
        if service.operations.iter().any(Operation::is_unary) {
            code.line(format_args!(
                ".add_service(bounded!({}::{}Server::new(unary.clone())))",
                server_module(service),
                service.name
            ));
        }
    }
    code.line("}");
}

/// Included by `server/src/api/operation.rs`: the service of each RPC.
#[must_use]
pub fn server_services(contract: &Contract) -> String {
    let mut code = CodeWriter::new();
    code.line(
        "/// The service of the cluster that must be on for an RPC; none where it is always on.",
    );
    code.line("#[must_use]");
    code.line("pub(super) fn service(method: Method) -> Option<Service> {");
    let own = contract.operations().map(|it| {
        let package = it.package.split('.').nth(1).unwrap_or_default();
        let value = match package {
            // What a node is asked about itself, and what only carries other calls.
            "cluster" | "pipeline" => "None".to_owned(),
            package => format!("Some(Service::{})", crate::text::pascal(package)),
        };
        (format!("Method::{}", it.name), value)
    });
    let foreign =
        crate::FOREIGN.iter().map(|[name, ..]| (format!("Method::{name}"), "None".to_owned()));
    code.matches("method", own.chain(foreign));
    code.line("}");
    code.finish()
}
