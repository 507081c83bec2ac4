//! One attempt to deliver one message: to Aura, or to Kernel with the channel's own token. Decides what an error
//! means for the message; when to try again is decided in `delivery`.

use std::{
    collections::HashMap,
    fmt::Display,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;

use super::{
    entry,
    routes::Route,
    state::{Shared, now_ms},
};
use crate::{
    api::{ChannelId, DeliveryMode, OnUnknownSend},
    aura::{self, AuraError, Reply},
    config::Held,
    convert,
    delivery::{ContactKey, Deliver, Ended, Item},
    journal::{Direction, Entry, Outcome, Seq},
    kernel::{self, KernelError, TokenRequest},
    keys::ConversationKey,
    whatsapp::{self, Event},
};

/// Delivers messages.
pub(super) struct Deliverer {
    pub state: Shared,
    pub aura: aura::Client,
    pub kernel: kernel::Client,
    /// Replies of several parts, of which some were sent: how many.
    pub parts: Mutex<HashMap<Seq, usize>>,
}

/// How long a message waits for a channel that is not there: as long as the longest default of `delivery.maxAge`.
const ORPHANED_AFTER: Duration = Duration::from_secs(4 * 3600);

impl Deliver for Deliverer {
    fn contact_key(&self, contact: &str) -> ContactKey {
        entry::contact_key(contact, &self.state.keys.load())
    }

    async fn attempt(&self, entry: Entry, number: u32) -> Ended {
        let channel = ChannelId::from_bytes(entry.channel);
        let age = Duration::from_millis(now_ms().saturating_sub(entry.accepted_at_ms));
        let (direction, seq) = (entry.direction, entry.seq);
        let Some(route) = self.state.routes.load().get(channel).cloned() else {
            // One that lags or was deleted by mistake comes back; one that stays away must not keep the journal's
            // oldest part, and with it all that is younger, on disk for ever.
            let gone = self.state.health.synced.load(Ordering::Relaxed) && age > ORPHANED_AFTER;
            return if gone {
                Ended::Fatal {
                    reason: "ChannelDeleted",
                }
            } else {
                Ended::Blocked
            };
        };
        let held = route.environment.held(Held::Delivery, Timestamp::now()).is_some();
        if held || route.effective.delivery_mode == DeliveryMode::Hold {
            return Ended::Blocked;
        }
        // A message gets one attempt whatever its age, so that time on hold is not held against it.
        let max_age = match direction {
            Direction::ToAura => route.effective.max_age_to_aura,
            Direction::ToKernel => route.effective.max_age_to_user,
        };
        if number > 1 && age > max_age {
            return Ended::Fatal { reason: "TooOld" };
        }
        let (ended, why) = match direction {
            Direction::ToAura => self.to_aura(&route, &entry).await,
            Direction::ToKernel => self.to_kernel(&route, &entry).await,
        };
        let outcome = outcome(&ended);
        self.state
            .metrics
            .attempted(channel.to_string(), word(direction), outcome);
        if let Some(why) = why {
            let direction = word(direction);
            tracing::info!(%channel, seq = seq.0, direction, attempt = number, outcome, why, "an attempt failed");
        }
        ended
    }

    fn settled(&self, item: &Item, outcome: &Outcome) {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&item.seq);
        let (channel, contact) = (item.lane.channel, item.lane.contact);
        let direction = word(item.lane.direction);
        match outcome {
            Outcome::Delivered { .. } => {
                self.state
                    .metrics
                    .settled(channel.to_string(), direction, "delivered");
                tracing::info!(%channel, %contact, seq = item.seq.0, direction, "delivered");
            }
            Outcome::DeadLetter { reason } => {
                self.state
                    .metrics
                    .settled(channel.to_string(), direction, "dead_letter");
                tracing::warn!(%channel, %contact, seq = item.seq.0, direction, reason, "given up: dead letter");
            }
        }
    }
}

/// How an attempt ended and, where it did not deliver, why, in words without anything personal.
type Tried = (Ended, Option<String>);

fn failed(ended: Ended, why: &dyn Display) -> Tried {
    (ended, Some(why.to_string()))
}

impl Deliverer {
    async fn to_aura(&self, route: &Route, entry: &Entry) -> Tried {
        let Some((id, activity)) = self.activity(route, entry) else {
            return failed(
                Ended::Fatal { reason: "Unreadable" },
                &"the journal's entry is no webhook call",
            );
        };
        let setup = self.state.setup.load_full();
        let Some(credentials) = setup.aura.get(&route.environment_name) else {
            return failed(Ended::Blocked, &"the environment has no credential for Aura");
        };
        let settings = &route.environment.aura;
        let url = settings.messages_url.as_str();
        let posted = self
            .aura
            .post(url, &credentials.outbound, &id, activity, settings.timeout())
            .await;
        let Err(error) = posted else {
            return (Ended::Delivered { reference: None }, None);
        };
        let ended = match &error {
            AuraError::CredentialsRejected => Ended::Blocked,
            AuraError::Unavailable { retry_after, .. } => Ended::Retry { after: *retry_after },
            AuraError::Refused { .. } => Ended::Fatal {
                reason: "RefusedByAura",
            },
        };
        failed(ended, &error)
    }

    /// The activity's id and JSON.
    fn activity(&self, route: &Route, entry: &Entry) -> Option<(String, Bytes)> {
        let event = whatsapp::parse(&entry.body).ok()?.pop()?;
        let id = entry::activity_id(route.channel, &event, &self.state.keys.load());
        let conversation = self.state.keys.load().sealer().seal(&ConversationKey {
            channel: route.channel,
            contact: entry.contact.clone(),
        });
        let context = convert::Context {
            channel: route.channel,
            conversation,
            id: id.clone(),
            service_url: route.environment.aura.reply_url.as_str(),
        };
        let activity = match &event {
            Event::Message(message) => convert::message_activity(message, &context),
            Event::Status(status) => convert::status_activity(status, &context),
        };
        Some((id, Bytes::from(serde_json::to_vec(&activity.ok()?).ok()?)))
    }

    async fn to_kernel(&self, route: &Route, entry: &Entry) -> Tried {
        let Ok(reply) = serde_json::from_slice::<Reply>(&entry.body) else {
            return failed(
                Ended::Fatal { reason: "Unreadable" },
                &"the journal's entry is no reply",
            );
        };
        let credentials = match self.state.secrets.credentials(route).await {
            Ok(credentials) => credentials,
            Err(error) => return failed(Ended::Blocked, &error),
        };
        let settings = &route.environment.kernel;
        let request = TokenRequest {
            url: settings.token_url(),
            credentials,
            scopes: route.effective.messaging_scopes.clone(),
            purposes: route.effective.purposes.clone(),
            timeout: settings.timeout(),
            turnstile: None,
        };
        let url = settings.messages_url(route.effective.api_version);
        let mut sent = self.take_parts(entry.seq);
        let mut reference = None;
        let parts = convert::reply_messages(&reply, &entry.contact);
        for part in parts.iter().skip(sent) {
            let correlator = entry::send_correlator(entry.seq, sent, &self.state.keys.load());
            match self.kernel.send(&request, &url, &correlator, part).await {
                Ok(id) => {
                    sent += 1;
                    reference = id;
                }
                Err(error) => {
                    self.parts
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(entry.seq, sent);
                    return failed(self.send_failed(route, &error).await, &error);
                }
            }
        }
        (Ended::Delivered { reference }, None)
    }

    fn take_parts(&self, seq: Seq) -> usize {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&seq)
            .unwrap_or_default()
    }

    async fn send_failed(&self, route: &Route, error: &KernelError) -> Ended {
        if error.is_credentials() {
            self.state.secrets.rejected(route).await;
            return Ended::Blocked;
        }
        match error {
            KernelError::Refused { .. } => Ended::Fatal {
                reason: "RefusedByKernel",
            },
            error if error.outcome_unknown() && route.effective.on_unknown_send == OnUnknownSend::Hold => {
                Ended::Fatal {
                    reason: "UnknownOutcome",
                }
            }
            _ => Ended::Retry {
                after: error.retry_after(),
            },
        }
    }
}

/// A direction's word in logs and metrics.
pub(super) fn word(direction: Direction) -> &'static str {
    match direction {
        Direction::ToAura => "to_aura",
        Direction::ToKernel => "to_user",
    }
}

fn outcome(ended: &Ended) -> &'static str {
    match ended {
        Ended::Delivered { .. } => "delivered",
        Ended::Retry { .. } => "retry",
        Ended::Fatal { .. } => "fatal",
        Ended::Blocked => "blocked",
    }
}

/// Shared by the runner.
pub(super) type SharedDeliverer = Arc<Deliverer>;
