//! The few file operations that the journal needs, as a trait, and the real files behind it.
//!
//! Not for the meaning of the bytes. Upholds law 1: nothing here reports success before the kernel has. The trait
//! exists so that tests can lose unsynced writes, tear them, fill the disk and fail a sync.

use std::ffi::OsStr;
use std::fs::{DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Read, Seek, SeekFrom};
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{Advice, fadvise};

/// A directory of numbered segment files.
pub(super) trait Storage: Send + Sync + 'static {
    /// The numbers of all segment files, ascending.
    fn list(&self) -> io::Result<Vec<u64>>;
    /// At most `len` bytes from `offset` on, fewer where the file ends.
    fn read(&self, number: u64, offset: u64, len: usize) -> io::Result<Vec<u8>>;
    /// Makes what the file holds durable, then forgets what is only cached: after a failed sync the page cache
    /// shows bytes that the disk does not have.
    fn secure(&self, number: u64) -> io::Result<()>;
    /// Creates a file that must not exist yet; also the bytes it has already. It takes the one that was made ready, if
    /// there is one: its first bytes, as many as a header has, are zeros; behind them stands anything.
    fn create(&self, number: u64) -> io::Result<(Box<dyn SegmentFile>, u64)>;
    /// Makes a file of so many bytes ready for [`Storage::create`], if there is none. Slow.
    fn prepare(&self, bytes: u64) -> io::Result<()>;
    /// A file is no longer needed: it is made ready for [`Storage::create`], or removed. Slow.
    fn retire(&self, number: u64) -> io::Result<()>;
    /// Puts other bytes in the place of a file's, as a whole or not at all, and durably.
    fn replace(&self, number: u64, bytes: &[u8]) -> io::Result<()>;
    /// Removes the files that wait: what they held must not be read any more.
    fn discard_waiting(&self) -> io::Result<()> {
        Ok(())
    }
    /// Gives back one of the files that wait, if they are more than a quiet journal needs.
    fn thin_out(&self) -> io::Result<()> {
        Ok(())
    }
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
    /// Cuts it off behind so many bytes. What was there is gone from the disk as well when this returns.
    fn truncate(&self, len: u64) -> io::Result<()>;
}

/// True for "no space left" and "quota exceeded".
pub(super) fn is_full(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded
    )
}

/// The file that whoever has a journal open keeps locked.
const LOCK: &str = "LOCK";

/// Segment files in one directory.
pub(super) struct Directory {
    path: PathBuf,
    handle: File,
    /// Held while a name of [`Directory::spare`] changes hands.
    spares: Mutex<()>,
    /// How many may wait to be segments.
    most: usize,
}

/// Files that wait to be segments in a quiet journal: one to be used next, one for the full disk on which only settling
/// goes on.
const SPARES: usize = 2;
/// The most that ever wait.
const MOST_SPARES: usize = 64;
/// What of a file is made zero before it waits: more than a header, so that nothing of the segment it was looks like one.
const BLANK: [u8; 4096] = [0; 4096];
/// Zeros are written in pieces of this many bytes.
const ZEROS: usize = 1 << 20;

/// The number of the segment whose file is called so.
fn number_of(name: &OsStr) -> Option<u64> {
    let digits = name.to_str()?.strip_suffix(".seg")?;
    digits.parse().ok().filter(|_| digits.len() == 20)
}

/// A file that is empty, whatever was there, and for this user alone.
fn anew(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .create(true)
        .truncate(true)
        .write(true)
        .mode(0o600)
        .open(path)
}

/// How much of a file is given back at once.
const STEP: u64 = 4 << 20;

/// Removes a file that nobody will read, if it is there: the end of it first, piece by piece, for giving back many blocks
/// at once stalls the syncs of other files.
pub(super) fn remove_by_steps(path: &Path) -> io::Result<()> {
    match OpenOptions::new().write(true).open(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
        Ok(file) => {
            let mut left = file.metadata()?.len();
            while left > STEP {
                left -= STEP;
                file.set_len(left)?;
            }
        }
    }
    std::fs::remove_file(path)
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
    /// Whether a directory holds a journal. Changes nothing.
    pub fn is_one(path: &Path) -> io::Result<bool> {
        for item in std::fs::read_dir(path)? {
            let name = item?.file_name();
            if name == LOCK || number_of(&name).is_some() {
                return Ok(true);
            }
        }
        Ok(false)
    }

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
            .open(path.join(LOCK))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(DirectoryError::Locked),
            Err(TryLockError::Error(error)) => return Err(error.into()),
        }
        let directory = Self {
            path: path.to_owned(),
            handle: File::open(path)?,
            spares: Mutex::default(),
            most: SPARES,
        };
        // What a crash left half ready.
        let _ = std::fs::remove_file(directory.unready());
        let _ = std::fs::remove_file(directory.rewritten());
        Ok((directory, DirectoryLock { _file: lock }))
    }
}

impl Directory {
    fn spare(&self, index: usize) -> PathBuf {
        self.path.join(format!("spare-{index}"))
    }

    fn unready(&self) -> PathBuf {
        self.path.join("spare.new")
    }

    fn rewritten(&self) -> PathBuf {
        self.path.join("rewritten.new")
    }

    fn spares(&self) -> MutexGuard<'_, ()> {
        self.spares.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets so many files wait to be segments. Under load many segments are done with at once, when the ids in them
    /// are on disk elsewhere: removed, as many would soon have to be written full of zeros again.
    pub fn with_spares(mut self, most: u64) -> Self {
        self.most = usize::try_from(most)
            .unwrap_or(MOST_SPARES)
            .clamp(SPARES, MOST_SPARES);
        self
    }

    /// A name for one more file that is ready, if there are fewer than so many.
    fn wanted(&self, most: usize) -> Option<PathBuf> {
        (0..most)
            .map(|index| self.spare(index))
            .find(|path| !path.exists())
    }
}

impl Storage for Directory {
    fn list(&self) -> io::Result<Vec<u64>> {
        let mut numbers = Vec::new();
        for item in std::fs::read_dir(&self.path)? {
            numbers.extend(number_of(&item?.file_name()));
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

    fn secure(&self, number: u64) -> io::Result<()> {
        // Opened for writing: some file systems refuse to sync a read-only handle.
        let file = OpenOptions::new().write(true).open(self.name(number))?;
        file.sync_all()?;
        // Only advice; file systems without a page cache refuse it and need none.
        let _ = fadvise(&file, 0, None, Advice::DontNeed);
        Ok(())
    }

    fn create(&self, number: u64) -> io::Result<(Box<dyn SegmentFile>, u64)> {
        let name = self.name(number);
        let _changing = self.spares();
        let ready = (0..MOST_SPARES)
            .rev()
            .map(|index| self.spare(index))
            .find(|spare| !name.exists() && std::fs::rename(spare, &name).is_ok());
        let file = OpenOptions::new()
            .create_new(ready.is_none())
            .write(true)
            .mode(0o600)
            .open(&name)?;
        let allocated = file.metadata()?.len();
        Ok((Box::new(file), allocated))
    }

    fn prepare(&self, bytes: u64) -> io::Result<()> {
        // Nobody else makes one ready at the same time: the lock is for the moment of the name alone.
        if self.wanted(SPARES).is_none() {
            return Ok(());
        }
        let unready = self.unready();
        let fill = || {
            let file = anew(&unready)?;
            // Written, and not only reserved: an unwritten extent would put metadata into every sync.
            let zeros = vec![0; ZEROS];
            let mut at = 0;
            while at < bytes {
                let piece = usize::try_from(bytes - at).unwrap_or(ZEROS).min(ZEROS);
                FileExt::write_all_at(&file, &zeros[..piece], at)?;
                at += piece as u64;
                // In pieces as well: one sync of 64 MiB would stand in the way of a commit's.
                file.sync_data()?;
            }
            file.sync_all()
        };
        if let Err(error) = fill() {
            let _ = std::fs::remove_file(&unready);
            return Err(error);
        }
        let _changing = self.spares();
        match self.wanted(self.most) {
            Some(spare) => std::fs::rename(&unready, spare),
            None => std::fs::remove_file(&unready),
        }
    }

    fn retire(&self, number: u64) -> io::Result<()> {
        let name = self.name(number);
        if self.wanted(self.most).is_none() {
            return self.remove(number);
        }
        let file = OpenOptions::new().write(true).open(&name)?;
        if file.metadata()?.len() < BLANK.len() as u64 {
            return self.remove(number);
        }
        FileExt::write_all_at(&file, &BLANK, 0)?;
        // Before it has another name: a segment's header under a number that is not its own looks like damage.
        file.sync_data()?;
        let _changing = self.spares();
        match self.wanted(self.most) {
            Some(spare) => std::fs::rename(name, spare),
            None => remove_by_steps(&name),
        }
    }

    fn replace(&self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let unready = self.rewritten();
        let write = || {
            let file = anew(&unready)?;
            FileExt::write_all_at(&file, bytes, 0)?;
            file.sync_all()?;
            std::fs::rename(&unready, self.name(number))
        };
        if let Err(error) = write() {
            let _ = std::fs::remove_file(&unready);
            return Err(error);
        }
        self.handle.sync_all()
    }

    fn discard_waiting(&self) -> io::Result<()> {
        let _changing = self.spares();
        for path in (0..MOST_SPARES).map(|index| self.spare(index)) {
            remove_by_steps(&path)?;
        }
        self.handle.sync_all()
    }

    fn thin_out(&self) -> io::Result<()> {
        let _changing = self.spares();
        let last = (SPARES..MOST_SPARES).rev().map(|index| self.spare(index));
        match last.into_iter().find(|path| path.exists()) {
            Some(path) => remove_by_steps(&path),
            None => Ok(()),
        }
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
        self.set_len(len)?;
        // With its length, which `sync_data` may leave for later.
        self.sync_all()
    }
}
