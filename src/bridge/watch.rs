//! Keeps the routes: watches the resources, replaces the table as a whole, keeps serving what is known while the
//! API server is away.

use std::{
    collections::{BTreeMap, HashSet},
    path::PathBuf,
    pin::pin,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use futures::{StreamExt, channel::mpsc, stream::SelectAll};
use jiff::Timestamp;
use kube::{
    Api, Client, ResourceExt,
    runtime::{
        WatchStreamExt,
        watcher::{self, Event, watcher},
    },
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    issued::{self, Issued},
    routes::{Route, RouteTable},
    snapshot::{self, Save},
    state::{self, Shared, now_ms},
    views::{ChannelView, Commons, KnownViews},
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
const AHEAD: usize = 16;
/// How soon issued keys that could not be read are asked for again.
const KEYS_AGAIN: Duration = Duration::from_secs(5);

/// One watched scope: a namespace, or the whole cluster.
type Scope = usize;
/// A resource's namespace and name.
type Name = (Arc<str>, Arc<str>);

/// The resources as the watches tell them. Each scope has a watch of its own, and a relist of one replaces what
/// that one said before and nothing else.
#[derive(Default)]
struct Views {
    scopes: Vec<Scoped>,
    commons: Commons,
}

#[derive(Default)]
struct Scoped {
    known: BTreeMap<Name, Arc<ChannelView>>,
    listing: BTreeMap<Name, Arc<ChannelView>>,
    synced: bool,
}

impl Scoped {
    /// Takes what a resource says; whether that is new. The name that it is found by is the view's own, which is kept once.
    fn know(&mut self, view: ChannelView) -> bool {
        let name = name(&view);
        let is_new = self.known.get(&name).is_none_or(|known| **known != view);
        if is_new {
            // A map keeps the key that it has.
            self.known.remove(&name);
            self.known.insert(name, Arc::new(view));
        }
        is_new
    }

    /// A resource is gone; whether it was known.
    fn forget(&mut self, channel: &WhatsAppChannel) -> bool {
        let name = (
            channel.namespace().unwrap_or_default().into(),
            channel.name_any().into(),
        );
        self.known.remove(&name).is_some()
    }
}

impl Views {
    /// Begins with what the snapshot knew: what a scope says later replaces it.
    fn new(scopes: usize, snapshot: KnownViews, scope_of: impl Fn(&str) -> Option<Scope>) -> Self {
        let mut views = Self {
            scopes: (0..scopes).map(|_| Scoped::default()).collect(),
            commons: snapshot.commons,
        };
        for view in snapshot.views {
            if let Some(scoped) = scope_of(&view.namespace).and_then(|scope| views.scopes.get_mut(scope)) {
                scoped.known.insert(name(&view), view);
            }
        }
        views
    }

    /// Takes one event; says whether the table must be built anew.
    fn take(&mut self, scope: Scope, event: Event<WhatsAppChannel>) -> bool {
        let Some(scoped) = self.scopes.get_mut(scope) else {
            return false;
        };
        match event {
            Event::Apply(channel) => match self.commons.view(&channel) {
                Some(view) => scoped.know(view),
                // What it says now is no channel, and what it said before it does not say any more.
                None => scoped.forget(&channel),
            },
            Event::Delete(channel) => scoped.forget(&channel),
            Event::Init => {
                scoped.listing.clear();
                false
            }
            Event::InitApply(channel) => {
                if let Some(view) = self.commons.view(&channel) {
                    // What is known is kept, with the routes that go by it.
                    let known = scoped.known.get(&name(&view)).filter(|known| ***known == view);
                    let view = known.cloned().unwrap_or_else(|| Arc::new(view));
                    scoped.listing.insert(name(&view), view);
                }
                false
            }
            Event::InitDone => {
                scoped.synced = true;
                scoped.known = std::mem::take(&mut scoped.listing);
                true
            }
        }
    }

    /// Whether each scope has told all that it knows.
    fn is_synced(&self) -> bool {
        self.scopes.iter().all(|scoped| scoped.synced)
    }

    fn iter(&self) -> impl Iterator<Item = &Arc<ChannelView>> {
        self.scopes.iter().flat_map(|scoped| scoped.known.values())
    }
}

fn name(view: &ChannelView) -> Name {
    (view.namespace.clone(), view.name.clone())
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

/// What follows from a change of the routes, each in its own time.
struct Followers {
    /// The last state, to be saved.
    save: watch::Sender<Save>,
    /// Channels whose credentials are read before they are needed, so that they are there when the API server is not.
    ahead: mpsc::UnboundedSender<ChannelId>,
}

impl Watch {
    /// Watches until told to stop, beginning with what the snapshot knew.
    pub async fn run(self, snapshot: Option<snapshot::Known>, stop: CancellationToken) {
        let (save, to_save) = watch::channel(Save::default());
        let (ahead, to_read) = mpsc::unbounded();
        let saves = snapshot::keep(self.data_dir.clone(), to_save, stop.clone());
        let state = self.state.clone();
        let reads = stop.run_until_cancelled(
            to_read.for_each_concurrent(AHEAD, move |channel| read(state.clone(), channel)),
        );
        let follow = self.follow(snapshot, Followers { save, ahead }, &stop);
        tokio::join!(follow, saves, reads);
    }

    async fn follow(self, snapshot: Option<snapshot::Known>, followers: Followers, stop: &CancellationToken) {
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
        let has_snapshot = snapshot.is_some();
        let (channels, mut issued) = snapshot
            .map(|known| (known.channels, known.issued))
            .unwrap_or_default();
        let mut views = Views::new(events.len(), channels, |namespace| self.scope_of(namespace));
        // Channels that have a resource and no route.
        let mut unroutable = HashSet::new();
        // A key could not be read: it is asked for again.
        let mut missing = false;
        let mut dirty = false;
        let mut configured = false;
        let mut deadline = pin!(tokio::time::sleep(GATHER));
        let mut tidy = pin!(tokio::time::sleep(state::KEPT));
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = &mut tidy, if !self.state.leaving.is_empty() => {
                    self.forget_gone();
                    tidy.as_mut().reset(tokio::time::Instant::now() + state::KEPT);
                }
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
                    let all = views.is_synced();
                    if !(all || has_snapshot || start.elapsed() > PATIENCE) {
                        deadline.as_mut().reset(tokio::time::Instant::now() + LISTS_AGAIN);
                        continue;
                    }
                    // With nothing new, this moment is for the keys that could not be read.
                    if std::mem::take(&mut dirty) {
                        let first = !self.state.health.synced.swap(all, Ordering::Relaxed) && all;
                        if all {
                            issued.tidy(views.iter().map(Arc::as_ref), Timestamp::now());
                        }
                        self.replace(&views, &issued, &mut unroutable, &followers);
                        if std::mem::take(&mut configured) {
                            tracing::info!("the configuration changed and is in force");
                            self.state.metrics.config.reloaded(true);
                        }
                        if first {
                            self.runner.listed();
                            // Also of those that the snapshot knew: their Secrets were read by the run before.
                            self.state.routes.load().iter().for_each(|route| followers.read_ahead(route));
                        }
                    }
                    tokio::select! {
                        () = stop.cancelled() => return,
                        (changed, unread) = self.read_keys(&mut issued, &views) => {
                            missing = unread;
                            if changed {
                                self.replace(&views, &issued, &mut unroutable, &followers);
                            }
                        }
                    }
                    deadline.as_mut().reset(tokio::time::Instant::now() + KEYS_AGAIN);
                }
            }
        }
    }

    /// Lets go of what is left of channels that went a while ago, but for those that are back.
    fn forget_gone(&self) {
        let routes = self.state.routes.load();
        for channel in self.state.leaving.tidy() {
            if routes.get(channel).is_none() {
                self.state.metrics.forget(&channel.to_string());
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
        let unread: Vec<_> = views.iter().filter(|view| issued.must_read(view)).collect();
        for view in unread {
            let Some(reference) = issued::reference(view) else {
                continue;
            };
            match self.state.secrets.issued_key(&view.namespace, reference).await {
                Ok((key, version)) => {
                    issued.read(view, &self.state.keys.load(), &key, &version);
                    changed = true;
                }
                Err(error) => {
                    missing = true;
                    tracing::info!(
                        namespace = &*view.namespace, name = &*view.name, %error,
                        "the channel's API key can't be used yet"
                    );
                }
            }
        }
        (changed, missing)
    }

    fn replace(
        &self,
        views: &Views,
        issued: &Issued,
        unroutable: &mut HashSet<ChannelId>,
        followers: &Followers,
    ) {
        let old = self.state.routes.load_full();
        let setup = self.state.setup.load();
        let new = Arc::new(RouteTable::build(views.iter(), &setup.installation, issued, &old));
        self.state.routes.store(new.clone());
        self.state
            .metrics
            .routes
            .set(i64::try_from(new.len()).unwrap_or(i64::MAX));
        if !self.state.health.routes_known.swap(true, Ordering::Relaxed) {
            tracing::info!(routes = new.len(), "routes are known");
        }
        let without: HashSet<ChannelId> = views
            .iter()
            .map(|view| view.channel)
            .filter(|channel| new.get(*channel).is_none())
            .collect();
        for route in old.iter() {
            let (channel, now) = (route.channel(), new.get(route.channel()));
            if now.is_none() {
                tracing::info!(
                    %channel, namespace = route.namespace(), name = route.name(), "route is gone"
                );
                if !without.contains(&channel) {
                    self.state.leaving.add(route.clone());
                    self.runner.deleted(channel);
                }
            }
            // Another resource has the channel: what was accepted for the one before drains with its route.
            if now.is_some_and(|now| now.tag != route.tag) {
                self.state.leaving.add(route.clone());
            }
        }
        for channel in without.difference(unroutable) {
            self.runner.unroutable(*channel);
        }
        for channel in unroutable.difference(&without) {
            if new.get(*channel).is_none() {
                self.runner.deleted(*channel);
            }
        }
        *unroutable = without;
        for route in new.iter() {
            let before = old.get(route.channel());
            if !before.is_some_and(|before| before.leads_where(route)) {
                tracing::info!(
                    channel = %route.channel(), namespace = route.namespace(), name = route.name(),
                    environment = route.environment_name(), "route changed"
                );
                followers.read_ahead(route);
                self.runner.serves(route.channel(), route.delivery());
            }
        }
        followers.save.send_replace(Save {
            channels: views.iter().cloned().collect(),
            issued: issued.clone(),
        });
    }
}

impl Followers {
    fn read_ahead(&self, route: &Arc<Route>) {
        // It is read when it is needed, if not before.
        let _ = self.ahead.unbounded_send(route.channel());
    }
}

/// Reads a channel's credentials as its route of now names them; one that is known by then costs nothing.
async fn read(state: Shared, channel: ChannelId) {
    let Some(route) = state.routes.load().get(channel).cloned() else {
        return;
    };
    if let Err(error) = state.secrets.credentials(&route).await {
        tracing::info!(%channel, %error, "no credentials for this channel yet");
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::WhatsAppChannelSpec;

    fn resource(namespace: &str, name: &str, secret: &str) -> WhatsAppChannel {
        let mut spec = WhatsAppChannelSpec::example();
        secret.clone_into(&mut spec.kernel.credentials_secret_ref.name);
        let mut channel = WhatsAppChannel::new(name, spec);
        channel.metadata.namespace = Some(namespace.to_owned());
        let created = "2026-11-22T10:00:00Z".parse().unwrap();
        channel.metadata.creation_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        channel
    }

    /// The names of what is known. Each is kept once, with its view.
    fn names(views: &Views) -> Vec<&str> {
        for scoped in &views.scopes {
            for ((namespace, name), view) in &scoped.known {
                assert!(Arc::ptr_eq(name, &view.name) && Arc::ptr_eq(namespace, &view.namespace));
            }
        }
        views.iter().map(|view| &*view.name).collect()
    }

    fn relist(views: &mut Views, scope: Scope, channels: Vec<WhatsAppChannel>) {
        views.take(scope, Event::Init);
        for channel in channels {
            views.take(scope, Event::InitApply(channel));
        }
        assert!(views.take(scope, Event::InitDone));
    }

    #[test]
    fn a_relist_replaces_what_its_scope_said_and_keeps_what_is_as_it_was() {
        let mut views = Views::new(2, KnownViews::default(), |_| None);
        relist(
            &mut views,
            0,
            vec![resource("n", "a", "x"), resource("n", "b", "x")],
        );
        assert!(!views.is_synced(), "the other one has not told anything");
        relist(&mut views, 1, vec![resource("m", "c", "x")]);
        assert!(views.is_synced());
        assert_eq!(names(&views), ["a", "b", "c"]);
        let before: Vec<_> = views.iter().cloned().collect();
        relist(
            &mut views,
            0,
            vec![resource("n", "a", "x"), resource("n", "b", "y")],
        );
        let now: Vec<_> = views.iter().cloned().collect();
        assert!(Arc::ptr_eq(&before[0], &now[0]) && Arc::ptr_eq(&before[2], &now[2]));
        assert_eq!((&*before[1].client_secret, &*now[1].client_secret), ("x", "y"));
        // A list that is cut off leaves everything as it was, and the next one begins anew.
        views.take(0, Event::Init);
        views.take(0, Event::InitApply(resource("n", "z", "x")));
        assert_eq!(names(&views), ["a", "b", "c"]);
        relist(&mut views, 0, vec![resource("n", "b", "y")]);
        assert_eq!(names(&views), ["b", "c"]);
    }

    #[test]
    fn only_what_changes_something_here_asks_for_another_table() {
        let mut views = Views::new(1, KnownViews::default(), |_| None);
        assert!(views.take(0, Event::Apply(resource("n", "a", "x"))));
        let mut labelled = resource("n", "a", "x");
        labelled.labels_mut().insert("team".into(), "shop".into());
        assert!(!views.take(0, Event::Apply(labelled)));
        assert!(views.take(0, Event::Apply(resource("n", "a", "y"))));
        assert_eq!(names(&views), ["a"]);
        assert!(!views.take(0, Event::Delete(resource("m", "a", "y"))));
        assert!(views.take(0, Event::Delete(resource("n", "a", "y"))));
        assert_eq!(names(&views), [""; 0]);
        // One that claims no channel any more is as good as gone.
        assert!(views.take(0, Event::Apply(resource("n", "a", "y"))));
        let mut none = resource("n", "a", "y");
        none.spec.channel_id = "no uuid".into();
        assert!(views.take(0, Event::Apply(none.clone())));
        assert_eq!(names(&views), [""; 0]);
        assert!(!views.take(0, Event::Apply(none)));
    }

    #[test]
    fn what_the_snapshot_knew_of_a_namespace_that_is_not_watched_any_more_is_left_out() {
        let mut known = KnownViews::default();
        for namespace in ["n", "m"] {
            let view = known.commons.view(&resource(namespace, namespace, "x")).unwrap();
            known.views.push(Arc::new(view));
        }
        let mut views = Views::new(1, known, |namespace| (namespace == "n").then_some(0));
        assert_eq!(names(&views), ["n"]);
        let before = views.iter().next().unwrap().clone();
        relist(&mut views, 0, vec![resource("n", "n", "x")]);
        assert!(
            Arc::ptr_eq(&before, views.iter().next().unwrap()),
            "the route of before stays"
        );
    }
}
