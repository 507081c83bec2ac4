//! Keeps the routes: watches the resources, replaces the table as a whole, keeps serving what is known while the
//! API server is away.

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, stream::SelectAll};
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use super::{
    issued::{self, Issued},
    routes::{ChannelView, RouteTable},
    snapshot,
    state::{Shared, now_ms},
};
use crate::{
    api::{ChannelId, WhatsAppChannel},
    cluster::{self, WatchBackoff},
    delivery::RunnerHandle,
};

/// How long changes are gathered before the table is built anew: a list of many resources is one change.
const GATHER: Duration = Duration::from_millis(10);
/// How long a start without a snapshot waits for every namespace's list.
const PATIENCE: Duration = Duration::from_secs(30);
/// How soon the lists are looked for again.
const LISTS_AGAIN: Duration = Duration::from_millis(50);
/// How many Secrets are read ahead at once.
pub(super) const AHEAD: usize = 16;
/// How soon issued keys that could not be read are asked for again.
const KEYS_AGAIN: Duration = Duration::from_secs(5);

/// One watched scope: a namespace, or the whole cluster.
type Scope = usize;
type Name = (String, String);

/// The resources as the watches tell them. Each scope has a watch of its own, and a relist of one replaces what
/// that one said before and nothing else.
#[derive(Default)]
struct Views {
    known: BTreeMap<(Scope, Name), ChannelView>,
    listing: HashMap<Scope, BTreeMap<Name, ChannelView>>,
    synced: HashSet<Scope>,
}

impl Views {
    /// Begins with what the snapshot knew: what a scope says later replaces it.
    fn seed(
        &mut self,
        snapshot: impl Iterator<Item = ChannelView>,
        scope_of: impl Fn(&str) -> Option<Scope>,
    ) {
        self.known.extend(snapshot.filter_map(|view| {
            let scope = scope_of(&view.namespace)?;
            Some(((scope, (view.namespace.clone(), view.name.clone())), view))
        }));
    }

    /// Takes one event; says whether the table must be built anew.
    fn take(&mut self, scope: Scope, event: Event<WhatsAppChannel>) -> bool {
        match event {
            Event::Apply(channel) => match entry(&channel) {
                Some((name, view)) => self.known.insert((scope, name), view.clone()).as_ref() != Some(&view),
                None => false,
            },
            Event::Delete(channel) => {
                let name = (channel.namespace().unwrap_or_default(), channel.name_any());
                self.known.remove(&(scope, name)).is_some()
            }
            Event::Init => {
                self.listing.insert(scope, BTreeMap::new());
                false
            }
            Event::InitApply(channel) => {
                if let Some((name, view)) = entry(&channel) {
                    self.listing.entry(scope).or_default().insert(name, view);
                }
                false
            }
            Event::InitDone => {
                self.synced.insert(scope);
                let listed = self.listing.remove(&scope).unwrap_or_default();
                self.known.retain(|(of, _), _| *of != scope);
                self.known
                    .extend(listed.into_iter().map(|(name, view)| ((scope, name), view)));
                true
            }
        }
    }
}

fn entry(channel: &WhatsAppChannel) -> Option<(Name, ChannelView)> {
    let view = ChannelView::new(channel)?;
    Some(((view.namespace.clone(), view.name.clone()), view))
}

/// The watch and what it feeds.
pub(super) struct Watch {
    pub client: Client,
    /// The namespaces to watch; `None`: the whole cluster.
    pub scope: Option<Vec<String>>,
    pub state: Shared,
    pub runner: RunnerHandle,
    pub data_dir: PathBuf,
    /// Secrets that are read ahead at once.
    pub ahead: Arc<Semaphore>,
}

impl Watch {
    /// Watches until told to stop, beginning with what the snapshot knew.
    pub async fn run(self, snapshot: Option<snapshot::Known>, stop: CancellationToken) {
        let start = tokio::time::Instant::now();
        let mut events = SelectAll::new();
        for (scope, api) in self.apis().into_iter().enumerate() {
            let stream = watcher(api, cluster::watch_config())
                .modify(|channel| {
                    channel.managed_fields_mut().clear();
                    channel.annotations_mut().clear();
                })
                .backoff(WatchBackoff::default());
            events.push(stream.map(move |event| (scope, event)).boxed());
        }
        let scopes = events.len();
        let has_snapshot = snapshot.is_some();
        let mut views = Views::default();
        // Channels that have a resource and no route.
        let mut unroutable = HashSet::new();
        let (channels, mut issued) = snapshot
            .map(|known| (known.channels, known.issued))
            .unwrap_or_default();
        views.seed(channels.into_iter(), |namespace| self.scope_of(namespace));
        // A key could not be read: it is asked for again.
        let mut missing = false;
        let mut dirty = false;
        let mut configured = false;
        let mut deadline = pin!(tokio::time::sleep(GATHER));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some((scope, event)) = events.next() => match event {
                    Ok(event) => {
                        // That a list begins is no word of the API server's.
                        if !matches!(event, Event::Init) {
                            self.state.routes_age(now_ms() / 1000);
                            self.state.health.definition_missing.store(false, Ordering::Relaxed);
                        }
                        if views.take(scope, event) && !dirty {
                            dirty = true;
                            deadline.as_mut().reset(tokio::time::Instant::now() + GATHER);
                        }
                    }
                    Err(error) => {
                        let (error, namespace) =
                            (watch_error(&error), self.scope.as_ref().and_then(|all| all.get(scope)));
                        self.state.health.definition_missing.store(error == "not_found", Ordering::Relaxed);
                        tracing::warn!(
                            namespace, error,
                            "a watch is interrupted; serving the last known routes"
                        );
                    }
                },
                () = self.state.setup_changed.notified() => {
                    configured = true;
                    if !dirty {
                        dirty = true;
                        deadline.as_mut().reset(tokio::time::Instant::now() + GATHER);
                    }
                }
                () = &mut deadline, if dirty || missing => {
                    // Without a snapshot, a table built from a part of the namespaces would refuse or put off the
                    // others' calls: all are waited for, but one that can't be listed does not stop the rest for ever.
                    let all = views.synced.len() == scopes;
                    if !(all || has_snapshot || start.elapsed() > PATIENCE) {
                        deadline.as_mut().reset(tokio::time::Instant::now() + LISTS_AGAIN);
                        continue;
                    }
                    // With nothing new, this moment is for the keys that could not be read.
                    if std::mem::take(&mut dirty) {
                        let first = !self.state.health.synced.swap(all, Ordering::Relaxed) && all;
                        if all {
                            issued.tidy(views.known.values(), Timestamp::now());
                        }
                        self.replace(&views, &issued, &mut unroutable).await;
                        if std::mem::take(&mut configured) {
                            tracing::info!("the configuration changed and is in force");
                            self.state.metrics.config.reloaded(true);
                        }
                        if first {
                            self.runner.listed();
                            // Also of those that the snapshot knew: their Secrets were read by the run before.
                            self.state.routes.load().iter().for_each(|route| self.fetch_ahead(route.clone()));
                        }
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        (changed, unread) = self.read_keys(&mut issued, &views) => {
                            missing = unread;
                            if changed {
                                self.replace(&views, &issued, &mut unroutable).await;
                            }
                        }
                    }
                    deadline.as_mut().reset(tokio::time::Instant::now() + KEYS_AGAIN);
                }
            }
        }
    }

    fn apis(&self) -> Vec<Api<WhatsAppChannel>> {
        match &self.scope {
            None => vec![Api::all(self.client.clone())],
            Some(namespaces) => namespaces
                .iter()
                .map(|namespace| Api::namespaced(self.client.clone(), namespace))
                .collect(),
        }
    }

    /// Which watch tells of a namespace; none of one that is no longer watched.
    fn scope_of(&self, namespace: &str) -> Option<Scope> {
        self.scope
            .as_ref()
            .map_or(Some(0), |all| all.iter().position(|one| one == namespace))
    }

    /// Reads the keys issued elsewhere that are new or changed. Answers whether any was read, and whether one is missing.
    async fn read_keys(&self, issued: &mut Issued, views: &Views) -> (bool, bool) {
        let (mut changed, mut missing) = (false, false);
        for view in views
            .known
            .values()
            .filter(|view| issued.must_read(view))
            .cloned()
            .collect::<Vec<_>>()
        {
            let Some(reference) = issued::reference(&view) else {
                continue;
            };
            match self.state.secrets.issued_key(&view.namespace, reference).await {
                Ok((key, version)) => {
                    issued.read(&view, &self.state.keys.load(), &key, &version);
                    changed = true;
                }
                Err(error) => {
                    missing = true;
                    tracing::info!(
                        namespace = view.namespace, name = view.name, %error,
                        "the channel's API key can't be used yet"
                    );
                }
            }
        }
        (changed, missing)
    }

    async fn replace(&self, views: &Views, issued: &Issued, unroutable: &mut HashSet<ChannelId>) {
        let list: Vec<ChannelView> = views.known.values().cloned().collect();
        let old = self.state.routes.load_full();
        let setup = self.state.setup.load();
        let new = Arc::new(RouteTable::build(&list, &setup.installation, issued));
        self.state.routes.store(new.clone());
        self.state
            .metrics
            .routes
            .set(i64::try_from(new.len()).unwrap_or(i64::MAX));
        if !self.state.health.routes_known.swap(true, Ordering::Relaxed) {
            tracing::info!(routes = new.len(), "routes are known");
        }
        let claimed: HashSet<ChannelId> = list
            .iter()
            .filter_map(|view| view.spec.channel_id.parse().ok())
            .collect();
        for route in old.iter().filter(|route| new.get(route.channel).is_none()) {
            tracing::info!(channel = %route.channel, namespace = route.namespace, name = route.name, "route is gone");
            if !claimed.contains(&route.channel) {
                self.state.leaving.add(route.clone());
                self.runner.deleted(route.channel);
            }
        }
        // Another resource has the channel: what was accepted for the one before drains with its route.
        for route in old.iter() {
            if new.get(route.channel).is_some_and(|now| now.tag != route.tag) {
                self.state.leaving.add(route.clone());
            }
        }
        let without: HashSet<ChannelId> = claimed
            .into_iter()
            .filter(|channel| new.get(*channel).is_none())
            .collect();
        for channel in without.difference(unroutable) {
            self.runner.unroutable(*channel);
        }
        for channel in unroutable.difference(&without) {
            if new.get(*channel).is_none() {
                self.runner.deleted(*channel);
            }
        }
        *unroutable = without;
        let leaving = self.state.leaving.current();
        self.state.secrets.retain(new.iter().chain(&leaving));
        for route in new.iter() {
            let same = old.get(route.channel).is_some_and(|before| {
                before.secret_version == route.secret_version
                    && before.effective == route.effective
                    && before.credentials == route.credentials
                    && before.namespace == route.namespace
                    && before.environment_name == route.environment_name
                    && *before.environment == *route.environment
            });
            if !same {
                tracing::info!(
                    channel = %route.channel, namespace = route.namespace, name = route.name,
                    environment = route.environment_name, "route changed"
                );
                self.fetch_ahead(route.clone());
                self.runner.serves(route.channel, route.delivery());
            }
        }
        let (dir, issued) = (self.data_dir.clone(), issued.clone());
        match tokio::task::spawn_blocking(move || snapshot::save(&dir, list, &issued)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "can't save the route snapshot"),
            Err(error) => tracing::error!(%error, "saving the route snapshot failed"),
        }
    }

    /// Reads a channel's credentials before they are needed, so that they are there when the API server is not.
    fn fetch_ahead(&self, route: Arc<super::routes::Route>) {
        let (state, places) = (self.state.clone(), self.ahead.clone());
        tokio::spawn(async move {
            let _place = places.acquire().await;
            if let Err(error) = state.secrets.credentials(&route).await {
                tracing::info!(channel = %route.channel, %error, "no credentials for this channel yet");
            }
        });
    }
}

/// The kind of a watch's error: its text may show the URL of the API server, which is nobody's secret, but no more
/// than a word is of use.
fn watch_error(error: &watcher::Error) -> &'static str {
    match error {
        watcher::Error::InitialListFailed(error)
        | watcher::Error::WatchStartFailed(error)
        | watcher::Error::WatchFailed(error) => crate::cluster::error_class(error),
        watcher::Error::WatchError(_) => "watch_error",
        watcher::Error::NoResourceVersion => "no_resource_version",
        #[allow(unreachable_patterns, reason = "the library may add kinds")]
        _ => "error",
    }
}
