//! The channels' Kernel clients, in memory: read when needed, kept while the API server is away (Law 8), read again
//! when the controller says that the Secret changed or Kernel does not take them.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};
use tokio::sync::Mutex;

use super::routes::Route;
use crate::{
    api::KeyRef,
    cluster::{self, SecretProblem},
    kernel::Credentials,
    keys::ApiKey,
};

/// What is known of one Kernel client. It belongs to the routes of its channel and goes with the last of them.
#[derive(Debug, Default)]
pub(super) struct Slot(Mutex<Held>);

#[derive(Debug, Default)]
struct Held {
    credentials: Option<Credentials>,
    /// The Secret's version, as the controller had seen it, when the credentials were read.
    for_version: Option<Arc<str>>,
    /// Kernel did not take them.
    rejected: bool,
}

/// Reads the credentials of all channels.
pub(super) struct Secrets {
    client: Client,
}

/// There are no credentials to use now.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unavailable {
    /// The Secret can't be used.
    #[error(transparent)]
    Problem(#[from] SecretProblem),
    /// The API server did not give it, and none is held.
    #[error("the Secret can't be read now")]
    Unreadable,
}

impl Secrets {
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// The credentials of a channel. Callers at the same time share one read.
    ///
    /// # Errors
    /// When there are none.
    pub async fn credentials(&self, route: &Route) -> Result<Credentials, Unavailable> {
        let mut held = route.client.0.lock().await;
        let current = held.for_version.as_ref() == route.secret_version() && !held.rejected;
        if let Some(credentials) = held.credentials.as_ref().filter(|_| current) {
            return Ok(credentials.clone());
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), route.namespace());
        let reference = route.client_secret();
        match cluster::get(&secrets, &reference.name).await {
            Ok(secret) => {
                let credentials = cluster::credentials(secret.as_ref(), &reference)?;
                *held = Held {
                    credentials: Some(credentials.clone()),
                    for_version: route.secret_version().cloned(),
                    rejected: false,
                };
                Ok(credentials)
            }
            Err(error) => {
                tracing::warn!(
                    namespace = route.namespace(),
                    channel = route.name(),
                    error = cluster::error_class(&error),
                    "can't read the channel's Secret; going on with what is known"
                );
                held.credentials.clone().ok_or(Unavailable::Unreadable)
            }
        }
    }

    /// Kernel did not take these credentials: they are read again before they are used again.
    pub async fn rejected(&self, route: &Route) {
        route.client.0.lock().await.rejected = true;
    }

    /// An API key that was issued elsewhere, and the version of its Secret.
    ///
    /// # Errors
    /// When it can't be read or used.
    pub async fn issued_key(
        &self,
        namespace: &str,
        reference: &KeyRef,
    ) -> Result<(ApiKey, String), Unavailable> {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), namespace);
        let secret = cluster::get(&secrets, &reference.name)
            .await
            .map_err(|_| Unavailable::Unreadable)?;
        let key = cluster::issued_key(secret.as_ref(), reference)?;
        let version = secret.and_then(|secret| secret.metadata.resource_version);
        Ok((key, version.unwrap_or_default()))
    }
}
