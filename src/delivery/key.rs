//! What lanes and requests are known by: small, of one size, and without anything personal (Law 6).
//!
//! Pure. A queued message is held by these and its place in the journal; the contact itself stands in the journal's
//! entry alone.

pub use crate::journal::{ContactKey, RequestId};
use crate::{
    api::ChannelId,
    journal::{Address, Direction},
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
