//! What a deletion has to do, and that it ends (Law 9). Thin: `decide_cleanup` says what.

use std::time::Duration;

use jiff::Timestamp;
use kube::runtime::events::EventType;
use tokio::time::Instant;

use super::{
    decide::{Age, CleanupStep, decide_cleanup},
    gate::Begun,
    gather::Gathered,
    memory::Memory,
    passage::Passage,
    recall::retry,
    reconcile::{Pass, ReconcileError},
    worker::Again,
};
use crate::{
    api::{WhatsAppChannel, conditions::Reason},
    cluster::SecretProblem,
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
        let failing = self
            .memory
            .cleanup_failing
            .map_or(Duration::ZERO, |at| at.elapsed());
        let age = Age { all, failing };
        let old = self.context.memories.status(&self.uid);
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
                        return Ok(Cleanup::Wait(Again::OnChange));
                    }
                    gathered.passage = Some(Passage::new(
                        self.context,
                        gate,
                        &self.environment_name,
                        &self.key,
                        true,
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
                CleanupStep::ClearWebhook => seen.set = Some(self.clear_webhook(&gathered).await),
                CleanupStep::Wait { after } => {
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
                    let wait = retry(Duration::from_secs(15)).wait_at_least(failures, after, fastrand::f64());
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

    /// The deletion's patience begins to run.
    fn cleanup_fails(&self) {
        self.remember(|memory| {
            memory.cleanup_failing.get_or_insert_with(Instant::now);
        });
    }

    fn remember(&self, change: impl FnOnce(&mut Memory)) {
        let mut memory = self.context.memories.of(&self.uid);
        change(&mut memory);
        self.context.memories.keep(&self.uid, memory);
    }
}
