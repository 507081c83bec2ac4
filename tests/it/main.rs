//! The integration tests: one binary, so that linking stays cheap. They run against a real control plane, the
//! program's own processes and simulated neighbours; each test has a namespace of its own.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stdout,
    clippy::print_stderr,
    missing_docs,
    reason = "a test ends where something is not as it should be"
)]

mod architecture;
mod bridge;
mod chart;
mod cli;
mod cluster_wide;
mod conformance;
mod control_plane;
mod crash;
mod crd;
mod definition;
mod deletion;
mod delivering;
mod delivery;
mod dev;
mod docs;
mod doctor;
mod doors;
mod exchange;
mod guard;
mod import;
mod journal_files;
mod kstatus;
mod leader;
mod lifecycle;
mod lineage;
mod matrix;
mod memory;
mod messages;
mod metrics;
mod modes;
mod outage;
mod plan;
mod reload;
mod rights;
mod rotation;
mod scale;
mod schema;
mod secrecy;
mod secrets;
mod support;
mod validate;
mod wakeups;
