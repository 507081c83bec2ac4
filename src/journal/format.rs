//! The bytes of the journal: segment header, frame, record; encoding and decoding, and nothing else.
//!
//! Not for files, replay rules or state. Upholds law 1 (acked is kept): whatever was not written by this journal,
//! at this place of this segment, does not decode. No input makes this code panic.
//!
//! All integers are little endian. A *segment* is one file: a header, then frames, each starting at a multiple of
//! 32 bytes. A *frame* is one commit: written by one `write`, valid as a whole or not at all.
//!
//! ```text
//! segment header, 64 bytes
//!    0  8  magic  "AWOJRNL\n"
//!    8  1  format version, 1 (this layout's first 16 bytes never change)
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
//!    0  4  magic  "FRM1"
//!    4  4  payload length in bytes, padding included; header and payload together are a multiple of 32
//!    8  4  number of records
//!   12  4  how many 512-byte sectors of the frame are all zeros (see `Fault::Payload`)
//!   16  8  the newest time known, ms
//!   24  4  salted CRC of the payload
//!   28  4  salted CRC of bytes 0..28
//!   32  …  records back to back, then 4 to 35 bytes 0x5A
//!
//! record
//!    0  4  content length in bytes
//!    4  4  salted CRC of bytes 0..4 and the content
//!    8  …  content, by its first byte:
//!   accepted  1, direction (0 to Aura, 1 to Kernel), contact length, 0, seq u64, accepted at ms u64,
//!             channel 16, dedup key 16, contact (UTF-8), body (the rest)
//!   settled   2, outcome (0 delivered, 1 delivered with reference, 2 dead letter), text length u16, seq u64, text
//!   trimmed   3, 0, 0, 0, u64: segments below this number are no longer needed
//!
//! salted CRC: CRC-32C of (segment number u64, nonce u64, offset in the file of the frame or record u64, data)
//! ```
//!
//! The salt makes bytes of another segment, or of another place, never look valid (recycled blocks, copied files);
//! the nonce keeps a sender from crafting a message body that does.

use std::io;

use super::{DedupKey, Direction, Outcome, Seq};

pub(super) const SEGMENT_HEADER: usize = 64;
pub(super) const FRAME_HEADER: usize = 32;
const RECORD_HEADER: usize = 8;
/// A frame header never straddles a sector, so a torn write leaves it whole or zero.
pub(super) const ALIGN: usize = 32;
/// What every disk writes whole or not at all.
const SECTOR: usize = 512;
pub(super) const VERSION: u8 = 1;
const SEGMENT_MAGIC: [u8; 8] = *b"AWOJRNL\n";
const FRAME_MAGIC: [u8; 4] = *b"FRM1";
/// Not zero, so that the last sector of a frame is never mistaken for one that was not written.
const PADDING: u8 = 0x5A;
const MIN_PADDING: usize = 4;
const ACCEPTED_FIXED: usize = 52;

/// What ties a checksum to one place of one segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Salt {
    pub number: u64,
    pub nonce: u64,
}

impl Salt {
    fn crc(self, offset: u64, parts: &[&[u8]]) -> u32 {
        let mut salt = [0; 24];
        salt[..8].copy_from_slice(&self.number.to_le_bytes());
        salt[8..16].copy_from_slice(&self.nonce.to_le_bytes());
        salt[16..].copy_from_slice(&offset.to_le_bytes());
        parts.iter().fold(crc32c::crc32c(&salt), |crc, part| {
            crc32c::crc32c_append(crc, part)
        })
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
    /// Short or all zeros: creation was cut off before the header was synced, so the file was never used.
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
    Settled { seq: Seq, outcome: Outcome },
    Trimmed { first_live: u64 },
}

/// A message that was accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
#[allow(clippy::struct_field_names)]
pub(super) struct Accepted<'a> {
    pub seq: Seq,
    pub direction: Direction,
    pub channel: [u8; 16],
    pub contact: &'a str,
    pub dedup: DedupKey,
    pub accepted_at_ms: u64,
    pub body: &'a [u8],
}

/// Where a record lies in its segment.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub offset: u64,
    pub len: u32,
}

/// Bytes that a message takes in a frame.
pub(super) fn accepted_len(contact: &str, body: &[u8]) -> u64 {
    (RECORD_HEADER + ACCEPTED_FIXED + contact.len() + body.len()) as u64
}

/// The most that a frame adds to its records: header and padding.
pub(super) const FRAME_OVERHEAD: u64 = (FRAME_HEADER + MIN_PADDING + ALIGN) as u64;

/// Writes one frame for `offset` into `out` (which is cleared) and says where each record will lie.
///
/// # Errors
/// A payload of 4 GiB and more; the caller's limits keep far below.
pub(super) fn encode_frame(
    out: &mut Vec<u8>,
    salt: Salt,
    offset: u64,
    newest_ms: u64,
    records: &[Record<'_>],
) -> io::Result<Vec<Place>> {
    out.clear();
    out.resize(FRAME_HEADER, 0);
    let mut places = Vec::with_capacity(records.len());
    for record in records {
        let start = out.len();
        out.extend_from_slice(&[0; RECORD_HEADER]);
        encode_content(out, record);
        let len = small(out.len() - start - RECORD_HEADER)?;
        let at = offset + start as u64;
        let (head, content) = out[start..].split_at_mut(RECORD_HEADER);
        let crc = salt.crc(at, &[&len.to_le_bytes(), content]);
        head[..4].copy_from_slice(&len.to_le_bytes());
        head[4..].copy_from_slice(&crc.to_le_bytes());
        places.push(Place {
            offset: at,
            len: small(out.len() - start)?,
        });
    }
    let padded = (out.len() + MIN_PADDING).next_multiple_of(ALIGN);
    out.resize(padded, PADDING);

    let mut header = [0; FRAME_HEADER];
    header[..4].copy_from_slice(&FRAME_MAGIC);
    header[4..8].copy_from_slice(&small(padded - FRAME_HEADER)?.to_le_bytes());
    header[8..12].copy_from_slice(&small(records.len())?.to_le_bytes());
    header[12..16].copy_from_slice(&zero_sectors(offset, out).to_le_bytes());
    header[16..24].copy_from_slice(&newest_ms.to_le_bytes());
    header[24..28].copy_from_slice(&salt.crc(offset, &[&out[FRAME_HEADER..]]).to_le_bytes());
    let crc = salt.crc(offset, &[&header[..28]]);
    header[28..].copy_from_slice(&crc.to_le_bytes());
    out[..FRAME_HEADER].copy_from_slice(&header);
    Ok(places)
}

fn encode_content(out: &mut Vec<u8>, record: &Record<'_>) {
    match record {
        Record::Accepted(entry) => {
            let direction = match entry.direction {
                Direction::ToAura => 0,
                Direction::ToKernel => 1,
            };
            // The limit of 64 bytes is checked before; a longer contact would not decode, never decode wrongly.
            let contact = u8::try_from(entry.contact.len()).unwrap_or(u8::MAX);
            out.extend_from_slice(&[1, direction, contact, 0]);
            out.extend_from_slice(&entry.seq.0.to_le_bytes());
            out.extend_from_slice(&entry.accepted_at_ms.to_le_bytes());
            out.extend_from_slice(&entry.channel);
            out.extend_from_slice(&entry.dedup.0);
            out.extend_from_slice(entry.contact.as_bytes());
            out.extend_from_slice(entry.body);
        }
        Record::Settled { seq, outcome } => {
            let (tag, text) = match outcome {
                Outcome::Delivered { reference: None } => (0, ""),
                Outcome::Delivered {
                    reference: Some(text),
                } => (1, text.as_str()),
                Outcome::DeadLetter { reason } => (2, reason.as_str()),
            };
            out.extend_from_slice(&[2, tag]);
            out.extend_from_slice(&u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
            out.extend_from_slice(&seq.0.to_le_bytes());
            out.extend_from_slice(text.as_bytes());
        }
        Record::Trimmed { first_live } => {
            out.extend_from_slice(&[3, 0, 0, 0]);
            out.extend_from_slice(&first_live.to_le_bytes());
        }
    }
}

/// Reads the record at the start of `bytes`, which lie at `offset` in the segment; also its whole length.
pub(super) fn decode_record(salt: Salt, offset: u64, bytes: &[u8]) -> Option<(Record<'_>, usize)> {
    let len = usize::try_from(u32_at(bytes, 0)?).ok()?;
    let end = RECORD_HEADER.checked_add(len)?;
    let content = bytes.get(RECORD_HEADER..end)?;
    if u32_at(bytes, 4)? != salt.crc(offset, &[&bytes[..4], content]) {
        return None;
    }
    Some((decode_content(content)?, end))
}

fn decode_content(content: &[u8]) -> Option<Record<'_>> {
    let [kind, tag, a, b] = *content.first_chunk::<4>()?;
    match kind {
        1 => {
            let direction = match tag {
                0 => Direction::ToAura,
                1 => Direction::ToKernel,
                _ => return None,
            };
            let rest = content.get(ACCEPTED_FIXED..)?;
            let (contact, body) = rest.split_at_checked(usize::from(a))?;
            Some(Record::Accepted(Accepted {
                seq: Seq(u64_at(content, 4)?),
                accepted_at_ms: u64_at(content, 12)?,
                direction,
                channel: *content.get(20..)?.first_chunk()?,
                dedup: DedupKey(*content.get(36..)?.first_chunk()?),
                contact: str::from_utf8(contact).ok()?,
                body,
            }))
        }
        2 => {
            let text = content.get(12..)?;
            if text.len() != usize::from(u16::from_le_bytes([a, b])) {
                return None;
            }
            let text = str::from_utf8(text).ok()?.to_owned();
            let outcome = match tag {
                0 => Outcome::Delivered { reference: None },
                1 => Outcome::Delivered {
                    reference: Some(text),
                },
                2 => Outcome::DeadLetter { reason: text },
                _ => return None,
            };
            Some(Record::Settled {
                seq: Seq(u64_at(content, 4)?),
                outcome,
            })
        }
        3 => Some(Record::Trimmed {
            first_live: u64_at(content, 4)?,
        }),
        _ => None,
    }
}

/// A frame whose checksums hold.
#[derive(Debug)]
pub(super) struct Frame<'a> {
    /// Offset of the byte after it.
    pub end: usize,
    pub newest_ms: u64,
    pub records: Vec<(Place, Record<'a>)>,
}

/// Why there is no valid frame at an offset.
#[derive(Copy, Clone, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// The file ends inside the frame's header.
    Ended,
    /// The header is all zeros: its sector was never written.
    Blank,
    /// The header holds something else.
    Header,
    /// The header is right and the payload is not. `torn` tells an unfinished write from damage: a write that was
    /// cut off leaves sectors missing or zero, more of them than the header counts; a sector that was written
    /// and is wrong is damage.
    Payload { torn: bool },
    /// The checksums hold and the records make no sense: a defect of the writer, or forged.
    Records,
}

impl Fault {
    /// True if a write that was cut off explains it.
    pub fn is_torn_write(self) -> bool {
        matches!(self, Self::Ended | Self::Blank | Self::Payload { torn: true })
    }

    pub fn describe(self) -> &'static str {
        match self {
            Self::Ended => "the file ends inside a frame header",
            Self::Blank => "zeros where a frame should be",
            Self::Header => "a frame header that was not written here",
            Self::Payload { .. } => "a frame whose content does not match its checksum",
            Self::Records => "a frame whose records cannot be read",
        }
    }
}

/// Reads the frame at `offset` of the segment whose bytes are `file`.
pub(super) fn decode_frame(salt: Salt, file: &[u8], offset: usize) -> Result<Frame<'_>, Fault> {
    let at = offset as u64;
    let rest = file.get(offset..).unwrap_or_default();
    let header = rest.first_chunk::<FRAME_HEADER>().ok_or(Fault::Ended)?;
    if header.iter().all(|byte| *byte == 0) {
        return Err(Fault::Blank);
    }
    if header[..4] != FRAME_MAGIC || u32_at(header, 28) != Some(salt.crc(at, &[&header[..28]])) {
        return Err(Fault::Header);
    }
    let number = |at| u32_at(header, at).unwrap_or_default();
    let len = usize::try_from(number(4)).map_err(|_| Fault::Header)?;
    let end = FRAME_HEADER.checked_add(len).ok_or(Fault::Header)?;
    let Some(frame) = rest.get(..end) else {
        return Err(Fault::Payload { torn: true });
    };
    let payload = &frame[FRAME_HEADER..];
    if number(24) != salt.crc(at, &[payload]) {
        let nothing_after = rest[end..].iter().all(|byte| *byte == 0);
        let torn = nothing_after && zero_sectors(at, frame) > number(12);
        return Err(Fault::Payload { torn });
    }
    let mut records = Vec::new();
    let mut position = 0;
    for _ in 0..number(8) {
        let place = at + (FRAME_HEADER + position) as u64;
        let (record, len) = decode_record(salt, place, &payload[position..]).ok_or(Fault::Records)?;
        let len32 = u32::try_from(len).map_err(|_| Fault::Records)?;
        records.push((
            Place {
                offset: place,
                len: len32,
            },
            record,
        ));
        position += len;
    }
    let newest_ms = u64_at(header, 16).unwrap_or_default();
    Ok(Frame {
        end: offset + end,
        newest_ms,
        records,
    })
}

/// How many sectors after the frame's first hold only zeros of it (a share of a sector counts like a sector).
fn zero_sectors(offset: u64, frame: &[u8]) -> u32 {
    let first = SECTOR - usize::try_from(offset % SECTOR as u64).unwrap_or_default();
    let rest = frame.get(first..).unwrap_or_default();
    let count = rest
        .chunks(SECTOR)
        .filter(|sector| sector.iter().all(|byte| *byte == 0))
        .count();
    u32::try_from(count).unwrap_or(u32::MAX)
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
