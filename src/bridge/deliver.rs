//! One attempt to deliver one message: to Aura, or to Kernel with the channel's own token. Decides what an error
//! means for the message; when to try again is decided in `delivery`.

use std::{
    fmt::Display,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tracing::field::display;

use super::{
    entry,
    routes::Route,
    state::{Shared, now_ms},
    trail::{IdDigest, Ties, What},
};
use crate::{
    api::{ApiVersion, ChannelId},
    aura::{self, AuraError, Reply},
    convert,
    delivery::{Attempt, Attempted, Deliver, Ended, Event, Failure, Item, Place, Stats, reason},
    journal::{Direction, Entry, Note, Origin, Outcome, Pending, Reference, Seq},
    kernel::{self, KernelError, TokenRequest},
    keys::ConversationKey,
    telemetry::{Context, Outgoing, w3c::SpanId},
    whatsapp,
};

/// Delivers messages.
pub(super) struct Deliverer {
    pub state: Shared,
    pub aura: aura::Client,
    pub kernel: kernel::Client,
}

impl Deliver for Deliverer {
    async fn attempt(&self, entry: Entry, attempt: Attempt) -> Attempted {
        let channel = ChannelId::from_bytes(entry.address.channel);
        let (direction, seq) = (entry.address.direction, entry.seq);
        let route = match self.route(channel, entry.address.tag) {
            Ok(route) => route,
            Err(ended) => return ended.into(),
        };
        let begun = Instant::now();
        let event = match direction {
            Direction::ToAura => whatsapp::parse(&entry.body)
                .ok()
                .and_then(|mut events| events.pop()),
            Direction::ToKernel => None,
        };
        let own = {
            let keys = self.state.keys.load();
            match &event {
                Some(event) => entry::activity_id(route.channel(), event, &keys),
                None => entry::send_key(entry.dedup, 0, &keys),
            }
        };
        let span = SpanId::new(fastrand::u64(..));
        let carried = Context::of_kept(&entry.trace).outgoing(own.clone(), span);
        let mut calls = 1;
        let (ended, why) = match direction {
            Direction::ToAura if entry.origin == Origin::Report => {
                self.status_to_aura(&route, &entry, &own, &carried).await
            }
            Direction::ToAura => self.to_aura(&route, &entry, event, &own, &carried).await,
            Direction::ToKernel => self.to_kernel(&route, &entry, &carried, &mut calls).await,
        };
        let (outcome, now) = (outcome(&ended), now_ms());
        {
            let mut trail = self.state.trail();
            trail.tied(seq, Ties::of(&carried));
            trail.happened(seq, What::attempt(outcome), attempt.number, now);
        }
        let metrics = &self.state.metrics;
        metrics.attempted(channel.to_string(), word(direction), outcome);
        if ended != Ended::Blocked {
            metrics.attempt_took(word(direction), begun.elapsed());
        }
        if matches!(ended, Ended::Delivered { .. }) {
            let since = Duration::from_millis(now.saturating_sub(entry.accepted_at_ms));
            metrics.arrived_after(word(direction), since);
        }
        let (trace_id, span_id) = (carried.trace_id().map(display), carried.span_id().map(display));
        let correlator = carried.correlator.as_str();
        if let Some(why) = why {
            let direction = word(direction);
            let (number, uncertain) = (attempt.number, attempt.uncertain);
            tracing::info!(
                %channel, seq = seq.0, direction, attempt = number, outcome, why, uncertain,
                trace_id, span_id, correlator, "an attempt failed"
            );
        } else {
            let direction = word(direction);
            if attempt.uncertain {
                tracing::warn!(
                    %channel, seq = seq.0, direction, trace_id, span_id, correlator,
                    "delivered after an attempt that may have arrived as well: it may be a duplicate"
                );
            } else {
                tracing::debug!(
                    %channel, seq = seq.0, direction, attempt = attempt.number, trace_id, span_id, correlator,
                    "the other side took it"
                );
            }
        }
        Attempted { ended, calls }
    }

    async fn place(&self, report: Pending) -> Place {
        self.place_status(report).await
    }

    fn settled(&self, item: &Item, outcome: &Outcome) {
        let (channel, contact) = (item.lane.channel, item.lane.contact);
        let direction = word(item.lane.direction);
        let what = match outcome {
            Outcome::Delivered { .. } => What::Settled,
            Outcome::DeadLetter { .. } => What::DeadLetter,
            Outcome::Dropped { .. } => What::Dropped,
        };
        let ties = {
            let mut trail = self.state.trail();
            trail.happened(item.seq, what, 0, now_ms());
            trail.of(item.seq).and_then(|steps| steps.ties.clone())
        };
        let trace_id = ties.as_ref().and_then(|ties| ties.trace_id).map(display);
        let correlator = ties.as_ref().map(|ties| &*ties.correlator);
        match outcome {
            Outcome::Delivered { .. } => {
                self.state
                    .metrics
                    .settled(channel.to_string(), direction, "delivered");
                tracing::info!(
                    %channel, %contact, seq = item.seq.0, direction, trace_id, correlator, "delivered"
                );
            }
            Outcome::DeadLetter { reason } => {
                self.state
                    .metrics
                    .settled(channel.to_string(), direction, "dead_letter");
                tracing::warn!(
                    %channel, %contact, seq = item.seq.0, direction, reason, trace_id, correlator,
                    "given up: dead letter"
                );
            }
            Outcome::Dropped { reason } => {
                self.state
                    .metrics
                    .settled(channel.to_string(), direction, "dropped");
                tracing::info!(
                    %channel, %contact, seq = item.seq.0, direction, reason, trace_id, correlator, "dropped"
                );
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
pub(super) type Tried = (Ended, Option<String>);

pub(super) fn failed(ended: Ended, why: &dyn Display) -> Tried {
    (ended, Some(why.to_string()))
}

impl Deliverer {
    /// The route of a message that was accepted for the resource with this tag. It stays with that one: of another that
    /// has the channel by now it is none of the business.
    ///
    /// # Errors
    /// What that means for the message.
    pub(super) fn route(&self, channel: ChannelId, tag: [u8; 6]) -> Result<Arc<Route>, Ended> {
        let its = |route: &Arc<Route>| route.tag.bytes() == tag;
        let current = self.state.routes.load().get(channel).cloned();
        let taken_over = current.as_ref().is_some_and(|route| !its(route));
        let leaving = || self.state.leaving.get(channel).filter(its);
        current.filter(its).or_else(leaving).ok_or(if taken_over {
            Ended::Fatal {
                reason: reason::CHANNEL_DELETED,
            }
        } else {
            Ended::Blocked
        })
    }

    async fn to_aura(
        &self,
        route: &Route,
        entry: &Entry,
        event: Option<whatsapp::Event>,
        id: &str,
        carried: &Outgoing,
    ) -> Tried {
        let activity = event.and_then(|event| self.activity(route, entry, &event, id, carried));
        let Some(activity) = activity else {
            return failed(
                Ended::Fatal { reason: "Unreadable" },
                &"the journal's entry is no webhook call",
            );
        };
        self.post(route, id, activity, carried).await
    }

    /// Posts an activity to the channel's Aura.
    pub(super) async fn post(&self, route: &Route, id: &str, activity: Bytes, carried: &Outgoing) -> Tried {
        let setup = self.state.setup.load_full();
        let Some(credentials) = setup.aura.get(route.environment_name()) else {
            return failed(Ended::Blocked, &"the environment has no credential for Aura");
        };
        let settings = &route.environment().aura;
        let url = settings.messages_url.as_str();
        crate::failpoint::at!(BeforeAura);
        let posted = self
            .aura
            .post(
                url,
                &credentials.outbound,
                id,
                carried,
                activity,
                settings.timeout(),
            )
            .await;
        let Err(error) = posted else {
            crate::failpoint::at!(AfterAura);
            return (Ended::Delivered { reference: None }, None);
        };
        failed(aura_failed(&error), &error)
    }

    /// A user's message as an activity, in JSON.
    fn activity(
        &self,
        route: &Route,
        entry: &Entry,
        event: &whatsapp::Event,
        id: &str,
        carried: &Outgoing,
    ) -> Option<Bytes> {
        let whatsapp::Event::Message(message) = event else {
            return None;
        };
        let activity = convert::message_activity(message, &self.context(route, &entry.contact, id, carried));
        Some(Bytes::from(serde_json::to_vec(&activity.ok()?).ok()?))
    }

    /// What an activity of a user's conversation needs.
    pub(super) fn context<'a>(
        &self,
        route: &'a Route,
        user: &str,
        id: &str,
        carried: &Outgoing,
    ) -> convert::Context<'a> {
        convert::Context {
            channel: route.channel(),
            conversation: self.state.keys.load().sealer().seal(&ConversationKey {
                channel: route.channel(),
                contact: user.to_owned(),
            }),
            id: id.to_owned(),
            correlator: carried.correlator.clone(),
            service_url: route.environment().aura.reply_url.as_str(),
        }
    }

    /// Sends a reply, in as many `calls` as its length takes.
    async fn to_kernel(&self, route: &Route, entry: &Entry, carried: &Outgoing, calls: &mut u32) -> Tried {
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
        let settings = &route.environment().kernel;
        let request = TokenRequest {
            url: settings.token_url(),
            credentials,
            scopes: route.effective().messaging_scopes.clone(),
            purposes: route.effective().purposes.clone(),
            timeout: settings.timeout(),
            turnstile: None,
        };
        // What a run before this one sent, or a status says that the user has, is not sent again.
        let mut sent = usize::from(entry.note.parts);
        let mut parts = convert::reply_messages(&reply, &entry.contact);
        if let Origin::Resent { part, .. } = entry.origin {
            parts = parts.into_iter().skip(usize::from(part)).take(1).collect();
        }
        if sent >= parts.len() {
            let reference = self.state.journal.references(entry.seq).pop();
            return (Ended::Delivered { reference }, None);
        }
        // Without a token nothing is written, so that its failure leaves no doubt about the message.
        if let Err(error) = self.kernel.token(&request).await {
            return failed(self.send_failed(route, &error, false).await, &error);
        }
        let url = settings.messages_url(route.effective().api_version);
        let mut reference = None;
        let total = parts.len();
        *calls = 0;
        for mut part in parts.into_iter().skip(sent) {
            *calls += 1;
            let keys = self.state.keys.load_full();
            let key = entry::send_key(entry.dedup, sent, &keys);
            let known_as = |id: &str| self.state.trail().known_as(entry.seq, IdDigest::of(id, &keys));
            known_as(&key);
            if route.effective().api_version == ApiVersion::V2 {
                let number = u16::try_from(sent).unwrap_or(u16::MAX);
                part.echo = Some(entry::echo(route.channel(), entry.seq, number, &keys));
            }
            crate::failpoint::at!(BeforeKernel);
            match self.kernel.send(&request, &url, &key, carried, &part).await {
                Ok(id) => {
                    crate::failpoint::at!(AfterKernel);
                    sent += 1;
                    id.iter().for_each(|id| known_as(id));
                    reference = id.map(|id| entry::reference(route.channel(), &id, &self.state.keys.load()));
                    if sent < total {
                        self.note_part(entry.seq, sent, reference).await;
                    }
                }
                Err(kernel::Failed { error, called }) => {
                    return failed(self.send_failed(route, &error, called).await, &error);
                }
            }
        }
        (Ended::Delivered { reference }, None)
    }

    /// Records that a part of a reply was sent, so that it is not sent again, and as what, for what is reported of it.
    async fn note_part(&self, seq: Seq, sent: usize, reference: Option<Reference>) {
        let parts = u16::try_from(sent).unwrap_or(u16::MAX);
        let note = Note {
            parts,
            ..self.state.journal.noted(seq)
        };
        let noted = match reference {
            Some(reference) => {
                self.state
                    .journal
                    .note_part(seq, note, parts.saturating_sub(1), reference)
                    .await
            }
            None => self.state.journal.note(seq, note).await,
        };
        if let Err(error) = noted {
            tracing::warn!(%error, seq = seq.0, "can't record that a part was sent: after a crash it is sent again");
        }
    }

    /// What an error means for the message; `written`: the message itself was on its way.
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
            // Not 503: who says that it is unavailable has done nothing.
            KernelError::Unavailable {
                status: 502 | 504, ..
            } if written => Failure::Unanswered,
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
        Ended::Dropped { .. } => "dropped",
    }
}

/// Shared by the runner.
pub(super) type SharedDeliverer = Arc<Deliverer>;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::telemetry::{DIRECTIONS, OUTCOMES};

    #[test]
    fn the_words_of_metrics_are_those_that_go_with_their_channel() {
        for direction in [Direction::ToAura, Direction::ToKernel] {
            assert!(DIRECTIONS.contains(&word(direction)));
        }
        let (failure, after) = (Failure::Failing, None);
        for ended in [
            Ended::Delivered { reference: None },
            Ended::Retry { failure, after },
            Ended::Unknown,
            Ended::Fatal { reason: "" },
            Ended::Blocked,
            Ended::Dropped { reason: "" },
        ] {
            assert!(OUTCOMES.contains(&outcome(&ended)), "{ended:?}");
        }
    }
}
