//! What the doctor reads in the cluster. Thin: each call has a deadline, and what goes wrong is told apart by what
//! the person can do about it.

use std::{future::Future, time::Duration};

use futures::{StreamExt, stream};
use k8s_openapi::api::core::v1::{ConfigMap, Event, Secret};
use kube::{
    Api, Client, ResourceExt,
    api::{ListParams, ObjectList},
};

use crate::{
    api::{CredentialsRef, WhatsAppChannel},
    cluster,
    kernel::Credentials,
};

/// The time for one call to the API server, its answer's body included.
const DEADLINE: Duration = Duration::from_secs(15);
/// How many objects one page of a list has.
const PAGE: u32 = 500;
/// How many pages are read of one list: beyond, what is seen is said to be a part.
const MAX_PAGES: usize = 100;
/// How many other channels' Secrets are read, and how many at once.
const MAX_SECRETS: usize = 200;
const AT_ONCE: usize = 8;

/// A right that a call needs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Right {
    /// `get` or `list`.
    pub verb: &'static str,
    /// The resource with its group, as kubectl takes it.
    pub resource: &'static str,
    /// `None`: the whole cluster.
    pub namespace: Option<String>,
}

impl Right {
    /// The command that tells whether the right is there.
    pub fn check(&self) -> String {
        let scope = self
            .namespace
            .as_ref()
            .map_or_else(|| "-A".to_owned(), |namespace| format!("-n {namespace}"));
        format!("kubectl auth can-i {} {} {scope}", self.verb, self.resource)
    }

    /// The right in words.
    pub fn words(&self) -> String {
        let place = self.namespace.as_ref().map_or_else(
            || "in the whole cluster".to_owned(),
            |namespace| format!("in namespace {namespace:?}"),
        );
        format!("{} {} {place}", self.verb, self.resource)
    }
}

/// A call to the API server failed, by what can be done about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ApiProblem {
    /// RBAC does not allow it.
    Forbidden(Right),
    /// The API server does not know who asks.
    Unauthenticated,
    /// There is nothing at this path.
    NotFound,
    /// No answer, or no connection.
    Unreachable,
    /// Any other answer.
    Refused(u16),
}

/// The channels that this user can see, and where they were looked for.
#[derive(Clone, Debug, Default)]
pub struct Neighbours {
    /// The channels.
    pub channels: Vec<WhatsAppChannel>,
    /// They are all that the cluster has.
    pub whole: bool,
    /// Where was looked, in words.
    pub seen: String,
    /// Where could not be looked.
    pub unseen: Vec<String>,
}

pub(super) const CHANNELS: &str = "whatsappchannels.channels.auracognitive.com";

pub(super) fn right(verb: &'static str, resource: &'static str, namespace: Option<&str>) -> Right {
    Right {
        verb,
        resource,
        namespace: namespace.map(ToOwned::to_owned),
    }
}

/// Makes a call with a deadline. `right` is what it needs.
async fn bounded<T>(
    right: Right,
    call: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ApiProblem> {
    match tokio::time::timeout(DEADLINE, call).await {
        Ok(Ok(value)) => Ok(value),
        Ok(Err(kube::Error::Api(status))) => Err(match status.code {
            401 => ApiProblem::Unauthenticated,
            403 => ApiProblem::Forbidden(right),
            404 => ApiProblem::NotFound,
            code => ApiProblem::Refused(code),
        }),
        Err(_) | Ok(Err(_)) => Err(ApiProblem::Unreachable),
    }
}

/// The API server's version.
pub(crate) async fn version(client: &Client) -> Result<String, ApiProblem> {
    let version = bounded(right("get", "/version", None), client.apiserver_version()).await?;
    Ok(version.git_version)
}

/// One channel; `None` where there is none of that name.
pub(super) async fn channel(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<WhatsAppChannel>, ApiProblem> {
    let api: Api<WhatsAppChannel> = Api::namespaced(client.clone(), namespace);
    bounded(right("get", CHANNELS, Some(namespace)), api.get_opt(name)).await
}

/// The channels of a namespace, or of the whole cluster.
pub(crate) async fn channels(
    client: &Client,
    namespace: Option<&str>,
) -> Result<Vec<WhatsAppChannel>, ApiProblem> {
    let api: Api<WhatsAppChannel> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut found = Vec::new();
    let mut page = ListParams::default().limit(PAGE);
    for _ in 0..MAX_PAGES {
        let list: ObjectList<WhatsAppChannel> =
            bounded(right("list", CHANNELS, namespace), api.list(&page)).await?;
        let next = list.metadata.continue_.clone().filter(|next| !next.is_empty());
        found.extend(list.items);
        match next {
            Some(next) => page = page.continue_token(&next),
            None => break,
        }
    }
    Ok(found)
}

/// All channels that can be seen: of the whole cluster, or, where that is not allowed, of these namespaces one by
/// one. Read once for any number of channels.
pub async fn neighbours(client: &Client, namespaces: &[String]) -> Neighbours {
    if let Ok(channels) = channels(client, None).await {
        return Neighbours {
            channels,
            seen: "the whole cluster".to_owned(),
            whole: true,
            unseen: Vec::new(),
        };
    }
    let mut neighbours = Neighbours::default();
    let mut seen = Vec::new();
    for namespace in namespaces {
        match channels(client, Some(namespace)).await {
            Ok(channels) => {
                neighbours.channels.extend(channels);
                seen.push(namespace.as_str());
            }
            Err(_) => neighbours.unseen.push(namespace.clone()),
        }
    }
    neighbours.seen = match seen.as_slice() {
        [] => "no namespace".to_owned(),
        [one] => format!("namespace {one}"),
        many => format!("namespaces {}", many.join(", ")),
    };
    neighbours
}

/// A Secret; `None` where there is none.
pub(crate) async fn secret(
    client: &Client,
    namespace: &str,
    name: &str,
) -> Result<Option<Secret>, ApiProblem> {
    let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
    bounded(right("get", "secrets", Some(namespace)), api.get_opt(name)).await
}

/// The Kernel clients of other channels, as far as their Secrets can be read: the channel and its credentials. The
/// second figure is how many could not be compared.
pub(crate) async fn clients_of<'a>(
    client: &Client,
    channels: &[&'a WhatsAppChannel],
) -> (Vec<(&'a WhatsAppChannel, Credentials)>, usize) {
    let read: Vec<_> = stream::iter(channels.iter().copied().take(MAX_SECRETS))
        .map(|channel| async move {
            let reference: &CredentialsRef = &channel.spec.kernel.credentials_secret_ref;
            let namespace = channel.namespace().unwrap_or_default();
            let found = secret(client, &namespace, &reference.name).await.ok()?;
            let credentials = cluster::credentials(found.as_ref(), reference).ok()?;
            Some((channel, credentials))
        })
        .buffered(AT_ONCE)
        .collect()
        .await;
    let found: Vec<_> = read.into_iter().flatten().collect();
    let missed = channels.len().saturating_sub(found.len());
    (found, missed)
}

/// The ConfigMaps that may hold an installation's configuration: one by its name, or those that the chart labels.
pub(super) async fn config_maps(
    client: &Client,
    namespace: Option<&str>,
    name: Option<&str>,
) -> Result<Vec<ConfigMap>, ApiProblem> {
    let api: Api<ConfigMap> = match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    };
    let mut page = ListParams::default()
        .labels("app.kubernetes.io/name=aura-whatsapp-operator")
        .limit(PAGE);
    if let Some(name) = name {
        page = ListParams::default()
            .fields(&format!("metadata.name={name}"))
            .limit(PAGE);
    }
    let list = bounded(right("list", "configmaps", namespace), api.list(&page)).await?;
    Ok(list.items)
}

/// The events of an object, oldest first.
pub(super) async fn events(client: &Client, namespace: &str, uid: &str) -> Result<Vec<Event>, ApiProblem> {
    let api: Api<Event> = Api::namespaced(client.clone(), namespace);
    let page = ListParams::default()
        .fields(&format!("involvedObject.uid={uid}"))
        .limit(PAGE);
    let list = bounded(right("list", "events", Some(namespace)), api.list(&page)).await?;
    let mut events = list.items;
    events.sort_by_key(|event| last_seen(event).map(jiff::Timestamp::as_second));
    Ok(events)
}

/// When an event was last seen, in whichever of its three fields says so.
pub(super) fn last_seen(event: &Event) -> Option<jiff::Timestamp> {
    let series = event
        .series
        .as_ref()
        .and_then(|series| series.last_observed_time.as_ref());
    series
        .map(|at| at.0)
        .or_else(|| event.last_timestamp.as_ref().map(|at| at.0))
        .or_else(|| event.event_time.as_ref().map(|at| at.0))
        .or_else(|| event.metadata.creation_timestamp.as_ref().map(|at| at.0))
}
