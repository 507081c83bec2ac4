//! What the controller watches in one scope: the channels, and of labelled Secrets their metadata. Thin: it feeds the
//! roster and wakes whom a change concerns.

use std::{collections::HashSet, pin::pin, sync::Arc};

use futures::{Stream, StreamExt, TryStreamExt, future::BoxFuture};
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Client, ResourceExt,
    api::ListParams,
    core::PartialObjectMeta,
    runtime::{
        Controller, Predicate, PredicateConfig, WatchStreamExt, predicates,
        reflector::{self, ObjectRef, Store},
        watcher::{self, Event, watcher},
    },
};
use secrecy::ExposeSecret;
use tokio::sync::mpsc;

use super::{context::Context, roster::ObjectKey};
use crate::{
    api::{CredentialsRef, REQUESTED_AT, SECRET_LABEL, WhatsAppChannel, WhatsAppChannelStatus},
    cluster::{self, WatchBackoff},
};

/// One scope's watches.
pub(super) struct Watched {
    pub controller: Controller<WhatsAppChannel>,
    pub store: Store<WhatsAppChannel>,
    pub wake: mpsc::UnboundedSender<ObjectRef<WhatsAppChannel>>,
    /// Follows the Secrets; does not end.
    pub secrets: BoxFuture<'static, ()>,
}

/// The watches of a namespace, or of the whole cluster.
pub(super) fn scope(context: &Arc<Context>, namespace: Option<&str>) -> Watched {
    let channels: Api<WhatsAppChannel> = scoped(&context.client, namespace);
    let (wake, woken) = mpsc::unbounded_channel();
    let (noted, told) = (context.clone(), context.clone());
    let scope = namespace.map(ToOwned::to_owned);
    let (store, writer) = reflector::store();
    let lookup = store.clone();
    let mut first = true;
    let stream = watcher(channels, watcher::Config::default())
        .backoff(WatchBackoff::default())
        .modify(move |channel| {
            noted.memories.told_status(&channel.uid().unwrap_or_default(), slim(channel));
        })
        .reflect(writer)
        .inspect_ok(move |event| {
            // That a list begins is no word of the API server's.
            if !matches!(event, Event::Init) {
                told.metrics.heard_of("WhatsAppChannel");
            }
            match event {
                Event::Apply(channel) | Event::InitApply(channel) => told.seen(channel),
                Event::Delete(channel) => {
                    if let Some(key) = ObjectKey::of(channel) {
                        told.gone(&key);
                    }
                    told.memories.forget(&channel.uid().unwrap_or_default());
                }
                Event::InitDone => {
                    told.listed_anew(scope.as_deref(), &lookup);
                    if std::mem::take(&mut first) {
                        told.listed();
                    }
                }
                Event::Init => {}
            }
        })
        .applied_objects()
        // What the controller writes itself (the status) wakes nobody; that the finalizer was added must.
        .predicate_filter(
            predicates::generation
                .combine(predicates::finalizers)
                .combine(predicates::annotations),
            PredicateConfig::default(),
        );
    let controller = Controller::for_stream(stream, store.clone())
        .trigger_backoff(WatchBackoff::default())
        .reconcile_on(received(woken));
    Watched {
        controller,
        store,
        wake,
        secrets: Box::pin(follow_secrets(context.clone(), namespace.map(ToOwned::to_owned))),
    }
}

/// Leaves of a channel what is needed of it, and answers its status, which is kept apart: ten thousand of them, each with
/// the same words and a copy of itself in an annotation, would take their room.
fn slim(channel: &mut WhatsAppChannel) -> WhatsAppChannelStatus {
    channel.metadata.managed_fields = None;
    channel.metadata.labels = None;
    channel.metadata.owner_references = None;
    channel.annotations_mut().retain(|name, _| name == REQUESTED_AT);
    if channel.annotations().is_empty() {
        channel.metadata.annotations = None;
    }
    channel.status.take().unwrap_or_default()
}

/// Follows the versions of the labelled Secrets of a scope.
async fn follow_secrets(context: Arc<Context>, namespace: Option<String>) {
    let secrets: Api<PartialObjectMeta<Secret>> = scoped(&context.client, namespace.as_deref());
    let config = watcher::Config::default().labels(&labelled());
    let mut events = pin!(watcher(secrets, config).backoff(WatchBackoff::default()));
    let mut listing: HashSet<ObjectKey> = HashSet::new();
    let mut first = true;
    while let Some(event) = events.next().await {
        let Ok(event) = event else {
            tracing::warn!(
                namespace,
                "the watch of Secrets is interrupted; it is tried again"
            );
            continue;
        };
        if !matches!(event, Event::Init) {
            context.metrics.heard_of("Secret");
        }
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
                    context.listed();
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
const PAGE: u32 = 200;

/// Notes which Kernel client each channel has, so that one that comes later and shares it is told so. In pages: ten
/// thousand reads one by one would be a storm at every start.
pub(super) async fn read_clients(context: &Context) {
    for scope in context.scopes() {
        let secrets: Api<Secret> = scoped(&context.client, scope.namespace.as_deref());
        let mut parameters = ListParams::default().labels(&labelled()).limit(PAGE);
        loop {
            let page = match secrets.list(&parameters).await {
                Ok(page) => page,
                Err(error) => {
                    tracing::warn!(
                        namespace = scope.namespace,
                        error = cluster::error_class(&error),
                        "can't look through the channels' Secrets: two that share a Kernel client may go unseen \
                         until one of them changes"
                    );
                    break;
                }
            };
            for secret in &page.items {
                note_clients(context, secret);
            }
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => parameters = parameters.continue_token(&token),
                None => break,
            }
        }
    }
    context.clients_known(true);
}

fn note_clients(context: &Context, secret: &Secret) {
    let Some(key) = ObjectKey::of(secret) else { return };
    let users: Vec<_> = {
        let roster = context.roster();
        let users = roster.users(&key).iter().filter_map(|user| roster.get(user));
        users
            .map(|entry| {
                (
                    entry.key.clone(),
                    entry.client_secret().0,
                    entry.client_secret().1.to_owned(),
                )
            })
            .collect()
    };
    for (user, of, id_key) in users {
        let reference = CredentialsRef {
            name: key.name.clone(),
            id_key: Some(id_key),
            secret_key: None,
        };
        if of != key {
            continue;
        }
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
    K: kube::Resource<Scope = kube::core::NamespaceResourceScope>,
    K::DynamicType: Default,
{
    match namespace {
        Some(namespace) => Api::namespaced(client.clone(), namespace),
        None => Api::all(client.clone()),
    }
}

fn received<T>(mut receiver: mpsc::UnboundedReceiver<T>) -> impl Stream<Item = T> {
    futures::stream::poll_fn(move |context| receiver.poll_recv(context))
}
