//! What a pass knows from the ones before, and what it leaves to the next: whether the webhook is registered and fresh,
//! and when to look again.

use std::time::Duration;

use jiff::Timestamp;
use kube::ResourceExt;
use secrecy::ExposeSecret;
use tokio::time::Instant;

use super::{
    decide::{Announced, Next, Observed, Verdict},
    gather::{Gathered, Versions},
    memory::{Fingerprint, Memory},
    reconcile::Pass,
    schedule,
    status::{Key, Told},
    webhook::Desired,
};
use crate::{
    api::{Effective, WebhookMode, WhatsAppChannel, WhatsAppChannelStatus},
    delivery::backoff::Backoff,
    kernel::Credentials,
};

/// Waits between tries of a channel that fails, up to its resync period; a change of its spec or Secret starts them
/// anew.
const RETRY_FROM: Duration = Duration::from_secs(1);
/// How long the bridge is given to hear of a key before Kernel is told of it. The watch takes milliseconds.
pub(super) const SETTLE: Duration = Duration::from_secs(2);
/// What a pass has come to.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub(super) struct Outcome<'a> {
    pub verdict: &'a Verdict,
    pub fingerprint: Fingerprint,
    pub fresh: bool,
    pub registered: bool,
    /// Kernel can't be read back.
    pub blind: bool,
    /// A call was not made because nobody's get through.
    pub parked: bool,
    /// Kernel said what it holds.
    pub heard: bool,
}

/// The waits of what fails, up to this one.
pub(super) fn retry(cap: Duration) -> Backoff {
    Backoff {
        base: RETRY_FROM.min(cap),
        cap,
    }
}

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
        seen.registered = self.was_registered(old, seen.generation, fingerprint, &gathered.versions, key);
        seen.fresh = !asked && self.is_fresh(seen.registered, fingerprint);
        seen.announced = match self.memory.announced {
            Some((of, at)) if of == fingerprint => {
                let left = SETTLE.saturating_sub(at.elapsed());
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
        let environment = self.setup.mark(&self.environment_name);
        self.context
            .memories
            .hash((generation, versions, key_id, environment))
    }

    pub(super) fn client_hash(&self, credentials: &Credentials) -> u64 {
        self.context.memories.hash(credentials.id.expose_secret())
    }

    /// Whether Kernel was told of the webhook for just this spec, Secret, key and configuration: by this process, or as
    /// the status says.
    fn was_registered(
        &self,
        old: &WhatsAppChannelStatus,
        generation: i64,
        now: Fingerprint,
        versions: &Versions,
        key: Key<'_>,
    ) -> bool {
        // Else the status tells: what else of the configuration changed says nothing of what Kernel was told.
        if self.memory.verified.is_some_and(|(verified, _)| verified == now) {
            return true;
        }
        let told = Told {
            mode: self.effective.mode,
            generation,
            secret_version: versions.client.as_deref(),
            webhook_url: self.desired(None).as_ref().map(Desired::masked),
            key,
        };
        told.stands_in(old)
    }

    /// Whether no look is due. After a restart a channel that was right is left until its own moment.
    fn is_fresh(&self, registered: bool, now: Fingerprint) -> bool {
        match &self.memory.verified {
            Some((verified, due)) => *verified == now && Instant::now() < *due && self.memory.misses == 0,
            None => registered,
        }
    }

    /// What is remembered after the pass, and when the next one is.
    pub(super) fn remembered(&self, pass: &Outcome<'_>) -> (Memory, Duration) {
        let mut memory = self.memory.clone();
        let fingerprint = pass.fingerprint;
        if pass.heard {
            memory.looked_at = Some(Timestamp::now().as_second());
        }
        let default = if pass.blind {
            Effective::RESYNC_BLIND
        } else {
            Effective::RESYNC
        };
        let period = self.effective.resync_period.unwrap_or(default);
        let until_moment =
            || schedule::until_moment(&self.uid, period, schedule::since_epoch(Timestamp::now()));
        let wait = match pass.verdict.next {
            Next::AtMoment => {
                memory.misses = 0;
                memory.failures = None;
                let due = match &memory.verified {
                    Some((_, due)) if pass.fresh => due.saturating_duration_since(Instant::now()),
                    _ => until_moment(),
                };
                memory.verified = Some((fingerprint, Instant::now() + due));
                due
            }
            Next::OnChange => {
                memory.verified = None;
                memory.failures = Some((fingerprint, 0));
                until_moment()
            }
            // A hold changes nothing about what was verified.
            Next::In(wait) => wait,
            Next::Retry { after } => {
                let before = match memory.failures {
                    Some((of, failures)) if of == fingerprint => failures,
                    _ => 0,
                };
                if pass.registered && pass.verdict.reason.is_good() {
                    memory.misses += u32::from(!pass.parked);
                    memory.verified.get_or_insert((fingerprint, Instant::now()));
                } else {
                    memory.verified = None;
                }
                if pass.parked {
                    // The gate wakes it when calls get through again.
                    memory.failures = Some((fingerprint, before));
                    until_moment()
                } else {
                    let failures = before + 1;
                    memory.failures = Some((fingerprint, failures));
                    retry(period).wait_at_least(failures, after, fastrand::f64())
                }
            }
        };
        (memory, wait.max(Duration::from_millis(1)))
    }
}
