//! What callers see: group commit, duplicates, settling, segments that go, the lock, closing.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::disk::Disk;
use super::{
    AppendError, Appended, Bench, Command, Direction, HOUR_MS, Journal, NewEntry, Note, OpenError, Options,
    Outcome, ReadError, Reference, START_MS, Seq, Surroundings, dead, delivered, encoded, entry,
    open_threaded, roomy, seqs, small_segments, window,
};
use crate::journal::Backlog;

type Answer = Pin<Box<dyn Future<Output = Vec<Appended>>>>;

fn poll_once<F: Future + Unpin>(future: &mut F) -> Poll<F::Output> {
    Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
}

/// Puts one append per number into the queue, and gives what waits for their answers.
fn ask(journal: &Journal, numbers: impl IntoIterator<Item = u64>) -> Vec<Answer> {
    let answers = numbers.into_iter().map(|number| {
        let journal = journal.clone();
        // Without the runtime's budget: the first poll sends the command.
        let answer =
            tokio::task::unconstrained(async move { journal.append(vec![entry(number)]).await.unwrap() });
        let mut answer: Answer = Box::pin(answer);
        assert!(poll_once(&mut answer).is_pending(), "answered before the sync");
        answer
    });
    answers.collect()
}

/// Waits until the writer has written since `operations`; with syncs held it then stands before the sync.
fn wait_for_write(disk: &Disk, operations: u64) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while disk.operations() == operations {
        assert!(Instant::now() < deadline, "the writer never wrote");
        std::thread::yield_now();
    }
}

#[tokio::test]
async fn the_feed_tells_of_each_message_in_order_and_only_once_it_is_durable() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, roomy());
    let mut feed = journal.committed();
    disk.hold_syncs(true);
    let operations = disk.operations();
    let mut answers = ask(&journal, [0]);
    wait_for_write(&disk, operations);
    answers.extend(ask(&journal, (1..50).chain([0])));
    assert!(feed.try_recv().is_err(), "told before the sync");
    disk.hold_syncs(false);
    for answer in answers {
        answer.await;
    }
    let told: Vec<Seq> = std::iter::from_fn(|| feed.try_recv().ok())
        .map(|pending| pending.seq)
        .collect();
    assert_eq!(told.len(), 50, "a duplicate is not told of again");
    assert!(told.windows(2).all(|pair| pair[0] < pair[1]));
}

#[tokio::test]
async fn what_its_caller_did_not_wait_for_is_recognised_when_it_comes_again() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, Options::default());
    disk.hold_syncs(true);
    drop(ask(&journal, [7]));
    disk.hold_syncs(false);
    assert_eq!(
        journal.append(vec![entry(7)]).await.unwrap(),
        [Appended::Duplicate(Seq(1))]
    );
}

#[tokio::test]
async fn callers_that_wait_together_share_one_commit() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, roomy());
    disk.hold_syncs(true);
    let operations = disk.operations();
    let mut answers = ask(&journal, [1_000]);
    wait_for_write(&disk, operations);
    answers.extend(ask(&journal, 0..200));
    assert!(
        answers.iter_mut().all(|answer| poll_once(answer).is_pending()),
        "answered before the sync"
    );
    assert_eq!(journal.stats().commits, 0);
    disk.hold_syncs(false);
    for answer in answers {
        assert!(matches!(answer.await[..], [Appended::New(_)]));
    }
    let stats = journal.stats();
    assert_eq!((stats.commits, stats.committed_records), (2, 201));
    assert_eq!(
        (stats.pending_to_aura, stats.pending_to_kernel, stats.dedup_ids),
        (101, 100, 201)
    );
}

#[tokio::test]
async fn no_caller_is_answered_before_the_sync() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, roomy());
    disk.hold_syncs(true);
    let operations = disk.operations();
    let mut answer = ask(&journal, [1]).remove(0);
    wait_for_write(&disk, operations);
    assert!(poll_once(&mut answer).is_pending());
    assert!(matches!(journal.read(Seq(1)).await, Err(ReadError::NotKept(_))));
    disk.hold_syncs(false);
    assert_eq!(answer.await, [Appended::New(Seq(1))]);
}

#[tokio::test]
async fn the_same_id_sent_by_many_callers_at_once_is_accepted_once() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, roomy());
    disk.hold_syncs(true);
    let operations = disk.operations();
    let mut answers = ask(&journal, std::iter::repeat_n(1, 50));
    wait_for_write(&disk, operations);
    // Some are in the commit that is under way, some still in the queue.
    assert!(
        answers.iter_mut().all(|answer| poll_once(answer).is_pending()),
        "a duplicate was answered before its original was durable"
    );
    disk.hold_syncs(false);
    let mut new = 0;
    for answer in answers {
        match answer.await[..] {
            [Appended::New(Seq(1))] => new += 1,
            [Appended::Duplicate(Seq(1))] => {}
            ref other => panic!("{other:?}"),
        }
    }
    assert_eq!(new, 1);
}

#[test]
fn a_duplicate_of_a_commit_that_failed_is_not_acknowledged() {
    let mut bench = Bench::new(&roomy());
    bench.disk.break_next_syncs(1);
    let (commands, answers): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (reply, answer) = oneshot::channel();
            (
                Command::Append {
                    entries: encoded([entry(1)]),
                    reply,
                },
                answer,
            )
        })
        .unzip();
    bench.commit(commands);
    for mut answer in answers {
        assert!(answer.try_recv().unwrap().is_err());
    }
}

#[test]
fn duplicates_are_recognised_in_a_batch_in_sequence_and_after_reopening() {
    let mut bench = Bench::new(&roomy());
    let (one, two) = (Seq(1), Seq(2));
    assert_eq!(
        bench.append(vec![entry(1), entry(1), entry(2)]).unwrap(),
        [Appended::New(one), Appended::Duplicate(one), Appended::New(two)]
    );
    let commits = bench.writer.shared().counters().commits;
    assert_eq!(bench.append(vec![entry(2)]).unwrap(), [Appended::Duplicate(two)]);
    assert_eq!(
        bench.writer.shared().counters().commits,
        commits,
        "a duplicate writes nothing"
    );
    bench.settle(one).unwrap();
    let (mut bench, _) = bench.reopen().unwrap();
    assert_eq!(
        bench.append(vec![entry(1), entry(2), entry(3)]).unwrap(),
        [
            Appended::Duplicate(one),
            Appended::Duplicate(two),
            Appended::New(Seq(3))
        ]
    );
    assert_eq!(bench.append(vec![]).unwrap(), []);
}

#[test]
fn an_id_is_remembered_for_its_window_also_across_restarts() {
    let mut bench = Bench::new(&window(2));
    bench.append(vec![entry(1)]).unwrap();
    for minutes in (30..150).step_by(30) {
        let again = entry(1).at(START_MS + minutes * 60_000);
        assert_eq!(bench.append(vec![again]).unwrap(), [Appended::Duplicate(Seq(1))]);
        (bench, _) = bench.reopen().unwrap();
    }
}

#[test]
fn an_id_is_remembered_for_seven_days_but_an_hour_where_nothing_else_is_said() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    bench.settle(Seq(1)).unwrap();
    for hour in 1..7 * 24 {
        // An hour at a time: the clock does not jump. What came before is merged and forgotten as it always is.
        bench.wall.set(START_MS + hour * HOUR_MS);
        bench.append(vec![entry(1000 + hour)]).unwrap();
        bench.keep();
        if hour % 24 == 0 {
            (bench, _) = bench.reopen().unwrap();
        }
    }
    let again = entry(1).at(START_MS + (7 * 24 - 1) * HOUR_MS);
    assert_eq!(bench.append(vec![again]).unwrap(), [Appended::Duplicate(Seq(1))]);
}

#[test]
fn settling_twice_or_an_unknown_message_writes_nothing() {
    let mut bench = Bench::new(&roomy());
    bench.append(vec![entry(1)]).unwrap();
    bench.settle(Seq(1)).unwrap();
    let before = bench.disk.files();
    bench.settle(Seq(1)).unwrap();
    bench.settle(Seq(99)).unwrap();
    assert_eq!(bench.disk.files(), before);
    assert!(matches!(bench.read(Seq(1)), Err(ReadError::NotKept(Seq(1)))));
}

#[test]
fn what_was_pending_comes_back_in_order_and_can_be_settled() {
    let mut bench = Bench::new(&small_segments());
    for number in 1..=20 {
        bench.append(vec![entry(number)]).unwrap();
    }
    for number in [3, 7, 20] {
        bench.settle(Seq(number)).unwrap();
    }
    let (mut bench, pending) = Bench::open(&bench.disk, &small_segments()).unwrap();
    let expected: Vec<u64> = (1..20).filter(|number| ![3, 7].contains(number)).collect();
    assert_eq!(seqs(&pending), expected);
    assert_eq!(pending[0].address, entry(1).address);
    assert_eq!(pending[0].address.direction, Direction::ToKernel);
    assert_eq!(pending[0].request, entry(1).request);
    for seq in expected {
        let message = bench.read(Seq(seq)).unwrap();
        assert_eq!(
            (message.body, message.contact),
            (entry(seq).body, entry(seq).contact)
        );
        bench.settle(Seq(seq)).unwrap();
    }
    let (mut bench, pending) = Bench::open(&bench.disk, &small_segments()).unwrap();
    assert!(pending.is_empty());
    assert_eq!(
        bench.append(vec![entry(30)]).unwrap(),
        [Appended::New(Seq(21))],
        "numbers are never used twice"
    );
}

/// Lets an hour end: then ids go to the disk, and a commit later the segments that only they needed.
fn an_hour_later(bench: &mut Bench) {
    for _ in 0..2 {
        bench.wall.set(bench.wall.now() + HOUR_MS / 2);
        bench.keep();
    }
    bench.keep();
    bench.keep();
}

#[test]
fn segments_roll_over_and_go_from_the_front_when_nobody_needs_them_and_ids_are_on_the_disk() {
    let mut bench = Bench::new(&small_segments());
    for number in 1..=5 {
        bench.append(vec![entry(number).with_body(vec![1; 600])]).unwrap();
    }
    assert_eq!(bench.disk.files().len(), 5, "each commit filled a segment");
    for number in [1, 2, 3, 5] {
        bench.settle(Seq(number)).unwrap();
    }
    assert_eq!(bench.disk.removed(), [] as [u64; 0], "only the log has their ids");
    an_hour_later(&mut bench);
    assert_eq!(bench.disk.removed()[..3], [1, 2, 3]);
    let again = entry(1).at(bench.wall.now());
    assert_eq!(bench.append(vec![again]).unwrap(), [Appended::Duplicate(Seq(1))]);
    let (bench, pending) = bench.reopen().unwrap();
    assert_eq!(seqs(&pending), [4]);
    assert_eq!(bench.read(Seq(4)).unwrap().body.len(), 600);
}

#[test]
fn what_is_stuck_is_written_again_and_does_not_keep_old_segments() {
    let mut bench = Bench::new(&small_segments());
    let reference = Some(Reference([8; 16]));
    for number in 1..=40 {
        bench.append(vec![entry(number).with_body(vec![1; 500])]).unwrap();
    }
    let note = Note {
        attempts: 3,
        parts: 1,
        unknown: true,
        begun: false,
        told: 0,
    };
    bench.note(Seq(1), note).unwrap();
    // Of two parts: each has a reference of its own.
    let first_sent = Note {
        parts: 1,
        ..Note::default()
    };
    bench
        .note_part(Seq(3), first_sent, 0, Reference([7; 16]))
        .unwrap();
    bench.settle_as(Seq(2), dead("TooOld")).unwrap();
    bench.settle_as(Seq(3), Outcome::Delivered { reference }).unwrap();
    // That a late note of an attempt takes back nothing is as true after a restart.
    for told in [4, 2] {
        let note = Note {
            attempts: 9,
            told,
            ..Note::default()
        };
        bench.note(Seq(3), note).unwrap();
    }
    for number in 4..=40 {
        bench.settle(Seq(number)).unwrap();
    }
    for _ in 0..4 {
        an_hour_later(&mut bench);
    }
    assert!(bench.disk.removed().contains(&1), "{:?}", bench.disk.removed());
    assert!(bench.disk.files().len() < 12, "{:?}", bench.disk.files().keys());
    let check = |bench: &Bench| {
        for seq in 1..=3 {
            let message = bench.read(Seq(seq)).unwrap();
            assert_eq!(message.contact, entry(seq).contact);
            assert_eq!(message.trace, entry(seq).trace);
            assert_eq!(message.body.len(), 500);
        }
        let shared = bench.writer.shared();
        let state = shared.state();
        assert_eq!(state.note(Seq(1)), note);
        assert_eq!(state.dead_letters()[0].reason, "TooOld");
        let sent = |n: u8| state.sent(&Reference([n; 16])).map(|sent| (sent.seq, sent.part));
        assert_eq!((sent(7), sent(8)), (Some((Seq(3), 0)), Some((Seq(3), 1))));
        assert_eq!(state.references(Seq(3)), [Reference([7; 16]), Reference([8; 16])]);
        let note = state.note(Seq(3));
        assert_eq!((note.attempts, note.parts, note.told), (0, 1, 4));
    };
    check(&bench);
    let (bench, pending) = bench.reopen().unwrap();
    assert_eq!(seqs(&pending), [1]);
    assert_eq!(pending[0].note, note);
    check(&bench);
}

#[test]
fn a_dead_letter_is_kept_for_its_time_and_can_be_dropped_before() {
    let mut bench = Bench::new(&Options {
        dead_letter_retention: Duration::from_secs(2 * 3600),
        ..small_segments()
    });
    bench.append(vec![entry(1), entry(2), entry(3)]).unwrap();
    for seq in 1..=3 {
        bench.settle_as(Seq(seq), dead("RefusedByAura")).unwrap();
    }
    let reason = "ByHand".to_owned();
    bench.settle_as(Seq(2), Outcome::Dropped { reason }).unwrap();
    let kept = |bench: &Bench| -> Vec<u64> {
        let dead = bench.writer.shared().state().dead_letters();
        dead.iter().map(|dead| dead.seq.0).collect()
    };
    assert_eq!(kept(&bench), [1, 3]);
    bench.settle(Seq(1)).unwrap();
    assert_eq!(kept(&bench), [1, 3], "it ended once");
    an_hour_later(&mut bench);
    assert_eq!(kept(&bench), [1, 3]);
    an_hour_later(&mut bench);
    an_hour_later(&mut bench);
    assert_eq!(kept(&bench), [] as [u64; 0]);
    let (bench, _) = bench.reopen().unwrap();
    assert_eq!(kept(&bench), [] as [u64; 0]);
    assert!(matches!(bench.read(Seq(1)), Err(ReadError::NotKept(_))));
}

#[test]
fn after_a_jump_of_the_clock_nothing_expires_for_an_hour() {
    let mut bench = Bench::new(&Options {
        dead_letter_retention: Duration::from_secs(2 * 3600),
        ..small_segments()
    });
    bench.append(vec![entry(1)]).unwrap();
    bench.settle_as(Seq(1), dead("RefusedByAura")).unwrap();
    bench.wall.set(START_MS + 50 * 24 * HOUR_MS);
    bench.keep();
    let (mut bench, _) = bench.reopen().unwrap();
    bench.keep();
    assert_eq!(bench.writer.shared().state().dead_letter_count(), 1);
    let born_ms = Some(START_MS);
    let again = NewEntry { born_ms, ..entry(1) };
    assert_eq!(bench.append(vec![again]).unwrap(), [Appended::Duplicate(Seq(1))]);
}

#[test]
fn a_message_that_is_set_aside_is_a_dead_letter_at_once_and_nobody_is_told_of_it() {
    let mut bench = Bench::new(&small_segments());
    let mut feed = bench.writer.shared().feed();
    let set_aside = Some("OlderThanRemembered");
    bench
        .append(vec![
            NewEntry {
                set_aside,
                ..entry(1)
            },
            entry(2),
        ])
        .unwrap();
    assert_eq!(feed.try_recv().unwrap().seq, Seq(2));
    let (bench, pending) = bench.reopen().unwrap();
    assert_eq!(seqs(&pending), [2]);
    let dead = bench.writer.shared().state().dead_letters();
    assert_eq!(
        (dead[0].seq, dead[0].reason.as_str()),
        (Seq(1), "OlderThanRemembered")
    );
}

#[test]
fn sent_messages_are_known_by_their_reference_until_they_are_too_many_or_too_old() {
    let mut bench = Bench::new(&Options {
        sent_max: 2,
        sent_retention: Duration::from_secs(3600),
        ..small_segments()
    });
    let reference = |n| Reference([n; 16]);
    for n in 1..=3_u8 {
        bench.append(vec![entry(u64::from(n))]).unwrap();
        let outcome = Outcome::Delivered {
            reference: Some(reference(n)),
        };
        bench.settle_as(Seq(u64::from(n)), outcome).unwrap();
    }
    bench.keep();
    let known = |bench: &Bench, n| {
        bench
            .writer
            .shared()
            .state()
            .sent(&reference(n))
            .map(|sent| sent.seq.0)
    };
    assert_eq!([1, 2, 3].map(|n| known(&bench, n)), [None, Some(2), Some(3)]);
    assert_eq!(bench.read(Seq(3)).unwrap().body, entry(3).body);
    let (mut bench, pending) = bench.reopen().unwrap();
    assert!(pending.is_empty());
    assert_eq!(known(&bench, 3), Some(3));
    an_hour_later(&mut bench);
    an_hour_later(&mut bench);
    assert_eq!([2, 3].map(|n| known(&bench, n)), [None, None]);
}

#[test]
fn one_channel_that_has_its_share_is_told_so_and_others_go_on() {
    let mut bench = Bench::new(&Options {
        max_bytes: 100_000,
        channel_share: 10,
        environment_share: 15,
        preallocate: false,
        ..roomy()
    });
    let of = |number, channel| {
        let mut made = entry(number).with_body(vec![1; 3000]);
        made.address.channel = [channel; 16];
        made
    };
    for number in 0..3 {
        bench.append(vec![of(number, 1)]).unwrap();
    }
    let full = bench.append(vec![of(3, 1)]).unwrap_err();
    assert!(matches!(full, AppendError::ChannelFull) && full.retryable());
    bench.append(vec![of(4, 2)]).unwrap();
    let both = bench.append(vec![of(5, 2)]).unwrap_err();
    assert!(matches!(both, AppendError::EnvironmentFull), "{both}");
    assert_eq!(
        bench.append(vec![of(0, 1)]).unwrap(),
        [Appended::Duplicate(Seq(1))],
        "what is known takes no room"
    );
    bench.settle(Seq(1)).unwrap();
    bench.append(vec![of(3, 1)]).unwrap();
    let backlogs = bench.writer.shared().state().backlogs();
    let of_first = backlogs
        .iter()
        .find(|backlog| backlog.channel == [1; 16])
        .unwrap();
    assert_eq!((of_first.pending, of_first.dead_letters), (3, 0));
}

#[test]
fn a_dead_letter_keeps_its_room_until_somebody_has_looked_at_it_and_sending_it_again_takes_no_more() {
    let mut bench = Bench::new(&Options {
        max_bytes: 100_000,
        channel_share: 10,
        environment_share: 100,
        preallocate: false,
        ..roomy()
    });
    let of = |number, channel| {
        let mut made = entry(number).with_body(vec![1; 3000]);
        made.address.channel = [channel; 16];
        made
    };
    for number in 1..=3 {
        bench.append(vec![of(number, 1)]).unwrap();
        bench.settle_as(Seq(number), dead("Why")).unwrap();
    }
    let full = bench.append(vec![of(4, 1)]).unwrap_err();
    assert!(matches!(full, AppendError::ChannelFull), "{full}");
    bench.append(vec![of(5, 2)]).unwrap();
    // As a start finds it.
    let (mut bench, _) = bench.reopen().unwrap();
    let full = bench.append(vec![of(4, 1)]).unwrap_err();
    assert!(matches!(full, AppendError::ChannelFull), "{full}");
    let again = bench.replay(Seq(1), of(1, 1)).unwrap();
    assert_eq!(again, [Appended::New(Seq(5))]);
    let full = bench.append(vec![of(4, 1)]).unwrap_err();
    assert!(
        matches!(full, AppendError::ChannelFull),
        "it waits now, in the same room"
    );
    let outcome = Outcome::Dropped { reason: "By".into() };
    bench.settle_as(Seq(2), outcome).unwrap();
    bench.append(vec![of(4, 1)]).unwrap();
}

#[test]
fn beyond_the_number_of_sent_messages_whoever_has_most_of_them_pays() {
    let mut bench = Bench::new(&Options {
        sent_max: 4,
        ..small_segments()
    });
    let reference = |n: u64| Reference([u8::try_from(n).unwrap(); 16]);
    let send = |bench: &mut Bench, number: u64, channel: u8| {
        let mut made = entry(number);
        made.address.channel = [channel; 16];
        bench.append(vec![made]).unwrap();
        let reference = Some(reference(number));
        bench
            .settle_as(Seq(number), Outcome::Delivered { reference })
            .unwrap();
    };
    let known = |bench: &mut Bench| -> Vec<u64> {
        bench.keep();
        let state = bench.writer.shared();
        (1..=9)
            .filter(|n| state.state().sent(&reference(*n)).is_some())
            .collect()
    };
    send(&mut bench, 1, 1);
    for number in 2..=6 {
        send(&mut bench, number, 2);
    }
    assert_eq!(
        known(&mut bench),
        [1, 4, 5, 6],
        "the quiet one is the oldest, and stays"
    );
    let (mut bench, _) = bench.reopen().unwrap();
    assert_eq!(known(&mut bench), [1, 4, 5, 6]);
    for number in 7..=9 {
        send(&mut bench, number, 1);
    }
    assert_eq!(known(&mut bench), [5, 6, 8, 9]);
}

#[test]
fn restarts_without_work_leave_no_files_behind() {
    let disk = Disk::default();
    for _ in 0..20 {
        Bench::open(&disk, &roomy()).unwrap();
    }
    assert_eq!(disk.files().len(), 1);
    let (mut bench, _) = Bench::open(&disk, &roomy()).unwrap();
    bench.append(vec![entry(1)]).unwrap();
    for _ in 0..20 {
        assert_eq!(seqs(&Bench::open(&disk, &roomy()).unwrap().1), [1]);
    }
    assert_eq!(disk.files().len(), 2);
}

#[tokio::test]
async fn real_files_keep_what_was_acknowledged_and_a_second_process_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/journal");
    let (journal, pending) = Journal::open(&path, small_segments(), Surroundings::default()).unwrap();
    assert!(pending.is_empty());
    for number in 1..=10 {
        journal.append(vec![entry(number)]).await.unwrap();
    }
    journal
        .settle(
            Seq(1),
            Outcome::DeadLetter {
                reason: "ChannelDeleted".into(),
            },
        )
        .await
        .unwrap();
    assert_eq!(journal.stats().dead_letters, 1);
    assert!(journal.stats().segments > 1);

    let error = Journal::open(&path, small_segments(), Surroundings::default()).unwrap_err();
    assert!(matches!(&error, OpenError::Locked(locked) if *locked == path));
    assert!(
        error.to_string().ends_with("is in use by another process"),
        "{error}"
    );

    let other = journal.clone();
    journal.close().await;
    assert!(matches!(
        other.append(vec![entry(11)]).await,
        Err(AppendError::Closed)
    ));
    let (journal, pending) = Journal::open(&path, small_segments(), Surroundings::default()).unwrap();
    assert_eq!(seqs(&pending), (2..=10).collect::<Vec<_>>());
    assert_eq!(journal.read(Seq(5)).await.unwrap().body, entry(5).body);
    assert_eq!(journal.stats().dead_letters, 1);
    journal.close().await;
}

#[tokio::test]
async fn closing_carries_out_what_was_asked_before() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, roomy());
    disk.hold_syncs(true);
    let answers = ask(&journal, 0..20);
    let mut closing = Box::pin(tokio::task::unconstrained(journal.close()));
    assert!(poll_once(&mut closing).is_pending());
    disk.hold_syncs(false);
    for answer in answers {
        assert!(matches!(answer.await[..], [Appended::New(_)]));
    }
    closing.await;
    assert_eq!(open_threaded(&disk, roomy()).1.len(), 20);
}

#[test]
fn a_journal_in_memory_answers_at_once_without_thread_timer_or_runtime() {
    fn now<T>(future: impl Future<Output = T>) -> T {
        match pin!(future).poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(value) => value,
            Poll::Pending => panic!("it waits"),
        }
    }
    let journal = Journal::in_memory();
    assert_eq!(
        now(journal.append(vec![entry(1)])).unwrap(),
        [Appended::New(Seq(1))]
    );
    assert_eq!(
        now(journal.append(vec![entry(1)])).unwrap(),
        [Appended::Duplicate(Seq(1))]
    );
    assert_eq!(now(journal.read(Seq(1))).unwrap().body, entry(1).body);
    now(journal.settle(Seq(1), delivered())).unwrap();
    let other = journal.clone();
    now(journal.close());
    assert!(matches!(
        now(other.settle(Seq(1), delivered())),
        Err(AppendError::Closed)
    ));
}

#[test]
fn debug_output_shows_no_contact_and_no_body() {
    let shown = format!("{:?}", entry(1));
    assert!(
        !shown.contains("contact-1") && !shown.contains("body 1"),
        "{shown}"
    );
}

/// When each channel's oldest message was accepted, in seconds after the first one.
fn oldest(bench: &Bench) -> Vec<(u8, u64)> {
    let shared = bench.writer.shared();
    let mut state = shared.state();
    // Two at a time: what one look did not find, the next one goes on from.
    while !state.find_oldest(2) {}
    let backlogs = state.backlogs();
    let of = |backlog: &Backlog| Some((backlog.channel[0], backlog.oldest_accepted_s? - START_MS / 1000));
    let mut oldest: Vec<_> = backlogs.iter().filter_map(of).collect();
    oldest.sort_unstable();
    oldest
}

#[test]
fn the_age_of_each_channels_oldest_message_is_known_whatever_is_settled_first() {
    let disk = Disk::default();
    let (mut bench, _) = Bench::open(&disk, &roomy()).unwrap();
    assert_eq!(oldest(&bench), []);
    let of = |number: u64, channel: u8| {
        let mut made = entry(number).at(START_MS + number * 1000);
        made.address.channel = [channel; 16];
        made
    };
    // Channels by turns: 1, 2, 3, 1, 2, 3, …
    for number in 1..=30 {
        let channel = u8::try_from((number - 1) % 3 + 1).unwrap();
        bench.append(vec![of(number, channel)]).unwrap();
    }
    assert_eq!(oldest(&bench), [(1, 1), (2, 2), (3, 3)]);
    for seq in [1, 7, 4, 2] {
        bench.settle(Seq(seq)).unwrap();
    }
    assert_eq!(oldest(&bench), [(1, 10), (2, 5), (3, 3)]);
    bench.settle_as(Seq(3), dead("TooOld")).unwrap();
    assert_eq!(
        oldest(&bench),
        [(1, 10), (2, 5), (3, 6)],
        "a dead letter does not wait"
    );
    for seq in (1..=30).filter(|seq| seq % 3 == 1) {
        bench.settle(Seq(seq)).unwrap();
    }
    assert_eq!(oldest(&bench), [(2, 5), (3, 6)]);
    bench.append(vec![of(40, 1)]).unwrap();
    assert_eq!(oldest(&bench), [(1, 40), (2, 5), (3, 6)]);
    drop(bench);
    let (bench, _) = Bench::open(&disk, &roomy()).unwrap();
    assert_eq!(oldest(&bench), [(1, 40), (2, 5), (3, 6)], "also after a restart");
}
