//! Between WhatsApp and Aura: a user's message becomes an activity, a reply becomes messages.
//!
//! Pure. Nothing is dropped: a kind of message that has no conversion reaches Aura with its payload as it came,
//! and a reply's card is shown as text.

use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::{
    api::ChannelId,
    aura::{Account, Activity, Attachment, ChannelData, Conversation, Payload, Reply, StatusValue, contract},
    whatsapp::{InboundMessage, OutboundMessage, Status, text_parts},
};

/// What an activity needs beside the message.
pub struct Context<'a> {
    /// The Aura channel.
    pub channel: ChannelId,
    /// The sealed conversation id.
    pub conversation: String,
    /// The activity's id.
    pub id: String,
    /// What ties the two sides' logs.
    pub correlator: String,
    /// Where Aura posts its replies.
    pub service_url: &'a str,
}

/// The payload is not JSON: it did not come from a webhook call.
#[derive(Debug, thiserror::Error)]
#[error("the stored payload is not JSON")]
pub struct NotJson(#[from] serde_json::Error);

/// The activity for a user's message.
///
/// # Errors
/// Only when the message's own payload is not JSON.
pub fn message_activity(message: &InboundMessage, context: &Context<'_>) -> Result<Activity, NotJson> {
    Ok(Activity {
        kind: "message".to_owned(),
        timestamp: time(message.timestamp),
        from: Some(Account {
            id: message.from.clone(),
            name: message.profile_name.clone(),
        }),
        text: message.text.clone(),
        ..envelope(context, &message.raw)?
    })
}

/// What a status is known to be about.
pub struct About<'a> {
    /// The user that the message was for.
    pub user: &'a str,
    /// Aura's name of the message, where it is one of Aura's.
    pub reply: Option<String>,
    /// The message is known.
    pub correlated: bool,
    /// It is sent again.
    pub resent: bool,
    /// The user is told that something was lost.
    pub user_told: bool,
}

/// The event activity for a status of a message of ours.
///
/// # Errors
/// Only when the status's own payload is not JSON.
pub fn status_activity(
    status: &Status,
    about: About<'_>,
    context: &Context<'_>,
) -> Result<Activity, NotJson> {
    Ok(Activity {
        kind: "event".to_owned(),
        name: Some(contract::STATUS_EVENT.to_owned()),
        timestamp: time(status.timestamp),
        from: Some(Account {
            id: about.user.to_owned(),
            name: None,
        }),
        reply_to_id: about.reply,
        value: Some(StatusValue {
            status: status.status.clone(),
            correlated: about.correlated,
            resent: about.resent,
            user_told: about.user_told,
        }),
        ..envelope(context, &status.raw)?
    })
}

fn time(seconds: Option<i64>) -> Option<String> {
    let timestamp = Timestamp::from_second(seconds?).ok()?;
    Some(timestamp.to_string())
}

fn envelope(context: &Context<'_>, raw: &str) -> Result<Activity, NotJson> {
    Ok(Activity {
        id: Some(context.id.clone()),
        channel_id: Some(contract::CHANNEL_KIND.to_owned()),
        conversation: Some(Conversation {
            id: context.conversation.clone(),
        }),
        service_url: Some(context.service_url.trim_end_matches('/').to_owned()),
        channel_data: Some(ChannelData {
            channel_id: Some(context.channel.to_string()),
            correlator: Some(context.correlator.clone()),
            payload: Some(Payload {
                whatsapp: RawValue::from_string(raw.to_owned())?,
            }),
        }),
        ..Activity::default()
    })
}

/// The messages that a reply becomes, in order; none for an activity that shows the user nothing (typing, …).
pub fn reply_messages(reply: &Reply, to: &str) -> Vec<OutboundMessage> {
    if reply.kind != "message" {
        return Vec::new();
    }
    let mut blocks: Vec<String> = reply.text.iter().cloned().collect();
    blocks.extend(reply.attachments.iter().flatten().filter_map(card_text));
    let text = blocks
        .iter()
        .map(|block| block.trim())
        .filter(|block| !block.is_empty())
        .collect::<Vec<_>>();
    text_parts(&text.join("\n\n"))
        .into_iter()
        .map(|part| OutboundMessage::text(to, part))
        .collect()
}

/// A card as text: heading, text, and its choices numbered.
fn card_text(attachment: &Attachment) -> Option<String> {
    let card = attachment.hero_card()?;
    let mut lines: Vec<String> = [card.title, card.text].into_iter().flatten().collect();
    let choices = card
        .buttons
        .unwrap_or_default()
        .into_iter()
        .filter_map(|button| button.title);
    lines.extend(
        choices
            .enumerate()
            .map(|(n, title)| format!("{}. {title}", n + 1)),
    );
    (!lines.is_empty()).then(|| lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::whatsapp::{Event, parse};

    fn context() -> Context<'static> {
        Context {
            channel: ChannelId::from_bytes([7; 16]),
            conversation: "v1.sealed".into(),
            id: "activity-1".into(),
            correlator: "correlator-1".into(),
            service_url: "http://bridge:8081/",
        }
    }

    fn message(json: &serde_json::Value) -> InboundMessage {
        match parse(json!({"messages": [json]}).to_string().as_bytes())
            .ok()
            .and_then(|mut events| events.pop())
        {
            Some(Event::Message(message)) => message,
            _ => panic!("one message expected"),
        }
    }

    #[test]
    fn a_text_becomes_a_message_activity() {
        let message = message(
            &json!({"id": "wamid.X", "from": "34600000001", "timestamp": "1763805600",
                                      "type": "text", "text": {"body": "hola"}}),
        );
        let activity = serde_json::to_value(message_activity(&message, &context()).unwrap()).unwrap();
        insta::assert_snapshot!(serde_json::to_string_pretty(&activity).unwrap());
    }

    #[test]
    fn another_kind_keeps_its_payload_and_has_no_text() {
        let message = message(&json!({"id": "a", "from": "1234", "type": "location",
                                      "location": {"latitude": 40.4, "longitude": -3.7}}));
        let activity = message_activity(&message, &context()).unwrap();
        assert!(activity.text.is_none());
        let payload = activity.channel_data.unwrap().payload.unwrap();
        assert!(payload.whatsapp.get().contains(r#""latitude":40.4"#));
    }

    #[test]
    fn a_reply_is_text_and_its_card_is_shown_as_text() {
        let reply = |json: serde_json::Value| {
            let reply: Reply = serde_json::from_value(json).unwrap();
            serde_json::to_value(reply_messages(&reply, "34600000001")).unwrap()
        };
        assert_eq!(
            reply(json!({"type": "message", "text": "hola"}))[0]["text"]["body"],
            "hola"
        );
        assert_eq!(reply(json!({"type": "typing"})), json!([]));
        assert_eq!(reply(json!({"type": "message", "text": " "})), json!([]));
        let odd = json!({"type": "message", "text": "x", "from": null, "channelData": {"payload": {"type": "image"}},
            "attachments": [{"contentType": "image/png", "content": "…"}, {"contentType": "other", "content": null}]});
        assert_eq!(
            reply(odd)[0]["text"]["body"],
            "x",
            "what Aura adds for itself is not our affair"
        );
        assert_eq!(
            reply(json!({"type": "message", "text": "x", "attachments": null}))[0]["text"]["body"],
            "x"
        );
        let card = json!({"type": "message", "text": "¿Qué quieres?", "attachments": [
            {"contentType": "application/vnd.microsoft.card.hero",
             "content": {"title": "Elige", "buttons": [{"title": "Factura"}, {"title": "Avería"}]}}]});
        assert_eq!(
            reply(card)[0]["text"]["body"],
            "¿Qué quieres?\n\nElige\n1. Factura\n2. Avería"
        );
    }
}
