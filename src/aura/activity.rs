//! The activity model of Bot Framework, as far as Aura uses it. Pure.

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// One message or event between the bridge and Aura. No `Debug`: it holds numbers and texts.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
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
    /// Cards and files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub attachments: Vec<Attachment>,
    /// The activity that this one answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reply_to_id: Option<String>,
    /// Aura's own part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel_data: Option<ChannelData>,
}

/// A user or bot.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// The WhatsApp id of a user.
    pub id: String,
    /// The name to show.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
}

/// A conversation.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Conversation {
    /// The sealed id.
    pub id: String,
}

/// Aura's own part of an activity.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
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
#[derive(Clone, Serialize, Deserialize)]
pub struct Payload {
    /// The message or status, as it came.
    pub whatsapp: Box<RawValue>,
}

/// A card or file of a reply.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Attachment {
    /// What it is.
    pub content_type: String,
    /// The card.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<HeroCard>,
}

/// A card with buttons. Fields of other cards are not looked at.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct HeroCard {
    /// Its heading.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    /// Its text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    /// Its choices.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub buttons: Vec<CardAction>,
}

/// One choice of a card.
#[derive(Clone, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct CardAction {
    /// What is shown.
    pub title: String,
}
