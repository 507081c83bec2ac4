//! Segment files in memory, for tests and the simulators of other parts.
//!
//! Not for testing the journal itself (`tests/disk.rs` loses and tears writes): upholds no law, nothing survives.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

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

    fn len(&self, number: u64) -> io::Result<u64> {
        Ok(lock(&*self.file(number)?).len() as u64)
    }

    fn secure(&self, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn create(&self, number: u64) -> io::Result<Box<dyn SegmentFile>> {
        let file = Bytes::default();
        lock(&self.files).insert(number, Arc::clone(&file));
        Ok(Box::new(file))
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
