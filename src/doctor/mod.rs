//! What is wrong with a channel, step by step from the cluster to Kernel, for the person on call; and whether a real
//! Kernel is as [`crate::kernel::contract`] assumes ([`conformance`]).
//!
//! `judge` turns what was seen into steps, `report` holds and prints the result: all pure. `gather` reads the cluster, `surroundings` the configuration and the keys,
//! `examine` asks Kernel and puts the steps in order. Nothing here writes to the cluster or to Kernel, but for
//! `conformance` when it is told to; nothing secret is in any text that leaves (Law 6).

pub mod conformance;
mod examine;
pub(crate) mod gather;
mod hints;
pub(crate) mod judge;
mod report;
mod surroundings;

pub use self::{
    examine::{Request, run},
    gather::{ApiProblem, Neighbours, Right, neighbours},
    report::{Outcome, Report, Step, StepId},
    surroundings::{ConfigSource, Surroundings},
};
