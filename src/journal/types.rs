//! The journal's words: messages, outcomes, limits, numbers for metrics.
//!
//! Not for behaviour. Upholds law 11 (every limit has a name and a unit) and law 6: debug output shows no content.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;

use super::format::Link;

/// The longest contact, in bytes.
pub const MAX_CONTACT_BYTES: usize = 64;
/// The longest trace (what a message carries of the exchange that it belongs to) that is kept, in bytes; a longer one is
/// left out.
pub const MAX_TRACE_BYTES: usize = 832;
/// The longest reason of a dead letter that is kept, in bytes; a longer one is cut.
pub const MAX_REASON_BYTES: usize = 64;

/// Limits and times of a journal.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// The size of a segment file, in bytes; it is given to the file before it is used. A commit that does not fit
    /// starts the next one; a commit larger than this has one of its own.
    pub segment_bytes: u64,
    /// Whether the next segment is made ready in advance, off the path of a commit.
    pub preallocate: bool,
    /// Bytes of segment files beyond which [`Journal::append`](super::Journal::append) answers [`AppendError::Full`](super::AppendError::Full). Settling goes on.
    pub max_bytes: u64,
    /// What one channel's unsettled messages and dead letters may take of [`Options::max_bytes`], in percent.
    pub channel_share: u8,
    /// What one environment's may take of [`Options::max_bytes`], in percent.
    pub environment_share: u8,
    /// The largest body, in bytes. A batch may hold four times as much, and always 1 MiB.
    pub max_body_bytes: usize,
    /// How long an id is remembered after the time it is filed under.
    pub dedup_window: Duration,
    /// How long a message that was sent to a user is kept for what WhatsApp reports of it later, at most.
    pub sent_retention: Duration,
    /// How many such messages are kept at most; beyond it the oldest of the channel with most of them is forgotten.
    pub sent_max: usize,
    /// How long a dead letter is kept.
    pub dead_letter_retention: Duration,
    /// How long after its day the key of a day's bodies is destroyed, at the latest; what still needs it is written
    /// again under a younger key before.
    pub body_retention: Duration,
    /// How long a commit waits for company at most: only while the last one held more than one command, and as long as
    /// more keep coming.
    pub gather: Duration,
    /// Commands that may wait for the writer; more callers wait in [`Journal::append`](super::Journal::append). At least 1.
    pub queue: usize,
}

const DAY: Duration = Duration::from_secs(24 * 60 * 60);

impl Default for Options {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            preallocate: true,
            max_bytes: 8 << 30,
            channel_share: 10,
            environment_share: 50,
            max_body_bytes: 5 << 20,
            dedup_window: DAY * 7,
            sent_retention: DAY,
            sent_max: 50_000,
            dead_letter_retention: DAY * 7,
            body_retention: DAY,
            gather: Duration::from_millis(4),
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

    pub(super) fn share(&self, percent: u8) -> u64 {
        // Divided first: no overflow, and a limit is no place for the last byte.
        (self.max_bytes / 100).saturating_mul(u64::from(percent.min(100)))
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

/// A keyed digest of a contact: what tells conversations apart without knowing anybody's number.
#[derive(Copy, Clone, Eq, PartialEq, Hash, PartialOrd, Ord)]
pub struct ContactKey(pub [u8; 16]);

/// What a reply answers: the digest of the activity id that a user's message is given to Aura under.
#[derive(Copy, Clone, Eq, PartialEq, Hash)]
pub struct RequestId(pub [u8; 16]);

impl fmt::Display for ContactKey {
    /// As contacts are told of in logs: the first six bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0[..6].iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ContactKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ContactKey({self})")
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({:02x}{:02x}…)", self.0[0], self.0[1])
    }
}

/// Where a message comes from.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub enum Origin {
    /// A user or Aura wrote it.
    #[default]
    Peer,
    /// WhatsApp reports it of a message of ours. The [`Reference`] of that one stands where a reply has its request.
    Report,
    /// A reply that was sent before: one part of it is sent again.
    Resent {
        /// How often it is sent again by this, at most 63.
        times: u8,
        /// Which of its parts, from 0.
        part: u8,
    },
    /// The bridge's own words to the user.
    Bridge,
}

impl Origin {
    /// As two bytes.
    pub fn to_bytes(self) -> [u8; 2] {
        match self {
            Self::Peer => [0, 0],
            Self::Report => [1, 0],
            Self::Resent { times, part } => [2 | times.min(63) << 2, part],
            Self::Bridge => [3, 0],
        }
    }

    /// What two bytes say.
    pub fn from_bytes([kind, part]: [u8; 2]) -> Self {
        match kind & 3 {
            0 => Self::Peer,
            1 => Self::Report,
            2 => Self::Resent {
                times: kind >> 2,
                part,
            },
            _ => Self::Bridge,
        }
    }
}

/// The digest of the other side's id of a message that it took.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct Reference(pub [u8; 16]);

/// Which way a message goes, and for whom.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct Address {
    /// Which way.
    pub direction: Direction,
    /// The channel's UUID.
    pub channel: [u8; 16],
    /// The digest of the environment's name.
    pub environment: [u8; 8],
    /// The tag of the resource that it was accepted for (environment and namespace): it stays with that resource.
    pub tag: [u8; 6],
    /// The user at the other end.
    pub contact: ContactKey,
}

/// A message to accept.
#[derive(Clone)]
pub struct NewEntry {
    /// Which way it goes, and for whom.
    pub address: Address,
    /// The user at the other end, at most [`MAX_CONTACT_BYTES`].
    pub contact: String,
    /// What makes it the same message when it comes again.
    pub dedup: DedupKey,
    /// The message's own time, ms since the epoch: the same each time it comes. `None` where it has none.
    pub born_ms: Option<u64>,
    /// When it was accepted, ms since the epoch.
    pub accepted_at_ms: u64,
    /// The request that it is, or answers.
    pub request: Option<RequestId>,
    /// The trace it belongs to, at most [`MAX_TRACE_BYTES`]; empty for none.
    pub trace: String,
    /// The message, at most [`Options::max_body_bytes`].
    pub body: Bytes,
    /// Where it comes from.
    pub origin: Origin,
    /// Why it is a dead letter from the start, never to be delivered; `None` as a rule.
    pub set_aside: Option<&'static str>,
}

/// What came of one entry of [`Journal::append`](super::Journal::append).
#[derive(Debug, PartialEq, Eq, Copy, Clone)]
pub enum Appended {
    /// Accepted now.
    New(Seq),
    /// Accepted before, as this message, which is durable.
    Duplicate(Seq),
}

/// A message with its body.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub seq: Seq,
    /// Which way it goes, and for whom.
    pub address: Address,
    /// What makes it the same message when it comes again.
    pub dedup: DedupKey,
    /// The user at the other end.
    pub contact: String,
    /// When it was accepted, ms since the epoch.
    pub accepted_at_ms: u64,
    /// The request that it is, or answers.
    pub request: Option<RequestId>,
    /// The trace it belongs to; empty for none.
    pub trace: String,
    /// What is known of attempts to deliver it.
    pub note: Note,
    /// Whether it is a dead letter that somebody sent on its way again.
    pub replayed: bool,
    /// Where it comes from.
    pub origin: Origin,
    /// The message.
    pub body: Bytes,
}

/// A message that was accepted and is not settled.
#[derive(Copy, Clone, PartialEq, Eq)]
pub struct Pending {
    /// Its number.
    pub seq: Seq,
    /// Which way it goes, and for whom.
    pub address: Address,
    /// When it was accepted, ms since the epoch.
    pub accepted_at_ms: u64,
    /// The request that it is, or answers.
    pub request: Option<RequestId>,
    /// What is known of attempts to deliver it.
    pub note: Note,
    /// Whether it is a dead letter that somebody sent on its way again.
    pub replayed: bool,
    /// Where it comes from.
    pub origin: Origin,
}

/// What outlives a restart of the attempts to deliver a message, and of what became of it.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Note {
    /// Attempts that counted.
    pub attempts: u32,
    /// Parts of it that the other side has.
    pub parts: u16,
    /// An attempt was written and got no answer: the other side may have it.
    pub unknown: bool,
    /// An attempt began before its turn by order of acceptance: after a restart it is the first of its lane again, for
    /// the other side may have it.
    pub begun: bool,
    /// The most that Aura was told of what became of it, as a rank of at most 7; 0: nothing.
    pub told: u8,
}

/// One direction of one conversation of one channel.
#[derive(Copy, Clone, Eq, PartialEq, Hash, Debug)]
pub struct Lane {
    /// Which way.
    pub direction: Direction,
    /// The channel's UUID.
    pub channel: [u8; 16],
    /// The user at the other end.
    pub contact: ContactKey,
}

impl Address {
    /// Its lane.
    pub fn lane(&self) -> Lane {
        Lane {
            direction: self.direction,
            channel: self.channel,
            contact: self.contact,
        }
    }
}

/// Which kept messages are wanted; without a word on something, all.
#[derive(Copy, Clone, Debug, Default, PartialEq, Eq)]
pub struct Wanted {
    /// Why they are kept.
    pub kind: Option<super::Kind>,
    /// The channel's UUID.
    pub channel: Option<[u8; 16]>,
    /// Which way.
    pub direction: Option<Direction>,
}

/// Why a message is kept, in full.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Standing {
    /// It is to be delivered.
    Pending,
    /// It was given up.
    DeadLetter {
        /// Why.
        reason: String,
        /// When, ms since the epoch.
        at_ms: u64,
    },
    /// It was sent to a user, and something may be reported of it.
    Sent {
        /// When, ms since the epoch.
        at_ms: u64,
    },
}

/// A message that is kept, without contact and body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Kept {
    /// Its number.
    pub seq: Seq,
    /// Which way it goes, and for whom.
    pub address: Address,
    /// Why it is kept.
    pub standing: Standing,
    /// What makes it the same message when it comes again.
    pub dedup: DedupKey,
    /// The message's own time, ms since the epoch.
    pub born_ms: Option<u64>,
    /// When it was accepted, ms since the epoch.
    pub accepted_at_ms: u64,
    /// The request that it is, or answers.
    pub request: Option<RequestId>,
    /// The trace it belongs to; empty for none.
    pub trace: String,
    /// What is known of attempts to deliver it.
    pub note: Note,
    /// Whether it is a dead letter that somebody sent on its way again.
    pub replayed: bool,
    /// Bytes that it takes on disk.
    pub bytes: u64,
}

/// Some of what is kept, in the order of its numbers.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Page {
    /// The messages.
    pub messages: Vec<Kept>,
    /// Where to go on, if there may be more.
    pub next: Option<Seq>,
    /// Messages whose record can't be read.
    pub unreadable: u64,
}

/// A dead letter, without its body.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DeadLetter {
    /// Its number.
    pub seq: Seq,
    /// Why it was given up.
    pub reason: String,
    /// When, ms since the epoch.
    pub at_ms: u64,
}

/// A message that a user was sent, as far as it is known for what WhatsApp reports of it later.
#[derive(Copy, Clone, PartialEq, Eq, Debug)]
pub struct Sent {
    /// Its number: [`Journal::read`](super::Journal::read) gives its body.
    pub seq: Seq,
    /// Which of its parts it is, from 0.
    pub part: u16,
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
    NewEntry { dedup, accepted_at_ms }
    Entry { seq, accepted_at_ms }
    Pending { seq, accepted_at_ms }
}

/// How a message ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// The other side took it.
    Delivered {
        /// What the other side calls it, by digest, if what it reports later is to be told apart.
        reference: Option<Reference>,
    },
    /// It was given up and is kept for a person.
    DeadLetter {
        /// A word for why, cut at [`MAX_REASON_BYTES`].
        reason: String,
    },
    /// It is gone: a person dropped it, or its time as a dead letter was over.
    Dropped {
        /// A word for why, cut at [`MAX_REASON_BYTES`].
        reason: String,
    },
}

impl Outcome {
    pub(super) fn cut(self) -> Self {
        fn cut(mut text: String) -> String {
            let end = (0..=MAX_REASON_BYTES.min(text.len()))
                .rev()
                .find(|end| text.is_char_boundary(*end));
            text.truncate(end.unwrap_or_default());
            text
        }
        match self {
            Self::Delivered { .. } => self,
            Self::DeadLetter { reason } => Self::DeadLetter { reason: cut(reason) },
            Self::Dropped { reason } => Self::Dropped { reason: cut(reason) },
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
    /// Bytes of them that something still needs.
    pub live_bytes: u64,
    /// Number of segment files.
    pub segments: u64,
    /// Ids remembered.
    pub dedup_ids: u64,
    /// Dead letters that are kept.
    pub dead_letters: u64,
    /// Dead letters that were dropped at the end of their time since the journal was opened.
    pub expired: u64,
    /// Sent messages that are kept for what is reported of them.
    pub sent: u64,
    /// Lanes that are parked.
    pub parked: u64,
    /// Keys of bodies that are held.
    pub body_keys: u64,
    /// Commits since the journal was opened.
    pub commits: u64,
    /// Records (messages, outcomes and notes) in these commits.
    pub committed_records: u64,
    /// Commits that failed since the journal was opened.
    pub failed_commits: u64,
    /// How long the last commit's write and sync took.
    pub last_sync: Duration,
    /// Whether the last commit failed: nothing is accepted until one succeeds.
    pub failing: bool,
}

#[derive(Copy, Clone, Debug, Default)]
pub(super) struct Counters {
    pub commits: u64,
    pub committed_records: u64,
    pub failed_commits: u64,
    pub last_sync: Duration,
    pub failing: bool,
    /// The end of what is synced.
    pub end: Link,
}
