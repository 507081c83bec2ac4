//! What lanes and requests are known by: small, of one size, and without anything personal (Law 6).
//!
//! Pure. A queued message is held by these and its place in the journal; the contact itself stands in the journal's
//! entry alone.

pub use crate::journal::{ContactKey, RequestId};
use crate::{
    api::ChannelId,
    journal::{Address, Direction, Lane},
};

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

impl LaneKey {
    /// The lane of a message.
    pub fn of(address: &Address) -> Self {
        Self {
            direction: address.direction,
            channel: ChannelId::from_bytes(address.channel),
            contact: address.contact,
        }
    }
}

impl From<LaneKey> for Lane {
    fn from(lane: LaneKey) -> Self {
        Self {
            direction: lane.direction,
            channel: *lane.channel.as_bytes(),
            contact: lane.contact,
        }
    }
}

impl From<Lane> for LaneKey {
    fn from(lane: Lane) -> Self {
        Self {
            direction: lane.direction,
            channel: ChannelId::from_bytes(lane.channel),
            contact: lane.contact,
        }
    }
}
