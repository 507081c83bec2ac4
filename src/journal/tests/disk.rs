//! A disk in memory that fails on purpose: it keeps apart what is cached and what is durable, loses or tears what
//! was not synced, and returns errors at a chosen operation.
//!
//! Modelled on Linux: a failed sync marks the pages clean, so the data is still read back, a second sync succeeds,
//! and a power loss then loses it.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Condvar, Mutex};

use crate::journal::storage::{SegmentFile, Storage};

/// What happens at an operation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The machine or the process stops: this and every later operation fails.
    Stop,
    /// No space: a write gets part of its bytes out.
    NoSpace,
    /// An I/O error: a write gets part of its bytes out, a sync loses what it should have written.
    Error,
    /// A write gets all of its bytes out but the last one. Any other operation fails.
    AlmostAll,
}

#[derive(Clone, Default)]
struct Inode {
    /// What reading shows.
    cached: Vec<u8>,
    /// What a power loss leaves for certain.
    durable: Vec<u8>,
    /// Writes since the last sync, each of which may or may not have reached the disk.
    dirty: Vec<(usize, Vec<u8>)>,
}

impl Inode {
    fn write(bytes: &mut Vec<u8>, offset: usize, data: &[u8]) {
        bytes.resize(bytes.len().max(offset + data.len()), 0);
        bytes[offset..offset + data.len()].copy_from_slice(data);
    }

    /// What is on the disk if power goes now.
    fn after_power_loss(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (offset, data) in &self.dirty {
            match rng.u8(..5) {
                0 => {}
                1 => Self::write(&mut bytes, *offset, data),
                2 => Self::write(&mut bytes, *offset, &data[..rng.usize(..=data.len())]),
                _ => {
                    // Any of its sectors, in any order; the length may have grown before the data came.
                    if rng.bool() {
                        bytes.resize(bytes.len().max(offset + data.len()), 0);
                    }
                    let mut at = 0;
                    while at < data.len() {
                        let end = (at + 512 - (offset + at) % 512).min(data.len());
                        if rng.bool() {
                            Self::write(&mut bytes, offset + at, &data[at..end]);
                        }
                        at = end;
                    }
                }
            }
        }
        bytes
    }
}

#[derive(Default)]
struct Inner {
    inodes: Vec<Inode>,
    names: BTreeMap<u64, usize>,
    durable_names: BTreeMap<u64, usize>,
    operations: u64,
    plan: BTreeMap<u64, Trouble>,
    full: bool,
    broken_syncs: u32,
    stopped: bool,
    removed: Vec<u64>,
    /// Files that are ready to be segments; a crash forgets them.
    spares: Vec<usize>,
    rng: fastrand::Rng,
}

impl Inner {
    fn step(&mut self) -> Result<Option<Trouble>, io::Error> {
        let trouble = self.plan.get(&self.operations).copied();
        self.operations += 1;
        self.stopped |= trouble == Some(Trouble::Stop);
        if self.stopped {
            Err(io::Error::other("stopped"))
        } else {
            Ok(trouble)
        }
    }

    fn inode(&mut self, number: u64) -> io::Result<&mut Inode> {
        let index = *self.names.get(&number).ok_or(io::ErrorKind::NotFound)?;
        Ok(&mut self.inodes[index])
    }

    fn sync(&mut self, index: usize, trouble: Option<Trouble>) -> io::Result<()> {
        let broken = self.broken_syncs > 0;
        self.broken_syncs = self.broken_syncs.saturating_sub(1);
        if broken || trouble.is_some() {
            let mut rng = self.rng.fork();
            let inode = &mut self.inodes[index];
            inode.durable = inode.after_power_loss(&mut rng);
            inode.dirty.clear();
            return Err(io::Error::other("sync failed"));
        }
        let inode = &mut self.inodes[index];
        for (offset, data) in std::mem::take(&mut inode.dirty) {
            Inode::write(&mut inode.durable, offset, &data);
        }
        Ok(())
    }
}

#[derive(Clone, Default)]
pub struct Disk {
    inner: Arc<Mutex<Inner>>,
    /// While true, syncs wait.
    gate: Arc<(Mutex<bool>, Condvar)>,
}

impl Disk {
    pub fn seeded(seed: u64) -> Self {
        let disk = Self::default();
        disk.inner.lock().unwrap().rng = fastrand::Rng::with_seed(seed);
        disk
    }

    /// Something happens at the operation that is `after` operations away (0: the next).
    pub fn plan(&self, after: u64, trouble: Trouble) {
        let mut inner = self.inner.lock().unwrap();
        let at = inner.operations + after;
        inner.plan.insert(at, trouble);
    }

    pub fn set_full(&self, full: bool) {
        self.inner.lock().unwrap().full = full;
    }

    pub fn break_next_syncs(&self, count: u32) {
        self.inner.lock().unwrap().broken_syncs = count;
    }

    pub fn operations(&self) -> u64 {
        self.inner.lock().unwrap().operations
    }

    pub fn removed(&self) -> Vec<u64> {
        self.inner.lock().unwrap().removed.clone()
    }

    pub fn hold_syncs(&self, hold: bool) {
        *self.gate.0.lock().unwrap() = hold;
        self.gate.1.notify_all();
    }

    /// The disk as the next start after a power loss finds it.
    pub fn after_power_loss(&self, rng: &mut fastrand::Rng) -> Self {
        let inner = self.inner.lock().unwrap();
        let mut names = inner.durable_names.clone();
        let changed: BTreeSet<u64> = inner.names.keys().chain(names.keys()).copied().collect();
        for number in changed {
            if names.get(&number) != inner.names.get(&number) && rng.bool() {
                match inner.names.get(&number) {
                    Some(index) => names.insert(number, *index),
                    None => names.remove(&number),
                };
            }
        }
        let files = names
            .into_iter()
            .map(|(number, index)| (number, inner.inodes[index].after_power_loss(rng)));
        Self::with_files(files.collect(), rng.fork())
    }

    /// The disk as the next start finds it after the process alone was killed: the cache is still there.
    pub fn after_kill(&self, rng: &mut fastrand::Rng) -> Self {
        let inner = self.inner.lock().unwrap();
        let next = Inner {
            inodes: inner.inodes.clone(),
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            rng: rng.fork(),
            ..Inner::default()
        };
        Self {
            inner: Arc::new(Mutex::new(next)),
            gate: Arc::default(),
        }
    }

    /// A disk on which these files are durable.
    pub fn with_files(files: BTreeMap<u64, Vec<u8>>, rng: fastrand::Rng) -> Self {
        let mut inner = Inner {
            rng,
            ..Inner::default()
        };
        for (number, bytes) in files {
            inner.names.insert(number, inner.inodes.len());
            inner.inodes.push(Inode {
                cached: bytes.clone(),
                durable: bytes,
                dirty: Vec::new(),
            });
        }
        inner.durable_names = inner.names.clone();
        Self {
            inner: Arc::new(Mutex::new(inner)),
            gate: Arc::default(),
        }
    }

    /// All files as they read now.
    pub fn files(&self) -> BTreeMap<u64, Vec<u8>> {
        let inner = self.inner.lock().unwrap();
        inner
            .names
            .iter()
            .map(|(number, index)| (*number, inner.inodes[*index].cached.clone()))
            .collect()
    }

    /// Changes a file in cache and on disk alike.
    pub fn edit(&self, number: u64, edit: impl Fn(&mut Vec<u8>)) {
        let mut inner = self.inner.lock().unwrap();
        let inode = inner.inode(number).unwrap();
        edit(&mut inode.cached);
        edit(&mut inode.durable);
    }
}

impl Storage for Disk {
    fn list(&self) -> io::Result<Vec<u64>> {
        Ok(self.inner.lock().unwrap().names.keys().copied().collect())
    }

    fn read(&self, number: u64, offset: u64, len: usize) -> io::Result<Vec<u8>> {
        let mut inner = self.inner.lock().unwrap();
        let bytes = &inner.inode(number)?.cached;
        let from = bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        Ok(from[..len.min(from.len())].to_vec())
    }

    fn secure(&self, number: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        let trouble = inner.step()?;
        let index = *inner.names.get(&number).ok_or(io::ErrorKind::NotFound)?;
        inner.sync(index, trouble)?;
        let inode = &mut inner.inodes[index];
        inode.cached = inode.durable.clone();
        Ok(())
    }

    fn create(&self, number: u64) -> io::Result<(Box<dyn SegmentFile>, u64)> {
        let mut inner = self.inner.lock().unwrap();
        let step = inner.step()?;
        if inner.names.contains_key(&number) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let spare = inner.spares.pop();
        match step {
            Some(Trouble::Error | Trouble::Stop | Trouble::AlmostAll) => {
                return Err(io::Error::other("creation failed"));
            }
            Some(Trouble::NoSpace) if spare.is_none() => return Err(io::ErrorKind::StorageFull.into()),
            None if inner.full && spare.is_none() => return Err(io::ErrorKind::StorageFull.into()),
            _ => {}
        }
        let index = spare.unwrap_or_else(|| {
            inner.inodes.push(Inode::default());
            inner.inodes.len() - 1
        });
        inner.names.insert(number, index);
        let allocated = inner.inodes[index].cached.len() as u64;
        let file = OpenFile {
            disk: self.clone(),
            index,
        };
        Ok((Box::new(file), allocated))
    }

    fn prepare(&self, bytes: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if !inner.spares.is_empty() {
            return Ok(());
        }
        if inner.step()?.is_some() {
            return Err(io::Error::other("preparation failed"));
        }
        if inner.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let zeros = vec![0; usize::try_from(bytes).unwrap()];
        inner.inodes.push(Inode {
            cached: zeros.clone(),
            durable: zeros,
            dirty: Vec::new(),
        });
        let index = inner.inodes.len() - 1;
        inner.spares.push(index);
        Ok(())
    }

    fn retire(&self, number: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        let trouble = inner.step()?;
        let index = *inner.names.get(&number).ok_or(io::ErrorKind::NotFound)?;
        let blank = inner.inodes[index].cached.len().min(64);
        Inode::write(&mut inner.inodes[index].cached, 0, &vec![0; blank]);
        inner.inodes[index].dirty.push((0, vec![0; blank]));
        inner.sync(index, trouble)?;
        // Between the two steps the machine may stop: then the file has its old name and no header.
        if inner.step()?.is_some() {
            return Err(io::Error::other("renaming failed"));
        }
        inner.names.remove(&number);
        inner.removed.push(number);
        if inner.spares.is_empty() {
            inner.spares.push(index);
        }
        Ok(())
    }

    fn replace(&self, number: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        // A machine that stops has renamed the new file or has not.
        let renamed = inner.rng.bool();
        let step = inner.step();
        let stopped_behind_it = inner.stopped && renamed && inner.names.contains_key(&number);
        if !(matches!(step, Ok(None)) || stopped_behind_it) {
            return Err(io::Error::other("replacing failed"));
        }
        inner.inodes.push(Inode {
            cached: bytes.to_vec(),
            durable: bytes.to_vec(),
            dirty: Vec::new(),
        });
        let index = inner.inodes.len() - 1;
        inner.names.insert(number, index);
        inner.durable_names.insert(number, index);
        step.map(drop)
    }

    fn discard_waiting(&self) -> io::Result<()> {
        self.inner.lock().unwrap().spares.clear();
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if inner.step()?.is_some() {
            return Err(io::Error::other("directory sync failed"));
        }
        inner.durable_names = inner.names.clone();
        Ok(())
    }

    fn remove(&self, number: u64) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        if inner.step()?.is_some() {
            return Err(io::Error::other("removal failed"));
        }
        if inner.names.remove(&number).is_some() {
            inner.removed.push(number);
        }
        Ok(())
    }

    fn name(&self, number: u64) -> PathBuf {
        PathBuf::from(format!("disk/{number}"))
    }
}

struct OpenFile {
    disk: Disk,
    index: usize,
}

impl SegmentFile for OpenFile {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.inner.lock().unwrap();
        let step = inner.step();
        let no_space = inner.full || matches!(step, Ok(Some(Trouble::NoSpace)));
        // A write that does not finish may still have got some of its bytes out.
        let written = match step {
            Ok(None) if !no_space => bytes.len(),
            Ok(Some(Trouble::AlmostAll)) => bytes.len() - 1,
            _ => inner.rng.usize(..bytes.len()),
        };
        let offset = usize::try_from(offset).unwrap();
        let inode = &mut inner.inodes[self.index];
        Inode::write(&mut inode.cached, offset, &bytes[..written]);
        inode.dirty.push((offset, bytes[..written].to_vec()));
        step?;
        match (no_space, written == bytes.len()) {
            (true, _) => Err(io::ErrorKind::StorageFull.into()),
            (false, true) => Ok(()),
            (false, false) => Err(io::Error::other("write failed")),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let held = self.disk.gate.0.lock().unwrap();
        drop(self.disk.gate.1.wait_while(held, |held| *held).unwrap());
        let mut inner = self.disk.inner.lock().unwrap();
        let trouble = inner.step()?;
        inner.sync(self.index, trouble)
    }

    fn truncate(&self, len: u64) -> io::Result<()> {
        let mut inner = self.disk.inner.lock().unwrap();
        if inner.step()?.is_some() {
            return Err(io::Error::other("truncation failed"));
        }
        let len = usize::try_from(len).unwrap();
        inner.inodes[self.index].cached.truncate(len);
        // Whether the cut reaches the disk before it is synced is open.
        let reaches = inner.rng.bool();
        let synced = inner.step();
        let inode = &mut inner.inodes[self.index];
        if reaches || matches!(synced, Ok(None)) {
            inode.durable.truncate(len);
            for (offset, data) in &mut inode.dirty {
                data.truncate(len.saturating_sub(*offset));
            }
        }
        let trouble = synced?;
        inner.sync(self.index, trouble)
    }
}
