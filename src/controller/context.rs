//! What all reconciliations share: clients, configuration, keys, gates, and which channels there are.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::{Client, ResourceExt, runtime::events::EventType};
use tokio::{
    sync::{Notify, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;

use super::{
    events::{Events, Happened},
    gate::{Gate, Side, Wake},
    lease::{self, Leadership},
    memory::Memories,
    object_key::ObjectKey,
    roster::{Entry, Roster},
    worker::Work,
};
use crate::{
    api::{
        ChannelId, Claim, WebhookMode, WhatsAppChannel,
        conditions::{Reason, types},
    },
    config::{Environment, Installation},
    kernel::{self, KernelError},
    keys::Keys,
    telemetry::ControllerMetrics,
    words::counted,
};

/// How long a pass waits for every scope's list: one that can't be listed must not stop the others for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// Shared by all reconciliations.
pub(super) struct Context {
    pub client: Client,
    pub keys: ArcSwap<Keys>,
    pub kernel: kernel::Client,
    pub events: Events,
    pub metrics: ControllerMetrics,
    pub leadership: Leadership,
    /// What events that concern the whole installation are about.
    about: ObjectReference,
    pub memories: Memories,
    setup: ArcSwap<Setup>,
    roster: Mutex<Roster>,
    /// What is to be reconciled, and when.
    pub work: Arc<Work>,
    /// The watched namespaces; `None`: the whole cluster.
    namespaces: Vec<Option<String>>,
    /// How many of the namespaces' lists are still missing.
    unlisted: watch::Sender<Unlisted>,
    /// Whether the Kernel clients of the channels that were there at the start are known.
    clients_known: watch::Sender<bool>,
    /// Since when they are not.
    clients_unknown_since: Mutex<Instant>,
    /// The process is to stop: who waits for what others do waits no longer.
    pub stopping: CancellationToken,
    /// Told when a gate's next probe may be at another time.
    pub ticks: Arc<Notify>,
    start: Instant,
}

/// An environment of the configuration, with what is made from it.
struct Prepared {
    gate: Arc<Gate>,
    mark: u64,
    place: u64,
}

/// What is listed of each watched namespace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Listed {
    Channels,
    Secrets,
}

/// How many lists are still missing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Unlisted {
    channels: usize,
    secrets: usize,
}

/// What a context is made from.
pub(super) struct Parts {
    pub client: Client,
    pub kernel: kernel::Client,
    pub metrics: ControllerMetrics,
    pub leadership: Leadership,
    pub events: Events,
}

/// The configuration, with what is made from it.
pub(super) struct Setup {
    pub installation: Installation,
    environments: HashMap<String, Prepared>,
}

impl Setup {
    /// Takes a configuration. The gates of environments that were there before stay, with what is under way.
    fn new(
        installation: Installation,
        before: Option<&Self>,
        memories: &Memories,
        wake: &Wake,
        ticks: &Arc<Notify>,
    ) -> Self {
        let environments = installation
            .environments
            .iter()
            .map(|(name, environment)| {
                let limits = &environment.registration;
                let gate = match before.and_then(|before| before.environments.get(name)) {
                    Some(Prepared { gate, .. }) => {
                        gate.set(limits);
                        gate.clone()
                    }
                    None => Arc::new(Gate::new(limits, wake.clone(), ticks.clone())),
                };
                // Whatever of it changes, a pass over its channels is worth its little.
                let mark = memories.hash(format!("{environment:?}"));
                // What Kernel would be told, and where; a look at Kernel costs more.
                let place = memories.hash(format!(
                    "{:?}",
                    (
                        &environment.public_url,
                        &environment.former_public_urls,
                        &environment.kernel,
                        &environment.legacy_callback,
                    )
                ));
                (name.clone(), Prepared { gate, mark, place })
            })
            .collect();
        Self {
            installation,
            environments,
        }
    }

    /// An environment that is configured.
    pub fn environment(&self, name: &str) -> Option<&Environment> {
        self.installation.environments.get(name)
    }

    /// The gate of an environment that is configured.
    pub fn gate(&self, name: &str) -> Option<&Arc<Gate>> {
        Some(&self.environments.get(name)?.gate)
    }

    /// A hash of an environment's configuration; 0 where there is none.
    pub fn mark(&self, name: &str) -> u64 {
        self.environments.get(name).map_or(0, |prepared| prepared.mark)
    }

    /// A hash of what of an environment's configuration decides what Kernel is told, and where; 0 where there is none.
    pub fn place(&self, name: &str) -> u64 {
        self.environments.get(name).map_or(0, |prepared| prepared.place)
    }

    /// All gates.
    pub fn gates(&self) -> impl Iterator<Item = (&str, &Arc<Gate>)> {
        self.environments
            .iter()
            .map(|(name, prepared)| (name.as_str(), &prepared.gate))
    }

    fn allows(&self, entry: &Entry) -> bool {
        self.environment(&entry.environment)
            .is_some_and(|environment| environment.allows(&entry.key.namespace))
    }
}

impl Context {
    pub fn new(parts: Parts, installation: Installation, keys: Keys, release_namespace: String) -> Self {
        let Parts {
            client,
            kernel,
            metrics,
            leadership,
            events,
        } = parts;
        let (work, ticks, memories) = (
            Arc::<Work>::default(),
            Arc::<Notify>::default(),
            Memories::default(),
        );
        let namespaces = match installation.scope(&release_namespace) {
            None => vec![None],
            Some(namespaces) => namespaces.into_iter().map(Some).collect(),
        };
        let unlisted = Unlisted {
            channels: namespaces.len(),
            secrets: namespaces.len(),
        };
        let setup = Setup::new(installation, None, &memories, &wake_by(&work), &ticks);
        Self {
            events,
            client,
            keys: ArcSwap::from_pointee(keys),
            kernel,
            metrics,
            leadership,
            about: ObjectReference {
                api_version: Some("coordination.k8s.io/v1".into()),
                kind: Some("Lease".into()),
                name: Some(lease::DEFAULT_NAME.into()),
                namespace: Some(release_namespace),
                ..ObjectReference::default()
            },
            memories,
            setup: ArcSwap::from_pointee(setup),
            roster: Mutex::default(),
            work,
            namespaces,
            unlisted: watch::Sender::new(unlisted),
            clients_known: watch::Sender::new(false),
            clients_unknown_since: Mutex::new(Instant::now()),
            stopping: CancellationToken::new(),
            ticks,
            start: Instant::now(),
        }
    }

    /// The configuration in force.
    pub fn setup(&self) -> Arc<Setup> {
        self.setup.load_full()
    }

    /// Puts another configuration in force, and has every channel looked at whose environment is another now.
    pub fn reconfigure(&self, installation: Installation) {
        let before = self.setup();
        let now = Setup::new(
            installation,
            Some(&before),
            &self.memories,
            &wake_by(&self.work),
            &self.ticks,
        );
        self.setup.store(Arc::new(now));
        let setup = self.setup();
        let all = self.roster().keys(None);
        for key in &all {
            let mut roster = self.roster();
            if let Some(channel) = roster.resource(key) {
                // The Secrets that a channel depends on are told by its environment, too.
                roster.upsert(&channel, also(&setup, &channel));
            }
        }
        let changed: Vec<_> = self
            .roster()
            .channels(None)
            .filter(|entry| before.mark(&entry.environment) != setup.mark(&entry.environment))
            .map(|entry| entry.key.clone())
            .collect();
        changed.iter().for_each(|key| self.wake(key));
    }

    /// The roster.
    pub fn roster(&self) -> MutexGuard<'_, Roster> {
        self.roster.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The watched namespaces; `None`: the whole cluster.
    pub fn namespaces(&self) -> &[Option<String>] {
        &self.namespaces
    }

    /// One of the lists was seen for the first time.
    pub fn listed(&self, what: Listed) {
        self.unlisted.send_modify(|missing| {
            let missing = match what {
                Listed::Channels => &mut missing.channels,
                Listed::Secrets => &mut missing.secrets,
            };
            *missing = missing.saturating_sub(1);
        });
    }

    /// Waits until everything was listed once, at most until the patience is over: who holds a channel can be told only
    /// then.
    pub async fn wait_listed(&self) {
        let mut unlisted = self.unlisted.subscribe();
        let all = unlisted.wait_for(|missing| missing.channels + missing.secrets == 0);
        let all = tokio::time::timeout_at(self.start + PATIENCE, all);
        let _ = self.stopping.run_until_cancelled(all).await;
    }

    /// What has not been listed yet, in words; none when everything was.
    pub fn unlisted(&self) -> Option<String> {
        let missing = *self.unlisted.borrow();
        let of = |count: usize| match count {
            0 => None,
            count => Some(format!(
                "{count} of {} {}",
                self.namespaces.len(),
                if self.namespaces.len() == 1 {
                    "list"
                } else {
                    "lists"
                }
            )),
        };
        match (of(missing.channels), of(missing.secrets)) {
            (Some(lists), _) => Some(format!(
                "waiting for the API server's list of WhatsAppChannels ({lists}; is the CRD installed, may we list them?)"
            )),
            (None, Some(lists)) => Some(format!(
                "waiting for the API server's list of Secrets ({lists}; does our role allow to list and watch them?)"
            )),
            (None, None) => None,
        }
    }

    /// Tells what has not been listed yet, now and whenever that changes, until everything was.
    pub async fn tell_unlisted(&self, mut tell: impl FnMut(Option<String>)) {
        // What is listed between a look and the wait after it is seen by the next look.
        let mut changes = self.unlisted.subscribe();
        loop {
            changes.mark_unchanged();
            let unlisted = self.unlisted();
            let done = unlisted.is_none();
            tell(unlisted);
            if done || changes.changed().await.is_err() {
                return;
            }
        }
    }

    /// Whether the Kernel clients of the channels that are there when this process begins to lead are known.
    pub fn clients_known(&self, known: bool) {
        if !known {
            *self.unknown_since() = Instant::now();
        }
        self.clients_known.send_replace(known);
    }

    fn unknown_since(&self) -> MutexGuard<'_, Instant> {
        self.clients_unknown_since
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until they are, at most until the patience is over: all wait for the same, so that it is over once and not for
    /// each anew. Answers whether they are.
    pub async fn wait_clients_known(&self) -> bool {
        let until = *self.unknown_since() + PATIENCE;
        let mut known = self.clients_known.subscribe();
        let known = tokio::time::timeout_at(until, known.wait_for(|known| *known));
        let known = self.stopping.run_until_cancelled(known).await;
        matches!(known, Some(Ok(Ok(_))))
    }

    /// Has a channel reconciled now.
    pub fn wake(&self, key: &ObjectKey) {
        self.work.add(key);
    }

    /// This process has begun to lead: what it remembers may be older than what another leader did meanwhile, so that
    /// the statuses say where every channel stands.
    pub fn begins_to_lead(&self) {
        self.clients_known(false);
        self.memories.clear();
        self.wake_all();
    }

    /// Has every channel reconciled now.
    pub fn wake_all(&self) {
        let all = self.roster().keys(None);
        all.iter().for_each(|key| self.wake(key));
    }

    /// A channel is there, or is another than before. What the controller itself wrote (the status) wakes nobody. Answers
    /// the key that it is known by.
    pub fn seen(&self, mut channel: WhatsAppChannel) -> Option<ObjectKey> {
        let (setup, key) = (self.setup(), ObjectKey::of(&channel)?);
        let uid = channel.uid().unwrap_or_default();
        let before = {
            let roster = self.roster();
            roster.get(&key).map(|entry| (entry.uid() == uid, entry.leaving))
        };
        if before.is_some_and(|(same, _)| !same) {
            // Another resource of the same name: that the one before is gone was not told.
            self.gone(&key);
        }
        // It is kept apart, and before a pass can ask for it.
        let status = channel.status.take().unwrap_or_default();
        self.memories.told_status(&uid, status);
        let known = {
            let mut roster = self.roster();
            let differs = roster.upsert(&channel, also(&setup, &channel));
            roster.get(&key).map(|entry| (entry.key.clone(), differs))
        };
        let Some((key, differs)) = known else {
            // What the API server's rules let in is in the roster: this came by without them.
            self.memories.forget(&uid);
            return None;
        };
        let leaves =
            channel.metadata.deletion_timestamp.is_some() && before.is_none_or(|(_, leaving)| !leaving);
        if let (Ok(id), true) = (channel.spec.channel_id.parse(), leaves) {
            // It claims nothing any more: another may hold what it held.
            self.wake_rivals(&key, id);
            let sharing = self
                .roster()
                .sharing(&key)
                .min_by_key(|entry| entry.claim())
                .map(|entry| entry.key.clone());
            sharing.iter().for_each(|key| self.wake(key));
        }
        if let Some(version) = channel.resource_version()
            && let Ok(version) = version.parse()
        {
            self.memories.caught_up(&uid, version);
        }
        if differs {
            self.wake(&key);
        }
        Some(key)
    }

    /// Whether there is such a channel.
    pub fn knows(&self, key: &ObjectKey) -> bool {
        self.roster().get(key).is_some()
    }

    /// A channel is gone: nothing is remembered of it, and another one that claims what it held may hold it now.
    pub fn gone(&self, key: &ObjectKey) {
        let mut roster = self.roster();
        // The oldest of those that share its Kernel client may hold it now.
        let sharing = roster
            .sharing(key)
            .min_by_key(|entry| entry.claim())
            .map(|entry| entry.key.clone());
        let Some(entry) = roster.remove(key) else {
            return;
        };
        let rivals: Vec<_> = roster
            .rivals(key, entry.channel)
            .map(|entry| entry.key.clone())
            .collect();
        drop(roster);
        self.work.forget(key);
        self.memories.forget(entry.uid());
        if let Some(gate) = self.setup().gate(&entry.environment) {
            gate.forget(key);
        }
        rivals.iter().chain(&sharing).for_each(|key| self.wake(key));
    }

    /// The channels of a namespace (or of all) were listed anew: those that are known and no longer there are gone, and
    /// whoever waits for a channel looks again.
    pub fn listed_anew(&self, namespace: Option<&str>, there: &HashSet<ObjectKey>) {
        let known = self.roster().keys(namespace);
        for key in known.iter().filter(|key| !there.contains(key)) {
            self.gone(key);
        }
        let waits = [Reason::ChannelConflict.as_str(), Reason::ClientShared.as_str()];
        let waiting: Vec<_> = self
            .roster()
            .channels(namespace)
            .filter(|entry| {
                let mut waiting = false;
                self.memories.conditions(entry.uid(), |kind, _, reason| {
                    waiting |= kind == types::READY && waits.contains(&reason);
                });
                waiting
            })
            .map(|entry| entry.key.clone())
            .collect();
        waiting.iter().for_each(|key| self.wake(key));
    }

    /// The resource that holds this one's channel instead of it: see [`Claim`]. One that is being deleted, or whose
    /// environment is not for its namespace, claims nothing.
    pub fn holder(&self, key: &ObjectKey, id: ChannelId) -> Option<Claim> {
        let (setup, roster) = (self.setup(), self.roster());
        roster.holder(key, id, |rival| setup.allows(rival))
    }

    /// The older resource whose Secret holds the same Kernel client, where Kernel keeps one webhook per client.
    pub fn client_holder(&self, key: &ObjectKey) -> Option<Claim> {
        let (setup, roster) = (self.setup(), self.roster());
        let entry = roster.get(key)?;
        let one_each = setup
            .environment(&entry.environment)?
            .registration
            .one_webhook_per_client;
        // One that yields to another for its channel holds nothing.
        roster.client_holder(key, |other| {
            one_each
                && setup.allows(other)
                && roster
                    .holder(&other.key, other.channel, |rival| setup.allows(rival))
                    .is_none()
        })
    }

    /// Whether another live resource uses the same Kernel client, where Kernel keeps one webhook per client.
    pub fn shares_client(&self, key: &ObjectKey) -> bool {
        let (setup, roster) = (self.setup(), self.roster());
        let one_each = roster
            .get(key)
            .and_then(|entry| setup.environment(&entry.environment))
            .is_some_and(|environment| environment.registration.one_webhook_per_client);
        one_each && roster.sharing(key).any(|other| setup.allows(other))
    }

    /// Has the others that claim this channel, or use its Kernel client, looked at Kernel: the webhook that they share was
    /// changed.
    pub fn look_at_rivals(&self, key: &ObjectKey, id: ChannelId) {
        let others: Vec<_> = {
            let roster = self.roster();
            let others = roster.rivals(key, id).chain(roster.sharing(key));
            others
                .map(|entry| (entry.key.clone(), entry.uid().to_owned()))
                .collect()
        };
        for (key, uid) in others {
            self.memories.look_at_once(&uid);
            self.wake(&key);
        }
    }

    /// Notes a channel's Kernel client. Of those that share it, or shared the one before, the oldest looks again: it may
    /// have to yield now, or to hold it. The others yield as before.
    pub fn uses_client(&self, key: &ObjectKey, client: u64) {
        let setup = self.setup();
        let mut roster = self.roster();
        let Some(entry) = roster.get(key) else { return };
        let environment = entry.environment.clone();
        let one_each = setup
            .environment(&environment)
            .is_some_and(|environment| environment.registration.one_webhook_per_client);
        let known = entry.client() == Some(client);
        let before = roster.set_client(key, client);
        if known || !one_each {
            return;
        }
        let oldest = |entries: &mut dyn Iterator<Item = &Entry>| {
            entries
                .min_by_key(|entry| entry.claim())
                .map(|entry| entry.key.clone())
        };
        let left = before.and_then(|before| oldest(&mut roster.using(&environment, before, key)));
        let joined = oldest(&mut roster.sharing(key));
        drop(roster);
        left.iter().chain(&joined).for_each(|key| self.wake(key));
    }

    /// Whether another live resource claims this one's channel.
    pub fn has_rival(&self, key: &ObjectKey, id: ChannelId) -> bool {
        let (setup, roster) = (self.setup(), self.roster());
        roster.rivals(key, id).any(|rival| setup.allows(rival))
    }

    /// Has every other resource that claims this channel reconciled: one of them may hold it now, or may have been
    /// registered before this one was known of.
    pub fn wake_rivals(&self, key: &ObjectKey, id: ChannelId) {
        let rivals: Vec<_> = self
            .roster()
            .rivals(key, id)
            .map(|entry| entry.key.clone())
            .collect();
        rivals.iter().for_each(|key| self.wake(key));
    }
}

impl Context {
    /// Publishes an event about the installation as a whole.
    fn tell(&self, kind: EventType, reason: &str, note: String) {
        self.events.publish(Happened {
            about: self.about.clone(),
            kind,
            reason: reason.to_owned(),
            note,
        });
    }

    /// The bridge's journal is another than the one that was recorded, which had so many messages that were not settled.
    pub fn journal_is_another(&self, pending: u64) {
        let note = format!(
            "the bridge's journal is another than the one recorded: restored, copied or new. The one recorded had {} \
             pending; what \"messages journal\" shows as withheld waits for a person, the rest is lost or was delivered",
            counted(usize::try_from(pending).unwrap_or(usize::MAX), "message")
        );
        tracing::warn!(pending, "{note}");
        self.tell(EventType::Warning, "JournalChanged", note);
    }

    /// The release's namespace.
    pub fn release_namespace(&self) -> &str {
        self.about.namespace.as_deref().unwrap_or_default()
    }

    /// The configuration's file can't be used.
    pub fn config_refused(&self, why: &str) {
        let note = format!("the configuration can't be used; the last good one stays in force: {why}");
        self.tell(EventType::Warning, "ConfigurationRefused", note);
    }

    /// Calls to a server of an environment get through no longer (with the error), or again.
    pub fn environment_changed(
        self: &Arc<Self>,
        environment: &str,
        side: Side,
        outage: Option<&KernelError>,
    ) {
        let server = match side {
            Side::Auth => "auth server",
            Side::Reads => "API, to read a webhook,",
            Side::Writes => "API, to set a webhook,",
        };
        let (kind, reason, note) = match outage {
            Some(error) => (
                EventType::Warning,
                "EnvironmentUnavailable",
                format!(
                    "environment {environment}: nobody's calls to Kernel's {server} get through ({error}); verified \
                     channels stay Ready, one channel at a time tries again"
                ),
            ),
            None => (
                EventType::Normal,
                "EnvironmentAvailable",
                format!("environment {environment}: calls to Kernel's {server} get through again"),
            ),
        };
        if outage.is_some() {
            tracing::warn!(environment, server, "{note}");
        } else {
            tracing::info!(environment, server, "{note}");
        }
        self.tell(kind, reason, note);
    }
}

fn wake_by(work: &Arc<Work>) -> Wake {
    let work = work.clone();
    Arc::new(move |key| work.add(key))
}

/// The Secret that a channel depends on by its environment's configuration: that of the callback of the system before.
fn also<'a>(setup: &'a Setup, channel: &WhatsAppChannel) -> Option<&'a str> {
    let environment = setup.environment(&channel.spec.environment)?;
    let mode = channel
        .spec
        .webhook
        .as_ref()
        .and_then(|webhook| webhook.mode)
        .or(environment.channel_defaults.webhook.mode);
    if mode != Some(WebhookMode::Legacy) {
        return None;
    }
    let reference = environment
        .legacy_callback
        .as_ref()?
        .api_key_secret_ref
        .as_ref()?;
    Some(&reference.name)
}

#[cfg(test)]
#[path = "context_tests.rs"]
mod tests;
