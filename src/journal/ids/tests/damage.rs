//! Damage to a run: an error with its place, or harmless; never "unknown" for a known id, never another number.

use std::io;

use super::disk::Disk;
use super::{Born, HOUR_MS, START, insert, key, open, seal, small};
use crate::journal::Seq;
use crate::journal::ids::{Ids, IdsError, Listed, RunStorage, error::Damage};

/// A run of two sections: one of three pages with a filter, one of a page.
fn written() -> (Disk, u64) {
    let disk = Disk::default();
    let mut ids = open(&disk);
    insert(&mut ids, 1..=500, START);
    insert(&mut ids, 501..=510, START + HOUR_MS);
    let number = seal(&mut ids, &disk).unwrap();
    (disk, number)
}

const KNOWN: [u64; 7] = [1, 77, 250, 333, 500, 501, 510];

fn born(number: u64) -> u64 {
    if number <= 500 { START } else { START + HOUR_MS }
}

fn damage_in(error: &io::Error) -> Damage {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Damage>());
    assert_eq!(error.kind(), io::ErrorKind::InvalidData);
    inner.unwrap_or_else(|| panic!("{error}")).clone()
}

#[derive(Debug, PartialEq, Eq, Clone, Copy)]
enum Noticed {
    Opening,
    Finding,
    Never,
}

/// Opens and looks up, each key often enough that filters are loaded; answers must be right, or say where the
/// damage is.
fn look(disk: &Disk, number: u64, at: usize) -> Noticed {
    let mut ids = match Ids::open(disk, small()) {
        Ok(ids) => ids,
        Err(IdsError::Damaged(damage)) => {
            assert_eq!(damage.file, disk.name(number));
            assert!(damage.offset <= at as u64);
            return Noticed::Opening;
        }
        Err(error) => panic!("byte {at}: {error}"),
    };
    let mut noticed = Noticed::Never;
    for id in KNOWN.into_iter().chain([900, 901, 902, 903]).cycle().take(22) {
        let expected = Some(Seq(id)).filter(|_| id < 900);
        let time = if id == 903 { START + HOUR_MS } else { born(id) };
        match ids.find(&key(id), Born::At(time), START) {
            Ok(found) => assert_eq!(found, expected, "byte {at}"),
            Err(error) => {
                let damage = damage_in(&error);
                assert_eq!(damage.file, disk.name(number));
                assert!(damage.offset <= at as u64, "byte {at}: {damage}");
                noticed = Noticed::Finding;
            }
        }
    }
    noticed
}

#[test]
fn a_flipped_bit_is_noticed_or_harmless() {
    let (disk, number) = written();
    let files = disk.files();
    let bytes = &files[&Listed::Run(number)];
    let mut rng = fastrand::Rng::with_seed(1);
    let mut noticed = [0; 3];
    for at in 0..bytes.len() {
        // Of the many zeros that fill pages some are enough.
        if bytes[at] == 0 && at % 16 != 0 && at > 160 && at + 64 < bytes.len() {
            continue;
        }
        let bit = 1 << rng.u8(..8);
        disk.edit(Listed::Run(number), |bytes| bytes[at] ^= bit);
        noticed[look(&disk, number, at) as usize] += 1;
        disk.edit(Listed::Run(number), |bytes| bytes[at] ^= bit);
    }
    assert_eq!(look(&disk, number, 0), Noticed::Never);
    let [opening, finding, never] = noticed;
    // Harmless are the zeros between a filter and the next section, and pages that no look-up read.
    assert!(opening > 200 && finding > 8_000 && never < 2_500, "{noticed:?}");
}

#[test]
fn a_file_that_is_cut_or_grown_is_refused() {
    let (disk, number) = written();
    let whole = disk.files()[&Listed::Run(number)].clone();
    let lengths = (0..whole.len())
        .step_by(97)
        .chain([whole.len() - 1, whole.len() + 1]);
    for len in lengths {
        disk.edit(Listed::Run(number), |bytes| bytes.resize(len, 0));
        let opened = Ids::open(&disk, small());
        assert!(matches!(opened, Err(IdsError::Damaged(_))), "{len} bytes");
        disk.edit(Listed::Run(number), |bytes| bytes.clone_from(&whole));
    }
}

#[test]
fn a_file_that_is_cut_while_it_is_open_is_damage() {
    let (disk, number) = written();
    let mut ids = open(&disk);
    disk.edit(Listed::Run(number), |bytes| bytes.truncate(4096));
    let error = ids.find(&key(1), Born::At(START), START).unwrap_err();
    assert_eq!(damage_in(&error).problem, "the file ends");
}

#[test]
fn a_run_under_another_name_or_with_pages_of_another_is_refused() {
    let (disk, number) = written();
    let mut ids = open(&disk);
    insert(&mut ids, 1..=500, START);
    insert(&mut ids, 501..=510, START + HOUR_MS);
    let other = seal(&mut ids, &disk).unwrap();
    let files = disk.files();
    let (one, two) = (
        files[&Listed::Run(number)].clone(),
        files[&Listed::Run(other)].clone(),
    );
    assert_eq!(one.len(), two.len());

    disk.edit(Listed::Run(other), |bytes| bytes.clone_from(&one));
    assert!(matches!(Ids::open(&disk, small()), Err(IdsError::Damaged(_))));

    let mut mixed = one;
    mixed[4096..8192].copy_from_slice(&two[4096..8192]);
    let disk = Disk::with_files([(Listed::Run(number), mixed)].into());
    assert_eq!(look(&disk, number, 4096), Noticed::Finding);
}

/// A write that the disk put in another place.
#[test]
fn pages_in_each_others_place_are_noticed() {
    let (disk, number) = written();
    disk.edit(Listed::Run(number), |bytes| {
        let (before, after) = bytes.split_at_mut(8192);
        before[4096..].swap_with_slice(&mut after[..4096]);
    });
    assert_eq!(look(&disk, number, 8192), Noticed::Finding);
}

#[test]
fn a_merge_does_not_carry_damage_on() {
    let disk = Disk::default();
    let mut ids = open(&disk);
    for hour in 0..8 {
        insert(
            &mut ids,
            hour * 100 + 1..=hour * 100 + 100,
            START + hour * HOUR_MS,
        );
        seal(&mut ids, &disk);
    }
    disk.edit(Listed::Run(3), |bytes| bytes[5_000] ^= 4);
    let error = ids.merge().unwrap().write(&disk).map(drop).unwrap_err();
    assert_eq!(damage_in(&error).file, disk.name(3));
    assert_eq!(disk.list().unwrap().len(), 8);
    assert_eq!(ids.stats().runs, 8);
}
