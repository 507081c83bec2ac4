//! Aura's side: the activities that go there and come back, and the client that posts them.
//!
//! `activity` is pure. What is assumed about Aura stands in [`contract`].

mod activity;
mod client;
pub mod contract;

pub use self::{
    activity::{
        Account, Activity, Attachment, ChannelData, Conversation, HeroCard, Payload, Reply, StatusValue,
        with_id,
    },
    client::{AuraError, Client},
};
