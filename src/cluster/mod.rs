//! The Kubernetes side that both roles share: the client with its deadlines, and how a channel's Secret is read.

mod backoff;
mod client;
mod deadline;
mod pace;
mod secret;

pub use self::{
    backoff::WatchBackoff,
    client::{ClientError, client, error_class},
    secret::{SecretProblem, credentials, get, issued_key},
};
