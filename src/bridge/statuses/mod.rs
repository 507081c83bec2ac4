//! What WhatsApp reports of sent messages: looked up, told to Aura, and put right where that can be done.
//!
//! Thin: `decide` says what is to be done, this does it. A status is in the journal like a message, and its message is
//! found by the digest of WhatsApp's id (Law 6). Whatever is sent because of a status has an id of its own in the
//! journal that follows from the status, so that it is sent once however often a status is looked at (Law 2).

mod decide;

use bytes::Bytes;

pub(super) use self::decide::Heard;
use self::decide::{Known, Message, Plan, Remedy, Report, Rules, decide};
use super::{
    deliver::{Deliverer, Tried, failed},
    entry,
    routes::Route,
    state::{State, now_ms},
    trail::What,
};
use crate::{
    api::ChannelId,
    aura::Reply,
    convert,
    delivery::{Ended, Failure, LaneKey, Place, reason},
    journal::{
        AppendError, Appended, Direction, Entry, Kind, Note, Origin, Outcome, Pending, ReadError, Reference,
        Sent, Seq,
    },
    telemetry::Outgoing,
    whatsapp::{self, Class, Event, Status, trouble},
};

/// How soon something that could not be read or written is tried again, in ms.
const AGAIN_MS: u64 = 5_000;
/// A status of a message of which more is known already.
const LATE: &str = "StatusLate";
/// A status that Aura is not told.
const NOT_TOLD: &str = "StatusNotTold";

impl State {
    /// Whether a status is to be kept: failures are, and what Aura is told.
    pub(super) fn keeps(&self, route: &Route, status: &Status) -> bool {
        let class = Class::of(&status.status);
        let settles = || {
            let message = self.told_back(route.channel(), status);
            message.is_some_and(|(seq, _)| {
                let kind = self.journal.kind(seq);
                matches!(kind, Some(Kind::Pending | Kind::DeadLetter))
            })
        };
        class == Class::Failed || Rules::of(route.effective()).tells(class) || settles()
    }

    /// The part of a reply that a status tells back what was sent with it.
    fn told_back(&self, channel: ChannelId, status: &Status) -> Option<(Seq, u16)> {
        entry::echoed(channel, status.echo.as_deref()?, &self.keys.load())
    }

    /// A status came that is not kept.
    pub(super) fn passed_by(&self, channel: ChannelId, status: &Status, now_ms: u64) {
        let class = Class::of(&status.status);
        let message = entry::reference(channel, &status.id, &self.keys.load());
        self.heard().hear(message, class);
        if let Some(sent) = self.journal.sent(&message) {
            self.trail().happened(sent.seq, What::reported(class), 0, now_ms);
        }
        self.metrics.status(class.as_str(), "ignored");
    }
}

/// A status, and what is known of its message.
struct Looked {
    status: Status,
    about: Reference,
    message: Option<(Sent, Entry)>,
    known: Known,
}

impl Looked {
    fn class(&self) -> Class {
        Class::of(&self.status.status)
    }

    fn report(&self, accepted_at_ms: u64) -> Report {
        Report {
            class: self.class(),
            trouble: trouble(&self.status.errors),
            accepted_at_ms,
            names_user: !self.status.recipient.is_empty(),
        }
    }

    /// The user: the one that the message was sent to, whoever the status names.
    fn user(&self) -> &str {
        let message = self.message.as_ref();
        message.map_or(&self.status.recipient, |(_, entry)| &entry.contact)
    }

    /// What Aura calls the message.
    fn reply(&self) -> Option<String> {
        let (sent, entry) = self.message.as_ref()?;
        if entry.origin == Origin::Bridge {
            return None;
        }
        let own = serde_json::from_slice::<Reply>(&entry.body).ok()?.id;
        Some(
            own.filter(|id| !id.is_empty())
                .unwrap_or_else(|| entry::reply_id(sent.seq)),
        )
    }
}

impl Deliverer {
    /// Says where a status goes.
    pub(super) async fn place_status(&self, pending: Pending) -> Place {
        let own = LaneKey::of(&pending.address);
        let now = now_ms();
        let looked = match self.state.journal.read(pending.seq).await {
            Ok(entry) => match self.look(&entry).await {
                Ok(Some(looked))
                    if matches!(looked.known, Known::NotYet) && self.settle(&looked, own).await =>
                {
                    self.look(&entry).await
                }
                looked => looked,
            },
            Err(error) => Err(error),
        };
        let looked = match looked {
            Ok(Some(looked)) => looked,
            Err(ReadError::Io(_)) => return Place::WaitFor(now + AGAIN_MS),
            // Whoever tries to deliver it finds the same, and gives it up.
            Ok(None) | Err(_) => return Place::Lane(own),
        };
        let lane = LaneKey {
            direction: Direction::ToAura,
            contact: looked
                .message
                .as_ref()
                .map_or(own.contact, |(_, entry)| entry.address.contact),
            ..own
        };
        let route = self.route(own.channel, pending.address.tag).ok();
        let rules = route
            .as_ref()
            .map_or(Rules::NONE, |route| Rules::of(route.effective()));
        let heard = self.state.heard().of(looked.about);
        let report = looked.report(pending.accepted_at_ms);
        let (remedy, tell_aura) = match decide(&report, looked.known, heard, &rules, now) {
            Plan::WaitForSend(until) => return Place::WaitForSend(until),
            Plan::WaitFor(at) => return Place::WaitFor(at),
            Plan::Late => {
                self.state.metrics.status(report.class.as_str(), "late");
                return ends(LATE);
            }
            Plan::Nobodys => {
                return Place::Ends(Outcome::DeadLetter {
                    reason: reason::NO_CONVERSATION.to_owned(),
                });
            }
            Plan::Do { remedy, tell_aura } => (remedy, tell_aura),
        };
        // Without a route nothing can be said: it goes on when there is one, or with its channel's last messages.
        let Some(route) = route else {
            return Place::Lane(lane);
        };
        if let Err(error) = self.put_right(&route, &looked, remedy).await {
            tracing::warn!(channel = %own.channel, seq = pending.seq.0, %error, "can't put a failed message right yet");
            return Place::WaitFor(now + AGAIN_MS);
        }
        self.state.heard().hear(looked.about, report.class);
        if let Some((sent, _)) = &looked.message {
            self.state
                .trail()
                .happened(sent.seq, What::reported(report.class), 0, now);
        }
        let correlated = if looked.message.is_some() {
            "correlated"
        } else {
            "uncorrelated"
        };
        self.state.metrics.status(report.class.as_str(), correlated);
        tracing::info!(
            channel = %own.channel, contact = %lane.contact, seq = pending.seq.0,
            message = looked.message.as_ref().map(|(sent, _)| sent.seq.0),
            status = report.class.as_str(), trouble = ?report.trouble, codes = ?looked.status.errors,
            remedy = ?remedy, "WhatsApp reports on a message"
        );
        if tell_aura {
            Place::Lane(lane)
        } else {
            ends(NOT_TOLD)
        }
    }

    /// Tells Aura of a status. What was to be done about its message is done before, if it is not yet.
    pub(super) async fn status_to_aura(
        &self,
        route: &Route,
        entry: &Entry,
        id: &str,
        carried: &Outgoing,
    ) -> Tried {
        let looked = match self.look(entry).await {
            Ok(Some(looked)) => looked,
            Ok(None) => {
                let why = &"the journal's entry is no webhook call";
                return failed(Ended::Fatal { reason: "Unreadable" }, why);
            }
            Err(error) => return failed(LATER, &error),
        };
        let report = looked.report(entry.accepted_at_ms);
        // What it waited for is over, or nobody knew its channel.
        let plan = decide(&report, looked.known, 0, &Rules::of(route.effective()), u64::MAX);
        let remedy = match plan {
            Plan::Do { remedy, .. } => remedy,
            Plan::Late => return (Ended::Dropped { reason: LATE }, None),
            Plan::WaitForSend(_) | Plan::WaitFor(_) => Remedy::None,
            Plan::Nobodys => {
                return (
                    Ended::Fatal {
                        reason: reason::NO_CONVERSATION,
                    },
                    None,
                );
            }
        };
        if let Err(error) = self.put_right(route, &looked, remedy).await {
            return failed(LATER, &error);
        }
        if let Plan::Do { tell_aura: false, .. } = plan {
            return (Ended::Dropped { reason: NOT_TOLD }, None);
        }
        let user = looked.user().to_owned();
        let about = convert::About {
            user: &user,
            reply: looked.reply(),
            correlated: looked.message.is_some(),
            resent: remedy == Remedy::Again,
            user_told: remedy == Remedy::Tell,
        };
        let context = self.context(route, &user, id, carried);
        let activity = convert::status_activity(&looked.status, about, &context).ok();
        let Some(activity) = activity.and_then(|activity| serde_json::to_vec(&activity).ok()) else {
            return failed(Ended::Fatal { reason: "Unreadable" }, &"the status is no JSON");
        };
        let posted = self.post(route, id, Bytes::from(activity), carried).await;
        if posted.0 == (Ended::Delivered { reference: None })
            && let Some((sent, entry)) = &looked.message
            && report.class.rank() > entry.note.told
        {
            let note = Note {
                told: report.class.rank(),
                ..self.state.journal.noted(sent.seq)
            };
            if let Err(error) = self.state.journal.note(sent.seq, note).await {
                tracing::warn!(%error, seq = sent.seq.0, "can't record what Aura was told: a late status may follow");
            }
        }
        posted
    }

    /// Reads a status and finds its message; `None` if it is none.
    async fn look(&self, entry: &Entry) -> Result<Option<Looked>, ReadError> {
        let event = whatsapp::parse(&entry.body)
            .ok()
            .and_then(|mut events| events.pop());
        let (Some(Event::Status(status)), Some(about)) = (event, entry.request) else {
            return Ok(None);
        };
        let about = Reference(about.0);
        let (message, known) = match self.state.journal.sent(&about) {
            None => (None, Known::NotYet),
            Some(sent) => match self.state.journal.read(sent.seq).await {
                Ok(entry) => {
                    let message = Message {
                        origin: entry.origin,
                        accepted_at_ms: entry.accepted_at_ms,
                        told: entry.note.told,
                    };
                    (Some((sent, entry)), Known::Message(message))
                }
                Err(error @ ReadError::Io(_)) => return Err(error),
                Err(_) => (None, Known::Lost),
            },
        };
        Ok(Some(Looked {
            status,
            about,
            message,
            known,
        }))
    }

    /// A status of a message whose send was never answered, and that tells back what was sent with it: the user has that
    /// part, under the id that the status names. What waits to be sent again, or for a person, is settled by that (Law 2).
    /// Says whether something was.
    async fn settle(&self, looked: &Looked, own: LaneKey) -> bool {
        let Some((seq, part)) = self.state.told_back(own.channel, &looked.status) else {
            return false;
        };
        let Ok(message) = self.state.journal.read(seq).await else {
            return false;
        };
        let of_channel = message.address.channel == *own.channel.as_bytes();
        if !of_channel || message.address.direction != Direction::ToKernel {
            return false;
        }
        let recorded = match self.state.journal.kind(seq) {
            // The attempt that is under way, or the next one, finds that this part needs no sending.
            Some(Kind::Pending) => {
                let noted = self.state.journal.noted(seq);
                let note = Note {
                    parts: noted.parts.max(part.saturating_add(1)),
                    ..noted
                };
                self.state.journal.note_part(seq, note, part, looked.about).await
            }
            // Of several parts the last: the ones behind another were never sent.
            Some(Kind::DeadLetter) if is_last(&message, part) => {
                let reference = Some(looked.about);
                let settled = self
                    .state
                    .journal
                    .settle(seq, Outcome::Delivered { reference })
                    .await;
                self.state.trail().happened(seq, What::Settled, 0, now_ms());
                settled
            }
            _ => return false,
        };
        if let Err(error) = &recorded {
            tracing::warn!(seq = seq.0, %error, "can't record that a message arrived after all");
        } else {
            self.state.metrics.status(looked.class().as_str(), "settled");
            tracing::info!(channel = %own.channel, seq = seq.0, part, "a status says that a message arrived");
        }
        recorded.is_ok()
    }

    /// Sends a failed message again, or tells its user that it was lost: once for each status.
    async fn put_right(&self, route: &Route, looked: &Looked, remedy: Remedy) -> Result<(), AppendError> {
        let Some((sent, message)) = &looked.message else {
            return Ok(());
        };
        let (keys, now) = (self.state.keys.load_full(), now_ms());
        let (entry, what, result) = match remedy {
            Remedy::None => return Ok(()),
            Remedy::Again => {
                let part = match message.origin {
                    Origin::Resent { part, .. } => part,
                    _ => u8::try_from(sent.part).unwrap_or(u8::MAX),
                };
                let again = entry::again(message, part, looked.about, &keys, now);
                (again, What::SentAgain, "resent")
            }
            Remedy::Tell => {
                let text = &route.effective().undelivered_text;
                let lost = entry::lost(message, looked.about, text, &keys, now);
                (lost, What::UserTold, "user_told")
            }
        };
        let appended = self.state.journal.append(vec![entry]).await?;
        if let Some(Appended::New(seq)) = appended.first() {
            self.state.arrived(Appended::New(*seq), now, []);
            self.state.trail().happened(sent.seq, what, 0, now);
            self.state.metrics.status(looked.class().as_str(), result);
        }
        Ok(())
    }
}

/// Whether a part of a message is its last one.
fn is_last(message: &Entry, part: u16) -> bool {
    let parts = serde_json::from_slice::<Reply>(&message.body)
        .map_or(0, |reply| convert::reply_messages(&reply, &message.contact).len());
    matches!(message.origin, Origin::Resent { .. }) || usize::from(part) + 1 == parts
}

const LATER: Ended = Ended::Retry {
    failure: Failure::Failing,
    after: None,
};

fn ends(reason: &'static str) -> Place {
    Place::Ends(Outcome::Dropped {
        reason: reason.to_owned(),
    })
}
