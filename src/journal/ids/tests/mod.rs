//! Tests of the remembered ids: against a plain model, through crashes, with damage. Builders they share are here.

mod behaviour;
mod crash;
mod damage;
mod disk;
mod model;

use std::time::Duration;

use self::disk::Disk;
use super::shelf::HOUR_MS;
use super::{Born, Ids, Listed, Options, Run, RunStorage};
use crate::journal::{DedupKey, Seq};

/// A moment to begin with, at the start of an hour.
const START: u64 = 490_000 * HOUR_MS;

/// Keys are digests: uniform, and each number's own.
fn key(number: u64) -> DedupKey {
    DedupKey(fastrand::Rng::with_seed(number).u128(..).to_be_bytes())
}

/// Keys whose first 12 bytes are alike, as no digest's are: look-ups must be right, if not fast.
fn alike(number: u64) -> DedupKey {
    let mut key = [0xAB; 16];
    key[12..].copy_from_slice(&u32::try_from(number).unwrap().to_be_bytes());
    DedupKey(key)
}

fn hours(hours: u64) -> Duration {
    Duration::from_millis(hours * HOUR_MS)
}

/// Small, so that a test meets every limit.
fn small() -> Options {
    Options {
        seal_at: 200,
        room: 300,
        filter_bytes: 1_000,
        max_filter_bytes: 2_000,
        filter_after: 2,
        crowded: 24,
        ..Options::default()
    }
}

fn open(disk: &Disk) -> Ids {
    Ids::open(disk, small()).unwrap()
}

fn remove(disk: &Disk, files: Vec<Listed>) {
    for file in files {
        disk.remove(file).unwrap();
    }
}

/// Freezes, writes, adopts.
fn seal(ids: &mut Ids, disk: &Disk) -> Option<u64> {
    let run: Run = ids.freeze()?.write(disk).unwrap();
    let number = run.number();
    let files = ids.adopt(run);
    remove(disk, files);
    Some(number)
}

/// Merges while there is something to merge; says how often.
fn merge_all(ids: &mut Ids, disk: &Disk) -> usize {
    let mut merges = 0;
    while let Some(merge) = ids.merge() {
        let files = ids.adopt(merge.write(disk).unwrap());
        remove(disk, files);
        merges += 1;
    }
    merges
}

fn insert(ids: &mut Ids, numbers: impl IntoIterator<Item = u64>, at_ms: u64) {
    for number in numbers {
        ids.insert(&key(number), Born::At(at_ms), at_ms, Seq(number));
    }
}

fn find(ids: &mut Ids, number: u64, at_ms: u64) -> Option<u64> {
    let found = ids.find(&key(number), Born::At(at_ms), at_ms);
    found.unwrap().map(|seq| seq.0)
}
