//! A directory of runs in memory that fails on purpose: it keeps apart what is cached and what is durable, loses or
//! tears what was not synced, and returns errors at a chosen operation. Like the journal's own (`journal/tests`),
//! with names that change.

use std::collections::BTreeMap;
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use crate::journal::ids::{Listed, NewRun, RunReader, RunStorage};

/// What happens at an operation.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Trouble {
    /// The machine or the process stops: this and every later operation fails.
    Stop,
    /// An I/O error: a write gets part of its bytes out, a sync loses what it should have written.
    Error,
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

    /// What is on the disk if power goes now: any sectors of what was written.
    fn after_power_loss(&self, rng: &mut fastrand::Rng) -> Vec<u8> {
        let mut bytes = self.durable.clone();
        for (offset, data) in &self.dirty {
            let share = [0, 1, 1, 2][rng.usize(..4)];
            if rng.bool() && share > 0 {
                bytes.resize(bytes.len().max(offset + data.len()), 0);
            }
            for (index, sector) in data.chunks(512).enumerate() {
                if rng.u8(..2) < share {
                    Self::write(&mut bytes, offset + 512 * index, sector);
                }
            }
        }
        bytes
    }
}

/// A change of names that is not synced.
#[derive(Copy, Clone)]
enum Change {
    Set(Listed, usize),
    Remove(Listed),
    Rename(Listed, Listed, usize),
}

type Names = BTreeMap<Listed, usize>;

impl Change {
    fn apply(self, names: &mut Names) {
        match self {
            Self::Set(name, inode) => {
                names.insert(name, inode);
            }
            Self::Remove(name) => {
                names.remove(&name);
            }
            Self::Rename(from, to, inode) => {
                names.remove(&from);
                names.insert(to, inode);
            }
        }
    }
}

#[derive(Default)]
struct Inner {
    inodes: Vec<Inode>,
    names: Names,
    durable_names: Names,
    changes: Vec<Change>,
    operations: u64,
    plan: BTreeMap<u64, Trouble>,
    full: bool,
    stopped: bool,
    rng: fastrand::Rng,
}

impl Inner {
    fn step(&mut self) -> io::Result<Option<Trouble>> {
        let trouble = self.plan.get(&self.operations).copied();
        self.operations += 1;
        self.stopped |= trouble == Some(Trouble::Stop);
        if self.stopped {
            Err(io::Error::other("stopped"))
        } else {
            Ok(trouble)
        }
    }

    /// As [`Inner::step`], for what either happens or not.
    fn whole_step(&mut self) -> io::Result<()> {
        match self.step()? {
            Some(_) => Err(io::Error::other("failed")),
            None => Ok(()),
        }
    }

    fn change(&mut self, change: Change) {
        change.apply(&mut self.names);
        self.changes.push(change);
    }
}

#[derive(Clone, Default)]
pub struct Disk(Arc<Mutex<Inner>>);

impl Disk {
    pub fn seeded(seed: u64) -> Self {
        let disk = Self::default();
        disk.0.lock().unwrap().rng = fastrand::Rng::with_seed(seed);
        disk
    }

    /// Something happens at the operation that is `after` operations away (0: the next).
    pub fn plan(&self, after: u64, trouble: Trouble) {
        let mut inner = self.0.lock().unwrap();
        let at = inner.operations + after;
        inner.plan.insert(at, trouble);
    }

    pub fn set_full(&self, full: bool) {
        self.0.lock().unwrap().full = full;
    }

    pub fn operations(&self) -> u64 {
        self.0.lock().unwrap().operations
    }

    /// The disk as the next start after a power loss finds it: any of the changes of names that were not synced, in
    /// their order.
    pub fn after_power_loss(&self, rng: &mut fastrand::Rng) -> Self {
        let inner = self.0.lock().unwrap();
        let mut names = inner.durable_names.clone();
        for change in &inner.changes {
            if rng.bool() {
                change.apply(&mut names);
            }
        }
        let files = names
            .into_iter()
            .map(|(name, inode)| (name, inner.inodes[inode].after_power_loss(rng)));
        Self::with_files(files.collect())
    }

    /// The disk as the next start finds it after the process alone was killed: the cache is still there.
    pub fn after_kill(&self, rng: &mut fastrand::Rng) -> Self {
        let inner = self.0.lock().unwrap();
        Self(Arc::new(Mutex::new(Inner {
            inodes: inner.inodes.clone(),
            names: inner.names.clone(),
            durable_names: inner.durable_names.clone(),
            changes: inner.changes.clone(),
            rng: rng.fork(),
            ..Inner::default()
        })))
    }

    /// A disk on which these files are durable.
    pub fn with_files(files: BTreeMap<Listed, Vec<u8>>) -> Self {
        let mut inner = Inner::default();
        for (name, bytes) in files {
            inner.names.insert(name, inner.inodes.len());
            inner.inodes.push(Inode {
                cached: bytes.clone(),
                durable: bytes,
                dirty: Vec::new(),
            });
        }
        inner.durable_names = inner.names.clone();
        Self(Arc::new(Mutex::new(inner)))
    }

    /// All files as they read now.
    pub fn files(&self) -> BTreeMap<Listed, Vec<u8>> {
        let inner = self.0.lock().unwrap();
        let names = inner.names.iter();
        names
            .map(|(name, inode)| (*name, inner.inodes[*inode].cached.clone()))
            .collect()
    }

    /// Changes a file in cache and on disk alike, for those who have it open too.
    pub fn edit(&self, name: Listed, edit: impl Fn(&mut Vec<u8>)) {
        let mut inner = self.0.lock().unwrap();
        let inode = inner.names[&name];
        edit(&mut inner.inodes[inode].cached);
        edit(&mut inner.inodes[inode].durable);
    }
}

impl RunStorage for Disk {
    fn list(&self) -> io::Result<Vec<Listed>> {
        Ok(self.0.lock().unwrap().names.keys().copied().collect())
    }

    fn create(&self, number: u64) -> io::Result<Box<dyn NewRun>> {
        let mut inner = self.0.lock().unwrap();
        inner.whole_step()?;
        if inner.full {
            return Err(io::ErrorKind::StorageFull.into());
        }
        let inode = inner.inodes.len();
        inner.inodes.push(Inode::default());
        inner.change(Change::Set(Listed::Unfinished(number), inode));
        Ok(Box::new(OpenFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn publish(&self, number: u64) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.whole_step()?;
        let from = Listed::Unfinished(number);
        let inode = *inner.names.get(&from).ok_or(io::ErrorKind::NotFound)?;
        inner.change(Change::Rename(from, Listed::Run(number), inode));
        Ok(())
    }

    fn open(&self, number: u64) -> io::Result<Box<dyn RunReader>> {
        let inner = self.0.lock().unwrap();
        let inode = *inner
            .names
            .get(&Listed::Run(number))
            .ok_or(io::ErrorKind::NotFound)?;
        Ok(Box::new(OpenFile {
            disk: self.clone(),
            inode,
        }))
    }

    fn remove(&self, file: Listed) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.whole_step()?;
        inner.change(Change::Remove(file));
        Ok(())
    }

    fn sync_directory(&self) -> io::Result<()> {
        let mut inner = self.0.lock().unwrap();
        inner.whole_step()?;
        inner.changes.clear();
        inner.durable_names = inner.names.clone();
        Ok(())
    }

    fn name(&self, number: u64) -> PathBuf {
        PathBuf::from(format!("disk/{number}"))
    }
}

struct OpenFile {
    disk: Disk,
    inode: usize,
}

impl NewRun for OpenFile {
    fn write_all_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut inner = self.disk.0.lock().unwrap();
        let step = inner.step();
        let full = inner.full;
        // A write that does not finish may still have got some of its bytes out.
        let whole = matches!(step, Ok(None)) && !full;
        let written = if whole {
            bytes.len()
        } else {
            inner.rng.usize(..bytes.len())
        };
        let offset = usize::try_from(offset).unwrap();
        let inode = &mut inner.inodes[self.inode];
        Inode::write(&mut inode.cached, offset, &bytes[..written]);
        inode.dirty.push((offset, bytes[..written].to_vec()));
        match step? {
            _ if full => Err(io::ErrorKind::StorageFull.into()),
            Some(_) => Err(io::Error::other("write failed")),
            None => Ok(()),
        }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inner = self.disk.0.lock().unwrap();
        let trouble = inner.step()?;
        let mut rng = inner.rng.fork();
        let inode = &mut inner.inodes[self.inode];
        if trouble.is_some() {
            inode.durable = inode.after_power_loss(&mut rng);
            inode.dirty.clear();
            return Err(io::Error::other("sync failed"));
        }
        inode.durable = inode.cached.clone();
        inode.dirty.clear();
        Ok(())
    }
}

impl RunReader for OpenFile {
    fn size(&self) -> io::Result<u64> {
        Ok(self.disk.0.lock().unwrap().inodes[self.inode].cached.len() as u64)
    }

    fn read_exact_at(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        let inner = self.disk.0.lock().unwrap();
        let from = usize::try_from(offset).unwrap();
        let read = inner.inodes[self.inode].cached.get(from..from + bytes.len());
        bytes.copy_from_slice(read.ok_or(io::ErrorKind::UnexpectedEof)?);
        Ok(())
    }
}
