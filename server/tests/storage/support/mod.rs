//! A file system for raft-engine that remembers every step, so that a test can go back to any moment and crash there.

pub(crate) mod lossy;

use std::collections::BTreeMap;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use raft_engine::env::{DefaultFileSystem, FileSystem, Handle, Permission, WriteExt};
use trefoil_server::storage::node::Disk;
use trefoil_server::storage::{Expected, OpenError};

type Inner = DefaultFileSystem;
type InnerHandle = <Inner as FileSystem>::Handle;

/// What happened to a file.
#[derive(Clone, Debug)]
pub(crate) enum Step {
    Create(PathBuf),
    Delete(PathBuf),
    Write(PathBuf, usize, Vec<u8>),
    Allocate(PathBuf, usize),
    Truncate(PathBuf, usize),
    Sync(PathBuf),
    /// A note of the test.
    Note(usize),
}

fn moved(path: &Path, from: &Path, to: &Path) -> PathBuf {
    to.join(path.strip_prefix(from).unwrap())
}

impl Step {
    fn moved(&self, from: &Path, to: &Path) -> Self {
        let moved = |path: &Path| moved(path, from, to);
        match self {
            Self::Create(path) => Self::Create(moved(path)),
            Self::Delete(path) => Self::Delete(moved(path)),
            Self::Write(path, offset, data) => Self::Write(moved(path), *offset, data.clone()),
            Self::Allocate(path, size) => Self::Allocate(moved(path), *size),
            Self::Truncate(path, size) => Self::Truncate(moved(path), *size),
            Self::Sync(path) => Self::Sync(moved(path)),
            Self::Note(note) => Self::Note(*note),
        }
    }
}

/// What the disk refuses at the moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Fault {
    #[default]
    None,
    NoSpace,
    SyncFails,
}

#[derive(Debug, Default)]
struct Tape {
    /// Each step with the mark as it stood after it.
    steps: Vec<(Step, Vec<u8>)>,
    mark: PathBuf,
    fault: Fault,
}

impl Tape {
    fn push(&mut self, step: Step) {
        let mark = std::fs::read(&self.mark).unwrap_or_default();
        self.steps.push((step, mark));
    }
}

/// Real files, and a tape of all steps.
#[derive(Clone, Default)]
pub(crate) struct Recorder {
    tape: Arc<Mutex<Tape>>,
}

impl Recorder {
    pub(crate) fn new(mark: &Path) -> Self {
        let recorder = Self::default();
        recorder.tape.lock().unwrap().mark = mark.to_owned();
        recorder
    }

    pub(crate) fn note(&self, note: usize) {
        self.tape.lock().unwrap().push(Step::Note(note));
    }

    pub(crate) fn set_fault(&self, fault: Fault) {
        self.tape.lock().unwrap().fault = fault;
    }

    /// All steps so far, each with the mark as it stood after it.
    pub(crate) fn steps(&self) -> Vec<(Step, Vec<u8>)> {
        self.tape.lock().unwrap().steps.clone()
    }

    fn fault(&self) -> Fault {
        self.tape.lock().unwrap().fault
    }

    fn push(&self, step: Step) {
        self.tape.lock().unwrap().push(step);
    }
}

pub(crate) struct RecordedHandle {
    inner: Arc<InnerHandle>,
    path: PathBuf,
    recorder: Recorder,
}

impl Handle for RecordedHandle {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.inner.truncate(offset)?;
        self.recorder.push(Step::Truncate(self.path.clone(), offset));
        Ok(())
    }

    fn file_size(&self) -> io::Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> io::Result<()> {
        if self.recorder.fault() == Fault::SyncFails {
            return Err(io::Error::other("an injected fault"));
        }
        self.inner.sync()?;
        self.recorder.push(Step::Sync(self.path.clone()));
        Ok(())
    }
}

pub(crate) struct RecordedWriter {
    inner: <Inner as FileSystem>::Writer,
    handle: Arc<RecordedHandle>,
    offset: usize,
}

impl Write for RecordedWriter {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        if self.handle.recorder.fault() == Fault::NoSpace {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let written = self.inner.write(buf)?;
        self.handle.recorder.push(Step::Write(
            self.handle.path.clone(),
            self.offset,
            buf[..written].to_vec(),
        ));
        self.offset += written;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl Seek for RecordedWriter {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        let offset = self.inner.seek(pos)?;
        self.offset = usize::try_from(offset).unwrap();
        Ok(offset)
    }
}

impl WriteExt for RecordedWriter {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.inner.truncate(offset)?;
        self.handle.recorder.push(Step::Truncate(self.handle.path.clone(), offset));
        self.offset = offset;
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.inner.allocate(offset, size)?;
        self.handle.recorder.push(Step::Allocate(self.handle.path.clone(), offset + size));
        Ok(())
    }
}

pub(crate) struct RecordedReader(<Inner as FileSystem>::Reader);

impl Read for RecordedReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.0.read(buf)
    }
}

impl Seek for RecordedReader {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.0.seek(pos)
    }
}

impl FileSystem for Recorder {
    type Handle = RecordedHandle;
    type Reader = RecordedReader;
    type Writer = RecordedWriter;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<RecordedHandle> {
        let inner = Arc::new(Inner {}.create(&path)?);
        self.push(Step::Create(path.as_ref().to_owned()));
        Ok(RecordedHandle { inner, path: path.as_ref().to_owned(), recorder: self.clone() })
    }

    fn open<P: AsRef<Path>>(&self, path: P, perm: Permission) -> io::Result<RecordedHandle> {
        let inner = Arc::new(Inner {}.open(&path, perm)?);
        Ok(RecordedHandle { inner, path: path.as_ref().to_owned(), recorder: self.clone() })
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        Inner {}.delete(&path)?;
        self.push(Step::Delete(path.as_ref().to_owned()));
        Ok(())
    }

    fn rename<P: AsRef<Path>>(&self, _: P, _: P) -> io::Result<()> {
        unreachable!("log files are not recycled")
    }

    fn new_reader(&self, handle: Arc<RecordedHandle>) -> io::Result<RecordedReader> {
        Inner {}.new_reader(Arc::clone(&handle.inner)).map(RecordedReader)
    }

    fn new_writer(&self, handle: Arc<RecordedHandle>) -> io::Result<RecordedWriter> {
        let inner = Inner {}.new_writer(Arc::clone(&handle.inner))?;
        Ok(RecordedWriter { inner, handle, offset: 0 })
    }
}

/// A scratch directory, in memory where that is possible: these tests sync thousands of files.
pub(crate) fn scratch() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    let made = if memory.is_dir() { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.or_else(|_| tempfile::tempdir()).unwrap()
}

/// Opens the disk of a node as a node does.
pub(crate) fn open_node(path: &Path, expected: &Expected) -> Result<Disk, OpenError> {
    trefoil_server::storage::node::open(path, expected, 1 << 20)
}

/// A small generator, so that a test does the same each time.
pub(crate) struct Random(pub u64);

impl Random {
    pub(crate) fn below(&mut self, bound: usize) -> usize {
        self.0 =
            self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        usize::try_from(self.0 >> 33).unwrap() % bound.max(1)
    }
}

/// A file as the disk knows it, and what the disk was told since.
#[derive(Clone, Debug, Default)]
struct Image {
    durable: Vec<u8>,
    pending: Vec<Step>,
}

/// The files of a log at some moment.
#[derive(Clone, Debug, Default)]
pub(crate) struct Images(BTreeMap<PathBuf, Image>);

fn resize_and_write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
    if bytes.len() < offset + data.len() {
        bytes.resize(offset + data.len(), 0);
    }
    bytes[offset..offset + data.len()].copy_from_slice(data);
}

fn perform(bytes: &mut Vec<u8>, step: &Step) {
    match step {
        Step::Write(_, offset, data) => resize_and_write(bytes, *offset, data),
        Step::Allocate(_, size) => bytes.resize(bytes.len().max(*size), 0),
        Step::Truncate(_, size) => bytes.resize(*size, 0),
        Step::Create(_) | Step::Delete(_) | Step::Sync(_) | Step::Note(_) => {}
    }
}

impl Images {
    /// The next step happens.
    pub(crate) fn step(&mut self, step: &Step) {
        match step {
            Step::Create(path) => drop(self.0.entry(path.clone()).or_default()),
            Step::Delete(path) => drop(self.0.remove(path)),
            Step::Write(path, ..) | Step::Allocate(path, _) | Step::Truncate(path, _) => {
                self.0.entry(path.clone()).or_default().pending.push(step.clone());
            }
            Step::Sync(path) => {
                let image = self.0.entry(path.clone()).or_default();
                for step in image.pending.drain(..) {
                    perform(&mut image.durable, &step);
                }
            }
            Step::Note(_) => {}
        }
    }

    /// Everything arrived: the process was killed. `torn` bytes of the last write are missing.
    pub(crate) fn killed(&self, torn: usize) -> BTreeMap<PathBuf, Vec<u8>> {
        self.with_pending(|step, last, bytes| match step {
            Step::Write(path, offset, data) if last && torn > 0 => {
                let kept = data[..data.len().saturating_sub(torn)].to_vec();
                perform(bytes, &Step::Write(path.clone(), *offset, kept));
            }
            step => perform(bytes, step),
        })
    }

    /// Nothing arrived that was not synced: the power went.
    pub(crate) fn durable(&self) -> BTreeMap<PathBuf, Vec<u8>> {
        self.with_pending(|_, _, _| ())
    }

    /// The same files elsewhere.
    pub(crate) fn moved(&self, from: &Path, to: &Path) -> Self {
        let files = self.0.iter().map(|(path, image)| {
            let pending = image.pending.iter().map(|step| step.moved(from, to)).collect();
            (moved(path, from, to), Image { durable: image.durable.clone(), pending })
        });
        Self(files.collect())
    }

    /// The power went: of what was not synced some arrived, some did not, and some did in part, in any order.
    pub(crate) fn power_lost(&self, random: &mut Random) -> BTreeMap<PathBuf, Vec<u8>> {
        self.with_pending(|step, _, bytes| match (step, random.below(3)) {
            (_, 0) => {}
            (Step::Write(path, offset, data), 1) => {
                let kept = data[..random.below(data.len())].to_vec();
                perform(bytes, &Step::Write(path.clone(), *offset, kept));
            }
            (step, _) => perform(bytes, step),
        })
    }

    fn with_pending(
        &self,
        mut arrive: impl FnMut(&Step, bool, &mut Vec<u8>),
    ) -> BTreeMap<PathBuf, Vec<u8>> {
        let files = self.0.iter().map(|(path, image)| {
            let mut bytes = image.durable.clone();
            for (n, step) in image.pending.iter().enumerate() {
                arrive(step, n + 1 == image.pending.len(), &mut bytes);
            }
            (path.clone(), bytes)
        });
        files.collect()
    }
}

/// All files below a directory, but for locks.
pub(crate) fn contents(root: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(root).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(contents(&path));
        } else if path.file_name().unwrap() != "LOCK" {
            found.insert(path.clone(), std::fs::read(&path).unwrap());
        }
    }
    found
}

/// Puts files that were recorded under one root below another.
pub(crate) fn restore(from: &Path, to: &Path, files: &BTreeMap<PathBuf, Vec<u8>>) {
    for (path, bytes) in files {
        let path = to.join(path.strip_prefix(from).unwrap());
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, bytes).unwrap();
    }
}
