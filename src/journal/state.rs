//! What the journal knows in memory: where each message lies that somebody still needs, and what each segment holds.
//! Pure; replay and the writer change it by the same function, so a restart knows what the writer knew.
//!
//! Not for bytes or files (bodies stay on disk) and not for remembered ids (`ids/`). Upholds law 4 (what a channel and
//! an environment take of the journal is counted) and law 11: a message takes about 60 bytes here.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

// What is hashed here are numbers of our own and keyed digests: nobody outside can choose them.
use foldhash::{HashMap, HashMapExt, HashSet, HashSetExt};

use super::format::{Accepted, Link, Place, Record, Salt};
use super::{Address, DeadLetter, Direction, Lane, Note, Outcome, Reference, Sent, Seq, Standing, Wanted};

/// Where a message lies.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Position {
    pub segment: u64,
    pub place: Place,
    /// The key that it is sealed with.
    pub key: u32,
}

/// Why a message is kept.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It is to be delivered.
    Pending,
    /// It was given up.
    DeadLetter,
    /// It was sent to a user, and something may be reported of it.
    Sent,
}

/// A message in memory: small, for there may be a million of them.
#[derive(Copy, Clone, Debug)]
struct Slot {
    /// 2^32 segments of 64 MiB are 256 PiB.
    segment: u32,
    /// A segment and the one commit that may pass its limit stay below 4 GiB.
    offset: u32,
    len: u32,
    key: u32,
    book: u32,
    /// When it was accepted, seconds since the epoch: until 2106.
    accepted_s: u32,
    kind: Kind,
    direction: Direction,
}

/// What is known of one segment file.
#[derive(Copy, Clone, Debug)]
pub(super) struct Segment {
    pub salt: Salt,
    /// Bytes that it takes on disk.
    pub bytes: u64,
    /// Messages in it that somebody needs.
    live: u64,
    live_bytes: u64,
    /// The highest number that was accepted in it.
    last_seq: u64,
}

/// What one channel has in the journal.
#[derive(Copy, Clone, Debug)]
struct Book {
    channel: [u8; 16],
    environment: [u8; 8],
    pending: u64,
    pending_bytes: u64,
    dead_letters: u64,
    dead_letter_bytes: u64,
    /// No message of it that is not settled has a lower number.
    oldest: Seq,
}

/// What one channel has in the journal, for metrics and status.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub struct Backlog {
    /// The channel's UUID.
    pub channel: [u8; 16],
    /// Messages that are not settled.
    pub pending: u64,
    /// Bytes that they take on disk.
    pub pending_bytes: u64,
    /// Dead letters.
    pub dead_letters: u64,
    /// When the oldest of those that are not settled was accepted, seconds since the epoch.
    pub oldest_accepted_s: Option<u64>,
}

#[derive(Copy, Clone, Debug)]
struct Dead {
    at_ms: u64,
    reason: u16,
}

/// Dead letters, oldest first, their reasons held once.
#[derive(Debug, Default)]
struct DeadLetters {
    by_seq: HashMap<Seq, Dead>,
    order: BTreeSet<(u64, Seq)>,
    reasons: Vec<String>,
}

impl DeadLetters {
    /// More reasons than there are words for would be a defect: they share one.
    const REASONS: usize = 1024;

    fn insert(&mut self, seq: Seq, at_ms: u64, reason: &str) {
        self.remove(seq);
        let known = self.reasons.iter().position(|known| known == reason);
        let index = known.unwrap_or_else(|| {
            if self.reasons.len() < Self::REASONS {
                self.reasons.push(reason.to_owned());
            }
            self.reasons.len() - 1
        });
        let reason = u16::try_from(index).unwrap_or(u16::MAX);
        self.by_seq.insert(seq, Dead { at_ms, reason });
        self.order.insert((at_ms, seq));
    }

    fn remove(&mut self, seq: Seq) {
        if let Some(dead) = self.by_seq.remove(&seq) {
            self.order.remove(&(dead.at_ms, seq));
        }
    }

    fn reason(&self, dead: Dead) -> &str {
        self.reasons
            .get(usize::from(dead.reason))
            .map_or("", String::as_str)
    }
}

/// Sent messages by what the other side calls them. Those that are too old are forgotten; beyond their number, the
/// oldest of the channel that has most: no other pays for it.
#[derive(Debug, Default)]
struct SentMessages {
    by_reference: HashMap<Reference, (Seq, u16)>,
    by_seq: HashMap<Seq, SentAs>,
    /// Parts before the last, of messages that have several.
    parts: HashMap<Seq, Vec<(u16, Reference)>>,
    order: BTreeSet<(u64, Seq)>,
    of_book: HashMap<u32, BTreeSet<(u64, Seq)>>,
}

#[derive(Copy, Clone, Debug)]
struct SentAs {
    reference: Reference,
    at_ms: u64,
    book: u32,
}

impl SentMessages {
    /// Said once more by what was written again: its place in the order is the first one.
    fn insert(&mut self, seq: Seq, sent: SentAs) {
        let at_ms = self.by_seq.get(&seq).map_or(sent.at_ms, |known| known.at_ms);
        self.by_seq.insert(seq, SentAs { at_ms, ..sent });
        self.order.insert((at_ms, seq));
        self.of_book.entry(sent.book).or_default().insert((at_ms, seq));
    }

    fn remove(&mut self, seq: Seq) -> Option<SentAs> {
        let sent = self.by_seq.remove(&seq)?;
        self.order.remove(&(sent.at_ms, seq));
        if let Some(of_book) = self.of_book.get_mut(&sent.book) {
            of_book.remove(&(sent.at_ms, seq));
            if of_book.is_empty() {
                self.of_book.remove(&sent.book);
            }
        }
        Some(sent)
    }

    /// The one to be forgotten next, if there are more than so many or it is of before `oldest_ms`.
    fn over(&self, oldest_ms: u64, max: usize) -> Option<Seq> {
        let (at_ms, oldest) = *self.order.first()?;
        if at_ms < oldest_ms {
            return Some(oldest);
        }
        if self.order.len() <= max {
            return None;
        }
        let most = self.of_book.values().max_by_key(|of_book| of_book.len())?;
        most.first().map(|(_, seq)| *seq)
    }
}

/// The journal's memory.
#[derive(Debug)]
pub(super) struct State {
    /// In the order of their numbers, so that a person can be shown them by pages.
    slots: BTreeMap<Seq, Slot>,
    notes: HashMap<Seq, Note>,
    dead: DeadLetters,
    sent: SentMessages,
    parked: HashSet<Lane>,
    books: Vec<Book>,
    book_of: HashMap<([u8; 16], [u8; 8]), u32>,
    environments: HashMap<[u8; 8], u64>,
    keys: HashMap<u32, u64>,
    pending_by_direction: [u64; 2],
    segments: BTreeMap<u64, Segment>,
    bytes: u64,
    live_bytes: u64,
    next_seq: u64,
    newest_ms: u64,
    first_live: u64,
}

impl State {
    pub fn new() -> Self {
        Self {
            slots: BTreeMap::new(),
            notes: HashMap::new(),
            dead: DeadLetters::default(),
            sent: SentMessages::default(),
            parked: HashSet::new(),
            books: Vec::new(),
            book_of: HashMap::new(),
            environments: HashMap::new(),
            keys: HashMap::new(),
            pending_by_direction: [0; 2],
            segments: BTreeMap::new(),
            bytes: 0,
            live_bytes: 0,
            next_seq: 1,
            newest_ms: 0,
            first_live: 0,
        }
    }

    /// Takes in a segment whose header is durable.
    pub fn add_segment(&mut self, salt: Salt, bytes: u64) {
        let segment = Segment {
            salt,
            bytes,
            live: 0,
            live_bytes: 0,
            last_seq: 0,
        };
        self.segments.insert(salt.number, segment);
        self.bytes += bytes;
    }

    /// Forgets a segment that never held a frame.
    pub fn drop_segment(&mut self, number: u64) {
        if let Some(segment) = self.segments.remove(&number) {
            self.bytes = self.bytes.saturating_sub(segment.bytes);
        }
    }

    /// Notes how long a segment file is now.
    pub fn set_bytes(&mut self, number: u64, bytes: u64) {
        if let Some(segment) = self.segments.get_mut(&number) {
            self.bytes = self.bytes.saturating_sub(segment.bytes) + bytes;
            segment.bytes = bytes;
        }
    }

    /// Takes in one record of a durable frame of `segment`.
    pub fn apply(&mut self, segment: u64, place: Place, record: &Record<'_>) {
        match record {
            Record::Accepted(entry) => self.accepted(segment, place, entry),
            Record::Settled { seq, outcome, at_ms } => self.settled(*seq, outcome, *at_ms),
            Record::Trimmed { first_live } => self.trimmed(*first_live),
            Record::Noted { seq, note } => self.noted(*seq, *note),
            Record::Part { seq, part, reference } => {
                if self.slots.contains_key(seq)
                    && self.sent.by_reference.insert(*reference, (*seq, *part)) != Some((*seq, *part))
                {
                    self.sent.parts.entry(*seq).or_default().push((*part, *reference));
                }
            }
            Record::Parked { lane, parked: true } => {
                self.parked.insert(*lane);
            }
            Record::Parked { lane, parked: false } => {
                self.parked.remove(lane);
            }
            Record::Erased(head) => {
                if let Some(segment) = self.segments.get_mut(&segment) {
                    segment.last_seq = segment.last_seq.max(head.seq.0);
                }
                self.never_reuse_below(head.seq.0.saturating_add(1));
                self.observe(head.accepted_at_ms);
            }
        }
    }

    /// Forgets sent messages that are about to be erased.
    pub fn forget_erased(&mut self, seqs: &[Seq]) {
        for seq in seqs {
            if self.kind(*seq) == Some(Kind::Sent) {
                self.sent_is_over(*seq);
            }
        }
    }

    fn accepted(&mut self, segment: u64, place: Place, entry: &Accepted<'_>) {
        let head = &entry.head;
        let (Ok(number), Ok(offset)) = (u32::try_from(segment), u32::try_from(place.offset)) else {
            return;
        };
        // Written again: whatever it was kept for, it is kept for there.
        let kind = self.take_out(head.seq).map_or(Kind::Pending, |slot| slot.kind);
        let slot = Slot {
            segment: number,
            offset,
            len: place.len,
            key: head.key,
            book: self.book(&head.address),
            accepted_s: u32::try_from(head.accepted_at_ms / 1000).unwrap_or(u32::MAX),
            kind,
            direction: head.address.direction,
        };
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.live += 1;
            segment.live_bytes += u64::from(place.len);
            segment.last_seq = segment.last_seq.max(head.seq.0);
        }
        self.live_bytes += u64::from(place.len);
        if head.key != 0 {
            *self.keys.entry(head.key).or_default() += 1;
        }
        self.slots.insert(head.seq, slot);
        // Usually the youngest; one that was written again is not.
        if let Some(book) = self.books.get_mut(slot.book as usize)
            && slot.kind == Kind::Pending
        {
            let none = book.pending == 0;
            book.oldest = if none { head.seq } else { book.oldest.min(head.seq) };
        }
        self.count(&slot, true);
        self.never_reuse_below(head.seq.0.saturating_add(1));
        self.observe(head.accepted_at_ms);
    }

    fn book(&mut self, address: &Address) -> u32 {
        let key = (address.channel, address.environment);
        if let Some(index) = self.book_of.get(&key) {
            return *index;
        }
        // Both directions of a channel have one book: a direction's bit beside its index would save nothing.
        let index = u32::try_from(self.books.len()).unwrap_or(u32::MAX);
        self.books.push(Book {
            channel: address.channel,
            environment: address.environment,
            pending: 0,
            pending_bytes: 0,
            dead_letters: 0,
            dead_letter_bytes: 0,
            oldest: Seq(0),
        });
        self.book_of.insert(key, index);
        index
    }

    /// Counts a message in or out, by what it is kept for.
    fn count(&mut self, slot: &Slot, more: bool) {
        let Some(book) = self.books.get_mut(slot.book as usize) else {
            return;
        };
        let add = |count: &mut u64, n: u64| {
            *count = if more { *count + n } else { count.saturating_sub(n) };
        };
        let bytes = u64::from(slot.len);
        match slot.kind {
            Kind::Pending => {
                add(&mut book.pending, 1);
                add(&mut book.pending_bytes, bytes);
                add(self.environments.entry(book.environment).or_default(), bytes);
                add(&mut self.pending_by_direction[index(slot.direction)], 1);
            }
            Kind::DeadLetter => {
                add(&mut book.dead_letters, 1);
                add(&mut book.dead_letter_bytes, bytes);
                add(self.environments.entry(book.environment).or_default(), bytes);
            }
            Kind::Sent => {}
        }
    }

    /// Takes a message out: its bytes are no longer needed where they are.
    fn take_out(&mut self, seq: Seq) -> Option<Slot> {
        let slot = self.slots.remove(&seq)?;
        self.count(&slot, false);
        if let Some(segment) = self.segments.get_mut(&u64::from(slot.segment)) {
            segment.live = segment.live.saturating_sub(1);
            segment.live_bytes = segment.live_bytes.saturating_sub(u64::from(slot.len));
        }
        self.live_bytes = self.live_bytes.saturating_sub(u64::from(slot.len));
        if let Some(count) = self.keys.get_mut(&slot.key) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.keys.remove(&slot.key);
            }
        }
        Some(slot)
    }

    /// Keeps a message for another reason from now on.
    fn keep_as(&mut self, seq: Seq, kind: Kind) -> bool {
        let Some(slot) = self.slots.get(&seq).copied() else {
            return false;
        };
        self.count(&slot, false);
        let slot = Slot { kind, ..slot };
        self.slots.insert(seq, slot);
        self.count(&slot, true);
        true
    }

    fn settled(&mut self, seq: Seq, outcome: &Outcome, at_ms: u64) {
        match outcome {
            Outcome::DeadLetter { reason } => {
                if self.keep_as(seq, Kind::DeadLetter) {
                    self.dead.insert(seq, at_ms, reason);
                }
            }
            Outcome::Delivered {
                reference: Some(reference),
            } => {
                self.dead.remove(seq);
                if self.keep_as(seq, Kind::Sent) {
                    // Of its attempts nothing is needed any more; how many parts went before the last one says which
                    // the reference is of.
                    let Note { parts, told, .. } = self.note(seq);
                    self.set_note(seq, sent_note(parts, told));
                    // Unless that is known already.
                    let part = self
                        .sent
                        .by_reference
                        .get(reference)
                        .filter(|(holder, _)| *holder == seq);
                    let part = part.map_or(parts, |(_, part)| *part);
                    self.sent.by_reference.insert(*reference, (seq, part));
                    let book = self.slots.get(&seq).map_or(0, |slot| slot.book);
                    let sent = SentAs {
                        reference: *reference,
                        at_ms,
                        book,
                    };
                    self.sent.insert(seq, sent);
                }
            }
            Outcome::Delivered { reference: None } | Outcome::Dropped { .. } => self.forget(seq),
        }
    }

    fn noted(&mut self, seq: Seq, note: Note) {
        match self.kind(seq) {
            // A note on an attempt may be late: what was sent has none.
            Some(Kind::Sent) => {
                let before = self.note(seq);
                self.set_note(seq, sent_note(before.parts, before.told.max(note.told)));
            }
            Some(_) => self.set_note(seq, note),
            None => {}
        }
    }

    fn set_note(&mut self, seq: Seq, note: Note) {
        if note == Note::default() {
            self.notes.remove(&seq);
        } else {
            self.notes.insert(seq, note);
        }
    }

    fn forget(&mut self, seq: Seq) {
        self.take_out(seq);
        self.notes.remove(&seq);
        self.dead.remove(seq);
        for (part, reference) in self.sent.parts.remove(&seq).unwrap_or_default() {
            if self.sent.by_reference.get(&reference) == Some(&(seq, part)) {
                self.sent.by_reference.remove(&reference);
            }
        }
    }

    /// Forgets sent messages: those of before `oldest_ms`, and beyond `max` the oldest of whoever has most.
    pub fn forget_sent(&mut self, oldest_ms: u64, max: usize) {
        while let Some(seq) = self.sent.over(oldest_ms, max) {
            self.sent_is_over(seq);
        }
    }

    fn sent_is_over(&mut self, seq: Seq) {
        if let Some(sent) = self.sent.remove(seq)
            // Two messages under one reference: the younger one has it.
            && self.sent.by_reference.get(&sent.reference).is_some_and(|(holder, _)| *holder == seq)
        {
            self.sent.by_reference.remove(&sent.reference);
        }
        if self.kind(seq) == Some(Kind::Sent) {
            self.forget(seq);
        }
    }

    fn trimmed(&mut self, first_live: u64) {
        self.first_live = self.first_live.max(first_live);
        while let Some(first) = self
            .segments
            .first_entry()
            .filter(|first| *first.key() < self.first_live)
        {
            self.bytes = self.bytes.saturating_sub(first.remove().bytes);
        }
    }

    /// Moves the journal's time, which never goes back.
    pub fn observe(&mut self, at_ms: u64) {
        self.newest_ms = self.newest_ms.max(at_ms);
    }

    pub fn never_reuse_below(&mut self, next_seq: u64) {
        self.next_seq = self.next_seq.max(next_seq);
    }

    pub fn take_seq(&mut self) -> Seq {
        let seq = Seq(self.next_seq);
        self.next_seq = self.next_seq.saturating_add(1);
        seq
    }

    /// The first segment to keep, if nobody needs what is in front of it: nothing in there is live, and its ids, up to
    /// `ids_through`, are remembered elsewhere. `last` is the end of the chain and always stays.
    pub fn trimmable(&self, last: Link, ids_through: Seq) -> Option<u64> {
        let done = self
            .segments
            .iter()
            .take_while(|(number, segment)| {
                **number < last.number && segment.live == 0 && segment.last_seq <= ids_through.0
            })
            .last()?;
        Some(done.0 + 1)
    }

    /// The oldest segment, if writing what is live in it again gives space back: it stands in front of garbage that is
    /// at least half of all, or the journal is about to be full and a quarter of the segment is garbage.
    pub fn to_evacuate(&self, tip: u64, segment_bytes: u64, max_bytes: u64) -> Option<u64> {
        let (number, oldest) = self.segments.first_key_value()?;
        if *number >= tip || oldest.live == 0 {
            return None;
        }
        let mostly_garbage = self.bytes > segment_bytes.saturating_mul(4) && self.live_bytes < self.bytes / 2;
        let nearly_full =
            self.nearly_full(segment_bytes, max_bytes) && oldest.live_bytes < oldest.bytes / 4 * 3;
        (mostly_garbage || nearly_full).then_some(*number)
    }

    /// Whether there is room for two segments at most.
    pub fn nearly_full(&self, segment_bytes: u64, max_bytes: u64) -> bool {
        self.bytes.saturating_add(segment_bytes.saturating_mul(2)) > max_bytes
    }

    /// Whether anything that is live is sealed with this key.
    pub fn needs_key(&self, key: u32) -> bool {
        self.keys.contains_key(&key)
    }

    pub fn position(&self, seq: Seq) -> Option<(Position, Salt)> {
        let slot = self.slots.get(&seq)?;
        let position = Position {
            segment: u64::from(slot.segment),
            place: Place {
                offset: u64::from(slot.offset),
                len: slot.len,
            },
            key: slot.key,
        };
        Some((position, self.segments.get(&position.segment)?.salt))
    }

    pub fn kind(&self, seq: Seq) -> Option<Kind> {
        self.slots.get(&seq).map(|slot| slot.kind)
    }

    /// Why a message is kept, in full.
    pub fn standing(&self, seq: Seq) -> Option<Standing> {
        Some(match self.kind(seq)? {
            Kind::Pending => Standing::Pending,
            Kind::DeadLetter => {
                let dead = self.dead.by_seq.get(&seq)?;
                Standing::DeadLetter {
                    reason: self.dead.reason(*dead).to_owned(),
                    at_ms: dead.at_ms,
                }
            }
            Kind::Sent => Standing::Sent {
                at_ms: self.sent.by_seq.get(&seq)?.at_ms,
            },
        })
    }

    /// The numbers after `after` of messages that are wanted, ascending: of the next `most` that are kept. Also the last
    /// one looked at, if others may follow.
    pub fn kept_after(&self, after: Seq, wanted: &Wanted, most: usize) -> (Vec<Seq>, Option<Seq>) {
        let (mut found, mut last) = (Vec::new(), None);
        let range = (Bound::Excluded(after), Bound::Unbounded);
        for (looked_at, (seq, slot)) in self.slots.range(range).enumerate() {
            if looked_at == most {
                return (found, last);
            }
            last = Some(*seq);
            let book = self.books.get(slot.book as usize);
            let is = wanted.kind.is_none_or(|kind| kind == slot.kind)
                && wanted.direction.is_none_or(|way| way == slot.direction)
                && wanted
                    .channel
                    .is_none_or(|channel| book.is_some_and(|book| book.channel == channel));
            if is {
                found.push(*seq);
            }
        }
        (found, None)
    }

    pub fn is_pending(&self, seq: Seq) -> bool {
        self.kind(seq) == Some(Kind::Pending)
    }

    pub fn note(&self, seq: Seq) -> Note {
        self.notes.get(&seq).copied().unwrap_or_default()
    }

    /// What has to be said of a message beside itself when it is written again.
    pub fn aftermath(&self, seq: Seq) -> Vec<Record<'static>> {
        let mut records = Vec::new();
        if let Some(note) = self.notes.get(&seq) {
            records.push(Record::Noted { seq, note: *note });
        }
        for (part, reference) in self.sent.parts.get(&seq).into_iter().flatten() {
            records.push(Record::Part {
                seq,
                part: *part,
                reference: *reference,
            });
        }
        if let Some(dead) = self.dead.by_seq.get(&seq) {
            let reason = self.dead.reason(*dead).to_owned();
            let outcome = Outcome::DeadLetter { reason };
            records.push(Record::Settled {
                seq,
                outcome,
                at_ms: dead.at_ms,
            });
        }
        if let Some(sent) = self.sent.by_seq.get(&seq) {
            let outcome = Outcome::Delivered {
                reference: Some(sent.reference),
            };
            records.push(Record::Settled {
                seq,
                outcome,
                at_ms: sent.at_ms,
            });
        }
        records
    }

    /// What was sent under this reference.
    pub fn sent(&self, reference: &Reference) -> Option<Sent> {
        let (seq, part) = *self.sent.by_reference.get(reference)?;
        Some(Sent { seq, part })
    }

    /// Under which references a message, or a part of it, was sent.
    pub fn references(&self, seq: Seq) -> Vec<Reference> {
        let parts = self.sent.parts.get(&seq).into_iter().flatten();
        let last = self.sent.by_seq.get(&seq).map(|sent| sent.reference);
        parts.map(|(_, reference)| *reference).chain(last).collect()
    }

    /// All dead letters, oldest first.
    pub fn dead_letters(&self) -> Vec<DeadLetter> {
        let one = |(at_ms, seq): &(u64, Seq)| {
            let dead = self.dead.by_seq.get(seq)?;
            Some(DeadLetter {
                seq: *seq,
                reason: self.dead.reason(*dead).to_owned(),
                at_ms: *at_ms,
            })
        };
        self.dead.order.iter().filter_map(one).collect()
    }

    /// Dead letters of before `ms`, oldest first, at most so many.
    pub fn dead_before(&self, ms: u64, most: usize) -> Vec<Seq> {
        let old = self.dead.order.iter().take_while(|(at_ms, _)| *at_ms < ms);
        old.take(most).map(|(_, seq)| *seq).collect()
    }

    /// The lanes that are parked.
    pub fn parked(&self) -> impl Iterator<Item = Lane> {
        self.parked.iter().copied()
    }

    /// What a channel's unsettled messages and dead letters take, in bytes, and those of its environment: what is kept
    /// until somebody has done something.
    pub fn taken(&self, channel: [u8; 16], environment: [u8; 8]) -> (u64, u64) {
        let book = self.book_of.get(&(channel, environment));
        let book = book.and_then(|index| self.books.get(*index as usize));
        (
            book.map_or(0, |book| book.pending_bytes + book.dead_letter_bytes),
            self.environments.get(&environment).copied().unwrap_or_default(),
        )
    }

    /// Finds the oldest message of each channel that is not settled, looking at so many messages at most; says whether
    /// all are found. What was passed over once is not looked at again.
    pub fn find_oldest(&mut self, most: usize) -> bool {
        let mut sought: HashSet<u32> = (0..)
            .zip(&self.books)
            .filter(|(index, book)| book.pending > 0 && self.oldest(*index, book).is_none())
            .map(|(index, _)| index)
            .collect();
        let marks = sought.iter().filter_map(|index| self.books.get(*index as usize));
        let Some(from) = marks.map(|book| book.oldest).min() else {
            return true;
        };
        let (mut looked_at, mut last) = (0, from);
        for (seq, slot) in self.slots.range(from..) {
            if looked_at == most || sought.is_empty() {
                break;
            }
            (looked_at, last) = (looked_at + 1, *seq);
            if slot.kind == Kind::Pending
                && sought.remove(&slot.book)
                && let Some(book) = self.books.get_mut(slot.book as usize)
            {
                book.oldest = *seq;
            }
        }
        for index in &sought {
            if let Some(book) = self.books.get_mut(*index as usize) {
                book.oldest = book.oldest.max(last);
            }
        }
        // Fewer than that: there is no more to look at.
        sought.is_empty() || looked_at < most
    }

    /// A channel's oldest message that is not settled, where it is known.
    fn oldest(&self, index: u32, book: &Book) -> Option<&Slot> {
        let slot = self.slots.get(&book.oldest)?;
        (slot.kind == Kind::Pending && slot.book == index).then_some(slot)
    }

    /// What each channel has that has anything. The oldest of its messages is told of where it was found.
    pub fn backlogs(&self) -> Vec<Backlog> {
        let some = (0..)
            .zip(&self.books)
            .filter(|(_, book)| book.pending + book.dead_letters > 0);
        some.map(|(index, book)| Backlog {
            channel: book.channel,
            pending: book.pending,
            pending_bytes: book.pending_bytes,
            dead_letters: book.dead_letters,
            oldest_accepted_s: self.oldest(index, book).map(|slot| u64::from(slot.accepted_s)),
        })
        .collect()
    }

    /// A message that somebody needs in a segment that a later record calls no longer needed: only damage can do this.
    pub fn live_before_first_live(&self) -> Option<u64> {
        self.slots
            .values()
            .filter(|slot| slot.kind != Kind::Sent)
            .map(|slot| u64::from(slot.segment))
            .filter(|segment| *segment < self.first_live)
            .min()
    }

    /// The segments in which something is live, ascending.
    pub fn live_segments(&self) -> Vec<u64> {
        let live = self.segments.iter().filter(|(_, segment)| segment.live > 0);
        live.map(|(number, _)| *number).collect()
    }

    /// Numbers of the segments held, ascending.
    pub fn segment_numbers(&self) -> impl Iterator<Item = u64> {
        self.segments.keys().copied()
    }

    pub fn salt(&self, segment: u64) -> Option<Salt> {
        self.segments.get(&segment).map(|segment| segment.salt)
    }

    pub fn pending_in(&self, direction: Direction) -> u64 {
        self.pending_by_direction[index(direction)]
    }

    pub fn dead_letter_count(&self) -> u64 {
        self.dead.by_seq.len() as u64
    }

    pub fn sent_count(&self) -> u64 {
        self.sent.by_seq.len() as u64
    }

    pub fn parked_count(&self) -> u64 {
        self.parked.len() as u64
    }

    pub fn segment_count(&self) -> u64 {
        self.segments.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    pub fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    pub fn next_seq(&self) -> u64 {
        self.next_seq
    }

    pub fn newest_ms(&self) -> u64 {
        self.newest_ms
    }

    pub fn first_live(&self) -> u64 {
        self.first_live
    }
}

/// The note of a message that was sent.
fn sent_note(parts: u16, told: u8) -> Note {
    Note {
        parts,
        told,
        ..Note::default()
    }
}

fn index(direction: Direction) -> usize {
    match direction {
        Direction::ToAura => 0,
        Direction::ToKernel => 1,
    }
}
