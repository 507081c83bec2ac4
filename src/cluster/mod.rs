//! The Kubernetes side that both roles share: the client with its deadlines, and how a channel's Secret is read.

mod backoff;
mod client;
mod secret;

pub use self::{
    backoff::WatchBackoff,
    client::{ClientError, client, error_class},
    secret::{SecretProblem, client_id, credentials, get, is_spaced, issued_key},
};
