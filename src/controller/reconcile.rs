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
use secrecy::SecretString;
use serde_json::json;
use tokio::time::Instant;

use super::{
    context::{Context, Fingerprint, Memory, since_epoch},
    decide::{
        CLEANUP_PATIENCE, CleanupStep, EnvironmentView, Next, Observed, Step, Verdict, decide, decide_cleanup,
    },
    finalizer,
    gather::Gathered,
    schedule,
    status::{self, Facts},
    webhook::Desired,
};
use crate::{
    api::{
        ChannelDefaults, ChannelId, Condition, Effective, OnDelete, REQUESTED_AT, WebhookMode,
        WhatsAppChannel, WhatsAppChannelStatus, conditions::Reason,
    },
    cluster,
    config::{Environment, Held},
    delivery::backoff::Backoff,
};

/// Waits between tries of a channel that fails; a change of its spec or Secret starts them anew.
const RETRY: Backoff = Backoff {
    base: Duration::from_secs(1),
    cap: Duration::from_secs(300),
};
/// The field manager of our part of the status.
const MANAGER: &str = "aura-whatsapp-operator/status";

/// A reconciliation could not be carried out. (That a channel is not ready is no error: it stands in its status.)
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    /// The API server did not do its part.
    #[error("the API server: {}", cluster::error_class(.0))]
    Api(#[from] Box<kube::Error>),
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Reconciles one channel.
pub(super) async fn reconcile(
    channel: Arc<WhatsAppChannel>,
    context: Arc<Context>,
) -> Result<Action, ReconcileError> {
    let (Some(namespace), Some(uid)) = (channel.namespace(), channel.uid()) else {
        return Ok(Action::await_change());
    };
    // What the API server's rules let in is a UUID; anything else waits for a change.
    let Ok(id) = channel.spec.channel_id.parse::<ChannelId>() else {
        return Ok(Action::await_change());
    };
    // Who holds a channel can be told only when every scope was listed.
    context.wait_listed().await;
    let api: Api<WhatsAppChannel> = Api::namespaced(context.client.clone(), &namespace);
    let pass = Pass::new(&context, &channel, id, namespace, uid);
    if channel.metadata.deletion_timestamp.is_none() {
        let wanted =
            pass.effective.on_delete == OnDelete::Clear && pass.effective.mode == WebhookMode::Manage;
        match (wanted, finalizer::is_held(&channel)) {
            // Before the first registration: what is registered must be cleared.
            (true, false) => {
                finalizer::add(&api, &channel).await?;
                return Ok(Action::await_change());
            }
            (false, true) => finalizer::remove(&api, &channel).await?,
            _ => {}
        }
        return pass.apply(&channel).await;
    }
    if !finalizer::is_held(&channel) {
        return Ok(Action::await_change());
    }
    match pass.clean_up(&channel).await? {
        Some(wait) => Ok(Action::requeue(wait)),
        None => {
            finalizer::remove(&api, &channel).await?;
            Ok(Action::await_change())
        }
    }
}

/// One pass over one channel.
pub(super) struct Pass<'a> {
    pub context: &'a Context,
    pub id: ChannelId,
    pub namespace: String,
    uid: String,
    pub environment_name: String,
    pub environment: Option<&'a Environment>,
    view: EnvironmentView,
    pub effective: Effective,
    memory: Memory,
}

impl<'a> Pass<'a> {
    fn new(
        context: &'a Context,
        channel: &WhatsAppChannel,
        id: ChannelId,
        namespace: String,
        uid: String,
    ) -> Self {
        let environment = context.installation.environments.get(&channel.spec.environment);
        let defaults = ChannelDefaults::default();
        let effective = Effective::new(
            &channel.spec,
            environment.map_or(&defaults, |environment| &environment.channel_defaults),
        );
        let view = match environment {
            None => EnvironmentView::Unknown,
            Some(environment) if !environment.allows(&namespace) => EnvironmentView::NotAllowed,
            Some(environment) => match environment.held(Held::Registration, Timestamp::now()) {
                Some(hold) => EnvironmentView::Held {
                    reason: hold.reason.clone(),
                },
                None if effective.mode == WebhookMode::Legacy && environment.legacy_callback.is_none() => {
                    EnvironmentView::NoLegacyCallback
                }
                None => EnvironmentView::Usable,
            },
        };
        let memory = context.memory(&uid);
        let environment_name = channel.spec.environment.clone();
        Self {
            context,
            id,
            namespace,
            uid,
            environment_name,
            environment,
            view,
            effective,
            memory,
        }
    }

    fn observed<'b>(&'b self, channel: &'b WhatsAppChannel) -> Observed<'b> {
        let holder = self.context.holder(channel, self.id).map(|holder| {
            if holder.namespace == self.namespace {
                format!("{}/{}", holder.namespace, holder.name)
            } else {
                // Who may read this status may not be allowed to know the other namespace.
                "in another namespace".to_owned()
            }
        });
        Observed {
            environment_name: &channel.spec.environment,
            environment: self.view.clone(),
            effective: &self.effective,
            holder,
            secret_name: &channel.spec.kernel.credentials_secret_ref.name,
            secret: None,
            fresh: false,
            registered: false,
            misses: self.memory.misses,
            message_before: None,
            token: None,
            held: None,
            set: None,
        }
    }

    async fn apply(&self, channel: &WhatsAppChannel) -> Result<Action, ReconcileError> {
        let start = Instant::now();
        let old = self.status_before(channel);
        let generation = channel.metadata.generation.unwrap_or_default();
        let requested_at = channel.annotations().get(REQUESTED_AT).map(String::as_str);
        if self.effective.suspend {
            let nothing = Gathered::default();
            let facts = self.facts(generation, &nothing, requested_at);
            self.write(
                channel,
                &old,
                &status::suspended(&old, &facts),
                self.memory.clone(),
            )
            .await?;
            return Ok(Action::await_change());
        }
        let mut seen = self.observed(channel);
        seen.message_before = status::ready(&old).map(|ready| ready.message.as_str());
        if seen.holder.is_none() {
            // A younger one may have been registered before this one was known of.
            self.context.wake_rivals(channel, self.id);
        }
        let mut gathered = Gathered::default();
        let asked = requested_at.is_some() && requested_at != old.last_handled_reconcile_at.as_deref();
        let verdict = loop {
            match decide(&seen) {
                Step::ReadSecret => {
                    seen.secret = Some(self.read_secret(channel, &mut gathered).await?);
                    let fingerprint = self.fingerprint(generation, &gathered);
                    seen.registered = self.was_registered(&old, &fingerprint, &gathered);
                    seen.fresh = !asked && self.is_fresh(seen.registered, &fingerprint);
                }
                Step::FetchToken => seen.token = Some(self.fetch_token(&gathered).await),
                Step::ReadWebhook => seen.held = Some(self.read_webhook(&gathered).await),
                Step::SetWebhook => {
                    let to = gathered.desired.as_ref().map(|desired| desired.expose().clone());
                    seen.set = Some(self.set_webhook(&gathered, &to.unwrap_or_default()).await);
                }
                Step::Done(verdict) => break verdict,
            }
        };
        let (fresh, registered) = (seen.fresh, seen.registered);
        let fingerprint = self.fingerprint(generation, &gathered);
        let facts = self.facts(generation, &gathered, requested_at);
        let new = status::build(&old, &verdict, &facts);
        let (memory, wait) =
            self.remembered(&verdict, fingerprint, fresh, registered, status::is_blind(&new));
        self.write(channel, &old, &new, memory).await?;
        self.context
            .metrics
            .reconciled(verdict.reason.as_str(), start.elapsed().as_secs_f64());
        Ok(Action::requeue(wait))
    }

    /// The status that this pass starts from: the resource's own, or what was written last where the watch has not
    /// told of that yet. Judged by an older one, a pass would take back what the one before it reported.
    fn status_before(&self, channel: &WhatsAppChannel) -> WhatsAppChannelStatus {
        let version = channel
            .resource_version()
            .and_then(|version| version.parse::<u64>().ok());
        match (&self.memory.written, version) {
            (Some((written, status)), Some(version)) if version < *written => status.clone(),
            _ => channel.status.clone().unwrap_or_default(),
        }
    }

    fn facts<'b>(
        &'b self,
        generation: i64,
        gathered: &'b Gathered,
        requested_at: Option<&'b str>,
    ) -> Facts<'b> {
        Facts {
            generation,
            now: Timestamp::now(),
            secret_version: gathered.secret_version.as_deref(),
            webhook_url: gathered.desired.as_ref().map(Desired::masked),
            key_generation: self.effective.key_generation,
            key_id: self.context.keys.id(),
            requested_at,
            grace: status::KEY_GRACE,
        }
    }

    fn fingerprint(&self, generation: i64, gathered: &Gathered) -> Fingerprint {
        Fingerprint {
            generation,
            secret_version: gathered.secret_version.clone(),
            key_id: self.context.keys.id().to_owned(),
        }
    }

    /// Whether Kernel was told of the webhook for just this spec, Secret, key and configuration: by this process, or as
    /// the status of a run before says.
    fn was_registered(&self, old: &WhatsAppChannelStatus, now: &Fingerprint, gathered: &Gathered) -> bool {
        if let Some((verified, _)) = &self.memory.verified {
            return verified == now;
        }
        let reason = match self.effective.mode {
            WebhookMode::Manage => Reason::Succeeded,
            WebhookMode::Legacy => Reason::LegacyRegistered,
            WebhookMode::Observe => return false,
        };
        let key = old.webhook_key.as_ref();
        old.observed_generation == Some(now.generation)
            && old.observed_secret_version == now.secret_version
            && old.webhook_url == gathered.desired.as_ref().map(Desired::masked)
            && key.and_then(|key| key.installation_key_id.as_ref()) == Some(&now.key_id)
            && key.and_then(|key| u64::try_from(key.generation).ok()) == Some(self.effective.key_generation)
            && status::ready(old)
                .is_some_and(|ready| ready.status == "True" && ready.reason == reason.as_str())
    }

    /// Whether no look is due. After a restart a channel that was right is left until its own moment.
    fn is_fresh(&self, registered: bool, now: &Fingerprint) -> bool {
        match &self.memory.verified {
            Some((verified, due)) => verified == now && Instant::now() < *due && self.memory.misses == 0,
            None => registered,
        }
    }

    /// What is remembered after the pass, and when the next one is.
    fn remembered(
        &self,
        verdict: &Verdict,
        fingerprint: Fingerprint,
        fresh: bool,
        registered: bool,
        blind: bool,
    ) -> (Memory, Duration) {
        let mut memory = self.memory.clone();
        let default = if blind {
            Effective::RESYNC_BLIND
        } else {
            Effective::RESYNC
        };
        let period = self.effective.resync_period.unwrap_or(default);
        let until_moment = || schedule::until_moment(&self.uid, period, since_epoch(Timestamp::now()));
        let wait = match verdict.next {
            Next::AtMoment => {
                memory.misses = 0;
                memory.failures = None;
                let due = match &memory.verified {
                    Some((_, due)) if fresh => due.saturating_duration_since(Instant::now()),
                    _ => until_moment(),
                };
                memory.verified = Some((fingerprint, Instant::now() + due));
                due
            }
            Next::OnChange => {
                memory.verified = None;
                memory.failures = None;
                until_moment()
            }
            // A hold changes nothing about what was verified.
            Next::In(wait) => wait,
            Next::Retry { after } => {
                if registered && verdict.reason.is_good() {
                    memory.misses += 1;
                    memory
                        .verified
                        .get_or_insert((fingerprint.clone(), Instant::now()));
                } else {
                    memory.verified = None;
                }
                let failures = match memory.failures.take() {
                    Some((of, failures)) if of == fingerprint => failures + 1,
                    _ => 1,
                };
                memory.failures = Some((fingerprint, failures));
                let retry = Backoff {
                    cap: RETRY.cap.min(period),
                    ..RETRY
                };
                retry.wait_at_least(failures, after, fastrand::f64())
            }
        };
        (memory, wait.max(Duration::from_millis(1)))
    }

    /// Writes the status if it changed, tells of a transition by an event, and keeps what is to be remembered.
    async fn write(
        &self,
        channel: &WhatsAppChannel,
        old: &WhatsAppChannelStatus,
        new: &WhatsAppChannelStatus,
        mut memory: Memory,
    ) -> Result<(), ReconcileError> {
        if status::same(old, new) {
            self.context.remember(&self.uid, memory);
            return Ok(());
        }
        let api: Api<WhatsAppChannel> = Api::namespaced(self.context.client.clone(), &self.namespace);
        let patch = json!({
            "apiVersion": WhatsAppChannel::api_version(&()),
            "kind": WhatsAppChannel::kind(&()),
            "status": status::owned(new),
        });
        let name = channel.name_any();
        let parameters = PatchParams::apply(MANAGER).force();
        match api.patch_status(&name, &parameters, &Patch::Apply(patch)).await {
            Ok(written) => {
                self.context.metrics.status_writes.inc();
                memory.written = written
                    .resource_version()
                    .and_then(|version| Some((version.parse().ok()?, written.status.clone()?)));
                self.context.remember(&self.uid, memory);
            }
            // It was deleted meanwhile: there is nobody to tell.
            Err(kube::Error::Api(error)) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        let (before, ready) = (status::ready(old), status::ready(new));
        let told =
            |ready: Option<&Condition>| ready.map(|ready| (ready.status.clone(), ready.reason.clone()));
        if told(before) != told(ready)
            && let Some(ready) = ready
        {
            let kind = if ready.status == "False" {
                EventType::Warning
            } else {
                EventType::Normal
            };
            tracing::info!(
                namespace = self.namespace, name, channel = %self.id, ready = ready.status, reason = ready.reason,
                note = ready.message, "status changed"
            );
            self.event(channel, kind, &ready.reason, &ready.message).await;
        }
        Ok(())
    }

    /// Publishes an event; that it could not be is only logged.
    async fn event(&self, channel: &WhatsAppChannel, type_: EventType, reason: &str, note: &str) {
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

    /// Does what a deletion has to do; answers how long to wait before it is tried again, or that it is done.
    async fn clean_up(&self, channel: &WhatsAppChannel) -> Result<Option<Duration>, ReconcileError> {
        let since = channel.metadata.deletion_timestamp.as_ref();
        let age = since.map_or(Duration::ZERO, |at| {
            Duration::try_from(Timestamp::now().duration_since(at.0)).unwrap_or_default()
        });
        let old = channel.status.clone().unwrap_or_default();
        let mut seen = self.observed(channel);
        seen.registered = old.registered_at.is_some();
        let claimed = self.context.has_rival(channel, self.id);
        let mut gathered = Gathered::default();
        let skipped = loop {
            match decide_cleanup(&seen, claimed, age) {
                CleanupStep::ReadSecret => match self.read_secret(channel, &mut gathered).await {
                    Ok(secret) => seen.secret = Some(secret),
                    Err(error) if age < CLEANUP_PATIENCE => return Err(error),
                    Err(error) => break Some(error.to_string()),
                },
                CleanupStep::FetchToken => seen.token = Some(self.fetch_token(&gathered).await),
                CleanupStep::ReadWebhook => seen.held = Some(self.read_webhook(&gathered).await),
                CleanupStep::ClearWebhook => {
                    seen.set = Some(self.set_webhook(&gathered, &SecretString::default()).await);
                }
                CleanupStep::Wait { after } => {
                    let failures = self
                        .memory
                        .failures
                        .as_ref()
                        .map_or(1, |(_, failures)| failures + 1);
                    let now = Some((self.fingerprint(0, &gathered), failures));
                    self.context.remember(
                        &self.uid,
                        Memory {
                            failures: now,
                            ..self.memory.clone()
                        },
                    );
                    let retry = Backoff {
                        cap: Duration::from_secs(15),
                        ..RETRY
                    };
                    return Ok(Some(retry.wait_at_least(failures, after, fastrand::f64())));
                }
                CleanupStep::Release { skipped } => break skipped,
            }
        };
        let name = channel.name_any();
        if let Some(why) = skipped {
            tracing::warn!(
                namespace = self.namespace, name, channel = %self.id, why,
                "deleted; Kernel's webhook is left behind"
            );
            let note = format!("Kernel's webhook was left as it is: {why}");
            self.event(
                channel,
                EventType::Warning,
                Reason::CleanupSkipped.as_str(),
                &note,
            )
            .await;
        }
        Ok(None)
    }
}

#[allow(clippy::needless_pass_by_value, reason = "the form that the library calls")]
/// What happens after an error: the same object is tried again, soon but not at once.
pub(super) fn on_error(
    channel: Arc<WhatsAppChannel>,
    error: &ReconcileError,
    context: Arc<Context>,
) -> Action {
    let uid = channel.uid().unwrap_or_default();
    let mut memory = context.memory(&uid);
    let fingerprint = Fingerprint {
        generation: -1,
        secret_version: None,
        key_id: String::new(),
    };
    let failures = match memory.failures.take() {
        Some((of, failures)) if of == fingerprint => failures + 1,
        _ => 1,
    };
    memory.failures = Some((fingerprint, failures));
    context.remember(&uid, memory);
    tracing::warn!(namespace = channel.namespace(), name = channel.name_any(), %error, failures, "can't reconcile; trying again");
    context.metrics.reconciled("Error", 0.0);
    Action::requeue(RETRY.wait(failures, fastrand::f64()).min(Duration::from_secs(30)))
}
