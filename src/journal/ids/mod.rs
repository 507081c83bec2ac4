//! The ids that the journal remembers, on disk: what makes a message that comes again known for the whole window.
//!
//! In memory are the youngest ids, filters for some hours, and where the others lie: at most 40 MB however many ids
//! there are (docs/performance.md has the figures). On disk an id takes about 21 bytes. Not for messages, and not
//! the truth by itself: ids above [`Ids::sealed_through`] are in the journal's log, and its replay inserts them.
//!
//! Upholds law 1 (an id stays in the log until it is in a durable run), law 2 (once per id: damage is an error,
//! never "unknown"; a full disk stops the door, never shortens the window) and law 11.
//!
//! An id is filed under the hour of its message's own time, which is the same each time the message comes: a
//! look-up needs that hour alone, and hours are forgotten as a whole (docs/decisions/0013).
//!
//! The youngest ids are a hash table. When it is full enough or its hour is over, it is *frozen*, written as a *run*
//! on another thread, and *adopted*; it answers all the while. Runs are merged so that they stay few.
//!
//! - `shelf`: under which hour; `table`: in memory; `filter`; `plan`: what to merge (all pure)
//! - `format`: the bytes, one by one; `run`: writing and look-ups; `merge`
//! - `storage`: file operations
//!
//! Beyond what [`Stats::memory_bytes`] counts, sealing takes 32 bytes for each id of the table while it lasts, and a
//! merge a filter of at most [`Options::max_filter_bytes`] and 0.5 MB.
//!
//! A run's file that somebody removes is not missed: its ids are forgotten.

mod error;
mod filter;
mod format;
mod merge;
mod plan;
mod run;
mod shelf;
mod storage;
mod table;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::io;
use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

pub use self::error::IdsError;
use self::filter::Filter;
pub use self::merge::Merge;
use self::plan::Summary;
pub use self::run::Run;
use self::run::{FilterPlan, NewHeader, RunFile, Section};
pub use self::shelf::Born;
use self::shelf::{Reach, Shelf, hour_of};
pub use self::storage::{Listed, NewRun, RunDirectory, RunReader, RunStorage};
use self::table::{Table, key_of};
use super::{DedupKey, Seq};

/// Limits and times.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// How long an id is found after its acceptance. Messages that are older than this by their own time are set
    /// aside before they come here.
    pub window: Duration,
    /// How long an id without an own time is found after its acceptance.
    pub look_back: Duration,
    /// An own time further ahead of the clock than this is not believed.
    pub ahead: Duration,
    /// The table is to be frozen once it holds so many ids.
    pub seal_at: usize,
    /// Beyond so many ids in the table the door is closed ([`Ids::has_room`]). A little below 7/8 of a power of two is
    /// what its memory is used best at.
    pub room: usize,
    /// Bytes of filters in memory.
    pub filter_bytes: usize,
    /// No filter is larger; a section that would need a larger one has none. Bounds what a merge takes.
    pub max_filter_bytes: usize,
    /// Look-ups in a section's file until its filter is loaded.
    pub filter_after: u8,
    /// From so many runs on there is always a merge.
    pub crowded: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            window: Duration::from_secs(7 * 24 * 60 * 60),
            look_back: Duration::from_secs(24 * 60 * 60),
            ahead: Duration::from_secs(24 * 60 * 60),
            seal_at: 96 << 10,
            room: 112 << 10,
            filter_bytes: 14 << 20,
            max_filter_bytes: 6 << 20,
            filter_after: 16,
            crowded: 192,
        }
    }
}

impl Options {
    fn reach(&self) -> Reach {
        let ms = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        Reach {
            window_ms: ms(self.window),
            look_back_ms: ms(self.look_back),
            ahead_ms: ms(self.ahead),
        }
    }
}

/// Numbers for measurements.
#[cfg_attr(not(feature = "sim"), allow(dead_code, reason = "for measurements"))]
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Ids remembered, in memory and on disk.
    pub ids: u64,
    /// Of these in memory.
    pub ids_in_memory: u64,
    /// Runs on disk.
    pub runs: u64,
    /// Bytes of their files.
    pub bytes_on_disk: u64,
    /// Bytes that are held in memory for all this.
    pub memory_bytes: u64,
    /// Of these for filters.
    pub filter_bytes: u64,
}

/// The remembered ids. Belongs to one thread; what takes long is handed out as [`Frozen`] and [`Merge`], to be
/// carried out on another, one at a time.
pub struct Ids {
    options: Options,
    reach: Reach,
    table: Table,
    frozen: Option<Frozen>,
    runs: BTreeMap<u64, Known>,
    shelves: BTreeMap<Shelf, Vec<Section>>,
    filters: Filters,
    next_number: u64,
    /// The first hour that is not over.
    horizon: u32,
}

/// What is known of a run besides its sections.
struct Known {
    sealed_through: Seq,
    ids: u64,
    #[cfg_attr(not(feature = "sim"), allow(dead_code, reason = "for measurements"))]
    bytes: u64,
    last_hour: u32,
}

/// Which filters are in memory, by hour: the youngest are kept.
#[derive(Default)]
struct Filters {
    bytes: usize,
    held: BTreeMap<(u32, Shelf, u64), usize>,
}

/// A table that takes no further ids: to be written, also again after a failure, and adopted.
#[derive(Clone)]
pub struct Frozen {
    table: Arc<Table>,
    number: u64,
    filters: FilterPlan,
}

impl Frozen {
    /// Writes the run and makes it durable. Takes some hundred milliseconds: for another thread.
    ///
    /// # Errors
    /// The file system's; it may be tried again.
    pub fn write(&self, storage: &dyn RunStorage) -> io::Result<Run> {
        let ids = self.table.sorted();
        let new = NewHeader {
            number: self.number,
            sealed_through: self.table.highest().unwrap_or(Seq(0)),
            lowest: ids.iter().map(|(_, _, seq)| *seq).min().unwrap_or(Seq(0)),
            replaces: Vec::new(),
        };
        run::write(storage, new, |writer| {
            for section in ids.chunk_by(|(one, ..), (other, ..)| one == other) {
                let Some((shelf, ..)) = section.first() else {
                    continue;
                };
                let mut ids = section.iter().map(|(_, key, seq)| (*key, *seq));
                writer.section(*shelf, section.len() as u64, self.filters, || Ok(ids.next()))?;
            }
            Ok(())
        })
    }
}

impl Ids {
    /// Opens the runs of `storage`: reads their headers and directories. Removes runs that were never finished and
    /// those that another one replaces.
    ///
    /// # Errors
    /// [`IdsError`], with the file's name; never less than there was.
    pub fn open(storage: &dyn RunStorage, options: Options) -> Result<Self, IdsError> {
        let io = |doing| move |source| IdsError::Io { doing, source };
        let files = storage.list().map_err(io("list the remembered ids"))?;
        // A run whose name is not durable yet must not make the journal give up its log.
        storage
            .sync_directory()
            .map_err(io("sync the directory of remembered ids"))?;
        let mut runs = Vec::new();
        let mut next_number = 1;
        for file in files {
            let (Listed::Run(number) | Listed::Unfinished(number)) = file;
            next_number = next_number.max(number.saturating_add(1));
            match file {
                Listed::Run(number) => runs.push(Run::open(storage, number)?),
                // Best effort, here and below: what stays is removed at the next start, and does no harm.
                Listed::Unfinished(_) => drop(storage.remove(file)),
            }
        }
        let replaced: Vec<u64> = runs.iter().flat_map(|run| run.header.replaces.clone()).collect();
        let reach = options.reach();
        let mut ids = Self {
            options,
            reach,
            table: Table::default(),
            frozen: None,
            runs: BTreeMap::new(),
            shelves: BTreeMap::new(),
            filters: Filters::default(),
            next_number,
            horizon: 0,
        };
        for run in runs {
            if replaced.contains(&run.number()) {
                drop(storage.remove(Listed::Run(run.number())));
            } else {
                ids.take_in(run);
            }
        }
        Ok(ids)
    }

    /// The number of the message that this id was accepted as, if it is remembered. Ids in memory are found whatever
    /// their hour.
    ///
    /// # Errors
    /// The file system's, or [`Damage`](error::Damage): then it is not known whether the id is.
    pub fn find(&mut self, key: &DedupKey, born: Born, accepted_at_ms: u64) -> io::Result<Option<Seq>> {
        let key = key_of(key);
        let in_memory = self
            .table
            .get(key)
            .or_else(|| self.frozen.as_ref()?.table.get(key));
        if in_memory.is_some() {
            return Ok(in_memory);
        }
        let mut wanted = None;
        let mut found = None;
        'search: for range in Shelf::search(born, accepted_at_ms, self.reach) {
            for (shelf, sections) in self.shelves.range_mut(range) {
                for section in sections {
                    if section
                        .filter
                        .as_ref()
                        .is_some_and(|filter| !filter.may_contain(key))
                    {
                        continue;
                    }
                    found = section.find(key)?;
                    if section.filter.is_none() && section.entry.filter_blocks > 0 {
                        section.looks = section.looks.saturating_add(1);
                        if section.looks >= self.options.filter_after {
                            section.looks = 0;
                            wanted = Some((*shelf, section.file.number()));
                        }
                    }
                    if found.is_some() {
                        break 'search;
                    }
                }
            }
        }
        if let Some((shelf, number)) = wanted {
            self.load_filter(shelf, number)?;
        }
        Ok(found)
    }

    /// Remembers the id of a message whose acceptance is durable. Sequence numbers come in ascending order. Takes it
    /// in any case: [`Ids::has_room`] is for the door to ask.
    pub fn insert(&mut self, key: &DedupKey, born: Born, accepted_at_ms: u64, seq: Seq) {
        let shelf = Shelf::of(born, accepted_at_ms, self.reach);
        self.table.insert(key_of(key), shelf, accepted_at_ms, seq);
    }

    /// Whether so many more ids may come. If not, runs could not be written for long (the disk is full): ask the
    /// senders to come back.
    pub fn has_room(&self, more: usize) -> bool {
        self.table.len().saturating_add(more) <= self.options.room
    }

    /// Whether it is time to [freeze](Ids::freeze): the table holds enough, or an hour has ended.
    pub fn freeze_due(&self, now_ms: u64) -> bool {
        let hour_ended = |since_ms| hour_of(now_ms) > hour_of(since_ms);
        self.frozen.is_none()
            && (self.table.len() >= self.options.seal_at || self.table.since_ms().is_some_and(hour_ended))
    }

    /// Freezes the table and begins a new one. None if it is empty, or while the one before is not adopted
    /// ([`Ids::frozen`] has that one again).
    pub fn freeze(&mut self) -> Option<Frozen> {
        if self.frozen.is_some() || self.table.len() == 0 {
            return None;
        }
        // As large as the last one, so that a busy journal does not see it grow.
        let next = Table::with_capacity(self.table.len());
        let frozen = Frozen {
            table: Arc::new(std::mem::replace(&mut self.table, next)),
            number: self.take_number(),
            filters: FilterPlan {
                max_bytes: self.options.max_filter_bytes,
                keep: true,
            },
        };
        self.frozen = Some(frozen.clone());
        Some(frozen)
    }

    /// The table that is frozen and not adopted.
    pub fn frozen(&self) -> Option<Frozen> {
        self.frozen.clone()
    }

    /// Answers from a run from now on, in place of the frozen table or of the runs that were merged. Says which files
    /// are no longer needed ([`RunStorage::remove`], on any thread).
    pub fn adopt(&mut self, run: Run) -> Vec<Listed> {
        if self
            .frozen
            .as_ref()
            .is_some_and(|frozen| frozen.number == run.number())
        {
            self.frozen = None;
        }
        let replaced = run.header.replaces.clone();
        // Itself: whoever wrote a frozen table twice adopts the same ids twice.
        for number in replaced.iter().chain([&run.number()]) {
            self.let_go(*number);
        }
        self.take_in(run);
        replaced.into_iter().map(Listed::Run).collect()
    }

    /// Runs to make one of, if there are enough that are worth it. At most one merge may be under way.
    pub fn merge(&mut self) -> Option<Merge> {
        let mut sections: BTreeMap<u64, Vec<(Shelf, u64)>> = BTreeMap::new();
        for section in self.shelves.values().flatten() {
            let of_run = sections.entry(section.file.number()).or_default();
            of_run.push((section.entry.shelf, section.entry.ids));
        }
        let mut by_age: Vec<_> = self.runs.iter().collect();
        by_age.sort_unstable_by_key(|(number, run)| (run.sealed_through, **number));
        let summary = |(number, run): (&u64, &Known)| Summary {
            number: *number,
            ids: run.ids,
            last_hour: run.last_hour,
            sections: sections.remove(number).unwrap_or_default(),
        };
        let by_age: Vec<_> = by_age.into_iter().map(summary).collect();
        let replaces = plan::plan(&by_age, self.options.crowded, self.options.max_filter_bytes)?;
        let sealed = replaces.iter().filter_map(|number| self.runs.get(number));
        let sealed_through = sealed.map(|run| run.sealed_through).max()?;
        let sections = self.shelves.values().flatten();
        let sections = sections.filter(|section| replaces.contains(&section.file.number()));
        // What is over need not be written again.
        let sections = sections.filter(|section| section.entry.shelf.hour() >= self.horizon);
        let sections = sections
            .map(|section| Section {
                filter: None,
                ..section.clone()
            })
            .collect();
        let filters = FilterPlan {
            max_bytes: self.options.max_filter_bytes,
            keep: false,
        };
        Some(Merge::new(
            self.take_number(),
            sealed_through,
            replaces,
            sections,
            filters,
        ))
    }

    /// Forgets the runs all of whose hours ended by `ms` and says which files to remove
    /// ([`RunStorage::remove`], on any thread). Ids in memory and in runs that hold later hours as well stay.
    pub fn forget_before(&mut self, ms: u64) -> Vec<Listed> {
        self.horizon = self.horizon.max(hour_of(ms));
        // The run that says how far the log is covered stays.
        let youngest = self
            .runs
            .iter()
            .max_by_key(|(number, run)| (run.sealed_through, **number));
        let youngest = youngest.map(|(number, _)| *number);
        let over: Vec<u64> = self
            .runs
            .iter()
            .filter(|(number, run)| run.last_hour < self.horizon && Some(**number) != youngest)
            .map(|(number, _)| *number)
            .collect();
        for number in &over {
            self.let_go(*number);
        }
        over.into_iter().map(Listed::Run).collect()
    }

    /// Every id whose message has a number up to this is in a durable run.
    pub fn sealed_through(&self) -> Seq {
        self.runs
            .values()
            .map(|run| run.sealed_through)
            .max()
            .unwrap_or(Seq(0))
    }

    /// How many ids are remembered.
    pub fn count(&self) -> u64 {
        let frozen = self.frozen.as_ref().map_or(0, |frozen| frozen.table.len());
        (self.table.len() + frozen) as u64 + self.runs.values().map(|run| run.ids).sum::<u64>()
    }

    /// Numbers for measurements. Cheap: reads memory only.
    #[cfg_attr(not(feature = "sim"), allow(dead_code, reason = "for measurements"))]
    pub fn stats(&self) -> Stats {
        let frozen = self.frozen.as_ref().map(|frozen| &*frozen.table);
        let tables = || [Some(&self.table), frozen].into_iter().flatten();
        let ids_in_memory: usize = tables().map(Table::len).sum();
        let sections: usize = self.shelves.values().map(Vec::capacity).sum();
        // Nodes of a tree are two thirds full.
        let tree = |entries: usize, bytes: usize| entries * bytes * 3 / 2;
        let memory_bytes = tables().map(Table::bytes).sum::<usize>()
            + self.filters.bytes
            + tree(self.filters.held.len(), size_of::<((u32, Shelf, u64), usize)>())
            + sections * size_of::<Section>()
            + tree(self.shelves.len(), size_of::<(Shelf, Vec<Section>)>())
            + tree(self.runs.len(), size_of::<(u64, Known)>())
            // A run's file: its handle and the text of its name.
            + self.runs.len() * (size_of::<RunFile>() + 128);
        Stats {
            ids: self.count(),
            ids_in_memory: ids_in_memory as u64,
            runs: self.runs.len() as u64,
            bytes_on_disk: self.runs.values().map(|run| run.bytes).sum(),
            memory_bytes: memory_bytes as u64,
            filter_bytes: self.filters.bytes as u64,
        }
    }

    fn take_number(&mut self) -> u64 {
        let number = self.next_number;
        self.next_number = number.saturating_add(1);
        number
    }

    fn take_in(&mut self, run: Run) {
        let number = run.number();
        let hours = run.sections.iter().map(|section| section.entry.shelf.hour());
        let known = Known {
            sealed_through: run.header.sealed_through,
            ids: run.header.ids,
            bytes: run.bytes,
            last_hour: hours.max().unwrap_or_default(),
        };
        self.runs.insert(number, known);
        for mut section in run.sections {
            let shelf = section.entry.shelf;
            let filter = section.filter.take();
            self.shelves.entry(shelf).or_default().push(section);
            if let Some(filter) = filter {
                self.hold_filter(shelf, number, filter);
            }
        }
    }

    fn let_go(&mut self, number: u64) {
        self.runs.remove(&number);
        self.shelves.retain(|_, sections| {
            sections.retain(|section| section.file.number() != number);
            !sections.is_empty()
        });
        let filters = &mut self.filters;
        filters.held.retain(|(_, _, run), bytes| {
            let stays = *run != number;
            filters.bytes -= if stays { 0 } else { *bytes };
            stays
        });
    }

    fn section_mut(&mut self, shelf: Shelf, number: u64) -> Option<&mut Section> {
        let sections = self.shelves.get_mut(&shelf)?;
        sections
            .iter_mut()
            .find(|section| section.file.number() == number)
    }

    fn load_filter(&mut self, shelf: Shelf, number: u64) -> io::Result<()> {
        let Some(section) = self.section_mut(shelf, number) else {
            return Ok(());
        };
        let bytes = section.entry.filter_len();
        if self.filters.can_hold(shelf, bytes, self.options.filter_bytes)
            && let Some(section) = self.section_mut(shelf, number)
            && let Some(filter) = section.read_filter()?
        {
            self.hold_filter(shelf, number, filter);
        }
        Ok(())
    }

    /// Keeps a filter, in place of those of older hours, if there is room for it.
    fn hold_filter(&mut self, shelf: Shelf, number: u64, filter: Filter) {
        let (bytes, budget) = (filter.bytes(), self.options.filter_bytes);
        if !self.filters.can_hold(shelf, bytes, budget) {
            return;
        }
        while self.filters.bytes + bytes > budget {
            let Some(((_, shelf, number), bytes)) = self.filters.held.pop_first() else {
                break;
            };
            self.filters.bytes -= bytes;
            if let Some(section) = self.section_mut(shelf, number) {
                section.filter = None;
            }
        }
        if let Some(section) = self.section_mut(shelf, number) {
            section.filter = Some(filter);
            self.filters.held.insert((shelf.hour(), shelf, number), bytes);
            self.filters.bytes += bytes;
        }
    }
}

impl Filters {
    /// Whether a filter fits, if those of older hours go.
    fn can_hold(&self, shelf: Shelf, bytes: usize, budget: usize) -> bool {
        let older = self
            .held
            .iter()
            .take_while(|((hour, ..), _)| *hour < shelf.hour());
        let mut free = budget.saturating_sub(self.bytes);
        let mut older = older.map(|(_, bytes)| *bytes);
        while free < bytes {
            let Some(next) = older.next() else { return false };
            free += next;
        }
        true
    }
}
