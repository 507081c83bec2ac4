//! Which runs to make one of. Pure.
//!
//! Upholds law 11: few runs, however many ids there are and however often the process starts, and each id is
//! rewritten a few times only.

use std::collections::BTreeMap;

use super::filter::blocks_for;
use super::shelf::Shelf;

/// How many runs are made one.
pub(super) const FAN_IN: usize = 8;
/// Hours that a merged run may span: a run goes as a whole, when the youngest of its hours is over.
const SPAN: u32 = 24;

/// What matters of a run here.
#[derive(Clone, Debug)]
pub(super) struct Summary {
    pub number: u64,
    pub ids: u64,
    /// The last of its hours, since the epoch.
    pub last_hour: u32,
    /// How many ids it has on each shelf.
    pub sections: Vec<(Shelf, u64)>,
}

/// The runs to merge, if any are worth it: neighbours in age (`runs` is in that order), none of them with a third of
/// all their ids, so that ids are rewritten about as often as their number has digits in base eight.
///
/// While there are fewer than `crowded` runs, no merge makes a section too large for its filter or a run of hours
/// far apart. From then on there is always a merge, of those that are the least bad.
pub(super) fn plan(runs: &[Summary], crowded: usize, max_filter: usize) -> Option<Vec<u64>> {
    let sum = |group: &[Summary]| group.iter().map(|run| run.ids).sum::<u64>();
    let mut groups: Vec<&[Summary]> = runs.windows(FAN_IN).collect();
    // The smallest first, of equals the oldest.
    groups.sort_by_key(|group| sum(group));
    let first = |wanted: &dyn Fn(&[Summary]) -> bool| groups.iter().copied().find(|group| wanted(group));
    let is_even = |group: &[Summary]| group.iter().all(|run| run.ids <= sum(group) / 3);
    let has_filters = |group: &[Summary]| blocks_for(largest_section(group), max_filter).is_some();
    let group = first(&|group| is_even(group) && is_near(group) && has_filters(group)).or_else(|| {
        (runs.len() >= crowded)
            .then(|| {
                first(&|group| is_even(group) && is_near(group))
                    .or_else(|| first(&is_even))
                    .or_else(|| first(&|_| true))
            })
            .flatten()
    })?;
    Some(group.iter().map(|run| run.number).collect())
}

fn is_near(group: &[Summary]) -> bool {
    let hours = || group.iter().map(|run| run.last_hour);
    hours().max().unwrap_or_default() - hours().min().unwrap_or_default() <= SPAN
}

/// The ids of the largest section of the run that would come of these.
fn largest_section(group: &[Summary]) -> u64 {
    let mut shelves: BTreeMap<Shelf, u64> = BTreeMap::new();
    for (shelf, ids) in group.iter().flat_map(|run| &run.sections) {
        *shelves.entry(*shelf).or_default() += ids;
    }
    shelves.into_values().max().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Seals runs, merges while there is something to merge, forgets; says how many runs there were at most and how
    /// often an id was written.
    fn life(seals: impl Iterator<Item = (u32, u64)>, max_filter: usize) -> (usize, f64) {
        let mut runs: Vec<Summary> = Vec::new();
        let (mut most, mut sealed, mut written) = (0, 0, 0);
        for (number, (hour, ids)) in (1..).step_by(1_000).zip(seals) {
            runs.push(Summary {
                number,
                ids,
                last_hour: hour,
                sections: vec![(Shelf::from_bits(hour).unwrap(), ids)],
            });
            runs.retain(|run| run.last_hour + 168 >= hour);
            (sealed, written) = (sealed + ids, written + ids);
            most = most.max(runs.len());
            for next in number + 1.. {
                let Some(group) = plan(&runs, 192, max_filter) else {
                    break;
                };
                let at = runs.iter().position(|run| run.number == group[0]).unwrap();
                let merged: Vec<_> = runs.drain(at..at + group.len()).collect();
                assert!(merged.iter().map(|run| run.number).eq(group));
                let ids = merged.iter().map(|run| run.ids).sum();
                let last_hour = merged.iter().map(|run| run.last_hour).max().unwrap();
                let mut sections = BTreeMap::new();
                for (shelf, ids) in merged.iter().flat_map(|run| &run.sections) {
                    *sections.entry(*shelf).or_default() += ids;
                }
                let sections = sections.into_iter().collect();
                written += ids;
                runs.insert(
                    at,
                    Summary {
                        number: next,
                        ids,
                        last_hour,
                        sections,
                    },
                );
            }
        }
        #[allow(clippy::cast_precision_loss)]
        let amplification = written as f64 / sealed as f64;
        (most, amplification)
    }

    #[test]
    fn runs_stay_few_at_any_traffic() {
        type Seals = Box<dyn Iterator<Item = (u32, u64)>>;
        const FULL: u64 = 98_304;
        let cases: [(&str, Seals, usize, f64); 5] = [
            (
                "a small one an hour",
                Box::new((0..400).map(|hour| (hour, 10))),
                20,
                3.2,
            ),
            (
                "80 ids a second",
                Box::new((0..1_200).map(|n| (n / 3, FULL))),
                24,
                4.2,
            ),
            (
                "5,000 ids a second",
                Box::new((0..40_000).map(|n| (n / 200, FULL))),
                192,
                6.0,
            ),
            (
                "bursts",
                Box::new((0..3_000).map(|n| (n / 10, if n % 7 == 0 { FULL } else { 5 }))),
                192,
                5.8,
            ),
            (
                "a start a minute",
                Box::new((0..20_000).map(|n| (n / 60, 3 + u64::from(n % 5)))),
                36,
                6.0,
            ),
        ];
        for (name, seals, runs, writes) in cases {
            let (most, written) = life(seals, 6 << 20);
            assert!(most <= runs, "{name}: {most} runs");
            assert!(written <= writes, "{name}: each id written {written:.1} times");
        }
    }

    #[test]
    fn only_a_crowd_makes_a_section_that_is_too_large_for_its_filter() {
        let run = |number| Summary {
            number,
            ids: 1_000_000,
            last_hour: 5,
            sections: vec![(Shelf::from_bits(5).unwrap(), 1_000_000)],
        };
        let runs: Vec<_> = (0..20).map(run).collect();
        assert_eq!(plan(&runs, 192, 6 << 20), None);
        assert_eq!(plan(&runs, 20, 6 << 20).map(|group| group.len()), Some(FAN_IN));
        assert_eq!(plan(&runs[..5], 2, 6 << 20), None);
    }
}
