//! What callers see: group commit, duplicates, settling, segments that go, the lock, closing.

use std::future::Future;
use std::pin::{Pin, pin};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use tokio::sync::oneshot;

use super::disk::Disk;
use super::{
    AppendError, Appended, Bench, Command, Direction, Journal, OpenError, Options, Outcome, ReadError, Seq,
    delivered, entry, open_threaded, seqs, small_segments, window,
};

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
    let (journal, _) = open_threaded(&disk, Options::default());
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
async fn callers_that_wait_together_share_one_commit() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, Options::default());
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
    let (journal, _) = open_threaded(&disk, Options::default());
    disk.hold_syncs(true);
    let operations = disk.operations();
    let mut answer = ask(&journal, [1]).remove(0);
    wait_for_write(&disk, operations);
    assert!(poll_once(&mut answer).is_pending());
    assert!(matches!(
        journal.read(Seq(1)).await,
        Err(ReadError::NotPending(_))
    ));
    disk.hold_syncs(false);
    assert_eq!(answer.await, [Appended::New(Seq(1))]);
}

#[tokio::test]
async fn the_same_id_sent_by_many_callers_at_once_is_accepted_once() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, Options::default());
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
    let mut bench = Bench::new(&Options::default());
    bench.disk.break_next_syncs(1);
    let (commands, answers): (Vec<_>, Vec<_>) = (0..2)
        .map(|_| {
            let (reply, answer) = oneshot::channel();
            (
                Command::Append {
                    entries: vec![entry(1)],
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
    let mut bench = Bench::new(&Options::default());
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
    let (mut bench, _) = Bench::open(&bench.disk, &Options::default()).unwrap();
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
fn an_id_is_forgotten_after_its_window_and_not_before_also_across_a_restart() {
    let disk = Disk::default();
    let (mut bench, _) = Bench::open(&disk, &window(1_000)).unwrap();
    bench
        .append(vec![entry(1).at(5_000), entry(2).at(5_500)])
        .unwrap();
    assert_eq!(
        bench.append(vec![entry(1).at(6_000)]).unwrap(),
        [Appended::Duplicate(Seq(1))]
    );
    let (mut bench, _) = Bench::open(&disk, &window(1_000)).unwrap();
    assert_eq!(
        bench.append(vec![entry(1).at(6_000)]).unwrap(),
        [Appended::Duplicate(Seq(1))]
    );
    assert_eq!(
        bench.append(vec![entry(1).at(6_001)]).unwrap(),
        [Appended::New(Seq(3))]
    );
    let (mut bench, _) = Bench::open(&disk, &window(1_000)).unwrap();
    let again = vec![entry(1).at(6_002), entry(2).at(6_002)];
    assert_eq!(
        bench.append(again).unwrap(),
        [Appended::Duplicate(Seq(3)), Appended::Duplicate(Seq(2))]
    );
    assert_eq!(bench.writer.shared().state().remembered_ids(), 2);
}

#[test]
fn settling_twice_or_an_unknown_message_writes_nothing() {
    let mut bench = Bench::new(&Options::default());
    bench.append(vec![entry(1)]).unwrap();
    bench.settle(Seq(1)).unwrap();
    let before = bench.disk.files();
    bench.settle(Seq(1)).unwrap();
    bench.settle(Seq(99)).unwrap();
    assert_eq!(bench.disk.files(), before);
    assert!(matches!(bench.read(Seq(1)), Err(ReadError::NotPending(Seq(1)))));
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
    assert_eq!(pending[0].contact, "contact-1");
    assert_eq!(pending[0].direction, Direction::ToKernel);
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

#[test]
fn segments_roll_over_and_go_only_from_the_front_when_settled_and_old() {
    let mut bench = Bench::new(&window(1_000));
    for number in 1..=5 {
        bench
            .append(vec![entry(number).at(number).with_body(vec![1; 600])])
            .unwrap();
    }
    assert_eq!(bench.disk.files().len(), 5, "each commit filled a segment");
    for number in [2, 3, 5] {
        bench.settle(Seq(number)).unwrap();
    }
    bench.append(vec![entry(6).at(100_000)]).unwrap();
    assert_eq!(bench.disk.removed(), [] as [u64; 0], "the first is not settled");
    bench.settle(Seq(1)).unwrap();
    bench.append(vec![entry(7).at(100_001)]).unwrap();
    assert_eq!(bench.disk.removed(), [1, 2, 3], "the fourth is not settled");
    let (bench, pending) = Bench::open(&bench.disk, &window(1_000)).unwrap();
    assert_eq!(seqs(&pending), [4, 6, 7]);
    assert_eq!(bench.read(Seq(4)).unwrap().body.len(), 600);

    let mut young = Bench::new(&window(1_000));
    for number in 1..=5 {
        young
            .append(vec![entry(number).at(number).with_body(vec![1; 600])])
            .unwrap();
        young.settle(Seq(number)).unwrap();
    }
    young.append(vec![entry(6).at(1_000)]).unwrap();
    assert_eq!(
        young.disk.removed(),
        [] as [u64; 0],
        "settled but inside the window"
    );
}

#[test]
fn a_full_journal_of_settled_messages_gets_room_when_they_are_old() {
    let mut bench = Bench::new(&Options {
        max_bytes: 3_000,
        ..window(1_000)
    });
    let mut number = 0;
    while bench
        .append(vec![entry(number).at(10).with_body(vec![1; 600])])
        .is_ok()
    {
        number += 1;
    }
    for seq in 1..=number {
        bench.settle(Seq(seq)).unwrap();
    }
    assert!(matches!(
        bench.append(vec![entry(50).at(20).with_body(vec![1; 600])]),
        Err(AppendError::Full)
    ));
    // Refused once more, but its time lets the old ones go.
    assert!(matches!(
        bench.append(vec![entry(50).at(2_000).with_body(vec![1; 600])]),
        Err(AppendError::Full)
    ));
    assert!(
        bench
            .append(vec![entry(50).at(2_001).with_body(vec![1; 600])])
            .is_ok()
    );
}

#[test]
fn restarts_without_work_leave_no_files_behind() {
    let disk = Disk::default();
    for _ in 0..20 {
        Bench::open(&disk, &Options::default()).unwrap();
    }
    assert_eq!(disk.files().len(), 1);
    let (mut bench, _) = Bench::open(&disk, &Options::default()).unwrap();
    bench.append(vec![entry(1)]).unwrap();
    for _ in 0..20 {
        assert_eq!(seqs(&Bench::open(&disk, &Options::default()).unwrap().1), [1]);
    }
    assert_eq!(disk.files().len(), 2);
}

#[tokio::test]
async fn real_files_keep_what_was_acknowledged_and_a_second_process_is_told_so() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a/journal");
    let (journal, pending) = Journal::open(&path, small_segments()).unwrap();
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

    let error = Journal::open(&path, small_segments()).unwrap_err();
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
    let (journal, pending) = Journal::open(&path, small_segments()).unwrap();
    assert_eq!(seqs(&pending), (2..=10).collect::<Vec<_>>());
    assert_eq!(journal.read(Seq(5)).await.unwrap().body, entry(5).body);
    assert_eq!(journal.stats().dead_letters, 1);
    journal.close().await;
}

#[tokio::test]
async fn closing_carries_out_what_was_asked_before() {
    let disk = Disk::default();
    let (journal, _) = open_threaded(&disk, Options::default());
    disk.hold_syncs(true);
    let answers = ask(&journal, 0..20);
    let mut closing = Box::pin(tokio::task::unconstrained(journal.close()));
    assert!(poll_once(&mut closing).is_pending());
    disk.hold_syncs(false);
    for answer in answers {
        assert!(matches!(answer.await[..], [Appended::New(_)]));
    }
    closing.await;
    assert_eq!(open_threaded(&disk, Options::default()).1.len(), 20);
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
