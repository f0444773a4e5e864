//! `trefoil version`: what this binary is and which formats it writes.

use std::process::ExitCode;

use serde::Serialize;

use crate::exit::CommandFailure;
use crate::output::{self, CommandOutput, Format};

#[derive(Serialize)]
struct VersionOutput {
    version: &'static str,
    commit: &'static str,
    /// Version of the state machine that entries of the log ask for.
    machine: u32,
    /// Version of the data directory.
    directory: u32,
    /// Version of the map from keys to slots to shards.
    slot_map: u32,
}

pub(crate) fn run(format: Format) -> Result<ExitCode, CommandFailure> {
    let version = VersionOutput {
        version: trefoil_server::VERSION,
        commit: trefoil_server::COMMIT,
        machine: trefoil_core::MACHINE_VERSION,
        directory: trefoil_server::storage::directory::DIRECTORY_FORMAT,
        slot_map: trefoil_core::slot::MAP_EPOCH,
    };
    output::print(format, &version)?;
    Ok(ExitCode::SUCCESS)
}

impl CommandOutput for VersionOutput {
    fn text(&self) -> String {
        output::fields([
            ("trefoil", self.version.to_owned()),
            ("commit", self.commit.to_owned()),
            ("machine", self.machine.to_string()),
            ("directory", self.directory.to_string()),
            ("slot map", self.slot_map.to_string()),
        ])
    }
}
