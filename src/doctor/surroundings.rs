//! What is the same for every channel that is looked at: the configuration and where it came from, the keys if they
//! may be read, the clients, the neighbours. Read once.

use std::{path::PathBuf, time::Duration};

use k8s_openapi::api::core::v1::ConfigMap;
use kube::{Client, ResourceExt};

use super::{
    gather::{self, ApiProblem, Neighbours},
    judge,
    report::{Step, StepId},
};
use crate::{
    config::Installation,
    kernel,
    keys::{KeyMaterial, Keys},
};

/// Where the configuration is.
#[derive(Clone, Debug)]
pub enum ConfigSource {
    /// In a file.
    File(PathBuf),
    /// In a ConfigMap of the release, by its name if it has another than the chart gives it.
    ConfigMap(Option<String>),
}

/// What is the same for every channel that is looked at.
pub struct Surroundings {
    pub(crate) client: Client,
    pub(crate) kernel: kernel::Client,
    pub(crate) installation: Option<Installation>,
    /// Where the release is, if that is known.
    pub(crate) release: Option<String>,
    pub(crate) keys: Option<Keys>,
    /// Why the keys are not there, for a person.
    pub(crate) no_keys: String,
    pub(crate) neighbours: Neighbours,
    /// Instead of the environment's.
    pub(crate) timeout: Option<Duration>,
}

/// The key of the ConfigMap that holds the file.
const FILE: &str = "config.yaml";

impl Surroundings {
    /// Reads the surroundings of the channels of these namespaces, the first of which is the one at home. The step says
    /// which configuration was used.
    ///
    /// # Errors
    /// When TLS for Kernel can't be set up.
    pub async fn read(
        client: Client,
        source: &ConfigSource,
        release_namespace: Option<&str>,
        installation_key: Option<&str>,
        around: &[String],
        timeout: Option<Duration>,
    ) -> Result<(Self, Step), reqwest::Error> {
        let namespace = around.first().map_or("default", String::as_str);
        let (installation, found_in, step) =
            configuration(&client, source, release_namespace, namespace).await;
        let known_release = release_namespace.map(ToOwned::to_owned).or(found_in);
        let release = known_release.clone().unwrap_or_else(|| namespace.to_owned());
        let (keys, no_keys) = keys(&client, &release, installation_key).await;
        let mut namespaces = around.to_vec();
        if let Some(installation) = &installation {
            namespaces.extend(installation.scope(&release).unwrap_or_default());
            let allowed = installation.environments.values();
            namespaces.extend(allowed.flat_map(|environment| environment.namespaces.clone()));
        }
        namespaces.retain(|namespace| namespace != "*");
        namespaces.sort();
        namespaces.dedup();
        let neighbours = gather::neighbours(&client, &namespaces).await;
        let surroundings = Self {
            kernel: kernel::Client::new()?,
            client,
            installation,
            release: known_release,
            keys,
            no_keys,
            neighbours,
            timeout,
        };
        Ok((surroundings, step))
    }
}

async fn configuration(
    client: &Client,
    source: &ConfigSource,
    release_namespace: Option<&str>,
    namespace: &str,
) -> (Option<Installation>, Option<String>, Step) {
    let name = match source {
        ConfigSource::File(path) => {
            let place = format!("file {}", path.display());
            let (installation, step) = judge::configuration(&place, Installation::load(path));
            return (installation, None, step);
        }
        ConfigSource::ConfigMap(name) => name.as_deref(),
    };
    let mut found = gather::config_maps(client, release_namespace, name).await;
    // Who may not look everywhere may at least look beside the channel.
    if release_namespace.is_none() && matches!(found, Err(ApiProblem::Forbidden(_))) {
        found = gather::config_maps(client, Some(namespace), name).await;
    }
    let maps = match found {
        Ok(maps) => maps,
        Err(problem) => {
            return (
                None,
                None,
                judge::unread(StepId::Configuration, "the release's ConfigMap", &problem)
                    .detail("with --config FILE it is read from a file instead"),
            );
        }
    };
    let holding: Vec<(&ConfigMap, &String)> = maps
        .iter()
        .filter_map(|map| Some((map, map.data.as_ref()?.get(FILE)?)))
        .collect();
    match holding.as_slice() {
        [(map, text)] => {
            let namespace = map.namespace().unwrap_or_default();
            let place = format!("ConfigMap {namespace}/{}", map.name_any());
            let (installation, step) = judge::configuration(&place, Installation::parse(text, &place));
            (installation, Some(namespace), step)
        }
        many => {
            let names: Vec<String> = many
                .iter()
                .map(|(map, _)| format!("{}/{}", map.namespace().unwrap_or_default(), map.name_any()))
                .collect();
            (None, None, judge::no_single_config_map(&names, release_namespace))
        }
    }
}

/// The installation's keys, or why they are not there.
async fn keys(client: &Client, namespace: &str, name: Option<&str>) -> (Option<Keys>, String) {
    let Some(name) = name else {
        return (
            None,
            "name the installation key's Secret with --installation-key-secret to compare it".to_owned(),
        );
    };
    let place = format!("Secret {name:?} in namespace {namespace:?}");
    let secret = match gather::secret(client, namespace, name).await {
        Ok(Some(secret)) => secret,
        Ok(None) => return (None, format!("there is no {place} (see --release-namespace)")),
        Err(ApiProblem::Forbidden(right)) => return (None, format!("no right to {}", right.words())),
        Err(_) => return (None, format!("{place} can't be read")),
    };
    let data = secret.data.unwrap_or_default();
    match KeyMaterial::new(|entry| data.get(entry).map(|value| value.0.clone())) {
        Ok(material) => (Some(Keys::derive(&material)), String::new()),
        Err(error) => (None, format!("{place}: {error}")),
    }
}
