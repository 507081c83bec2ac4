//! A filter: says of most keys that are not in a set that they are not. Pure.
//!
//! A blocked Bloom filter as in Parquet's specification, but for the hash: the keys are uniform, so their own bits
//! serve. Not an xor or fuse filter from a library, which would be a quarter smaller: this one is built while its
//! ids go by, touches one cache line, and its bytes on disk can't change with somebody else's hash function
//! (a filter that is read by another rule than it was written by would call known ids unknown).
//!
//! About one unknown key in 200 is taken for known; a look-up in the run then says no. Upholds law 11 (its size has
//! a limit).

use super::table::Key;

/// Bits for each id.
const BITS: u64 = 12;
const BLOCK_BITS: u64 = 256;
/// Bytes of a block.
pub(super) const BLOCK: usize = 32;
/// Blocks that are written and read at a time, so that no second copy of a filter is made.
const PIECE: usize = 2048;

/// Blocks of eight words; an id sets one bit in each word of one block.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Filter {
    blocks: Box<[[u32; 8]]>,
}

/// How many blocks a filter for so many ids has; none if it would be larger than `max_bytes`.
pub(super) fn blocks_for(ids: u64, max_bytes: usize) -> Option<u32> {
    let blocks = ids.checked_mul(BITS)?.div_ceil(BLOCK_BITS).max(1);
    let blocks = u32::try_from(blocks).ok()?;
    (blocks as usize <= max_bytes / BLOCK).then_some(blocks)
}

impl Filter {
    pub fn new(blocks: u32) -> Self {
        Self {
            blocks: vec![[0; 8]; blocks.max(1) as usize].into_boxed_slice(),
        }
    }

    /// Bits 64 to 95 of the key choose the block: those above order the ids, those below are its bits.
    #[expect(clippy::cast_possible_truncation, reason = "chosen bits of a number")]
    fn block(&self, key: Key) -> usize {
        ((u64::from((key >> 64) as u32) * self.blocks.len() as u64) >> 32) as usize
    }

    pub fn insert(&mut self, key: Key) {
        let block = self.block(key);
        for (word, bit) in self.blocks[block].iter_mut().zip(bits(key)) {
            *word |= bit;
        }
    }

    /// False: it was not inserted. True: it probably was.
    pub fn may_contain(&self, key: Key) -> bool {
        let block = &self.blocks[self.block(key)];
        block.iter().zip(bits(key)).all(|(word, bit)| word & bit != 0)
    }

    pub fn bytes(&self) -> usize {
        self.blocks.len() * BLOCK
    }

    pub fn blocks(&self) -> u32 {
        u32::try_from(self.blocks.len()).unwrap_or(u32::MAX)
    }

    /// Its bytes in pieces of at most 64 KiB: words in little endian, one after the other.
    pub fn pieces(&self) -> impl Iterator<Item = Vec<u8>> {
        let bytes = |blocks: &[[u32; 8]]| {
            let words = blocks.as_flattened().iter();
            words.flat_map(|word| word.to_le_bytes()).collect()
        };
        self.blocks.chunks(PIECE).map(bytes)
    }

    /// From the same bytes, which `read` fills in piece by piece.
    ///
    /// # Errors
    /// Those of `read`.
    pub fn from_pieces<E>(blocks: u32, mut read: impl FnMut(&mut [u8]) -> Result<(), E>) -> Result<Self, E> {
        let mut filter = Self::new(blocks);
        let mut bytes = vec![0; filter.blocks.len().min(PIECE) * BLOCK];
        for piece in filter.blocks.chunks_mut(PIECE) {
            let bytes = &mut bytes[..piece.len() * BLOCK];
            read(bytes)?;
            for (word, bytes) in piece.as_flattened_mut().iter_mut().zip(bytes.as_chunks().0) {
                *word = u32::from_le_bytes(*bytes);
            }
        }
        Ok(filter)
    }
}

/// Five of the key's lowest 40 bits choose the bit of each word.
fn bits(key: Key) -> [u32; 8] {
    std::array::from_fn(|word| 1 << ((key >> (5 * word)) & 31))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_inserted_is_denied_and_little_else_admitted() {
        let mut rng = fastrand::Rng::with_seed(1);
        let mut filter = Filter::new(blocks_for(100_000, usize::MAX).unwrap());
        let keys: Vec<Key> = (0..100_000).map(|_| rng.u128(..)).collect();
        for key in &keys {
            filter.insert(*key);
        }
        let mut written = filter.pieces();
        let read = Filter::from_pieces(filter.blocks(), |bytes| {
            bytes.copy_from_slice(&written.next().ok_or(())?);
            Ok::<_, ()>(())
        });
        let read = read.unwrap();
        assert_eq!(read, filter);
        assert!(keys.iter().all(|key| read.may_contain(*key)));
        let wrong = (0..100_000).filter(|_| read.may_contain(rng.u128(..))).count();
        assert!((100..1_000).contains(&wrong), "{wrong} of 100,000");
    }

    /// What is on disks must stay readable.
    #[test]
    fn the_bytes_are_these() {
        let mut filter = Filter::new(2);
        filter.insert(u128::from_be_bytes(
            *b"\x01\x23\x45\x67\x89\xab\xcd\xef\x01\x23\x45\x67\x89\xab\xcd\xef",
        ));
        let mut expected = [0; 64];
        // Bits 64..96 are 0x89abcdef: the upper half. The lowest 40 bits in fives, lowest first:
        // 0x6789abcdef is 01100 11110 00100 11010 10111 10011 01111 01111.
        for (word, bit) in [15, 15, 19, 23, 26, 4, 30, 12].into_iter().enumerate() {
            expected[32 + 4 * word + bit / 8] = 1 << (bit % 8);
        }
        assert_eq!(filter.pieces().collect::<Vec<_>>(), [expected]);
    }

    #[test]
    fn a_filter_that_would_be_too_large_is_none() {
        assert_eq!(blocks_for(1, 32), Some(1));
        assert_eq!(blocks_for(22, 63), None);
        assert_eq!(blocks_for(u64::MAX, usize::MAX), None);
    }
}
