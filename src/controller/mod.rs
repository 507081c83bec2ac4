//! The controller: registers each channel's webhook with Kernel, keeps it registered, reports.
//!
//! `decide` says what to do next and what the result means, `status` how it is reported, `webhook` which URL is
//! ours, `schedule` when to look again: all pure. `reconcile` carries it out with `gather`, `context` holds what is shared, `limit`
//! keeps calls to Kernel polite, `installation_key` sees to the one Secret that the controller owns.

mod context;
mod decide;
mod finalizer;
mod gather;
mod installation_key;
#[allow(dead_code, unused_imports, reason = "wired in by the runner")]
mod lease;
mod limit;
mod reconcile;
mod run;
mod schedule;
mod status;
mod webhook;

pub use self::{
    installation_key::DEFAULT_NAME as DEFAULT_INSTALLATION_KEY,
    run::{ControllerError, Options, run},
};
