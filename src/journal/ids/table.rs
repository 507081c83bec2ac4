//! The youngest ids, in memory. Pure.
//!
//! Not for what is on disk. Upholds law 11: what it takes is counted, not guessed.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::mem::size_of;

use super::shelf::Shelf;
use crate::journal::{DedupKey, Seq};

/// A key as a number whose order is that of its bytes.
pub(super) type Key = u128;

pub(super) fn key_of(key: &DedupKey) -> Key {
    u128::from_be_bytes(key.0)
}

/// Takes a share of the key as its hash: a key is a keyed digest already, so that nobody outside can choose it.
#[derive(Default)]
pub(super) struct KeyHasher(u64);

impl Hasher for KeyHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    /// Not used: a key is hashed by the method below.
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = self.0.rotate_left(8) ^ u64::from(*byte);
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "half of the key is enough of it")]
    fn write_u128(&mut self, key: u128) {
        self.0 = key as u64;
    }
}

/// Ids with their messages' numbers and shelves.
#[derive(Default)]
pub(super) struct Table {
    ids: HashMap<Key, (Seq, Shelf), BuildHasherDefault<KeyHasher>>,
    /// When the first of them was accepted, ms.
    since_ms: Option<u64>,
    highest: Option<Seq>,
}

impl Table {
    /// With room for so many ids before it grows.
    pub fn with_capacity(ids: usize) -> Self {
        Self {
            ids: HashMap::with_capacity_and_hasher(ids, BuildHasherDefault::default()),
            ..Self::default()
        }
    }

    /// An id that is there already keeps its first message.
    pub fn insert(&mut self, key: Key, shelf: Shelf, accepted_at_ms: u64, seq: Seq) {
        self.ids.entry(key).or_insert((seq, shelf));
        self.since_ms.get_or_insert(accepted_at_ms);
        self.highest = self.highest.max(Some(seq));
    }

    pub fn get(&self, key: Key) -> Option<Seq> {
        self.ids.get(&key).map(|(seq, _)| *seq)
    }

    pub fn len(&self) -> usize {
        self.ids.len()
    }

    pub fn since_ms(&self) -> Option<u64> {
        self.since_ms
    }

    /// The highest number that was inserted.
    pub fn highest(&self) -> Option<Seq> {
        self.highest
    }

    /// All ids by shelf and key: 32 bytes each for as long as they are held.
    pub fn sorted(&self) -> Vec<(Shelf, Key, Seq)> {
        let mut ids: Vec<_> = self
            .ids
            .iter()
            .map(|(key, (seq, shelf))| (*shelf, *key, *seq))
            .collect();
        ids.sort_unstable_by_key(|(shelf, key, _)| (*shelf, *key));
        ids
    }

    /// What it takes in memory: the map has a power of two of buckets, at most 7/8 of them used, each an entry and
    /// a byte of its own.
    #[cfg_attr(not(feature = "sim"), allow(dead_code, reason = "for measurements"))]
    pub fn bytes(&self) -> usize {
        match self.ids.capacity() {
            0 => 0,
            usable => (usable * 8 / 7).next_power_of_two() * (size_of::<(Key, (Seq, Shelf))>() + 1) + 16,
        }
    }
}
