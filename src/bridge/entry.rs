//! What stands in the journal for one message, and what it is recognised by when it comes again. Pure.
//!
//! A user's message is kept as a webhook call of its own (so that a journal can be read with any JSON tool and what
//! WhatsApp sent stays as it came); a reply as the activity that Aura posted.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{json, value::RawValue};
use uuid::Uuid;

use crate::{
    api::ChannelId,
    aura::Reply,
    delivery::{ContactKey, RequestId},
    journal::{DedupKey, Direction, Entry, NewEntry, Seq},
    keys::Keys,
    whatsapp::{self, Event, InboundMessage, Status},
};

/// The journal's entry for a user's message.
pub fn message(channel: ChannelId, message: &InboundMessage, keys: &Keys, now_ms: u64) -> NewEntry {
    let contacts = message
        .profile_name
        .as_ref()
        .map(|name| json!([{"wa_id": message.from, "profile": {"name": name}}]));
    NewEntry {
        direction: Direction::ToAura,
        channel: *channel.as_bytes(),
        contact: message.from.clone(),
        dedup: DedupKey(keys.fingerprint(&[b"message", channel.as_bytes(), message.id.as_bytes()])),
        accepted_at_ms: now_ms,
        body: call("messages", &message.raw, contacts.as_ref()),
    }
}

/// The journal's entry for a status.
pub fn status(channel: ChannelId, status: &Status, keys: &Keys, now_ms: u64) -> NewEntry {
    let parts: [&[u8]; 4] = [
        b"status",
        channel.as_bytes(),
        status.id.as_bytes(),
        status.status.as_bytes(),
    ];
    NewEntry {
        direction: Direction::ToAura,
        channel: *channel.as_bytes(),
        contact: status.recipient.clone(),
        dedup: DedupKey(keys.fingerprint(&parts)),
        accepted_at_ms: now_ms,
        body: call("statuses", &status.raw, None),
    }
}

/// The journal's entry for a reply. A reply without an id of its own can't be recognised when it comes again.
pub fn reply(
    channel: ChannelId,
    contact: &str,
    id: Option<&str>,
    body: Bytes,
    keys: &Keys,
    now_ms: u64,
) -> NewEntry {
    let dedup = match id {
        Some(id) => keys.fingerprint(&[b"reply", channel.as_bytes(), contact.as_bytes(), id.as_bytes()]),
        None => *Uuid::new_v4().as_bytes(),
    };
    NewEntry {
        direction: Direction::ToKernel,
        channel: *channel.as_bytes(),
        contact: contact.to_owned(),
        dedup: DedupKey(dedup),
        accepted_at_ms: now_ms,
        body,
    }
}

/// The id of the activity for an event: the same for each attempt, and of no use to who would like the number that
/// WhatsApp's own id holds.
pub fn activity_id(channel: ChannelId, event: &Event, keys: &Keys) -> String {
    let bytes = match event {
        Event::Message(message) => {
            keys.fingerprint(&[b"activity", channel.as_bytes(), b"message", message.id.as_bytes()])
        }
        Event::Status(status) => keys.fingerprint(&[
            b"activity",
            channel.as_bytes(),
            b"status",
            status.id.as_bytes(),
            status.status.as_bytes(),
        ]),
    };
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// What ties a reply to the message that it answers: the id of the activity that the message is posted under, and that
/// the reply names. None for a status, and for a reply that names none.
pub fn request(entry: &Entry, keys: &Keys) -> Option<RequestId> {
    let channel = ChannelId::from_bytes(entry.channel);
    let id = match entry.direction {
        Direction::ToAura => {
            let event = whatsapp::parse(&entry.body).ok()?.pop()?;
            matches!(event, Event::Message(_)).then(|| activity_id(channel, &event, keys))?
        }
        Direction::ToKernel => {
            let reply: Reply = serde_json::from_slice(&entry.body).ok()?;
            reply.reply_to_id.filter(|id| !id.is_empty())?
        }
    };
    Some(RequestId(keys.fingerprint(&[
        b"request",
        channel.as_bytes(),
        id.as_bytes(),
    ])))
}

/// A reply's body with the id of the activity that it answers, where only the path names it.
pub fn with_reply_to(body: Bytes, activity: &Reply, path: Option<&str>) -> Bytes {
    let (None, Some(path)) = (activity.reply_to_id.as_deref(), path.filter(|id| !id.is_empty())) else {
        return body;
    };
    let Ok(mut fields) = serde_json::from_slice::<BTreeMap<String, Box<RawValue>>>(&body) else {
        return body;
    };
    let Ok(id) = serde_json::value::to_raw_value(path) else {
        return body;
    };
    fields.insert("replyToId".to_owned(), id);
    serde_json::to_vec(&fields).map_or(body, Bytes::from)
}

/// What a contact is known by in the lanes: shown, it is the digest that stands for the contact in logs.
pub fn contact_key(contact: &str, keys: &Keys) -> ContactKey {
    ContactKey(keys.fingerprint(&[b"digest", contact.as_bytes()]))
}

/// The correlator of one part of a reply: the same for each attempt to send it, so that a send whose outcome is
/// unknown can be recognised.
pub fn send_correlator(seq: Seq, part: usize, keys: &Keys) -> String {
    let bytes = keys.fingerprint(&[b"send", &seq.0.to_be_bytes(), &part.to_be_bytes()]);
    uuid::Builder::from_custom_bytes(bytes).into_uuid().to_string()
}

/// Whether a status is handed to Aura: failures are, the rest is counted.
pub fn is_of_interest(status: &Status) -> bool {
    matches!(status.status.as_str(), "failed" | "warning")
}

fn call(list: &str, raw: &str, contacts: Option<&serde_json::Value>) -> Bytes {
    // The parts are JSON already: `raw` was cut out of a parsed call.
    let contacts = contacts
        .map(|contacts| format!("\"contacts\":{contacts},"))
        .unwrap_or_default();
    Bytes::from(format!("{{{contacts}\"{list}\":[{raw}]}}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{keys::KeyMaterial, whatsapp::parse};

    fn keys() -> Keys {
        Keys::derive(&KeyMaterial::new(|_| Some(vec![3; 32])).unwrap())
    }

    #[test]
    fn a_message_comes_back_from_the_journal_as_it_was() {
        let body = r#"{"contacts":[{"wa_id":"34600000001","profile":{"name":"Ana \"x\""}}],"messages":[
            {"id":"wamid.X","from":"34600000001","type":"order","order":{"n":1e400}}]}"#;
        let events = parse(body.as_bytes()).ok().unwrap();
        let Event::Message(before) = &events[0] else {
            panic!("a message")
        };
        let channel = ChannelId::from_bytes([7; 16]);
        let entry = message(channel, before, &keys(), 1);
        let again = parse(&entry.body).ok().unwrap();
        assert!(again == events);
        assert_eq!(
            activity_id(channel, &again[0], &keys()),
            activity_id(channel, &events[0], &keys())
        );
        assert_ne!(
            activity_id(ChannelId::from_bytes([8; 16]), &events[0], &keys()),
            activity_id(channel, &events[0], &keys())
        );
    }

    fn kept(new: &NewEntry) -> Entry {
        Entry {
            seq: Seq(1),
            direction: new.direction,
            channel: new.channel,
            contact: new.contact.clone(),
            accepted_at_ms: new.accepted_at_ms,
            body: new.body.clone(),
        }
    }

    #[test]
    fn a_reply_is_tied_to_the_message_whose_activity_it_names() {
        let body = r#"{"messages":[{"id":"wamid.X","from":"34600000001","type":"text","text":{"body":"a"}}],
            "statuses":[{"id":"wamid.Y","recipient_id":"34600000001","status":"failed"}]}"#;
        let channel = ChannelId::from_bytes([7; 16]);
        let events = parse(body.as_bytes()).ok().unwrap();
        let mut entries = events.iter().map(|event| match event {
            Event::Message(one) => (true, kept(&message(channel, one, &keys(), 1))),
            Event::Status(one) => (false, kept(&status(channel, one, &keys(), 1))),
        });
        let (_, asked) = entries.find(|(is_message, _)| *is_message).unwrap();
        let id = activity_id(channel, &events[0], &keys());
        let answer = |body: String| {
            let parsed: Reply = serde_json::from_str(&body).unwrap();
            let body = with_reply_to(Bytes::from(body), &parsed, Some(&id));
            kept(&reply(channel, "34600000001", None, body, &keys(), 1))
        };
        let named = answer(format!(r#"{{"type":"message","replyToId":"{id}","text":"b"}}"#));
        let by_path = answer(r#"{"type":"message","text":"b","n":1e400,"replyToId":null}"#.to_owned());
        let another = answer(r#"{"type":"message","text":"b","replyToId":"x"}"#.to_owned());
        let of = |entry: &Entry| request(entry, &keys());
        assert!(of(&asked).is_some());
        assert_eq!(of(&named), of(&asked));
        assert_eq!(of(&by_path), of(&asked));
        assert!(of(&another).is_some() && of(&another) != of(&asked));
        assert!(
            std::str::from_utf8(&by_path.body).unwrap().contains("1e400"),
            "all else as it came"
        );
        let none = kept(&reply(channel, "1", None, Bytes::from("{}"), &keys(), 1));
        assert_eq!(of(&none), None);
        for (_, status) in events.iter().filter_map(|event| match event {
            Event::Status(one) => Some((0, kept(&super::status(channel, one, &keys(), 1)))),
            Event::Message(_) => None,
        }) {
            assert_eq!(of(&status), None);
        }
    }

    #[test]
    fn a_lane_is_logged_under_the_digest_of_its_contact() {
        let contact = contact_key("34600000001", &keys());
        assert_eq!(contact.to_string(), keys().digest("34600000001").to_string());
        assert_ne!(contact, contact_key("34600000002", &keys()));
    }

    #[test]
    fn replies_are_told_apart_by_their_own_id_only() {
        let channel = ChannelId::from_bytes([7; 16]);
        let dedup = |id| reply(channel, "1", id, Bytes::new(), &keys(), 1).dedup;
        assert!(dedup(Some("a")) == dedup(Some("a")) && dedup(Some("a")) != dedup(Some("b")));
        assert!(dedup(None) != dedup(None));
    }
}
