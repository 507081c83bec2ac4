//! What a pass knows from the ones before, and what it leaves to the next: whether the webhook is registered and fresh,
//! and when to look again.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use secrecy::ExposeSecret;

use super::{
    decide::{Announced, Observed, Stands},
    gather::{Gathered, Versions},
    memory::{Fingerprint, Memory},
    reconcile::Pass,
    schedule::{self, Clock, Outcome},
    status::{Key, Told},
    webhook::Desired,
};
use crate::{
    api::{Effective, WebhookMode, WhatsAppChannel, WhatsAppChannelStatus},
    kernel::Credentials,
};

/// How long the bridge is given to hear of a key before Kernel is told of it. The watch takes milliseconds.
pub(super) const SETTLE: Duration = Duration::from_secs(2);
impl Pass<'_> {
    /// Fills in what follows from the Secrets' versions.
    #[allow(clippy::too_many_arguments, reason = "what a pass knows, once")]
    pub(super) fn judge(
        &self,
        seen: &mut Observed<'_>,
        channel: &WhatsAppChannel,
        old: &WhatsAppChannelStatus,
        gathered: &Gathered,
        key_id: &str,
        asked: bool,
        fingerprint: Fingerprint,
    ) {
        let key = self.key_marks(channel, &gathered.versions, key_id);
        let told = Told {
            mode: self.effective.mode,
            generation: seen.generation,
            secret_version: gathered.versions.client.as_deref(),
            webhook_url: self.desired(None).as_ref().map(Desired::masked),
            key,
        };
        // By this process, or as the status says: what else of the configuration changed says nothing of what Kernel was
        // told.
        let verified = self.memory.verified.is_some_and(|(of, _)| of == fingerprint);
        seen.stands = if verified {
            Stands::Wholly
        } else {
            told.stands_in(old)
        };
        seen.told = seen.registered() || told.was_set(old);
        seen.fresh = !asked && self.is_fresh(seen.registered(), fingerprint);
        seen.announced = match self.memory.announced {
            Some((of, at)) if of == fingerprint => {
                let left = SETTLE.saturating_sub(now().saturating_duration_since(at));
                if left.is_zero() {
                    Announced::Known
                } else {
                    Announced::JustNow { left }
                }
            }
            _ if key.is_announced(old) => Announced::Known,
            _ => Announced::New,
        };
    }

    pub(super) fn key_marks<'b>(
        &self,
        channel: &WhatsAppChannel,
        versions: &'b Versions,
        key_id: &'b str,
    ) -> Key<'b> {
        let version = versions.api_key.as_deref();
        if self.effective.mode == WebhookMode::Legacy {
            Key::Legacy { version }
        } else if self.is_issued(channel) {
            Key::Issued { version }
        } else {
            Key::Derived {
                generation: self.effective.key_generation,
                id: key_id,
            }
        }
    }

    /// Whether the URL that a status names is the environment's callback of the system before.
    pub(super) fn says_legacy(&self, old: &WhatsAppChannelStatus) -> bool {
        let legacy = self
            .environment()
            .and_then(|environment| environment.legacy_callback.as_ref());
        legacy.is_some_and(|legacy| {
            old.webhook_url == Some(Desired::from_template(&legacy.url, self.id, None).masked())
        })
    }

    /// The status that this pass starts from, and the version of the resource that holds it: the resource's own, or what
    /// was written last where the watch has not told of that yet. Judged by an older one, a pass would take back what the
    /// one before it reported.
    pub(super) fn status_before(&self, channel: &WhatsAppChannel) -> (WhatsAppChannelStatus, Option<String>) {
        let own = channel.resource_version();
        let version = own.as_ref().and_then(|version| version.parse::<u64>().ok());
        match (self.memory.written.as_deref(), version) {
            (Some((written, status)), Some(version)) if version < *written => {
                (status.clone(), Some(written.to_string()))
            }
            _ => (self.context.memories.status(&self.uid), own),
        }
    }

    pub(super) fn fingerprint(&self, generation: i64, versions: &Versions, key_id: &str) -> Fingerprint {
        let (place, effective) = (self.setup.place(&self.environment_name), &self.effective);
        // What a look or a registration depends on, and nothing else: an environment's defaults for the delivery, say,
        // must not have ten thousand channels looked at.
        let settings = format!(
            "{:?}",
            (
                effective.mode,
                effective.existing,
                effective.api_version,
                &effective.registration_scopes,
                &effective.purposes,
                effective.key_generation,
                effective.resync_period,
            )
        );
        self.context
            .memories
            .hash((generation, versions, key_id, place, settings))
    }

    pub(super) fn client_hash(&self, credentials: &Credentials) -> u64 {
        self.context.memories.hash(credentials.id.expose_secret())
    }

    /// Whether no look is due. After a restart a channel that was right is left until its own moment.
    fn is_fresh(&self, registered: bool, fingerprint: Fingerprint) -> bool {
        if self.memory.looks_made != self.memory.looks_wanted {
            return false;
        }
        match &self.memory.verified {
            Some((verified, due)) => *verified == fingerprint && now() < *due && self.memory.misses == 0,
            None => registered,
        }
    }

    /// How long Kernel has asked us to wait still, for just this spec, Secret and configuration.
    pub(super) fn asked_to_wait(&self, fingerprint: Fingerprint) -> Option<Duration> {
        let (of, until) = self.memory.not_before?;
        let left = until.saturating_duration_since(now());
        (of == fingerprint && !left.is_zero()).then_some(left)
    }

    /// What is remembered after the pass, and when the next one is.
    pub(super) fn remembered(&self, pass: &Outcome<'_>) -> (Memory, Duration) {
        let default = if pass.blind {
            Effective::RESYNC_BLIND
        } else {
            Effective::RESYNC
        };
        let clock = Clock {
            uid: &self.uid,
            period: self.effective.resync_period.unwrap_or(default),
            wall: Timestamp::now(),
            now: now(),
            chance: fastrand::f64(),
        };
        schedule::after(&self.memory, pass, &clock)
    }

    /// Whether the Secret is newer by now than what this pass has read of it.
    pub(super) fn secret_has_changed(&self, channel: &WhatsAppChannel, gathered: &Gathered) -> bool {
        let newer = |read: Option<&String>, known: Option<&String>| {
            let number = |version: Option<&String>| version?.parse::<u64>().ok();
            matches!((number(read), number(known)), (Some(read), Some(known)) if known > read)
        };
        let known = self.known_versions(channel);
        newer(gathered.versions.client.as_ref(), known.client.as_ref())
    }
}

/// The clock that the runtime goes by: a test may pause it.
fn now() -> std::time::Instant {
    tokio::time::Instant::now().into_std()
}
