//! The definition of the resource, as the API server is given it.
//!
//! The derived schema is put right in three ways: an optional field is absent, never `nullable` (a user's
//! explicit `null` would otherwise pass where a value is meant); conditions carry the limits that Go's types
//! give them; and `status` starts as `{observedGeneration: -1}`, because kstatus calls an object without a
//! status healthy.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt;
use serde_json::{Value, json};

use super::WhatsAppChannel;

/// The definition could not be put together: a defect of this program, never of an input.
#[derive(Debug, thiserror::Error)]
#[error("the resource definition cannot be generated")]
pub struct CrdError(#[from] serde_json::Error);

/// The definition of `WhatsAppChannel`.
///
/// # Errors
/// Only when the derived schema is no longer of the shape that the corrections expect.
pub fn definition() -> Result<CustomResourceDefinition, CrdError> {
    let mut definition = serde_json::to_value(WhatsAppChannel::crd())?;
    if let Some(versions) = definition
        .pointer_mut("/spec/versions")
        .and_then(Value::as_array_mut)
    {
        for version in versions {
            if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
                tidy(schema);
                constrain_conditions(schema);
                if let Some(status) = schema
                    .pointer_mut("/properties/status")
                    .and_then(Value::as_object_mut)
                {
                    status.insert("default".to_owned(), json!({ "observedGeneration": -1 }));
                }
            }
        }
    }
    Ok(serde_json::from_value(definition)?)
}

/// The definition as YAML, with a first line that says where it comes from.
///
/// # Errors
/// As [`definition`].
pub fn yaml() -> Result<String, CrdError> {
    let definition = serde_json::to_value(definition()?)?;
    let yaml =
        serde_saphyr::to_string(&definition).map_err(<serde_json::Error as serde::de::Error>::custom)?;
    Ok(format!(
        "# Generated: aura-whatsapp-operator crd > crds/whatsappchannels.yaml\n{yaml}"
    ))
}

/// Takes out what an `Option` leaves behind (`nullable`, a `null` among an enum's values), and the line breaks
/// that a description has only because source lines end.
fn tidy(schema: &mut Value) {
    match schema {
        Value::Object(map) => {
            map.remove("nullable");
            if let Some(Value::Array(values)) = map.get_mut("enum") {
                values.retain(|value| !value.is_null());
            }
            if let Some(Value::String(text)) = map.get_mut("description") {
                *text = text
                    .replace("\n\n", "\u{0}")
                    .replace('\n', " ")
                    .replace('\u{0}', "\n\n");
            }
            map.values_mut().for_each(tidy);
        }
        Value::Array(items) => items.iter_mut().for_each(tidy),
        _ => {}
    }
}

/// The limits that `metav1.Condition` has in the schemas generated from Go
/// (k8s.io/apimachinery/pkg/apis/meta/v1/types.go).
fn constrain_conditions(schema: &mut Value) {
    let Some(fields) = schema
        .pointer_mut("/properties/status/properties/conditions/items/properties")
        .and_then(Value::as_object_mut)
    else {
        return;
    };
    let limits = [
        ("type", json!({"maxLength": 316})),
        ("status", json!({"enum": ["True", "False", "Unknown"]})),
        (
            "reason",
            json!({"maxLength": 1024, "minLength": 1, "pattern": "^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$"}),
        ),
        ("message", json!({"maxLength": 32768})),
        ("observedGeneration", json!({"minimum": 0})),
    ];
    for (name, limit) in limits {
        if let (Some(Value::Object(field)), Value::Object(limit)) = (fields.get_mut(name), limit) {
            field.extend(limit);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checked_in_definition_is_the_generated_one() {
        let file = include_str!("../../crds/whatsappchannels.yaml");
        assert!(
            file == yaml().unwrap(),
            "crds/whatsappchannels.yaml is out of date: cargo run -- crd > crds/whatsappchannels.yaml"
        );
    }

    #[test]
    fn nothing_is_nullable_and_the_status_starts_unobserved() {
        let text = yaml().unwrap();
        assert!(!text.contains("nullable") && !text.contains("- null"));
        let definition = serde_json::to_value(definition().unwrap()).unwrap();
        let status = definition
            .pointer("/spec/versions/0/schema/openAPIV3Schema/properties/status")
            .unwrap();
        assert_eq!(status["default"], json!({"observedGeneration": -1}));
        assert_eq!(
            status
                .pointer("/properties/conditions/items/properties/status/enum")
                .unwrap()[0],
            "True"
        );
        assert_eq!(
            status
                .pointer("/properties/conditions/x-kubernetes-list-type")
                .unwrap(),
            "map"
        );
    }
}
