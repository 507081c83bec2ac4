//! The activity model of Bot Framework, as far as Aura uses it. Pure.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::contract::HERO_CARD;

/// One message or event from the bridge to Aura. No `Debug`: it holds numbers and texts.
#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Activity {
    /// message, event, typing, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The activity's id: the same for each attempt to deliver it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// When it was sent (RFC 3339).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timestamp: Option<String>,
    /// The kind of channel in Bot Framework's sense; Aura's own channel id stands in `channelData`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_id: Option<String>,
    /// Who sent it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub from: Option<Account>,
    /// To which conversation it belongs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub conversation: Option<Conversation>,
    /// Where to post replies.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_url: Option<String>,
    /// The event's name, of an event.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Of an event that tells of one of Aura's replies: that one's id.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to_id: Option<String>,
    /// What an event tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<StatusValue>,
    /// Aura's own part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_data: Option<ChannelData>,
}

/// What an event tells of a message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct StatusValue {
    /// WhatsApp's word: sent, delivered, read, failed, …
    pub status: String,
    /// The bridge knows the message that it speaks of.
    pub correlated: bool,
    /// The bridge sends that message again: this failure is not its end.
    pub resent: bool,
    /// The bridge tells the user that something was lost.
    pub user_told: bool,
}

/// A user or bot.
#[derive(Clone, Default, Serialize)]
pub struct Account {
    /// The WhatsApp id of a user.
    pub id: String,
    /// The name to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A conversation.
#[derive(Clone, Default, Serialize)]
pub struct Conversation {
    /// The sealed id.
    pub id: String,
}

/// Aura's own part of an activity.
#[derive(Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ChannelData {
    /// The UUID of the Aura channel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_id: Option<String>,
    /// Ties the two sides' logs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub correlator: Option<String>,
    /// What WhatsApp sent, as it came.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
}

/// What WhatsApp sent.
#[derive(Clone, Serialize)]
pub struct Payload {
    /// The message or status, as it came.
    pub whatsapp: Box<RawValue>,
}

/// What is looked at of an activity that Aura posts. Everything else it may hold is its own affair, and a field that
/// is `null` is one that is absent. No `Debug`: it holds a text.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Reply {
    /// message, event, typing, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The activity's own id.
    pub id: Option<String>,
    /// The id of the activity that it answers.
    pub reply_to_id: Option<String>,
    /// The text.
    pub text: Option<String>,
    /// Cards and files.
    pub attachments: Option<Vec<Attachment>>,
    /// Aura's own part.
    pub channel_data: Option<ReplyData>,
}

/// What is looked at of a reply's `channelData`.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct ReplyData {
    /// The UUID of the Aura channel.
    pub channel_id: Option<String>,
    /// Ties the two sides' logs.
    pub correlator: Option<String>,
}

/// A card or file of a reply.
#[derive(Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attachment {
    /// What it is.
    pub content_type: String,
    /// The card, or whatever it holds.
    pub content: Option<Box<RawValue>>,
}

/// An activity's JSON with an id, where it has none of its own; as it was, if it is no object.
pub fn with_id(activity: &Bytes, id: impl FnOnce() -> String) -> Bytes {
    let fields = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(activity);
    let Ok(mut fields) = fields else {
        return activity.clone();
    };
    let known = fields
        .get("id")
        .is_some_and(|id| id.get().len() > 2 && id.get() != "null");
    let Ok(id) = serde_json::value::to_raw_value(&id()) else {
        return activity.clone();
    };
    if known {
        return activity.clone();
    }
    fields.insert("id".to_owned(), id);
    serde_json::to_vec(&fields).map_or_else(|_| activity.clone(), Bytes::from)
}

impl Attachment {
    /// The card, if it is one with buttons.
    pub fn hero_card(&self) -> Option<HeroCard> {
        let content = self.content.as_ref().filter(|_| self.content_type == HERO_CARD)?;
        serde_json::from_str(content.get()).ok()
    }
}

/// A card with buttons.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct HeroCard {
    /// Its heading.
    pub title: Option<String>,
    /// Its text.
    pub text: Option<String>,
    /// Its choices.
    pub buttons: Option<Vec<CardAction>>,
}

/// One choice of a card.
#[derive(Clone, Default, Deserialize)]
#[serde(default)]
pub struct CardAction {
    /// What is shown.
    pub title: Option<String>,
}
