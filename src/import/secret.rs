//! The Secret of an imported channel, or what makes one in the cluster. Pure.
//!
//! Only [`SecretForm::Plain`] holds the credential's values.

use secrecy::ExposeSecret;
use serde_json::{Value, json};

use super::document::AuraChannel;
use crate::api::SECRET_LABEL;

/// What becomes of a document's credentials.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum SecretForm {
    /// A Secret that holds them
    Plain,
    /// An ExternalSecret (external-secrets.io/v1) that fetches them from a store
    ExternalSecret,
    /// A SealedSecret to be filled in with kubeseal
    SealedSecret,
    /// Nothing: the Secret comes from elsewhere
    None,
}

/// Where an ExternalSecret finds the values.
#[derive(Clone, Debug)]
pub struct Store {
    /// The store's name.
    pub name: String,
    /// `SecretStore` or `ClusterSecretStore`.
    pub kind: String,
    /// The entry in the store; `{secret}`, `{namespace}` and `{channelId}` are filled in.
    pub key: String,
}

/// What stands in for an encrypted value until kubeseal makes one.
const SEAL: &str = "replace-with-the-output-of-kubeseal-raw";

/// The manifest, without a namespace where there is none to name.
pub(super) fn manifest(
    form: SecretForm,
    store: Option<&Store>,
    channel: &AuraChannel,
    name: &str,
    namespace: Option<&str>,
) -> Option<Value> {
    let labels = json!({SECRET_LABEL: "true"});
    let mut metadata = json!({"name": name});
    if let Some(namespace) = namespace {
        metadata["namespace"] = json!(namespace);
    }
    match (form, store) {
        (SecretForm::Plain, _) => {
            metadata["labels"] = labels;
            Some(json!({
                "apiVersion": "v1", "kind": "Secret", "metadata": metadata, "type": "Opaque",
                "stringData": {
                    "id": channel.client_id.expose_secret(),
                    "secret": channel.client_secret.expose_secret(),
                },
            }))
        }
        (SecretForm::ExternalSecret, Some(store)) => {
            let key = store
                .key
                .replace("{secret}", name)
                .replace("{namespace}", namespace.unwrap_or("default"))
                .replace("{channelId}", &channel.channel_id);
            let data = |property: &str| json!({"secretKey": property, "remoteRef": {"key": key, "property": property}});
            Some(json!({
                "apiVersion": "external-secrets.io/v1", "kind": "ExternalSecret", "metadata": metadata,
                "spec": {
                    "secretStoreRef": {"name": store.name, "kind": store.kind},
                    "target": {"name": name, "template": {"metadata": {"labels": labels}}},
                    "data": [data("id"), data("secret")],
                },
            }))
        }
        (SecretForm::SealedSecret, _) => Some(json!({
            "apiVersion": "bitnami.com/v1alpha1", "kind": "SealedSecret", "metadata": metadata,
            "spec": {
                "encryptedData": {"id": SEAL, "secret": SEAL},
                "template": {"metadata": {"name": name, "labels": labels}},
            },
        })),
        (SecretForm::ExternalSecret | SecretForm::None, _) => None,
    }
}

/// The lines that stand before the manifest, for people.
pub(super) fn note(form: SecretForm, name: &str, namespace: Option<&str>) -> String {
    let namespace = namespace.unwrap_or("default");
    match form {
        SecretForm::Plain => "# Holds a credential: keep it out of version control.\n".to_owned(),
        SecretForm::SealedSecret => format!(
            "# Fill in both values: kubeseal --raw --namespace {namespace} --name {name} --from-file=/dev/stdin\n"
        ),
        SecretForm::ExternalSecret | SecretForm::None => String::new(),
    }
}
