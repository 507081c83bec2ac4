//! What a webhook call holds: `{contacts, messages, statuses, errors}`, any of them absent, each a list.
//!
//! Each message and status keeps its own bytes as they came, so that a kind we do not know reaches Aura whole.

use serde::Deserialize;
use serde_json::value::RawValue;

/// Most messages and statuses in one call that are taken.
pub const MAX_EVENTS: usize = 1000;
/// Longest WhatsApp id of a user: E.164 has 15 digits; group ids and Kernel's own forms may be longer.
const MAX_CONTACT: usize = 64;
/// Longest name of a user that is kept, in characters.
const MAX_NAME: usize = 256;
/// Most errors of a status that are looked at.
const MAX_ERRORS: usize = 16;
/// Longest message id.
const MAX_ID: usize = 256;
/// Deepest nesting of lists and objects. What WhatsApp sends has about ten levels; what is deeper could overflow the stack
/// of whoever reads what is passed on as it came.
const MAX_DEPTH: u32 = 64;

/// One thing that a call tells.
#[derive(Clone, PartialEq)]
pub enum Event {
    /// A user wrote.
    Message(InboundMessage),
    /// A message of ours was sent, delivered, read or failed.
    Status(Status),
}

/// A user's message. Its `Debug` is left out on purpose: it holds a number and a text.
#[derive(Clone, PartialEq)]
pub struct InboundMessage {
    /// WhatsApp's id of the message.
    pub id: String,
    /// The user's WhatsApp id.
    pub from: String,
    /// When it was sent, in seconds since 1970, where the call says so.
    pub timestamp: Option<i64>,
    /// Its kind, as WhatsApp calls it: text, image, …
    pub kind: String,
    /// The text of a text message.
    pub text: Option<String>,
    /// The user's own name, where the call gives it.
    pub profile_name: Option<String>,
    /// The message as it came: JSON.
    pub raw: String,
}

/// What became of a message of ours.
#[derive(Clone, PartialEq)]
pub struct Status {
    /// WhatsApp's id of the message that it speaks of.
    pub id: String,
    /// The user.
    pub recipient: String,
    /// sent, delivered, read, failed, deleted, warning, or what WhatsApp adds one day.
    pub status: String,
    /// When it came about, in seconds since 1970, where the call says so.
    pub timestamp: Option<i64>,
    /// The codes of its errors, where it has some.
    pub errors: Vec<i64>,
    /// What a send gave to be told back (`biz_opaque_callback_data`), where the platform does.
    pub echo: Option<String>,
    /// The status as it came: JSON.
    pub raw: String,
}

/// The body is not a webhook call. Nothing of it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Malformed {
    /// Not JSON, or not of the shape.
    #[error("the body is not a WhatsApp webhook call in JSON")]
    Shape,
    /// A message without an id or sender, or with one that can't be.
    #[error("a message has no usable id or user")]
    Identity,
    /// More events than one call may hold.
    #[error("the call holds more than {MAX_EVENTS} messages and statuses")]
    TooMany,
}

#[derive(Deserialize)]
struct Call<'a> {
    #[serde(default, borrow)]
    contacts: Option<Vec<&'a RawValue>>,
    #[serde(default, borrow)]
    messages: Option<Vec<&'a RawValue>>,
    #[serde(default, borrow)]
    statuses: Option<Vec<&'a RawValue>>,
}

#[derive(Deserialize)]
struct Contact {
    #[serde(default)]
    wa_id: Option<String>,
    #[serde(default)]
    profile: Option<Profile>,
}

#[derive(Deserialize)]
struct Profile {
    #[serde(default)]
    name: Option<String>,
}

#[derive(Deserialize)]
struct MessageHead {
    id: String,
    from: String,
    #[serde(default)]
    timestamp: Option<Whole>,
    #[serde(default, rename = "type")]
    kind: Option<Word>,
    #[serde(default)]
    text: Option<TextBody>,
}

/// A text's body; anything else in its place is left to the raw message.
#[derive(Deserialize)]
#[serde(untagged)]
enum TextBody {
    Body { body: String },
    Other(serde::de::IgnoredAny),
}

/// A word; anything else in its place is left to the raw message.
#[derive(Deserialize)]
#[serde(untagged)]
enum Word {
    Text(String),
    Other(serde::de::IgnoredAny),
}

/// A whole number: of seconds, documented as a string, or a code, documented as a number; both are taken as either.
#[derive(Deserialize)]
#[serde(untagged)]
enum Whole {
    Text(String),
    Number(i64),
    Other(serde::de::IgnoredAny),
}

impl Whole {
    fn value(self) -> Option<i64> {
        match self {
            Self::Text(text) => text.parse().ok(),
            Self::Number(number) => Some(number),
            Self::Other(_) => None,
        }
    }
}

#[derive(Deserialize)]
struct StatusHead<'a> {
    id: String,
    #[serde(default)]
    timestamp: Option<Whole>,
    #[serde(default)]
    recipient_id: Option<String>,
    status: String,
    #[serde(default, borrow)]
    errors: Option<&'a RawValue>,
    #[serde(default)]
    biz_opaque_callback_data: Option<Word>,
}

#[derive(Deserialize)]
struct ErrorHead {
    #[serde(default)]
    code: Option<Whole>,
}

/// The codes of a status's errors; what can't be read is left out.
fn codes(errors: Option<&RawValue>) -> Vec<i64> {
    let errors = errors.and_then(|errors| serde_json::from_str::<Vec<&RawValue>>(errors.get()).ok());
    let heads = errors.into_iter().flatten().take(MAX_ERRORS);
    heads
        .filter_map(|raw| serde_json::from_str::<ErrorHead>(raw.get()).ok()?.code?.value())
        .collect()
}

/// Reads the body of a webhook call.
///
/// # Errors
/// When it is not one. A call is taken as a whole or not at all, so that nothing of it is lost unnoticed.
pub fn parse(body: &[u8]) -> Result<Vec<Event>, Malformed> {
    if !is_object(body) || depth(body) > MAX_DEPTH {
        return Err(Malformed::Shape);
    }
    let call: Call<'_> = serde_json::from_slice(body).map_err(|_| Malformed::Shape)?;
    // Decoration: one that can't be read is left out.
    let contacts: Vec<Contact> = call
        .contacts
        .unwrap_or_default()
        .into_iter()
        .take(MAX_EVENTS)
        .filter_map(|raw| serde_json::from_str(raw.get()).ok())
        .collect();
    let (messages, statuses) = (
        call.messages.unwrap_or_default(),
        call.statuses.unwrap_or_default(),
    );
    if messages.len() + statuses.len() > MAX_EVENTS {
        return Err(Malformed::TooMany);
    }
    let mut events = Vec::with_capacity(messages.len() + statuses.len());
    for raw in messages {
        events.push(Event::Message(message(raw, &contacts)?));
    }
    for raw in statuses {
        // A status that speaks of no message tells nothing: it is no reason to refuse another user's message.
        let Ok(head) = head::<StatusHead<'_>>(raw) else {
            continue;
        };
        let recipient = head.recipient_id.unwrap_or_default();
        if head.id.is_empty() || head.id.len() > MAX_ID || recipient.len() > MAX_CONTACT {
            continue;
        }
        events.push(Event::Status(Status {
            id: head.id,
            recipient,
            status: head.status,
            timestamp: head.timestamp.and_then(Whole::value),
            errors: codes(head.errors),
            echo: match head.biz_opaque_callback_data {
                Some(Word::Text(echo)) if echo.len() <= MAX_ID => Some(echo),
                _ => None,
            },
            raw: raw.get().to_owned(),
        }));
    }
    Ok(events)
}

/// How deeply lists and objects are nested in a JSON text.
fn depth(json: &[u8]) -> u32 {
    let (mut now, mut deepest, mut in_text, mut escaped) = (0_u32, 0, false, false);
    for byte in json {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = in_text,
            b'"' => in_text = !in_text,
            b'{' | b'[' if !in_text => {
                now += 1;
                deepest = deepest.max(now);
            }
            b'}' | b']' if !in_text => now = now.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Whether this is a JSON object: serde would read an array as a struct too, field by field.
fn is_object(json: &[u8]) -> bool {
    json.trim_ascii_start().first() == Some(&b'{')
}

fn head<'a, T: Deserialize<'a>>(raw: &'a RawValue) -> Result<T, Malformed> {
    if !is_object(raw.get().as_bytes()) {
        return Err(Malformed::Identity);
    }
    serde_json::from_str(raw.get()).map_err(|_| Malformed::Identity)
}

fn message(raw: &RawValue, contacts: &[Contact]) -> Result<InboundMessage, Malformed> {
    let head: MessageHead = head(raw)?;
    let usable = |text: &str, most: usize| {
        !text.is_empty() && text.len() <= most && !text.chars().any(|c| c.is_control() || c.is_whitespace())
    };
    if !usable(&head.id, MAX_ID) || !usable(&head.from, MAX_CONTACT) {
        return Err(Malformed::Identity);
    }
    let profile_name = contacts
        .iter()
        .find(|contact| contact.wa_id.as_deref() == Some(head.from.as_str()))
        .and_then(|contact| contact.profile.as_ref()?.name.as_ref())
        .map(|name| name.chars().take(MAX_NAME).collect());
    Ok(InboundMessage {
        timestamp: head.timestamp.and_then(Whole::value),
        kind: match head.kind {
            Some(Word::Text(kind)) => kind,
            _ => "unknown".to_owned(),
        },
        text: head.text.and_then(|text| match text {
            TextBody::Body { body } => Some(body),
            TextBody::Other(_) => None,
        }),
        profile_name,
        raw: raw.get().to_owned(),
        id: head.id,
        from: head.from,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const TEXT: &str = r#"{"contacts":[{"profile":{"name":"Ana"},"wa_id":"34600000001"}],
        "messages":[{"from":"34600000001","id":"wamid.X","timestamp":"1763805600","type":"text","text":{"body":"hola"}}]}"#;

    #[test]
    fn what_is_nested_too_deeply_is_refused_wherever_it_stands_and_brackets_in_a_text_are_none() {
        let message = |field: &str| {
            parse(format!(r#"{{"messages":[{{"from":"1","id":"x","new":{field}}}]}}"#).as_bytes())
                .map(|events| events.len())
        };
        let nested = |levels| format!("{}{}", "[".repeat(levels), "]".repeat(levels));
        assert_eq!(message(&nested(61)), Ok(1));
        assert_eq!(message(&nested(62)), Err(Malformed::Shape));
        assert_eq!(message(&nested(100_000)), Err(Malformed::Shape));
        assert_eq!(message(&format!(r#""\\\"{}""#, "[{".repeat(500))), Ok(1));
    }

    fn only_message(body: &str) -> InboundMessage {
        match parse(body.as_bytes()).ok().and_then(|mut events| events.pop()) {
            Some(Event::Message(message)) => message,
            _ => panic!("one message expected"),
        }
    }

    #[test]
    fn a_text_is_read_with_its_sender() {
        let message = only_message(TEXT);
        assert_eq!(
            (message.id.as_str(), message.from.as_str()),
            ("wamid.X", "34600000001")
        );
        assert_eq!(message.text.as_deref(), Some("hola"));
        assert_eq!(message.profile_name.as_deref(), Some("Ana"));
        assert_eq!(message.timestamp, Some(1_763_805_600));
    }

    #[test]
    fn a_kind_that_nobody_knows_is_kept_as_it_came() {
        let message = only_message(
            r#"{"messages":[{"id":"a","from":"1234","type":"hologram","hologram":{"depth": 1e400},"text":7}]}"#,
        );
        assert_eq!(message.kind, "hologram");
        assert!(message.raw.contains(r#""hologram":{"depth": 1e400}"#) && message.text.is_none());
    }

    #[test]
    fn statuses_and_empty_calls_are_read() {
        let events =
            parse(br#"{"statuses":[{"id":"wamid.Y","recipient_id":"34600000001","status":"read"}]}"#);
        assert!(matches!(events.ok().as_deref(), Some([Event::Status(status)]) if status.status == "read"));
        for empty in [
            "{}",
            r#"{"messages":[]}"#,
            r#"{"messages":null,"errors":[{"code":1}]}"#,
        ] {
            assert_eq!(
                parse(empty.as_bytes()).ok().map(|events| events.len()),
                Some(0),
                "{empty}"
            );
        }
    }

    #[test]
    fn odd_decoration_is_no_reason_to_refuse_a_message() {
        let body = r#"{"contacts":[{"wa_id":346},"x"],"statuses":[{"status":"read"},7],
            "messages":[{"id":"a","from":"1234","type":7}]}"#;
        assert_eq!(only_message(body).kind, "unknown");
        assert_eq!(parse(body.as_bytes()).map(|events| events.len()), Ok(1));
        let long = format!(
            r#"{{"contacts":[{{"wa_id":"1","profile":{{"name":"{}"}}}}],"messages":[{{"id":"a","from":"1"}}]}}"#,
            "ñ".repeat(5000)
        );
        assert_eq!(
            only_message(&long).profile_name.unwrap().chars().count(),
            MAX_NAME
        );
    }

    #[test]
    fn what_is_no_call_is_refused_as_a_whole() {
        for (body, why) in [
            ("", Malformed::Shape),
            ("[]", Malformed::Shape),
            ("\u{feff}{}", Malformed::Shape),
            (r#"{"messages":{}}"#, Malformed::Shape),
            (r#"{"messages":[["a","1"]]}"#, Malformed::Identity),
            (r#"{"messages":[{"id":"a"}]}"#, Malformed::Identity),
            (r#"{"messages":[{"id":"","from":"1"}]}"#, Malformed::Identity),
            (r#"{"messages":[{"id":"a","from":"1\n2"}]}"#, Malformed::Identity),
        ] {
            assert_eq!(parse(body.as_bytes()).err(), Some(why), "{body}");
        }
        assert_eq!(parse(b"{\"messages\":[\"\xff\"]}").err(), Some(Malformed::Shape));
        let deep = format!("{{\"x\":{}{}}}", "[".repeat(10_000), "]".repeat(10_000));
        assert_eq!(parse(deep.as_bytes()).err(), Some(Malformed::Shape));
        let many = format!("{{\"statuses\":[{}]}}", vec!["{}"; MAX_EVENTS + 1].join(","));
        assert_eq!(parse(many.as_bytes()).err(), Some(Malformed::TooMany));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = parse(&body);
        }
    }
}
