//! What the controller watches in one scope: the channels, and of labelled Secrets their metadata. Thin: it feeds the
//! roster and wakes whom a change concerns.

use std::{collections::HashSet, fmt::Debug, pin::pin, sync::Arc};

use futures::{Stream, StreamExt};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, Resource, ResourceExt,
    api::ListParams,
    core::{NamespaceResourceScope, PartialObjectMeta},
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use secrecy::ExposeSecret;
use serde::de::DeserializeOwned;

use super::{
    context::{Context, Listed},
    object_key::ObjectKey,
};
use crate::{
    api::{CredentialsRef, SECRET_LABEL, WhatsAppChannel},
    cluster::{self, WatchBackoff},
};

/// A watch that is begun anew by itself; failures are told of and left out.
fn follow<K>(
    context: Arc<Context>,
    namespace: Option<&str>,
    kind: &'static str,
    config: watcher::Config,
) -> impl Stream<Item = Event<K>>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + DeserializeOwned
        + Debug
        + Send
        + 'static,
{
    let api: Api<K> = scoped(&context.client, namespace);
    let namespace = namespace.map(ToOwned::to_owned);
    watcher(api, config)
        .backoff(WatchBackoff::default())
        .filter_map(move |event| {
            let event = match event {
                Ok(event) => {
                    // That a list begins is no word of the API server's.
                    if !matches!(event, Event::Init) {
                        context.metrics.heard_of(kind, namespace.as_deref());
                    }
                    Some(event)
                }
                Err(error) => {
                    tracing::warn!(namespace, kind, "the watch is interrupted; it is tried again");
                    tracing::debug!(namespace, kind, %error, "the watch is interrupted");
                    None
                }
            };
            std::future::ready(event)
        })
}

/// Follows the channels of a scope; does not end.
pub(super) async fn follow_channels(context: Arc<Context>, namespace: Option<String>) {
    let mut events = pin!(follow::<WhatsAppChannel>(
        context.clone(),
        namespace.as_deref(),
        "WhatsAppChannel",
        cluster::watch_config(),
    ));
    let mut listing: HashSet<ObjectKey> = HashSet::new();
    let mut first = true;
    while let Some(event) = events.next().await {
        match event {
            Event::Init => listing.clear(),
            Event::Apply(channel) => drop(context.seen(channel)),
            Event::InitApply(channel) => listing.extend(context.seen(channel)),
            Event::Delete(channel) => {
                if let Some(key) = ObjectKey::of(&channel) {
                    context.gone(&key);
                }
            }
            Event::InitDone => {
                context.listed_anew(namespace.as_deref(), &std::mem::take(&mut listing));
                if std::mem::take(&mut first) {
                    context.listed(Listed::Channels);
                }
            }
        }
    }
}

/// Follows the versions of the labelled Secrets of a scope; does not end.
pub(super) async fn follow_secrets(context: Arc<Context>, namespace: Option<String>) {
    let mut events = pin!(follow::<PartialObjectMeta<Secret>>(
        context.clone(),
        namespace.as_deref(),
        "Secret",
        cluster::watch_config().labels(&labelled()),
    ));
    let mut listing: HashSet<ObjectKey> = HashSet::new();
    let mut first = true;
    while let Some(event) = events.next().await {
        let mut changed = Vec::new();
        match event {
            Event::Init => listing.clear(),
            Event::Apply(secret) => changed.push((ObjectKey::of(&secret), secret.resource_version())),
            Event::InitApply(secret) => {
                listing.extend(ObjectKey::of(&secret));
                changed.push((ObjectKey::of(&secret), secret.resource_version()));
            }
            Event::Delete(secret) => changed.push((ObjectKey::of(&secret), None)),
            Event::InitDone => {
                let known = context.roster().known_secrets(namespace.as_deref());
                changed.extend(known.difference(&listing).map(|gone| (Some(gone.clone()), None)));
                listing = HashSet::new();
                if std::mem::take(&mut first) {
                    context.listed(Listed::Secrets);
                }
            }
        }
        for (secret, version) in changed {
            let Some(secret) = secret else { continue };
            let concerned = context.roster().secret(&secret, version.as_deref());
            concerned.iter().for_each(|key| context.wake(key));
        }
    }
}

/// How many Secrets are read at once when the Kernel clients are looked through.
const PAGE: u32 = 250;

/// Notes which Kernel client each channel has, so that one that comes later and shares it is told so. In pages: ten
/// thousand reads one by one would be a storm at every start.
pub(super) async fn read_clients(context: &Context) {
    // Beside each other: one namespace whose Secrets can't be listed keeps no other from being known.
    let reads = context.namespaces().iter().map(|namespace| async move {
        let secrets: Api<Secret> = scoped(&context.client, namespace.as_deref());
        let mut waits = WatchBackoff::default();
        while let Err(error) = read_clients_of(context, &secrets).await {
            tracing::warn!(
                namespace,
                error = cluster::error_class(&error),
                "can't look through the channels' Secrets, to see which share a Kernel client; trying again"
            );
            tokio::time::sleep(waits.next().unwrap_or_default()).await;
        }
    });
    futures::future::join_all(reads).await;
    context.clients_known(true);
}

async fn read_clients_of(context: &Context, secrets: &Api<Secret>) -> Result<(), kube::Error> {
    let mut parameters = ListParams::default().labels(&labelled()).limit(PAGE);
    loop {
        let page = secrets.list(&parameters).await?;
        for secret in &page.items {
            note_clients(context, secret);
        }
        match page.metadata.continue_.filter(|token| !token.is_empty()) {
            Some(token) => parameters = parameters.continue_token(&token),
            None => return Ok(()),
        }
    }
}

fn note_clients(context: &Context, secret: &Secret) {
    let Some(key) = ObjectKey::of(secret) else { return };
    let users: Vec<_> = {
        let roster = context.roster();
        let users = roster.users(&key).iter().filter_map(|user| roster.get(user));
        users
            .filter_map(|entry| {
                let (of, id_key) = entry.client_secret();
                (of == Some(&key)).then(|| (entry.key.clone(), id_key.to_owned()))
            })
            .collect()
    };
    for (user, id_key) in users {
        let reference = CredentialsRef {
            name: key.name.to_string(),
            id_key: Some(id_key),
            secret_key: None,
        };
        if let Ok(id) = cluster::client_id(secret, &reference) {
            let hash = context.memories.hash(id.expose_secret());
            context.uses_client(&user, hash);
        }
    }
}

fn labelled() -> String {
    format!("{SECRET_LABEL}=true")
}

fn scoped<K>(client: &Client, namespace: Option<&str>) -> Api<K>
where
    K: Resource<Scope = NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}
