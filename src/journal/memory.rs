//! Segment files and runs of ids in memory, for tests and the simulators of other parts.
//!
//! Not for testing the journal itself (`tests/disk.rs` loses and tears writes): upholds no law, nothing survives.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ids::{Listed, NewRun, RunReader, RunStorage};
use super::storage::{SegmentFile, Storage};

type Bytes = Arc<Mutex<Vec<u8>>>;

#[derive(Default)]
pub(super) struct Memory {
    files: Mutex<BTreeMap<u64, Bytes>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn index(number: u64) -> usize {
    usize::try_from(number).unwrap_or(usize::MAX)
}

impl Memory {
    fn file(&self, number: u64) -> io::Result<Bytes> {
        lock(&self.files)
            .get(&number)
            .cloned()
            .ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Storage for Memory {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(lock(&self.files).keys().copied().collect())
    }

    fn read(&self, number: u64, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let file = self.file(number)?;
        let bytes = lock(&file);
        let from = bytes.get(index(offset)..).unwrap_or_default();
        Ok(from[..len.min(from.len())].to_vec())
    }

    fn secure(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, number: u64) -> io::Result<(Box<dyn SegmentFile>, u64)> {
        let file = Bytes::default();
        lock(&self.files).insert(number, Arc::clone(&file));
        Ok((Box::new(file), 0))
    }

    fn prepare(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn retire(&self, number: u64) -> io::Result<()> {
        self.remove(number)
    }

    fn replace(&self, number: u64, bytes: &[u8]) -> io::Result<()> {
        lock(&self.files).insert(number, Arc::new(Mutex::new(bytes.to_vec())));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        lock(&self.files).remove(&number);
        Ok(())
    }

    fn name(&self, number: u64) -> PathBuf {
        PathBuf::from(format!("memory/{number}"))
    }
}

impl SegmentFile for Bytes {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut file = lock(self);
        let end = index(offset) + bytes.len();
        if file.len() < end {
            file.resize(end, 0);
        }
        file[index(offset)..end].copy_from_slice(bytes);
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        lock(self).truncate(index(len));
        Ok(())
    }
}

/// Runs of ids, finished and unfinished.
#[derive(Clone, Default)]
pub(super) struct Runs {
    files: Arc<Mutex<BTreeMap<Listed, Bytes>>>,
}

impl RunStorage for Runs {
    fn list(&self) -> io::Result<Vec<Listed>> {
        Ok(lock(&self.files).keys().copied().collect())
    }

    fn create(&self, number: u64) -> io::Result<Box<dyn NewRun>> {
        let file = Bytes::default();
        lock(&self.files).insert(Listed::Unfinished(number), Arc::clone(&file));
        Ok(Box::new(file))
    }

    fn publish(&self, number: u64) -> io::Result<()> {
        let mut files = lock(&self.files);
        let file = files.remove(&Listed::Unfinished(number));
        files.insert(Listed::Run(number), file.ok_or(io::ErrorKind::NotFound)?);
        Ok(())
    }

    fn open(&self, number: u64) -> io::Result<Box<dyn RunReader>> {
        let file = lock(&self.files).get(&Listed::Run(number)).cloned();
        Ok(Box::new(file.ok_or(io::ErrorKind::NotFound)?))
    }

    fn remove(&self, file: Listed) -> io::Result<()> {
        lock(&self.files).remove(&file);
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        Ok(())
    }

    fn name(&self, number: u64) -> PathBuf {
        PathBuf::from(format!("memory/ids/{number}"))
    }
}

impl NewRun for Bytes {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        SegmentFile::write_all_at(self, offset, bytes)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

impl RunReader for Bytes {
    fn size(&self) -> io::Result<u64> {
        Ok(lock(self).len() as u64)
    }

    fn read_exact_at(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let bytes = lock(self);
        let from = bytes.get(index(offset)..).unwrap_or_default();
        let from = from.get(..out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(from);
        Ok(())
    }
}
