//! The modes of a lock on the command line.

use trefoil_client::LockMode;

/// How a lock is held.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
pub(crate) enum Mode {
    /// Together with other readers.
    Shared,
    /// Beside readers, to be converted to exclusive.
    Update,
    /// Alone.
    Exclusive,
}

impl From<Mode> for LockMode {
    fn from(mode: Mode) -> Self {
        match mode {
            Mode::Shared => Self::Shared,
            Mode::Update => Self::Update,
            Mode::Exclusive => Self::Exclusive,
        }
    }
}

/// A mode in one small word; nothing where there is none.
pub(crate) fn mode_name(mode: LockMode) -> &'static str {
    match mode {
        LockMode::Unspecified => "",
        LockMode::Shared => "shared",
        LockMode::Update => "update",
        LockMode::Exclusive => "exclusive",
    }
}
