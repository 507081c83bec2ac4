//! The bytes of the journal: segment header, frame, record; encoding and decoding, and nothing else.
//!
//! Not for files, replay rules or state. Upholds law 1 (acked is kept): whatever was not written by this journal,
//! at this place of this segment, does not decode. No input makes this code panic.
//!
//! All integers are little endian. A *segment* is one file: a header, then frames, each starting at a multiple of
//! 32 bytes. A *frame* is one commit: written by one `write`, valid as a whole or not at all. Behind the last frame
//! stands whatever the file held before: zeros, or bytes of a segment that it was before.
//!
//! ```text
//! segment header, 64 bytes
//!    0  8  magic  "AWOJRNL\n"
//!    8  1  format version, 2 (this layout's first 16 bytes never change)
//!    9  3  zero
//!   12  4  CRC-32C of bytes 0..12 and 16..64
//!   16  8  this segment's number, as in the file's name
//!   24  8  nonce: random, part of every salt below
//!   32  8  number of the segment before it, 0 = none
//!   40  8  how many bytes of the segment before it are valid: this seals it
//!   48  8  the lowest sequence number not yet given out
//!   56  8  the newest time known, ms since the epoch
//!
//! frame
//!    0  4  magic  "FRM2"
//!    4  4  payload length in bytes, padding included; header and payload together are a multiple of 32
//!    8  4  number of records; 0 in a mark, which says that the frame before it was whole
//!   12  4  the segment's number, its low 32 bits
//!   16  8  the newest time known, ms
//!   24  4  salted CRC of the first 8 bytes of each record, one after another
//!   28  4  salted CRC of bytes 0..28
//!   32  …  records back to back, then zeros up to the multiple of 32
//!
//! record
//!    0  4  content length in bytes
//!    4  4  salted CRC of bytes 0..4 and the content
//!    8  …  content, by its first byte:
//!
//!   accepted, 112 bytes and what follows
//!       0  1  1
//!       1  1  direction: 0 to Aura, 1 to Kernel
//!       2  1  flags: 1 written again (moved here from an older segment), 2 a dead letter sent on its way again; and 4 times
//!             the high byte of the trace's length
//!       3  1  length of the trace in bytes, its low byte
//!       4  8  sequence number
//!      12  8  accepted at, ms
//!      20  8  the message's own time, ms; all ones = none
//!      28  4  number of the key that the rest is sealed with, 0 = not sealed
//!      32 16  channel
//!      48 16  dedup key
//!      64 16  contact key: keyed digest of the contact
//!      80 16  request, zeros = none
//!      96  8  environment
//!     104  6  tag of the resource
//!     110  1  origin: 0 a user or Aura, 1 WhatsApp's report on the message whose reference stands as the request,
//!             2 one part of a reply again (and 4 times how often), 3 the bridge
//!     111  1  which part, from 0
//!     112  …  trace (UTF-8), then sealed or plain: contact length 1, contact (UTF-8), body.
//!             Sealed is: nonce 12, AES-256-GCM ciphertext, tag 16; associated data are bytes 32..80.
//!   settled  2, outcome (0 delivered, 1 delivered with a reference, 2 dead letter, 3 dropped), length of the rest u16,
//!            sequence number u64, at ms u64, then the reference (16 bytes) or the reason (UTF-8)
//!   trimmed  3, 0, 0, 0, u64: segments below this number are no longer needed
//!   noted    4, flags (1 an outcome is unknown, 2 begun before its turn, 4 times the rank of what Aura was told of it),
//!            parts u16, sequence number u64, attempts u32
//!   parked   5, direction, 1 parked or 0 released, 0, channel 16, contact key 16
//!   erased   6, then as in the accepted record that stood here bytes 1, 4..28, 32..64 and 96..110, and of byte 2 the two
//!            flags (its id is still remembered, its contact is not); all else zeros, to the length of that record
//!   part     7, 0, which part from 0 u16, sequence number u64, reference 16: a part that is not the last was sent
//!
//! salted CRC: CRC-32C of (segment number u64, nonce u64, offset in the file of the frame or record u64, data)
//! ```
//!
//! The salt makes bytes of another segment, or of another place, never look valid (recycled files, copied files);
//! the nonce keeps a sender from crafting a message body that does.

use std::io;

use super::ids::Born;
use super::{
    Address, ContactKey, DedupKey, Direction, Lane, Note, Origin, Outcome, Reference, RequestId, Seq,
};

pub(super) const SEGMENT_HEADER: usize = 64;
pub(super) const FRAME_HEADER: usize = 32;
const RECORD_HEADER: usize = 8;
/// A frame header never straddles a sector, so a torn write leaves it whole or as it was.
pub(super) const ALIGN: usize = 32;
pub(super) const VERSION: u8 = 2;
const SEGMENT_MAGIC: [u8; 8] = *b"AWOJRNL\n";
const FRAME_MAGIC: [u8; 4] = *b"FRM2";
/// The fixed part of an accepted record's content.
pub(super) const ACCEPTED_FIXED: usize = 112;
/// By how many bits the high byte of the trace's length stands above the flags.
const TRACE_LEN_HIGH: u32 = 2;
const WRITTEN_AGAIN: u8 = 1;
const REPLAYED: u8 = 2;

/// What ties a checksum to one place of one segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Salt {
    pub number: u64,
    pub nonce: u64,
}

impl Salt {
    /// The checksum of nothing, at this place.
    fn begin(self, offset: u64) -> u32 {
        let mut salt = [0; 24];
        salt[..8].copy_from_slice(&self.number.to_le_bytes());
        salt[8..16].copy_from_slice(&self.nonce.to_le_bytes());
        salt[16..].copy_from_slice(&offset.to_le_bytes());
        crc32c::crc32c(&salt)
    }

    fn crc(self, offset: u64, parts: &[&[u8]]) -> u32 {
        parts
            .iter()
            .fold(self.begin(offset), |crc, part| crc32c::crc32c_append(crc, part))
    }
}

/// The first 64 bytes of a segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub salt: Salt,
    pub previous: Link,
    pub next_seq: u64,
    pub newest_ms: u64,
}

/// A segment and how many of its bytes are valid. Number 0 is "none".
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Link {
    pub number: u64,
    pub len: u64,
}

/// What the first bytes of a segment file are.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum HeaderBytes {
    Valid(SegmentHeader),
    /// Short or zeros: creation was cut off before the header was synced, so the file was never used.
    Unfinished,
    /// Sound, but written by another version.
    Version(u8),
    Bad,
}

impl SegmentHeader {
    pub fn encode(&self) -> [u8; SEGMENT_HEADER] {
        let mut out = [0; SEGMENT_HEADER];
        out[..8].copy_from_slice(&SEGMENT_MAGIC);
        out[8] = VERSION;
        let numbers = [
            self.salt.number,
            self.salt.nonce,
            self.previous.number,
            self.previous.len,
            self.next_seq,
            self.newest_ms,
        ];
        for (place, number) in out[16..].chunks_exact_mut(8).zip(numbers) {
            place.copy_from_slice(&number.to_le_bytes());
        }
        let crc = header_crc(&out);
        out[12..16].copy_from_slice(&crc.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> HeaderBytes {
        let Some(header) = bytes.first_chunk::<SEGMENT_HEADER>() else {
            return HeaderBytes::Unfinished;
        };
        if header.iter().all(|byte| *byte == 0) {
            return HeaderBytes::Unfinished;
        }
        let u64_at = |at| u64_at(header, at).unwrap_or_default();
        if header[..8] != SEGMENT_MAGIC || u32_at(header, 12) != Some(header_crc(header)) {
            return HeaderBytes::Bad;
        }
        if header[8] != VERSION {
            return HeaderBytes::Version(header[8]);
        }
        HeaderBytes::Valid(SegmentHeader {
            salt: Salt {
                number: u64_at(16),
                nonce: u64_at(24),
            },
            previous: Link {
                number: u64_at(32),
                len: u64_at(40),
            },
            next_seq: u64_at(48),
            newest_ms: u64_at(56),
        })
    }
}

fn header_crc(header: &[u8; SEGMENT_HEADER]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&header[..12]), &header[16..])
}

/// One fact in the journal, borrowing the message.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Record<'a> {
    Accepted(Accepted<'a>),
    Settled {
        seq: Seq,
        outcome: Outcome,
        at_ms: u64,
    },
    Trimmed {
        first_live: u64,
    },
    Noted {
        seq: Seq,
        note: Note,
    },
    Part {
        seq: Seq,
        part: u16,
        reference: Reference,
    },
    Parked {
        lane: Lane,
        parked: bool,
    },
    /// A message that was accepted here, without contact and body.
    Erased(Head),
}

/// A message that was accepted: the content of its record, and what is read from it.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Accepted<'a> {
    pub head: Head,
    pub trace: &'a str,
    /// Contact and body, sealed or plain.
    pub sealed: &'a [u8],
}

/// The fixed part of an accepted record.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Head {
    pub seq: Seq,
    pub address: Address,
    /// It was accepted in an older segment: its id is remembered already.
    pub written_again: bool,
    pub replayed: bool,
    pub accepted_at_ms: u64,
    pub born_ms: Option<u64>,
    pub key: u32,
    pub dedup: DedupKey,
    pub request: Option<RequestId>,
    pub origin: Origin,
}

impl Head {
    /// Appends the fixed part and the trace.
    pub fn encode(&self, trace: &str, out: &mut Vec<u8>) {
        // A trace that is too long was left out before; a longer one would not decode, never decode wrongly.
        let [low, high] = u16::try_from(trace.len()).unwrap_or(u16::MAX).to_le_bytes();
        let flags = if self.written_again { WRITTEN_AGAIN } else { 0 }
            | if self.replayed { REPLAYED } else { 0 }
            | high << TRACE_LEN_HIGH;
        out.extend_from_slice(&[1, direction_byte(self.address.direction), flags, low]);
        out.extend_from_slice(&self.seq.0.to_le_bytes());
        out.extend_from_slice(&self.accepted_at_ms.to_le_bytes());
        out.extend_from_slice(&self.born_ms.unwrap_or(u64::MAX).to_le_bytes());
        out.extend_from_slice(&self.key.to_le_bytes());
        out.extend_from_slice(&self.address.channel);
        out.extend_from_slice(&self.dedup.0);
        out.extend_from_slice(&self.address.contact.0);
        out.extend_from_slice(&self.request.map_or([0; 16], |request| request.0));
        out.extend_from_slice(&self.address.environment);
        out.extend_from_slice(&self.address.tag);
        out.extend_from_slice(&self.origin.to_bytes());
        out.extend_from_slice(trace.as_bytes());
    }

    /// What its id is filed under.
    pub fn born(&self) -> Born {
        self.born_ms.map_or(Born::Unknown, Born::At)
    }

    /// Whether it was accepted here and now, so that its id is to be remembered.
    pub fn is_new(&self) -> bool {
        !self.written_again && !self.replayed
    }

    fn decode(content: &[u8]) -> Option<Self> {
        let [_, direction, flags, _] = *content.first_chunk::<4>()?;
        let request: [u8; 16] = *content.get(80..)?.first_chunk()?;
        Some(Self {
            seq: Seq(u64_at(content, 4)?),
            address: Address {
                direction: direction_of(direction)?,
                channel: *content.get(32..)?.first_chunk()?,
                environment: *content.get(96..)?.first_chunk()?,
                tag: *content.get(104..)?.first_chunk()?,
                contact: ContactKey(*content.get(64..)?.first_chunk()?),
            },
            written_again: flags & WRITTEN_AGAIN != 0,
            replayed: flags & REPLAYED != 0,
            accepted_at_ms: u64_at(content, 12)?,
            born_ms: Some(u64_at(content, 20)?).filter(|born| *born != u64::MAX),
            key: u32_at(content, 28)?,
            dedup: DedupKey(*content.get(48..)?.first_chunk()?),
            request: Some(RequestId(request)).filter(|_| request != [0; 16]),
            origin: Origin::from_bytes(*content.get(110..)?.first_chunk()?),
        })
    }
}

/// Gives an encoded accepted record the number that it is accepted under.
pub(super) fn set_seq(content: &mut [u8], seq: Seq) {
    if let Some(place) = content.get_mut(4..12) {
        place.copy_from_slice(&seq.0.to_le_bytes());
    }
}

fn direction_byte(direction: Direction) -> u8 {
    match direction {
        Direction::ToAura => 0,
        Direction::ToKernel => 1,
    }
}

fn direction_of(byte: u8) -> Option<Direction> {
    match byte {
        0 => Some(Direction::ToAura),
        1 => Some(Direction::ToKernel),
        _ => None,
    }
}

/// What goes into a frame: a record, or the content of an accepted one that was encoded before.
pub(super) enum Part<'a> {
    Record(&'a Record<'a>),
    Content(&'a [u8]),
}

/// Where a record lies in its segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub offset: u64,
    pub len: u32,
}

/// The most that a record that is no message takes in a frame.
pub(super) const SMALL_RECORD: u64 = 8 + 20 + 64;

/// Bytes that an accepted record's content takes in a frame.
pub(super) fn record_len(content: &[u8]) -> u64 {
    (RECORD_HEADER + content.len()) as u64
}

/// The most that a frame adds to its records: header and padding.
pub(super) const FRAME_OVERHEAD: u64 = (FRAME_HEADER + ALIGN) as u64;

/// Writes one frame for `offset` into `out` (which is cleared) and says where each record will lie.
///
/// # Errors
/// A payload of 4 GiB and more; the caller's limits keep far below.
pub(super) fn encode_frame(
    out: &mut Vec<u8>,
    salt: Salt,
    offset: u64,
    newest_ms: u64,
    parts: &[Part<'_>],
) -> io::Result<Vec<Place>> {
    out.clear();
    out.resize(FRAME_HEADER, 0);
    let mut places = Vec::with_capacity(parts.len());
    let mut heads = salt.begin(offset);
    for part in parts {
        let start = out.len();
        out.extend_from_slice(&[0; RECORD_HEADER]);
        match part {
            Part::Content(content) => out.extend_from_slice(content),
            Part::Record(record) => encode_content(out, record),
        }
        let len = small(out.len() - start - RECORD_HEADER)?;
        let at = offset + start as u64;
        let (head, content) = out[start..].split_at_mut(RECORD_HEADER);
        let crc = salt.crc(at, &[&len.to_le_bytes(), content]);
        head[..4].copy_from_slice(&len.to_le_bytes());
        head[4..].copy_from_slice(&crc.to_le_bytes());
        heads = crc32c::crc32c_append(heads, head);
        places.push(Place {
            offset: at,
            len: small(out.len() - start)?,
        });
    }
    let padded = out.len().next_multiple_of(ALIGN);
    out.resize(padded, 0);

    let mut header = [0; FRAME_HEADER];
    header[..4].copy_from_slice(&FRAME_MAGIC);
    header[4..8].copy_from_slice(&small(padded - FRAME_HEADER)?.to_le_bytes());
    header[8..12].copy_from_slice(&small(parts.len())?.to_le_bytes());
    header[12..16].copy_from_slice(&low32(salt.number));
    header[16..24].copy_from_slice(&newest_ms.to_le_bytes());
    header[24..28].copy_from_slice(&heads.to_le_bytes());
    let crc = salt.crc(offset, &[&header[..28]]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    out[..FRAME_HEADER].copy_from_slice(&header);
    Ok(places)
}

fn low32(number: u64) -> [u8; 4] {
    let [a, b, c, d, ..] = number.to_le_bytes();
    [a, b, c, d]
}

/// Whether this may be the header of a file whose creation was cut off: only zeros were there before.
pub(super) fn may_be_torn(header: &[u8]) -> bool {
    let written = header
        .iter()
        .rposition(|byte| *byte != 0)
        .map_or(0, |last| last + 1);
    let magic = written.min(SEGMENT_MAGIC.len());
    header[..magic] == SEGMENT_MAGIC[..magic]
}

/// Whether a frame of this segment may stand in a file whose header is not there: then the file was used, and its
/// header is lost.
pub(super) fn holds_frames_of(number: u64, file: &[u8]) -> bool {
    file.chunks(ALIGN)
        .any(|chunk| chunk.len() == ALIGN && chunk[..4] == FRAME_MAGIC && chunk[12..16] == low32(number))
}

pub(super) fn encode_content(out: &mut Vec<u8>, record: &Record<'_>) {
    match record {
        Record::Accepted(entry) => {
            entry.head.encode(entry.trace, out);
            out.extend_from_slice(entry.sealed);
        }
        Record::Settled { seq, outcome, at_ms } => {
            let (tag, rest) = match outcome {
                Outcome::Delivered { reference: None } => (0, &[][..]),
                Outcome::Delivered {
                    reference: Some(reference),
                } => (1, &reference.0[..]),
                Outcome::DeadLetter { reason } => (2, reason.as_bytes()),
                Outcome::Dropped { reason } => (3, reason.as_bytes()),
            };
            out.extend_from_slice(&[2, tag]);
            out.extend_from_slice(&u16::try_from(rest.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(&seq.0.to_le_bytes());
            out.extend_from_slice(&at_ms.to_le_bytes());
            out.extend_from_slice(rest);
        }
        Record::Trimmed { first_live } => {
            out.extend_from_slice(&[3, 0, 0, 0]);
            out.extend_from_slice(&first_live.to_le_bytes());
        }
        Record::Noted { seq, note } => {
            let flags = u8::from(note.unknown) | u8::from(note.begun) << 1 | note.told.min(7) << 2;
            out.extend_from_slice(&[4, flags]);
            out.extend_from_slice(&note.parts.to_le_bytes());
            out.extend_from_slice(&seq.0.to_le_bytes());
            out.extend_from_slice(&note.attempts.to_le_bytes());
        }
        Record::Part { seq, part, reference } => {
            out.extend_from_slice(&[7, 0]);
            out.extend_from_slice(&part.to_le_bytes());
            out.extend_from_slice(&seq.0.to_le_bytes());
            out.extend_from_slice(&reference.0);
        }
        Record::Parked { lane, parked } => {
            out.extend_from_slice(&[5, direction_byte(lane.direction), u8::from(*parked), 0]);
            out.extend_from_slice(&lane.channel);
            out.extend_from_slice(&lane.contact.0);
        }
        Record::Erased(head) => {
            let start = out.len();
            head.encode("", out);
            blank(&mut out[start..]);
        }
    }
}

/// Takes contact and body out of an accepted record's content; what is left is that its id was accepted.
fn blank(content: &mut [u8]) {
    if let Some(kind) = content.first_mut() {
        *kind = 6;
    }
    if let Some(flags) = content.get_mut(2) {
        *flags &= WRITTEN_AGAIN | REPLAYED;
    }
    // The trace's length; the key; contact and request; origin, trace and what is sealed.
    for gone in [3..4, 28..32, 64..96, 110..content.len()] {
        if let Some(bytes) = content.get_mut(gone) {
            bytes.fill(0);
        }
    }
}

/// Takes contact and body out of those accepted records of a frame at `offset` that are wanted, in place: nothing else
/// moves or changes. The frame must be a valid one.
pub(super) fn erase_records(
    salt: Salt,
    offset: u64,
    frame: &mut [u8],
    wanted: &dyn Fn(&Head) -> bool,
) -> u64 {
    let count = u32_at(frame, 8).unwrap_or_default();
    let (mut at, mut erased, mut heads) = (FRAME_HEADER, 0, salt.begin(offset));
    for _ in 0..count {
        let place = offset + at as u64;
        let len = u32_at(frame, at).and_then(|len| usize::try_from(len).ok());
        let Some(record) = len.and_then(|len| frame.get_mut(at..at + RECORD_HEADER + len)) else {
            break;
        };
        let (head, content) = record.split_at_mut(RECORD_HEADER);
        if content.first() == Some(&1) && Head::decode(content).is_some_and(|head| wanted(&head)) {
            blank(content);
            let crc = salt.crc(place, &[&head[..4], content]);
            head[4..].copy_from_slice(&crc.to_le_bytes());
            erased += 1;
        }
        heads = crc32c::crc32c_append(heads, head);
        at += record.len();
    }
    frame[24..28].copy_from_slice(&heads.to_le_bytes());
    let crc = salt.crc(offset, &[&frame[..28]]);
    frame[28..FRAME_HEADER].copy_from_slice(&crc.to_le_bytes());
    erased
}

/// Reads the record at the start of `bytes`, which lie at `offset` in the segment; also its whole length.
pub(super) fn decode_record(salt: Salt, offset: u64, bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let content = whole_record(salt, offset, bytes)?;
    Some((decode_content(content)?, RECORD_HEADER + content.len()))
}

fn decode_content(content: &[u8]) -> Option<Record<'_>> {
    let [kind, tag, a, b] = *content.first_chunk::<4>()?;
    match kind {
        1 => {
            let head = Head::decode(content)?;
            let trace_len = usize::from(u16::from_le_bytes([b, a >> TRACE_LEN_HIGH]));
            let (trace, sealed) = content.get(ACCEPTED_FIXED..)?.split_at_checked(trace_len)?;
            Some(Record::Accepted(Accepted {
                head,
                trace: str::from_utf8(trace).ok()?,
                sealed,
            }))
        }
        2 => {
            let rest = content.get(20..)?;
            if rest.len() != usize::from(u16::from_le_bytes([a, b])) {
                return None;
            }
            let text = || str::from_utf8(rest).map(ToOwned::to_owned).ok();
            let outcome = match tag {
                0 => Outcome::Delivered { reference: None },
                1 => Outcome::Delivered {
                    reference: Some(Reference(rest.try_into().ok()?)),
                },
                2 => Outcome::DeadLetter { reason: text()? },
                3 => Outcome::Dropped { reason: text()? },
                _ => return None,
            };
            Some(Record::Settled {
                seq: Seq(u64_at(content, 4)?),
                at_ms: u64_at(content, 12)?,
                outcome,
            })
        }
        3 => Some(Record::Trimmed {
            first_live: u64_at(content, 4)?,
        }),
        4 => Some(Record::Noted {
            seq: Seq(u64_at(content, 4)?),
            note: Note {
                attempts: u32_at(content, 12)?,
                parts: u16::from_le_bytes([a, b]),
                unknown: tag & 1 != 0,
                begun: tag & 2 != 0,
                told: tag >> 2 & 7,
            },
        }),
        5 => Some(Record::Parked {
            lane: Lane {
                direction: direction_of(tag)?,
                channel: *content.get(4..)?.first_chunk()?,
                contact: ContactKey(*content.get(20..)?.first_chunk()?),
            },
            parked: a != 0,
        }),
        6 => Some(Record::Erased(Head::decode(content)?)),
        7 => Some(Record::Part {
            seq: Seq(u64_at(content, 4)?),
            part: u16::from_le_bytes([a, b]),
            reference: Reference(*content.get(12..)?.first_chunk()?),
        }),
        _ => None,
    }
}

/// A frame whose checksums hold.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// Offset of the byte after it.
    pub end: u64,
    pub newest_ms: u64,
    pub records: Vec<(Place, Record<'a>)>,
}

/// Why there is no valid frame at an offset.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The file ends inside the frame's header.
    Ended,
    /// The header is all zeros: nothing was ever written here.
    Blank,
    /// The header holds something else.
    Header,
    /// The header is right and the content is not.
    Payload,
    /// The checksums hold and the records make no sense: a defect of the writer, or forged.
    Records,
}

impl Fault {
    pub fn describe(self) -> &'static str {
        match self {
            Self::Ended => "the file ends inside a frame header",
            Self::Blank => "zeros where a frame should be",
            Self::Header => "a frame header that was not written here",
            Self::Payload => "a frame whose content does not match its checksum",
            Self::Records => "a frame whose records cannot be read",
        }
    }
}

/// Reads the frame at `offset` of the segment whose bytes are `file`.
pub(super) fn decode_frame(salt: Salt, file: &[u8], offset: usize) -> Result<Frame<'_>, Fault> {
    decode_frame_at(salt, offset as u64, file.get(offset..).unwrap_or_default())
}

/// How long the frame is that begins with these bytes, if they look like a frame's header.
pub(super) fn frame_len(header: &[u8]) -> Option<usize> {
    let header = header.first_chunk::<FRAME_HEADER>()?;
    let len = usize::try_from(u32_at(header, 4)?).ok()?;
    (header[..4] == FRAME_MAGIC).then(|| FRAME_HEADER + len)
}

/// Whether these bytes are the header of a frame that was written here.
pub(super) fn is_frame_of(salt: Salt, at: u64, header: &[u8]) -> bool {
    let header = header.first_chunk::<FRAME_HEADER>();
    header.is_some_and(|header| u32_at(header, 28) == Some(salt.crc(at, &[&header[..28]])))
}

/// Reads the frame at the start of `rest`, which lies at `at` in its segment.
pub(super) fn decode_frame_at(salt: Salt, at: u64, rest: &[u8]) -> Result<Frame<'_>, Fault> {
    let header = rest.first_chunk::<FRAME_HEADER>().ok_or(Fault::Ended)?;
    // The magic alone tells almost all that is no frame: this is asked of every 32 bytes behind damage.
    if header[..4] != FRAME_MAGIC {
        let blank = header.iter().all(|byte| *byte == 0);
        return Err(if blank { Fault::Blank } else { Fault::Header });
    }
    if u32_at(header, 28) != Some(salt.crc(at, &[&header[..28]])) {
        return Err(Fault::Header);
    }
    let number = |at| u32_at(header, at).unwrap_or_default();
    let len = usize::try_from(number(4)).map_err(|_| Fault::Header)?;
    let end = FRAME_HEADER.checked_add(len).ok_or(Fault::Header)?;
    let payload = rest.get(FRAME_HEADER..end).ok_or(Fault::Payload)?;
    let mut records = Vec::new();
    let mut position = 0;
    let mut heads = salt.begin(at);
    for _ in 0..number(8) {
        let place = at + (FRAME_HEADER + position) as u64;
        let record = payload.get(position..).ok_or(Fault::Payload)?;
        let content = whole_record(salt, place, record).ok_or(Fault::Payload)?;
        heads = crc32c::crc32c_append(heads, &record[..RECORD_HEADER]);
        let len = RECORD_HEADER + content.len();
        let len32 = u32::try_from(len).map_err(|_| Fault::Records)?;
        records.push((
            Place {
                offset: place,
                len: len32,
            },
            decode_content(content).ok_or(Fault::Records)?,
        ));
        position += len;
    }
    let padding = payload.get(position..).unwrap_or_default();
    if number(24) != heads || padding.len() >= ALIGN || padding.iter().any(|byte| *byte != 0) {
        return Err(Fault::Payload);
    }
    let newest_ms = u64_at(header, 16).unwrap_or_default();
    Ok(Frame {
        end: at + end as u64,
        newest_ms,
        records,
    })
}

/// The records that are whole by their own checksums in a frame that is not, as long as their lengths lead on.
pub(super) fn salvage(salt: Salt, file: &[u8], offset: usize) -> Vec<(Place, Record<'_>)> {
    let mut records = Vec::new();
    let Some(header) = file
        .get(offset..)
        .and_then(|rest| rest.first_chunk::<FRAME_HEADER>())
    else {
        return records;
    };
    let known = is_frame_of(salt, offset as u64, header);
    let count = if known {
        u32_at(header, 8).unwrap_or_default()
    } else {
        0
    };
    let mut at = offset + FRAME_HEADER;
    for _ in 0..count {
        let Some(rest) = file.get(at..) else { break };
        let Some(len) = u32_at(rest, 0).and_then(|len| usize::try_from(len).ok()) else {
            break;
        };
        if let Some((record, whole)) = decode_record(salt, at as u64, rest) {
            let len = u32::try_from(whole).unwrap_or(u32::MAX);
            let place = Place {
                offset: at as u64,
                len,
            };
            records.push((place, record));
        }
        at = at.saturating_add(RECORD_HEADER).saturating_add(len);
    }
    records
}

/// The content of the record at the start of `bytes`, if its checksum holds.
fn whole_record(salt: Salt, offset: u64, bytes: &[u8]) -> Option<&[u8]> {
    let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let content = bytes.get(RECORD_HEADER..RECORD_HEADER.checked_add(len)?)?;
    (u32_at(bytes, 4)? == salt.crc(offset, &[&bytes[..4], content])).then_some(content)
}

fn small(len: usize) -> io::Result<u32> {
    u32::try_from(len).map_err(|_| io::Error::new(io::ErrorKind::InvalidInput, "a commit of 4 GiB or more"))
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}

fn u64_at(bytes: &[u8], at: usize) -> Option<u64> {
    Some(u64::from_le_bytes(*bytes.get(at..)?.first_chunk()?))
}
