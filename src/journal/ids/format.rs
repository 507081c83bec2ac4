//! The bytes of a run: header, pages, filters, directory; encoding and decoding, and nothing else. Pure.
//!
//! Not for files or for which ids there are. Upholds law 2: bytes that were not written here, at this place of this
//! run, do not decode. No input makes this code panic.
//!
//! A *run* is a file of ids that never changes. Its *sections* are one for each shelf (an hour, and what it is the
//! hour of), in ascending order. All integers are little endian, keys are bytes as they came.
//!
//! ```text
//! header, 4096 bytes
//!    0  8  magic  "AWOJIDS\n"
//!    8  1  format version, 1 (this layout's first 16 bytes never change)
//!    9  1  w: bytes of a sequence number in an entry, 1 to 8
//!   10  2  zero
//!   12  4  CRC-32C of bytes 0..12 and 16..4096
//!   16  8  this run's number, as in the file's name
//!   24  8  nonce: random, part of every salt below
//!   32  8  every id with a sequence number up to this is in this run or one with a lower such number
//!   40  8  base: what is subtracted from sequence numbers
//!   48  8  number of ids
//!   56  8  offset of the directory; its end is the file's
//!   64  4  number of sections
//!   68  4  salted CRC of the directory
//!   72  8  number of runs that this one replaces, at most 8
//!   80 64  their numbers, then zero
//!  144  …  zero
//!
//! section, each at a multiple of 4096: its pages, then its filter, then zero up to a multiple of 4096
//!   page, 4096 bytes
//!      0  4  salted CRC of bytes 4..4096
//!      4  …  entries, ascending by key, as many as fit (the section's last page: those that are left), then zero
//!   entry, 16 + w bytes
//!      0 16  key
//!     16  w  sequence number - base
//!   filter: blocks of 32 bytes, see `filter`
//!
//! directory: an entry of 32 bytes for each section, ascending by shelf
//!    0  4  shelf: bits 0..30 an hour since the epoch, bits 30..32 of what: 0 the message's own time,
//!          1 its acceptance, as it has no own time, 2 its acceptance, as its own time was not believed
//!    4  4  blocks of the filter, 0 = it has none
//!    8  8  offset of its first page
//!   16  8  number of ids, at least 1
//!   24  4  salted CRC of the filter's blocks
//!   28  4  zero
//!
//! salted CRC: CRC-32C of (run number u64, nonce u64, offset in the file u64, data)
//! ```
//!
//! An hour's ids have numbers near each other, so that w is 3: an id takes 4096 / 215 = 19.1 bytes and 1.5 of the
//! filter.

use super::filter::BLOCK;
use super::plan::FAN_IN;
use super::shelf::Shelf;
use super::table::Key;
use crate::journal::Seq;

/// Bytes of a page and of the header.
pub(super) const PAGE: usize = 4096;
pub(super) const VERSION: u8 = 1;
const MAGIC: [u8; 8] = *b"AWOJIDS\n";
const PAGE_HEADER: usize = 4;
const KEY: usize = 16;
const DIRECTORY_ENTRY: usize = 32;

/// What ties a checksum to one place of one run.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Salt {
    pub number: u64,
    pub nonce: u64,
}

impl Salt {
    pub fn crc(self, offset: u64, data: &[u8]) -> u32 {
        let salt = [self.number, self.nonce, offset].map(u64::to_le_bytes);
        crc32c::crc32c_append(crc32c::crc32c(salt.as_flattened()), data)
    }
}

/// How sequence numbers are written in a run.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Numbers {
    pub base: u64,
    /// 1 to 8.
    width: u8,
}

impl Numbers {
    /// For numbers from `lowest` to `highest`.
    pub fn between(lowest: Seq, highest: Seq) -> Self {
        let bits = u64::BITS - highest.0.saturating_sub(lowest.0).leading_zeros();
        Self {
            base: lowest.0,
            width: u8::try_from(bits.div_ceil(8).max(1)).unwrap_or(8),
        }
    }

    fn entry(self) -> usize {
        KEY + usize::from(self.width)
    }

    /// Entries of a full page.
    pub fn per_page(self) -> usize {
        (PAGE - PAGE_HEADER) / self.entry()
    }

    /// Pages of a section with so many ids.
    pub fn pages(self, ids: u64) -> u64 {
        ids.div_ceil(self.per_page() as u64)
    }
}

/// The header of a run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub salt: Salt,
    pub numbers: Numbers,
    pub sealed_through: Seq,
    pub ids: u64,
    pub directory_at: u64,
    pub sections: u32,
    pub directory_crc: u32,
    /// At most `FAN_IN`.
    pub replaces: Vec<u64>,
}

/// What the first bytes of a file are, if not a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NoHeader {
    /// Sound, but written by another version.
    Version(u8),
    Bad,
}

impl Header {
    pub fn encode(&self) -> [u8; PAGE] {
        let mut out = [0; PAGE];
        out[..8].copy_from_slice(&MAGIC);
        out[8] = VERSION;
        out[9] = self.numbers.width;
        let numbers = [
            self.salt.number,
            self.salt.nonce,
            self.sealed_through.0,
            self.numbers.base,
            self.ids,
            self.directory_at,
            u64::from(self.sections) | u64::from(self.directory_crc) << 32,
            self.replaces.len() as u64,
        ];
        let numbers = numbers.iter().chain(self.replaces.iter().take(FAN_IN));
        for (place, number) in out[16..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = header_crc(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Self, NoHeader> {
        let header = bytes.first_chunk::<PAGE>().ok_or(NoHeader::Bad)?;
        if header[..8] != MAGIC || u32_at(header, 12) != header_crc(header) {
            return Err(NoHeader::Bad);
        }
        if header[8] != VERSION {
            return Err(NoHeader::Version(header[8]));
        }
        let width = header[9];
        let replaced = usize::try_from(u64_at(header, 72)).unwrap_or(usize::MAX);
        if !(1..=8).contains(&width) || replaced > FAN_IN {
            return Err(NoHeader::Bad);
        }
        Ok(Self {
            salt: Salt {
                number: u64_at(header, 16),
                nonce: u64_at(header, 24),
            },
            numbers: Numbers {
                base: u64_at(header, 40),
                width,
            },
            sealed_through: Seq(u64_at(header, 32)),
            ids: u64_at(header, 48),
            directory_at: u64_at(header, 56),
            sections: u32_at(header, 64),
            directory_crc: u32_at(header, 68),
            replaces: (0..replaced)
                .map(|index| u64_at(header, 80 + 8 * index))
                .collect(),
        })
    }

    /// The length of the whole file.
    pub fn file_len(&self) -> Option<u64> {
        self.directory_at.checked_add(self.directory_len())
    }

    pub fn directory_len(&self) -> u64 {
        u64::from(self.sections) * DIRECTORY_ENTRY as u64
    }
}

fn header_crc(header: &[u8; PAGE]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..])
}

/// Where the ids of one shelf lie.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct SectionEntry {
    pub shelf: Shelf,
    pub offset: u64,
    pub ids: u64,
    pub filter_blocks: u32,
    pub filter_crc: u32,
}

impl SectionEntry {
    /// The offset of the filter.
    pub fn filter_at(&self, numbers: Numbers) -> Option<u64> {
        self.offset
            .checked_add(numbers.pages(self.ids).checked_mul(PAGE as u64)?)
    }

    pub fn filter_len(&self) -> usize {
        self.filter_blocks as usize * BLOCK
    }

    /// The offset of what follows.
    fn end(&self, numbers: Numbers) -> Option<u64> {
        self.filter_at(numbers)?
            .checked_add(self.filter_len() as u64)?
            .checked_next_multiple_of(PAGE as u64)
    }
}

pub(super) fn encode_directory(sections: &[SectionEntry]) -> Vec<u8> {
    let mut out = Vec::with_capacity(sections.len() * DIRECTORY_ENTRY);
    for section in sections {
        out.extend(section.shelf.to_bits().to_le_bytes());
        out.extend(section.filter_blocks.to_le_bytes());
        out.extend(section.offset.to_le_bytes());
        out.extend(section.ids.to_le_bytes());
        out.extend(section.filter_crc.to_le_bytes());
        out.extend([0; 4]);
    }
    out
}

/// The directory, if it is the one that the header speaks of and its sections fill the file.
pub(super) fn decode_directory(header: &Header, bytes: &[u8]) -> Option<Vec<SectionEntry>> {
    if header.salt.crc(header.directory_at, bytes) != header.directory_crc {
        return None;
    }
    let (entries, []) = bytes.as_chunks::<DIRECTORY_ENTRY>() else {
        return None;
    };
    let (mut next, mut ids) = (PAGE as u64, 0u64);
    let mut sections: Vec<SectionEntry> = Vec::with_capacity(entries.len());
    for entry in entries {
        let section = SectionEntry {
            shelf: Shelf::from_bits(u32_at(entry, 0))?,
            filter_blocks: u32_at(entry, 4),
            offset: u64_at(entry, 8),
            ids: u64_at(entry, 16),
            filter_crc: u32_at(entry, 24),
        };
        let ascending = sections.last().is_none_or(|last| last.shelf < section.shelf);
        if !ascending || section.ids == 0 || section.offset != next {
            return None;
        }
        next = section.end(header.numbers)?;
        ids = ids.checked_add(section.ids)?;
        sections.push(section);
    }
    (next == header.directory_at && ids == header.ids && sections.len() == header.sections as usize)
        .then_some(sections)
}

/// A page that is being filled.
pub(super) struct PageWriter {
    numbers: Numbers,
    bytes: Vec<u8>,
}

impl PageWriter {
    pub fn new(numbers: Numbers) -> Self {
        let mut bytes = Vec::with_capacity(PAGE);
        bytes.resize(PAGE_HEADER, 0);
        Self { numbers, bytes }
    }

    /// True if no further entry fits.
    pub fn is_full(&self) -> bool {
        self.bytes.len() + self.numbers.entry() > PAGE
    }

    /// Keys come in ascending order, and no number below the base.
    pub fn push(&mut self, key: Key, seq: Seq) {
        self.bytes.extend(key.to_be_bytes());
        let number = seq.0.saturating_sub(self.numbers.base).to_le_bytes();
        self.bytes.extend(&number[..usize::from(self.numbers.width)]);
    }

    /// Appends the page, which lies at `offset` of the file, to `out`, and begins the next one.
    pub fn finish(&mut self, salt: Salt, offset: u64, out: &mut Vec<u8>) {
        self.bytes.resize(PAGE, 0);
        let crc = salt.crc(offset, &self.bytes[PAGE_HEADER..]);
        self.bytes[..PAGE_HEADER].copy_from_slice(&crc.to_le_bytes());
        out.extend(&self.bytes);
        self.bytes.truncate(PAGE_HEADER);
    }
}

/// A page whose checksum holds.
#[derive(Copy, Clone)]
pub(super) struct Page<'a> {
    numbers: Numbers,
    entries: &'a [u8],
}

impl<'a> Page<'a> {
    /// The page at `offset` of the file, with so many entries.
    pub fn decode(
        salt: Salt,
        numbers: Numbers,
        offset: u64,
        entries: usize,
        bytes: &'a [u8; PAGE],
    ) -> Option<Self> {
        if u32_at(bytes, 0) != salt.crc(offset, &bytes[PAGE_HEADER..]) {
            return None;
        }
        let entries = bytes[PAGE_HEADER..].get(..entries * numbers.entry())?;
        Some(Self { numbers, entries })
    }

    pub fn len(self) -> usize {
        self.entries.len() / self.numbers.entry()
    }

    pub fn key(self, index: usize) -> Key {
        let entry = self.entries.get(index * self.numbers.entry()..);
        Key::from_be_bytes(
            entry
                .and_then(|entry| entry.first_chunk())
                .copied()
                .unwrap_or_default(),
        )
    }

    pub fn seq(self, index: usize) -> Seq {
        let entry = self.entries.chunks_exact(self.numbers.entry()).nth(index);
        let mut number = [0; 8];
        for (byte, written) in number.iter_mut().zip(entry.unwrap_or_default().iter().skip(KEY)) {
            *byte = *written;
        }
        Seq(self.numbers.base.saturating_add(u64::from_le_bytes(number)))
    }

    /// The number that is filed under a key.
    pub fn find(self, key: Key) -> Option<Seq> {
        let (mut low, mut high) = (0, self.len());
        while low < high {
            let middle = usize::midpoint(low, high);
            match self.key(middle).cmp(&key) {
                std::cmp::Ordering::Less => low = middle + 1,
                std::cmp::Ordering::Equal => return Some(self.seq(middle)),
                std::cmp::Ordering::Greater => high = middle,
            }
        }
        None
    }
}

/// 0 beyond the end: callers give offsets within arrays.
fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u32::from_le_bytes(bytes.copied().unwrap_or_default())
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let bytes = bytes.get(at..).and_then(|bytes| bytes.first_chunk());
    u64::from_le_bytes(bytes.copied().unwrap_or_default())
}
