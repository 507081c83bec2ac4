//! How far a journal has got: what the cluster is told.

use proptest::prelude::*;

use super::disk::Disk;
use super::{Bench, Seq, entry, roomy, small_segments};
use crate::lineage::Mark;

impl Bench {
    fn mark(&self) -> Mark {
        super::super::mark(self.writer.shared().counters().end)
    }

    fn found(&self) -> Mark {
        super::super::mark(self.writer.shared().found)
    }
}

#[test]
fn an_empty_journal_has_no_mark_until_something_is_in_it_however_often_it_is_opened() {
    let bench = Bench::new(&roomy());
    assert_eq!((bench.found(), bench.mark()), (Mark::default(), Mark::default()));
    let (bench, _) = bench.reopen().unwrap();
    let (mut bench, _) = bench.reopen().unwrap();
    assert_eq!(bench.found(), Mark::default());
    bench.append(vec![entry(1)]).unwrap();
    assert!(bench.mark() > Mark::default());
}

#[test]
fn a_message_and_its_end_each_move_the_mark_on_and_a_refusal_does_not() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    let accepted = bench.mark();
    bench.settle(Seq(1)).unwrap();
    let settled = bench.mark();
    assert!(settled > accepted, "{accepted} {settled}");
    bench.settle(Seq(1)).unwrap();
    assert_eq!(bench.mark(), settled, "nothing was written");
}

proptest! {
    /// Each commit moves the mark on, also over segments and openings, and a journal is found where it was left: so a copy
    /// from before a commit is told from one from after it.
    #[test]
    fn the_mark_only_grows_and_is_found_again(steps in prop::collection::vec(0_u8..4, 1..60)) {
        let disk = Disk::default();
        let (mut bench, _) = Bench::open(&disk, &small_segments()).unwrap();
        let (mut accepted, mut settled) = (0, 0);
        for step in steps {
            let before = bench.mark();
            match step {
                0 | 1 => {
                    accepted += 1;
                    bench.append(vec![entry(accepted)]).unwrap();
                    prop_assert!(bench.mark() > before);
                }
                2 if settled < accepted => {
                    settled += 1;
                    bench.settle(Seq(settled)).unwrap();
                    prop_assert!(bench.mark() > before);
                }
                // What the writer leaves behind a frame when nobody waits is found as well, and is no commit.
                3 => {
                    bench.writer.mark();
                    bench = bench.reopen().unwrap().0;
                    prop_assert!(bench.found() >= before);
                    prop_assert_eq!(bench.mark(), bench.found());
                }
                _ => {}
            }
        }
    }
}

#[test]
fn a_number_that_is_passed_over_is_not_given_after_a_restart_either() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    bench.writer.shared().state().never_reuse_below(1000);
    bench.append(vec![entry(2)]).unwrap();
    let (bench, pending) = bench.reopen().unwrap();
    assert_eq!(super::seqs(&pending), [1, 1000]);
    assert_eq!(bench.writer.shared().state().next_seq(), 1001);
}
