//! `trefoil completions` and `trefoil man`: made from the command line's own description.

use std::path::Path;
use std::process::ExitCode;

use clap::Command;

use crate::exit::CommandFailure;
use crate::output;

pub(crate) fn completions(
    shell: clap_complete::Shell,
    mut command: Command,
) -> Result<ExitCode, CommandFailure> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "trefoil", &mut script);
    output::raw(&script)?;
    Ok(ExitCode::SUCCESS)
}

pub(crate) fn man(dir: &Path, command: Command) -> Result<ExitCode, CommandFailure> {
    let written =
        std::fs::create_dir_all(dir).and_then(|()| clap_mangen::generate_to(command, dir));
    written.map_err(|error| {
        CommandFailure::new(format!("cannot write manual pages to {}: {error}", dir.display()))
    })?;
    Ok(ExitCode::SUCCESS)
}
