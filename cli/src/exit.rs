//! How a command ends: its exit code, and on standard error what went wrong and what to do next.

use std::process::ExitCode;

use trefoil_client::{Error, Reason};

/// Nothing there: the lock was not acquired, the queue is empty, the key is missing.
pub(crate) const NOTHING: u8 = 2;
/// The lock was lost while its command ran (EX_TEMPFAIL of sysexits.h).
pub(crate) const LOST: u8 = 75;
/// Wrong usage or configuration (EX_USAGE of sysexits.h).
pub(crate) const USAGE: u8 = 64;

/// Why a command failed.
#[derive(Debug)]
pub(crate) struct CommandFailure {
    code: u8,
    message: String,
    /// What was refused in particular.
    details: Option<String>,
    next: Option<String>,
}

impl CommandFailure {
    pub(crate) fn new(message: impl Into<String>) -> Self {
        Self { code: 1, message: message.into(), details: None, next: None }
    }

    /// The configuration cannot be used.
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, ..Self::new(message) }
    }

    /// What the person may do now.
    pub(crate) fn next(self, next: impl Into<String>) -> Self {
        Self { next: Some(next.into()), ..self }
    }

    pub(crate) fn code(self, code: u8) -> Self {
        Self { code, ..self }
    }

    /// What to say of it.
    pub(crate) fn lines(&self) -> Vec<String> {
        let more = self.details.iter().chain(&self.next).map(|line| format!("         {line}"));
        std::iter::once(format!("trefoil: {}", self.message)).chain(more).collect()
    }

    pub(crate) fn exit_code(&self) -> ExitCode {
        ExitCode::from(self.code)
    }
}

impl From<Error> for CommandFailure {
    fn from(error: Error) -> Self {
        let next = match &error {
            Error::Unreachable { .. } => {
                "Is it running? Start three nodes with `trefoil dev`, or name running ones with --endpoints.".to_owned()
            }
            Error::Deadline { .. } => "Try again, or give it more time with --timeout.".to_owned(),
            Error::MaybeApplied { .. } => {
                "Look before you repeat it: the command may have taken effect, or still take it.".to_owned()
            }
            Error::InvalidEndpoint { .. } | Error::NoEndpoint => "Give --endpoints http://host:port.".to_owned(),
            Error::Refused { reason: Reason::NoQuorum | Reason::NotLeader, .. } => {
                "Look at `trefoil status`: more than half of the nodes must run and reach each other.".to_owned()
            }
            Error::Refused { reason: Reason::InvalidField, .. } => {
                "docs/limits.md lists every limit; --help says what the command takes.".to_owned()
            }
            Error::Refused { reason, .. } => reason.row().meaning.to_owned(),
            _ => "Compare `trefoil version` here and on the nodes.".to_owned(),
        };
        Self { details: details(&error), ..Self::new(error.to_string()).next(next) }
    }
}

/// What goes with the reason of a refusal, such as the lock and the token of a fence, unless its sentence says it.
fn details(error: &Error) -> Option<String> {
    let metadata = match error {
        Error::Refused { metadata, .. } => metadata,
        Error::MaybeApplied { last } => return details(last),
        _ => return None,
    };
    let is_said = |name: &str| ["field", "limit"].contains(&name) || name.starts_with("edge_");
    let details = metadata.iter().filter(|(name, value)| !(is_said(name) || value.is_empty()));
    let details = details.map(|(name, value)| format!("{name} {value:?}")).collect::<Vec<_>>();
    (!details.is_empty()).then(|| details.join(", "))
}

/// Help and version are answers; anything else is wrong usage.
pub(crate) fn usage(refusal: &clap::Error) -> ExitCode {
    // Where it cannot be written there is nobody to read it.
    refusal.print().ok();
    if refusal.use_stderr() { ExitCode::from(USAGE) } else { ExitCode::SUCCESS }
}
