//! The channels' Kernel clients, in memory: read when needed, kept while the API server is away (Law 8), read again
//! when the controller says that the Secret changed or Kernel does not take them.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, PoisonError},
};

use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::routes::Route;
use crate::{
    api::KeyRef,
    cluster::{self, SecretProblem},
    kernel::Credentials,
    keys::ApiKey,
};

/// What a channel's credentials are kept under: its namespace, Secret, and the keys within.
type Key = (String, String, String, String);

#[derive(Default)]
struct Held {
    credentials: Option<Credentials>,
    /// The Secret's version, as the controller had seen it, when the credentials were read.
    for_version: Option<String>,
    /// Kernel did not take them.
    rejected: bool,
}

/// The credentials of all channels.
pub(super) struct Secrets {
    client: Client,
    held: Mutex<HashMap<Key, Arc<tokio::sync::Mutex<Held>>>>,
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
        Self {
            client,
            held: Mutex::default(),
        }
    }

    fn slot(&self, route: &Route) -> Arc<tokio::sync::Mutex<Held>> {
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .entry(key(route))
            .or_default()
            .clone()
    }

    /// The credentials of a channel. Callers at the same time share one read.
    ///
    /// # Errors
    /// When there are none.
    pub async fn credentials(&self, route: &Route) -> Result<Credentials, Unavailable> {
        let slot = self.slot(route);
        let mut held = slot.lock().await;
        let current = held.for_version == route.secret_version && !held.rejected;
        if let Some(credentials) = held.credentials.as_ref().filter(|_| current) {
            return Ok(credentials.clone());
        }
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), &route.namespace);
        match cluster::get(&secrets, &route.credentials.name).await {
            Ok(secret) => {
                let credentials = cluster::credentials(secret.as_ref(), &route.credentials)?;
                *held = Held {
                    credentials: Some(credentials.clone()),
                    for_version: route.secret_version.clone(),
                    rejected: false,
                };
                Ok(credentials)
            }
            Err(error) => {
                tracing::warn!(
                    namespace = route.namespace,
                    channel = route.name,
                    error = cluster::error_class(&error),
                    "can't read the channel's Secret; going on with what is known"
                );
                held.credentials.clone().ok_or(Unavailable::Unreadable)
            }
        }
    }

    /// Kernel did not take these credentials: they are read again before they are used again.
    pub async fn rejected(&self, route: &Route) {
        self.slot(route).lock().await.rejected = true;
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

    /// Forgets the credentials of channels that are gone.
    pub fn retain<'a>(&self, routes: impl Iterator<Item = &'a Arc<Route>>) {
        let wanted: HashSet<Key> = routes.map(|route| key(route)).collect();
        self.held
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .retain(|key, _| wanted.contains(key));
    }
}

fn key(route: &Route) -> Key {
    let reference = &route.credentials;
    (
        route.namespace.clone(),
        reference.name.clone(),
        reference.id_key().to_owned(),
        reference.secret_key().to_owned(),
    )
}
