//! raft-engine's files, watched: what is synced moves the mark, and nothing below the mark is ever cut off.

use std::collections::BTreeMap;
use std::io::{self, Read as _, Seek, SeekFrom, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use raft_engine::env::{FileSystem, Handle, Permission, WriteExt};

use super::durable::FILE_MODE;
use super::fault::{StorageError, die, is_no_space};
use super::mark::{self, LogOffset, LogQueue, Mark};

/// Bytes read at once to see whether a tail is empty.
const PROBE_BYTES: usize = 64 << 10;

/// Keeps the mark, and remembers what was cut off above it.
#[derive(Debug)]
pub struct TailGuard {
    mark: mark::DurableMark,
    /// Whether the machine was switched off since the mark was written: then the mark may be older than the last
    /// sync, and what is cut off above it may have been acknowledged.
    power_lost: bool,
    /// Tails with something in them that were cut off.
    cuts: Mutex<Vec<(LogQueue, LogOffset)>>,
    /// A cut below the mark that was refused.
    refused: Mutex<Option<(LogQueue, LogOffset)>>,
}

impl TailGuard {
    /// Guards a log by its mark.
    #[must_use]
    pub fn new(mark: mark::DurableMark, power_lost: bool) -> Self {
        Self { mark, power_lost, cuts: Mutex::default(), refused: Mutex::default() }
    }

    /// The mark.
    #[must_use]
    pub fn mark(&self) -> &mark::DurableMark {
        &self.mark
    }

    /// Places above the mark at which something was cut off.
    #[must_use]
    pub fn cuts(&self) -> Vec<(LogQueue, LogOffset)> {
        self.cuts.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The cut below the mark that was refused.
    #[must_use]
    pub fn refused(&self) -> Option<(LogQueue, LogOffset)> {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn check(&self, at: (LogQueue, LogOffset)) -> io::Result<()> {
        if at.1 >= self.mark.mark().spans[at.0 as usize].end {
            return Ok(());
        }
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(at);
        Err(io::Error::other("a cut below the durable mark"))
    }
}

/// A file system whose log files are watched by a [`TailGuard`].
#[derive(Debug)]
pub struct Guarded<F> {
    inner: Arc<F>,
    guard: Arc<TailGuard>,
}

impl<F: FileSystem> Guarded<F> {
    /// Watches the log files of `inner`.
    pub fn new(inner: Arc<F>, guard: Arc<TailGuard>) -> Self {
        Self { inner, guard }
    }

    fn handle(&self, path: &Path, handle: F::Handle) -> GuardedHandle<F> {
        GuardedHandle {
            inner: Arc::new(handle),
            system: Arc::clone(&self.inner),
            guard: Arc::clone(&self.guard),
            file: path.file_name().and_then(|name| parse(name.to_str()?)),
            written: AtomicU64::new(0),
        }
    }
}

/// LogQueue and number of a log file by its name; none for files of another kind.
pub fn parse(name: &str) -> Option<(LogQueue, u64)> {
    let (number, suffix) = name.split_once('.')?;
    let queue = match suffix {
        "raftlog" => LogQueue::Append,
        "rewrite" => LogQueue::Rewrite,
        _ => return None,
    };
    Some((queue, number.parse().ok()?))
}

/// The name of a log file, as [`parse`] reads it.
pub fn name(queue: LogQueue, file: u64) -> String {
    let suffix = match queue {
        LogQueue::Append => "raftlog",
        LogQueue::Rewrite => "rewrite",
    };
    format!("{file:016}.{suffix}")
}

impl<F: FileSystem> FileSystem for Guarded<F> {
    type Handle = GuardedHandle<F>;
    type Reader = F::Reader;
    type Writer = GuardedWriter<F>;

    fn create<P: AsRef<Path>>(&self, path: P) -> io::Result<Self::Handle> {
        let handle = self.inner.create(&path)?;
        std::fs::set_permissions(&path, PermissionsExt::from_mode(FILE_MODE))?;
        Ok(self.handle(path.as_ref(), handle))
    }

    fn open<P: AsRef<Path>>(&self, path: P, perm: Permission) -> io::Result<Self::Handle> {
        let handle = self.inner.open(&path, perm)?;
        Ok(self.handle(path.as_ref(), handle))
    }

    fn delete<P: AsRef<Path>>(&self, path: P) -> io::Result<()> {
        let name = path.as_ref().file_name().and_then(|name| name.to_str());
        if let Some((queue, file)) = name.and_then(parse) {
            self.guard.mark.forget(queue, file)?;
        }
        self.inner.delete(path)
    }

    fn rename<P: AsRef<Path>>(&self, src_path: P, dst_path: P) -> io::Result<()> {
        self.inner.rename(src_path, dst_path)
    }

    fn new_reader(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Reader> {
        self.inner.new_reader(Arc::clone(&handle.inner))
    }

    fn new_writer(&self, handle: Arc<Self::Handle>) -> io::Result<Self::Writer> {
        let inner = self.inner.new_writer(Arc::clone(&handle.inner))?;
        Ok(GuardedWriter { inner, handle, offset: 0 })
    }
}

/// An open log file.
pub struct GuardedHandle<F: FileSystem> {
    inner: Arc<F::Handle>,
    system: Arc<F>,
    guard: Arc<TailGuard>,
    file: Option<(LogQueue, u64)>,
    /// End of what was written through this handle.
    written: AtomicU64,
}

impl<F: FileSystem> std::fmt::Debug for GuardedHandle<F> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("GuardedHandle")
            .field("file", &self.file)
            .field("written", &self.written)
            .finish_non_exhaustive()
    }
}

impl<F: FileSystem> GuardedHandle<F> {
    fn before_truncate(&self, offset: usize) -> io::Result<()> {
        let Some((queue, file)) = self.file else { return Ok(()) };
        let place = LogOffset { file, offset: offset as u64 };
        self.guard.check((queue, place))?;
        if self.written.load(Ordering::Acquire) == 0 && !self.is_empty_after(place.offset)? {
            // Nothing was written through this handle: raft-engine opens the log and found a tail that is no batch.
            if self.guard.power_lost {
                self.guard.mark.set_uncertain(true)?;
            }
            self.guard.cuts.lock().unwrap_or_else(PoisonError::into_inner).push((queue, place));
        }
        self.written.fetch_min(place.offset, Ordering::AcqRel);
        Ok(())
    }

    /// Whether only zeros follow: space that was allocated ahead.
    fn is_empty_after(&self, offset: u64) -> io::Result<bool> {
        let mut reader = self.system.new_reader(Arc::clone(&self.inner))?;
        reader.seek(SeekFrom::Start(offset))?;
        let mut buffer = vec![0; PROBE_BYTES];
        loop {
            let read = reader.read(&mut buffer)?;
            if read == 0 {
                return Ok(true);
            }
            if buffer[..read].iter().any(|&byte| byte != 0) {
                return Ok(false);
            }
        }
    }
}

impl<F: FileSystem> Handle for GuardedHandle<F> {
    fn truncate(&self, offset: usize) -> io::Result<()> {
        self.before_truncate(offset)?;
        self.inner.truncate(offset)
    }

    fn file_size(&self) -> io::Result<usize> {
        self.inner.file_size()
    }

    fn sync(&self) -> io::Result<()> {
        let offset = self.written.load(Ordering::Acquire);
        let synced = self.inner.sync().and_then(|()| match self.file {
            Some((queue, file)) if offset > 0 => {
                self.guard.mark.advance(queue, LogOffset { file, offset })
            }
            _ => Ok(()),
        });
        // The kernel forgets what it failed to write: a second attempt would succeed and prove nothing.
        synced
            .or_else(|error| die(format_args!("cannot sync the log file {:?}: {error}", self.file)))
    }
}

/// Writes a log file.
#[derive(Debug)]
pub struct GuardedWriter<F: FileSystem> {
    inner: F::Writer,
    handle: Arc<GuardedHandle<F>>,
    offset: u64,
}

impl<F: FileSystem> Write for GuardedWriter<F> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        let written = self.inner.write(buf).map_err(|error| {
            // raft-engine begins another file when the words say "no space"; that would be one for each attempt.
            if is_no_space(&error) { io::Error::from(error.kind()) } else { error }
        })?;
        self.offset += written as u64;
        self.handle.written.fetch_max(self.offset, Ordering::AcqRel);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<F: FileSystem> Seek for GuardedWriter<F> {
    fn seek(&mut self, pos: SeekFrom) -> io::Result<u64> {
        self.offset = self.inner.seek(pos)?;
        Ok(self.offset)
    }
}

impl<F: FileSystem> WriteExt for GuardedWriter<F> {
    fn truncate(&mut self, offset: usize) -> io::Result<()> {
        self.handle.before_truncate(offset)?;
        self.inner.truncate(offset)?;
        self.offset = offset as u64;
        Ok(())
    }

    fn allocate(&mut self, offset: usize, size: usize) -> io::Result<()> {
        self.inner.allocate(offset, size)
    }
}

/// Sees that every file that the mark speaks of is there and long enough, and that none is missing between two:
/// raft-engine would ignore what lies before a gap.
pub(super) fn check_files(path: &Path, mark: &Mark) -> Result<(), StorageError> {
    let entries =
        std::fs::read_dir(path).map_err(|error| StorageError::io("read", path, &error))?;
    let mut files = [BTreeMap::new(), BTreeMap::new()];
    for entry in entries {
        let entry = entry.map_err(|error| StorageError::io("read", path, &error))?;
        if let Some((queue, file)) = entry.file_name().to_str().and_then(parse) {
            let bytes = entry
                .metadata()
                .map_err(|error| StorageError::io("read", &entry.path(), &error))?
                .len();
            files[queue as usize].insert(file, bytes);
        }
    }
    for (queue, span) in [LogQueue::Append, LogQueue::Rewrite].into_iter().zip(mark.spans) {
        let files = &files[queue as usize];
        let last = files.last_key_value().map_or(0, |(&file, _)| file).max(span.end.file);
        let suffix = if queue == LogQueue::Append { "raftlog" } else { "rewrite" };
        for file in span.first..=last {
            let Some(&bytes) = files.get(&file) else {
                return Err(lost(path, format_args!("{file:016}.{suffix} is missing")));
            };
            if file == span.end.file && bytes < span.end.offset {
                let synced = span.end.offset;
                let what = format_args!(
                    "{file:016}.{suffix} ends at {bytes} and was synced up to {synced}"
                );
                return Err(lost(path, what));
            }
        }
    }
    Ok(())
}

/// A file of the log that is not what was synced.
fn lost(path: &Path, what: std::fmt::Arguments<'_>) -> StorageError {
    StorageError(format!(
        "{}/{what}: restore it, or treat this data directory as lost, as docs/operations.md says",
        path.display()
    ))
}
