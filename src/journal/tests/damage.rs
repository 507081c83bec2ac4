//! Damage to what was synced: refused with its place, or the read fails; never less, never other data.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::disk::{Disk, Trouble};
use super::{
    Appended, Bench, NewEntry, OpenError, Outcome, ReadError, Seq, dead, entry, roomy, seqs, small_segments,
};

/// Several segments; some messages settled, some bodies large, some of zeros.
fn written() -> (Disk, BTreeMap<Seq, NewEntry>) {
    let mut bench = Bench::new(&small_segments());
    let mut expected = BTreeMap::new();
    for number in 1..=8 {
        let mut made = entry(number);
        if number % 3 == 0 {
            made = made.with_body(vec![0; 1200]);
        }
        let answer = bench.append(vec![made.clone(), entry(number + 100)]).unwrap();
        let [Appended::New(first), Appended::New(second)] = answer[..] else {
            panic!("{answer:?}")
        };
        bench.settle(second).unwrap();
        expected.insert(first, made);
    }
    let answer = bench.append(vec![entry(50).with_body(vec![b'x'; 700])]).unwrap();
    expected.insert(Seq(17), entry(50).with_body(vec![b'x'; 700]));
    assert_eq!(answer, [Appended::New(Seq(17))]);
    // As the writer's thread does when nobody waits.
    bench.writer.mark();
    (bench.disk, expected)
}

fn copy(disk: &Disk) -> Disk {
    Disk::with_files(disk.files(), fastrand::Rng::with_seed(0))
}

#[test]
fn a_flipped_bit_anywhere_is_refused_with_its_place() {
    let (disk, expected) = written();
    let files = disk.files();
    assert!(files.len() > 4);
    let mut rng = fastrand::Rng::with_seed(1);
    for (number, bytes) in &files {
        for at in 0..bytes.len() {
            let damaged = copy(&disk);
            let bit = 1 << rng.u8(..8);
            damaged.edit(*number, |bytes| bytes[at] ^= bit);
            match Bench::open(&damaged, &small_segments()) {
                Err(OpenError::Damaged { file, offset, .. }) => {
                    assert_eq!(file.to_str(), Some(format!("disk/{number}").as_str()));
                    assert!(offset <= at as u64, "byte {at} of {number}: reported at {offset}");
                }
                Err(error) => panic!("byte {at} of {number}: {error}"),
                Ok((_, pending)) => {
                    // The mark itself may be damaged: then it says nothing, and all that was acknowledged is there.
                    let in_mark = files.keys().last() == Some(number) && at >= bytes.len() - 32;
                    assert!(
                        in_mark && pending.len() == expected.len(),
                        "byte {at} of {number}: opened"
                    );
                }
            }
            assert_eq!(
                damaged.files()[number].len(),
                bytes.len(),
                "a refused file was changed"
            );
        }
    }
}

#[test]
fn a_bit_that_flips_while_the_journal_is_open_fails_the_read_of_that_message_only() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1), entry(2), entry(3)]).unwrap();
    let place = bench.writer.shared().state().position(Seq(2)).unwrap().0.place;
    for at in place.offset..place.offset + u64::from(place.len) {
        let at = usize::try_from(at).unwrap();
        bench.disk.edit(1, |bytes| bytes[at] ^= 4);
        let error = bench.read(Seq(2)).unwrap_err();
        assert!(matches!(error, ReadError::Damaged { seq: Seq(2), offset, .. } if offset == place.offset));
        assert_eq!(bench.read(Seq(1)).unwrap().body, entry(1).body);
        assert_eq!(bench.read(Seq(3)).unwrap().body, entry(3).body);
        bench.disk.edit(1, |bytes| bytes[at] ^= 4);
    }
}

#[test]
fn a_bad_commit_before_good_ones_is_refused_with_file_offset_and_count() {
    let mut bench = Bench::new(&roomy());
    for number in 1..=5 {
        bench.append(vec![entry(number), entry(number + 10)]).unwrap();
    }
    bench.disk.edit(1, |bytes| bytes[64 + 45] ^= 1);
    let error = Bench::open(&bench.disk, &roomy()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "the journal is damaged: disk/1 at byte 64: a frame whose content does not match its checksum; \
         4 valid commits with 8 records follow; nothing was changed"
    );
    // Also when the bad one looks as if it was never written.
    bench.disk.edit(1, |bytes| bytes[64..96].fill(0));
    assert!(matches!(
        Bench::open(&bench.disk, &roomy()).err().unwrap(),
        OpenError::Damaged {
            offset: 64,
            commits_after: 4,
            records_after: 8,
            ..
        }
    ));
}

#[test]
fn a_torn_tail_is_dropped_at_every_length() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    let kept = bench.disk.files()[&1].len();
    bench
        .append(vec![entry(2), entry(3).with_body(vec![1; 900])])
        .unwrap();
    let whole = bench.disk.files()[&1].len();
    for len in kept..whole {
        let torn = copy(&bench.disk);
        torn.edit(1, |bytes| bytes.truncate(len));
        let (reopened, pending) = Bench::open(&torn, &roomy()).unwrap();
        assert_eq!(seqs(&pending), [1], "length {len}");
        assert_eq!(reopened.read(Seq(1)).unwrap().body, entry(1).body);
        // The tail was sealed off: it stays dropped.
        assert_eq!(seqs(&Bench::open(&torn, &roomy()).unwrap().1), [1]);
    }
}

#[test]
fn a_batch_is_all_or_nothing_under_a_torn_write() {
    let mut kept_whole = 0;
    for seed in 0..300 {
        let disk = Disk::seeded(seed);
        let (mut bench, _) = Bench::open(&disk, &roomy()).unwrap();
        disk.plan(1, Trouble::Stop);
        let batch = (1..=5)
            .map(|number| entry(number).with_body(vec![1; 400]))
            .collect();
        assert!(bench.append(batch).is_err());
        let after = disk.after_power_loss(&mut fastrand::Rng::with_seed(seed));
        let pending = seqs(&Bench::open(&after, &roomy()).unwrap().1);
        assert!(
            pending.is_empty() || pending == [1, 2, 3, 4, 5],
            "seed {seed}: {pending:?}"
        );
        kept_whole += u32::from(!pending.is_empty());
    }
    assert!((1..299).contains(&kept_whole), "both must occur: {kept_whole}");
}

#[test]
fn a_copied_segment_under_another_number_is_refused() {
    let (disk, _) = written();
    let mut files = disk.files();
    let last = *files.keys().last().unwrap();
    files.insert(last + 1, files[&1].clone());
    let error = Bench::open(&Disk::with_files(files, fastrand::Rng::new()), &small_segments())
        .err()
        .unwrap();
    assert!(
        error.to_string().contains("a segment with another number"),
        "{error}"
    );
}

#[test]
fn recycled_bytes_of_another_segment_never_count() {
    let disk = Disk::default();
    for pair in [[1, 2], [3, 4]] {
        let (mut bench, _) = Bench::open(&disk, &roomy()).unwrap();
        bench.append(vec![entry(pair[0])]).unwrap();
        bench.append(vec![entry(pair[1])]).unwrap();
        bench.writer.mark();
    }
    let (old, new) = (disk.files()[&1].clone(), disk.files()[&2].clone());
    assert_eq!(
        old.len(),
        new.len(),
        "so that each commit lies where its counterpart did"
    );
    let mark = old.len() - 32;
    let second = 64 + (mark - 64) / 2;
    for from in [64, second] {
        let recycled = copy(&disk);
        recycled.edit(2, |bytes| bytes[from..mark].copy_from_slice(&old[from..mark]));
        match Bench::open(&recycled, &roomy()).err() {
            Some(OpenError::Damaged {
                file,
                offset,
                problem,
                commits_after: 1,
                records_after: 0,
            }) => {
                assert_eq!((file.to_str(), offset), (Some("disk/2"), from as u64));
                assert_eq!(problem, "a frame header that was not written here");
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_missing_segment_is_refused_and_a_removed_one_is_not() {
    let (disk, _) = written();
    for number in disk.files().into_keys().rev().skip(1) {
        let mut files = disk.files();
        files.remove(&number);
        let error = Bench::open(&Disk::with_files(files, fastrand::Rng::new()), &small_segments())
            .err()
            .unwrap();
        assert!(
            error.to_string().contains(&format!("disk/{number}")) || number > 1,
            "{error}"
        );
        assert!(
            matches!(error, OpenError::Missing { .. } | OpenError::Damaged { .. }),
            "{error}"
        );
    }
    let bench = recycled();
    assert!(bench.reopen().is_ok());
}

#[test]
fn another_format_is_refused_by_name() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    bench.disk.edit(1, |bytes| {
        bytes[8] = 3;
        let crc = crc32c::crc32c_append(crc32c::crc32c(&bytes[..12]), &bytes[16..64]);
        bytes[12..16].copy_from_slice(&crc.to_le_bytes());
    });
    let error = Bench::open(&bench.disk, &roomy()).err().unwrap();
    assert_eq!(
        error.to_string(),
        "disk/1 has journal format 3; this release reads format 2"
    );
}

#[test]
fn long_reasons_are_cut_between_characters() {
    let reason = "é".repeat(100);
    for outcome in [dead(&reason), Outcome::Dropped { reason }] {
        let (Outcome::DeadLetter { reason } | Outcome::Dropped { reason }) = outcome.cut() else {
            panic!()
        };
        assert_eq!(reason, "é".repeat(32));
    }
}

/// Old segments go and their files are used again.
fn recycled() -> Bench {
    let mut bench = Bench::new(&small_segments());
    for number in 1..=6 {
        let [Appended::New(seq)] = bench.append(vec![entry(number).with_body(vec![1; 500])]).unwrap()[..]
        else {
            panic!("new")
        };
        bench.settle(seq).unwrap();
    }
    for _ in 0..4 {
        bench.wall.set(bench.wall.now() + 3_000_000);
        bench.keep();
    }
    assert!(!bench.disk.removed().is_empty());
    bench
}

#[test]
fn what_a_recycled_file_held_before_never_counts() {
    let mut bench = recycled();
    for number in 7..=9 {
        bench.append(vec![entry(number)]).unwrap();
    }
    let files = bench.disk.files();
    let tip = &files[files.keys().last().unwrap()];
    assert!(tip.len() > 600, "the file had its bytes before: {}", tip.len());
    let (bench, pending) = bench.reopen().unwrap();
    assert_eq!(seqs(&pending), [7, 8, 9]);
    assert_eq!(bench.read(Seq(8)).unwrap().body, entry(8).body);
}

#[test]
fn a_file_that_was_being_given_back_when_the_machine_stopped_is_no_damage() {
    let bench = recycled();
    let gone = bench.disk.removed()[0];
    let mut files = bench.disk.files();
    // Its name is back, its header is not.
    let (header, frames) = (
        vec![0; 64],
        [b"FRM2".to_vec(), vec![0; 8], gone.to_le_bytes()[..4].to_vec()],
    );
    files.insert(gone, [header, frames.concat(), vec![7; 500]].concat());
    let disk = Disk::with_files(files.clone(), fastrand::Rng::new());
    assert!(Bench::open_with(&disk, &bench.runs, &small_segments(), &bench.wall).is_ok());
    // The same of one that is still needed is.
    let needed = *files.keys().last().unwrap();
    files.get_mut(&needed).unwrap()[..64].fill(0);
    let disk = Disk::with_files(files, fastrand::Rng::new());
    let error = Bench::open_with(&disk, &bench.runs, &small_segments(), &bench.wall)
        .err()
        .unwrap();
    assert!(
        matches!(error, OpenError::Damaged { .. } | OpenError::Missing { .. }),
        "{error}"
    );
}

proptest! {
    #[test]
    fn random_bytes_as_segment_files_never_panic(
        files in proptest::collection::btree_map(
            prop_oneof![1_u64..5, Just(u64::MAX)],
            proptest::collection::vec(prop_oneof![Just(0), any::<u8>()], 0..200),
            0..4,
        ),
    ) {
        let _ = Bench::open(&Disk::with_files(files, fastrand::Rng::new()), &roomy());
    }

    #[test]
    fn several_changed_bytes_never_deliver_wrong_data(
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<prop::sample::Index>(), any::<u8>()), 1..5),
    ) {
        let (disk, expected) = written();
        let numbers: Vec<_> = disk.files().into_keys().collect();
        for (file, place, byte) in changes {
            disk.edit(*file.get(&numbers), |bytes| { let at = place.index(bytes.len()); bytes[at] = byte; });
        }
        if let Ok((bench, pending)) = Bench::open(&disk, &small_segments()) {
            prop_assert_eq!(pending.len(), expected.len());
            for message in pending {
                prop_assert_eq!(&bench.read(message.seq).unwrap().body, &expected[&message.seq].body);
            }
        }
    }
}
