//! What every crate asks of an operation, a command or a query.

use crate::FOREIGN;
use crate::contract::Contract;
use crate::operation::{Operation, ShardStep};
use crate::text::CodeWriter;

/// Included by `proto/operation.rs`.
#[must_use]
pub fn proto(contract: &Contract) -> String {
    let mut code = CodeWriter::new();
    all(&mut code, contract, "Reason");
    all(&mut code, contract, "Action");
    methods(&mut code, contract);
    calls(&mut code, contract);
    outcomes(&mut code, contract);
    commands(&mut code, contract.commands());
    queries(&mut code, contract.queries());
    code.finish()
}

/// A list of the values of an enum, so that nobody keeps one.
fn all(code: &mut CodeWriter, contract: &Contract, name: &str) {
    code.line(format_args!("impl {name} {{"));
    code.line("/// Every one, in the order of their numbers.");
    code.line("pub const ALL: &[Self] = &[");
    for value in contract.values(&format!("trefoil.common.v1.{name}")) {
        code.line(format_args!("Self::{value},"));
    }
    code.line("];");
    code.line("}");
    code.line("");
}

fn methods(code: &mut CodeWriter, contract: &Contract) {
    code.line("/// An RPC of the client port.");
    code.line("#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]");
    code.line("pub enum Method {");
    for operation in contract.operations() {
        code.line(format_args!("/// {}", first_sentence(&operation.comment)));
        code.line(format_args!("{},", operation.name));
    }
    for [name, .., meaning] in FOREIGN {
        code.line(format_args!("/// {meaning}"));
        code.line(format_args!("{name},"));
    }
    code.line("}");
    code.line("");
    code.line("impl Method {");
    code.line("/// Every RPC, in the order of [`Method::index`].");
    code.line("pub const ALL: &[Self] = &[");
    for operation in contract.operations() {
        code.line(format_args!("Self::{},", operation.name));
    }
    for [name, ..] in FOREIGN {
        code.line(format_args!("Self::{name},"));
    }
    code.line("];");
    code.line("");
    code.line("/// The RPC with this path; none for any other path.");
    code.line("#[must_use]");
    code.line("pub fn of_path(path: &str) -> Option<Self> {");
    code.line("match path {");
    for operation in contract.operations() {
        let Operation { service, rpc, name, .. } = operation;
        code.line(format_args!("\"/{service}/{rpc}\" => Some(Self::{name}),"));
    }
    for [name, service, rpc, ..] in FOREIGN {
        code.line(format_args!("\"/{service}/{rpc}\" => Some(Self::{name}),"));
    }
    code.line("_ => None,");
    code.line("}");
    code.line("}");
    code.line("}");
    code.line("");
    code.line("/// What is to be known of each, in the order of [`Method::ALL`].");
    code.line("const FACTS: &[Facts] = &[");
    contract.operations().for_each(|operation| facts(code, operation));
    for [_, service, rpc, shape, admission, _] in FOREIGN {
        code.line("Facts {");
        code.line(format_args!("service: \"{service}\","));
        code.line(format_args!("name: \"{rpc}\","));
        code.line(format_args!("shape: \"{shape}\","));
        code.line("action: Action::Unspecified,");
        code.line("resource: Resource::Unspecified,");
        code.line(format_args!("admission: AdmissionClass::{admission},"));
        code.line("has_request_id: false,");
        code.line("},");
    }
    code.line("];");
    code.line("");
}

fn facts(code: &mut CodeWriter, operation: &Operation) {
    code.line("Facts {");
    code.line(format_args!("service: \"{}\",", operation.service));
    code.line(format_args!("name: \"{}\",", operation.rpc));
    code.line(format_args!("shape: \"{}\",", operation.shape()));
    code.line(format_args!("action: Action::{},", operation.action));
    code.line(format_args!("resource: Resource::{},", operation.resource));
    code.line(format_args!("admission: AdmissionClass::{},", operation.admission));
    code.line(format_args!("has_request_id: {},", operation.has_request_id));
    code.line("},");
}

/// A function of a oneof with an arm for each variant: what to do with its message, or the value where there is nothing.
struct Getter<'a> {
    doc: &'a str,
    head: &'a str,
    none: &'a str,
}

impl Getter<'_> {
    fn write(&self, code: &mut CodeWriter, arms: impl Iterator<Item = (String, Option<String>)>) {
        let Self { doc, head, none } = self;
        code.line(format_args!("/// {doc}"));
        code.line("#[must_use]");
        code.line(format_args!("pub fn {head} {{"));
        let arms = arms.map(|(variant, value)| match value {
            Some(value) if value.contains("request") => {
                (format!("Self::{variant}(request)"), value)
            }
            Some(value) => (format!("Self::{variant}(..)"), value),
            None => (format!("Self::{variant}(_)"), (*none).to_owned()),
        });
        // Arms with a value cannot be shared: the messages differ.
        let (bound, unbound): (Vec<_>, Vec<_>) =
            arms.partition(|(pattern, _)| !pattern.ends_with("(_)"));
        code.line("match self {");
        for (pattern, value) in bound {
            code.line(format_args!("{pattern} => {value},"));
        }
        if let Some((last, others)) = unbound.split_last() {
            for (pattern, _) in others {
                code.line(format_args!("{pattern} |"));
            }
            code.line(format_args!("{} => {none},", last.0));
        }
        code.line("}");
        code.line("}");
        code.line("");
    }
}

fn calls(code: &mut CodeWriter, contract: &Contract) {
    let unary = || contract.unary();
    let where_it = |has: fn(&Operation) -> bool, value: &'static str| {
        unary().map(move |it| (it.name.clone(), has(it).then(|| value.to_owned())))
    };
    let waits = |it: &Operation| it.waiting != "Never";
    code.line("impl call::Operation {");
    code.line("/// The RPC that it is.");
    code.line("#[must_use]");
    code.line("pub fn method(&self) -> Method {");
    code.matches(
        "self",
        unary().map(|it| (format!("Self::{}(_)", it.name), format!("Method::{}", it.name))),
    );
    code.line("}");
    code.line("");
    for (doc, head, value) in [
        (
            "Its request id.",
            "request_id(&self) -> Option<&RequestId>",
            "request.request_id.as_ref()",
        ),
        (
            "The field of its request id, where it has one.",
            "request_id_mut(&mut self) -> Option<&mut Option<RequestId>>",
            "Some(&mut request.request_id)",
        ),
    ] {
        Getter { doc, head, none: "None" }.write(code, where_it(|it| it.has_request_id, value));
    }
    Getter { doc: "How long it may wait, in ms.", head: "wait_ms(&self) -> u64", none: "0" }
        .write(code, where_it(waits, "request.wait_ms"));
    Getter {
        doc: "The field of how long it may wait, in ms, where it has one.",
        head: "wait_ms_mut(&mut self) -> Option<&mut u64>",
        none: "None",
    }
    .write(code, where_it(waits, "Some(&mut request.wait_ms)"));
    Getter {
        doc: "The field of its fence, where it has one.",
        head: "fence_mut(&mut self) -> Option<&mut Option<Fence>>",
        none: "None",
    }
    .write(code, where_it(|it| it.has_fence, "Some(&mut request.fence)"));
    Getter {
        doc: "Namespace and name of what it is done to; empty where it has none.",
        head: "names(&self) -> (&str, &str)",
        none: "(\"\", \"\")",
    }
    .write(code, unary().map(|it| (it.name.clone(), names(&it.resource, &it.request))));
    Getter {
        doc: "The locks that it asks for; none where it names one lock, or something else.",
        head: "locks(&self) -> &[LockWish]",
        none: "&[]",
    }
    .write(code, unary().map(|it| (it.name.clone(), locks(&it.resource, &it.request))));
    code.line("}");
    code.line("");
}

fn outcomes(code: &mut CodeWriter, contract: &Contract) {
    code.line("impl reply::Outcome {");
    for (doc, head, value) in [
        ("Its header.", "header(&self) -> Option<&ResponseHeader>", "request.header.as_ref()"),
        (
            "The field of its header, where it has one.",
            "header_mut(&mut self) -> Option<&mut Option<ResponseHeader>>",
            "Some(&mut request.header)",
        ),
    ] {
        let of_each = contract.unary().map(|it| {
            let has = it.response.get_field_by_name("header").is_some();
            (it.name.clone(), has.then(|| value.to_owned()))
        });
        let arms = of_each.chain([("Error".to_owned(), None)]);
        Getter { doc, head, none: "None" }.write(code, arms);
    }
    code.line("}");
    code.line("");
}

fn commands(code: &mut CodeWriter, steps: &[ShardStep]) {
    code.line("impl command::Operation {");
    for (doc, name, of) in [
        (
            "Whether doing it twice is doing it once.",
            "is_idempotent",
            (|step| step.change.as_ref().is_some_and(|it| it.is_idempotent))
                as fn(&ShardStep) -> bool,
        ),
        (
            "Whether it makes room: it is taken even when the disk is nearly full.",
            "frees_space",
            |step| step.change.as_ref().is_some_and(|it| it.frees_space),
        ),
        (
            "Whether the node that makes it draws chance for it, because what applies it draws nothing.",
            "draws_chance",
            |step| step.change.as_ref().is_some_and(|it| it.draws),
        ),
    ] {
        code.line(format_args!("/// {doc}"));
        code.line("#[must_use]");
        code.line(format_args!("pub fn {name}(&self) -> bool {{"));
        code.matches(
            "self",
            steps.iter().map(|step| (format!("Self::{}(_)", step.variant), of(step))),
        );
        code.line("}");
        code.line("");
    }
    Getter {
        doc: "Namespace and id of the session that it names, and what it does to that.",
        head: "session(&self) -> Option<(&str, u64, SessionUse)>",
        none: "None",
    }
    .write(
        code,
        steps.iter().map(|step| {
            let session = step.change.as_ref().and_then(|change| change.session.as_ref());
            let value = session.map(|of| {
                format!("Some((&request.namespace, request.session_id, SessionUse::{of}))")
            });
            (step.variant.clone(), value)
        }),
    );
    of_steps(code, steps);
    code.line("}");
    code.line("");
}

fn queries(code: &mut CodeWriter, steps: &[ShardStep]) {
    code.line("impl query::Query {");
    of_steps(code, steps);
    code.line("}");
}

/// What commands and queries have in common.
fn of_steps(code: &mut CodeWriter, steps: &[ShardStep]) {
    code.line("/// What it counts against at the leader.");
    code.line("#[must_use]");
    code.line("pub fn admission(&self) -> AdmissionClass {");
    let waits = steps.iter().filter(|step| step.waits && step.change.is_some()).map(|step| {
        let pattern = format!("Self::{}(request) if request.wait_ms > 0", step.variant);
        (pattern, "AdmissionClass::Waiting".to_owned())
    });
    let others = steps.iter().map(|step| {
        (format!("Self::{}(_)", step.variant), format!("AdmissionClass::{}", step.admission))
    });
    code.line("match self {");
    for (pattern, value) in waits {
        code.line(format_args!("{pattern} => {value},"));
    }
    code.arms(others);
    code.line("}");
    code.line("}");
    code.line("");
    code.line(
        "/// The rights of which its caller needs one. None at all: leaders alone propose it.",
    );
    code.line("#[must_use]");
    code.line("pub fn actions(&self) -> &'static [Action] {");
    code.matches(
        "self",
        steps.iter().map(|step| {
            let actions = step.actions.iter().map(|action| format!("Action::{action}"));
            let list = actions.collect::<Vec<_>>().join(", ");
            (format!("Self::{}(_)", step.variant), format!("&[{list}]"))
        }),
    );
    code.line("}");
    code.line("");
    Getter {
        doc: "Namespace and name of what it is done to; none where it does not say.",
        head: "names(&self) -> Option<(&str, &str)>",
        none: "None",
    }
    .write(
        code,
        steps.iter().map(|step| {
            let value = match step.resource.as_str() {
                "Cluster" => Some("(\"\", \"\")".to_owned()),
                resource => names(resource, &step.descriptor),
            };
            (step.variant.clone(), value.map(|names| format!("Some({names})")))
        }),
    );
    Getter {
        doc: "The locks that it asks for; none where it names one lock, or something else.",
        head: "locks(&self) -> &[LockWish]",
        none: "&[]",
    }
    .write(
        code,
        steps.iter().map(|step| (step.variant.clone(), locks(&step.resource, &step.descriptor))),
    );
}

/// Namespace and name in the fields of a message.
fn names(resource: &str, message: &prost_reflect::MessageDescriptor) -> Option<String> {
    let namespace =
        if message.get_field_by_name("namespace").is_some() { "namespace" } else { "name" };
    let name = match resource {
        "Namespace" => return Some(format!("(&request.{namespace}, \"\")")),
        "Lock" => "name",
        "Queue" => "queue",
        "Key" => "key",
        _ => return None,
    };
    Some(format!("(&request.{namespace}, &request.{name})"))
}

/// The locks in the field of a message that may name several.
fn locks(resource: &str, message: &prost_reflect::MessageDescriptor) -> Option<String> {
    let has = resource == "Lock" && message.get_field_by_name("locks").is_some();
    has.then(|| "&request.locks".to_owned())
}

/// Up to its first full stop.
fn first_sentence(comment: &str) -> &str {
    comment.find(". ").map_or(comment, |end| &comment[..=end])
}
