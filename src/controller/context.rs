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
    api::{ChannelId, Claim, WhatsAppChannel},
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
}

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

    pub fn forget(&self, uid: &str) {
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

    /// Has every other resource that claims this channel reconciled: one of them may hold it now.
    pub fn wake_rivals(&self, channel: &WhatsAppChannel, id: ChannelId) {
        for rival in self.rivals(channel, id) {
            let namespace = rival.namespace();
            let scope = self
                .scopes
                .get()
                .into_iter()
                .flatten()
                .find(|scope| scope.namespace.is_none() || scope.namespace == namespace);
            if let Some(scope) = scope {
                let _ = scope.wake.send(ObjectRef::from_obj(&rival));
            }
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
