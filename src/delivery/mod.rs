//! Delivery: from the journal to Aura and to Kernel, in order per conversation, with retries that hold only their
//! own lane.
//!
//! `lanes` decides and is pure, as is all else here but `runner` and `reports`, which do. Laws 1, 3, 4, 8 and 9.

mod age;
mod backlog;
pub mod backoff;
mod channels;
mod circuit;
mod ends;
mod fair;
mod key;
mod lanes;
#[cfg(test)]
mod lanes_tests;
mod order;
mod pace;
#[cfg(test)]
mod partitions_tests;
mod people;
#[cfg(test)]
mod properties;
mod reports;
mod runner;
#[cfg(test)]
mod runner_tests;
mod serve;
mod standing;
mod timers;
mod types;
mod waiting;
mod withheld;

pub use self::{
    channels::DRAIN,
    key::{ContactKey, LaneKey, RequestId},
    lanes::Lanes,
    people::Dropped,
    runner::{Deliver, Runner, RunnerHandle},
    standing::Standing,
    types::{
        Attempt, Attempted, Effect, Ended, Event, FOREVER, Failure, Item, Limits, Message, Place,
        RecordFirst, Settings, Stats, reason,
    },
    withheld::OfChannel,
};
