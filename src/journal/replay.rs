//! What the files of a journal mean: which segments belong to it, which frames count, and when to refuse.
//!
//! Not for writing. Upholds law 1: bytes that were synced and no longer read back are **damage**, and the journal
//! refuses to open and says where; it never truncates and never opens with less than was acknowledged. Only the
//! torn tail of the last segment, which nobody was answered for, is dropped.
//!
//! Each segment's header names the one before it and how far that one is valid, so the newest header is the end of
//! a chain, and only the newest segment has an end that must be judged. Files outside the chain are leftovers: of
//! a creation that failed (no frames), or of segments that a `trimmed` record gave up.

use std::collections::BTreeMap;
use std::io;

use super::format::{
    ALIGN, Frame, Head, HeaderBytes, Link, Record, SEGMENT_HEADER, SegmentHeader, decode_frame,
    holds_frames_of, may_be_torn,
};
use super::ids::Ids;
use super::state::State;
use super::storage::Storage;
use super::{Note, OpenError, Pending};

/// A journal as its files say it is.
pub(super) struct Recovered {
    pub state: State,
    /// In order of acceptance.
    pub pending: Vec<Pending>,
    /// The end of the chain, to be sealed by the next segment.
    pub last: Link,
    pub next_number: u64,
    /// Files that are to go once the next segment is durable.
    pub discard: Vec<u64>,
}

impl Pending {
    pub(super) fn of(head: &Head) -> Self {
        Self {
            seq: head.seq,
            address: head.address,
            accepted_at_ms: head.accepted_at_ms,
            request: head.request,
            note: Note::default(),
            replayed: head.replayed,
            origin: head.origin,
        }
    }
}

/// The messages that were accepted, of which those that are not settled are wanted.
#[derive(Default)]
struct Seen {
    messages: Vec<Pending>,
    sweep_at: usize,
}

impl Seen {
    /// So many at least before the settled ones are sorted out.
    const SWEEP: usize = 100_000;

    fn push(&mut self, head: &Head, state: &State) {
        if self.messages.len() >= self.sweep_at.max(Self::SWEEP) {
            self.messages.retain(|message| state.is_pending(message.seq));
            self.sweep_at = self.messages.len() * 2;
        }
        self.messages.push(Pending::of(head));
    }

    fn pending(mut self, state: &State) -> Vec<Pending> {
        self.messages.retain(|message| state.is_pending(message.seq));
        // One that was written again comes twice.
        self.messages.sort_by_key(|message| message.seq);
        self.messages.dedup_by_key(|message| message.seq);
        for message in &mut self.messages {
            message.note = state.note(message.seq);
        }
        self.messages.shrink_to_fit();
        self.messages
    }
}

/// Where a segment stops making sense although it should.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damage {
    pub offset: usize,
    pub problem: &'static str,
    /// Commits that are still valid after it, and the records in them.
    pub frames_after: u64,
    pub records_after: u64,
}

/// The frames of a segment. `sealed` is the length that the next segment vouches for; without it the end is judged.
pub(super) fn scan<'a>(
    header: &SegmentHeader,
    file: &'a [u8],
    sealed: Option<u64>,
) -> Result<(Vec<Frame<'a>>, u64), Damage> {
    let salt = header.salt;
    let end = sealed.map_or(Some(file.len()), |len| usize::try_from(len).ok());
    let Some(valid) = end
        .and_then(|end| file.get(..end))
        .filter(|valid| valid.len() >= SEGMENT_HEADER)
    else {
        let problem = "the file is shorter than the next segment says";
        return Err(Damage {
            offset: file.len(),
            problem,
            frames_after: 0,
            records_after: 0,
        });
    };
    let mut frames = Vec::new();
    let mut offset = SEGMENT_HEADER;
    while offset < valid.len() {
        match decode_frame(salt, valid, offset) {
            Ok(frame) => {
                offset = usize::try_from(frame.end).unwrap_or(usize::MAX);
                frames.push(frame);
            }
            Err(fault) => {
                let (frames_after, records_after) = count_after(header, valid, offset + ALIGN);
                // Behind the end of the newest segment stands what was there before, or a write that was cut off: but
                // whatever was answered for has a whole frame, and each but the last has a whole frame behind it.
                if sealed.is_none() && frames_after == 0 {
                    break;
                }
                return Err(Damage {
                    offset,
                    problem: fault.describe(),
                    frames_after,
                    records_after,
                });
            }
        }
    }
    Ok((frames, offset as u64))
}

fn count_after(header: &SegmentHeader, file: &[u8], mut offset: usize) -> (u64, u64) {
    let (mut frames, mut records) = (0, 0);
    while offset < file.len() {
        match decode_frame(header.salt, file, offset) {
            Ok(frame) => {
                frames += 1;
                records += frame.records.len() as u64;
                offset = usize::try_from(frame.end).unwrap_or(usize::MAX);
            }
            Err(_) => offset += ALIGN,
        }
    }
    (frames, records)
}

/// Reads the whole journal.
pub(super) fn recover(storage: &dyn Storage, ids: &mut Ids) -> Result<Recovered, OpenError> {
    let numbers = storage.list().map_err(io_error("list the segments"))?;
    let next_number = numbers.last().map_or(Some(1), |last| last.checked_add(1));
    let next_number = next_number.ok_or_else(|| OpenError::Io {
        doing: "number the next segment",
        source: io::Error::from(io::ErrorKind::InvalidData),
    })?;
    let (headers, headless, mut discard) = read_headers(storage, &numbers)?;
    let mut state = State::new();
    let Some((tip, tip_header)) = headers
        .last_key_value()
        .map(|(number, header)| (*number, *header))
    else {
        if let Some((number, problem)) = headless.first() {
            return Err(damaged(storage, *number, 0, problem));
        }
        return Ok(Recovered {
            state,
            pending: Vec::new(),
            last: Link::default(),
            next_number,
            discard,
        });
    };

    let mut chain = vec![(tip, None)];
    let mut before = tip_header.previous;
    while let Some(header) = headers.get(&before.number) {
        // Numbers only go down along the chain; anything else would go round for ever.
        if chain.last().is_some_and(|(number, _)| before.number >= *number) {
            break;
        }
        chain.push((before.number, Some(before.len)));
        before = header.previous;
    }

    let mut seen = Seen::default();
    let mut last = Link {
        number: tip,
        len: SEGMENT_HEADER as u64,
    };
    for (number, sealed) in chain.iter().rev().copied() {
        let Some(header) = headers.get(&number) else {
            continue;
        };
        last = Link {
            number,
            len: replay_segment(storage, header, sealed, &mut state, ids, &mut seen)?,
        };
    }

    let first_live = state.first_live();
    for (number, problem) in headless {
        // Of a segment that was given up the header is the first to go.
        if number >= first_live {
            return Err(damaged(storage, number, 0, problem));
        }
        discard.push(number);
    }
    if before.number >= first_live.max(1) {
        return Err(OpenError::Missing {
            file: storage.name(before.number),
        });
    }
    if let Some(number) = state.live_before_first_live() {
        return Err(damaged(
            storage,
            number,
            0,
            "given up by a later record with messages that are still needed",
        ));
    }
    for (number, header) in &headers {
        if *number < first_live {
            discard.push(*number);
        } else if !chain.iter().any(|(linked, _)| linked == number) {
            let file = read_all(storage, *number)?;
            if count_after(header, &file, SEGMENT_HEADER).0 > 0 {
                return Err(damaged(
                    storage,
                    *number,
                    0,
                    "holds messages and no later segment knows it",
                ));
            }
            discard.push(*number);
        }
    }
    // A tip that was never written to would otherwise stay until the window has passed, one per restart.
    if last.number == tip && last.len == SEGMENT_HEADER as u64 && tip_header.previous.number >= first_live {
        state.drop_segment(tip);
        discard.push(tip);
        last = tip_header.previous;
    }
    Ok(Recovered {
        pending: seen.pending(&state),
        state,
        last,
        next_number,
        discard,
    })
}

/// The headers of all segments; the files without the header they should have, and what is there; and those that were
/// never finished.
type Headers = (BTreeMap<u64, SegmentHeader>, Vec<(u64, &'static str)>, Vec<u64>);

fn read_headers(storage: &dyn Storage, numbers: &[u64]) -> Result<Headers, OpenError> {
    let mut headers = BTreeMap::new();
    let (mut headless, mut unfinished) = (Vec::new(), Vec::new());
    for number in numbers.iter().rev().copied() {
        if headers.is_empty() {
            // The newest one's end is trusted below, and a header that only the page cache has is none.
            storage
                .secure(number)
                .map_err(io_error("sync the last segment"))?;
        }
        let bytes = storage
            .read(number, 0, SEGMENT_HEADER)
            .map_err(io_error("read a segment header"))?;
        match SegmentHeader::decode(&bytes) {
            HeaderBytes::Valid(header) if header.salt.number == number => {
                headers.insert(number, header);
            }
            // A file that was to be another segment, and its new name is lost.
            HeaderBytes::Valid(_) => headless.push((number, "a segment with another number")),
            HeaderBytes::Unfinished => {
                let file = read_all(storage, number)?;
                if holds_frames_of(number, &file) {
                    headless.push((number, "zeros where the header should be"));
                } else {
                    unfinished.push(number);
                }
            }
            HeaderBytes::Version(found) => {
                return Err(OpenError::Version {
                    file: storage.name(number),
                    found,
                });
            }
            HeaderBytes::Bad => {
                let file = read_all(storage, number)?;
                if may_be_torn(&bytes) && !holds_frames_of(number, &file) {
                    unfinished.push(number);
                } else {
                    headless.push((number, "not a segment header"));
                }
            }
        }
    }
    Ok((headers, headless, unfinished))
}

/// Takes one segment in; says how far it is valid.
fn replay_segment(
    storage: &dyn Storage,
    header: &SegmentHeader,
    sealed: Option<u64>,
    state: &mut State,
    ids: &mut Ids,
    seen: &mut Seen,
) -> Result<u64, OpenError> {
    let number = header.salt.number;
    let file = read_all(storage, number)?;
    let (frames, end) = scan(header, &file, sealed).map_err(|damage| OpenError::Damaged {
        file: storage.name(number),
        offset: damage.offset as u64,
        problem: damage.problem,
        commits_after: damage.frames_after,
        records_after: damage.records_after,
    })?;
    state.never_reuse_below(header.next_seq);
    state.observe(header.newest_ms);
    state.add_segment(header.salt, file.len() as u64);
    let sealed_through = ids.sealed_through();
    for frame in &frames {
        state.observe(frame.newest_ms);
        for (place, record) in &frame.records {
            state.apply(number, *place, record);
            let head = match record {
                Record::Accepted(entry) => &entry.head,
                // Its id stays remembered.
                Record::Erased(head) => head,
                _ => continue,
            };
            if matches!(record, Record::Accepted(_)) {
                seen.push(head, state);
            }
            if head.is_new() && head.seq > sealed_through {
                ids.insert(&head.dedup, head.born(), head.accepted_at_ms, head.seq);
            }
        }
    }
    Ok(end)
}

fn read_all(storage: &dyn Storage, number: u64) -> Result<Vec<u8>, OpenError> {
    storage
        .read(number, 0, usize::MAX)
        .map_err(io_error("read a segment"))
}

fn io_error(doing: &'static str) -> impl Fn(io::Error) -> OpenError {
    move |source| OpenError::Io { doing, source }
}

fn damaged(storage: &dyn Storage, number: u64, offset: u64, problem: &'static str) -> OpenError {
    OpenError::Damaged {
        file: storage.name(number),
        offset,
        problem,
        commits_after: 0,
        records_after: 0,
    }
}
