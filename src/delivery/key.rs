//! What lanes and requests are known by: small, of one size, and without anything personal (Law 6).
//!
//! Pure. A queued message is held by these and its place in the journal; the contact itself stands in the journal's
//! entry alone.

use std::fmt;

use crate::{api::ChannelId, journal::Direction};

/// A keyed digest of a contact: the same each time, of no use to anybody without the key.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ContactKey(pub [u8; 16]);

/// A keyed digest of a request: for a user's message of the activity's id that it is posted to Aura under, for a
/// reply of the id that it answers.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct RequestId(pub [u8; 16]);

/// One direction of one conversation: the unit of order (Law 3).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct LaneKey {
    /// Towards Aura or Kernel.
    pub direction: Direction,
    /// The channel.
    pub channel: ChannelId,
    /// The user at the other end.
    pub contact: ContactKey,
}

/// The first half of a digest, as a number.
pub(super) fn first_bytes(digest: [u8; 16]) -> u64 {
    u64::from_be_bytes(*digest.first_chunk().unwrap_or(&[0; 8]))
}

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
