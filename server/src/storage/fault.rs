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
pub struct Refusal(pub String);

impl Refusal {
    /// A file that could not be used.
    pub(crate) fn io(doing: &str, path: &std::path::Path, error: &std::io::Error) -> Self {
        Self(format!("cannot {doing} {}: {error}", path.display()))
    }
}

/// Whether an error says that there is no room: nothing is broken, and the same may be tried again.
pub(crate) fn is_no_space(error: &std::io::Error) -> bool {
    matches!(error.kind(), std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded)
}
