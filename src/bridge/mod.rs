//! The bridge: takes Kernel's webhook calls, hands messages to Aura, takes Aura's replies, sends them through
//! Kernel with each channel's own token.
//!
//! `views` is what is kept of each resource, `routes` says which channel goes where and `auth` who may call: all pure.
//! `public`, `internal` and `admin` are the three listeners, `server` is the loop beneath them, `deliver` makes the
//! attempts, `watch` keeps the routes up to date, `body` and `keep` read and keep what was sent, `exchange` what it says
//! of its caller's trace, `secrets` keeps credentials in memory, `snapshot` keeps the routes across a restart, `lineage`
//! compares the journal with the cluster's record of it, `telling` is what the controller asks. `statuses` is what
//! becomes of WhatsApp's reports on sent messages, `messages` what people on call use, on loopback alone, and `trail`
//! what happened to the last messages.

mod auth;
mod body;
mod callers;
mod certificates;
mod deliver;
mod entry;
mod exchange;
mod internal;
mod issued;
mod keep;
mod lineage;
mod messages;
mod public;
mod refusing;
mod reload;
mod routes;
mod run;
mod secrets;
mod snapshot;
mod state;
mod statuses;
mod telling;
mod trail;
mod views;
mod watch;

pub use self::{
    auth::{Verdict, judge},
    issued::Issued,
    messages::AuditLog,
    routes::{Route, RouteTable},
    run::{BridgeError, Options, run},
    views::{ChannelView, Commons},
};
