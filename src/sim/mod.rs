//! The development cluster: simulators of Kernel and Aura, a real control plane, and the `cargo dev` command.
//! Behind the `sim` feature: for `cargo dev` and the tests, no part of what is installed.

pub mod apiproxy;
pub mod aura;
pub mod certificates;
pub mod controlplane;
pub mod dev;
pub mod fault;
pub mod kernel;
pub mod ledger;
pub mod server;
