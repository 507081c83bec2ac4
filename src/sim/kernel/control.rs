//! The simulator's own surface under `/sim/`, so that another process can play a user: `POST /sim/users/send`,
//! `GET /sim/users/{user}/messages?after=N&wait_ms=T` (long poll) and `GET /sim/state`. Shows no secret, token or key.

use std::time::Duration;

use hyper::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{
    State,
    api::{error, json_body},
    ledger::{Data, UserMessage},
    settings::mask_key,
    whatsapp_side::NoWebhook,
};
use crate::sim::{
    fault::Endpoint,
    server::{Answer, Call, json},
};

/// The longest long poll.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Send {
    number: String,
    from: String,
    text: String,
}

impl State {
    pub(super) async fn control(&self, call: &Call) -> Answer {
        let path: Vec<&str> = call.path.trim_start_matches('/').split('/').collect();
        match (&call.method, path.as_slice()) {
            (&Method::POST, ["sim", "users", "send"]) => self.control_send(call),
            (&Method::GET, ["sim", "users", user, "messages"]) => self.control_messages(call, user).await,
            (&Method::GET, ["sim", "state"]) => json(StatusCode::OK, &self.data.read(state)),
            _ => error(StatusCode::NOT_FOUND, "there is nothing at this path"),
        }
    }

    fn control_send(&self, call: &Call) -> Answer {
        let body = match json_body(call) {
            Ok(body) => body,
            Err(refusal) => return *refusal,
        };
        let send: Send = match serde_json::from_value(body) {
            Ok(send) => send,
            Err(why) => return error(StatusCode::BAD_REQUEST, &why.to_string()),
        };
        match self.user_sends(&send.number, &send.from, &send.text) {
            Ok(wamid) => json(StatusCode::OK, &json!({"wamid": wamid})),
            Err(why) => {
                let status = match why {
                    NoWebhook::UnknownNumber(_) => StatusCode::NOT_FOUND,
                    NoWebhook::AmbiguousNumber(_) | NoWebhook::NotSet(_) => StatusCode::CONFLICT,
                    NoWebhook::NoUser(_) => StatusCode::BAD_REQUEST,
                };
                error(status, &why.to_string())
            }
        }
    }

    async fn control_messages(&self, call: &Call, user: &str) -> Answer {
        let number = |name| call.query_value(name).map_or(Ok(0), |value| value.parse::<u64>());
        let (Ok(after), Ok(wait)) = (number("after"), number("wait_ms")) else {
            return error(StatusCode::BAD_REQUEST, "after and wait_ms must be numbers");
        };
        let after = usize::try_from(after).unwrap_or(usize::MAX);
        let wait = Duration::from_millis(wait).min(LONGEST_WAIT);
        let more = after.saturating_add(1);
        // Nothing new in time is an empty list.
        let _ = self
            .data
            .wait("messages", more, wait, |data| data.received(user).count())
            .await;
        let messages: Vec<Value> = self
            .data
            .read(|data| data.received(user).skip(after).map(shown).collect());
        json(StatusCode::OK, &Value::from(messages))
    }
}

fn shown(message: &UserMessage) -> Value {
    json!({
        "wamid": message.wamid,
        "from_number": message.from_number,
        "to": message.to,
        "type": message.kind,
        "text": message.text,
        "at": message.at.to_string(),
        "client_id": message.client_id,
        "api_version": message.api_version.to_string(),
        "body": message.body,
    })
}

fn state(data: &Data) -> Value {
    let clients = data.clients.iter().map(|(id, client)| {
        let count = |endpoint| {
            data.calls_at(endpoint)
                .filter(|call| call.client_id.as_ref() == Some(id))
                .count()
        };
        json!({
            "id": id,
            "number": client.number,
            "scopes": client.scopes,
            "webhook": client.webhook.as_deref().map(mask_key),
            "token_requests": count(Endpoint::Token),
            "webhook_gets": count(Endpoint::WebhookGet),
            "webhook_sets": count(Endpoint::WebhookSet),
            "sends": count(Endpoint::Send),
        })
    });
    json!({
        "clients": clients.collect::<Vec<_>>(),
        "received": data.received.len(),
        "webhook_calls": data.webhook_calls.len(),
        "pending_webhook_calls": data.pending,
    })
}
