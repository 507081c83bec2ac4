//! Carries out what `decide` says for one channel: reads the Secret, calls Kernel, writes the status. Thin.

use std::{sync::Arc, time::Duration};

use jiff::Timestamp;
use kube::{Api, ResourceExt};
use tokio::time::Instant;

use super::{
    cleanup::Cleanup,
    context::{Context, Setup},
    decide::{Announced, Before, EnvironmentView, Observed, Stands, Step, decide},
    finalizer,
    gate::Begun,
    gather::Gathered,
    memory::{Fingerprint, Memory},
    object_key::ObjectKey,
    passage::{About, Passage},
    recall::SETTLE,
    schedule::{self, Outcome},
    status::{self, Facts},
    webhook::{Desired, Held},
    worker::Again,
};
use crate::{
    api::{
        ChannelDefaults, ChannelId, Claim, Effective, OnDelete, REQUESTED_AT, WebhookMode, WhatsAppChannel,
        WhatsAppChannelStatus, conditions::Reason,
    },
    cluster,
    config::Environment,
};

/// A reconciliation could not be carried out. (That a channel is not ready is no error: it stands in its status.)
#[derive(Debug, thiserror::Error)]
pub(super) enum ReconcileError {
    /// The API server did not do its part.
    #[error("the API server: {}", cluster::error_class(.0))]
    Api(#[from] Box<kube::Error>),
    /// The finalizer may not be removed: in a namespace that is deleted, our role may have gone first.
    #[error(
        "our finalizer may not be removed (forbidden): bind the controller's role in the namespace again, or set \
         rbac.finalizersClusterWide in the chart, or remove it by hand: {0}"
    )]
    FinalizerForbidden(String),
    /// The leader's claim ended: another process may lead by now.
    #[error("no longer the leader")]
    StoodDown,
}

impl ReconcileError {
    /// Whether the API server does not allow it.
    pub fn is_forbidden(&self) -> bool {
        matches!(self, Self::Api(error) if matches!(&**error, kube::Error::Api(status) if status.is_forbidden()))
    }
}

impl ReconcileError {
    /// Whether the API server understood what was asked and does not do it, so that asking again soon is of no use.
    fn is_refusal(&self) -> bool {
        match self {
            Self::Api(error) => {
                matches!(&**error, kube::Error::Api(status) if matches!(status.code, 400 | 403..=405 | 422))
            }
            Self::FinalizerForbidden(_) => true,
            Self::StoodDown => false,
        }
    }
}

impl From<kube::Error> for ReconcileError {
    fn from(error: kube::Error) -> Self {
        Self::Api(Box::new(error))
    }
}

/// Makes a write to the API server under the leader's claim, and no longer than that lasts.
pub(super) async fn claimed<T>(
    context: &Context,
    write: impl Future<Output = Result<T, kube::Error>>,
) -> Result<T, ReconcileError> {
    if !context.leadership.is_leader() {
        return Err(ReconcileError::StoodDown);
    }
    // The claim is extended while the write is under way: not its end as it was at the start, but that it is lost, ends it.
    let mut leadership = context.leadership.clone();
    tokio::select! {
        biased;
        () = leadership.lost() => Err(ReconcileError::StoodDown),
        result = write => Ok(result?),
    }
}

/// How long a channel waits that was left to another leader: whoever begins to lead looks at every channel, so that this
/// is for what was missed alone.
fn standing_by() -> Duration {
    Duration::from_secs(60).mul_f64(1.0 + fastrand::f64())
}

/// Reconciles one channel.
pub(super) async fn reconcile(
    key: ObjectKey,
    channel: &WhatsAppChannel,
    context: &Arc<Context>,
) -> Result<Again, ReconcileError> {
    let Some(uid) = channel.uid() else {
        return Ok(Again::OnChange);
    };
    // What the API server's rules let in is a UUID; anything else waits for a change.
    let Ok(id) = channel.spec.channel_id.parse::<ChannelId>() else {
        return Ok(Again::OnChange);
    };
    // Whoever begins to lead has every channel looked at. A claim may also lapse and be renewed before anybody has noticed.
    if !context.leadership.is_leader() {
        return Ok(Again::After(standing_by()));
    }
    // Who holds a channel can be told only when every scope was listed.
    context.wait_listed().await;
    if context.stopping.is_cancelled() {
        return Err(ReconcileError::StoodDown);
    }
    let pass = Pass::new(context, channel, id, key, uid);
    let result = pass.run(channel).await;
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
    pub uid: String,
    pub environment_name: String,
    view: EnvironmentView,
    pub effective: Effective,
    pub memory: Memory,
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
        let view = EnvironmentView::of(environment, &effective, &key.namespace, Timestamp::now());
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

    pub(super) fn api(&self) -> Api<WhatsAppChannel> {
        Api::namespaced(self.context.client.clone(), &self.key.namespace)
    }

    /// Keeps what is to be remembered of a channel that is still there.
    pub(super) fn keep(&self, memory: Memory) {
        let is_there = {
            let roster = self.context.roster();
            roster.get(&self.key).is_some_and(|entry| entry.uid() == self.uid)
        };
        if is_there {
            self.context.memories.keep(&self.uid, memory);
        }
    }

    async fn run(&self, channel: &WhatsAppChannel) -> Result<Again, ReconcileError> {
        let api = self.api();
        if channel.metadata.deletion_timestamp.is_none() {
            match (self.clears(), finalizer::is_held(channel)) {
                // Before the first registration: what is registered must be cleared.
                (true, false) => {
                    claimed(self.context, finalizer::add(&api, channel)).await?;
                    return Ok(Again::OnChange);
                }
                // Where the environment is gone, what it said of deletions is not known.
                (false, true) if self.environment().is_some() => self.release(channel).await?,
                _ => {}
            }
            return self.apply(channel).await;
        }
        if !finalizer::is_held(channel) {
            return Ok(Again::OnChange);
        }
        match self.clean_up(channel).await? {
            Cleanup::Wait(again) => Ok(again),
            Cleanup::Done => {
                self.release(channel).await?;
                self.context.metrics.reconciled("Deleted");
                // It is gone by then, unless somebody else changed its finalizers at the same moment.
                Ok(Again::After(Duration::from_secs(15)))
            }
        }
    }

    /// Removes the finalizer.
    async fn release(&self, channel: &WhatsAppChannel) -> Result<(), ReconcileError> {
        match claimed(self.context, finalizer::remove(&self.api(), channel)).await {
            Err(error) if error.is_forbidden() => {
                Err(ReconcileError::FinalizerForbidden(finalizer::way_out(channel)))
            }
            result => result,
        }
    }

    /// Whether the channel's deletion clears its webhook.
    pub(super) fn clears(&self) -> bool {
        self.effective.on_delete == OnDelete::Clear && self.effective.mode == WebhookMode::Manage
    }

    /// The older resource that uses the same Kernel client, as the reader of this one's status may know it.
    fn client_holder(&self) -> Option<String> {
        self.context
            .client_holder(&self.key)
            .map(|holder| self.told(&holder))
    }

    /// Another resource as the reader of this one's status may know it.
    fn told(&self, other: &Claim) -> String {
        if *other.namespace == *self.key.namespace {
            format!("{}/{}", other.namespace, other.name)
        } else {
            "in another namespace".to_owned()
        }
    }

    pub(super) fn observed<'b>(&'b self, channel: &'b WhatsAppChannel) -> Observed<'b> {
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
            client_holder: self.client_holder(),
            fresh: false,
            stands: Stands::Nothing,
            told: false,
            misses: self.memory.misses,
            parked: false,
            before: Before::default(),
            announced: Announced::Known,
            token: None,
            held: None,
            set: None,
        }
    }

    async fn apply(&self, channel: &WhatsAppChannel) -> Result<Again, ReconcileError> {
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
            self.context.metrics.reconciled(Reason::Suspended.as_str());
            return Ok(Again::OnChange);
        }
        let asked = requested_at.is_some() && requested_at != old.last_handled_reconcile_at.as_deref();
        let mut seen = self.observed(channel);
        seen.before = Before::of(&old, generation, asked, self.says_legacy(&old));
        if seen.holder.is_none()
            && self
                .environment()
                .is_some_and(|own| own.allows(&self.key.namespace))
        {
            // A younger one may have been registered before this one was known of.
            self.context.wake_rivals(&self.key, self.id);
        }
        let mut fingerprint = self.fingerprint(generation, &gathered.versions, &key_id);
        self.judge(&mut seen, channel, &old, &gathered, &key_id, asked, fingerprint);
        let mut begun: Option<Begun> = None;
        let unreported = self.memory.unreported.as_deref();
        let looked = self.memory.looks_made == self.memory.looks_wanted;
        let unreported = unreported.filter(|(of, _)| *of == fingerprint && !asked && !seen.fresh && looked);
        let verdict = loop {
            seen.leading = self.context.leadership.is_leader();
            seen.parked = gathered
                .passage
                .as_ref()
                .is_some_and(|passage| passage.is_parked());
            if let Some((_, verdict)) = unreported.filter(|_| seen.leading) {
                break verdict.clone();
            }
            match decide(&seen) {
                Step::StandBy => return Err(ReconcileError::StoodDown),
                Step::ReadSecret => {
                    if let Some(left) = self.asked_to_wait(fingerprint).filter(|_| !asked) {
                        return Ok(Again::After(left));
                    }
                    let Some(gate) = self.setup.gate(&self.environment_name) else {
                        return Ok(Again::OnChange);
                    };
                    begun = gate.begin(&self.key);
                    if begun.is_none() {
                        // The gate wakes it when there is a place.
                        return Ok(Again::OnChange);
                    }
                    let secret = self.read_secret(channel, &mut gathered).await?;
                    fingerprint = self.fingerprint(generation, &gathered.versions, &key_id);
                    self.judge(&mut seen, channel, &old, &gathered, &key_id, asked, fingerprint);
                    let failed_before = self.memory.failures.is_some_and(|(of, _)| of == fingerprint);
                    let changed = asked || !(seen.registered() || failed_before);
                    gathered.passage = Some(Passage::new(
                        self.context,
                        gate,
                        &self.environment_name,
                        &self.key,
                        About {
                            changed,
                            readable: seen.before.readable,
                            may_set: None,
                        },
                    ));
                    if let Some(credentials) = &gathered.credentials {
                        self.context.uses_client(&self.key, self.client_hash(credentials));
                        let known = self.context.wait_clients_known().await;
                        if self.context.stopping.is_cancelled() {
                            return Err(ReconcileError::StoodDown);
                        }
                        if !known && told_shared(&old) {
                            // Whether it still is can't be told yet: it goes on yielding.
                            return Ok(Again::After(CLIENTS_AGAIN));
                        }
                        seen.client_holder = self.client_holder();
                    }
                    seen.secret = Some(secret);
                }
                Step::FetchToken => seen.token = Some(self.fetch_token(&gathered).await),
                Step::ReadWebhook => seen.held = Some(self.read_webhook(&gathered).await),
                Step::Announce => {
                    let facts = self.facts(channel, &gathered, &key_id, requested_at);
                    let build = |old: &WhatsAppChannelStatus| status::announced(old, &facts);
                    let memory = Memory {
                        announced: Some((fingerprint, Instant::now().into_std())),
                        ..self.memory.clone()
                    };
                    drop(begun);
                    self.write(channel, old.clone(), version, &build, memory).await?;
                    return Ok(Again::After(SETTLE));
                }
                Step::ComeBack(left) => return Ok(Again::After(left)),
                Step::SetWebhook => seen.set = Some(self.set_webhook(&gathered).await),
                Step::Done(verdict) => break verdict,
            }
        };
        if !self.context.leadership.is_leader() {
            return Err(ReconcileError::StoodDown);
        }
        drop(begun);
        if verdict.reason.is_of_credentials() && self.secret_has_changed(channel, &gathered) {
            // What was found out is about a Secret that is no longer there: nobody is told that it is no good.
            return Ok(Again::After(Duration::from_secs(1)));
        }
        // A look that was asked for and could not be made is made when calls get through again.
        let handled = requested_at.filter(|_| !seen.parked);
        let facts = self.facts(channel, &gathered, &key_id, handled);
        let blind = match &seen.held {
            Some(Ok(held)) => *held == Held::Unsupported,
            // It was not read in this pass.
            _ => status::is_blind(&old),
        };
        let pass = Outcome {
            verdict: &verdict,
            fingerprint,
            fresh: seen.fresh,
            registered: seen.registered(),
            blind,
            parked: seen.parked,
            heard: matches!(seen.held, Some(Ok(_))),
        };
        let (mut memory, wait) = self.remembered(&pass);
        if !seen.parked {
            memory.looks_made = self.memory.looks_wanted;
        }
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
            self.keep(memory);
            return Err(error);
        }
        written?;
        self.context.metrics.reconciled(verdict.reason.as_str());
        Ok(Again::After(wait))
    }

    pub(super) fn facts<'b>(
        &'b self,
        channel: &'b WhatsAppChannel,
        gathered: &'b Gathered,
        key_id: &'b str,
        requested_at: Option<&'b str>,
    ) -> Facts<'b> {
        Facts {
            generation: channel.metadata.generation.unwrap_or_default(),
            now: Timestamp::now(),
            secret_version: gathered.versions.client.as_deref(),
            spaced: gathered.spaced.as_deref(),
            webhook_url: self
                .desired(gathered.issued.as_ref())
                .as_ref()
                .map(Desired::masked),
            key: self.key_marks(channel, &gathered.versions, key_id),
            requested_at,
            grace: status::KEY_GRACE,
        }
    }
}

/// What happens after an error: the same object is tried again, soon but not at once.
pub(super) fn on_error(key: &ObjectKey, uid: &str, error: &ReconcileError, context: &Context) -> Again {
    if matches!(error, ReconcileError::StoodDown) {
        tracing::debug!(
            namespace = &*key.namespace,
            name = &*key.name,
            "left to the leader"
        );
        return Again::After(standing_by());
    }
    if !context.knows(key) {
        // It is gone.
        return Again::OnChange;
    }
    let mut memory = context.memories.of(uid);
    let failures = match memory.failures {
        Some((API_FAILURES, failures)) => failures + 1,
        _ => 1,
    };
    memory.failures = Some((API_FAILURES, failures));
    context.memories.keep(uid, memory);
    tracing::warn!(namespace = &*key.namespace, name = &*key.name, %error, failures, "can't reconcile; trying again");
    context.metrics.reconciled("Error");
    let cap = if error.is_refusal() {
        REFUSED_CAP
    } else {
        UNREACHED_CAP
    };
    Again::After(schedule::retry(cap).wait(failures, fastrand::f64()))
}

/// How soon a channel that yields because of its Kernel client looks whether it still has to, while the others' clients
/// are not known.
const CLIENTS_AGAIN: Duration = Duration::from_secs(5);

/// Whether a status says that the channel yields to one with the same Kernel client.
fn told_shared(status: &WhatsAppChannelStatus) -> bool {
    status::ready(status).is_some_and(|ready| ready.reason == Reason::ClientShared.as_str())
}

/// The longest wait after the API server refused what was asked: a role or a rule must change first.
const REFUSED_CAP: Duration = Duration::from_secs(300);
/// The longest wait after it could not be reached, or did not do its part.
const UNREACHED_CAP: Duration = Duration::from_secs(30);

/// What failures of the API server are counted under: no fingerprint, as none was found out.
const API_FAILURES: Fingerprint = 0;
