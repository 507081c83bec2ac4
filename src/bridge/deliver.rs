//! One attempt to deliver one message: to Aura, or to Kernel with the channel's own token. Decides what an error
//! means for the message; when to try again is decided in `delivery`.

use std::{
    fmt::Display,
    sync::{Arc, atomic::Ordering},
};

use bytes::Bytes;

use super::{
    entry,
    routes::Route,
    state::{Shared, now_ms},
    trail::{IdDigest, What},
};
use crate::{
    api::ChannelId,
    aura::{self, AuraError, Reply},
    convert,
    delivery::{Attempt, Deliver, Ended, Event, Failure, Item, Stats, reason},
    journal::{Direction, Entry, Note, Outcome, Seq},
    kernel::{self, KernelError, TokenRequest},
    keys::ConversationKey,
    whatsapp,
};

/// Delivers messages.
pub(super) struct Deliverer {
    pub state: Shared,
    pub aura: aura::Client,
    pub kernel: kernel::Client,
}

impl Deliver for Deliverer {
    async fn attempt(&self, entry: Entry, attempt: Attempt) -> Ended {
        let channel = ChannelId::from_bytes(entry.address.channel);
        let (direction, seq) = (entry.address.direction, entry.seq);
        // A message stays with the resource that it was accepted for: of another one that has the channel by now it is
        // none of the business.
        let its = |route: &Arc<Route>| route.tag.bytes() == entry.address.tag;
        let current = self.state.routes.load().get(channel).cloned();
        let taken_over = current.as_ref().is_some_and(|route| !its(route));
        let leaving = || self.state.leaving.get(channel).filter(its);
        let Some(route) = current.filter(its).or_else(leaving) else {
            return if taken_over {
                Ended::Fatal {
                    reason: reason::CHANNEL_DELETED,
                }
            } else {
                Ended::Blocked
            };
        };
        let (ended, why) = match direction {
            Direction::ToAura => self.to_aura(&route, &entry).await,
            Direction::ToKernel => self.to_kernel(&route, &entry).await,
        };
        let outcome = outcome(&ended);
        self.state
            .trail()
            .happened(seq, What::attempt(outcome), attempt.number, now_ms());
        self.state
            .metrics
            .attempted(channel.to_string(), word(direction), outcome);
        if let Some(why) = why {
            let direction = word(direction);
            let (number, uncertain) = (attempt.number, attempt.uncertain);
            tracing::info!(
                %channel, seq = seq.0, direction, attempt = number, outcome, why, uncertain, "an attempt failed"
            );
        } else if attempt.uncertain {
            let direction = word(direction);
            tracing::warn!(
                %channel, seq = seq.0, direction,
                "delivered after an attempt that may have arrived as well: it may be a duplicate"
            );
        }
        ended
    }

    fn settled(&self, item: &Item, outcome: &Outcome) {
        let (channel, contact) = (item.lane.channel, item.lane.contact);
        let direction = word(item.lane.direction);
        let what = match outcome {
            Outcome::Delivered { .. } => What::Settled,
            Outcome::DeadLetter { .. } => What::DeadLetter,
            Outcome::Dropped { .. } => What::Dropped,
        };
        self.state.trail().happened(item.seq, what, 0, now_ms());
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
            Outcome::Dropped { reason } => {
                self.state
                    .metrics
                    .settled(channel.to_string(), direction, "dropped");
                tracing::info!(%channel, %contact, seq = item.seq.0, direction, reason, "dropped");
            }
        }
    }

    fn told(&self, event: &Event) {
        match event {
            Event::Overtook(lane) => {
                self.state.metrics.overtook(lane.channel.to_string());
                tracing::info!(
                    channel = %lane.channel, contact = %lane.contact,
                    "a reply left before an earlier message was answered: unansweredAfter has passed"
                );
            }
            Event::Parked(lane) => tracing::warn!(
                channel = %lane.channel, contact = %lane.contact, direction = word(lane.direction),
                "the conversation is held"
            ),
            Event::Unparked(lane) => tracing::info!(
                channel = %lane.channel, contact = %lane.contact, direction = word(lane.direction),
                "the conversation goes on"
            ),
            Event::Circuit {
                environment,
                direction,
                open: true,
            } => tracing::warn!(
                %environment, direction = word(*direction),
                "nothing gets through: one message at a time is tried"
            ),
            Event::Circuit {
                environment,
                direction,
                open: false,
            } => tracing::info!(%environment, direction = word(*direction), "messages get through again"),
        }
    }

    fn shows(&self, stats: Stats) {
        self.state
            .health
            .withheld
            .store(stats.withheld, Ordering::Relaxed);
        self.state.metrics.lanes_show(stats);
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
        crate::failpoint::at!(BeforeAura);
        let posted = self
            .aura
            .post(url, &credentials.outbound, &id, activity, settings.timeout())
            .await;
        let Err(error) = posted else {
            crate::failpoint::at!(AfterAura);
            return (Ended::Delivered { reference: None }, None);
        };
        failed(aura_failed(&error), &error)
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
            whatsapp::Event::Message(message) => convert::message_activity(message, &context),
            whatsapp::Event::Status(status) => convert::status_activity(status, &context),
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
        // Without a token nothing is written, so that its failure leaves no doubt about the message.
        if let Err(error) = self.kernel.token(&request).await {
            return failed(self.send_failed(route, &error, false).await, &error);
        }
        let url = settings.messages_url(route.effective.api_version);
        // What a run before this one sent is not sent again.
        let mut sent = usize::from(entry.note.parts);
        let mut reference = None;
        let parts = convert::reply_messages(&reply, &entry.contact);
        for part in parts.iter().skip(sent) {
            let correlator = entry::send_correlator(entry.seq, sent, &self.state.keys.load());
            let keys = self.state.keys.load_full();
            let known_as = |id: &str| self.state.trail().known_as(entry.seq, IdDigest::of(id, &keys));
            known_as(&correlator);
            crate::failpoint::at!(BeforeKernel);
            match self.kernel.send(&request, &url, &correlator, part).await {
                Ok(id) => {
                    crate::failpoint::at!(AfterKernel);
                    sent += 1;
                    id.iter().for_each(|id| known_as(id));
                    reference = id.map(|id| entry::reference(route.channel, &id, &self.state.keys.load()));
                    if sent < parts.len() {
                        self.note_part(entry.seq, sent).await;
                    }
                }
                Err(error) => {
                    return failed(self.send_failed(route, &error, true).await, &error);
                }
            }
        }
        (Ended::Delivered { reference }, None)
    }

    /// Records that a part of a reply was sent, so that it is not sent again.
    async fn note_part(&self, seq: Seq, sent: usize) {
        let note = Note {
            parts: u16::try_from(sent).unwrap_or(u16::MAX),
            ..self.state.journal.noted(seq)
        };
        if let Err(error) = self.state.journal.note(seq, note).await {
            tracing::warn!(%error, seq = seq.0, "can't record that a part was sent: after a crash it is sent again");
        }
    }

    /// What an error means for the message; `written`: the message itself may have been sent.
    async fn send_failed(&self, route: &Route, error: &KernelError, written: bool) -> Ended {
        if error.is_credentials() {
            self.state.secrets.rejected(route).await;
            return Ended::Blocked;
        }
        let failure = match error {
            KernelError::Refused { .. } if written => {
                return Ended::Fatal {
                    reason: "RefusedByKernel",
                };
            }
            error if error.outcome_unknown() && written => return Ended::Unknown,
            KernelError::RateLimited { .. } => Failure::Limited,
            KernelError::Unreachable | KernelError::Interrupted | KernelError::TimedOut => {
                Failure::Unreachable
            }
            KernelError::Unavailable { status, .. } if is_gateway(*status) => Failure::Unreachable,
            _ => Failure::Failing,
        };
        Ended::Retry {
            failure,
            after: error.retry_after(),
        }
    }
}

/// What an error of Aura's means for the message.
fn aura_failed(error: &AuraError) -> Ended {
    let (failure, after) = match error {
        AuraError::CredentialsRejected => return Ended::Blocked,
        AuraError::Refused { .. } => {
            return Ended::Fatal {
                reason: "RefusedByAura",
            };
        }
        AuraError::OutcomeUnknown { .. } => return Ended::Unknown,
        AuraError::Unreachable => (Failure::Unreachable, None),
        AuraError::Unavailable { status, retry_after } => {
            let failure = match status {
                429 => Failure::Limited,
                status if is_gateway(*status) => Failure::Unreachable,
                _ => Failure::Failing,
            };
            (failure, *retry_after)
        }
    };
    Ended::Retry { failure, after }
}

/// Whether somebody on the way says that nobody is behind him (RFC 9110, 15.6.3 to 15.6.5).
fn is_gateway(status: u16) -> bool {
    matches!(status, 502..=504)
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
        Ended::Unknown => "unknown",
        Ended::Fatal { .. } => "fatal",
        Ended::Blocked => "blocked",
    }
}

/// Shared by the runner.
pub(super) type SharedDeliverer = Arc<Deliverer>;
