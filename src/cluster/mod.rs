//! The Kubernetes side that both roles share: the client with its deadlines, how a channel's Secret is read, and
//! whether the installed definition of the resource is ours.

mod around;
mod asked;
mod backoff;
mod client;
mod deadline;
mod pace;
pub mod schema;
mod secret;
mod watches;

pub use self::{
    asked::Asked,
    backoff::{WatchBackoff, watch_config},
    client::{ClientError, client, error_class, lease_client, watching_client},
    secret::{SecretProblem, client_id, credentials, get, is_spaced, issued_key},
    watches::Watches,
};
