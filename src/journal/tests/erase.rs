//! One contact's messages are taken out of the files, and nothing else.

use tokio::sync::oneshot;

use super::disk::{Disk, Trouble};
use super::{
    AppendError, Appended, Bench, Command, ContactKey, NewEntry, Outcome, ReadError, Reference, Seq, dead,
    delivered, entry, seqs, small_segments,
};
use crate::journal::{Erased, Whose};

const CONTACT: u8 = 77;
const WHATSAPPS_NAME: Reference = Reference([9; 16]);

/// A message of the contact that is erased below.
fn theirs(number: u64) -> NewEntry {
    let mut entry = entry(number);
    entry.address.contact = ContactKey([CONTACT; 16]);
    entry.contact = "34600000077".to_owned();
    entry.trace = format!("trace of theirs {number}");
    entry.body = format!("a secret of theirs, number {number}").into();
    entry
}

fn whose() -> Whose {
    Whose {
        channel: None,
        contact: vec![CONTACT; 6],
    }
}

fn erase(bench: &mut Bench, whose: Whose) -> Result<Erased, AppendError> {
    let (reply, mut answer) = oneshot::channel();
    bench.commit(vec![Command::Erase { whose, reply }]);
    answer.try_recv().expect("every command is answered")
}

/// Whether these bytes stand in any file.
fn stands_somewhere(disk: &Disk, text: &str) -> bool {
    let text = text.as_bytes();
    let holds = |file: &Vec<u8>| file.windows(text.len()).any(|window| window == text);
    disk.files().values().any(holds)
}

/// Messages of two contacts over several segments. Of theirs 1 is delivered, 3 is sent, 5 was dropped, 7 is a dead
/// letter, 9 is pending.
fn filled() -> Bench {
    let mut bench = Bench::new(&small_segments());
    for number in 1..=10 {
        let entry = if number % 2 == 1 {
            theirs(number)
        } else {
            entry(number)
        };
        assert_eq!(bench.append(vec![entry]).unwrap(), [Appended::New(Seq(number))]);
    }
    bench.settle(Seq(1)).unwrap();
    let sent = Outcome::Delivered {
        reference: Some(WHATSAPPS_NAME),
    };
    bench.settle_as(Seq(3), sent).unwrap();
    bench.settle_as(Seq(5), dead("Why")).unwrap();
    bench
        .settle_as(Seq(5), Outcome::Dropped { reason: "By".into() })
        .unwrap();
    bench.settle_as(Seq(7), dead("Why")).unwrap();
    bench.settle_as(Seq(2), delivered()).unwrap();
    bench
}

/// What must be so from now on, whatever happens.
fn is_erased(bench: &mut Bench) {
    for gone in [1, 3, 5] {
        let text = format!("a secret of theirs, number {gone}");
        assert!(!stands_somewhere(&bench.disk, &text), "{gone} stands in a file");
        assert!(!stands_somewhere(&bench.disk, &format!("trace of theirs {gone}")));
        assert!(matches!(bench.read(Seq(gone)), Err(ReadError::NotKept(_))));
        assert_eq!(
            bench.append(vec![theirs(gone)]).unwrap(),
            [Appended::Duplicate(Seq(gone))],
            "its id is remembered"
        );
    }
    assert!(bench.writer.shared().state().sent(&WHATSAPPS_NAME).is_none());
    for left in [7, 9] {
        let body = format!("a secret of theirs, number {left}");
        assert_eq!(bench.read(Seq(left)).unwrap().body, body);
    }
    for other in [4, 6, 8, 10] {
        assert_eq!(bench.read(Seq(other)).unwrap().body, format!("body {other}"));
    }
}

#[test]
fn what_nobody_needs_of_a_contact_is_overwritten_and_nothing_else_is() {
    let mut bench = filled();
    let others = |bench: &Bench| stands_somewhere(&bench.disk, "body 2");
    assert!(others(&bench) && stands_somewhere(&bench.disk, "34600000077"));
    let erased = erase(&mut bench, whose()).unwrap();
    assert_eq!((erased.records, erased.sent, erased.left), (3, 1, 2));
    assert!(erased.segments > 1, "{erased:?}");
    is_erased(&mut bench);
    assert!(
        others(&bench),
        "another's was touched, although it is needed no more either"
    );

    let (mut bench, pending) = bench.reopen().unwrap();
    assert_eq!(seqs(&pending), [4, 6, 8, 9, 10]);
    is_erased(&mut bench);
    // With nothing left to do, nothing is written.
    let again = erase(&mut bench, whose()).unwrap();
    assert_eq!((again.records, again.segments, again.left), (0, 0, 2));

    // What was left is erased when it is needed no more.
    bench.settle(Seq(9)).unwrap();
    bench
        .settle_as(Seq(7), Outcome::Dropped { reason: "By".into() })
        .unwrap();
    let rest = erase(&mut bench, whose()).unwrap();
    assert_eq!((rest.records, rest.left), (2, 0));
    assert!(!stands_somewhere(&bench.disk, "34600000077"));
}

#[test]
fn of_another_channel_and_without_a_contact_nothing_is_erased() {
    let mut bench = filled();
    for whose in [
        Whose {
            channel: Some([1; 16]),
            ..whose()
        },
        Whose {
            channel: None,
            contact: Vec::new(),
        },
    ] {
        let erased = erase(&mut bench, whose).unwrap();
        assert_eq!(erased, Erased::default());
    }
    assert!(stands_somewhere(&bench.disk, "a secret of theirs, number 1"));
}

#[test]
fn whenever_the_machine_stops_during_it_nothing_is_lost_and_a_second_call_ends_it() {
    let operations = {
        let mut bench = filled();
        let before = bench.disk.operations();
        erase(&mut bench, whose()).unwrap();
        bench.disk.operations() - before
    };
    assert!(operations > 5, "{operations}");
    for at in 0..operations {
        for seed in 0..4 {
            let mut bench = filled();
            bench.disk.plan(at, Trouble::Stop);
            drop(erase(&mut bench, whose()));
            let disk = bench.disk.after_power_loss(&mut fastrand::Rng::with_seed(seed));
            let (mut bench, pending) = Bench::open(&disk, &small_segments()).unwrap();
            assert_eq!(seqs(&pending), [4, 6, 8, 9, 10], "stopped at {at}, seed {seed}");
            let rest = erase(&mut bench, whose()).unwrap();
            assert_eq!(rest.left, 2);
            is_erased(&mut bench);
        }
    }
}

/// The file was another segment before, and nobody has written there since.
#[test]
fn what_a_file_still_holds_of_the_segment_that_it_was_is_gone_too() {
    let mut bench = filled();
    for number in 11..=16 {
        bench.append(vec![entry(number)]).unwrap();
    }
    let others = bench.disk.files().into_iter().find(|(_, file)| {
        let holds = |text: &[u8]| file.windows(text.len()).any(|window| window == text);
        holds(b"body") && !holds(b"theirs")
    });
    let (number, _) = others.expect("a segment without a message of theirs");
    bench
        .disk
        .edit(number, |file| file.extend_from_slice(b"an old secret of theirs"));
    erase(&mut bench, whose()).unwrap();
    assert!(!stands_somewhere(&bench.disk, "an old secret of theirs"));
    is_erased(&mut bench);
    let (mut bench, pending) = bench.reopen().unwrap();
    assert_eq!(seqs(&pending), [4, 6, 8, 9, 10, 11, 12, 13, 14, 15, 16]);
    is_erased(&mut bench);
}

#[test]
fn damage_is_told_wherever_it_is_and_what_is_damaged_stays_as_it_is() {
    let frames: Vec<usize> = {
        let file = &filled().disk.files()[&1];
        let is_frame = |at: &usize| file[*at..].starts_with(b"FRM2");
        (64..file.len() - 4).step_by(32).filter(is_frame).collect()
    };
    assert!(frames.len() > 1, "{frames:?}");
    for frame in frames {
        // In its header, and in its content.
        for within in [5, 40] {
            let mut bench = filled();
            bench.disk.edit(1, |file| file[frame + within] ^= 1);
            let before = bench.disk.files()[&1].clone();
            let error = erase(&mut bench, whose()).unwrap_err();
            let AppendError::Io(why) = &error else {
                panic!("{error}")
            };
            let place = format!("segment 1 at byte {frame}");
            assert!(why.to_string().starts_with(&place), "{why}");
            assert_eq!(bench.disk.files()[&1], before);
        }
    }
}
