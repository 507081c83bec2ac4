//! Takes one contact out of the files: what nobody needs any more of its messages is overwritten, by writing each
//! segment that holds some of it anew.
//!
//! Not for what is still to be delivered, or kept until a person decides: that is told (`left`), and stays. Upholds law
//! 6, and law 2: the ids stay remembered, so that what is erased is not accepted once more.

use std::collections::HashSet;
use std::io;
use std::ops::Range;

use tokio::sync::oneshot;

use super::format::{Head, HeaderBytes, Record, SEGMENT_HEADER, SegmentHeader, erase_records};
use super::group::{Answer, Command};
use super::keeper::Keeper;
use super::replay::scan;
use super::state::Kind;
use super::{AppendError, Seq};

/// Whose messages are meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Whose {
    /// Of this channel only: its UUID.
    pub channel: Option<[u8; 16]>,
    /// The first bytes of the contact's key: all 16, or the six that logs show.
    pub contact: Vec<u8>,
}

impl Whose {
    fn is(&self, head: &Head) -> bool {
        let address = &head.address;
        // No prefix at all would be everybody.
        !self.contact.is_empty()
            && address.contact.0.starts_with(&self.contact)
            && self.channel.is_none_or(|channel| channel == address.channel)
    }
}

/// What was erased.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Erased {
    /// Messages whose contact and body were overwritten; one that was moved counts at each of its places.
    pub records: u64,
    /// Of them, sent messages of which something might still have been reported.
    pub sent: u64,
    /// Segments that were written anew.
    pub segments: u64,
    /// Messages that are still needed, and were left: pending ones and dead letters.
    pub left: u64,
}

/// An erasure that the writer has handed on.
pub(super) struct Erasure {
    pub whose: Whose,
    /// Segments below this number are complete.
    pub below: u64,
    pub reply: Answer<Erased>,
}

impl Keeper {
    /// Carries out an erasure and answers it.
    pub(super) fn carry_out(&self, erasure: Erasure, ask: &mut dyn FnMut(Command)) {
        let erased = self.erase(&erasure.whose, erasure.below, ask);
        if let Err(error) = &erased {
            tracing::error!(%error, "a contact could not be erased");
        }
        let _ = erasure.reply.send(erased.map_err(AppendError::from_io));
    }

    fn erase(&self, whose: &Whose, below: u64, ask: &mut dyn FnMut(Command)) -> io::Result<Erased> {
        let mut erased = Erased::default();
        let numbers: Vec<u64> = self.shared.state().segment_numbers().collect();
        for (number, next) in numbers.iter().zip(numbers.iter().skip(1)) {
            if *number < below {
                self.erase_in(*number, *next, whose, &mut erased, ask)?;
            }
        }
        // They hold what stood in segments that are gone.
        self.storage.discard_waiting()?;
        Ok(erased)
    }

    /// Blanks what is not needed in one segment, and cuts off what stands behind the length that the next one vouches for:
    /// bytes of a segment that the file was before, which may be anybody's.
    fn erase_in(
        &self,
        number: u64,
        next: u64,
        whose: &Whose,
        erased: &mut Erased,
        ask: &mut dyn FnMut(Command),
    ) -> io::Result<()> {
        let sealed = header(next, &self.storage.read(next, 0, SEGMENT_HEADER)?)?.previous;
        let mut file = self.storage.read(number, 0, usize::MAX)?;
        let own = header(number, &file)?;
        if sealed.number != number {
            return Err(damaged(next, 0, "it does not follow the one before it"));
        }
        let theirs = theirs(&own, &file, sealed.len, whose)?;
        let len = usize::try_from(sealed.len).unwrap_or(usize::MAX);
        // Zeros are what a file is made of that was no segment before.
        let has_remains = file.iter().skip(len).any(|byte| *byte != 0);
        erased.sent += self.forget_sent(&theirs, ask)?;
        let (mut records, mut left) = (0, HashSet::new());
        for (frame, seqs) in theirs {
            let state = self.shared.state();
            let at = frame.start as u64;
            let here = at..frame.end as u64;
            let needed = |seq: Seq| {
                state.position(seq).is_some_and(|(position, _)| {
                    position.segment == number && here.contains(&position.place.offset)
                })
            };
            left.extend(seqs.into_iter().filter(|seq| needed(*seq)));
            records += erase_records(own.salt, at, &mut file[frame], &|head| {
                whose.is(head) && !needed(head.seq)
            });
        }
        erased.left += left.len() as u64;
        if records > 0 || has_remains {
            file.truncate(len);
            self.storage.replace(number, &file)?;
            self.shared.state().set_bytes(number, file.len() as u64);
            erased.records += records;
            erased.segments += 1;
        }
        Ok(())
    }

    /// Of those messages, forgets the ones that were sent; says how many.
    fn forget_sent(&self, theirs: &[Theirs], ask: &mut dyn FnMut(Command)) -> io::Result<u64> {
        let sent: Vec<Seq> = {
            let state = self.shared.state();
            let seqs = theirs.iter().flat_map(|(_, seqs)| seqs.iter().copied());
            seqs.filter(|seq| state.kind(*seq) == Some(Kind::Sent)).collect()
        };
        let count = sent.len() as u64;
        if count > 0 {
            let (reply, done) = oneshot::channel();
            ask(Command::Forget { seqs: sent, reply });
            let done = done.blocking_recv().map_err(io::Error::other)?;
            done.map_err(io::Error::other)?;
        }
        Ok(count)
    }
}

/// Where a frame lies that holds messages of theirs, and which.
type Theirs = (Range<usize>, Vec<Seq>);

/// The frames of a segment that hold messages of theirs. `len` is what the next segment vouches for.
fn theirs(own: &SegmentHeader, file: &[u8], len: u64, whose: &Whose) -> io::Result<Vec<Theirs>> {
    let (frames, _) = scan(own, file, Some(len))
        .map_err(|damage| damaged(own.salt.number, damage.offset, damage.problem))?;
    let (mut theirs, mut start) = (Vec::new(), SEGMENT_HEADER);
    for frame in frames {
        let end = usize::try_from(frame.end).unwrap_or(usize::MAX);
        let seqs: Vec<Seq> = frame
            .records
            .iter()
            .filter_map(|(_, record)| match record {
                Record::Accepted(entry) if whose.is(&entry.head) => Some(entry.head.seq),
                _ => None,
            })
            .collect();
        if !seqs.is_empty() {
            theirs.push((start..end, seqs));
        }
        start = end;
    }
    Ok(theirs)
}

/// The header that a segment's file begins with.
fn header(number: u64, file: &[u8]) -> io::Result<SegmentHeader> {
    match SegmentHeader::decode(file) {
        HeaderBytes::Valid(header) if header.salt.number == number => Ok(header),
        _ => Err(damaged(number, 0, "not its header")),
    }
}

fn damaged(number: u64, at: usize, problem: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("segment {number} at byte {at}: {problem}; see `journal check`"),
    )
}
