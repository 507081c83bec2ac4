//! The few file operations that the journal needs, as a trait, and the real files behind it.
//!
//! Not for the meaning of the bytes. Upholds law 1: nothing here reports success before the kernel has. The trait
//! exists so that tests can lose unsynced writes, tear them, fill the disk and fail a sync.

use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Advice, fadvise};

/// A directory of numbered segment files.
pub(super) trait Storage: Send + Sync + 'static {
    /// The numbers of all segment files, ascending.
    fn list(&self) -> io::Result<Vec<u64>>;
    /// At most `len` bytes from `offset` on, fewer where the file ends.
    fn read(&self, number: u64, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// The file's length in bytes.
    fn len(&self, number: u64) -> io::Result<u64>;
    /// Makes what the file holds durable, then forgets what is only cached: after a failed sync the page cache
    /// shows bytes that the disk does not have.
    fn secure(&self, number: u64) -> io::Result<()>;
    /// Creates a file that must not exist yet.
    fn create(&self, number: u64) -> io::Result<Box<dyn SegmentFile>>;
    /// Makes creations durable.
    fn sync_directory(&self) -> io::Result<()>;
    /// Removes a file; one that is gone already is no error.
    fn remove(&self, number: u64) -> io::Result<()>;
    /// The name to show for a segment.
    fn name(&self, number: u64) -> PathBuf;
}

/// A segment file open for writing.
pub(super) trait SegmentFile: Send {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Data and length are on the disk when this returns.
    fn sync(&self) -> io::Result<()>;
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// True for "no space left" and "quota exceeded".
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// Segment files in one directory.
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
}

/// Held while a journal is open; dropping it lets the next one in.
pub(super) struct DirectoryLock {
    _file: File,
}

/// Why a directory cannot be used.
pub(super) enum DirectoryError {
    Locked,
    Io(io::Error),
}

impl From<io::Error> for DirectoryError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl Directory {
    /// Creates the directory if needed and takes its lock.
    pub fn open(path: &Path) -> Result<(Self, DirectoryLock), DirectoryError> {
        if !path.is_dir() {
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                File::open(parent)?.sync_all()?;
            }
        }
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(path.join("LOCK"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DirectoryError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let directory = Self {
            path: path.to_owned(),
            handle: File::open(path)?,
        };
        Ok((directory, DirectoryLock { _file: lock }))
    }
}

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for item in std::fs::read_dir(&self.path)? {
            let name = item?.file_name();
            let Some(digits) = name.to_str().and_then(|name| name.strip_suffix(".seg")) else {
                continue;
            };
            if let Some(number) = digits.parse().ok().filter(|_| digits.len() == 20) {
                numbers.push(number);
            }
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn read(&self, number: u64, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut file = File::open(self.name(number))?;
        let left = file.metadata()?.len().saturating_sub(offset).min(len as u64);
        file.seek(SeekFrom::Start(offset))?;
        let mut bytes = Vec::with_capacity(usize::try_from(left).unwrap_or_default());
        file.take(left).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn len(&self, number: u64) -> io::Result<u64> {
        Ok(std::fs::metadata(self.name(number))?.len())
    }

    fn secure(&self, number: u64) -> io::Result<()> {
        // Opened for writing: some file systems refuse to sync a read-only handle.
        let file = OpenOptions::new().write(true).open(self.name(number))?;
        file.sync_all()?;
        // Only advice; file systems without a page cache refuse it and need none.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        Ok(())
    }

    fn create(&self, number: u64) -> io::Result<Box<dyn SegmentFile>> {
        let file = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(self.name(number))?;
        Ok(Box::new(file))
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        match std::fs::remove_file(self.name(number)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    fn name(&self, number: u64) -> PathBuf {
        self.path.join(format!("{number:020}.seg"))
    }
}

impl SegmentFile for File {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_data()
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }
}
