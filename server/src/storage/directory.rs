//! The data directory: whose it is, who may use it, and how often it was started.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};

use rustix::fs::Access;
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use trefoil_core::NodeId;
use trefoil_core::member::{Incarnations, Stage, Starts, Word};

use super::durable::{self, make_directory, sync_directory};
use super::fault::{OpenError, StorageError};

/// Version of everything in the directory. A node opens no other.
pub const DIRECTORY_FORMAT: u32 = 2;

const IDENTITY: &str = "identity";
const LOCK: &str = "LOCK";
const MARK: &str = "log.mark";
const LOG: &str = "log";
const STATE: &str = "state";
const LOST_AND_FOUND: &str = "lost+found";

/// What the configuration says this directory should be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// Hash of the cluster's token and members.
    pub setup: [u8; 16],
    /// Raft id of this node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// Name of every member at bootstrap.
    pub members: BTreeMap<NodeId, String>,
    /// Number of data shards.
    pub shards: u32,
    /// Services that the cluster has.
    pub services: BTreeSet<String>,
}

/// What the directory is. Written at bootstrap, on the way into a cluster, and at each start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// See [`DIRECTORY_FORMAT`].
    pub format: u32,
    /// Hash of the cluster's token and members, in hexadecimal.
    pub setup: String,
    /// Raft id of this node.
    pub node_id: NodeId,
    /// Its name.
    pub node_name: String,
    /// Random number drawn when the directory was made: a node whose directory was lost is another one.
    pub incarnation: u64,
    /// Members at bootstrap.
    pub members: BTreeMap<NodeId, String>,
    /// Number of data shards.
    pub shards: u32,
    /// Services that the cluster has.
    pub services: BTreeSet<String>,
    /// Whether log and state were written. Before that the node has said nothing to anybody and may begin again.
    pub born: bool,
    /// Incarnation of each member, as the node has promised to form a cluster with, or has formed one.
    #[serde(default)]
    pub incarnations: Incarnations,
    /// Id of the cluster, in hexadecimal; none before it is formed.
    #[serde(default)]
    pub cluster_id: Option<String>,
    /// How often the node was started.
    #[serde(default)]
    pub starts: u64,
    /// Random numbers of its last starts, the newest last.
    #[serde(default)]
    pub numbers: Vec<u64>,
}

impl Identity {
    /// What to tell other members of the directory.
    #[must_use]
    pub fn word(&self) -> Word {
        let members = self.incarnations.clone();
        let cluster = self.cluster_id.as_deref().and_then(unhex);
        let stage = match cluster {
            Some(cluster) => Stage::Formed { cluster, members },
            None if members.is_empty() => Stage::New,
            None => Stage::Promised(members),
        };
        Word { incarnation: self.incarnation, stage }
    }

    /// The starts so far.
    #[must_use]
    pub fn starts(&self) -> Starts {
        Starts { count: self.starts, numbers: self.numbers.clone() }
    }
}

/// A data directory that this process holds alone, until it is dropped.
#[derive(Debug)]
pub struct DataDirectory {
    path: PathBuf,
    identity: Identity,
    _lock: File,
}

impl DataDirectory {
    /// Opens the directory, or makes it where there is nothing yet. `true` means that log and state are still to be
    /// written, after which [`Self::born`] must be called.
    ///
    /// # Errors
    /// Refuses a directory that another process holds, that is not what `expected` says, or that is damaged.
    pub fn open(path: &Path, expected: &Expected) -> Result<(Self, Identity, bool), OpenError> {
        make_directory(path)
            .map_err(|error| StorageError::io("make the data directory", path, &error))
            .map_err(OpenError::misuse)?;
        let lock = lock(path).map_err(OpenError::misuse)?;
        check_access(path).map_err(OpenError::misuse)?;
        let identity = match read_sealed::<Identity>(path, IDENTITY)? {
            Some(identity) => {
                check(path, &identity, expected).map_err(OpenError::misuse)?;
                identity
            }
            None => create(path, expected).map_err(OpenError::misuse)?,
        };
        let new = !identity.born;
        if new {
            clear(path)?;
        }
        let directory = Self { path: path.to_owned(), identity: identity.clone(), _lock: lock };
        Ok((directory, identity, new))
    }

    /// Records that log and state of a new directory are written and synced.
    ///
    /// # Errors
    /// When the identity cannot be written.
    pub fn born(&mut self) -> Result<(), StorageError> {
        self.identity.born = true;
        self.write()
    }

    /// Records another start, before the node says anything to anybody.
    ///
    /// # Errors
    /// When the identity cannot be written.
    pub fn start(&mut self, number: u64) -> Result<(), StorageError> {
        let starts = self.identity.starts().next(number);
        (self.identity.starts, self.identity.numbers) = (starts.count, starts.numbers);
        self.write()
    }

    /// Records how far the directory is on its way into a cluster.
    ///
    /// # Errors
    /// When the identity cannot be written.
    pub fn reach(&mut self, stage: &Stage) -> Result<(), StorageError> {
        match stage {
            Stage::New => {}
            Stage::Promised(members) => self.identity.incarnations.clone_from(members),
            Stage::Formed { cluster, members } => {
                self.identity.incarnations.clone_from(members);
                self.identity.cluster_id = Some(hex(*cluster));
            }
        }
        self.write()
    }

    /// Takes back a promise that was never kept, by becoming another directory: nobody can form a cluster with the
    /// old one any more. Does nothing where a cluster is formed.
    ///
    /// # Errors
    /// When the identity cannot be written.
    pub fn break_promise(&mut self, incarnation: u64) -> Result<(), StorageError> {
        if self.identity.cluster_id.is_some() || self.identity.incarnations.is_empty() {
            return Ok(());
        }
        self.identity.incarnations.clear();
        self.identity.incarnation = incarnation;
        self.write()
    }

    fn write(&self) -> Result<(), StorageError> {
        write_sealed(&self.path, IDENTITY, &self.identity)
    }

    /// What the directory is.
    #[must_use]
    pub fn identity(&self) -> &Identity {
        &self.identity
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Directory of the state files in a data directory.
    #[must_use]
    pub fn state_path(root: &Path) -> PathBuf {
        root.join(STATE)
    }

    /// Directory of the Raft log in a data directory.
    #[must_use]
    pub fn log_path(root: &Path) -> PathBuf {
        root.join(LOG)
    }

    /// The file that says up to where the Raft log is synced, in a data directory.
    #[must_use]
    pub fn mark_path(root: &Path) -> PathBuf {
        root.join(MARK)
    }
}

fn lock(path: &Path) -> Result<File, StorageError> {
    let name = path.join(LOCK);
    let file = durable::open_file(&name, !name.exists()).or_else(|error| match error.kind() {
        std::io::ErrorKind::AlreadyExists => durable::open_file(&name, false),
        _ => Err(error),
    });
    let file = file.map_err(|error| StorageError::io("open", &name, &error))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(StorageError(format!(
            "data directory {} is in use by another process: stop that one, or give this one another --data-dir",
            path.display()
        ))),
        Err(TryLockError::Error(error)) => Err(StorageError::io("lock", &name, &error)),
    }
}

/// Sees that this process may read and write all that is there, before a file that it may not is taken for damaged.
fn check_access(path: &Path) -> Result<(), StorageError> {
    let unread = |error: std::io::Error| StorageError::io("read", path, &error);
    for entry in std::fs::read_dir(path).map_err(unread)? {
        let entry = entry.map_err(unread)?;
        // The file system's own.
        if entry.file_name() == LOST_AND_FOUND {
            continue;
        }
        let path = entry.path();
        let is_folder = path.is_dir();
        let mut access = Access::READ_OK | Access::WRITE_OK;
        access.set(Access::EXEC_OK, is_folder);
        match rustix::fs::access(&path, access) {
            Ok(()) if is_folder => check_access(&path)?,
            Ok(()) | Err(Errno::NOENT) => {}
            Err(error) => return Err(StorageError::io("use", &path, &error.into())),
        }
    }
    Ok(())
}

/// Compares what a directory is with what it should be.
fn check(path: &Path, identity: &Identity, expected: &Expected) -> Result<(), StorageError> {
    let path = path.display();
    if identity.format != DIRECTORY_FORMAT {
        return Err(StorageError(format!(
            "data directory {path} has format {}, and this binary knows format {DIRECTORY_FORMAT}: run the version that wrote it",
            identity.format
        )));
    }
    if identity.setup != hex(expected.setup) {
        let names = identity.members.values().cloned().collect::<Vec<_>>().join(",");
        return Err(StorageError(format!(
            "data directory {path} belongs to another cluster, with the members {names} and its own token: \
             give the --cluster-token and --initial-cluster it was made with, or another --data-dir"
        )));
    }
    if identity.node_id != expected.node_id || identity.node_name != expected.node_name {
        return Err(StorageError(format!(
            "data directory {path} belongs to node {} ({}), not {} ({}): give --name {}, or another --data-dir",
            identity.node_name,
            identity.node_id,
            expected.node_name,
            expected.node_id,
            identity.node_name
        )));
    }
    if identity.shards != expected.shards {
        return Err(StorageError(format!(
            "data directory {path} was made with --shards {}, not {}: the number is fixed at bootstrap",
            identity.shards, expected.shards
        )));
    }
    if identity.services != expected.services {
        let list =
            |services: &BTreeSet<String>| services.iter().cloned().collect::<Vec<_>>().join(",");
        return Err(StorageError(format!(
            "data directory {path} was made with --services {}, not {}: they are fixed at bootstrap",
            list(&identity.services),
            list(&expected.services)
        )));
    }
    Ok(())
}

/// Writes the identity of a new node, where nothing stands that could be somebody's data.
fn create(path: &Path, expected: &Expected) -> Result<Identity, StorageError> {
    let entries =
        std::fs::read_dir(path).map_err(|error| StorageError::io("read", path, &error))?;
    for entry in entries {
        let name = entry.map_err(|error| StorageError::io("read", path, &error))?.file_name();
        let harmless =
            name == LOCK || name == LOST_AND_FOUND || name == format!("{IDENTITY}.tmp").as_str();
        if !harmless {
            return Err(StorageError(format!(
                "data directory {} holds {} but no file named {IDENTITY}: restore that file, or treat this data directory as lost, as docs/operations.md says",
                path.display(),
                name.display()
            )));
        }
    }
    let identity = Identity {
        format: DIRECTORY_FORMAT,
        setup: hex(expected.setup),
        node_id: expected.node_id,
        node_name: expected.node_name.clone(),
        incarnation: rand::random(),
        members: expected.members.clone(),
        shards: expected.shards,
        services: expected.services.clone(),
        born: false,
        incarnations: Incarnations::new(),
        cluster_id: None,
        starts: 0,
        numbers: Vec::new(),
    };
    write_sealed(path, IDENTITY, &identity)?;
    Ok(identity)
}

/// Removes what a bootstrap left that did not come to its end.
fn clear(path: &Path) -> Result<(), StorageError> {
    for name in [LOG, STATE] {
        let folder = path.join(name);
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .map_err(|error| StorageError::io("remove", &folder, &error))?;
        }
    }
    let mark = path.join(MARK);
    if mark.exists() {
        std::fs::remove_file(&mark).map_err(|error| StorageError::io("remove", &mark, &error))?;
    }
    sync_directory(path).map_err(|error| StorageError::io("sync", path, &error))
}

fn hex(id: [u8; 16]) -> String {
    format!("{:032x}", u128::from_be_bytes(id))
}

fn unhex(text: &str) -> Option<[u8; 16]> {
    u128::from_str_radix(text, 16).ok().map(u128::to_be_bytes)
}

fn write_sealed<T: Serialize>(path: &Path, name: &str, value: &T) -> Result<(), StorageError> {
    let json = serde_json::to_string(value).expect("our own structure is JSON");
    let result = durable::replace(path, name, durable::seal(&json).as_bytes());
    result.map_err(|error| StorageError::io("write", &path.join(name), &error))
}

/// A sealed file; none when it is not there.
fn read_sealed<T: for<'de> Deserialize<'de>>(
    path: &Path,
    name: &str,
) -> Result<Option<T>, OpenError> {
    let path = path.join(name);
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(StorageError::io("read", &path, &error).into()),
    };
    let damaged = || {
        OpenError::Damaged(format!(
            "{} is damaged: restore it from a copy, or treat this data directory as lost, as docs/operations.md says",
            path.display()
        ))
    };
    let text = String::from_utf8(text).map_err(|_| damaged())?;
    let json = durable::unseal(&text).ok_or_else(damaged)?;
    // The format is read first: what else a newer one holds is not known.
    #[derive(Deserialize)]
    struct Format {
        format: Option<u32>,
    }
    let format = serde_json::from_str::<Format>(json).map_err(|_| damaged())?.format;
    if let Some(format) = format
        && format != DIRECTORY_FORMAT
    {
        return Err(OpenError::Misuse(format!(
            "{} has format {format}, and this binary knows format {DIRECTORY_FORMAT}: run the version that wrote it",
            path.display()
        )));
    }
    serde_json::from_str(json).map(Some).map_err(|_| damaged())
}
