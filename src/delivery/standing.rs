//! What of each channel is not as usual, for whoever reports it. Pure.

use std::{collections::BTreeMap, time::Duration};

use super::{
    channels::{Channel, Presence},
    lanes::Lanes,
};
use crate::api::ChannelId;

/// The channels that something is to be said of; a channel may be in several of these.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Standing {
    /// How many of their messages wait for a person since the journal was found to be rewound.
    pub withheld: BTreeMap<ChannelId, usize>,
    /// How many messages of all channels wait until the journal is judged.
    pub unjudged: usize,
    /// On hold, by their own settings or their environment's.
    pub held: Vec<ChannelId>,
    /// One of their circuits is open: credentials that are missing or rejected.
    pub blocked: Vec<ChannelId>,
    /// Their resource is there and has no route.
    pub unrouted: Vec<ChannelId>,
}

impl Lanes {
    /// What of each channel is not as usual.
    pub fn standing(&mut self, now: Duration) -> Standing {
        self.at(now);
        let of = |is: &dyn Fn(&Channel) -> bool| {
            let channels = self.channels.iter().filter(|(_, channel)| is(channel));
            channels.map(|(_, channel)| channel.id).collect()
        };
        Standing {
            withheld: BTreeMap::new(),
            unjudged: 0,
            held: of(&|channel| channel.presence == Presence::Served && self.held(channel).is_some()),
            blocked: of(&|channel| channel.sides.iter().any(|side| side.circuit.is_open())),
            unrouted: of(&|channel| channel.presence == Presence::Unroutable),
        }
    }
}
