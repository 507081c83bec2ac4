//! Carries out what `decide` says for one channel: reads the Secret, calls Kernel, writes the status. Thin.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        controller::Action,
        events::{Event, EventType},
    },
};
use serde_json::json;
use tokio::time::Instant;

use super::{
    context::{Context, Setup},
    decide::{
        Age, Announced, CleanupStep, EnvironmentView, Next, Observed, Step, Verdict, decide, decide_cleanup,
    },
    finalizer,
    gate::Begun,
    gather::{Gathered, Versions},
    memory::{Fingerprint, Memory},
    passage::Passage,
    roster::ObjectKey,
    schedule,
    status::{self, Facts, Key},
    webhook::Desired,
};
use crate::{
    api::{
        ChannelDefaults, ChannelId, Claim, Condition, Effective, OnDelete, REQUESTED_AT, WebhookMode,
        WhatsAppChannel, WhatsAppChannelStatus, conditions::Reason,
    },
    cluster::{self, SecretProblem},
    config::{Environment, Held},
    delivery::backoff::Backoff,
};

/// Waits between tries of a channel that fails, up to its resync period; a change of its spec or Secret starts them
/// anew.
const RETRY_FROM: Duration = Duration::from_secs(1);
/// How long the bridge is given to hear of a key before Kernel is told of it. The watch takes milliseconds.
const SETTLE: Duration = Duration::from_secs(2);
/// How often a status is built anew because somebody else wrote it meanwhile.
const WRITE_TRIES: usize = 4;
/// The field manager of our part of the status.
const MANAGER: &str = "aura-whatsapp-operator/status";

/// A reconciliation could not be carried out. (That a channel is not ready is no error: it stands in its status.)
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    /// The API server did not do its part.
    #[error("the API server: {}", cluster::error_class(.0))]
    Api(#[from] Box<kube::Error>),
    /// The leader's claim ended: another process may lead by now.
    #[error("no longer the leader")]
    StoodDown,
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Makes a write to the API server under the leader's claim, and no longer than that lasts.
async fn claimed<T>(
    context: &Context,
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ReconcileError> {
    let until = context.leadership.until().ok_or(ReconcileError::StoodDown)?;
    match tokio::time::timeout_at(until, write).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(ReconcileError::StoodDown),
    }
}

/// Reconciles one channel.
pub(super) async fn reconcile(
    channel: Arc<WhatsAppChannel>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let (Some(key), Some(uid)) = (ObjectKey::of(&*channel), channel.uid()) else {
        return Ok(Action::await_change());
    };
    // What the API server's rules let in is a UUID; anything else waits for a change.
    let Ok(id) = channel.spec.channel_id.parse::<ChannelId>() else {
        return Ok(Action::await_change());
    };
    // Who does not lead waits: whoever begins to lead has every channel looked at.
    if !context.leadership.is_leader() {
        return Ok(Action::await_change());
    }
    // Who holds a channel can be told only when every scope was listed.
    context.wait_listed().await;
    let pass = Pass::new(&context, &channel, id, key, uid);
    let result = pass.run(&channel).await;
    if let Some(gate) = pass.setup.gate(&pass.environment_name) {
        gate.over(&pass.key);
    }
    result
}

/// One pass over one channel.
pub(super) struct Pass<'a> {
    pub context: &'a Arc<Context>,
    pub setup: Arc<Setup>,
    pub id: ChannelId,
    pub key: ObjectKey,
    uid: String,
    pub environment_name: String,
    view: EnvironmentView,
    pub effective: Effective,
    memory: Memory,
}

impl<'a> Pass<'a> {
    fn new(
        context: &'a Arc<Context>,
        channel: &WhatsAppChannel,
        id: ChannelId,
        key: ObjectKey,
        uid: String,
    ) -> Self {
        let setup = context.setup();
        let environment_name = channel.spec.environment.clone();
        let environment = setup.environment(&environment_name);
        let defaults = ChannelDefaults::default();
        let effective = Effective::new(
            &channel.spec,
            environment.map_or(&defaults, |environment| &environment.channel_defaults),
        );
        let view = view(environment, &effective, &key.namespace);
        let memory = context.memories.of(&uid);
        Self {
            context,
            setup,
            id,
            key,
            uid,
            environment_name,
            view,
            effective,
            memory,
        }
    }

    /// The channel's environment.
    pub fn environment(&self) -> Option<&Environment> {
        self.setup.environment(&self.environment_name)
    }

    fn api(&self) -> Api<WhatsAppChannel> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    async fn run(&self, channel: &WhatsAppChannel) -> Result<Action, ReconcileError> {
        let api = self.api();
        if channel.metadata.deletion_timestamp.is_none() {
            match (self.clears(), finalizer::is_held(channel)) {
                // Before the first registration: what is registered must be cleared.
                (true, false) => {
                    claimed(self.context, finalizer::add(&api, channel)).await?;
                    return Ok(Action::await_change());
                }
                (false, true) => claimed(self.context, finalizer::remove(&api, channel)).await?,
                _ => {}
            }
            return self.apply(channel).await;
        }
        if !finalizer::is_held(channel) {
            return Ok(Action::await_change());
        }
        match self.clean_up(channel).await? {
            Cleanup::Wait(action) => Ok(action),
            Cleanup::Done => {
                claimed(self.context, finalizer::remove(&api, channel)).await?;
                Ok(Action::await_change())
            }
        }
    }

    /// Whether the channel's deletion clears its webhook.
    fn clears(&self) -> bool {
        self.effective.on_delete == OnDelete::Clear && self.effective.mode == WebhookMode::Manage
    }

    /// Another resource as the reader of this one's status may know it.
    fn told(&self, other: &Claim) -> String {
        if other.namespace == self.key.namespace {
            format!("{}/{}", other.namespace, other.name)
        } else {
            "in another namespace".to_owned()
        }
    }

    fn observed<'b>(&'b self, channel: &'b WhatsAppChannel) -> Observed<'b> {
        let holder = self.context.holder(&self.key, self.id);
        Observed {
            leading: true,
            now: Timestamp::now(),
            generation: channel.metadata.generation.unwrap_or_default(),
            environment_name: &channel.spec.environment,
            environment: self.view.clone(),
            effective: &self.effective,
            holder: holder.map(|holder| self.told(&holder)),
            secret_name: &channel.spec.kernel.credentials_secret_ref.name,
            secret: None,
            client_holder: None,
            fresh: false,
            registered: false,
            misses: self.memory.misses,
            message_before: None,
            was_legacy: false,
            taken_over: None,
            contested: false,
            announced: Announced::Known,
            token: None,
            held: None,
            set: None,
        }
    }

    async fn apply(&self, channel: &WhatsAppChannel) -> Result<Action, ReconcileError> {
        let start = Instant::now();
        let (old, version) = self.status_before(channel);
        let requested_at = channel.annotations().get(REQUESTED_AT).map(String::as_str);
        let generation = channel.metadata.generation.unwrap_or_default();
        let key_id = self.context.keys.load().id().to_owned();
        let mut gathered = Gathered {
            versions: self.known_versions(channel),
            ..Gathered::default()
        };
        if self.effective.suspend {
            let (nothing, memory) = (Gathered::default(), self.memory.clone());
            let facts = self.facts(channel, &nothing, &key_id, requested_at);
            let build = |old: &WhatsAppChannelStatus| status::suspended(old, &facts);
            self.write(channel, old, version, &build, memory).await?;
            return Ok(Action::await_change());
        }
        let ready = status::ready(&old);
        let was = |reason: Reason| ready.is_some_and(|ready| ready.reason == reason.as_str());
        let asked = requested_at.is_some() && requested_at != old.last_handled_reconcile_at.as_deref();
        let mut seen = self.observed(channel);
        seen.message_before = ready.map(|ready| ready.message.as_str());
        seen.was_legacy = was(Reason::LegacyRegistered) || self.says_legacy(&old);
        seen.taken_over = old.taken_over.as_ref();
        seen.contested =
            was(Reason::WebhookContested) && old.observed_generation == Some(generation) && !asked;
        if seen.holder.is_none() {
            // A younger one may have been registered before this one was known of.
            self.context.wake_rivals(&self.key, self.id);
        }
        let mut fingerprint = self.fingerprint(generation, &gathered.versions, &key_id);
        self.judge(&mut seen, channel, &old, &gathered, &key_id, asked, fingerprint);
        let mut begun: Option<Begun> = None;
        let unreported = self.memory.unreported.as_deref();
        let unreported = unreported.filter(|(of, _)| *of == fingerprint && !asked && !seen.fresh);
        let verdict = loop {
            seen.leading = self.context.leadership.is_leader();
            if let Some((_, verdict)) = unreported.filter(|_| seen.leading) {
                break verdict.clone();
            }
            match decide(&seen) {
                Step::StandBy => return Err(ReconcileError::StoodDown),
                Step::ReadSecret => {
                    let Some(gate) = self.setup.gate(&self.environment_name) else {
                        return Ok(Action::await_change());
                    };
                    begun = gate.begin(&self.key);
                    if begun.is_none() {
                        // The gate wakes it when there is a place.
                        return Ok(Action::await_change());
                    }
                    let secret = self.read_secret(channel, &mut gathered).await?;
                    fingerprint = self.fingerprint(generation, &gathered.versions, &key_id);
                    self.judge(&mut seen, channel, &old, &gathered, &key_id, asked, fingerprint);
                    let failed_before = self.memory.failures.is_some_and(|(of, _)| of == fingerprint);
                    let changed = asked || !(seen.registered || failed_before);
                    gathered.passage = Some(Passage::new(
                        self.context,
                        gate,
                        &self.environment_name,
                        &self.key,
                        changed,
                    ));
                    if let Some(credentials) = &gathered.credentials {
                        self.context.uses_client(&self.key, self.client_hash(credentials));
                        self.context.wait_clients_known().await;
                        seen.client_holder = self
                            .context
                            .client_holder(&self.key)
                            .map(|holder| self.told(&holder));
                    }
                    seen.secret = Some(secret);
                }
                Step::FetchToken => seen.token = Some(self.fetch_token(&gathered).await),
                Step::ReadWebhook => seen.held = Some(self.read_webhook(&gathered).await),
                Step::Announce => {
                    let facts = self.facts(channel, &gathered, &key_id, requested_at);
                    let build = |old: &WhatsAppChannelStatus| status::announced(old, &facts);
                    let memory = Memory {
                        announced: Some((fingerprint, Instant::now())),
                        ..self.memory.clone()
                    };
                    drop(begun);
                    self.write(channel, old.clone(), version, &build, memory).await?;
                    return Ok(Action::requeue(SETTLE));
                }
                Step::ComeBack(left) => return Ok(Action::requeue(left)),
                Step::SetWebhook => seen.set = Some(self.set_webhook(&gathered).await),
                Step::Done(verdict) => break verdict,
            }
        };
        if !self.context.leadership.is_leader() {
            return Err(ReconcileError::StoodDown);
        }
        drop(begun);
        let facts = self.facts(channel, &gathered, &key_id, requested_at);
        let blind =
            matches!(seen.held, Some(Ok(super::webhook::Held::Unsupported))) || status::is_blind(&old);
        let parked = gathered
            .passage
            .as_ref()
            .is_some_and(|passage| passage.is_parked());
        let pass = Outcome {
            verdict: &verdict,
            fingerprint,
            fresh: seen.fresh,
            registered: seen.registered,
            blind,
            parked,
            heard: matches!(seen.held, Some(Ok(_))),
        };
        let (mut memory, wait) = self.remembered(&pass);
        memory.unreported = None;
        memory.credentials = gathered
            .credentials
            .clone()
            .filter(|_| self.clears())
            .map(Box::new)
            .or(memory.credentials.take().filter(|_| self.clears()));
        let build = |old: &WhatsAppChannelStatus| status::build(old, &verdict, &facts);
        let written = self.write(channel, old.clone(), version, &build, memory).await;
        if let Err(error @ ReconcileError::Api(_)) = written {
            let memory = Memory {
                unreported: Some(Box::new((fingerprint, verdict))),
                ..self.memory.clone()
            };
            self.context.memories.keep(&self.uid, memory);
            return Err(error);
        }
        written?;
        self.context
            .metrics
            .reconciled(verdict.reason.as_str(), start.elapsed().as_secs_f64());
        Ok(Action::requeue(wait))
    }

    /// Fills in what follows from the Secrets' versions.
    #[allow(clippy::too_many_arguments, reason = "what a pass knows, once")]
    fn judge(
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

    fn key_marks<'b>(&self, channel: &WhatsAppChannel, versions: &'b Versions, key_id: &'b str) -> Key<'b> {
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
    fn says_legacy(&self, old: &WhatsAppChannelStatus) -> bool {
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
    fn status_before(&self, channel: &WhatsAppChannel) -> (WhatsAppChannelStatus, Option<String>) {
        let own = channel.resource_version();
        let version = own.as_ref().and_then(|version| version.parse::<u64>().ok());
        match (self.memory.written.as_deref(), version) {
            (Some((written, status)), Some(version)) if version < *written => {
                (status.clone(), Some(written.to_string()))
            }
            _ => (channel.status.clone().unwrap_or_default(), own),
        }
    }

    fn facts<'b>(
        &'b self,
        channel: &'b WhatsAppChannel,
        gathered: &'b Gathered,
        key_id: &'b str,
        requested_at: Option<&'b str>,
    ) -> Facts<'b> {
        let secret = channel.spec.kernel.credentials_secret_ref.name.as_str();
        Facts {
            generation: channel.metadata.generation.unwrap_or_default(),
            now: Timestamp::now(),
            secret_version: gathered.versions.client.as_deref(),
            spaced: gathered.spaced.then_some(secret),
            webhook_url: self
                .desired(gathered.issued.as_ref())
                .as_ref()
                .map(Desired::masked),
            key: self.key_marks(channel, &gathered.versions, key_id),
            requested_at,
            grace: status::KEY_GRACE,
        }
    }

    fn fingerprint(&self, generation: i64, versions: &Versions, key_id: &str) -> Fingerprint {
        let environment = self.setup.mark(&self.environment_name);
        self.context
            .memories
            .hash((generation, versions, key_id, environment))
    }

    fn client_hash(&self, credentials: &crate::kernel::Credentials) -> u64 {
        use secrecy::ExposeSecret;
        self.context.memories.hash(credentials.id.expose_secret())
    }

    /// Whether Kernel was told of the webhook for just this spec, Secret, key and configuration: by this process, or as
    /// the status of a run before says.
    fn was_registered(
        &self,
        old: &WhatsAppChannelStatus,
        generation: i64,
        now: Fingerprint,
        versions: &Versions,
        key: Key<'_>,
    ) -> bool {
        if let Some((verified, _)) = &self.memory.verified {
            return *verified == now;
        }
        let reason = match self.effective.mode {
            WebhookMode::Manage => Reason::Succeeded,
            WebhookMode::Legacy => Reason::LegacyRegistered,
            WebhookMode::Observe => return false,
        };
        versions.client.is_some()
            && old.observed_generation == Some(generation)
            && old.observed_secret_version == versions.client
            && old.webhook_url == self.desired(None).as_ref().map(Desired::masked)
            && key.was_told(old)
            && status::ready(old)
                .is_some_and(|ready| ready.status == "True" && ready.reason == reason.as_str())
    }

    /// Whether no look is due. After a restart a channel that was right is left until its own moment.
    fn is_fresh(&self, registered: bool, now: Fingerprint) -> bool {
        match &self.memory.verified {
            Some((verified, due)) => *verified == now && Instant::now() < *due && self.memory.misses == 0,
            None => registered,
        }
    }

    /// What is remembered after the pass, and when the next one is.
    fn remembered(&self, pass: &Outcome<'_>) -> (Memory, Duration) {
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

    /// Writes the status if it changed, tells of a transition by an event, and keeps what is to be remembered. Where
    /// somebody else has written it meanwhile, it is built anew from what they wrote.
    async fn write(
        &self,
        channel: &WhatsAppChannel,
        mut old: WhatsAppChannelStatus,
        mut version: Option<String>,
        build: &(dyn Fn(&WhatsAppChannelStatus) -> WhatsAppChannelStatus + Sync),
        mut memory: Memory,
    ) -> Result<(), ReconcileError> {
        let api = self.api();
        for _ in 0..WRITE_TRIES {
            let new = build(&old);
            if status::same(&old, &new) {
                self.context.memories.keep(&self.uid, memory);
                return Ok(());
            }
            let patch = json!({
                "apiVersion": WhatsAppChannel::api_version(&()),
                "kind": WhatsAppChannel::kind(&()),
                // A leader that was stopped and goes on writes nothing over what its successor wrote.
                "metadata": {"resourceVersion": version},
                "status": status::owned(&new),
            });
            let parameters = PatchParams::apply(MANAGER).force();
            let patch = Patch::Apply(patch);
            match claimed(
                self.context,
                api.patch_status(&self.key.name, &parameters, &patch),
            )
            .await
            {
                Ok(written) => {
                    self.context.metrics.status_writes.inc();
                    memory.written = written
                        .resource_version()
                        .and_then(|version| Some(Box::new((version.parse().ok()?, written.status.clone()?))));
                    self.context.memories.keep(&self.uid, memory);
                    self.tell(channel, &old, &new).await;
                    return Ok(());
                }
                // It was deleted meanwhile: there is nobody to tell.
                Err(ReconcileError::Api(error))
                    if is(&error, kube::core::Status::is_not_found) && !self.context.knows(&self.key) =>
                {
                    return Ok(());
                }
                Err(ReconcileError::Api(error)) if is(&error, kube::core::Status::is_conflict) => {
                    let Some(found) = api.get_opt(&self.key.name).await? else {
                        return Ok(());
                    };
                    let same = found.uid() == channel.uid()
                        && found.metadata.generation == channel.metadata.generation;
                    if !same {
                        // What was found out is remembered; the new spec has a pass of its own coming.
                        self.context.memories.keep(&self.uid, memory);
                        return Ok(());
                    }
                    version = found.resource_version();
                    old = found.status.unwrap_or_default();
                }
                Err(error) => return Err(error),
            }
        }
        Err(kube::Error::Service("the status is written by somebody else all the time".into()).into())
    }

    /// Tells of a transition of Ready, or of its reason, by a log line and an event.
    async fn tell(
        &self,
        channel: &WhatsAppChannel,
        old: &WhatsAppChannelStatus,
        new: &WhatsAppChannelStatus,
    ) {
        let (before, ready) = (status::ready(old), status::ready(new));
        let told =
            |ready: Option<&Condition>| ready.map(|ready| (ready.status.clone(), ready.reason.clone()));
        if told(before) == told(ready) {
            return;
        }
        let Some(ready) = ready else { return };
        let kind = if ready.status == "False" {
            EventType::Warning
        } else {
            EventType::Normal
        };
        tracing::info!(
            namespace = self.key.namespace, name = self.key.name, channel = %self.id, ready = ready.status,
            reason = ready.reason, note = ready.message, "status changed"
        );
        self.event(channel, kind, &ready.reason, &ready.message).await;
    }

    /// Publishes an event; that it could not be is only logged.
    async fn event(&self, channel: &WhatsAppChannel, type_: EventType, reason: &str, note: &str) {
        if !self.context.leadership.is_leader() {
            return;
        }
        let event = Event {
            type_,
            reason: reason.to_owned(),
            // The API server takes 1,024 bytes.
            note: Some(note[..note.floor_char_boundary(1000)].to_owned()),
            action: "Reconcile".to_owned(),
            secondary: None,
        };
        if let Err(error) = self
            .context
            .recorder
            .publish(&event, &channel.object_ref(&()))
            .await
        {
            tracing::warn!(
                error = cluster::error_class(&error),
                reason,
                "can't publish an event"
            );
        }
    }

    /// Does what a deletion has to do.
    async fn clean_up(&self, channel: &WhatsAppChannel) -> Result<Cleanup, ReconcileError> {
        let since = channel.metadata.deletion_timestamp.as_ref();
        let all = since.map_or(Duration::ZERO, |at| {
            Duration::try_from(Timestamp::now().duration_since(at.0)).unwrap_or_default()
        });
        let failing = self
            .memory
            .cleanup_failing
            .map_or(Duration::ZERO, |at| at.elapsed());
        let age = Age { all, failing };
        let old = channel.status.clone().unwrap_or_default();
        let mut seen = self.observed(channel);
        seen.registered = old.registered_at.is_some();
        let claimed_by_another = self.context.has_rival(&self.key, self.id);
        let mut gathered = Gathered::default();
        let mut begun: Option<Begun> = None;
        let skipped = loop {
            seen.leading = self.context.leadership.is_leader();
            match decide_cleanup(&seen, claimed_by_another, age) {
                CleanupStep::StandBy => return Err(ReconcileError::StoodDown),
                CleanupStep::ReadSecret => {
                    let Some(gate) = self.setup.gate(&self.environment_name) else {
                        break Some("its environment is not in the configuration".to_owned());
                    };
                    begun = gate.begin(&self.key);
                    if begun.is_none() {
                        return Ok(Cleanup::Wait(Action::await_change()));
                    }
                    gathered.passage = Some(Passage::new(
                        self.context,
                        gate,
                        &self.environment_name,
                        &self.key,
                        true,
                    ));
                    seen.secret = Some(match self.read_secret(channel, &mut gathered).await {
                        // It went first: what it held is still good for this.
                        Ok(Err(SecretProblem::NotFound(_))) if self.memory.credentials.is_some() => {
                            gathered.credentials = self.memory.credentials.as_deref().cloned();
                            Ok(())
                        }
                        Ok(secret) => secret,
                        Err(error) if age.has_time() => return Err(error),
                        Err(error) => break Some(error.to_string()),
                    });
                }
                CleanupStep::FetchToken => seen.token = Some(self.fetch_token(&gathered).await),
                CleanupStep::ReadWebhook => seen.held = Some(self.read_webhook(&gathered).await),
                CleanupStep::ClearWebhook => seen.set = Some(self.clear_webhook(&gathered).await),
                CleanupStep::Wait { after } => {
                    let failures = self
                        .memory
                        .failures
                        .map_or(1, |(_, failures)| failures.saturating_add(1));
                    let memory = Memory {
                        failures: Some((0, failures)),
                        cleanup_failing: self.memory.cleanup_failing.or(Some(Instant::now())),
                        ..self.memory.clone()
                    };
                    self.context.memories.keep(&self.uid, memory);
                    let wait = retry(Duration::from_secs(15)).wait_at_least(failures, after, fastrand::f64());
                    return Ok(Cleanup::Wait(Action::requeue(wait)));
                }
                CleanupStep::Release { skipped } => break skipped,
            }
        };
        drop(begun);
        if let Some(why) = skipped {
            tracing::warn!(
                namespace = self.key.namespace, name = self.key.name, channel = %self.id, why,
                "deleted; Kernel's webhook is left behind"
            );
            self.context.metrics.cleanups_skipped.inc();
            let note = format!("Kernel's webhook was left as it is: {why}");
            self.event(
                channel,
                EventType::Warning,
                Reason::CleanupSkipped.as_str(),
                &note,
            )
            .await;
        }
        Ok(Cleanup::Done)
    }
}

/// How far a deletion is.
enum Cleanup {
    /// There is more to do, then.
    Wait(Action),
    /// The resource may go.
    Done,
}

/// What a pass has come to.
#[allow(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
struct Outcome<'a> {
    verdict: &'a Verdict,
    fingerprint: Fingerprint,
    fresh: bool,
    registered: bool,
    /// Kernel can't be read back.
    blind: bool,
    /// A call was not made because nobody's get through.
    parked: bool,
    /// Kernel said what it holds.
    heard: bool,
}

fn retry(cap: Duration) -> Backoff {
    Backoff {
        base: RETRY_FROM.min(cap),
        cap,
    }
}

fn is(error: &kube::Error, kind: impl Fn(&kube::core::Status) -> bool) -> bool {
    matches!(error, kube::Error::Api(status) if kind(status))
}

/// What is known of an environment for a channel in this namespace.
fn view(environment: Option<&Environment>, effective: &Effective, namespace: &str) -> EnvironmentView {
    let Some(environment) = environment else {
        return EnvironmentView::Unknown;
    };
    if !environment.allows(namespace) {
        return EnvironmentView::NotAllowed;
    }
    let now = Timestamp::now();
    if let Some(hold) = environment.held(Held::Registration, now) {
        let left = hold
            .until
            .parse::<Timestamp>()
            .ok()
            .and_then(|until| Duration::try_from(until.duration_since(now)).ok());
        return EnvironmentView::Held {
            reason: hold.reason.clone(),
            left: left.unwrap_or_default().max(Duration::from_millis(1)),
        };
    }
    if effective.mode == WebhookMode::Legacy && environment.legacy_callback.is_none() {
        return EnvironmentView::NoLegacyCallback;
    }
    EnvironmentView::Usable
}

#[allow(clippy::needless_pass_by_value, reason = "the form that the library calls")]
/// What happens after an error: the same object is tried again, soon but not at once.
pub(super) fn on_error(
    channel: Arc<WhatsAppChannel>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    if matches!(error, ReconcileError::StoodDown) {
        tracing::debug!(
            namespace = channel.namespace(),
            name = channel.name_any(),
            "left to the leader"
        );
        // Whoever leads next looks at every channel.
        return Action::await_change();
    }
    let uid = channel.uid().unwrap_or_default();
    if ObjectKey::of(&*channel).is_none_or(|key| !context.knows(&key)) {
        // It is gone.
        return Action::await_change();
    }
    let mut memory = context.memories.of(&uid);
    let failures = match memory.failures {
        Some((API_FAILURES, failures)) => failures + 1,
        _ => 1,
    };
    memory.failures = Some((API_FAILURES, failures));
    context.memories.keep(&uid, memory);
    tracing::warn!(namespace = channel.namespace(), name = channel.name_any(), %error, failures, "can't reconcile; trying again");
    context.metrics.reconciled("Error", 0.0);
    Action::requeue(retry(Duration::from_secs(30)).wait(failures, fastrand::f64()))
}

/// What failures of the API server are counted under: no fingerprint, as none was found out.
const API_FAILURES: Fingerprint = 0;
