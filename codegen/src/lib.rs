//! Reads from `proto/` what each operation says of itself, and writes the code that depends on it.
//!
//! Build scripts call [`Contract::read`] and one of the parts: `proto` for what every crate asks of an operation, `core` for
//! the dispatch of commands and queries, `server` for the services, `client` for the requests. `reference` writes the page in
//! `docs/`. What an operation leaves open is an error here, and so a build error.

mod client;
mod contract;
mod core;
mod operation;
mod proto;
mod reference;
mod server;
mod text;

use std::path::PathBuf;

pub use self::client::client;
pub use self::contract::Contract;
pub use self::core::core;
pub use self::operation::{ContractError, Operation, RpcService, ShardStep};
pub use self::proto::proto;
pub use self::reference::reference;
pub use self::server::{server, server_calls, server_services};

/// Writes a file where Cargo lets a build script write.
///
/// # Errors
/// When that is nowhere, or cannot be written.
pub fn write(file: &str, text: impl AsRef<[u8]>) -> Result<(), ContractError> {
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    Ok(std::fs::write(out.join(file), text)?)
}

/// RPCs of other contracts that the client port serves: name here, service, RPC, shape, admission class and meaning.
const FOREIGN: [[&str; 6]; 4] = [
    [
        "HealthCheck",
        "grpc.health.v1.Health",
        "Check",
        "unary",
        "Reserved",
        "Whether a service serves.",
    ],
    [
        "HealthWatch",
        "grpc.health.v1.Health",
        "Watch",
        "server_stream",
        "Stream",
        "Tells whenever that changes.",
    ],
    [
        "Reflection",
        "grpc.reflection.v1.ServerReflection",
        "ServerReflectionInfo",
        "bidi_stream",
        "Stream",
        "Describes the services.",
    ],
    [
        "ReflectionAlpha",
        "grpc.reflection.v1alpha.ServerReflection",
        "ServerReflectionInfo",
        "bidi_stream",
        "Stream",
        "The same for older tools.",
    ],
];
