//! The runner with a journal in memory and paused time: what the lanes decide is carried out and recorded.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{
    Attempt, Attempted, ContactKey, DRAIN, Deliver, Dropped, Ended, Event, Failure, Item, LaneKey, Place,
    RequestId, Runner, RunnerHandle, Stats,
    lanes_tests::{channel, limits, settings},
    reason,
};
use crate::journal::{
    Address, Appended, DedupKey, Direction, Entry, Journal, NewEntry, Note, Origin, Outcome, Pending,
    Reference, Seq,
};

/// Delivers what it is told to, in turn; then everything.
#[derive(Default)]
struct Script {
    results: Mutex<VecDeque<Ended>>,
    attempts: Mutex<Vec<(Seq, Attempt, Instant)>>,
    /// Whether the journal said at each attempt that the message may have arrived.
    noted: Mutex<Vec<bool>>,
    ended: Mutex<Vec<(Seq, Outcome)>>,
    stats: Mutex<Stats>,
    /// What is said of statuses, in turn; then they go to the lane of the contact "a".
    places: Mutex<VecDeque<Place>>,
    placed: Mutex<Vec<(Seq, Instant)>>,
}

impl Deliver for Script {
    async fn place(&self, report: Pending) -> Place {
        self.placed.lock().unwrap().push((report.seq, Instant::now()));
        let next = self.places.lock().unwrap().pop_front();
        next.unwrap_or(Place::Lane(LaneKey {
            direction: Direction::ToAura,
            ..lane("a")
        }))
    }

    async fn attempt(&self, entry: Entry, attempt: Attempt) -> Attempted {
        self.attempts
            .lock()
            .unwrap()
            .push((entry.seq, attempt, Instant::now()));
        self.noted.lock().unwrap().push(entry.note.unknown);
        let next = self.results.lock().unwrap().pop_front();
        next.unwrap_or(Ended::Delivered { reference: None }).into()
    }

    fn settled(&self, item: &Item, outcome: &Outcome) {
        self.ended.lock().unwrap().push((item.seq, outcome.clone()));
    }

    fn told(&self, _: &Event) {}

    fn shows(&self, stats: Stats) {
        *self.stats.lock().unwrap() = stats;
    }
}

fn contact_key(contact: &str) -> ContactKey {
    let mut digest = [0; 16];
    digest[..contact.len()].copy_from_slice(contact.as_bytes());
    ContactKey(digest)
}

struct Bridge {
    journal: Journal,
    script: Arc<Script>,
    handle: RunnerHandle,
    stop: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

impl Bridge {
    fn start(results: impl IntoIterator<Item = Ended>) -> Self {
        Self::start_on(Journal::in_memory(), &[], results)
    }

    fn start_on(journal: Journal, pending: &[Pending], results: impl IntoIterator<Item = Ended>) -> Self {
        let bridge = Self::start_unjudged(journal, pending.to_vec(), results);
        bridge.handle.judged(true);
        bridge
    }

    fn start_unjudged(
        journal: Journal,
        pending: Vec<Pending>,
        results: impl IntoIterator<Item = Ended>,
    ) -> Self {
        let script = Arc::new(Script {
            results: Mutex::new(results.into_iter().collect()),
            ..Script::default()
        });
        let accepted = journal.committed();
        let (runner, handle) = Runner::new(journal.clone(), script.clone(), limits(), accepted);
        let runner = runner.withholding(pending, |_| false);
        let stop = CancellationToken::new();
        let task = tokio::spawn(runner.run(stop.clone(), Duration::from_secs(1)));
        handle.serves(channel(1), settings());
        Self {
            journal,
            script,
            handle,
            stop,
            task,
        }
    }

    /// A status of the message with this reference.
    async fn reports(&self, about: u8, id: u8) -> Seq {
        let entry = NewEntry {
            origin: Origin::Report,
            ..Self::entry(Direction::ToAura, "", about, id)
        };
        self.append(entry).await
    }

    /// A message of a conversation; its request is a byte.
    async fn accepts(&self, direction: Direction, contact: &str, request: u8, id: u8) -> Seq {
        self.append(Self::entry(direction, contact, request, id)).await
    }

    fn entry(direction: Direction, contact: &str, request: u8, id: u8) -> NewEntry {
        NewEntry {
            address: Address {
                direction,
                channel: *channel(1).as_bytes(),
                environment: [0; 8],
                tag: [0; 6],
                contact: contact_key(contact),
            },
            contact: contact.to_owned(),
            dedup: DedupKey([id; 16]),
            born_ms: None,
            accepted_at_ms: super::runner::wall_ms(),
            request: (request > 0).then_some(RequestId([request; 16])),
            trace: String::new(),
            body: Bytes::from_static(b"{}"),
            origin: Origin::Peer,
            set_aside: None,
        }
    }

    async fn append(&self, entry: NewEntry) -> Seq {
        match self.journal.append(vec![entry]).await.unwrap()[..] {
            [Appended::New(seq)] => seq,
            ref other => panic!("{other:?}"),
        }
    }

    /// Waits until so many have ended. Time is paused: it goes on by itself to whatever is due.
    async fn ended(&self, n: usize) -> Vec<(Seq, String)> {
        let all = async {
            loop {
                let ended = self.script.ended.lock().unwrap().clone();
                if ended.len() >= n {
                    return ended;
                }
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        let ended = tokio::time::timeout(Duration::from_secs(3600), all)
            .await
            .unwrap();
        let how = |outcome| match outcome {
            Outcome::Delivered { .. } => "Delivered".to_owned(),
            Outcome::DeadLetter { reason } | Outcome::Dropped { reason } => reason,
        };
        ended
            .into_iter()
            .map(|(seq, outcome)| (seq, how(outcome)))
            .collect()
    }

    async fn stops(self) {
        self.stop.cancel();
        self.task.await.unwrap();
    }
}

fn failing() -> Ended {
    Ended::Retry {
        failure: Failure::Failing,
        after: None,
    }
}

fn lane(contact: &str) -> LaneKey {
    LaneKey {
        direction: Direction::ToKernel,
        channel: channel(1),
        contact: contact_key(contact),
    }
}

#[tokio::test(start_paused = true)]
async fn a_deleted_channel_delivers_for_half_a_minute_and_then_gives_up_what_it_has() {
    let bridge = Bridge::start([Ended::Blocked, Ended::Blocked, Ended::Blocked, Ended::Blocked]);
    // Its credentials are rejected: at first, then no longer.
    let first = bridge.accepts(Direction::ToKernel, "a", 0, 1).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    bridge.handle.deleted(channel(1));
    let start = Instant::now();
    assert_eq!(bridge.ended(1).await, [(first, "Delivered".to_owned())]);
    assert!(start.elapsed() < DRAIN);
    bridge
        .script
        .results
        .lock()
        .unwrap()
        .extend((0..20).map(|_| Ended::Blocked));
    let second = bridge.accepts(Direction::ToKernel, "b", 0, 2).await;
    let ended = bridge.ended(2).await;
    assert_eq!(ended[1], (second, reason::CHANNEL_DELETED.to_owned()));
    let took = start.elapsed();
    assert!(
        took >= DRAIN && took < DRAIN + Duration::from_secs(16),
        "{took:?}"
    );
    assert_eq!(bridge.journal.stats().dead_letters, 1);
    bridge.stops().await;
}

#[tokio::test(start_paused = true)]
async fn replies_leave_in_the_order_of_the_messages_that_they_answer() {
    let bridge = Bridge::start([]);
    let (one, two) = (
        bridge.accepts(Direction::ToAura, "a", 1, 1).await,
        bridge.accepts(Direction::ToAura, "a", 2, 2).await,
    );
    bridge.ended(2).await;
    let late = bridge.accepts(Direction::ToKernel, "a", 2, 3).await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    let early = bridge.accepts(Direction::ToKernel, "a", 1, 4).await;
    let ended = bridge.ended(4).await;
    let order: Vec<Seq> = ended.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(order, [one, two, early, late]);
    bridge.stops().await;
}

#[tokio::test(start_paused = true)]
async fn what_people_ask_is_answered() {
    let bridge = Bridge::start([failing()]);
    let lane = lane("a");
    assert_eq!(bridge.handle.park(lane).await, Some(true));
    let first = bridge.accepts(Direction::ToKernel, "a", 0, 1).await;
    let second = bridge.accepts(Direction::ToKernel, "a", 0, 2).await;
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert!(bridge.script.attempts.lock().unwrap().is_empty());
    assert_eq!(bridge.script.stats.lock().unwrap().parked, 1);
    assert_eq!(bridge.handle.drop_message(first).await, Some(Dropped::Now));
    assert_eq!(bridge.handle.unpark(lane).await, Some(true));
    bridge.ended(1).await;
    // The first attempt fails, and is not waited for.
    while !bridge.handle.retry_now(lane).await.unwrap() {
        assert!(
            bridge.script.attempts.lock().unwrap().len() < 2,
            "it was not waited for"
        );
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let ended = bridge.ended(2).await;
    assert_eq!(
        ended,
        [
            (first, reason::DROPPED.to_owned()),
            (second, "Delivered".to_owned())
        ]
    );
    let attempts = bridge.script.attempts.lock().unwrap().clone();
    assert_eq!(
        attempts
            .iter()
            .map(|(_, attempt, _)| attempt.number)
            .collect::<Vec<_>>(),
        [1, 2]
    );
    assert!(attempts[1].2 - attempts[0].2 < Duration::from_millis(500));
    let handle = bridge.handle.clone();
    bridge.stops().await;
    assert_eq!(handle.unpark(lane).await, None, "it has ended");
}

#[tokio::test(start_paused = true)]
async fn what_is_under_way_when_it_stops_is_recorded_and_nothing_new_begins() {
    let bridge = Bridge::start([]);
    let first = bridge.accepts(Direction::ToKernel, "a", 0, 1).await;
    bridge.accepts(Direction::ToKernel, "a", 0, 2).await;
    while bridge.script.attempts.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let (journal, script) = (bridge.journal.clone(), bridge.script.clone());
    bridge.stops().await;
    let ended = script.ended.lock().unwrap().clone();
    assert!(ended.iter().any(|(seq, _)| *seq == first));
    let pending = usize::try_from(journal.stats().pending_to_kernel).unwrap();
    assert_eq!(pending + ended.len(), 2);
}

#[tokio::test(start_paused = true)]
async fn what_a_next_run_is_to_know_is_written_down() {
    let bridge = Bridge::start([Ended::Unknown, failing()]);
    let seq = bridge.accepts(Direction::ToKernel, "a", 0, 1).await;
    assert_eq!(bridge.handle.park(lane("b")).await, Some(true));
    while bridge.script.attempts.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let note = Note {
        attempts: 2,
        parts: 0,
        unknown: true,
        begun: false,
        told: 0,
    };
    while bridge.journal.read(seq).await.unwrap().note != note {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let journal = bridge.journal.clone();
    assert_eq!(journal.parked().len(), 1);
    bridge.stops().await;
    let pending = left(&journal, seq).await;
    let next = Bridge::start_on(journal, &[pending], []);
    next.ended(1).await;
    let (_, attempt, _) = next.script.attempts.lock().unwrap()[0];
    assert_eq!((attempt.number, attempt.uncertain), (3, true));
    assert_eq!(next.script.stats.lock().unwrap().parked, 1);
    assert_eq!(next.handle.unpark(lane("b")).await, Some(true));
    while !next.journal.parked().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    next.stops().await;
}

#[tokio::test(start_paused = true)]
async fn that_a_reply_may_arrive_is_on_disk_before_it_is_tried_and_taken_back_when_it_did_not() {
    let bridge = Bridge::start([failing()]);
    let mut holds = settings();
    holds.on_unknown_send = crate::api::OnUnknownSend::Hold;
    bridge.handle.serves(channel(1), holds.clone());
    let seq = bridge.accepts(Direction::ToKernel, "a", 0, 1).await;
    let unknown = async |journal: &Journal| journal.read(seq).await.unwrap().note.unknown;
    while bridge.script.attempts.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(*bridge.script.noted.lock().unwrap(), [true]);
    while unknown(&bridge.journal).await {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    bridge.ended(1).await;
    assert_eq!(*bridge.script.noted.lock().unwrap(), [true, true]);
    bridge.stops().await;
}

#[tokio::test(start_paused = true)]
async fn a_reply_whose_send_a_crash_interrupted_is_left_to_a_person() {
    let bridge = Bridge::start([failing()]);
    let seq = bridge.accepts(Direction::ToKernel, "a", 0, 1).await;
    while bridge.script.attempts.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let journal = bridge.journal.clone();
    bridge.stops().await;
    // As a crash leaves it between the record and the answer.
    let mut pending = left(&journal, seq).await;
    pending.note.unknown = true;
    let next = Bridge::start_unjudged(journal, vec![pending], []);
    let mut holds = settings();
    holds.on_unknown_send = crate::api::OnUnknownSend::Hold;
    next.handle.serves(channel(1), holds);
    next.handle.judged(true);
    assert_eq!(next.ended(1).await, [(seq, "UnknownOutcome".to_owned())]);
    assert!(next.script.attempts.lock().unwrap().is_empty());
    next.stops().await;
}

/// Until when, in ms since 1970, something waits that waits ten minutes.
fn in_ten_minutes() -> u64 {
    super::runner::wall_ms() + 600_000
}

#[tokio::test(start_paused = true)]
async fn a_status_waits_for_its_send_and_holds_nobody_meanwhile() {
    let reference = Some(Reference([7; 16]));
    let bridge = Bridge::start([
        Ended::Delivered { reference: None },
        Ended::Delivered { reference },
    ]);
    let wait = Place::WaitForSend(in_ten_minutes());
    bridge.script.places.lock().unwrap().extend([wait.clone(), wait]);
    let (first, second) = (bridge.reports(7, 1).await, bridge.reports(7, 2).await);
    let user = bridge.accepts(Direction::ToAura, "a", 1, 3).await;
    bridge.ended(1).await;
    let sent = bridge.accepts(Direction::ToKernel, "a", 0, 4).await;
    // The third status comes when the send is known: it does not pass those that waited.
    bridge.ended(2).await;
    let third = bridge.reports(7, 5).await;
    let ended = bridge.ended(5).await;
    let order: Vec<Seq> = ended.iter().map(|(seq, _)| *seq).collect();
    assert_eq!(order, [user, sent, first, second, third]);
    let placed = bridge.script.placed.lock().unwrap().clone();
    assert_eq!(placed.len(), 5, "two were looked at twice");
    bridge.stops().await;
}

#[tokio::test(start_paused = true)]
async fn a_status_whose_send_is_never_recorded_is_looked_at_again_when_its_wait_is_over() {
    let bridge = Bridge::start([]);
    let wait = Place::WaitForSend(in_ten_minutes());
    bridge.script.places.lock().unwrap().push_back(wait);
    let start = Instant::now();
    let status = bridge.reports(7, 1).await;
    assert_eq!(bridge.ended(1).await, [(status, "Delivered".to_owned())]);
    let took = start.elapsed();
    // The wall clock, which says until when, goes on a little while time is paused.
    let about_ten_minutes = Duration::from_secs(599)..Duration::from_secs(605);
    assert!(about_ten_minutes.contains(&took), "{took:?}");
    bridge.stops().await;
}

#[tokio::test(start_paused = true)]
async fn a_status_that_is_to_end_ends_and_one_that_waits_can_be_given_up() {
    let bridge = Bridge::start([]);
    let ends = Outcome::Dropped {
        reason: "StatusLate".to_owned(),
    };
    let places = [Place::Ends(ends), Place::WaitForSend(in_ten_minutes())];
    bridge.script.places.lock().unwrap().extend(places);
    let (late, waits) = (bridge.reports(1, 1).await, bridge.reports(2, 2).await);
    bridge.ended(1).await;
    while bridge.script.placed.lock().unwrap().len() < 2 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert_eq!(bridge.handle.drop_message(waits).await, Some(Dropped::Now));
    let ended = bridge.ended(2).await;
    assert_eq!(
        ended,
        [
            (late, "StatusLate".to_owned()),
            (waits, reason::DROPPED.to_owned())
        ]
    );
    assert!(bridge.script.attempts.lock().unwrap().is_empty());
    assert_eq!(bridge.journal.stats().dead_letters, 1);
    bridge.stops().await;
}

#[tokio::test(start_paused = true)]
async fn statuses_that_wait_are_found_again_by_the_next_run() {
    let bridge = Bridge::start([]);
    let wait = Place::WaitForSend(in_ten_minutes());
    bridge.script.places.lock().unwrap().push_back(wait);
    let status = bridge.reports(7, 1).await;
    while bridge.script.placed.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let journal = bridge.journal.clone();
    bridge.stops().await;
    let pending = left(&journal, status).await;
    let next = Bridge::start_on(journal, &[pending], []);
    assert_eq!(next.ended(1).await, [(status, "Delivered".to_owned())]);
    assert_eq!(next.script.placed.lock().unwrap().len(), 1);
    next.stops().await;
}

/// A message that a run has left, as the next one finds it.
async fn left(journal: &Journal, seq: Seq) -> Pending {
    let entry = journal.read(seq).await.unwrap();
    Pending {
        seq,
        address: entry.address,
        accepted_at_ms: entry.accepted_at_ms,
        request: entry.request,
        note: entry.note,
        replayed: entry.replayed,
        origin: entry.origin,
    }
}

fn all(seqs: &[Seq], how: &str) -> Vec<(Seq, String)> {
    seqs.iter().map(|seq| (*seq, how.to_owned())).collect()
}

/// A journal in which a run before has left these, each of a conversation of its own, and the bridge that finds it so.
async fn found(contacts: &[&str]) -> (Vec<Seq>, Bridge) {
    let before = Bridge::start((0..100).map(|_| Ended::Blocked));
    let mut seqs = Vec::new();
    for (id, contact) in contacts.iter().enumerate() {
        let id = u8::try_from(id).unwrap();
        seqs.push(before.accepts(Direction::ToKernel, contact, 0, id).await);
    }
    let journal = before.journal.clone();
    before.stops().await;
    let mut pending = Vec::new();
    for seq in &seqs {
        pending.push(left(&journal, *seq).await);
    }
    (seqs, Bridge::start_unjudged(journal, pending, []))
}

impl Bridge {
    fn withheld(&self) -> usize {
        self.script.stats.lock().unwrap().withheld
    }
}

#[tokio::test(start_paused = true)]
async fn what_a_journal_held_waits_until_it_is_judged_and_only_its_own_conversations_with_it() {
    let (old, bridge) = found(&["a", "b"]).await;
    let behind = bridge.accepts(Direction::ToKernel, "a", 0, 50).await;
    let other = bridge.accepts(Direction::ToKernel, "c", 0, 51).await;
    assert_eq!(bridge.ended(1).await, all(&[other], "Delivered"));
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(
        bridge.script.attempts.lock().unwrap().len(),
        1,
        "and nothing else"
    );
    assert_eq!(
        (bridge.withheld(), bridge.script.stats.lock().unwrap().queued),
        (3, 3)
    );
    bridge.handle.judged(true);
    let mut ended = bridge.ended(4).await.split_off(1);
    let place = |seq: Seq| ended.iter().position(|(ended, _)| *ended == seq);
    assert!(place(old[0]) < place(behind), "in order: {ended:?}");
    ended.sort();
    assert_eq!(ended, all(&[old[0], old[1], behind], "Delivered"));
    bridge.stops().await;
}

#[tokio::test(start_paused = true)]
async fn of_a_rewound_journal_only_what_is_new_is_delivered_until_a_person_has_decided() {
    let (old, bridge) = found(&["a", "b", "c"]).await;
    let behind = bridge.accepts(Direction::ToKernel, "a", 0, 50).await;
    bridge.handle.judged(false);
    let after = bridge.accepts(Direction::ToKernel, "a", 0, 51).await;
    assert_eq!(bridge.ended(2).await, all(&[behind, after], "Delivered"));
    tokio::time::sleep(Duration::from_secs(7200)).await;
    assert_eq!(bridge.script.attempts.lock().unwrap().len(), 2);
    let standing = bridge.handle.standing().await.unwrap();
    assert_eq!(standing.withheld, [(channel(1), 3)].into());

    assert_eq!(bridge.handle.drop_message(old[0]).await, Some(Dropped::Now));
    assert_eq!(bridge.ended(3).await[2], (old[0], reason::DROPPED.to_owned()));
    assert_eq!(
        bridge.handle.release(Some(channel(2))).await,
        Some(vec![]),
        "another's"
    );
    assert_eq!(
        bridge.handle.release(Some(channel(1))).await,
        Some(old[1..].to_vec())
    );
    let mut ended = bridge.ended(5).await.split_off(3);
    ended.sort();
    assert_eq!(ended, all(&old[1..], "Delivered"), "whatever their age");
    assert_eq!(bridge.handle.standing().await.unwrap().withheld, [].into());
    bridge.stops().await;
}

#[tokio::test(start_paused = true)]
async fn a_status_that_a_run_before_left_waits_for_its_send_when_the_journal_is_judged() {
    let before = Bridge::start([]);
    before
        .script
        .places
        .lock()
        .unwrap()
        .push_back(Place::WaitForSend(in_ten_minutes()));
    let status = before.reports(7, 1).await;
    while before.script.placed.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let journal = before.journal.clone();
    before.stops().await;
    let pending = vec![left(&journal, status).await];
    let next = Bridge::start_unjudged(journal, pending, []);
    let wait = Place::WaitForSend(in_ten_minutes());
    next.script.places.lock().unwrap().push_back(wait);
    let start = Instant::now();
    next.handle.judged(true);
    assert_eq!(next.ended(1).await, all(&[status], "Delivered"));
    assert!(
        start.elapsed() > Duration::from_secs(599),
        "{:?}",
        start.elapsed()
    );
    assert_eq!(next.script.placed.lock().unwrap().len(), 2, "it was looked at");
    next.stops().await;
}

#[tokio::test(start_paused = true)]
async fn withheld_messages_that_a_person_gives_up_become_dead_letters_within_bounds() {
    let (old, bridge) = found(&["a", "b"]).await;
    bridge.handle.judged(false);
    assert_eq!(bridge.handle.give_up(None).await, Some(old.clone()));
    let mut ended = bridge.ended(2).await;
    ended.sort();
    assert_eq!(ended, all(&old, reason::DROPPED));
    assert_eq!(bridge.handle.give_up(None).await, Some(vec![]));
    assert_eq!(bridge.journal.stats().dead_letters, 2);
    let new = bridge.accepts(Direction::ToKernel, "a", 0, 50).await;
    assert_eq!(bridge.ended(3).await[2], (new, "Delivered".to_owned()));
    assert_eq!(bridge.script.stats.lock().unwrap().queued, 0);
    bridge.stops().await;
}
