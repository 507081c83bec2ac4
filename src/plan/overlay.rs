//! Manifests laid over what a cluster has: which channels would be created or changed, and how; and the Secrets among
//! the files. Pure.
//!
//! A manifest is taken to say the whole spec, as it does where one tool applies it: a field that it does not name is
//! taken to go. What another tool or an admission policy adds is not known here.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;
use k8s_openapi::{ByteString, api::core::v1::Secret, apimachinery::pkg::apis::meta::v1::Time};
use kube::ResourceExt;
use serde::Serialize;
use serde_json::Value;

use crate::api::{WhatsAppChannel, WhatsAppChannelSpec};

/// Fields of the spec that the API server lets nobody change.
pub(super) const IMMUTABLE: [&str; 2] = ["channelId", "environment"];

/// What would become of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Change {
    /// It would be created.
    Create,
    /// Its spec would be another.
    Update,
    /// It stays as it is.
    None,
}

/// One field of a spec that would be another.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct FieldChange {
    /// Its path below `spec`.
    pub path: String,
    /// What it is; null where it is not set.
    pub from: Value,
    /// What it would be; null where it would not be set.
    pub to: Value,
}

/// A channel as it would be.
#[derive(Clone, Debug)]
pub(super) struct Planned {
    /// With the status of the cluster, and the generation that it would have. One that would be created is taken to
    /// be created now.
    pub channel: WhatsAppChannel,
    pub change: Change,
    pub fields: Vec<FieldChange>,
}

impl Planned {
    /// A channel that stays as it is.
    pub fn unchanged(channel: WhatsAppChannel) -> Self {
        Self {
            channel,
            change: Change::None,
            fields: Vec::new(),
        }
    }

    /// What a manifest makes of a channel; `known` is what the cluster has of that name.
    pub fn new(
        namespace: &str,
        name: &str,
        spec: &WhatsAppChannelSpec,
        known: Option<&WhatsAppChannel>,
        now: Timestamp,
    ) -> Self {
        let Some(known) = known else {
            let mut channel = WhatsAppChannel::new(name, spec.clone());
            channel.metadata.namespace = Some(namespace.to_owned());
            channel.metadata.creation_timestamp = Some(Time(now));
            channel.metadata.generation = Some(1);
            return Self {
                channel,
                change: Change::Create,
                fields: Vec::new(),
            };
        };
        let fields = differences(&known.spec, spec);
        if fields.is_empty() {
            return Self::unchanged(known.clone());
        }
        let mut channel = known.clone();
        channel.spec = spec.clone();
        channel.metadata.generation = Some(known.metadata.generation.unwrap_or_default() + 1);
        Self {
            channel,
            change: Change::Update,
            fields,
        }
    }

    /// Whether other credentials would be used, be they in the same Secret.
    pub fn other_client(&self) -> bool {
        let mut paths = self.fields.iter().map(|field| field.path.as_str());
        paths.any(|path| path.starts_with("kernel.credentialsSecretRef."))
    }

    /// The fields that would be changed and can't be.
    pub fn immutable(&self) -> Vec<&str> {
        self.fields
            .iter()
            .map(|field| field.path.as_str())
            .filter(|path| IMMUTABLE.contains(path))
            .collect()
    }
}

/// The fields in which two specs differ, by their paths.
fn differences(from: &WhatsAppChannelSpec, to: &WhatsAppChannelSpec) -> Vec<FieldChange> {
    let flat = |spec: &WhatsAppChannelSpec| {
        let mut leaves = BTreeMap::new();
        flatten(
            &serde_json::to_value(spec).unwrap_or_default(),
            String::new(),
            &mut leaves,
        );
        leaves
    };
    let (from, to) = (flat(from), flat(to));
    let paths: BTreeSet<&String> = from.keys().chain(to.keys()).collect();
    let value = |of: &BTreeMap<String, Value>, path: &String| of.get(path).cloned().unwrap_or_default();
    paths
        .into_iter()
        .map(|path| FieldChange {
            path: path.clone(),
            from: value(&from, path),
            to: value(&to, path),
        })
        .filter(|field| field.from != field.to)
        .collect()
}

fn flatten(value: &Value, path: String, into: &mut BTreeMap<String, Value>) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                let path = if path.is_empty() {
                    name.clone()
                } else {
                    format!("{path}.{name}")
                };
                flatten(value, path, into);
            }
        }
        Value::Null => {}
        value => drop(into.insert(path, value.clone())),
    }
}

/// The Secrets among these objects, as the API server would keep them, by namespace and name. What is none is left out.
pub(super) fn secrets(objects: Vec<Value>, namespace: &str) -> BTreeMap<(String, String), Secret> {
    let mut secrets = BTreeMap::new();
    for mut object in objects {
        if object["kind"] != "Secret" || object["apiVersion"] != "v1" {
            continue;
        }
        // Go's decoder of base64 skips line breaks.
        for value in object
            .get_mut("data")
            .and_then(Value::as_object_mut)
            .into_iter()
            .flat_map(|data| data.values_mut())
        {
            if let Value::String(text) = value {
                text.retain(|c| !matches!(c, '\n' | '\r'));
            }
        }
        // Why it is none is not told: the text would name a value.
        let Ok(mut secret) = serde_json::from_value::<Secret>(object) else {
            continue;
        };
        for (key, text) in secret.string_data.take().into_iter().flatten() {
            let data = secret.data.get_or_insert_default();
            data.insert(key, ByteString(text.into_bytes()));
        }
        let namespace = secret.namespace().unwrap_or_else(|| namespace.to_owned());
        secrets.insert((namespace, secret.name_any()), secret);
    }
    secrets
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::api::{Delivery, crd};

    fn known() -> WhatsAppChannel {
        let mut channel = WhatsAppChannel::new("shop", WhatsAppChannelSpec::example());
        channel.metadata.namespace = Some("aura-es".into());
        channel.metadata.generation = Some(3);
        channel
    }

    fn planned(change: impl FnOnce(&mut WhatsAppChannelSpec), known: Option<&WhatsAppChannel>) -> Planned {
        let mut spec = WhatsAppChannelSpec::example();
        change(&mut spec);
        Planned::new("aura-es", "shop", &spec, known, Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_manifest_creates_changes_or_leaves_a_channel() {
        let known = known();
        let created = planned(|_| {}, None);
        assert_eq!(
            (created.change, created.channel.metadata.generation),
            (Change::Create, Some(1))
        );
        let same = planned(|_| {}, Some(&known));
        assert_eq!(
            (same.change, same.channel.metadata.generation),
            (Change::None, Some(3))
        );
        let changed = planned(
            |spec| {
                spec.delivery = Some(Delivery {
                    messages_per_second: Some(5),
                    ..Delivery::default()
                });
            },
            Some(&known),
        );
        assert_eq!(
            (changed.change, changed.channel.metadata.generation),
            (Change::Update, Some(4))
        );
        let field = FieldChange {
            path: "delivery.messagesPerSecond".into(),
            from: Value::Null,
            to: json!(5),
        };
        assert_eq!(changed.fields, [field]);
        assert!(changed.immutable().is_empty());
    }

    #[test]
    fn what_is_immutable_is_what_the_definition_says() {
        let known = known();
        let changed = planned(
            |spec| {
                spec.environment = "other".into();
                spec.channel_id = spec.channel_id.replace('6', "7");
                spec.suspend = Some(true);
            },
            Some(&known),
        );
        assert_eq!(changed.immutable(), IMMUTABLE);
        let definition = crd::yaml().unwrap();
        assert_eq!(definition.matches("self == oldSelf").count(), IMMUTABLE.len());
        for field in IMMUTABLE {
            assert!(definition.contains(&format!("{field} is immutable")));
        }
    }

    #[test]
    fn a_secret_is_kept_as_the_api_server_would_keep_it() {
        let object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "shop"},
            "data": {"id": "ZmFr\nZQ==", "secret": "eA=="}, "stringData": {"secret": "fake-secret"}});
        let other = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "shop"}});
        let found = secrets(vec![object, other], "aura-es");
        assert_eq!(found.len(), 1);
        let secret = &found[&("aura-es".to_owned(), "shop".to_owned())];
        let data = secret.data.as_ref().unwrap();
        assert_eq!(
            (&*data["id"].0, &*data["secret"].0),
            (&b"fake"[..], &b"fake-secret"[..])
        );
    }
}
