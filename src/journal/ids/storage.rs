//! The few file operations that runs need, as a trait, and the real files behind it.
//!
//! Not for the meaning of the bytes. Upholds law 1: nothing here reports success before the kernel has. The trait
//! exists so that tests can lose unsynced writes, tear them, fill the disk and fail a sync.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::journal::storage::remove_by_steps;

/// A directory of numbered runs, finished and unfinished.
pub trait RunStorage: Send + Sync + 'static {
    /// All files, in any order.
    fn list(&self) -> io::Result<Vec<Listed>>;
    /// Creates an unfinished run, in place of one that is there.
    fn create(&self, number: u64) -> io::Result<Box<dyn NewRun>>;
    /// Gives an unfinished run its name, atomically.
    fn publish(&self, number: u64) -> io::Result<()>;
    /// Opens a finished run.
    fn open(&self, number: u64) -> io::Result<Box<dyn RunReader>>;
    /// Removes a file; one that is gone already is no error.
    fn remove(&self, file: Listed) -> io::Result<()>;
    /// Makes names durable.
    fn sync_directory(&self) -> io::Result<()>;
    /// The name to show for a run.
    fn name(&self, number: u64) -> PathBuf;
}

/// A file in the directory.
#[derive(Copy, Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Listed {
    /// A run.
    Run(u64),
    /// A run that was never finished.
    Unfinished(u64),
}

/// A run that is being written.
pub trait NewRun: Send {
    /// Writes all the bytes.
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    /// Data and length are on the disk when this returns.
    fn sync(&self) -> io::Result<()>;
}

/// A finished run; stays readable when it is removed.
pub trait RunReader: Send + Sync {
    /// Its length in bytes.
    fn size(&self) -> io::Result<u64>;
    /// Fills the buffer, or fails with [`io::ErrorKind::UnexpectedEof`] where the file ends.
    fn read_exact_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()>;
}

/// Runs in a directory of their own inside the journal's.
pub struct RunDirectory {
    path: PathBuf,
    handle: File,
}

impl RunDirectory {
    /// Creates the directory `ids` in the journal's directory if needed (mode 0700).
    ///
    /// # Errors
    /// The file system's.
    pub fn open(journal: &Path) -> io::Result<Self> {
        let path = journal.join("ids");
        if !path.is_dir() {
            DirBuilder::new().mode(0o700).create(&path)?;
            File::open(journal)?.sync_all()?;
        }
        let handle = File::open(&path)?;
        Ok(Self { path, handle })
    }

    fn path(&self, file: Listed) -> PathBuf {
        match file {
            Listed::Run(number) => self.path.join(format!("{number:020}.ids")),
            Listed::Unfinished(number) => self.path.join(format!("{number:020}.tmp")),
        }
    }
}

impl RunStorage for RunDirectory {
    fn list(&self) -> io::Result<Vec<Listed>> {
        let mut files = Vec::new();
        for item in std::fs::read_dir(&self.path)? {
            let name = item?.file_name();
            let Some((digits, extension)) = name.to_str().and_then(|name| name.split_once('.')) else {
                continue;
            };
            let Some(number) = digits.parse().ok().filter(|_| digits.len() == 20) else {
                continue;
            };
            match extension {
                "ids" => files.push(Listed::Run(number)),
                "tmp" => files.push(Listed::Unfinished(number)),
                _ => {}
            }
        }
        Ok(files)
    }

    fn create(&self, number: u64) -> io::Result<Box<dyn NewRun>> {
        let file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(self.path(Listed::Unfinished(number)))?;
        Ok(Box::new(file))
    }

    fn publish(&self, number: u64) -> io::Result<()> {
        std::fs::rename(
            self.path(Listed::Unfinished(number)),
            self.path(Listed::Run(number)),
        )
    }

    fn open(&self, number: u64) -> io::Result<Box<dyn RunReader>> {
        Ok(Box::new(File::open(self.path(Listed::Run(number)))?))
    }

    fn remove(&self, file: Listed) -> io::Result<()> {
        let path = match file {
            // Shortened, it would look like a damaged run.
            Listed::Run(number) => {
                let unfinished = self.path(Listed::Unfinished(number));
                match std::fs::rename(self.path(file), &unfinished) {
                    Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
                    result => result?,
                }
                unfinished
            }
            Listed::Unfinished(_) => self.path(file),
        };
        remove_by_steps(&path)
    }

    fn sync_directory(&self) -> io::Result<()> {
        self.handle.sync_all()
    }

    fn name(&self, number: u64) -> PathBuf {
        self.path(Listed::Run(number))
    }
}

impl NewRun for File {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        FileExt::write_all_at(self, bytes, offset)
    }

    fn sync(&self) -> io::Result<()> {
        self.sync_all()
    }
}

impl RunReader for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_exact_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        FileExt::read_exact_at(self, bytes, offset)
    }
}
