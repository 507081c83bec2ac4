//! Carries out what `decide` says for one channel: reads the Secret, calls Kernel, writes the status. Thin.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Secret;
use kube::{
    Api, Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::{
        controller::Action,
        events::{Event, EventType},
        finalizer::{self, finalizer},
    },
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use tokio::time::Instant;

use super::{
    context::{Context, Fingerprint, Memory, since_epoch},
    decide::{CleanupStep, EnvironmentView, Next, Observed, Step, Verdict, decide, decide_cleanup},
    schedule,
    status::{self, Facts},
    webhook::{Desired, Held},
};
use crate::{
    api::{
        ChannelDefaults, ChannelId, Effective, FINALIZER, REQUESTED_AT, WebhookMode, WhatsAppChannel,
        WhatsAppChannelStatus,
    },
    cluster::{self, SecretProblem},
    config::{Environment, Held as HeldPart},
    delivery::backoff::Backoff,
    kernel::{Credentials, KernelError, ReadBack, TokenRequest},
    keys::{ApiKey, Tag},
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
    /// The finalizer could not be set or removed.
    #[error("the finalizer could not be changed")]
    Finalizer,
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// What happens in the clean-up: it either ends or is to be tried again.
#[derive(Debug, thiserror::Error)]
enum CleanupError {
    #[error("waiting")]
    Wait(Duration),
    #[error(transparent)]
    Failed(#[from] ReconcileError),
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
    let api: Api<WhatsAppChannel> = Api::namespaced(context.client.clone(), &namespace);
    let pass = Pass::new(&context, &channel, id, namespace, uid);
    // Nothing before this line may fail: a deletion must never depend on it.
    let result = finalizer(&api, FINALIZER, channel.clone(), |event| async {
        match event {
            finalizer::Event::Apply(channel) => Ok(pass.apply(&channel).await?),
            finalizer::Event::Cleanup(channel) => pass.clean_up(&channel).await,
        }
    })
    .await;
    match result {
        Ok(action) => Ok(action),
        Err(finalizer::Error::CleanupFailed(CleanupError::Wait(after))) => Ok(Action::requeue(after)),
        Err(
            finalizer::Error::ApplyFailed(CleanupError::Failed(error))
            | finalizer::Error::CleanupFailed(CleanupError::Failed(error)),
        ) => Err(error),
        Err(_) => Err(ReconcileError::Finalizer),
    }
}

/// One pass over one channel.
struct Pass<'a> {
    context: &'a Context,
    id: ChannelId,
    namespace: String,
    uid: String,
    environment_name: String,
    environment: Option<&'a Environment>,
    view: EnvironmentView,
    effective: Effective,
    memory: Memory,
}

/// What has been read and done in the course of a pass.
#[derive(Default)]
struct Gathered {
    secret_version: Option<String>,
    credentials: Option<Credentials>,
    issued: Option<ApiKey>,
    desired: Option<Desired>,
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
            Some(environment) => match environment.held(HeldPart::Registration, Timestamp::now()) {
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
            token: None,
            held: None,
            set: None,
        }
    }

    async fn apply(&self, channel: &WhatsAppChannel) -> Result<Action, ReconcileError> {
        let start = Instant::now();
        let old = channel.status.clone().unwrap_or_default();
        let generation = channel.metadata.generation.unwrap_or_default();
        let requested_at = channel.annotations().get(REQUESTED_AT).map(String::as_str);
        if self.effective.suspend {
            let nothing = Gathered::default();
            let facts = self.facts(generation, &nothing, requested_at);
            self.write(channel, &old, &status::suspended(&old, &facts))
                .await?;
            return Ok(Action::await_change());
        }
        let mut seen = self.observed(channel);
        let mut gathered = Gathered::default();
        let asked = requested_at.is_some() && requested_at != old.last_handled_reconcile_at.as_deref();
        let verdict = loop {
            match decide(&seen) {
                Step::ReadSecret => {
                    seen.secret = Some(self.read_secret(channel, &mut gathered).await?);
                    let fingerprint = self.fingerprint(generation, &gathered);
                    seen.registered = self.was_registered(&old, &fingerprint);
                    seen.fresh = !asked && self.is_fresh(&old, &fingerprint);
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
        let fingerprint = self.fingerprint(generation, &gathered);
        let facts = self.facts(generation, &gathered, requested_at);
        self.write(channel, &old, &status::build(&old, &verdict, &facts))
            .await?;
        let after = self.remember(&verdict, fingerprint, seen.fresh, seen.registered);
        self.context
            .metrics
            .reconciled(verdict.reason.as_str(), start.elapsed().as_secs_f64());
        Ok(after)
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

    /// Whether Kernel was told of the webhook for just this spec, Secret and key: by this process, or as the status
    /// of a run before says.
    fn was_registered(&self, old: &WhatsAppChannelStatus, now: &Fingerprint) -> bool {
        if let Some((verified, _)) = &self.memory.verified {
            return verified == now;
        }
        let key = old.webhook_key.as_ref();
        old.observed_generation == Some(now.generation)
            && old.observed_secret_version == now.secret_version
            && key.and_then(|key| key.installation_key_id.as_ref()) == Some(&now.key_id)
            && status::ready_reason(old).is_some_and(|(ready, _)| ready == "True")
    }

    /// Whether no look is due. After a restart a channel that was right is left until its own moment.
    fn is_fresh(&self, old: &WhatsAppChannelStatus, now: &Fingerprint) -> bool {
        match &self.memory.verified {
            Some((verified, due)) => verified == now && Instant::now() < *due && self.memory.misses == 0,
            None => self.was_registered(old, now),
        }
    }

    /// Remembers what came of the pass and says when the next one is.
    fn remember(&self, verdict: &Verdict, fingerprint: Fingerprint, fresh: bool, registered: bool) -> Action {
        let mut memory = self.memory.clone();
        let period = self.effective.resync_period.unwrap_or(match verdict.verified {
            super::decide::Verified::Unsupported => Effective::RESYNC_BLIND,
            _ => Effective::RESYNC,
        });
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
            Next::Retry { after } => {
                if registered {
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
                RETRY.wait_at_least(failures, after, fastrand::f64()).min(period)
            }
        };
        self.context.remember(&self.uid, memory);
        Action::requeue(wait.max(Duration::from_millis(1)))
    }

    async fn read_secret(
        &self,
        channel: &WhatsAppChannel,
        gathered: &mut Gathered,
    ) -> Result<Result<(), SecretProblem>, ReconcileError> {
        let secrets: Api<Secret> = Api::namespaced(self.context.client.clone(), &self.namespace);
        let reference = &channel.spec.kernel.credentials_secret_ref;
        let secret = cluster::get(&secrets, &reference.name).await?;
        gathered.secret_version = secret.as_ref().and_then(ResourceExt::resource_version);
        let read = cluster::credentials(secret.as_ref(), reference);
        match read {
            Ok(credentials) => gathered.credentials = Some(credentials),
            Err(problem) => return Ok(Err(problem)),
        }
        let legacy = self
            .environment
            .and_then(|environment| environment.legacy_callback.as_ref());
        let key_ref = match self.effective.mode {
            WebhookMode::Legacy => legacy.and_then(|legacy| legacy.api_key_secret_ref.as_ref()),
            _ => channel
                .spec
                .webhook
                .as_ref()
                .and_then(|webhook| webhook.api_key_secret_ref.as_ref()),
        };
        if let Some(reference) = key_ref {
            let secret = cluster::get(&secrets, &reference.name).await?;
            match cluster::issued_key(secret.as_ref(), reference) {
                Ok(key) => {
                    // A new version of either Secret is a new fingerprint.
                    let version = secret
                        .as_ref()
                        .and_then(ResourceExt::resource_version)
                        .unwrap_or_default();
                    gathered.secret_version = gathered
                        .secret_version
                        .take()
                        .map(|own| format!("{own}.{version}"));
                    gathered.issued = Some(key);
                }
                Err(problem) => return Ok(Err(problem)),
            }
        }
        gathered.desired = self
            .environment
            .map(|environment| match (self.effective.mode, legacy) {
                (WebhookMode::Legacy, Some(legacy)) => {
                    Desired::from_template(&legacy.url, self.id, gathered.issued.as_ref())
                }
                _ => {
                    let derived = || {
                        let tag = Tag::new(&channel.spec.environment, &self.namespace);
                        self.context
                            .keys
                            .api_key(tag, self.effective.key_generation, self.id)
                    };
                    let key = gathered.issued.clone().unwrap_or_else(derived);
                    Desired::new(environment, self.id, &key)
                }
            });
        Ok(Ok(()))
    }

    fn token_request(&self, gathered: &Gathered) -> Option<(&Environment, TokenRequest)> {
        let (environment, credentials) = (self.environment?, gathered.credentials.clone()?);
        let request = TokenRequest {
            url: environment.kernel.token_url(),
            credentials,
            scopes: self.effective.registration_scopes.clone(),
            purposes: self.effective.purposes.clone(),
            timeout: environment.kernel.timeout(),
        };
        Some((environment, request))
    }

    async fn fetch_token(&self, gathered: &Gathered) -> Result<(), KernelError> {
        let (_, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        self.counted("token", self.context.kernel.token(&request))
            .await
            .map(|_| ())
    }

    async fn read_webhook(&self, gathered: &Gathered) -> Result<Held, KernelError> {
        let (environment, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        let url = environment.kernel.webhook_url(self.effective.api_version);
        let desired = gathered.desired.as_ref().ok_or(NOT_GATHERED)?;
        let held = self
            .counted("webhook_get", self.context.kernel.webhook(&request, &url))
            .await?;
        Ok(match held {
            ReadBack::Url(held) => desired.judge(environment, self.id, held.expose_secret()),
            ReadBack::Empty => Held::Empty,
            ReadBack::Unsupported => Held::Unsupported,
        })
    }

    async fn set_webhook(&self, gathered: &Gathered, to: &SecretString) -> Result<(), KernelError> {
        let (environment, request) = self.token_request(gathered).ok_or(NOT_GATHERED)?;
        let url = environment.kernel.webhook_url(self.effective.api_version);
        self.counted("webhook_set", self.context.kernel.set_webhook(&request, &url, to))
            .await
    }

    /// Makes a call to Kernel when it is its turn, and counts it.
    async fn counted<T>(
        &self,
        operation: &'static str,
        call: impl Future<Output = Result<T, KernelError>>,
    ) -> Result<T, KernelError> {
        let limiter = self.context.limiter(&self.environment_name);
        let _turn = match limiter {
            Some(limiter) => limiter.turn().await,
            None => None,
        };
        let result = call.await;
        let class = result.as_ref().map_or_else(KernelError::class, |_| "ok");
        self.context.metrics.called(operation, class);
        result
    }

    /// Writes the status if it changed, and tells of a transition by an event.
    async fn write(
        &self,
        channel: &WhatsAppChannel,
        old: &WhatsAppChannelStatus,
        new: &WhatsAppChannelStatus,
    ) -> Result<(), ReconcileError> {
        if old == new {
            return Ok(());
        }
        let api: Api<WhatsAppChannel> = Api::namespaced(self.context.client.clone(), &self.namespace);
        let patch = json!({
            "apiVersion": WhatsAppChannel::api_version(&()),
            "kind": WhatsAppChannel::kind(&()),
            "status": status::owned(new),
        });
        let name = channel.name_any();
        match api
            .patch_status(&name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(patch))
            .await
        {
            Ok(_) => self.context.metrics.status_writes.inc(),
            // It was deleted meanwhile: there is nobody to tell.
            Err(kube::Error::Api(error)) if error.is_not_found() => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        if status::ready_reason(old) != status::ready_reason(new)
            && let Some(ready) = new.conditions.iter().find(|condition| condition.type_ == "Ready")
        {
            let kind = if ready.status == "True" {
                EventType::Normal
            } else {
                EventType::Warning
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
            note: Some(note.to_owned()),
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

    async fn clean_up(&self, channel: &WhatsAppChannel) -> Result<Action, CleanupError> {
        let age = channel
            .metadata
            .deletion_timestamp
            .as_ref()
            .map(|at| Duration::try_from(Timestamp::now().duration_since(at.0)).unwrap_or_default())
            .unwrap_or_default();
        let old = channel.status.clone().unwrap_or_default();
        let mut seen = self.observed(channel);
        seen.registered = old.registered_at.is_some();
        let claimed = self.context.has_rival(channel, self.id);
        let mut gathered = Gathered::default();
        let skipped = loop {
            match decide_cleanup(&seen, claimed, age) {
                CleanupStep::ReadSecret => {
                    seen.secret = Some(self.read_secret(channel, &mut gathered).await?);
                }
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
                    let fingerprint = self.fingerprint(0, &gathered);
                    let failures_now = Some((fingerprint, failures));
                    self.context.remember(
                        &self.uid,
                        Memory {
                            failures: failures_now,
                            ..self.memory.clone()
                        },
                    );
                    let wait = RETRY.wait_at_least(failures, after, fastrand::f64());
                    return Err(CleanupError::Wait(wait.min(Duration::from_secs(15))));
                }
                CleanupStep::Release { skipped } => break skipped,
            }
        };
        let name = channel.name_any();
        match &skipped {
            Some(why) => {
                tracing::warn!(namespace = self.namespace, name, channel = %self.id, why, "deleted; Kernel's webhook is left behind");
                let note = format!("Kernel's webhook was left as it is: {why}");
                self.event(channel, EventType::Warning, "CleanupSkipped", &note)
                    .await;
            }
            None => tracing::info!(namespace = self.namespace, name, channel = %self.id, "deleted"),
        }
        self.context.forget(&self.uid);
        self.context.wake_rivals(channel, self.id);
        Ok(Action::await_change())
    }
}

/// A step was asked for before what it needs was there: `decide` never does.
const NOT_GATHERED: KernelError = KernelError::InvalidResponse("the call could not be put together");

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
