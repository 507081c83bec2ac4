//! Whether the resource's definition that the cluster has is the one that this program writes by.
//!
//! A field that the installed definition does not know is dropped by the API server without a word, also from a
//! status: what the program remembers there would be lost with each write. No role may read definitions (they belong
//! to the whole cluster), but every authenticated user may read what the API server publishes of them as OpenAPI.

use std::time::Duration;

use kube::Client;
use serde_json::Value;

use crate::api::{GROUP, crd};

/// The time for the one call, its body included.
const DEADLINE: Duration = Duration::from_secs(12);
/// The name of the definition.
const NAME: &str = "whatsappchannels.channels.auracognitive.com";
/// How it is installed and updated.
const COMMAND: &str = "aura-whatsapp-operator crd | kubectl apply --server-side -f -";
/// How many fields a message names.
const NAMED: usize = 5;
/// How many references are followed from one schema to the next: a document could lead in a circle.
const MAX_REFERENCES: usize = 8;

/// What the cluster has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Installed {
    /// No definition, or none that is served yet.
    Missing,
    /// One that lacks fields.
    Older {
        /// Their paths, such as `status.webhookKey.secretVersion`.
        lacks: Vec<String>,
    },
    /// One that has all fields, and maybe more.
    Good,
}

impl Installed {
    /// What is to be done about it, in words; `None` when nothing is.
    pub fn message(&self) -> Option<String> {
        match self {
            Self::Missing => Some(format!("the CRD {NAME} is not installed; install it: {COMMAND}")),
            Self::Older { lacks } => {
                let mut named = lacks.iter().take(NAMED).cloned().collect::<Vec<_>>().join(", ");
                if lacks.len() > NAMED {
                    named = format!("{named} and {} more", lacks.len() - NAMED);
                }
                Some(format!(
                    "the installed CRD {NAME} is older than this program (it lacks {named}); update it: {COMMAND}"
                ))
            }
            Self::Good => None,
        }
    }
}

/// Compares what the API server publishes with the definition that this program has. Needs no right beyond those of
/// every authenticated user (`system:discovery`).
///
/// After a change of the definition the published document is brought up to date a moment later: ask again.
///
/// # Errors
/// When the API server does not answer, or does not allow it.
pub async fn check(client: &Client) -> Result<Installed, kube::Error> {
    let ours = serde_json::to_value(crd::definition().map_err(|error| kube::Error::Service(error.into()))?)
        .map_err(kube::Error::SerdeError)?;
    let version = ours.pointer("/spec/versions/0");
    let name = version
        .and_then(|version| version["name"].as_str())
        .unwrap_or_default();
    let schema = version.and_then(|version| version.pointer("/schema/openAPIV3Schema"));
    let request = hyper::Request::get(format!("/openapi/v3/apis/{GROUP}/{name}"))
        .body(Vec::new())
        .map_err(kube::Error::HttpError)?;
    let answer = tokio::time::timeout(DEADLINE, client.request_text(request)).await;
    let text = match answer.unwrap_or_else(|_| Err(kube::Error::Service("no answer in time".into()))) {
        // The path of a definition that was deleted is answered for a while, with nothing.
        Ok(text) if text.trim().is_empty() => return Ok(Installed::Missing),
        Ok(text) => text,
        // By its number: this answer is no `Status`, so it has no reason.
        Err(kube::Error::Api(status)) if status.code == 404 => return Ok(Installed::Missing),
        Err(error) => return Err(error),
    };
    let document = serde_json::from_str(&text).map_err(kube::Error::SerdeError)?;
    let kind = ours.pointer("/spec/names/kind").unwrap_or(&Value::Null);
    Ok(compare(&document, kind, name, schema.unwrap_or(&Value::Null)))
}

/// What a published document says of the kind.
fn compare(document: &Value, kind: &Value, version: &str, ours: &Value) -> Installed {
    let served = document.pointer("/components/schemas").and_then(Value::as_object);
    let installed = served
        .into_iter()
        .flat_map(|schemas| schemas.values())
        .find(|schema| {
            let kinds = schema["x-kubernetes-group-version-kind"].as_array();
            kinds
                .into_iter()
                .flatten()
                .any(|one| one["group"] == GROUP && one["version"] == version && one["kind"] == *kind)
        });
    match installed.map(|installed| missing_in(document, installed, ours)) {
        None => Installed::Missing,
        Some(lacks) if lacks.is_empty() => Installed::Good,
        Some(lacks) => Installed::Older { lacks },
    }
}

/// The path of every property of our schema that the installed one lacks, in order; of a property that is missing,
/// those below it are not named. Paths are written as `kubectl explain` takes them: a list's items add nothing.
///
/// Fields are compared, not their limits: a limit that is older refuses a value aloud, which is seen elsewhere.
pub fn missing(installed: &Value, ours: &Value) -> Vec<String> {
    missing_in(installed, installed, ours)
}

/// As [`missing`], with references that lead into `document`.
fn missing_in(document: &Value, installed: &Value, ours: &Value) -> Vec<String> {
    let mut lacks = Vec::new();
    collect(document, &[installed], ours, "", &mut lacks);
    lacks.sort_unstable();
    lacks.dedup();
    lacks
}

fn collect(document: &Value, installed: &[&Value], ours: &Value, path: &str, lacks: &mut Vec<String>) {
    let mut theirs = Vec::new();
    for schema in installed {
        unfold(document, schema, 0, &mut theirs);
    }
    // It keeps whatever it is given.
    if theirs
        .iter()
        .any(|schema| schema["x-kubernetes-preserve-unknown-fields"] == true)
    {
        return;
    }
    let mut mine = Vec::new();
    unfold(ours, ours, 0, &mut mine);
    for ours in mine {
        for (name, property) in ours["properties"].as_object().into_iter().flatten() {
            let path = if path.is_empty() {
                name.clone()
            } else {
                format!("{path}.{name}")
            };
            let there: Vec<&Value> = theirs
                .iter()
                .filter_map(|schema| schema["properties"].get(name))
                .collect();
            if there.is_empty() {
                lacks.push(path);
            } else {
                collect(document, &there, property, &path, lacks);
            }
        }
        for below in ["items", "additionalProperties"] {
            if let Some(property) = ours.get(below).filter(|property| property.is_object()) {
                let there: Vec<&Value> = theirs.iter().filter_map(|schema| schema.get(below)).collect();
                collect(document, &there, property, path, lacks);
            }
        }
    }
}

/// A schema and all that it is made of: through `$ref` and `allOf`.
fn unfold<'a>(document: &'a Value, schema: &'a Value, depth: usize, all: &mut Vec<&'a Value>) {
    if depth > MAX_REFERENCES {
        return;
    }
    all.push(schema);
    let reference = schema["$ref"]
        .as_str()
        .and_then(|reference| reference.strip_prefix('#'));
    if let Some(target) = reference.and_then(|pointer| document.pointer(pointer)) {
        unfold(document, target, depth + 1, all);
    }
    for part in schema["allOf"].as_array().into_iter().flatten() {
        unfold(document, part, depth + 1, all);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn ours() -> Value {
        let definition = serde_json::to_value(crd::definition().unwrap()).unwrap();
        definition
            .pointer("/spec/versions/0/schema/openAPIV3Schema")
            .unwrap()
            .clone()
    }

    #[test]
    fn nothing_is_missing_in_our_own_schema_nor_in_a_newer_one() {
        assert_eq!(missing(&ours(), &ours()), Vec::<String>::new());
        let mut newer = ours();
        newer["properties"]["status"]["properties"]["later"] = json!({"type": "string"});
        assert_eq!(missing(&newer, &ours()), Vec::<String>::new());
    }

    #[test]
    fn what_is_missing_is_named_by_its_path_also_in_lists() {
        let remove = |path: &str, name: &str| {
            let mut older = ours();
            let properties = older.pointer_mut(path).unwrap().as_object_mut().unwrap();
            properties.remove(name).unwrap();
            missing(&older, &ours())
        };
        let webhook = "/properties/status/properties/webhookKey/properties";
        assert_eq!(remove(webhook, "generation"), ["status.webhookKey.generation"]);
        assert_eq!(
            remove("/properties/status/properties", "webhookKey"),
            ["status.webhookKey"],
            "not what is below it"
        );
        let items = "/properties/status/properties/conditions/items/properties";
        assert_eq!(remove(items, "reason"), ["status.conditions.reason"]);
        assert_eq!(remove("/properties", "status"), ["status"]);
        assert_eq!(missing(&json!({}), &ours()), ["spec", "status"]);
    }

    #[test]
    fn references_and_parts_are_followed_and_a_circle_ends() {
        let ours = json!({"properties": {"spec": {"properties": {"a": {}, "b": {}, "c": {}}}}});
        let document = json!({
            "properties": {"spec": {"allOf": [{"$ref": "#/parts/one"}], "properties": {"c": {}}}},
            "parts": {
                "one": {"properties": {"a": {}}, "allOf": [{"$ref": "#/parts/two"}]},
                "two": {"$ref": "#/parts/one"},
            },
        });
        assert_eq!(missing(&document, &ours), ["spec.b"]);
    }

    #[test]
    fn a_schema_that_keeps_unknown_fields_lacks_none() {
        let loose = json!({"properties": {"spec": {"x-kubernetes-preserve-unknown-fields": true},
                                          "status": {"additionalProperties": {"properties": {"a": {}}}}}});
        let ours = json!({"properties": {"spec": {"properties": {"a": {}}},
                                         "status": {"additionalProperties": {"properties": {"a": {}, "b": {}}}}}});
        assert_eq!(missing(&loose, &ours), ["status.b"]);
    }

    #[test]
    fn the_kind_is_found_among_what_is_published() {
        let kind = json!("WhatsAppChannel");
        let mut schema = ours();
        schema["x-kubernetes-group-version-kind"] =
            json!([{"group": GROUP, "version": "v1alpha1", "kind": "WhatsAppChannel"}]);
        let document = json!({"components": {"schemas": {"other": {}, "ours": schema}}});
        let of = |document: &Value, version: &str| compare(document, &kind, version, &ours());
        assert_eq!(of(&document, "v1alpha1"), Installed::Good);
        assert_eq!(of(&document, "v1beta1"), Installed::Missing);
        assert_eq!(of(&json!({}), "v1alpha1"), Installed::Missing);
    }

    #[test]
    fn the_message_says_what_to_do_and_names_few_fields() {
        let text = Installed::Missing.message().unwrap();
        assert_eq!(
            text,
            "the CRD whatsappchannels.channels.auracognitive.com is not installed; install it: \
             aura-whatsapp-operator crd | kubectl apply --server-side -f -"
        );
        let lacks = (0..7).map(|number| format!("status.f{number}")).collect();
        let text = Installed::Older { lacks }.message().unwrap();
        assert!(
            text.contains("(it lacks status.f0, status.f1, status.f2, status.f3, status.f4 and 2 more)"),
            "{text}"
        );
        assert!(text.contains("update it: aura-whatsapp-operator crd |"));
        assert_eq!(Installed::Good.message(), None);
        let definition = crd::definition().unwrap();
        assert_eq!(definition.metadata.name.as_deref(), Some(NAME));
    }
}
