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
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio_util::sync::CancellationToken;

use super::{
    routes::{ChannelView, RouteTable},
    secrets::Secrets,
    snapshot,
    state::Shared,
};
use crate::{api::WhatsAppChannel, cluster::WatchBackoff, delivery::RunnerHandle, keys::ApiKey};

/// How long changes are gathered before the table is built anew: a list of many resources is one change.
const GATHER: Duration = Duration::from_millis(10);
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
}

impl Watch {
    /// Watches until told to stop.
    pub async fn run(self, stop: CancellationToken) {
        let apis: Vec<Api<WhatsAppChannel>> = match &self.scope {
            None => vec![Api::all(self.client.clone())],
            Some(namespaces) => namespaces
                .iter()
                .map(|namespace| Api::namespaced(self.client.clone(), namespace))
                .collect(),
        };
        let scopes = apis.len();
        let mut events = SelectAll::new();
        for (scope, api) in apis.into_iter().enumerate() {
            let stream = watcher(api, watcher::Config::default())
                .modify(|channel| {
                    channel.managed_fields_mut().clear();
                    channel.annotations_mut().clear();
                })
                .backoff(WatchBackoff::default());
            events.push(stream.map(move |event| (scope, event)).boxed());
        }
        let mut views = Views::default();
        let mut issued: HashMap<Name, ApiKey> = HashMap::new();
        let mut dirty = false;
        let mut keys_missing = false;
        let mut deadline = pin!(tokio::time::sleep(GATHER));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                Some((scope, event)) = events.next() => match event {
                    Ok(event) => {
                        self.state.metrics.watch_connected.set(1);
                        if views.take(scope, event) && !dirty {
                            dirty = true;
                            deadline.as_mut().reset(tokio::time::Instant::now() + GATHER);
                        }
                    }
                    Err(error) => {
                        self.state.metrics.watch_connected.set(0);
                        tracing::warn!(error = watch_error(&error), "the watch is interrupted; serving the last known routes");
                    }
                },
                () = &mut deadline, if dirty || keys_missing => {
                    dirty = false;
                    // Until each scope was listed once, a table built from a part would forget what the snapshot knew.
                    if views.synced.len() == scopes {
                        keys_missing = !read_issued(&self.state.secrets, &views, &mut issued).await;
                        self.replace(&views, &issued).await;
                    }
                    deadline.as_mut().reset(tokio::time::Instant::now() + KEYS_AGAIN);
                }
            }
        }
    }

    async fn replace(&self, views: &Views, issued: &HashMap<Name, ApiKey>) {
        let list: Vec<ChannelView> = views.known.values().cloned().collect();
        let old = self.state.routes.load_full();
        let new = Arc::new(RouteTable::build(&list, &self.state.installation, |view| {
            issued.get(&(view.namespace.clone(), view.name.clone())).cloned()
        }));
        self.state.routes.store(new.clone());
        self.state
            .metrics
            .routes
            .set(i64::try_from(new.len()).unwrap_or(i64::MAX));
        if !self.state.health.routes_known.swap(true, Ordering::Relaxed) {
            tracing::info!(routes = new.len(), "routes are known");
        }
        self.state.secrets.retain(new.iter());
        for route in new.iter() {
            let same = old.get(route.channel).is_some_and(|before| {
                before.secret_version == route.secret_version
                    && before.effective == route.effective
                    && before.credentials == route.credentials
                    && before.namespace == route.namespace
            });
            if !same {
                tracing::info!(
                    channel = %route.channel, namespace = route.namespace, name = route.name,
                    environment = route.environment_name, "route changed"
                );
                self.fetch_ahead(route.clone());
                self.runner.poke(route.channel);
            }
        }
        for gone in old.iter().filter(|route| new.get(route.channel).is_none()) {
            tracing::info!(channel = %gone.channel, namespace = gone.namespace, name = gone.name, "route is gone");
        }
        let dir = self.data_dir.clone();
        match tokio::task::spawn_blocking(move || snapshot::save(&dir, &list)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::error!(%error, "can't save the route snapshot"),
            Err(error) => tracing::error!(%error, "saving the route snapshot failed"),
        }
    }

    /// Reads a channel's credentials before they are needed, so that they are there when the API server is not.
    fn fetch_ahead(&self, route: Arc<super::routes::Route>) {
        let state = self.state.clone();
        tokio::spawn(async move {
            if let Err(error) = state.secrets.credentials(&route).await {
                tracing::info!(channel = %route.channel, %error, "no credentials for this channel yet");
            }
        });
    }
}

/// Reads the keys issued elsewhere; says whether all are known.
async fn read_issued(secrets: &Secrets, views: &Views, issued: &mut HashMap<Name, ApiKey>) -> bool {
    let mut all = true;
    let mut names = HashSet::new();
    for view in views.known.values() {
        let name = (view.namespace.clone(), view.name.clone());
        match secrets.issued_key(view).await {
            Ok(Some(key)) => {
                issued.insert(name.clone(), key);
                names.insert(name);
            }
            Ok(None) => {}
            Err(error) => {
                all = false;
                names.insert(name);
                tracing::info!(namespace = view.namespace, name = view.name, %error, "the channel's API key can't be used yet");
            }
        }
    }
    issued.retain(|name, _| names.contains(name));
    all
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
