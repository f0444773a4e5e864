//! How a node ends whose disk can no longer be trusted, and the sentence with which it refuses to start.

use std::io::Write as _;
use std::sync::OnceLock;

/// Exit code of a node that met a disk it cannot trust (EX_IOERR of sysexits.h).
pub const EXIT_FAULT: i32 = 74;

type LastWords = Box<dyn Fn(&str) + Send + Sync>;

static LAST_WORDS: OnceLock<LastWords> = OnceLock::new();

/// Says what hears the last sentence before the process ends: the logger of a server, a panic in tests. The first
/// caller wins; false means that it was not this one.
pub fn on_fault(hear: impl Fn(&str) + Send + Sync + 'static) -> bool {
    LAST_WORDS.set(Box::new(hear)).is_ok()
}

/// Ends the process: what is on disk, or whether it is there, is not known any more, and a replica that guesses is
/// worse than one that is down. The sentence names the file.
pub fn die(sentence: impl std::fmt::Display) -> ! {
    let sentence = sentence.to_string();
    match LAST_WORDS.get() {
        Some(hear) => hear(&sentence),
        // Nothing is left to do when even this fails.
        None => drop(writeln!(std::io::stderr(), "{sentence}")),
    }
    std::process::exit(EXIT_FAULT)
}

/// Why a node does not start, in one line that names the file or directory and says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct StorageError(pub String);

impl StorageError {
    /// A file that could not be used.
    pub(crate) fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self(format!("cannot {doing} {}: {error}{}", path.display(), remedy(error)))
    }

    /// A state file that must not be used.
    pub(super) fn state_file(path: &std::path::Path, why: &dyn std::fmt::Display) -> Self {
        Self(format!(
            "cannot open the state file {}: {why}; treat this data directory as lost, as docs/operations.md says",
            path.display()
        ))
    }
}

/// Why a data directory was not opened.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// It is not this node's, is in use, or may not be used: what is in it was not doubted.
    #[error("{0}")]
    Misuse(String),
    /// What is in it is damaged, or not whole.
    #[error("{0}")]
    Damaged(String),
}

impl OpenError {
    pub(crate) fn misuse(refusal: StorageError) -> Self {
        Self::Misuse(refusal.0)
    }
}

impl From<StorageError> for OpenError {
    fn from(refusal: StorageError) -> Self {
        Self::Damaged(refusal.0)
    }
}

/// What to do about an error, where its kind tells; it follows the error in a sentence.
pub(crate) fn remedy(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            let user = rustix::process::geteuid().as_raw();
            format!(": user {user} must own the data directory and all in it")
        }
        std::io::ErrorKind::ReadOnlyFilesystem => {
            ": mount a volume there that can be written, or give another --data-dir".to_owned()
        }
        _ => String::new(),
    }
}

/// Whether an error says that there is no room: nothing is broken, and the same may be tried again.
pub(crate) fn is_no_space(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}

#[cfg(test)]
mod tests {
    use std::io::{Error, ErrorKind};
    use std::path::Path;

    use super::*;

    #[test]
    fn an_error_that_a_person_can_mend_says_how() {
        let line =
            |kind: ErrorKind| StorageError::io("open", Path::new("/d/LOCK"), &Error::from(kind)).0;
        let user = format!("user {} must own", rustix::process::geteuid().as_raw());
        assert!(line(ErrorKind::PermissionDenied).contains(&user));
        assert!(line(ErrorKind::ReadOnlyFilesystem).contains("can be written"));
        assert_eq!(line(ErrorKind::NotFound), "cannot open /d/LOCK: entity not found");
    }
}
