//! The controller: registers each channel's webhook with Kernel, keeps it registered, reports.
//!
//! `decide` says what to do next and what the result means, `status` how it is reported, `webhook` which URL is
//! ours, `schedule` when to look again: all pure. `reconcile` carries it out with `gather`, `context` holds what is shared, `limit`
//! keeps calls to Kernel polite, `installation_key` sees to the one Secret that the controller owns.

mod circuit;
mod collector;
mod contest;
mod context;
mod decide;
mod finalizer;
mod gate;
mod gather;
mod health;
mod installation_key;
mod lease;
mod limit;
mod memory;
mod passage;
mod reconcile;
mod roster;
mod run;
mod schedule;
mod status;
mod watch;
mod webhook;

pub use self::{
    installation_key::DEFAULT_NAME as DEFAULT_INSTALLATION_KEY,
    run::{ControllerError, Options, run},
};
