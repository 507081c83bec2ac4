//! What the journal knows in memory: where each pending message lies, which ids are remembered, what each segment
//! holds. Pure; replay and the writer change it by the same function, so a restart knows what the writer knew.
//!
//! Not for bytes or files: bodies stay on disk. Upholds law 2 (once per id) for as long as the window says.

use std::collections::{BTreeMap, HashMap, VecDeque};

use super::format::{Accepted, Link, Place, Record, Salt};
use super::{DedupKey, Direction, Outcome, Seq};

/// Where a pending message lies.
#[derive(Copy, Clone, Debug)]
pub(super) struct Position {
    pub segment: u64,
    pub place: Place,
    direction: Direction,
}

/// What is known of one segment file.
#[derive(Copy, Clone, Debug)]
pub(super) struct Segment {
    pub salt: Salt,
    /// Bytes that it takes on disk.
    pub bytes: u64,
    /// Messages in it that are not settled.
    pending: u64,
    /// The newest time known when it was last written, ms.
    newest_ms: u64,
    dead_letters: u64,
}

/// Ids, each with its message and time; forgotten oldest first.
#[derive(Debug, Default)]
struct Remembered {
    by_key: HashMap<DedupKey, (Seq, u64)>,
    order: VecDeque<(DedupKey, u64)>,
}

impl Remembered {
    fn insert(&mut self, key: DedupKey, seq: Seq, at_ms: u64) {
        self.by_key.insert(key, (seq, at_ms));
        self.order.push_back((key, at_ms));
    }

    fn forget_before(&mut self, oldest_ms: u64) {
        while let Some((key, at_ms)) = self
            .order
            .front()
            .copied()
            .filter(|(_, at_ms)| *at_ms < oldest_ms)
        {
            self.order.pop_front();
            // Accepted again after its window, it has a later place in the queue, and that one counts.
            if self
                .by_key
                .get(&key)
                .is_some_and(|(_, latest_ms)| *latest_ms == at_ms)
            {
                self.by_key.remove(&key);
            }
        }
    }
}

/// The journal's memory.
#[derive(Debug)]
pub(super) struct State {
    window_ms: u64,
    pending: HashMap<Seq, Position>,
    pending_by_direction: [u64; 2],
    remembered: Remembered,
    segments: BTreeMap<u64, Segment>,
    bytes: u64,
    next_seq: u64,
    newest_ms: u64,
    first_live: u64,
}

impl State {
    pub fn new(window_ms: u64) -> Self {
        Self {
            window_ms,
            pending: HashMap::new(),
            pending_by_direction: [0; 2],
            remembered: Remembered::default(),
            segments: BTreeMap::new(),
            bytes: 0,
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
            pending: 0,
            newest_ms: self.newest_ms,
            dead_letters: 0,
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

    /// Takes in the records of one durable frame of `segment`.
    pub fn apply<'a>(&mut self, segment: u64, records: impl IntoIterator<Item = (Place, &'a Record<'a>)>) {
        for (place, record) in records {
            match record {
                Record::Accepted(entry) => self.accepted(segment, place, entry),
                Record::Settled { seq, outcome } => self.settled(segment, *seq, outcome),
                Record::Trimmed { first_live } => self.trimmed(*first_live),
            }
        }
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.newest_ms = segment.newest_ms.max(self.newest_ms);
        }
        self.remembered
            .forget_before(self.newest_ms.saturating_sub(self.window_ms));
    }

    fn accepted(&mut self, segment: u64, place: Place, entry: &Accepted<'_>) {
        let position = Position {
            segment,
            place,
            direction: entry.direction,
        };
        self.pending.insert(entry.seq, position);
        self.pending_by_direction[index(entry.direction)] += 1;
        if let Some(segment) = self.segments.get_mut(&segment) {
            segment.pending += 1;
        }
        self.remembered
            .insert(entry.dedup, entry.seq, entry.accepted_at_ms);
        self.never_reuse_below(entry.seq.0.saturating_add(1));
        self.observe(entry.accepted_at_ms);
    }

    fn settled(&mut self, segment: u64, seq: Seq, outcome: &Outcome) {
        if let Some(position) = self.pending.remove(&seq) {
            let count = &mut self.pending_by_direction[index(position.direction)];
            *count = count.saturating_sub(1);
            if let Some(segment) = self.segments.get_mut(&position.segment) {
                segment.pending = segment.pending.saturating_sub(1);
            }
        }
        if let (Outcome::DeadLetter { .. }, Some(segment)) = (outcome, self.segments.get_mut(&segment)) {
            segment.dead_letters += 1;
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

    /// The message that this id was accepted as, if it is remembered.
    pub fn duplicate_of(&self, key: &DedupKey) -> Option<Seq> {
        let oldest_ms = self.newest_ms.saturating_sub(self.window_ms);
        self.remembered
            .by_key
            .get(key)
            .filter(|(_, at_ms)| *at_ms >= oldest_ms)
            .map(|(seq, _)| *seq)
    }

    /// The first segment to keep, if segments in front of it are settled and older than the window. `last` is the
    /// end of the chain and always stays.
    pub fn trimmable(&self, last: Link) -> Option<u64> {
        let done = self
            .segments
            .iter()
            .take_while(|(number, segment)| {
                let age_ms = self.newest_ms.saturating_sub(segment.newest_ms);
                **number < last.number && segment.pending == 0 && age_ms > self.window_ms
            })
            .last()?;
        Some(done.0 + 1)
    }

    pub fn position(&self, seq: Seq) -> Option<(Position, Salt)> {
        let position = self.pending.get(&seq)?;
        Some((*position, self.segments.get(&position.segment)?.salt))
    }

    pub fn is_pending(&self, seq: Seq) -> bool {
        self.pending.contains_key(&seq)
    }

    /// A pending message in a segment that a later record calls no longer needed: only damage can do this.
    pub fn pending_before_first_live(&self) -> Option<u64> {
        self.pending
            .values()
            .map(|position| position.segment)
            .filter(|segment| *segment < self.first_live)
            .min()
    }

    /// Numbers of the segments held, ascending.
    pub fn segment_numbers(&self) -> impl Iterator<Item = u64> {
        self.segments.keys().copied()
    }

    pub fn pending_in(&self, direction: Direction) -> u64 {
        self.pending_by_direction[index(direction)]
    }

    pub fn dead_letters(&self) -> u64 {
        self.segments.values().map(|segment| segment.dead_letters).sum()
    }

    pub fn remembered_ids(&self) -> u64 {
        self.remembered.by_key.len() as u64
    }

    pub fn segment_count(&self) -> u64 {
        self.segments.len() as u64
    }

    pub fn bytes(&self) -> u64 {
        self.bytes
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

fn index(direction: Direction) -> usize {
    match direction {
        Direction::ToAura => 0,
        Direction::ToKernel => 1,
    }
}
