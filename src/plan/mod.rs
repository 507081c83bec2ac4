//! What would be registered, changed or refused, and why: for the channels of a cluster as they are, or as they would
//! be with manifests applied.
//!
//! Pure: `overlay` lays manifests over a cluster, `judge` puts the controller's own forecast
//! ([`crate::controller::preview`]) into words, `report` holds and prints the result. `run` reads the cluster and asks
//! Kernel, with the doctor's means, and `limited` stops it where Kernel says that this is too much. Nothing here writes, neither to the cluster nor to Kernel, and nothing secret is in
//! any text that leaves (Law 6).

mod judge;
mod limited;
mod overlay;
mod report;
mod run;

pub use self::{
    overlay::{Change, FieldChange},
    report::{Action, Line, Report, Sign},
    run::{Manifests, PlanError, Request, run},
};
