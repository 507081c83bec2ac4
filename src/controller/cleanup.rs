//! What a deletion has to do, and that it ends (Law 9). Thin: `decide_cleanup` says what.

use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::events::EventType;
use tokio::time::Instant;

use super::{
    decide::{Age, Before, CleanupStep, Stands, cleanup_failed, decide_cleanup},
    gate::Begun,
    gather::Gathered,
    memory::Memory,
    passage::{About, Passage},
    reconcile::{Pass, ReconcileError},
    schedule, status,
    worker::Again,
};
use crate::{
    api::{WhatsAppChannel, WhatsAppChannelStatus, conditions::Reason},
    cluster::SecretProblem,
    kernel::KernelError,
};

/// How far a deletion is.
pub(super) enum Cleanup {
    /// There is more to do, then.
    Wait(Again),
    /// The resource may go.
    Done,
}

impl Pass<'_> {
    /// Does what a deletion has to do.
    pub(super) async fn clean_up(&self, channel: &WhatsAppChannel) -> Result<Cleanup, ReconcileError> {
        if self.memory.cleaned_up {
            return Ok(Cleanup::Done);
        }
        let since = channel.metadata.deletion_timestamp.as_ref();
        let all = since.map_or(Duration::ZERO, |at| {
            Duration::try_from(Timestamp::now().duration_since(at.0)).unwrap_or_default()
        });
        let failing = self.memory.cleanup_failing.map_or(Duration::ZERO, |at| {
            Instant::now().into_std().saturating_duration_since(at)
        });
        let age = Age { all, failing };
        let old = self.context.memories.status(&self.uid);
        let mut seen = self.observed(channel);
        if old.registered_at.is_some() {
            seen.stands = Stands::Wholly;
        }
        let generation = channel.metadata.generation.unwrap_or_default();
        seen.before = Before::of(&old, generation, false, false);
        // Asked again before each step, and at the turn of the last: another may come meanwhile, and hold what this one
        // held.
        let unclaimed = self.unless_claimed_by_another();
        let mut gathered = Gathered::default();
        let mut begun: Option<Begun> = None;
        let skipped = loop {
            seen.leading = self.context.leadership.is_leader();
            match decide_cleanup(&seen, !unclaimed(), age) {
                CleanupStep::StandBy => return Err(ReconcileError::StoodDown),
                CleanupStep::ReadSecret => {
                    let Some(gate) = self.setup.gate(&self.environment_name) else {
                        break Some("its environment is not in the configuration".to_owned());
                    };
                    begun = gate.begin(&self.key);
                    if begun.is_none() {
                        return Ok(Cleanup::Wait(Again::OnChange));
                    }
                    gathered.passage = Some(Passage::new(
                        self.context,
                        gate,
                        &self.environment_name,
                        &self.key,
                        About {
                            changed: true,
                            readable: seen.before.readable,
                            may_set: Some(self.unless_claimed_by_another()),
                        },
                    ));
                    seen.secret = Some(match self.read_secret(channel, &mut gathered).await {
                        // It went first, or our role did, as in a namespace that is deleted: what it held is still
                        // good for this.
                        Ok(Err(SecretProblem::NotFound(_))) if self.memory.credentials.is_some() => {
                            gathered.credentials = self.memory.credentials.as_deref().cloned();
                            Ok(())
                        }
                        Err(error) if error.is_forbidden() && self.memory.credentials.is_some() => {
                            gathered.credentials = self.memory.credentials.as_deref().cloned();
                            Ok(())
                        }
                        Ok(secret) => secret,
                        Err(error) if age.has_time() => {
                            // An API server that is away would not take the finalizer either: that costs no patience.
                            if error.is_forbidden() {
                                self.cleanup_fails();
                            }
                            return Err(error);
                        }
                        Err(error) => break Some(error.to_string()),
                    });
                }
                CleanupStep::FetchToken => seen.token = Some(self.fetch_token(&gathered).await),
                CleanupStep::ReadWebhook => seen.held = Some(self.read_webhook(&gathered).await),
                CleanupStep::ClearWebhook => {
                    seen.set = Some(self.clear_webhook(&gathered).await);
                    // One that came at just this moment may have found its webhook in order, and it is gone now.
                    self.context.look_at_rivals(&self.key, self.id);
                }
                CleanupStep::Wait { after, why } => {
                    let failures = self
                        .memory
                        .failures
                        .map_or(1, |(_, failures)| failures.saturating_add(1));
                    let memory = Memory {
                        failures: Some((0, failures)),
                        ..self.memory.clone()
                    };
                    self.keep(memory);
                    self.cleanup_fails();
                    self.tell_that_cleanup_fails(channel, &why).await?;
                    self.context.metrics.reconciled(Reason::CleanupFailed.as_str());
                    // What Kernel asks for does not hold up a namespace for longer than a deletion may take.
                    let wait = schedule::retry(Duration::from_secs(15))
                        .wait_at_least(failures, after, fastrand::f64())
                        .min(age.left().max(Duration::from_secs(1)));
                    return Ok(Cleanup::Wait(Again::After(wait)));
                }
                CleanupStep::Release { skipped } => break skipped,
            }
        };
        drop(begun);
        if let Some(why) = skipped {
            tracing::warn!(
                namespace = &*self.key.namespace, name = &*self.key.name, channel = %self.id, why,
                "deleted; Kernel's webhook is left behind"
            );
            self.context.metrics.cleanups_skipped.inc();
            let note = format!("Kernel's webhook was left as it is: {why}");
            self.event(channel, EventType::Warning, Reason::CleanupSkipped.as_str(), note);
        }
        // Where the finalizer can't be removed, this is neither done nor counted again.
        self.remember(|memory| memory.cleaned_up = true);
        Ok(Cleanup::Done)
    }

    fn unless_claimed_by_another(&self) -> Box<dyn Fn() -> bool + Send + Sync> {
        let (context, key, id) = (self.context.clone(), self.key.clone(), self.id);
        Box::new(move || !(context.has_rival(&key, id) || context.shares_client(&key)))
    }

    /// Says in the status what the deletion waits for.
    async fn tell_that_cleanup_fails(
        &self,
        channel: &WhatsAppChannel,
        why: &KernelError,
    ) -> Result<(), ReconcileError> {
        let (old, version) = self.status_before(channel);
        let verdict = cleanup_failed(why);
        let (nothing, key_id) = (Gathered::default(), self.context.keys.load().id().to_owned());
        let facts = self.facts(channel, &nothing, &key_id, None);
        let build = |old: &WhatsAppChannelStatus| status::build(old, &verdict, &facts);
        let memory = self.context.memories.of(&self.uid);
        self.write(channel, old, version, &build, memory).await
    }

    /// The deletion's patience begins to run.
    fn cleanup_fails(&self) {
        self.remember(|memory| {
            memory
                .cleanup_failing
                .get_or_insert_with(|| Instant::now().into_std());
        });
    }

    fn remember(&self, change: impl FnOnce(&mut Memory)) {
        let mut memory = self.context.memories.of(&self.uid);
        change(&mut memory);
        self.keep(memory);
    }
}
