//! What all reconciliations share: clients, configuration, keys, and what is remembered of each channel.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::Duration,
};

use jiff::Timestamp;
use kube::{
    Client, ResourceExt,
    runtime::{
        events::{Recorder, Reporter},
        reflector::{ObjectRef, Store},
    },
};
use tokio::{sync::mpsc, time::Instant};

use super::limit::Limiter;
use crate::{
    api::{ChannelId, Claim, WhatsAppChannel, WhatsAppChannelStatus, conditions::Reason},
    config::Installation,
    kernel,
    keys::Keys,
    telemetry::ControllerMetrics,
};

/// Shared by all reconciliations.
pub(super) struct Context {
    pub client: Client,
    pub installation: Installation,
    pub keys: Keys,
    pub kernel: kernel::Client,
    pub recorder: Recorder,
    pub metrics: ControllerMetrics,
    limiters: HashMap<String, Limiter>,
    memory: Mutex<HashMap<String, Memory>>,
    /// The resources of each watched scope, and how to have one of them reconciled. Set once, at start.
    pub scopes: OnceLock<Vec<Scope>>,
    start: Instant,
}

/// How long a pass waits for every scope's list: one that can't be listed must not stop the others for ever.
const PATIENCE: Duration = Duration::from_secs(30);

/// One watched scope: a namespace, or the whole cluster.
pub(super) struct Scope {
    /// `None`: the whole cluster.
    pub namespace: Option<String>,
    pub store: Store<WhatsAppChannel>,
    pub wake: mpsc::UnboundedSender<ObjectRef<WhatsAppChannel>>,
}

/// What a verification was made for: if any of it changes, Kernel is looked at again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fingerprint {
    pub generation: i64,
    pub secret_version: Option<String>,
    pub key_id: String,
}

/// What is remembered of one channel while this process runs.
#[derive(Clone, Debug, Default)]
pub(super) struct Memory {
    /// What the webhook was last found or set right for, and when the next look is due.
    pub verified: Option<(Fingerprint, Instant)>,
    /// Looks that failed in a row since then.
    pub misses: u32,
    /// The status that was written last, and the resourceVersion that it made.
    pub written: Option<(u64, WhatsAppChannelStatus)>,
    /// What the failures in a row were for, and how many there were.
    pub failures: Option<(Fingerprint, u32)>,
}

impl Context {
    pub fn new(
        client: Client,
        installation: Installation,
        keys: Keys,
        kernel: kernel::Client,
        metrics: ControllerMetrics,
    ) -> Self {
        let reporter = Reporter {
            controller: "aura-whatsapp-operator".into(),
            instance: std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()),
        };
        let limiters = installation
            .environments
            .iter()
            .map(|(name, environment)| (name.clone(), Limiter::new(&environment.registration)))
            .collect();
        Self {
            recorder: Recorder::new(client.clone(), reporter),
            client,
            installation,
            keys,
            kernel,
            metrics,
            limiters,
            memory: Mutex::default(),
            scopes: OnceLock::new(),
            start: Instant::now(),
        }
    }

    /// The limiter of an environment that is configured.
    pub fn limiter(&self, environment: &str) -> Option<&Limiter> {
        self.limiters.get(environment)
    }

    pub fn memory(&self, uid: &str) -> Memory {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(uid)
            .cloned()
            .unwrap_or_default()
    }

    pub fn remember(&self, uid: &str, memory: Memory) {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .insert(uid.to_owned(), memory);
    }

    fn forget(&self, uid: &str) {
        self.memory
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(uid);
    }

    fn channels(&self) -> impl Iterator<Item = Arc<WhatsAppChannel>> {
        self.scopes
            .get()
            .into_iter()
            .flatten()
            .flat_map(|scope| scope.store.state())
    }

    /// The resource that holds this one's channel instead of it: see [`Claim`]. One that is being deleted, or whose
    /// environment is not for its namespace, claims nothing.
    pub fn holder(&self, channel: &WhatsAppChannel, id: ChannelId) -> Option<Claim> {
        let own = claim(channel)?;
        self.rivals(channel, id)
            .filter_map(|rival| claim(&rival))
            .filter(|rival| *rival < own)
            .min()
    }

    /// Whether another live resource claims this one's channel.
    pub fn has_rival(&self, channel: &WhatsAppChannel, id: ChannelId) -> bool {
        self.rivals(channel, id).next().is_some()
    }

    /// Waits until every scope was listed once, at most until the patience is over.
    pub async fn wait_listed(&self) {
        let listed = async {
            for scope in self.scopes.get().into_iter().flatten() {
                let _ = scope.store.wait_until_ready().await;
            }
        };
        let _ = tokio::time::timeout_at(self.start + PATIENCE, listed).await;
    }

    /// A resource is gone: nothing is remembered of it, and another one that claims its channel may hold it now.
    pub fn gone(&self, channel: &WhatsAppChannel) {
        self.forget(&channel.uid().unwrap_or_default());
        if let Ok(id) = channel.spec.channel_id.parse() {
            self.wake_rivals(channel, id);
        }
    }

    /// After a list was made anew deletions may have been missed: whoever waits for a channel looks again.
    pub fn listed_anew(&self) {
        for channel in self.channels() {
            let ready = channel.status.as_ref().and_then(super::status::ready);
            if ready.is_some_and(|ready| ready.reason == Reason::ChannelConflict.as_str()) {
                self.wake(&channel);
            }
        }
    }

    /// Has every other resource that claims this channel reconciled: one of them may hold it now, or may have been
    /// registered before this one was known of.
    pub fn wake_rivals(&self, channel: &WhatsAppChannel, id: ChannelId) {
        self.rivals(channel, id).for_each(|rival| self.wake(&rival));
    }

    fn wake(&self, channel: &WhatsAppChannel) {
        let namespace = channel.namespace();
        let mut scopes = self.scopes.get().into_iter().flatten();
        if let Some(scope) = scopes.find(|scope| scope.namespace.is_none() || scope.namespace == namespace) {
            let _ = scope.wake.send(ObjectRef::from_obj(channel));
        }
    }

    fn rivals(&self, channel: &WhatsAppChannel, id: ChannelId) -> impl Iterator<Item = Arc<WhatsAppChannel>> {
        let own = channel.uid();
        self.channels().filter(move |other| {
            other.uid() != own
                && other.metadata.deletion_timestamp.is_none()
                && other.spec.channel_id.parse() == Ok(id)
                && self
                    .installation
                    .environments
                    .get(&other.spec.environment)
                    .is_some_and(|environment| {
                        other
                            .namespace()
                            .is_some_and(|namespace| environment.allows(&namespace))
                    })
        })
    }
}

fn claim(channel: &WhatsAppChannel) -> Option<Claim> {
    Some(Claim {
        created: channel.creation_timestamp()?.0.as_second(),
        namespace: channel.namespace()?,
        name: channel.name_any(),
    })
}

/// The wall clock, as a time since 1970.
pub(super) fn since_epoch(now: Timestamp) -> Duration {
    Duration::try_from(now.as_duration()).unwrap_or_default()
}
