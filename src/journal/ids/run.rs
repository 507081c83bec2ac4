//! A run on disk: written once, then looked up.
//!
//! Not for which runs there are. Upholds law 1 (a run counts only once its bytes and its name are durable) and law 2:
//! whatever is read is checked, and damage is an error, never "unknown".

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::error::{Damage, IdsError};
use super::filter::{Filter, blocks_for};
use super::format::{
    Header, NoHeader, Numbers, PAGE, Page, PageWriter, Salt, SectionEntry, decode_directory, encode_directory,
};
use super::shelf::Shelf;
use super::storage::{Listed, NewRun, RunReader, RunStorage};
use super::table::Key;
use crate::journal::Seq;

/// Bytes that are gathered before they are written.
const BUFFER: usize = 256 << 10;
/// Bytes that wait for a sync, about.
const SYNCED_AT_ONCE: usize = 1 << 20;
/// Reads of a look-up that go by the keys' even distribution, before it halves what is left.
const GUESSES: u32 = 6;

/// A run whose bytes and name are durable; to be handed to [`Ids::adopt`](super::Ids::adopt).
pub struct Run {
    pub(super) header: Header,
    pub(super) bytes: u64,
    pub(super) sections: Vec<Section>,
}

/// What all sections of a run share.
pub(super) struct RunFile {
    reader: Box<dyn RunReader>,
    pub salt: Salt,
    pub numbers: Numbers,
    name: PathBuf,
}

/// The ids of one shelf in one run.
#[derive(Clone)]
pub(super) struct Section {
    pub file: Arc<RunFile>,
    pub entry: SectionEntry,
    pub filter: Option<Filter>,
    /// Look-ups in the file since it was last thought of loading the filter.
    pub looks: u8,
}

impl RunFile {
    pub fn number(&self) -> u64 {
        self.salt.number
    }

    fn damage(&self, offset: u64, problem: &'static str) -> Damage {
        Damage {
            file: self.name.clone(),
            offset,
            problem,
        }
    }

    fn read(&self, offset: u64, bytes: &mut [u8]) -> io::Result<()> {
        self.reader.read_exact_at(offset, bytes).map_err(|error| {
            if error.kind() == io::ErrorKind::UnexpectedEof {
                self.damage(offset, "the file ends").into()
            } else {
                error
            }
        })
    }
}

impl Run {
    /// Reads header and directory, and nothing else.
    pub(super) fn open(storage: &dyn RunStorage, number: u64) -> Result<Self, IdsError> {
        let io = |source| IdsError::Io {
            doing: "read a run of remembered ids",
            source,
        };
        let name = storage.name(number);
        let damaged = |offset, problem| Damage {
            file: name.clone(),
            offset,
            problem,
        };
        let reader = storage.open(number).map_err(io)?;
        let bytes = reader.size().map_err(io)?;
        let mut first = vec![0; usize::try_from(bytes).unwrap_or(PAGE).min(PAGE)];
        reader.read_exact_at(0, &mut first).map_err(io)?;
        let header = Header::decode(&first).map_err(|problem| match problem {
            NoHeader::Version(found) => IdsError::Version {
                file: name.clone(),
                found,
            },
            NoHeader::Bad => damaged(0, "a header that was not written here").into(),
        })?;
        if header.salt.number != number {
            return Err(damaged(0, "the header of another run").into());
        }
        if header.file_len() != Some(bytes) {
            return Err(damaged(bytes, "a file of another length than written").into());
        }
        let mut directory = vec![0; usize::try_from(header.directory_len()).unwrap_or_default()];
        reader
            .read_exact_at(header.directory_at, &mut directory)
            .map_err(io)?;
        let entries = decode_directory(&header, &directory).ok_or_else(|| {
            damaged(
                header.directory_at,
                "a directory that does not match its checksum",
            )
        })?;
        let file = Arc::new(RunFile {
            reader,
            salt: header.salt,
            numbers: header.numbers,
            name,
        });
        let section = |entry| Section {
            file: Arc::clone(&file),
            entry,
            filter: None,
            looks: 0,
        };
        let sections = entries.into_iter().map(section).collect();
        Ok(Self {
            header,
            bytes,
            sections,
        })
    }

    /// The number in its file's name.
    pub fn number(&self) -> u64 {
        self.header.salt.number
    }
}

impl Section {
    /// The number that is filed under a key: one or two reads of a page, if the keys are uniform.
    ///
    /// # Errors
    /// The file system's, and [`Damage`].
    pub fn find(&self, key: Key) -> io::Result<Option<Seq>> {
        let per_page = self.file.numbers.per_page() as u64;
        // The key is in pages low..high, whose entries begin above `floor` and end below `ceiling` (the upper half
        // of a key is enough for an estimate).
        let (mut low, mut high) = (0, self.file.numbers.pages(self.entry.ids));
        let (mut first, mut end) = (0, self.entry.ids);
        let (mut floor, mut ceiling) = (0, u64::MAX);
        let mut page = [0; PAGE];
        let mut guesses = 0;
        while low < high {
            let guess = if guesses < GUESSES {
                let share = u128::from(upper(key).saturating_sub(floor)) * u128::from(end - first);
                let share = share / u128::from(ceiling.saturating_sub(floor).max(1));
                let index = first.saturating_add(u64::try_from(share).unwrap_or(u64::MAX));
                (index / per_page).clamp(low, high - 1)
            } else {
                u64::midpoint(low, high)
            };
            guesses += 1;
            let page = self.page(guess, &mut page)?;
            let (lowest, highest) = (page.key(0), page.key(page.len() - 1));
            if key < lowest {
                (high, end, ceiling) = (guess, guess * per_page, upper(lowest));
            } else if key > highest {
                (low, first, floor) = (guess + 1, (guess + 1) * per_page, upper(highest));
            } else {
                return Ok(page.find(key));
            }
        }
        Ok(None)
    }

    fn page<'a>(&self, index: u64, bytes: &'a mut [u8; PAGE]) -> io::Result<Page<'a>> {
        let offset = self.entry.offset + index * PAGE as u64;
        self.file.read(offset, bytes)?;
        self.decode(index, bytes)
    }

    fn decode<'a>(&self, index: u64, bytes: &'a [u8; PAGE]) -> io::Result<Page<'a>> {
        let (salt, numbers) = (self.file.salt, self.file.numbers);
        let offset = self.entry.offset + index * PAGE as u64;
        let per_page = numbers.per_page() as u64;
        let entries = (self.entry.ids - index * per_page).min(per_page);
        let entries = usize::try_from(entries).unwrap_or_default();
        Page::decode(salt, numbers, offset, entries, bytes).ok_or_else(|| {
            self.file
                .damage(offset, "ids that do not match their checksum")
                .into()
        })
    }

    /// Reads the filter; none if the section has none.
    ///
    /// # Errors
    /// The file system's, and [`Damage`].
    pub fn read_filter(&self) -> io::Result<Option<Filter>> {
        let Some(offset) = self.entry.filter_at(self.file.numbers) else {
            return Ok(None);
        };
        if self.entry.filter_blocks == 0 {
            return Ok(None);
        }
        let mut crc = self.file.salt.crc(offset, &[]);
        let mut at = offset;
        let filter = Filter::from_pieces(self.entry.filter_blocks, |bytes| {
            self.file.read(at, bytes)?;
            crc = crc32c::crc32c_append(crc, bytes);
            at += bytes.len() as u64;
            Ok::<_, io::Error>(())
        })?;
        if crc == self.entry.filter_crc {
            Ok(Some(filter))
        } else {
            let problem = "a filter that does not match its checksum";
            Err(self.file.damage(offset, problem).into())
        }
    }

    /// All its ids, ascending by key.
    pub fn ids(&self) -> SectionIds<'_> {
        SectionIds {
            section: self,
            next_page: 0,
            page: Vec::new().into_iter(),
        }
    }
}

/// The upper half of a key.
fn upper(key: Key) -> u64 {
    (key >> 64) as u64
}

/// Goes through the ids of a section, a page at a time.
pub(super) struct SectionIds<'a> {
    section: &'a Section,
    next_page: u64,
    /// What is left of the page before it.
    page: std::vec::IntoIter<(Key, Seq)>,
}

impl SectionIds<'_> {
    /// The next id, again and again until [`SectionIds::advance`].
    ///
    /// # Errors
    /// The file system's, and [`Damage`].
    pub fn peek(&mut self) -> io::Result<Option<(Key, Seq)>> {
        let section = self.section;
        if self.page.len() == 0 && self.next_page < section.file.numbers.pages(section.entry.ids) {
            let mut bytes = [0; PAGE];
            let page = section.page(self.next_page, &mut bytes)?;
            let ids: Vec<_> = (0..page.len())
                .map(|index| (page.key(index), page.seq(index)))
                .collect();
            self.page = ids.into_iter();
            self.next_page += 1;
        }
        Ok(self.page.as_slice().first().copied())
    }

    /// Goes past the id that was seen last.
    pub fn advance(&mut self) {
        self.page.next();
    }
}

/// What a new run is, besides its ids.
#[derive(Clone, Debug)]
pub(super) struct NewHeader {
    pub number: u64,
    /// Not below any of its sequence numbers.
    pub sealed_through: Seq,
    /// Not above any of them.
    pub lowest: Seq,
    pub replaces: Vec<u64>,
}

/// Writes a run and makes it durable; `fill` writes its sections. One whose name could not be made durable may be
/// there at the next start, and does no harm: what it says is true.
///
/// # Errors
/// The file system's, or that of `fill`.
pub(super) fn write(
    storage: &dyn RunStorage,
    new: NewHeader,
    fill: impl FnOnce(&mut RunWriter) -> io::Result<()>,
) -> io::Result<Run> {
    let number = new.number;
    let written = write_unfinished(storage, new, fill).and_then(|filters| {
        storage.publish(number)?;
        storage.sync_directory()?;
        Ok(filters)
    });
    let filters = written.inspect_err(|_| {
        // If it can't be removed, the next start does it.
        let _ = storage.remove(Listed::Unfinished(number));
    })?;
    let mut run = Run::open(storage, number).map_err(|error| match error {
        IdsError::Io { source, .. } => source,
        IdsError::Damaged(damage) => damage.into(),
        IdsError::Version { .. } => io::ErrorKind::InvalidData.into(),
    })?;
    for (section, filter) in run.sections.iter_mut().zip(filters) {
        section.filter = filter;
    }
    Ok(run)
}

fn write_unfinished(
    storage: &dyn RunStorage,
    new: NewHeader,
    fill: impl FnOnce(&mut RunWriter) -> io::Result<()>,
) -> io::Result<Vec<Option<Filter>>> {
    let numbers = Numbers::between(new.lowest, new.sealed_through);
    let mut writer = RunWriter {
        file: storage.create(new.number)?,
        salt: Salt {
            number: new.number,
            nonce: fastrand::u64(..),
        },
        numbers,
        buffer: Vec::with_capacity(BUFFER + (64 << 10)),
        buffer_at: PAGE as u64,
        unsynced: 0,
        page: PageWriter::new(numbers),
        sections: Vec::new(),
        filters: Vec::new(),
    };
    fill(&mut writer)?;
    writer.finish(new)
}

/// Writes the sections of a new run.
pub(super) struct RunWriter {
    file: Box<dyn NewRun>,
    salt: Salt,
    numbers: Numbers,
    buffer: Vec<u8>,
    /// Where the buffer begins in the file.
    buffer_at: u64,
    /// Bytes written since the last sync.
    unsynced: usize,
    page: PageWriter,
    sections: Vec<SectionEntry>,
    filters: Vec<Option<Filter>>,
}

/// How the filter of a section is made.
#[derive(Copy, Clone, Debug)]
pub(super) struct FilterPlan {
    /// No filter is larger.
    pub max_bytes: usize,
    /// Whether it stays in memory.
    pub keep: bool,
}

impl RunWriter {
    /// Writes a section of at most `most` ids, ascending by key; shelves come in ascending order.
    pub fn section(
        &mut self,
        shelf: Shelf,
        most: u64,
        plan: FilterPlan,
        mut next: impl FnMut() -> io::Result<Option<(Key, Seq)>>,
    ) -> io::Result<()> {
        let mut filter = blocks_for(most, plan.max_bytes).map(Filter::new);
        let offset = self.position();
        let mut ids = 0;
        while let Some((key, seq)) = next()? {
            if self.page.is_full() {
                self.finish_page()?;
            }
            self.page.push(key, seq);
            if let Some(filter) = &mut filter {
                filter.insert(key);
            }
            ids += 1;
        }
        if ids == 0 {
            return Ok(());
        }
        self.finish_page()?;
        let filter_blocks = filter.as_ref().map_or(0, Filter::blocks);
        let mut filter_crc = self.salt.crc(self.position(), &[]);
        for piece in filter.iter().flat_map(Filter::pieces) {
            filter_crc = crc32c::crc32c_append(filter_crc, &piece);
            self.buffer.extend(piece);
            self.flush(BUFFER)?;
        }
        self.sections.push(SectionEntry {
            shelf,
            offset,
            ids,
            filter_blocks,
            filter_crc,
        });
        self.filters.push(filter.filter(|_| plan.keep));
        let next = self.position().next_multiple_of(PAGE as u64);
        let padding = usize::try_from(next - self.position()).unwrap_or_default();
        self.buffer.resize(self.buffer.len() + padding, 0);
        self.flush(BUFFER)
    }

    fn position(&self) -> u64 {
        self.buffer_at + self.buffer.len() as u64
    }

    fn finish_page(&mut self) -> io::Result<()> {
        let offset = self.position();
        self.page.finish(self.salt, offset, &mut self.buffer);
        self.flush(BUFFER)
    }

    /// Writes what was gathered once it is so much.
    fn flush(&mut self, from: usize) -> io::Result<()> {
        if self.buffer.len() >= from {
            self.file.write_all_at(self.buffer_at, &self.buffer)?;
            self.buffer_at += self.buffer.len() as u64;
            self.unsynced += self.buffer.len();
            self.buffer.clear();
        }
        // In pieces: one sync of all of it would stand in the way of a commit's.
        if self.unsynced >= SYNCED_AT_ONCE {
            self.file.sync()?;
            self.unsynced = 0;
        }
        Ok(())
    }

    fn finish(mut self, new: NewHeader) -> io::Result<Vec<Option<Filter>>> {
        let directory = encode_directory(&self.sections);
        let directory_at = self.position();
        let header = Header {
            salt: self.salt,
            numbers: self.numbers,
            sealed_through: new.sealed_through,
            ids: self.sections.iter().map(|section| section.ids).sum(),
            directory_at,
            sections: u32::try_from(self.sections.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
            directory_crc: self.salt.crc(directory_at, &directory),
            replaces: new.replaces,
        };
        self.buffer.extend(directory);
        self.flush(1)?;
        self.file.write_all_at(0, &header.encode())?;
        self.file.sync()?;
        Ok(self.filters)
    }
}
