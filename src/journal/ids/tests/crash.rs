//! Crashes: at every file operation and for many seeds, what a run claims is there, and what was never finished is
//! gone.

use super::disk::{Disk, Trouble};
use super::{Born, HOUR_MS, START, find, insert, key, small};
use crate::journal::Seq;
use crate::journal::ids::{Ids, Listed, RunStorage};

/// A life of ten runs and a merge; ends where the disk stops. Says up to which number ids were sealed by then.
fn life(disk: &Disk) -> Seq {
    let mut sealed = Seq(0);
    let Ok(mut ids) = Ids::open(disk, small()) else {
        return sealed;
    };
    for hour in 0..10 {
        insert(&mut ids, hour * 30 + 1..=hour * 30 + 30, at(hour * 30 + 1));
        let Ok(run) = ids.freeze().unwrap().write(disk) else {
            break;
        };
        ids.adopt(run);
        sealed = ids.sealed_through();
        if let Some(merge) = ids.merge() {
            let Ok(run) = merge.write(disk) else { break };
            for file in ids.adopt(run) {
                let _ = disk.remove(file);
            }
        }
    }
    sealed
}

fn at(number: u64) -> u64 {
    START + (number - 1) / 30 * HOUR_MS
}

/// Opens what a crash left, checks every claim, and goes on from there as the journal would.
fn check(disk: &Disk, sealed: Seq, what: &str) {
    let mut ids = Ids::open(disk, small()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let claimed = ids.sealed_through();
    assert!(claimed >= sealed, "{what}: {claimed:?} after {sealed:?}");
    for number in 1..=claimed.0 {
        assert_eq!(
            find(&mut ids, number, at(number)),
            Some(number),
            "{what}: {claimed:?}"
        );
    }
    // The journal's replay inserts the rest; what is written again is written over nothing that counts.
    insert(&mut ids, claimed.0 + 1..=300, at(300));
    if let Some(frozen) = ids.freeze() {
        ids.adopt(frozen.write(disk).unwrap());
    }
    while let Some(merge) = ids.merge() {
        ids.adopt(merge.write(disk).unwrap());
    }
    for number in 1..=300 {
        let born = Born::At(if number > claimed.0 { at(300) } else { at(number) });
        let found = ids.find(&key(number), born, at(300)).unwrap();
        assert_eq!(found, Some(Seq(number)), "{what}");
    }
    assert!(ids.find(&key(301), Born::At(START), START).unwrap().is_none());
    let files = disk.list().unwrap();
    assert!(
        files.iter().all(|file| matches!(file, Listed::Run(_))),
        "{what}: {files:?}"
    );
}

fn operations() -> u64 {
    let disk = Disk::seeded(0);
    assert_eq!(life(&disk), Seq(300));
    disk.operations()
}

#[test]
fn a_crash_at_any_operation_loses_nothing_that_a_run_claims() {
    let operations = operations();
    assert!(operations > 60);
    for operation in 0..operations {
        for seed in 0..12 {
            let mut rng = fastrand::Rng::with_seed(seed * 1_000 + operation);
            let disk = Disk::seeded(rng.u64(..));
            disk.plan(operation, Trouble::Stop);
            let sealed = life(&disk);
            let what = format!("operation {operation}, seed {seed}");
            check(&disk.after_kill(&mut rng), sealed, &what);
            check(&disk.after_power_loss(&mut rng), sealed, &what);
        }
    }
}

/// After a kill the cache may show a run whose name is not durable. A start that counts on it makes it durable.
#[test]
fn what_a_start_counts_on_survives_a_power_loss_after_it() {
    let operations = operations();
    for operation in 0..operations {
        for seed in 0..4 {
            let mut rng = fastrand::Rng::with_seed(seed * 1_000 + operation);
            let disk = Disk::seeded(rng.u64(..));
            disk.plan(operation, Trouble::Stop);
            life(&disk);
            let disk = disk.after_kill(&mut rng);
            let sealed = Ids::open(&disk, small()).unwrap().sealed_through();
            check(
                &disk.after_power_loss(&mut rng),
                sealed,
                &format!("operation {operation}, seed {seed}"),
            );
        }
    }
}

#[test]
fn an_error_at_any_operation_may_be_tried_again() {
    let mut failures = 0;
    for operation in 0..20 {
        let mut rng = fastrand::Rng::with_seed(operation);
        let disk = Disk::seeded(rng.u64(..));
        let mut ids = Ids::open(&disk, small()).unwrap();
        insert(&mut ids, 1..=30, START);
        let frozen = ids.freeze().unwrap();
        disk.plan(operation, Trouble::Error);
        let run = frozen.write(&disk).or_else(|_| {
            failures += 1;
            assert_eq!(find(&mut ids, 30, START), Some(30));
            frozen.write(&disk)
        });
        ids.adopt(run.unwrap());
        for disk in [disk.after_kill(&mut rng), disk.after_power_loss(&mut rng)] {
            let mut ids = Ids::open(&disk, small()).unwrap();
            assert_eq!(ids.sealed_through(), Seq(30));
            assert!((1..=30).all(|number| find(&mut ids, number, START) == Some(number)));
        }
    }
    // create, two writes, sync, rename, sync of the directory
    assert_eq!(failures, 6);
}
