//! Logs, metrics, and what ties both to the exchanges of others. None ever holds a secret, key, token, user's number or
//! text (Law 6).

mod context;
mod logs;
mod metrics;
pub mod w3c;

pub use self::{
    context::{Context, MAX_CORRELATOR_BYTES, Outgoing},
    logs::{LogFormat, init},
    metrics::{
        BridgeMetrics, ControllerMetrics, DIRECTIONS, ListenerMetrics, ListenersMetrics, OUTCOMES, Registry,
    },
};
