//! The runner over a log of two partitions, each a journal of its own: what it asks of a log is enough for one that is
//! spread over several.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{
    Attempt, Attempted, Deliver, Ended, Event, Failure, Item, LaneKey, Place, Runner, Stats,
    lanes_tests::{channel, limits, settings},
};
use crate::journal::{
    Address, AppendError, Appended, ContactKey, DedupKey, Direction, Entry, Journal, Lane, Log, NewEntry,
    Note, Origin, Outcome, Pending, ReadError, Reference, Sent, Seq,
};

const PARTITIONS: u64 = 2;

/// A lane lies in the partition of its contact; a message's number tells which it is.
#[derive(Clone)]
struct Partitioned(Arc<[Journal]>);

impl Partitioned {
    fn new() -> Self {
        Self((0..PARTITIONS).map(|_| Journal::in_memory()).collect())
    }

    fn of_contact(contact: &ContactKey) -> u64 {
        u64::from(contact.0[0]) % PARTITIONS
    }

    fn journal(&self, partition: u64) -> &Journal {
        &self.0[usize::try_from(partition).unwrap()]
    }

    /// The partition of a message, and its number there.
    fn there(&self, seq: Seq) -> (&Journal, Seq) {
        (self.journal(seq.0 % PARTITIONS), Seq(seq.0 / PARTITIONS))
    }

    fn here(partition: u64, seq: Seq) -> Seq {
        Seq(seq.0 * PARTITIONS + partition)
    }
}

impl Log for Partitioned {
    /// The messages of one call are of one contact here: one partition has all of them, or none.
    async fn append(&self, entries: Vec<NewEntry>) -> Result<Vec<Appended>, AppendError> {
        let partition = Self::of_contact(&entries[0].address.contact);
        let appended = self.journal(partition).append(entries).await?;
        let here = appended.into_iter().map(|one| match one {
            Appended::New(seq) => Appended::New(Self::here(partition, seq)),
            Appended::Duplicate(seq) => Appended::Duplicate(Self::here(partition, seq)),
        });
        Ok(here.collect())
    }

    async fn settle(&self, seq: Seq, outcome: Outcome) -> Result<(), AppendError> {
        let (journal, seq) = self.there(seq);
        journal.settle(seq, outcome).await
    }

    async fn note(&self, seq: Seq, note: Note) -> Result<(), AppendError> {
        let (journal, seq) = self.there(seq);
        journal.note(seq, note).await
    }

    async fn park(&self, lane: Lane, parked: bool) -> Result<(), AppendError> {
        let partition = Self::of_contact(&lane.contact);
        self.journal(partition).park(lane, parked).await
    }

    async fn read(&self, seq: Seq) -> Result<Entry, ReadError> {
        let (journal, there) = self.there(seq);
        let entry = journal.read(there).await?;
        Ok(Entry { seq, ..entry })
    }

    fn noted(&self, seq: Seq) -> Note {
        let (journal, seq) = self.there(seq);
        journal.noted(seq)
    }

    fn parked(&self) -> Vec<Lane> {
        self.0.iter().flat_map(Journal::parked).collect()
    }

    fn references(&self, seq: Seq) -> Vec<Reference> {
        let (journal, seq) = self.there(seq);
        journal.references(seq)
    }

    fn sent(&self, reference: &Reference) -> Option<Sent> {
        (0..PARTITIONS).find_map(|partition| {
            let sent = self.journal(partition).sent(reference)?;
            Some(Sent {
                seq: Self::here(partition, sent.seq),
                ..sent
            })
        })
    }

    fn committed(&self) -> mpsc::UnboundedReceiver<Pending> {
        let (sender, receiver) = mpsc::unbounded_channel();
        for partition in 0..PARTITIONS {
            let (mut feed, sender) = (self.journal(partition).committed(), sender.clone());
            tokio::spawn(async move {
                while let Some(pending) = feed.recv().await {
                    let seq = Self::here(partition, pending.seq);
                    if sender.send(Pending { seq, ..pending }).is_err() {
                        return;
                    }
                }
            });
        }
        receiver
    }
}

/// Fails each message's first attempt, and refuses one message for good.
#[derive(Default)]
struct Peer {
    attempts: Mutex<BTreeMap<Seq, u32>>,
    taken: Mutex<Vec<(u8, u8)>>,
    ended: Mutex<usize>,
}

const REFUSED: (u8, u8) = (3, 1);

impl Deliver for Peer {
    async fn attempt(&self, entry: Entry, _: Attempt) -> Attempted {
        let first = {
            let mut attempts = self.attempts.lock().unwrap();
            let count = attempts.entry(entry.seq).or_default();
            *count += 1;
            *count == 1
        };
        let message = (entry.address.contact.0[0], entry.body[0]);
        if first {
            let failing = Ended::Retry {
                failure: Failure::Failing,
                after: None,
            };
            return failing.into();
        }
        if message == REFUSED {
            return Ended::Fatal { reason: "Refused" }.into();
        }
        self.taken.lock().unwrap().push(message);
        Ended::Delivered { reference: None }.into()
    }

    async fn place(&self, report: Pending) -> Place {
        Place::Lane(LaneKey::of(&report.address))
    }

    fn settled(&self, _: &Item, _: &Outcome) {
        *self.ended.lock().unwrap() += 1;
    }

    fn told(&self, _: &Event) {}

    fn shows(&self, _: Stats) {}
}

#[tokio::test(start_paused = true)]
async fn a_log_of_two_partitions_is_delivered_as_one() {
    const CONTACTS: u8 = 4;
    const EACH: u8 = 3;
    let log = Partitioned::new();
    let peer = Arc::new(Peer::default());
    let accepted = log.committed();
    let (runner, handle) = Runner::new(log.clone(), peer.clone(), limits(), accepted);
    let stop = CancellationToken::new();
    let task = tokio::spawn(runner.run(stop.clone(), Duration::from_secs(1)));
    handle.serves(channel(1), settings());
    let entry = |contact: u8, number: u8| NewEntry {
        address: Address {
            direction: Direction::ToAura,
            channel: *channel(1).as_bytes(),
            environment: [0; 8],
            tag: [0; 6],
            contact: ContactKey([contact; 16]),
        },
        contact: "34600000001".to_owned(),
        dedup: DedupKey([contact * 16 + number; 16]),
        born_ms: None,
        accepted_at_ms: super::runner::wall_ms(),
        request: None,
        trace: String::new(),
        body: Bytes::copy_from_slice(&[number]),
        origin: Origin::Peer,
        set_aside: None,
    };
    let mut seqs = std::collections::BTreeSet::new();
    for number in 0..EACH {
        for contact in 0..CONTACTS {
            let appended = log.append(vec![entry(contact, number)]).await.unwrap();
            let [Appended::New(seq)] = appended[..] else {
                panic!("{appended:?}")
            };
            assert!(seqs.insert(seq), "a number of its own");
        }
    }
    let again = log.append(vec![entry(1, 0)]).await.unwrap();
    assert!(matches!(again[..], [Appended::Duplicate(_)]), "{again:?}");
    while *peer.ended.lock().unwrap() < usize::from(CONTACTS * EACH) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let taken = peer.taken.lock().unwrap().clone();
    for contact in 0..CONTACTS {
        let of: Vec<u8> = taken
            .iter()
            .filter(|(of, _)| *of == contact)
            .map(|(_, n)| *n)
            .collect();
        let expected: Vec<u8> = (0..EACH).filter(|n| (contact, *n) != REFUSED).collect();
        assert_eq!(of, expected, "once and in order");
    }
    let dead: Vec<usize> = log.0.iter().map(|journal| journal.dead_letters().len()).collect();
    assert_eq!(dead, [0, 1], "in its own partition");
    assert!(log.0.iter().all(|journal| journal.stats().pending_to_aura == 0));
    stop.cancel();
    task.await.unwrap();
}
