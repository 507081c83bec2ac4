//! The controller: registers each channel's webhook with Kernel, keeps it registered, reports.
//!
//! `decide` says what to do next and what the result means, `status` how it is reported, `webhook` which URL is
//! ours, `schedule` when to look again: all pure. `reconcile` carries it out with `gather`, `context` holds what is shared, `limit`
//! keeps calls to Kernel polite, `inspect` judges a webhook for others than the controller, `installation_key` sees to the one Secret that the controller owns.

mod context;
mod decide;
mod finalizer;
mod gather;
pub(crate) mod inspect;
mod installation_key;
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
