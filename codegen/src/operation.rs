//! One RPC or step, as its options and its messages describe it.

use std::collections::BTreeMap;
use std::fmt;

use prost_reflect::{
    DescriptorPool, DynamicMessage, ExtensionDescriptor, FieldDescriptor, MessageDescriptor,
    MethodDescriptor, ReflectMessage as _, ServiceDescriptor, Value,
};

use crate::text::pascal;

/// Why nothing is generated.
pub type ContractError = Box<dyn std::error::Error + Send + Sync>;

/// A service with its RPCs.
#[derive(Debug)]
pub struct RpcService {
    /// Such as `LockService`.
    pub name: String,
    /// Such as `trefoil.lock.v1`.
    pub package: String,
    /// What the contract says of it.
    pub comment: String,
    /// Its RPCs.
    pub operations: Vec<Operation>,
}

/// What an RPC does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum RpcKind {
    /// Changes state.
    Command,
    /// Reads.
    Query,
    /// Answers with a stream.
    Stream,
    /// Carries other operations.
    Carrier,
}

/// An RPC.
#[derive(Debug)]
pub struct Operation {
    /// Such as `AcquirePermits`; `Pipeline` of the carrier.
    pub name: String,
    /// Its name within its service.
    pub rpc: String,
    /// Such as `trefoil.lock.v1.SemaphoreService.AcquirePermits`.
    pub full_name: String,
    /// What the contract says of it.
    pub comment: String,
    pub(crate) package: String,
    pub(crate) service: String,
    pub(crate) request: MessageDescriptor,
    pub(crate) response: MessageDescriptor,
    pub(crate) takes_stream: bool,
    pub(crate) kind: RpcKind,
    pub(crate) is_direct: bool,
    /// The options below are the names of their values in Rust.
    pub(crate) action: String,
    pub(crate) resource: String,
    pub(crate) routing: String,
    pub(crate) admission: String,
    pub(crate) waiting: String,
    pub(crate) has_request_id: bool,
    pub(crate) has_fence: bool,
    pub(crate) change: Option<CommandFacts>,
}

/// What is to be known of a command alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct CommandFacts {
    pub(crate) is_idempotent: bool,
    pub(crate) frees_space: bool,
    pub(crate) draws: bool,
    /// What it does to the session that it names; none where it names none.
    pub(crate) session: Option<String>,
}

/// A variant of the commands or queries of a shard.
#[derive(Debug)]
pub struct ShardStep {
    /// Such as `CancelAcquire`.
    pub variant: String,
    /// Full name of its message.
    pub message: String,
    pub(crate) descriptor: MessageDescriptor,
    /// Of which rights one is enough.
    pub(crate) actions: Vec<String>,
    pub(crate) resource: String,
    pub(crate) admission: String,
    /// It waits at its shard for as long as its `wait_ms` says.
    pub(crate) waits: bool,
    pub(crate) change: Option<CommandFacts>,
}

/// A sentence about a place in the contract.
pub(crate) fn error(place: &str, what: impl fmt::Display) -> ContractError {
    format!("{place} {what}").into()
}

/// The options of one place.
struct OptionReader<'a> {
    place: &'a str,
    message: DynamicMessage,
}

impl<'a> OptionReader<'a> {
    /// What an extension says of a place, where it says anything.
    fn of(
        place: &'a str,
        options: &DynamicMessage,
        extension: &ExtensionDescriptor,
    ) -> Option<Self> {
        if !options.has_extension(extension) {
            return None;
        }
        let message = options.get_extension(extension).as_message().cloned()?;
        Some(Self { place, message })
    }

    fn is_said(&self, name: &str) -> bool {
        self.message.has_field_by_name(name)
    }

    fn missing(&self, name: &str) -> ContractError {
        error(self.place, format_args!("does not say `{name}`"))
    }

    /// The name of an enum's value in Rust.
    fn choice(&self, name: &str) -> Result<String, ContractError> {
        let field = self.message.descriptor().get_field_by_name(name);
        let field = field.ok_or_else(|| self.missing(name))?;
        let kind = field.kind();
        let values = kind.as_enum().ok_or_else(|| self.missing(name))?;
        let number = self.message.get_field(&field).as_enum_number();
        let value = number.filter(|number| *number != 0).and_then(|n| values.get_value(n));
        let value = value.ok_or_else(|| self.missing(name))?;
        let name = pascal(value.name());
        Ok(name.strip_prefix(values.name()).unwrap_or(&name).to_owned())
    }

    fn flag(&self, name: &str) -> Result<bool, ContractError> {
        if !self.is_said(name) {
            return Err(self.missing(name));
        }
        let value = self.message.get_field_by_name(name);
        value.and_then(|value| value.as_bool()).ok_or_else(|| self.missing(name))
    }

    fn names(&self, name: &str) -> Vec<String> {
        let value = self.message.get_field_by_name(name);
        let names = value.as_deref().and_then(Value::as_list).unwrap_or_default();
        names.iter().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// A flag that must be true exactly where the request has the field.
    fn of_field(&self, name: &str, request: &MessageDescriptor) -> Result<bool, ContractError> {
        let has = request.get_field_by_name(name).is_some();
        if self.flag(name)? == has {
            return Ok(has);
        }
        let message = request.full_name();
        let says = if has { "has" } else { "has no" };
        Err(error(self.place, format_args!("contradicts {message}, which {says} field `{name}`")))
    }

    /// What a command says; nothing else may say it.
    fn change(
        &self,
        is_command: bool,
        request: &MessageDescriptor,
    ) -> Result<Option<CommandFacts>, ContractError> {
        const OF_COMMANDS: [&str; 4] = ["idempotent", "frees_space", "session", "draws"];
        if !is_command {
            let said = OF_COMMANDS.into_iter().find(|name| self.is_said(name));
            return said.map_or(Ok(None), |name| {
                Err(error(self.place, format_args!("says `{name}`, which is of commands alone")))
            });
        }
        let session = match (request.get_field_by_name("session_id"), self.is_said("session")) {
            (Some(_), _) => Some(self.choice("session")?),
            (None, false) => None,
            (None, true) => {
                let what = format_args!("says `session`, and {} names none", request.full_name());
                return Err(error(self.place, what));
            }
        };
        Ok(Some(CommandFacts {
            is_idempotent: self.flag("idempotent")?,
            frees_space: self.flag("frees_space")?,
            draws: self.flag("draws")?,
            session,
        }))
    }
}

/// Sees that a message has the fields that name a resource.
fn check_resource(
    place: &str,
    resource: &str,
    message: &MessageDescriptor,
) -> Result<(), ContractError> {
    let fields: &[&str] = match resource {
        "Namespace" if message.get_field_by_name("namespace").is_none() => &["name"],
        "Namespace" => &["namespace"],
        "Lock" => &["namespace", "name"],
        "Queue" => &["namespace", "queue"],
        "Key" => &["namespace", "key"],
        _ => &[],
    };
    let missing = fields.iter().find(|name| message.get_field_by_name(name).is_none());
    missing.map_or(Ok(()), |name| {
        let message = message.full_name();
        Err(error(place, format_args!("is done to a {resource}, and {message} has no `{name}`")))
    })
}

impl RpcService {
    pub(crate) fn read(
        pool: &DescriptorPool,
        service: &ServiceDescriptor,
    ) -> Result<Self, ContractError> {
        let package = service.package_name().to_owned();
        let is_internal = package.starts_with("trefoil.internal.");
        let methods = service.methods().filter(|_| !is_internal);
        Ok(Self {
            name: service.name().to_owned(),
            comment: comment(&service.parent_file(), service.path()),
            operations: methods
                .map(|method| Operation::read(pool, &method))
                .collect::<Result<_, _>>()?,
            package,
        })
    }
}

impl Operation {
    fn read(pool: &DescriptorPool, method: &MethodDescriptor) -> Result<Self, ContractError> {
        let place = method.full_name();
        let options = pool
            .get_extension_by_name("trefoil.common.v1.operation")
            .and_then(|extension| OptionReader::of(place, &method.options(), &extension))
            .ok_or_else(|| error(place, "has no option (trefoil.common.v1.operation)"))?;
        let (request, response) = (method.input(), method.output());
        let kind = match options.choice("kind")?.as_str() {
            "Command" => RpcKind::Command,
            "Query" => RpcKind::Query,
            "Stream" => RpcKind::Stream,
            _ => RpcKind::Carrier,
        };
        if method.is_server_streaming() != matches!(kind, RpcKind::Stream | RpcKind::Carrier) {
            return Err(error(place, "is a stream exactly where its `kind` is STREAM or CARRIER"));
        }
        let (action, resource) = if kind == RpcKind::Carrier {
            ("Unspecified".to_owned(), "Unspecified".to_owned())
        } else {
            (options.choice("action")?, options.choice("resource")?)
        };
        // Streams may wrap what they ask for in a message of another operation, and check it as that.
        if matches!(kind, RpcKind::Command | RpcKind::Query) {
            check_resource(place, &resource, &request)?;
        }
        let waiting = options.choice("waiting")?;
        if (waiting != "Never") != request.get_field_by_name("wait_ms").is_some() {
            return Err(error(place, "waits exactly where its request has `wait_ms`"));
        }
        let service = method.parent_service();
        Ok(Self {
            name: if kind == RpcKind::Carrier { "Pipeline" } else { method.name() }.to_owned(),
            rpc: method.name().to_owned(),
            full_name: place.to_owned(),
            comment: comment(&method.parent_file(), method.path()),
            package: service.package_name().to_owned(),
            service: service.full_name().to_owned(),
            takes_stream: method.is_client_streaming(),
            is_direct: options.choice("handling")? == "Direct",
            routing: options.choice("routing")?,
            admission: options.choice("admission")?,
            has_request_id: options.of_field("request_id", &request)?,
            has_fence: options.of_field("fence", &request)?,
            change: options.change(kind == RpcKind::Command, &request)?,
            kind,
            action,
            resource,
            waiting,
            request,
            response,
        })
    }

    pub(crate) fn is_unary(&self) -> bool {
        matches!(self.kind, RpcKind::Command | RpcKind::Query)
    }

    /// As gRPC metrics name it in every language.
    pub(crate) fn shape(&self) -> &'static str {
        match (self.is_unary(), self.takes_stream) {
            (true, _) => "unary",
            (false, false) => "server_stream",
            (false, true) => "bidi_stream",
        }
    }
}

impl ShardStep {
    pub(crate) fn read(
        field: &FieldDescriptor,
        is_command: bool,
        by_request: &BTreeMap<String, &Operation>,
        by_name: &BTreeMap<&str, &Operation>,
    ) -> Result<Self, ContractError> {
        let place = field.full_name();
        let kind = field.kind();
        let descriptor =
            kind.as_message().ok_or_else(|| error(place, "must be a message"))?.clone();
        let options = field
            .parent_pool()
            .get_extension_by_name("trefoil.common.v1.step")
            .and_then(|extension| OptionReader::of(place, &field.options(), &extension));
        let own = by_request.get(descriptor.full_name());
        let names = options.as_ref().map(|options| options.names("operations")).unwrap_or_default();
        let mut actions = own.map(|own| own.action.clone()).into_iter().collect::<Vec<_>>();
        for name in names {
            let found = by_name.get(name.as_str());
            let action =
                &found.ok_or_else(|| error(place, format_args!("is of no RPC {name}")))?.action;
            if !actions.contains(action) {
                actions.push(action.clone());
            }
        }
        let (resource, admission, waits, change) = match (own, options) {
            (Some(own), options) => {
                if options.is_some_and(|options| options.is_said("resource")) {
                    return Err(error(place, "says again what its RPC says"));
                }
                if is_command && own.change.is_none() {
                    return Err(error(place, "is a command, and its RPC is none"));
                }
                let waits = own.waiting == "AtShard";
                let admission = match own.kind {
                    RpcKind::Command => own.admission.clone(),
                    // A read is as good as another: it is the call that may have come by a share of its own.
                    _ => "Ordinary".to_owned(),
                };
                (own.resource.clone(), admission, waits, own.change.clone().filter(|_| is_command))
            }
            (None, Some(options)) => {
                let change = options.change(is_command, &descriptor)?;
                (options.choice("resource")?, options.choice("admission")?, false, change)
            }
            (None, None) => return Err(error(place, "has no option (trefoil.common.v1.step)")),
        };
        check_resource(place, &resource, &descriptor)?;
        Ok(Self {
            variant: pascal(field.name()),
            message: descriptor.full_name().to_owned(),
            descriptor,
            actions,
            resource,
            admission,
            waits,
            change,
        })
    }
}

/// What the contract says of a field of a message.
pub(crate) fn field_comment(field: &FieldDescriptor) -> String {
    comment(&field.parent_message().parent_file(), field.path())
}

/// The comment before a place of a file, as one line.
fn comment(file: &prost_reflect::FileDescriptor, path: &[i32]) -> String {
    let info = file.file_descriptor_proto().source_code_info.as_ref();
    let location =
        info.and_then(|info| info.location.iter().find(|location| location.path == path));
    let text = location.and_then(|location| location.leading_comments.as_deref());
    text.unwrap_or_default().split_whitespace().collect::<Vec<_>>().join(" ")
}
