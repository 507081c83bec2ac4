//! The journal's words: messages, outcomes, limits, numbers for metrics.
//!
//! Not for behaviour. Upholds law 11 (every limit has a name and a unit) and law 6: debug output shows no content.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

/// The longest contact, in bytes.
pub const MAX_CONTACT_BYTES: usize = 64;
/// The longest reference of a delivery that is kept, in bytes; a longer one is cut.
pub const MAX_REFERENCE_BYTES: usize = 256;
/// The longest reason of a dead letter that is kept, in bytes; a longer one is cut.
pub const MAX_REASON_BYTES: usize = 64;

/// Limits and times of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// A segment file that has reached this many bytes takes no further commit. One commit may pass it.
    pub segment_bytes: u64,
    /// Bytes on disk beyond which [`Journal::append`](super::Journal::append) answers [`AppendError::Full`](super::AppendError::Full). Settling goes on.
    pub max_bytes: u64,
    /// The largest body, in bytes. A batch may hold four times as much, and always 1 MiB.
    pub max_body_bytes: usize,
    /// How long an id is remembered after its `accepted_at_ms`.
    pub dedup_window: Duration,
    /// How long a commit waits for company, and only while the last one held more than one command.
    pub gather: Duration,
    /// Commands that may wait for the writer; more callers wait in [`Journal::append`](super::Journal::append). At least 1.
    pub queue: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            max_bytes: 8 << 30,
            max_body_bytes: 5 << 20,
            dedup_window: Duration::from_secs(7 * 24 * 60 * 60),
            gather: Duration::from_millis(1),
            queue: 1024,
        }
    }
}

impl Options {
    pub(super) fn max_batch_bytes(&self) -> u64 {
        // 1 GiB keeps a frame far below the 4 GiB that its length can say.
        (self.max_body_bytes as u64)
            .saturating_mul(4)
            .clamp(1 << 20, 1 << 30)
    }
}

/// The number of an accepted message: strictly increasing over the journal's life, never used twice.
#[derive(Copy, Clone, Eq, PartialEq, Ord, PartialOrd, Hash, Debug)]
pub struct Seq(pub u64);

/// Which way a message goes.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub enum Direction {
    /// From Kernel to Aura.
    ToAura,
    /// From Aura to Kernel.
    ToKernel,
}

/// The digest of a message's id (with its channel and direction): what is delivered once.
#[derive(Copy, Clone, Eq, PartialEq, Hash)]
pub struct DedupKey(pub [u8; 16]);

impl fmt::Debug for DedupKey {
    /// Two bytes are enough to tell keys apart while debugging, and too few to be an id.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "DedupKey({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// A message to accept.
#[derive(Clone)]
pub struct NewEntry {
    /// Which way it goes.
    pub direction: Direction,
    /// The channel's UUID.
    pub channel: [u8; 16],
    /// The user at the other end, at most [`MAX_CONTACT_BYTES`].
    pub contact: String,
    /// What makes it the same message when it comes again.
    pub dedup: DedupKey,
    /// When it was accepted, ms since the epoch.
    pub accepted_at_ms: u64,
    /// The message, at most [`Options::max_body_bytes`].
    pub body: Bytes,
}

/// What came of one entry of [`Journal::append`](super::Journal::append).
#[derive(Debug, PartialEq, Eq, Copy, Clone)]
pub enum Appended {
    /// Accepted now.
    New(Seq),
    /// Accepted before, as this message, which is durable.
    Duplicate(Seq),
}

/// A pending message with its body.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub seq: Seq,
    /// Which way it goes.
    pub direction: Direction,
    /// The channel's UUID.
    pub channel: [u8; 16],
    /// The user at the other end.
    pub contact: String,
    /// When it was accepted, ms since the epoch.
    pub accepted_at_ms: u64,
    /// The message.
    pub body: Bytes,
}

/// A message that was accepted and not settled when the journal was opened.
#[derive(Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub seq: Seq,
    /// Which way it goes.
    pub direction: Direction,
    /// The channel's UUID.
    pub channel: [u8; 16],
    /// The user at the other end.
    pub contact: String,
    /// When it was accepted, ms since the epoch.
    pub accepted_at_ms: u64,
}

/// Contacts and bodies are personal: debug output never shows them (law 6).
macro_rules! debug_without_content {
    ($($kind:ident { $($field:ident),* })*) => {$(
        impl fmt::Debug for $kind {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.debug_struct(stringify!($kind))$(.field(stringify!($field), &self.$field))*.finish_non_exhaustive()
            }
        }
    )*};
}

debug_without_content! {
    NewEntry { direction, dedup, accepted_at_ms }
    Entry { seq, direction, accepted_at_ms }
    Pending { seq, direction, accepted_at_ms }
}

/// How a message ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The other side took it.
    Delivered {
        /// The other side's id for it, cut at [`MAX_REFERENCE_BYTES`].
        reference: Option<String>,
    },
    /// It was set aside for good.
    DeadLetter {
        /// A word for why, cut at [`MAX_REASON_BYTES`].
        reason: String,
    },
}

impl Outcome {
    pub(super) fn cut(self) -> Self {
        fn cut(mut text: String, limit: usize) -> String {
            let end = (0..=limit.min(text.len()))
                .rev()
                .find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or_default());
            text
        }
        match self {
            Self::Delivered { reference } => Self::Delivered {
                reference: reference.map(|text| cut(text, MAX_REFERENCE_BYTES)),
            },
            Self::DeadLetter { reason } => Self::DeadLetter {
                reason: cut(reason, MAX_REASON_BYTES),
            },
        }
    }
}

/// Numbers for metrics, as of the last commit.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Accepted messages for Aura that are not settled.
    pub pending_to_aura: u64,
    /// Accepted messages for Kernel that are not settled.
    pub pending_to_kernel: u64,
    /// Bytes of all segment files.
    pub bytes_on_disk: u64,
    /// Number of segment files.
    pub segments: u64,
    /// Ids remembered.
    pub dedup_ids: u64,
    /// Dead letters recorded in the segments held.
    pub dead_letters: u64,
    /// Commits since the journal was opened.
    pub commits: u64,
    /// Records (messages and outcomes) in these commits.
    pub committed_records: u64,
    /// Commits that failed since the journal was opened.
    pub failed_commits: u64,
    /// How long the last sync took.
    pub last_sync: Duration,
}

#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Counters {
    pub commits: u64,
    pub committed_records: u64,
    pub failed_commits: u64,
    pub last_sync: Duration,
}
