//! Events, published beside the passes: a pass does not wait for one, and one that can't be published fails nothing.

use k8s_openapi::api::core::v1::ObjectReference;
use kube::{
    Client,
    runtime::events::{Event, EventType, Recorder, Reporter},
};
use prometheus_client::metrics::counter::Counter;
use tokio::{sync::mpsc, time::Instant};

use super::{lease::Leadership, limit::Pace};
use crate::cluster;

/// How many events wait at most; what comes beyond is counted and not published. (The log has every transition, and the
/// status says how a channel is.) Half of the room is for what is wrong.
const WAITING: usize = 1024;
/// Events published a second, after a burst of two seconds' worth: ten thousand channels that become Ready at once are no
/// reason to write ten thousand events, each of which costs the API server as much as the status.
const PER_SECOND: u32 = 20;
/// After so many events the library's recorder is made anew. It keeps each for six minutes, to count one that comes again,
/// and looks through all of them for each.
const REMEMBERED: u32 = 128;
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
pub(super) struct Events {
    queue: mpsc::Sender<Happened>,
    dropped: Counter,
}

impl Events {
    /// A place to put events, and what publishes them.
    pub fn new(client: Client, leadership: Leadership, dropped: Counter) -> (Self, Publisher) {
        let (sender, waiting) = mpsc::channel(WAITING);
        let reporter = Reporter {
            controller: "aura-whatsapp-operator".into(),
            instance: std::env::var("HOSTNAME").ok().filter(|name| !name.is_empty()),
        };
        (
            Self {
                queue: sender,
                dropped,
            },
            Publisher {
                waiting,
                client,
                reporter,
                leadership,
            },
        )
    }

    /// Has an event published soon.
    pub fn publish(&self, happened: Happened) {
        let crowded = self.queue.capacity() < WAITING / 2;
        let good_news = matches!(happened.kind, EventType::Normal);
        if crowded && good_news || self.queue.try_send(happened).is_err() {
            self.dropped.inc();
        }
    }
}

/// Publishes events.
pub(super) struct Publisher {
    waiting: mpsc::Receiver<Happened>,
    client: Client,
    reporter: Reporter,
    leadership: Leadership,
}

impl Publisher {
    fn recorder(&self) -> Recorder {
        Recorder::new(self.client.clone(), self.reporter.clone())
    }

    /// Publishes what comes, one after the other.
    pub async fn run(mut self) {
        let mut pace = Pace::new(PER_SECOND);
        let (mut recorder, mut published) = (self.recorder(), 0);
        while let Some(happened) = self.waiting.recv().await {
            tokio::time::sleep_until(pace.take(Instant::now().into_std()).into()).await;
            published += 1;
            if published % REMEMBERED == 0 {
                recorder = self.recorder();
            }
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
            let published = recorder.publish(&event, &happened.about);
            let error = match tokio::time::timeout_at(until, published).await {
                Ok(Ok(())) => continue,
                Ok(Err(error)) => cluster::error_class(&error),
                Err(_) => "no longer the leader",
            };
            tracing::warn!(error, reason = event.reason, "can't publish an event");
        }
    }
}
