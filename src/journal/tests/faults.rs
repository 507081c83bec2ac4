//! Failed syncs, failed writes and full disks: nothing is acknowledged in between, and the journal goes on.

use super::disk::{Disk, Trouble};
use super::{AppendError, Appended, Bench, Options, Seq, entry, roomy, seqs, small_segments};
use crate::journal::storage::Storage as _;

#[test]
fn a_failed_sync_is_final_for_its_file_and_the_journal_goes_on_in_a_new_one() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    let sealed_at = bench.disk.files()[&1].len() as u64;
    bench.disk.break_next_syncs(1);
    let error = bench.append(vec![entry(2)]).unwrap_err();
    assert!(
        matches!(error, AppendError::Io(_)) && error.retryable(),
        "{error}"
    );

    let failed = bench.disk.files()[&1].clone();
    assert_eq!(bench.append(vec![entry(3)]).unwrap(), [Appended::New(Seq(3))]);
    let files = bench.disk.files();
    assert_eq!(files[&1], failed, "the failed file was written again");
    assert_eq!(files[&2][32..40], 1_u64.to_le_bytes());
    assert_eq!(
        files[&2][40..48],
        sealed_at.to_le_bytes(),
        "sealed at the last synced byte"
    );
    // The sender comes back with the one that failed: it is new, not a duplicate of something that is not there.
    assert_eq!(bench.append(vec![entry(2)]).unwrap(), [Appended::New(Seq(4))]);

    for seed in 0..20 {
        let after = bench.disk.after_power_loss(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(seqs(&Bench::open(&after, &roomy()).unwrap().1), [1, 3, 4]);
    }
    let after = bench.disk.after_kill(&mut fastrand::Rng::with_seed(0));
    assert_eq!(seqs(&Bench::open(&after, &roomy()).unwrap().1), [1, 3, 4]);
}

#[test]
fn while_syncs_fail_nothing_is_acknowledged_not_even_in_new_files() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    bench.disk.break_next_syncs(10);
    for number in 2..7 {
        assert!(bench.append(vec![entry(number)]).is_err());
        assert!(bench.settle(Seq(1)).is_err());
    }
    assert_eq!(
        bench.append(vec![entry(1)]).unwrap(),
        [Appended::Duplicate(Seq(1))],
        "it is durable already"
    );
    bench.disk.break_next_syncs(0);
    bench.settle(Seq(1)).unwrap();
    let after = bench.disk.after_power_loss(&mut fastrand::Rng::with_seed(3));
    assert!(Bench::open(&after, &roomy()).unwrap().1.is_empty());
}

#[test]
fn what_only_the_page_cache_holds_after_a_failed_sync_is_not_trusted_by_the_next_start() {
    for seed in 0..50 {
        let disk = Disk::seeded(seed);
        let (mut bench, _) = Bench::open(&disk, &roomy()).unwrap();
        bench.disk.break_next_syncs(1);
        assert!(bench.append(vec![entry(1)]).is_err());
        // The process dies before it seals the file; the cache still shows the message.
        let killed = disk.after_kill(&mut fastrand::Rng::with_seed(seed));
        let (mut bench, _) = Bench::open(&killed, &roomy()).unwrap();
        let [Appended::New(seq) | Appended::Duplicate(seq)] = bench.append(vec![entry(1)]).unwrap()[..]
        else {
            panic!("one answer")
        };
        let after = killed.after_power_loss(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(
            seqs(&Bench::open(&after, &roomy()).unwrap().1),
            [seq.0],
            "seed {seed}"
        );
    }
}

#[test]
fn a_full_disk_answers_full_and_recovers_without_a_restart() {
    for seed in 0..50 {
        let disk = Disk::seeded(seed);
        let (mut bench, _) = Bench::open(&disk, &roomy()).unwrap();
        bench.append(vec![entry(1)]).unwrap();
        disk.set_full(true);
        for number in 2..200 {
            assert!(matches!(
                bench.append(vec![entry(number)]),
                Err(AppendError::Full)
            ));
        }
        assert!(matches!(bench.settle(Seq(1)), Err(AppendError::Full)));
        assert_eq!(bench.read(Seq(1)).unwrap().body, entry(1).body);
        assert!(
            disk.files().len() <= 3,
            "a full disk must not fill with empty segments"
        );
        disk.set_full(false);
        bench.settle(Seq(1)).unwrap();
        let Appended::New(seq) = bench.append(vec![entry(2)]).unwrap()[0] else {
            panic!("new")
        };
        let after = disk.after_power_loss(&mut fastrand::Rng::with_seed(seed));
        assert_eq!(
            seqs(&Bench::open(&after, &roomy()).unwrap().1),
            [seq.0],
            "seed {seed}"
        );
    }
}

#[test]
fn a_disk_that_takes_headers_but_no_frames_does_not_fill_with_segments() {
    let mut bench = Bench::new(&roomy());
    for number in 1..100 {
        // Four operations start the file and one removes the file before it; then the frame's write fails.
        bench.disk.plan(if number == 1 { 0 } else { 5 }, Trouble::NoSpace);
        assert!(
            matches!(bench.append(vec![entry(number)]), Err(AppendError::Full)),
            "{number}"
        );
    }
    assert!(bench.disk.files().len() <= 3, "{:?}", bench.disk.files().keys());
    bench.append(vec![entry(100)]).unwrap();
    let after = bench.disk.after_power_loss(&mut fastrand::Rng::with_seed(3));
    assert_eq!(Bench::open(&after, &roomy()).unwrap().1.len(), 1);
}

#[test]
fn a_journal_opens_on_a_full_disk_and_reads_what_is_pending() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    let disk = bench.disk.after_power_loss(&mut fastrand::Rng::with_seed(0));
    disk.set_full(true);
    let (mut bench, pending) = Bench::open(&disk, &roomy()).unwrap();
    assert_eq!(seqs(&pending), [1]);
    assert_eq!(bench.read(Seq(1)).unwrap().body, entry(1).body);
    assert!(matches!(bench.append(vec![entry(2)]), Err(AppendError::Full)));
    disk.set_full(false);
    bench.settle(Seq(1)).unwrap();
}

#[test]
fn beyond_max_bytes_appends_are_full_and_settling_goes_on() {
    let options = Options {
        max_bytes: 1_200,
        ..small_segments()
    };
    let options = Options {
        segment_bytes: 2_000,
        ..options
    };
    let mut bench = Bench::new(&options);
    bench.append(vec![entry(1).with_body(vec![1; 500])]).unwrap();
    let batch = vec![entry(1), entry(2).with_body(vec![1; 600])];
    assert!(matches!(bench.append(batch), Err(AppendError::Full)));
    assert_eq!(
        bench.append(vec![entry(1)]).unwrap(),
        [Appended::Duplicate(Seq(1))]
    );
    bench.settle(Seq(1)).unwrap();
    assert_eq!(
        bench.append(vec![entry(3)]).unwrap(),
        [Appended::New(Seq(2))],
        "the refused batch used no number"
    );
    assert!(bench.writer.shared().state().bytes() <= options.max_bytes);
}

#[test]
fn what_is_too_large_is_refused_for_good() {
    let mut bench = Bench::new(&Options {
        max_body_bytes: 1 << 20,
        ..roomy()
    });
    let body = |len| entry(1).with_body(vec![1; len]);
    let error = bench.append(vec![body((1 << 20) + 1)]).unwrap_err();
    assert!(matches!(error, AppendError::TooLarge) && !error.retryable());
    let mut long = entry(1);
    long.contact = "x".repeat(65);
    assert!(matches!(bench.append(vec![long]), Err(AppendError::TooLarge)));
    assert!(
        matches!(bench.append(vec![body(1 << 20); 4]), Err(AppendError::TooLarge)),
        "the batch's sum"
    );
    assert_eq!(
        bench.append(vec![body(1 << 20)]).unwrap(),
        [Appended::New(Seq(1))]
    );
}

/// Of a write that failed the whole frame may be there, if what is missing is of the zeros at its end: a file that has it
/// may leave the chain only when that is cut off, for good.
#[test]
fn a_frame_that_was_almost_written_into_an_empty_segment_is_no_damage_later() {
    // The write fails alone; so does cutting off what it left; so does syncing the cut.
    for further in [None, Some(1), Some(2)] {
        for seed in 0..64 {
            let disk = Disk::seeded(seed);
            // The file has its zeros already.
            disk.prepare(4096).unwrap();
            let (mut bench, _) = Bench::open(&disk, &roomy()).unwrap();
            disk.plan(0, Trouble::AlmostAll);
            if let Some(after) = further {
                disk.plan(after, Trouble::Error);
            }
            let mut almost = entry(1);
            // Of each length, so that all numbers of zeros come up.
            almost.body = vec![b'x'; usize::try_from(seed % 32).unwrap()].into();
            assert!(bench.append(vec![almost]).is_err());
            let [Appended::New(seq)] = bench.append(vec![entry(2)]).unwrap()[..] else {
                panic!("one answer")
            };
            let rng = &mut fastrand::Rng::with_seed(seed);
            for after in [disk.after_power_loss(rng), disk.after_kill(rng)] {
                let (_, pending) = Bench::open(&after, &roomy()).unwrap_or_else(|error| panic!("{error}"));
                assert_eq!(seqs(&pending), [seq.0], "{further:?}, seed {seed}");
            }
        }
    }
}
