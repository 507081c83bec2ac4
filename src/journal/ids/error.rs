//! What can go wrong with remembered ids, by what the caller can do about it.
//!
//! Upholds law 2: damage is an answer of its own, with its place; it is never "unknown". No id is in an error.

use std::io;
use std::path::PathBuf;

use super::format;

/// Bytes of a run that are not what was written. A look-up that meets them fails with an [`io::Error`] of kind
/// [`io::ErrorKind::InvalidData`] around this.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the remembered ids are damaged: {} at byte {offset}: {problem}", .file.display())]
pub struct Damage {
    /// The run's file.
    pub file: PathBuf,
    /// Where what does not make sense begins.
    pub offset: u64,
    /// What is there.
    pub problem: &'static str,
}

impl From<Damage> for io::Error {
    fn from(damage: Damage) -> Self {
        Self::new(io::ErrorKind::InvalidData, damage)
    }
}

/// Why the remembered ids do not open. Nothing was changed, but for runs that were never finished.
#[derive(Debug, thiserror::Error)]
pub enum IdsError {
    /// A run's header or directory is not what was written. Restore the file; without it, messages of its hours may
    /// be delivered twice.
    #[error(transparent)]
    Damaged(#[from] Damage),
    /// Written by a release with another format.
    #[error("{} has format {found} of remembered ids; this release reads format {}", .file.display(), format::VERSION)]
    Version {
        /// The run's file.
        file: PathBuf,
        /// Its format.
        found: u8,
    },
    /// The file system refused.
    #[error("could not {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The system's answer.
        source: io::Error,
    },
}
