//! The controller: registers each channel's webhook with Kernel, keeps it registered, reports.
//!
//! Pure: `decide` says what to do next and what the result means, `contest` how often another party's webhook is
//! replaced, `status` how it is reported, `webhook` which URL is ours, `schedule` when to look again, `limit` and `circuit`
//! when a call may go out, `delivering` which conditions of that name are written, `workqueue` whose pass is due, `roster` which channels there are and which share something,
//! `kept` and `statuses` what each one's resource and status said last, in little room; for others than the controller, `inspect` says whose a webhook is, `roll` who holds a channel, `preview` what a pass would
//! come to, `visit` their way to Kernel.
//!
//! With effects: `reconcile` makes a pass, with `recall`, `gather`, `report` and `cleanup`; its calls to Kernel go by a `passage`
//! through the environment's `gate`. `watch` feeds the roster, `worker` makes the passes that are due, `lease` says who leads, `bridge` asks the bridge how channels do and how far its journal has got, `installation_key` sees to the one
//! Secret that the controller owns, `run` puts all together. `context` is what they share, `memory` what is remembered of
//! a channel, `health`, `collector` and `events` what others are told.

mod bridge;
mod circuit;
mod cleanup;
mod collector;
mod contest;
mod context;
mod decide;
mod delivering;
mod events;
mod finalizer;
mod gate;
mod gather;
mod health;
pub(crate) mod inspect;
mod installation_key;
mod kept;
mod lease;
mod limit;
mod memory;
mod object_key;
mod passage;
pub(crate) mod preview;
mod recall;
mod reconcile;
mod report;
pub(crate) mod roll;
mod roster;
mod run;
mod schedule;
mod status;
mod statuses;
pub(crate) mod visit;
mod watch;
mod webhook;
mod worker;
mod workqueue;

pub use self::{
    bridge::Asks,
    installation_key::DEFAULT_NAME as DEFAULT_INSTALLATION_KEY,
    lease::{DEFAULT_NAME as DEFAULT_LEASE, InvalidTiming, Timing},
    run::{ControllerError, Options, run},
};
