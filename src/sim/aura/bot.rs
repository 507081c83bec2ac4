//! What the simulated bot says, and the requests that carry it to the activity's `serviceUrl`.
//!
//! Replies to one activity go out in order, each repeated until it is taken: at least once. Replies to different
//! activities overtake each other, as those of a real bot may.

use std::{
    fmt::{self, Write},
    sync::Arc,
    time::Duration,
};

use hyper::header::AUTHORIZATION;
use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Map, Value, json};
use tokio::{
    sync::{mpsc, watch},
    task::JoinSet,
};

use super::{
    State,
    ledger::{ReceivedActivity, SentReply},
};

type Script = dyn Fn(&ReceivedActivity) -> Vec<Value> + Send + Sync;

/// What is replied to a message. Activities of another type are taken and never replied to.
#[derive(Clone)]
pub enum Behaviour {
    /// One reply that repeats the text, or greets back.
    Echo,
    /// Nothing.
    Silent,
    /// So many replies, numbered.
    Replies(u32),
    /// What a function makes of it; see [`Behaviour::script`].
    Script(Arc<Script>),
}

impl fmt::Debug for Behaviour {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Echo => f.write_str("Echo"),
            Self::Silent => f.write_str("Silent"),
            Self::Replies(n) => write!(f, "Replies({n})"),
            Self::Script(_) => f.write_str("Script"),
        }
    }
}

impl Behaviour {
    /// Replies with what the function returns: a string is a text; an object's fields (text, attachments,
    /// channelData, …) are laid over the usual reply, whose `channelData` keeps what is not replaced.
    pub fn script(script: impl Fn(&ReceivedActivity) -> Vec<Value> + Send + Sync + 'static) -> Self {
        Self::Script(Arc::new(script))
    }

    pub(super) fn replies(&self, activity: &ReceivedActivity) -> Vec<Value> {
        if activity.kind != "message" {
            return Vec::new();
        }
        match self {
            Self::Echo => vec![said(activity).into()],
            Self::Silent => Vec::new(),
            Self::Replies(n) => (1..=*n)
                .map(|i| format!("{} ({i}/{n})", said(activity)).into())
                .collect(),
            Self::Script(script) => script(activity),
        }
    }
}

fn said(activity: &ReceivedActivity) -> String {
    match activity.text.as_deref().map(str::trim) {
        Some(text) if text.to_lowercase() == "hola" => {
            format!("¡Hola! Me has dicho «{text}». ¿En qué te ayudo?")
        }
        Some(text) if !text.is_empty() => format!("Echo: {text}"),
        _ => {
            let payload = &activity.body["channelData"]["payload"];
            let kind = ["type", "kind"].iter().find_map(|key| payload[key].as_str());
            kind.map_or_else(|| "Recibido".to_owned(), |kind| format!("Recibido: {kind}"))
        }
    }
}

/// An activity and what is to be said to it.
pub(super) struct Turn {
    pub activity: ReceivedActivity,
    pub replies: Vec<Value>,
}

/// The whole reply.
fn reply(activity: &ReceivedActivity, id: &str, content: Value) -> Value {
    let mut channel_data = Map::from_iter([("channelId".to_owned(), json!(activity.channel_id))]);
    if let Some(correlator) = &activity.correlator {
        channel_data.insert("correlator".to_owned(), json!(correlator));
    }
    let mut reply = json!({
        "type": "message",
        "id": id,
        "timestamp": Timestamp::now().to_string(),
        "from": {"id": "aura", "name": "Aura"},
        "recipient": {"id": activity.from_id},
        "conversation": {"id": activity.conversation_id},
        "replyToId": activity.id,
        "inputHint": "acceptingInput",
        "channelData": channel_data,
    });
    match content {
        Value::Object(fields) => {
            for (name, value) in fields {
                match (name.as_str(), value) {
                    ("channelData", Value::Object(more)) => {
                        for (name, value) in more {
                            reply["channelData"][name] = value;
                        }
                    }
                    (_, value) => reply[name] = value,
                }
            }
        }
        text => reply["text"] = text,
    }
    reply
}

/// JavaScript's `encodeURIComponent`, which the Bot Framework's connector applies to ids in paths.
fn encoded(segment: &str) -> String {
    let mut encoded = String::with_capacity(segment.len());
    for byte in segment.bytes() {
        if byte.is_ascii_alphanumeric() || b"-_.!~*'()".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(encoded, "%{byte:02X}");
        }
    }
    encoded
}

fn reply_url(activity: &ReceivedActivity) -> String {
    let base = activity.service_url.trim_end_matches('/');
    let (conversation, activity) = (encoded(&activity.conversation_id), encoded(&activity.id));
    format!("{base}/v3/conversations/{conversation}/activities/{activity}")
}

/// Sends replies for ever; ends with its caller, and all requests with it.
pub(super) async fn run(
    state: Arc<State>,
    http: Client,
    mut queue: mpsc::UnboundedReceiver<Turn>,
    up: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    loop {
        tokio::select! {
            Some(_) = tasks.join_next() => {}
            turn = queue.recv() => {
                let Some(turn) = turn else { break };
                tasks.spawn(take_turn(Arc::clone(&state), http.clone(), turn, up.clone()));
            }
        }
    }
}

async fn take_turn(state: Arc<State>, http: Client, turn: Turn, mut up: watch::Receiver<bool>) {
    let url = reply_url(&turn.activity);
    for content in turn.replies {
        let id = state
            .data
            .write(|data| data.reply_id(&turn.activity.conversation_id));
        let body = reply(&turn.activity, &id, content);
        let text = body["text"].as_str().unwrap_or_default().to_owned();
        let mut attempt = 0;
        loop {
            attempt += 1;
            // Never closed while this runs.
            let _ = up.wait_for(|up| *up).await;
            let began = Timestamp::now();
            let credential = format!("APIKEY {}", state.options.reply_api_key);
            let sending = http
                .post(&url)
                .header(AUTHORIZATION, credential)
                .json(&body)
                .send();
            let status = sending.await.ok().map(|answer| answer.status().as_u16());
            let sent = SentReply {
                began,
                at: Timestamp::now(),
                id: id.clone(),
                conversation_id: turn.activity.conversation_id.clone(),
                reply_to_id: turn.activity.id.clone(),
                text: text.clone(),
                attempt,
                status,
            };
            let taken = sent.taken();
            state.data.write(|data| data.replies.push(sent));
            if taken {
                break;
            }
            let delay: Duration = state.options.retry_step.saturating_mul(attempt);
            tokio::time::sleep(delay.min(state.options.retry_cap)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::aura::activity::{example, parse};

    fn message(text: &str) -> ReceivedActivity {
        parse(example("act/1|2=", text, "http://127.0.0.1:9/base/")).unwrap()
    }

    #[test]
    fn a_greeting_is_greeted_and_all_else_echoed() {
        assert_eq!(
            said(&message("Hola ")),
            "¡Hola! Me has dicho «Hola». ¿En qué te ayudo?"
        );
        assert_eq!(said(&message("una factura")), "Echo: una factura");
    }

    #[test]
    fn a_message_without_text_is_acknowledged_by_its_kind() {
        let mut activity = message("");
        assert_eq!(said(&activity), "Recibido");
        activity.text = None;
        activity.body["channelData"]["payload"] = json!({"type": "image"});
        assert_eq!(said(&activity), "Recibido: image");
    }

    #[test]
    fn behaviours_say_as_much_as_they_should() {
        let activity = message("a");
        assert_eq!(Behaviour::Echo.replies(&activity), [json!("Echo: a")]);
        assert!(Behaviour::Silent.replies(&activity).is_empty());
        assert_eq!(
            Behaviour::Replies(2).replies(&activity),
            [json!("Echo: a (1/2)"), json!("Echo: a (2/2)")]
        );
        let twice = Behaviour::script(|activity| vec![json!(activity.text), json!({"text": "b"})]);
        assert_eq!(twice.replies(&activity).len(), 2);
    }

    #[test]
    fn only_messages_are_replied_to() {
        let mut event = message("a");
        event.kind = "event".to_owned();
        assert!(Behaviour::Echo.replies(&event).is_empty());
    }

    #[test]
    fn ids_are_encoded_in_the_path() {
        let url = reply_url(&message("a"));
        assert_eq!(
            url,
            "http://127.0.0.1:9/base/v3/conversations/conv-1/activities/act%2F1%7C2%3D"
        );
    }

    #[test]
    fn a_script_lays_fields_over_the_usual_reply() {
        let content = json!({"text": "b", "attachments": [1], "channelData": {"actions": []}});
        let reply = reply(&message("a"), "conv-1|0000001", content);
        assert_eq!(reply["text"], "b");
        assert_eq!(reply["attachments"], json!([1]));
        assert_eq!(reply["channelData"]["correlator"], "corr-1");
        assert_eq!(reply["channelData"]["actions"], json!([]));
    }
}
