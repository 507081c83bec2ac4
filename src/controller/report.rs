//! How a pass reports: the status, written only where it changed, and events on transitions. Thin.

use kube::{
    Resource, ResourceExt,
    api::{Patch, PatchParams},
    runtime::events::EventType,
};
use serde_json::json;

use super::{
    events::Happened,
    memory::Memory,
    reconcile::{Pass, ReconcileError, claimed},
    status,
};
use crate::api::{Condition, WhatsAppChannel, WhatsAppChannelStatus};

/// How often a status is built anew because somebody else wrote it meanwhile.
const WRITE_TRIES: usize = 4;
/// The field manager of our part of the status.
const MANAGER: &str = "aura-whatsapp-operator/status";

impl Pass<'_> {
    /// Writes the status if it changed, tells of a transition by an event, and keeps what is to be remembered. Where
    /// somebody else has written it meanwhile, it is built anew from what they wrote.
    pub(super) async fn write(
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
                self.keep(memory);
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
                    self.keep(memory);
                    // The watch may have been quicker than the answer.
                    if let Some(version) = self.context.roster().told_version(&self.key) {
                        self.context.memories.caught_up(&self.uid, version);
                    }
                    self.tell(channel, &old, &new);
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
                        self.keep(memory);
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
    fn tell(&self, channel: &WhatsAppChannel, old: &WhatsAppChannelStatus, new: &WhatsAppChannelStatus) {
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
            namespace = &*self.key.namespace, name = &*self.key.name, channel = %self.id, ready = ready.status,
            reason = ready.reason, note = ready.message, "status changed"
        );
        self.event(channel, kind, &ready.reason, ready.message.clone());
    }

    /// Has an event about the channel published.
    pub(super) fn event(&self, channel: &WhatsAppChannel, kind: EventType, reason: &str, note: String) {
        self.context.events.publish(Happened {
            about: channel.object_ref(&()),
            kind,
            reason: reason.to_owned(),
            note,
        });
    }
}

fn is(error: &kube::Error, kind: impl Fn(&kube::core::Status) -> bool) -> bool {
    matches!(error, kube::Error::Api(status) if kind(status))
}
