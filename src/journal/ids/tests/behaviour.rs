//! What the remembered ids do, one sentence each.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;

use super::disk::Disk;
use super::{Born, HOUR_MS, START, find, hours, insert, key, merge_all, open, remove, seal, small};
use crate::journal::Seq;
use crate::journal::ids::{Frozen, Ids, IdsError, Listed, Merge, Options, Run, RunDirectory, RunStorage};

#[test]
fn an_id_is_known_in_the_table_in_the_frozen_table_and_in_a_run() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    insert(&mut ids, 1..=100, START);
    assert_eq!(find(&mut ids, 7, START), Some(7));
    let frozen = ids.freeze().unwrap();
    insert(&mut ids, 101..=150, START);
    assert_eq!(
        [7, 120, 999].map(|id| find(&mut ids, id, START)),
        [Some(7), Some(120), None]
    );
    assert!(ids.freeze().is_none(), "one frozen table at a time");
    let run = frozen.write(&disk).unwrap();
    assert_eq!(ids.sealed_through(), Seq(0));
    ids.adopt(run);
    assert_eq!(ids.sealed_through(), Seq(100));
    assert_eq!(
        [7, 120, 999].map(|id| find(&mut ids, id, START)),
        [Some(7), Some(120), None]
    );

    let mut ids = open(&disk);
    assert_eq!(ids.sealed_through(), Seq(100));
    assert_eq!(
        [7, 120, 999].map(|id| find(&mut ids, id, START)),
        [Some(7), None, None]
    );
}

#[test]
fn a_run_that_is_adopted_twice_counts_once() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    insert(&mut ids, 1..=100, START);
    let frozen = ids.freeze().unwrap();
    ids.adopt(frozen.write(&disk).unwrap());
    let held = ids.stats();
    ids.adopt(frozen.write(&disk).unwrap());
    assert_eq!(ids.stats(), held);
    assert_eq!(find(&mut ids, 7, START), Some(7));
}

/// They are handed to other threads.
#[test]
fn what_takes_long_may_be_done_on_another_thread() {
    fn elsewhere<T: Send>() {}
    elsewhere::<Frozen>();
    elsewhere::<Merge>();
    elsewhere::<Run>();
    elsewhere::<Ids>();
}

#[test]
fn the_first_message_of_an_id_counts() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    ids.insert(&key(1), Born::At(START), START, Seq(10));
    ids.insert(&key(1), Born::At(START), START, Seq(20));
    assert_eq!(find(&mut ids, 1, START), Some(10));
    seal(&mut ids, &disk);
    assert_eq!(
        ids.sealed_through(),
        Seq(20),
        "the log need not be read for the second"
    );
    assert_eq!(find(&mut ids, 1, START), Some(10));
}

#[test]
fn a_table_is_frozen_when_it_is_full_or_its_hour_is_over() {
    let mut ids = open(&Disk::default());
    assert!(!ids.freeze_due(START + HOUR_MS));
    insert(&mut ids, [1], START + HOUR_MS - 1);
    assert!(!ids.freeze_due(START + HOUR_MS - 1));
    assert!(ids.freeze_due(START + HOUR_MS));
    insert(&mut ids, 2..=199, START);
    assert!(!ids.freeze_due(START));
    insert(&mut ids, [200], START);
    assert!(ids.freeze_due(START));
    ids.freeze();
    assert!(!ids.freeze_due(START + HOUR_MS));
}

#[test]
fn a_full_disk_closes_the_door_and_forgets_nothing() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    insert(&mut ids, 1..=200, START);
    let frozen = ids.freeze().unwrap();
    disk.set_full(true);
    insert(&mut ids, 201..=500, START);
    for _ in 0..3 {
        frozen.write(&disk).map(drop).unwrap_err();
        assert_eq!(disk.list().unwrap(), [], "nothing is left behind");
    }
    assert!(ids.has_room(0) && !ids.has_room(1));
    assert!((1..=500).all(|id| find(&mut ids, id, START) == Some(id)));
    disk.set_full(false);
    ids.adopt(frozen.write(&disk).unwrap());
    seal(&mut ids, &disk).unwrap();
    assert!(ids.has_room(300));
    assert!((1..=500).all(|id| find(&mut ids, id, START) == Some(id)));
}

#[test]
fn hours_that_are_over_are_forgotten_and_the_youngest_run_stays() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    let mut runs = Vec::new();
    for hour in 0..5 {
        insert(&mut ids, hour * 10 + 1..=hour * 10 + 10, START + hour * HOUR_MS);
        runs.push(seal(&mut ids, &disk).unwrap());
    }
    assert_eq!(ids.forget_before(START + HOUR_MS - 1), []);
    assert_eq!(
        ids.forget_before(START + 2 * HOUR_MS),
        [Listed::Run(runs[0]), Listed::Run(runs[1])]
    );
    assert_eq!(find(&mut ids, 11, START + HOUR_MS), None);
    assert_eq!(find(&mut ids, 21, START + 2 * HOUR_MS), Some(21));
    let files = ids.forget_before(START + 100 * HOUR_MS);
    assert_eq!(files, [Listed::Run(runs[2]), Listed::Run(runs[3])]);
    remove(&disk, files);
    assert_eq!(open(&disk).sealed_through(), Seq(50));
}

#[test]
fn an_id_without_a_time_is_found_for_the_look_back() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    ids.insert(&key(1), Born::Unknown, START, Seq(1));
    seal(&mut ids, &disk);
    let mut at = |hour| ids.find(&key(1), Born::Unknown, START + hour * HOUR_MS).unwrap();
    assert_eq!([at(0), at(24), at(26)], [Some(Seq(1)), Some(Seq(1)), None]);
}

#[test]
fn a_time_that_cannot_be_is_remembered_for_the_whole_window() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    // In microseconds; three days ahead; the epoch.
    let born = [START * 1_000, START + 72 * HOUR_MS, 0].map(Born::At);
    for (number, born) in (1..).zip(born) {
        ids.insert(&key(number), born, START, Seq(number));
    }
    seal(&mut ids, &disk);
    for hour in [0, 60, 80, 167] {
        for (number, born) in (1..).zip(born) {
            let found = ids.find(&key(number), born, START + hour * HOUR_MS).unwrap();
            assert_eq!(found, Some(Seq(number)), "{born:?} after {hour} h");
        }
    }
    assert_eq!(ids.forget_before(START + 200 * HOUR_MS), [], "the youngest");
    insert(&mut ids, [9], START + 200 * HOUR_MS);
    seal(&mut ids, &disk);
    assert_eq!(ids.forget_before(START + 200 * HOUR_MS).len(), 1);
}

#[test]
fn merged_runs_answer_alike_and_leave_out_what_is_over() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    for hour in 0..8 {
        let at_ms = START + hour * HOUR_MS;
        insert(&mut ids, hour * 100 + 1..=hour * 100 + 100, at_ms);
        seal(&mut ids, &disk);
    }
    ids.forget_before(START + HOUR_MS);
    insert(&mut ids, 801..=900, START + 8 * HOUR_MS);
    seal(&mut ids, &disk);
    assert_eq!(merge_all(&mut ids, &disk), 1);
    let held = ids.stats();
    assert_eq!((held.runs, held.ids), (1, 800));
    assert_eq!(
        disk.list().unwrap().len(),
        2,
        "that of the forgotten hour was not removed"
    );
    let mut reopened = open(&disk);
    for ids in [&mut ids, &mut reopened] {
        assert!((1..9).all(|hour| {
            (1..=100).all(|id| find(ids, hour * 100 + id, START + hour * HOUR_MS) == Some(hour * 100 + id))
        }));
        assert_eq!(find(ids, 901, START + 8 * HOUR_MS), None);
        assert_eq!(ids.sealed_through(), Seq(900));
    }
}

#[test]
fn a_start_between_a_merge_and_the_removal_of_its_runs_counts_each_id_once() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    for run in 0..8 {
        insert(&mut ids, (1..=100).map(|id| run * 100 + id), START);
        seal(&mut ids, &disk);
    }
    let merged = ids.merge().expect("eight runs alike").write(&disk).unwrap();
    let replaced = ids.adopt(merged);
    assert_eq!(replaced.len(), 8);
    assert_eq!(disk.list().unwrap().len(), 9);
    let mut reopened = open(&disk);
    assert_eq!(disk.list().unwrap().len(), 1);
    for ids in [&mut ids, &mut reopened] {
        assert_eq!((ids.stats().runs, ids.stats().ids), (1, 800));
        assert!((1..=800).all(|id| find(ids, id, START) == Some(id)));
    }
}

#[test]
fn a_filter_that_is_wrong_costs_a_look_and_changes_no_answer() {
    let disk = Disk::default();
    let options = Options {
        seal_at: 40_000,
        room: 50_000,
        ..Options::default()
    };
    let mut ids = Ids::open(&disk, options).unwrap();
    insert(&mut ids, 1..=40_000, START);
    seal(&mut ids, &disk);
    let section = ids.shelves.values().flatten().next().unwrap();
    let filter = section.filter.as_ref().expect("a new run keeps its filter");
    let wrong: Vec<u64> = (50_000..90_000)
        .filter(|id| filter.may_contain(u128::from_be_bytes(key(*id).0)))
        .collect();
    assert!(wrong.len() > 50, "{}", wrong.len());
    assert!(wrong.iter().all(|id| find(&mut ids, *id, START).is_none()));
    assert!(
        (1..=40_000)
            .step_by(37)
            .all(|id| find(&mut ids, id, START) == Some(id))
    );
}

#[test]
fn filters_are_loaded_where_they_are_needed_and_older_hours_make_room() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    // Filters of 320 bytes: three fit.
    for hour in 0..5 {
        insert(
            &mut ids,
            hour * 200 + 1..=hour * 200 + 200,
            START + hour * HOUR_MS,
        );
        seal(&mut ids, &disk);
    }
    let held = |ids: &Ids| -> BTreeSet<u64> {
        let sections = ids.shelves.values().flatten();
        let held = sections.filter(|section| section.filter.is_some());
        held.map(|section| u64::from(section.entry.shelf.hour()) - START / HOUR_MS)
            .collect()
    };
    assert_eq!(held(&ids), BTreeSet::from([2, 3, 4]));
    let mut ids = open(&disk);
    assert_eq!(held(&ids), BTreeSet::new(), "opening reads none");
    for hour in [0, 1, 2, 1, 0, 3] {
        for id in 0..5 {
            assert_eq!(find(&mut ids, 5_000 + id, START + hour * HOUR_MS), None);
        }
    }
    assert_eq!(
        held(&ids),
        BTreeSet::from([1, 2, 3]),
        "an older hour does not push a younger one out"
    );
    assert!(ids.stats().filter_bytes <= 1_000);
    assert_eq!(
        (find(&mut ids, 1, START), find(&mut ids, 801, START + 4 * HOUR_MS)),
        (Some(1), Some(801))
    );
}

#[test]
fn memory_stays_within_its_budget() {
    let disk = Disk::default();
    let options = Options {
        seal_at: 2_000,
        room: 2_300,
        filter_bytes: 20_000,
        max_filter_bytes: 8_000,
        filter_after: 1,
        ..Options::default()
    };
    let mut ids = Ids::open(&disk, options).unwrap();
    let mut most = 0;
    for number in 0..120_000 {
        let at_ms = START + number / 1_000 * HOUR_MS;
        insert(&mut ids, [number], at_ms);
        if ids.freeze_due(at_ms) {
            seal(&mut ids, &disk);
            merge_all(&mut ids, &disk);
        }
        if number % 97 == 0 {
            assert_eq!(
                find(&mut ids, number / 2, START + number / 2_000 * HOUR_MS),
                Some(number / 2)
            );
            most = most.max(ids.stats().memory_bytes);
        }
    }
    // Two tables of 4,096 buckets, the filters, and 120 hours in at most 40 runs.
    assert!(most < 2 * 4_096 * 33 + 20_000 + 40 * 1_000 + 300 * 200, "{most}");
    let held = ids.stats();
    assert!(held.runs < 40, "{held:?}");
}

#[test]
fn real_files_are_private_and_hold_what_was_written() {
    let journal = tempfile::tempdir().unwrap();
    let storage = RunDirectory::open(journal.path()).unwrap();
    let mut ids = Ids::open(&storage, small()).unwrap();
    insert(&mut ids, 1..=200, START);
    let run = ids.freeze().unwrap().write(&storage).unwrap();
    ids.adopt(run);
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let (directory, file) = (journal.path().join("ids"), storage.name(1));
    assert_eq!((mode(&directory), mode(&file)), (0o700, 0o600));
    assert_eq!(file.metadata().unwrap().len(), ids.stats().bytes_on_disk);
    std::fs::write(directory.join("00000000000000000009.tmp"), "unfinished").unwrap();
    std::fs::write(directory.join("notes.txt"), "not ours").unwrap();

    let mut ids = Ids::open(&RunDirectory::open(journal.path()).unwrap(), small()).unwrap();
    assert!((1..=200).all(|id| find(&mut ids, id, START) == Some(id)));
    let mut files = storage.list().unwrap();
    files.sort_unstable();
    assert_eq!(files, [Listed::Run(1)]);
    assert!(directory.join("notes.txt").exists());
    insert(&mut ids, [300], START);
    assert_eq!(
        ids.freeze().unwrap().write(&storage).unwrap().number(),
        10,
        "no number is used twice"
    );
}

#[test]
fn another_format_is_named() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    insert(&mut ids, 1..=3, START);
    let number = seal(&mut ids, &disk).unwrap();
    disk.edit(Listed::Run(number), |bytes| {
        bytes[8] = 2;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..4096]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    let Err(IdsError::Version { file, found: 2 }) = Ids::open(&disk, small()) else {
        panic!("opened");
    };
    assert_eq!(file, disk.name(number));
}

#[test]
fn an_id_takes_about_twenty_one_bytes_on_disk() {
    let disk = Disk::default();
    let mut ids = Ids::open(&disk, Options::default()).unwrap();
    insert(&mut ids, (0..50_000).map(|id| (1 << 40) + 20 * id), START);
    seal(&mut ids, &disk);
    let bytes = ids.stats().bytes_on_disk;
    assert!((20 * 50_000..21 * 50_000).contains(&bytes), "{bytes}");
    assert_eq!(ids.options.window, hours(168));
}
