//! The installation key's Secret: read, or created once where there is none. Never by a chart's render, which would
//! make another one each time.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret};
use kube::{
    Api, Client,
    api::{ObjectMeta, PostParams},
};

use crate::keys::{CONVERSATIONS, CURRENT, KeyError, KeyMaterial, Keys, PREVIOUS};

/// The Secret's name unless another is set.
pub const DEFAULT_NAME: &str = "aura-whatsapp-operator-installation-key";

/// The installation key can't be had.
#[derive(Debug, thiserror::Error)]
pub enum InstallationKeyError {
    /// The API server does not give or take it.
    #[error("can't read or create Secret {name:?} in namespace {namespace:?} ({class})")]
    Api {
        /// The Secret.
        name: String,
        /// The release namespace.
        namespace: String,
        /// What kind of error it was.
        class: &'static str,
    },
    /// It is there and can't be used.
    #[error("Secret {name:?} in namespace {namespace:?}: {source}")]
    Unusable {
        /// The Secret.
        name: String,
        /// The release namespace.
        namespace: String,
        /// Why.
        source: KeyError,
    },
}

/// The keys of this installation, and when they may be used.
pub(super) struct Installed {
    /// The keys.
    pub keys: Keys,
    /// When the Secret was changed last, where it holds a key before the one in force: the bridge must have read the new
    /// one before Kernel is told of keys that are derived from it.
    pub rotated_at: Option<Timestamp>,
}

/// The keys of this installation.
///
/// # Errors
/// When they can't be read or created; trying again may help.
pub(super) async fn ensure(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Installed, InstallationKeyError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let failed = |error: &kube::Error| InstallationKeyError::Api {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        class: crate::cluster::error_class(error),
    };
    let found = secrets.get_opt(name).await.map_err(|error| failed(&error))?;
    let secret = match found {
        Some(secret) => secret,
        None => match secrets.create(&PostParams::default(), &fresh(name)).await {
            Ok(created) => {
                tracing::info!(
                    secret = name,
                    namespace,
                    "created the installation key; back this Secret up: without it, open conversations start anew"
                );
                created
            }
            // Another controller was first.
            Err(kube::Error::Api(status)) if status.is_already_exists() => {
                secrets.get(name).await.map_err(|error| failed(&error))?
            }
            Err(error) => return Err(failed(&error)),
        },
    };
    usable(&secret, namespace, name)
}

/// The keys of this installation as they are now; none are created. A Secret that was deleted under a running controller
/// is to be restored, not replaced: another key would start every conversation anew.
///
/// # Errors
/// When they can't be read or used.
pub(super) async fn read(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Installed, InstallationKeyError> {
    let secrets: Api<Secret> = Api::namespaced(client.clone(), namespace);
    let secret = secrets
        .get(name)
        .await
        .map_err(|error| InstallationKeyError::Api {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            class: crate::cluster::error_class(&error),
        })?;
    usable(&secret, namespace, name)
}

fn usable(secret: &Secret, namespace: &str, name: &str) -> Result<Installed, InstallationKeyError> {
    installed(secret).map_err(|source| InstallationKeyError::Unusable {
        name: name.to_owned(),
        namespace: namespace.to_owned(),
        source,
    })
}

fn installed(secret: &Secret) -> Result<Installed, KeyError> {
    let entry = |name: &str| Some(secret.data.as_ref()?.get(name)?.0.clone());
    let keys = Keys::derive(&KeyMaterial::new(entry)?);
    // The API server notes who wrote an object when: the last of these times is that of the last change.
    let written = secret.metadata.managed_fields.iter().flatten();
    let rotated_at = entry(PREVIOUS).and_then(|_| written.filter_map(|by| Some(by.time.as_ref()?.0)).max());
    Ok(Installed { keys, rotated_at })
}

fn fresh(name: &str) -> Secret {
    let labels = BTreeMap::from([
        (
            "app.kubernetes.io/name".to_owned(),
            "aura-whatsapp-operator".to_owned(),
        ),
        (
            "app.kubernetes.io/managed-by".to_owned(),
            "aura-whatsapp-operator".to_owned(),
        ),
    ]);
    let data = [CURRENT, CONVERSATIONS]
        .into_iter()
        .map(|entry| (entry.to_owned(), ByteString(random())))
        .collect();
    Secret {
        metadata: ObjectMeta {
            name: Some(name.to_owned()),
            labels: Some(labels),
            ..ObjectMeta::default()
        },
        data: Some(data),
        type_: Some("Opaque".to_owned()),
        ..Secret::default()
    }
}

/// 64 hexadecimal digits from the operating system's source of randomness (two random UUIDs hold 244 random bits).
fn random() -> Vec<u8> {
    let bits = || uuid::Uuid::new_v4().simple().to_string();
    format!("{}{}", bits(), bits()).into_bytes()
}
