//! Small files that are replaced whole or not at all, and directories whose entries are made durable.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt};
use std::path::Path;

use xxhash_rust::xxh3::xxh3_64;

/// Mode of every directory of a node.
const DIRECTORY_MODE: u32 = 0o700;
/// Mode of every file of a node.
pub(crate) const FILE_MODE: u32 = 0o600;

/// Makes a directory that only its owner can enter; one that exists is narrowed where it is ours to narrow.
pub(crate) fn make_directory(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(DIRECTORY_MODE).create(path)?;
    let mode = std::fs::metadata(path)?.permissions().mode() & 0o777;
    if mode == DIRECTORY_MODE {
        return Ok(());
    }
    match std::fs::set_permissions(path, PermissionsExt::from_mode(DIRECTORY_MODE)) {
        // The root of a mounted volume belongs to whoever mounted it; what is in it is still private.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        result => result,
    }
}

/// Opens a private file for reading and writing; `new` makes it and fails when it is there.
pub(crate) fn open_file(path: &Path, new: bool) -> io::Result<File> {
    OpenOptions::new().read(true).write(true).create_new(new).mode(FILE_MODE).open(path)
}

/// Makes the entries of a directory durable.
pub(crate) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

/// Replaces `directory/name`: after a crash it is the old file or the new one.
pub(crate) fn replace(directory: &Path, name: &str, bytes: &[u8]) -> io::Result<()> {
    let temporary = directory.join(format!("{name}.tmp"));
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(FILE_MODE)
        .open(&temporary)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    std::fs::rename(&temporary, directory.join(name))?;
    sync_directory(directory)
}

/// One line of JSON and one line with its checksum, so that people can read it and damage is seen.
pub(crate) fn seal(json: &str) -> String {
    format!("{json}\nxxh3 {:016x}\n", xxh3_64(json.as_bytes()))
}

/// The JSON of a sealed file; none when it is damaged.
pub(crate) fn unseal(text: &str) -> Option<&str> {
    let (json, _) = text.split_once('\n')?;
    (seal(json) == text).then_some(json)
}
