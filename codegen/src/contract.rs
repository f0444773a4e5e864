//! The compiled contract, and all that it says of operations.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use prost_reflect::{DescriptorPool, OneofDescriptor};
use protox::Compiler;

use crate::operation::{ContractError, Operation, RpcKind, RpcService, ShardStep, error};

/// What `proto/` says.
#[derive(Debug)]
pub struct Contract {
    pool: DescriptorPool,
    descriptors: Vec<u8>,
    services: Vec<RpcService>,
    commands: Vec<ShardStep>,
    queries: Vec<ShardStep>,
}

impl Contract {
    /// Compiles the files of a folder, and reads the options of every RPC and of every step of the log.
    ///
    /// # Errors
    /// When a file does not compile, or an operation leaves something open or contradicts its messages: the sentence names it.
    pub fn read(folder: impl AsRef<Path>) -> Result<Self, ContractError> {
        let folder = folder.as_ref();
        let mut compiler = Compiler::new([folder])?;
        compiler.include_source_info(true).include_imports(true).open_files(files(folder)?)?;
        let (pool, descriptors) =
            (compiler.descriptor_pool(), compiler.encode_file_descriptor_set());
        let mut contract = Self {
            services: services(&pool)?,
            pool,
            descriptors,
            commands: Vec::new(),
            queries: Vec::new(),
        };
        contract.check_names()?;
        contract.commands = contract.steps("trefoil.internal.v1.Command", "operation")?;
        contract.queries = contract.steps("trefoil.internal.v1.Query", "query")?;
        contract.check_places()?;
        Ok(contract)
    }

    /// The encoded descriptors of all files, options included.
    #[must_use]
    pub fn descriptors(&self) -> &[u8] {
        &self.descriptors
    }

    /// The services, in the order of files.
    #[must_use]
    pub fn services(&self) -> &[RpcService] {
        &self.services
    }

    /// Every RPC.
    pub fn operations(&self) -> impl Iterator<Item = &Operation> {
        self.services.iter().flat_map(|service| &service.operations)
    }

    /// The RPCs that also travel in frames.
    pub(crate) fn unary(&self) -> impl Iterator<Item = &Operation> {
        self.operations().filter(|operation| operation.is_unary())
    }

    /// What a shard applies.
    #[must_use]
    pub fn commands(&self) -> &[ShardStep] {
        &self.commands
    }

    /// What a shard reads.
    #[must_use]
    pub fn queries(&self) -> &[ShardStep] {
        &self.queries
    }

    /// Names of an enum's values in Rust, in the order of their numbers and without the one that says nothing.
    pub(crate) fn values(&self, name: &str) -> Vec<String> {
        let Some(values) = self.pool.get_enum_by_name(name) else { return Vec::new() };
        let mut values = values.values().filter(|it| it.number() != 0).collect::<Vec<_>>();
        values.sort_by_key(prost_reflect::EnumValueDescriptor::number);
        let names = values.into_iter().map(|value| {
            let name = crate::text::pascal(value.name());
            name.strip_prefix(value.parent_enum().name()).unwrap_or(&name).to_owned()
        });
        names.collect()
    }

    fn oneof(&self, message: &str, name: &str) -> Result<OneofDescriptor, ContractError> {
        let found = self.pool.get_message_by_name(message);
        found
            .and_then(|message| message.oneofs().find(|oneof| oneof.name() == name))
            .ok_or_else(|| error(message, format_args!("has no oneof `{name}`")))
    }

    fn steps(&self, message: &str, name: &str) -> Result<Vec<ShardStep>, ContractError> {
        let is_command = name == "operation";
        let by_request: BTreeMap<_, _> = self
            .operations()
            .map(|operation| (operation.request.full_name().to_owned(), operation))
            .collect();
        let by_name =
            self.operations().map(|operation| (operation.name.as_str(), operation)).collect();
        let fields = self.oneof(message, name)?;
        fields
            .fields()
            .map(|field| ShardStep::read(&field, is_command, &by_request, &by_name))
            .collect()
    }

    /// Sees that each operation has a name and a request of its own.
    fn check_names(&self) -> Result<(), ContractError> {
        let (mut names, mut requests) = (BTreeSet::new(), BTreeSet::new());
        for operation in self.operations() {
            if !names.insert(&operation.name) {
                return Err(error(&operation.full_name, "shares its name with another RPC"));
            }
            // A step with that message would have the rights of one of them.
            if !requests.insert(operation.request.full_name()) {
                return Err(error(&operation.full_name, "shares its request with another RPC"));
            }
        }
        Ok(())
    }

    /// Sees that every operation has its place in frames, and what is handed on its place in the log.
    fn check_places(&self) -> Result<(), ContractError> {
        let calls = variants(&self.oneof("trefoil.pipeline.v1.Call", "operation")?);
        let replies = variants(&self.oneof("trefoil.pipeline.v1.Reply", "outcome")?);
        let answers = variants(&self.oneof("trefoil.internal.v1.Answer", "answer")?);
        for operation in self.unary() {
            let request = operation.request.full_name();
            let response = operation.response.full_name();
            let has = |place: &str, there: &BTreeMap<String, String>, message: &str| match there
                .get(&operation.name)
            {
                Some(found) if found == message => Ok(()),
                _ => Err(error(
                    &operation.full_name,
                    format_args!("needs a field of its name and type {message} in {place}"),
                )),
            };
            has("trefoil.pipeline.v1.Call", &calls, request)?;
            has("trefoil.pipeline.v1.Reply", &replies, response)?;
            if operation.is_direct {
                let (steps, place) = match operation.kind {
                    RpcKind::Command => (&self.commands, "trefoil.internal.v1.Command"),
                    _ => (&self.queries, "trefoil.internal.v1.Query"),
                };
                let there = steps.iter().map(|step| (step.variant.clone(), step.message.clone()));
                has(place, &there.collect(), request)?;
                has("trefoil.internal.v1.Answer", &answers, response)?;
            }
        }
        Ok(())
    }
}

/// Name of each variant, and its message.
fn variants(oneof: &OneofDescriptor) -> BTreeMap<String, String> {
    oneof
        .fields()
        .filter_map(|field| {
            let message = field.kind().as_message()?.full_name().to_owned();
            Some((crate::text::pascal(field.name()), message))
        })
        .collect()
}

fn services(pool: &DescriptorPool) -> Result<Vec<RpcService>, ContractError> {
    pool.services().map(|service| RpcService::read(pool, &service)).collect()
}

/// The files below a folder, sorted.
fn files(folder: &Path) -> Result<Vec<PathBuf>, ContractError> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder)? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "proto") {
                found.push(path);
            }
        }
    }
    found.sort();
    Ok(found)
}
