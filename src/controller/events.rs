//! Events, published beside the passes: a pass does not wait for one, and one that can't be published fails nothing.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use tokio::sync::mpsc;

use super::lease::Leadership;
use crate::cluster;

/// How many events wait at most; what comes beyond is only logged. (The log has every transition anyway.)
const WAITING: usize = 1024;
/// What the API server takes as a note, in bytes, with room for what it adds.
const NOTE: usize = 1000;

/// What happened to an object.
pub(super) struct Happened {
    /// The object.
    pub about: ObjectReference,
    pub kind: EventType,
    /// One word.
    pub reason: String,
    /// For people.
    pub note: String,
}

/// Takes events.
#[derive(Clone)]
pub(super) struct Events(mpsc::Sender<Happened>);

impl Events {
    /// A place to put events, and what publishes them.
    pub fn new(client: Client, leadership: Leadership) -> (Self, Publisher) {
        let (sender, waiting) = mpsc::channel(WAITING);
        let reporter = Reporter {
            controller: "aura-whatsapp-operator".into(),
            instance: std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()),
        };
        let recorder = Recorder::new(client, reporter);
        (
            Self(sender),
            Publisher {
                waiting,
                recorder,
                leadership,
            },
        )
    }

    /// Has an event published soon.
    pub fn publish(&self, happened: Happened) {
        if let Err(error) = self.0.try_send(happened) {
            let reason = error.into_inner().reason;
            tracing::warn!(reason, "too many events wait: this one is not published");
        }
    }
}

/// Publishes events.
pub(super) struct Publisher {
    waiting: mpsc::Receiver<Happened>,
    recorder: Recorder,
    leadership: Leadership,
}

impl Publisher {
    /// Publishes what comes, one after the other.
    pub async fn run(mut self) {
        while let Some(happened) = self.waiting.recv().await {
            // Another leader tells what it does.
            let Some(until) = self.leadership.until() else {
                continue;
            };
            let note = &happened.note;
            let event = Event {
                type_: happened.kind,
                reason: happened.reason,
                note: Some(note[..note.floor_char_boundary(NOTE)].to_owned()),
                action: "Reconcile".to_owned(),
                secondary: None,
            };
            let published = self.recorder.publish(&event, &happened.about);
            let error = match tokio::time::timeout_at(until, published).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => cluster::error_class(&error),
                Err(_) => "no longer the leader",
            };
            tracing::warn!(error, reason = event.reason, "can't publish an event");
        }
    }
}
