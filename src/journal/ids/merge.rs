//! Makes one run of several.
//!
//! Not for which ones (`plan`). Upholds law 11: takes little memory however large the runs are.

use std::io;

use super::plan::FAN_IN;
use super::run::{self, FilterPlan, NewHeader, Run, Section, SectionIds};
use super::storage::RunStorage;
use super::table::Key;
use crate::journal::Seq;

/// Runs that are to be made one, on another thread, and then [adopted](super::Ids::adopt).
pub struct Merge {
    new: NewHeader,
    /// Ascending by shelf.
    sections: Vec<Section>,
    filters: FilterPlan,
}

impl Merge {
    pub(super) fn new(
        number: u64,
        sealed_through: Seq,
        replaces: Vec<u64>,
        sections: Vec<Section>,
        filters: FilterPlan,
    ) -> Self {
        debug_assert!(replaces.len() <= FAN_IN);
        let bases = sections.iter().map(|section| section.file.numbers.base);
        let new = NewHeader {
            number,
            sealed_through,
            lowest: Seq(bases.min().unwrap_or_default()),
            replaces,
        };
        Self {
            new,
            sections,
            filters,
        }
    }

    /// Writes the run and makes it durable. Takes about a second for ten million ids: for another thread.
    ///
    /// # Errors
    /// The file system's, or [`Damage`](super::error::Damage) to one of the runs.
    pub fn write(&self, storage: &dyn RunStorage) -> io::Result<Run> {
        run::write(storage, self.new.clone(), |writer| {
            for group in self
                .sections
                .chunk_by(|one, other| one.entry.shelf == other.entry.shelf)
            {
                let Some(first) = group.first() else { continue };
                let most = group.iter().map(|section| section.entry.ids).sum();
                let mut inputs: Vec<_> = group.iter().map(Section::ids).collect();
                writer.section(first.entry.shelf, most, self.filters, || next(&mut inputs))?;
            }
            Ok(())
        })
    }
}

/// The lowest key of all inputs. An id that is in several (a merge whose inputs came back after a power loss) keeps
/// its first message.
fn next(inputs: &mut [SectionIds<'_>]) -> io::Result<Option<(Key, Seq)>> {
    let mut lowest: Option<(Key, Seq)> = None;
    for input in &mut *inputs {
        let next = input.peek()?;
        lowest = match (lowest, next) {
            (Some(one), Some(other)) => Some(one.min(other)),
            (one, other) => one.or(other),
        };
    }
    for input in inputs {
        if lowest.is_some() && input.peek()?.map(|(key, _)| key) == lowest.map(|(key, _)| key) {
            input.advance();
        }
    }
    Ok(lowest)
}
