//! Kubernetes objects from YAML, as `kubectl apply` takes them: the examples, the CRD, the roles.

use std::path::Path;

use kube::{
    Api, Client, ResourceExt,
    api::{DynamicObject, Patch, PatchParams},
    core::GroupVersionKind,
    discovery,
};
use serde_json::Value;

/// The field manager of what the development cluster installs.
const MANAGER: &str = "aura-dev";

/// An object could not be read or applied.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// The file can't be read.
    #[error("{0}: {1}")]
    Read(String, std::io::Error),
    /// The YAML is none.
    #[error("{0}: {1}")]
    Yaml(String, String),
    /// The API server refuses it, or can't be reached.
    #[error("{0}: {1}")]
    Api(String, Box<kube::Error>),
}

/// The documents of a YAML text; `name` is what errors call it.
///
/// # Errors
/// When it is not YAML.
pub fn parse(text: &str, name: &str) -> Result<Vec<Value>, ObjectError> {
    let documents: Vec<Value> = serde_saphyr::from_multiple(text)
        .map_err(|error| ObjectError::Yaml(name.to_owned(), error.to_string()))?;
    Ok(documents
        .into_iter()
        .filter(|document| !document.is_null())
        .collect())
}

/// The objects of every `.yaml` file in a folder (not below it), by file name, as `kubectl apply -f FOLDER` takes them.
///
/// # Errors
/// When a file can't be read or is not YAML.
pub fn read_folder(folder: &Path) -> Result<Vec<Value>, ObjectError> {
    let failed = |path: &Path| {
        let name = path.display().to_string();
        move |error| ObjectError::Read(name, error)
    };
    let mut files: Vec<_> = std::fs::read_dir(folder)
        .map_err(failed(folder))?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    files.sort();
    let mut objects = Vec::new();
    for file in files {
        let text = std::fs::read_to_string(&file).map_err(failed(&file))?;
        objects.extend(parse(&text, &file.display().to_string())?);
    }
    Ok(objects)
}

/// An object with the annotation that `kubectl apply` keeps its last configuration in: a person who applies the same
/// file afterwards is not warned that it came from elsewhere.
pub fn as_kubectl_would(mut object: Value) -> Value {
    let applied = format!("{object}\n");
    object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"] =
        Value::String(applied);
    object
}

/// Applies one object server-side and strictly: an unknown field is an error.
///
/// # Errors
/// When the API server refuses it.
pub async fn apply(client: &Client, object: Value) -> Result<DynamicObject, ObjectError> {
    let object: DynamicObject = serde_json::from_value(object)
        .map_err(|error| ObjectError::Yaml("an object".to_owned(), error.to_string()))?;
    let types = object.types.clone().unwrap_or_default();
    let name = format!("{} {}", types.kind, object.name_any());
    let failed = |error| ObjectError::Api(name.clone(), Box::new(error));
    let kind = GroupVersionKind::try_from(&types)
        .map_err(|error| ObjectError::Yaml(name.clone(), error.to_string()))?;
    let (resource, capabilities) = discovery::pinned_kind(client, &kind).await.map_err(failed)?;
    let api: Api<DynamicObject> = if capabilities.scope == discovery::Scope::Cluster {
        Api::all_with(client.clone(), &resource)
    } else {
        let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
        Api::namespaced_with(client.clone(), &namespace, &resource)
    };
    let parameters = PatchParams {
        field_validation: Some(kube::api::ValidationDirective::Strict),
        ..PatchParams::apply(MANAGER).force()
    };
    api.patch(&object.name_any(), &parameters, &Patch::Apply(&object))
        .await
        .map_err(failed)
}
