//! Files that wait to be segments again, on a real disk.

use std::path::Path;

use crate::journal::storage::{Directory, Storage};

const BYTES: u64 = 8192;

fn open(path: &Path, most: u64) -> Directory {
    let Ok((directory, _lock)) = Directory::open(path) else {
        panic!("the directory opens");
    };
    directory.with_spares(most)
}

fn waiting(path: &Path) -> Vec<String> {
    let names = std::fs::read_dir(path).unwrap().map(|file| file.unwrap());
    let names = names.map(|file| file.file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|name| name.starts_with("spare-")).collect();
    names.sort();
    names
}

/// Segments with something in them, all retired.
fn retired(directory: &Directory, count: u64) {
    for number in 1..=count {
        let (file, _) = directory.create(number).unwrap();
        let bytes = vec![b'x'; usize::try_from(BYTES).unwrap()];
        file.write_all_at(0, &bytes).unwrap();
    }
    for number in 1..=count {
        directory.retire(number).unwrap();
    }
}

#[test]
fn what_is_done_with_under_load_waits_to_be_written_again_up_to_a_bound_and_the_rest_is_removed() {
    let dir = tempfile::tempdir().unwrap();
    let directory = open(dir.path(), 4);
    retired(&directory, 6);
    assert_eq!(waiting(dir.path()), ["spare-0", "spare-1", "spare-2", "spare-3"]);
    assert!(directory.list().unwrap().is_empty());

    // Its bytes are there already, its first ones are zeros.
    let (_, allocated) = directory.create(7).unwrap();
    assert_eq!(allocated, BYTES);
    assert_eq!(directory.read(7, 0, 64).unwrap(), [0; 64]);
    assert_eq!(waiting(dir.path()).len(), 3);
    // With this many nothing is to be made ready.
    directory.prepare(BYTES).unwrap();
    assert_eq!(waiting(dir.path()).len(), 3);
}

#[test]
fn files_that_wait_are_given_back_one_by_one_until_a_quiet_journal_has_enough() {
    let dir = tempfile::tempdir().unwrap();
    let directory = open(dir.path(), 64);
    retired(&directory, 5);
    for left in [4, 3, 2, 2] {
        directory.thin_out().unwrap();
        assert_eq!(waiting(dir.path()).len(), left);
    }
}
