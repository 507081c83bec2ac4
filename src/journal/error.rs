//! What can go wrong with a journal, by what the caller can do about it.
//!
//! Upholds law 1: damage is an answer of its own, with its place. No message's content is in an error (law 6).

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use super::format;
use super::storage::is_full;
use super::types::Seq;

/// Why a journal does not open.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another process has it open.
    #[error("the journal {} is in use by another process", .0.display())]
    Locked(PathBuf),
    /// A directory that holds none.
    #[error("{} is no journal: it holds no segment (….seg) and no LOCK", .0.display())]
    NoJournal(PathBuf),
    /// Bytes that were synced no longer read back. Nothing was changed. Restore the file, or move the journal's
    /// directory away to start without it.
    #[error(
        "the journal is damaged: {} at byte {offset}: {problem}; {commits_after} valid commits with \
         {records_after} records follow; nothing was changed", .file.display()
    )]
    Damaged {
        /// The segment file.
        file: PathBuf,
        /// Where it stops making sense.
        offset: u64,
        /// What is there.
        problem: &'static str,
        /// Commits after it in this file that are still valid.
        commits_after: u64,
        /// Records (messages and outcomes) in these.
        records_after: u64,
    },
    /// A segment that is still needed is not there.
    #[error("the journal is damaged: {} is missing and still needed; nothing was changed", .file.display())]
    Missing {
        /// The segment file.
        file: PathBuf,
    },
    /// Written by a release with another format.
    #[error("{} has journal format {found}; this release reads format {}", .file.display(), format::VERSION)]
    Version {
        /// The segment file.
        file: PathBuf,
        /// Its format.
        found: u8,
    },
    /// The remembered ids can't be used.
    #[error(transparent)]
    Ids(#[from] super::ids::IdsError),
    /// The keys of the bodies can't be used.
    #[error(transparent)]
    Keyring(#[from] super::KeyringError),
    /// The file system refused.
    #[error("could not {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}

/// Why nothing was made durable.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AppendError {
    /// [`Options::max_bytes`](super::Options::max_bytes) is reached or the disk is full: ask the sender to come back.
    #[error("the journal is full")]
    Full,
    /// The channel's unsettled messages and dead letters have taken its share: ask the sender to come back. Other channels go on.
    #[error("the channel has taken its share of the journal")]
    ChannelFull,
    /// The environment's have taken its share.
    #[error("the environment has taken its share of the journal")]
    EnvironmentFull,
    /// What was to be sent on its way again is no dead letter (any more).
    #[error("message {} is no dead letter", .0.0)]
    NoDeadLetter(Seq),
    /// A contact, body or batch is over its limit: it will never fit.
    #[error("the message is too large for the journal")]
    TooLarge,
    /// Writing or syncing failed. The journal goes on in a new file; the message may be sent again.
    #[error("the journal could not be written")]
    Io(#[source] Arc<io::Error>),
    /// The journal was closed; whether the message was kept is unknown, so it may be sent again.
    #[error("the journal is closed")]
    Closed,
}

impl AppendError {
    /// True if the same message may be accepted when it is sent again.
    pub fn retryable(&self) -> bool {
        !matches!(self, Self::TooLarge | Self::NoDeadLetter(_))
    }

    pub(super) fn from_io(error: io::Error) -> Self {
        if is_full(&error) {
            Self::Full
        } else {
            Self::Io(Arc::new(error))
        }
    }
}

/// Why a message could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// Settled already, or never accepted.
    #[error("message {} is not kept", .0.0)]
    NotKept(Seq),
    /// Its key was destroyed: its retention is over.
    #[error("the key of message {} is destroyed", .0.0)]
    KeyDestroyed(Seq),
    /// Its bytes do not match their checksum.
    #[error("the journal is damaged: {} at byte {offset}: message {} does not match its checksum", .file.display(), .seq.0)]
    Damaged {
        /// The message.
        seq: Seq,
        /// The segment file.
        file: PathBuf,
        /// Where the message lies.
        offset: u64,
    },
    /// The file system refused.
    #[error("the journal could not be read")]
    Io(#[from] io::Error),
}
