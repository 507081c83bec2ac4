//! Delivery: from the journal to Aura and to Kernel, in order per conversation, with retries that hold only their
//! own lane.
//!
//! `lanes` decides and is pure, as is `pace`, how often a channel may send; `runner` does; `backoff` is the schedule. Laws 1, 3, 4 and 8.

pub mod backoff;
mod key;
mod lanes;
mod pace;
mod runner;

pub use self::{
    key::{ContactKey, LaneKey, RequestId},
    lanes::{Attempt, Effect, Ended, Item, Lanes, Limits},
    runner::{Deliver, Runner, RunnerHandle},
};
