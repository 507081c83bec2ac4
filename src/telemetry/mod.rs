//! Logs and metrics. Neither ever holds a secret, key, token, user's number or text (Law 6).

mod logs;
mod metrics;

pub use self::{
    logs::{LogFormat, init},
    metrics::{BridgeMetrics, ControllerMetrics, ListenerMetrics, ListenersMetrics, Registry},
};
