//! Takes one contact out of the files: what nobody needs any more of its messages is overwritten, by writing each
//! segment that holds some of it anew.
//!
//! Not for what is still to be delivered, or kept until a person decides: that is told (`left`), and stays. Upholds law
//! 6, and law 2: the ids stay remembered, so that what is erased is not accepted once more.

use std::io;

use tokio::sync::oneshot;

use super::format::{
    FRAME_HEADER, Head, Record, SEGMENT_HEADER, Salt, decode_frame_at, erase_records, frame_len, is_frame_of,
};
use super::group::{Answer, Command};
use super::keeper::Keeper;
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
        for number in numbers.into_iter().filter(|number| *number < below) {
            // Given back meanwhile.
            let Some(salt) = self.shared.state().salt(number) else {
                continue;
            };
            let mut file = self.storage.read(number, 0, usize::MAX)?;
            let sent = self.sent_in(number, salt, &file, whose)?;
            if !sent.is_empty() {
                let (reply, done) = oneshot::channel();
                let forgotten = sent.len() as u64;
                ask(Command::Forget { seqs: sent, reply });
                done.blocking_recv()
                    .map_err(io::Error::other)?
                    .map_err(io::Error::other)?;
                erased.sent += forgotten;
            }
            let (records, left) = self.blank(number, salt, &mut file, whose)?;
            erased.left += left;
            if records > 0 {
                self.storage.replace(number, &file)?;
                self.shared.state().set_bytes(number, file.len() as u64);
                erased.records += records;
                erased.segments += 1;
            }
        }
        // They hold what stood in segments that are gone.
        self.storage.discard_waiting()?;
        Ok(erased)
    }

    fn sent_in(&self, number: u64, salt: Salt, file: &[u8], whose: &Whose) -> io::Result<Vec<Seq>> {
        let mut seqs = Vec::new();
        for (at, end) in frames(number, salt, file)? {
            let frame = decode_frame_at(salt, at as u64, &file[at..end])
                .map_err(|fault| damaged(number, at, fault.describe()))?;
            for (_, record) in frame.records {
                if let Record::Accepted(entry) = record
                    && whose.is(&entry.head)
                    && self.shared.state().kind(entry.head.seq) == Some(Kind::Sent)
                {
                    seqs.push(entry.head.seq);
                }
            }
        }
        Ok(seqs)
    }

    /// Blanks what is not needed in the bytes of a segment, and cuts off what stands behind its last frame. Says how many
    /// records were blanked, and how many messages were left.
    fn blank(&self, number: u64, salt: Salt, file: &mut Vec<u8>, whose: &Whose) -> io::Result<(u64, u64)> {
        let (mut records, mut left) = (0, std::collections::HashSet::new());
        let places = frames(number, salt, file)?;
        for (at, end) in &places {
            let frame = decode_frame_at(salt, *at as u64, &file[*at..*end])
                .map_err(|fault| damaged(number, *at, fault.describe()))?;
            let meant: Vec<Seq> = frame
                .records
                .iter()
                .filter_map(|(_, record)| match record {
                    Record::Accepted(entry) if whose.is(&entry.head) => Some(entry.head.seq),
                    _ => None,
                })
                .collect();
            if meant.is_empty() {
                continue;
            }
            let state = self.shared.state();
            let needed = |seq: Seq| {
                state.position(seq).is_some_and(|(position, _)| {
                    position.segment == number && (*at as u64..*end as u64).contains(&position.place.offset)
                })
            };
            left.extend(meant.iter().copied().filter(|seq| needed(*seq)));
            records += erase_records(salt, *at as u64, &mut file[*at..*end], &|head| {
                whose.is(head) && !needed(head.seq)
            });
        }
        file.truncate(places.last().map_or(SEGMENT_HEADER, |(_, end)| *end));
        Ok((records, left.len() as u64))
    }
}

/// Where the frames of a segment begin and end.
fn frames(number: u64, salt: Salt, file: &[u8]) -> io::Result<Vec<(usize, usize)>> {
    let mut frames = Vec::new();
    let mut at = SEGMENT_HEADER;
    while let Some(header) = file.get(at..at + FRAME_HEADER) {
        // Behind the last frame stands what was there before.
        let Some(len) = frame_len(header).filter(|_| is_frame_of(salt, at as u64, header)) else {
            break;
        };
        let end = at + len;
        if end > file.len() {
            return Err(damaged(number, at, "a frame that goes beyond the file"));
        }
        frames.push((at, end));
        at = end;
    }
    Ok(frames)
}

fn damaged(number: u64, at: usize, problem: &str) -> io::Error {
    io::Error::new(
        io::ErrorKind::InvalidData,
        format!("segment {number} at byte {at}: {problem}; see `journal check`"),
    )
}
