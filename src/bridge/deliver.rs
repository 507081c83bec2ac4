//! One attempt to deliver one message: to Aura, or to Kernel with the channel's own token. Decides what an error
//! means for the message; when to try again is decided in `delivery`.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, PoisonError},
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
    api::{ChannelId, DeliveryMode},
    aura::{self, Activity, AuraError},
    config::Held,
    convert,
    delivery::{Deliver, Ended, Item},
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
    /// Replies of several parts, of which some were sent: their ids so far.
    pub parts: Mutex<HashMap<Seq, Vec<String>>>,
}

impl Deliver for Deliverer {
    async fn attempt(&self, entry: Entry, number: u32) -> Ended {
        let channel = ChannelId::from_bytes(entry.channel);
        let Some(route) = self.state.routes.load().get(channel).cloned() else {
            return Ended::Blocked;
        };
        let held = route.environment.held(Held::Delivery, Timestamp::now()).is_some();
        if held || route.effective.delivery_mode == DeliveryMode::Hold {
            return Ended::Blocked;
        }
        // A message gets one attempt whatever its age, so that time on hold is not held against it.
        let max_age = match entry.direction {
            Direction::ToAura => route.effective.max_age_to_aura,
            Direction::ToKernel => route.effective.max_age_to_user,
        };
        if number > 1 && now_ms().saturating_sub(entry.accepted_at_ms) > millis(max_age) {
            return Ended::Fatal { reason: "TooOld" };
        }
        let (direction, seq) = (entry.direction, entry.seq);
        let ended = match direction {
            Direction::ToAura => self.to_aura(&route, &entry).await,
            Direction::ToKernel => self.to_kernel(&route, &entry).await,
        };
        self.state
            .metrics
            .attempted(channel.to_string(), word(direction), outcome(&ended));
        if !matches!(ended, Ended::Delivered { .. }) {
            tracing::info!(
                %channel, seq = seq.0, direction = word(direction), attempt = number, outcome = outcome(&ended),
                "not delivered yet"
            );
        }
        ended
    }

    fn settled(&self, item: &Item, outcome: &Outcome) {
        self.parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&item.seq);
        let channel = item.lane.conversation.channel;
        let direction = word(item.lane.direction);
        let contact = self.state.keys.digest(&item.lane.conversation.contact);
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

impl Deliverer {
    async fn to_aura(&self, route: &Route, entry: &Entry) -> Ended {
        let Some((id, activity)) = self.activity(route, entry) else {
            return Ended::Fatal { reason: "Unreadable" };
        };
        let Some(credentials) = self.state.aura.get(&route.environment_name) else {
            return Ended::Blocked;
        };
        let settings = &route.environment.aura;
        let url = settings.messages_url.as_str();
        match self
            .aura
            .post(url, &credentials.outbound, &id, activity, settings.timeout())
            .await
        {
            Ok(()) => Ended::Delivered { reference: None },
            Err(AuraError::CredentialsRejected { status }) => {
                tracing::error!(
                    environment = route.environment_name,
                    status,
                    "Aura rejects the bridge's credential: check the environment's aura.outboundAuth"
                );
                Ended::Blocked
            }
            Err(AuraError::Unavailable { retry_after, .. }) => Ended::Retry { after: retry_after },
            Err(AuraError::Refused { .. }) => Ended::Fatal {
                reason: "RefusedByAura",
            },
        }
    }

    /// The activity's id and JSON.
    fn activity(&self, route: &Route, entry: &Entry) -> Option<(String, Bytes)> {
        let event = whatsapp::parse(&entry.body).ok()?.pop()?;
        let id = entry::activity_id(route.channel, &event, &self.state.keys);
        let conversation = self.state.keys.sealer().seal(&ConversationKey {
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

    async fn to_kernel(&self, route: &Route, entry: &Entry) -> Ended {
        let Ok(reply) = serde_json::from_slice::<Activity>(&entry.body) else {
            return Ended::Fatal { reason: "Unreadable" };
        };
        let credentials = match self.state.secrets.credentials(route).await {
            Ok(credentials) => credentials,
            Err(error) => {
                tracing::warn!(channel = %route.channel, %error, "can't send: no credentials");
                return Ended::Blocked;
            }
        };
        let settings = &route.environment.kernel;
        let request = TokenRequest {
            url: settings.token_url(),
            credentials,
            scopes: route.effective.messaging_scopes.clone(),
            purposes: route.effective.purposes.clone(),
            timeout: route.kernel_timeout(),
        };
        let url = settings.messages_url(route.effective.api_version);
        let mut ids = self
            .parts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&entry.seq)
            .unwrap_or_default();
        for part in convert::reply_messages(&reply, &entry.contact)
            .iter()
            .skip(ids.len())
        {
            match self.kernel.send(&request, &url, part).await {
                Ok(id) => ids.push(id),
                Err(error) => {
                    self.parts
                        .lock()
                        .unwrap_or_else(PoisonError::into_inner)
                        .insert(entry.seq, ids);
                    return self.send_failed(route, &error).await;
                }
            }
        }
        Ended::Delivered { reference: ids.pop() }
    }

    async fn send_failed(&self, route: &Route, error: &KernelError) -> Ended {
        if error.is_credentials() {
            tracing::warn!(channel = %route.channel, %error, "can't send: reading the Secret again");
            self.state.secrets.rejected(route).await;
            return Ended::Blocked;
        }
        match error {
            KernelError::Refused { .. } => Ended::Fatal {
                reason: "RefusedByKernel",
            },
            _ => Ended::Retry {
                after: error.retry_after(),
            },
        }
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
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
