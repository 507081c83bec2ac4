//! Sending: a valid message of an entitled client reaches its user at once.

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::StatusCode;
use jiff::Timestamp;
use serde_json::json;
use uuid::Uuid;

use super::{
    State,
    api::{error, json_body},
    ledger::{ApiVersion, UserMessage},
    oauth::MESSAGING,
    rules,
};
use crate::sim::server::{Answer, Call, json};

/// Which way a message goes; its id tells.
#[derive(Clone, Copy)]
pub(super) enum Direction {
    FromUser,
    ToUser,
}

/// A message id as WhatsApp makes them: a small binary structure in base64 with the user's number in the clear. Who
/// logs such an id logs a phone number.
pub(super) fn wamid(user: &str, direction: Direction) -> String {
    let number = user.as_bytes();
    let unique = Uuid::new_v4().simple().to_string().to_uppercase();
    let mut bytes = vec![0x1c, 0x18, u8::try_from(number.len()).unwrap_or(u8::MAX)];
    bytes.extend_from_slice(number);
    bytes.extend_from_slice(&[0x15, 0x02, 0x00]);
    bytes.push(match direction {
        Direction::ToUser => 0x11,
        Direction::FromUser => 0x12,
    });
    bytes.extend_from_slice(&[0x18, 0x14]);
    bytes.extend_from_slice(&unique.as_bytes()[..20]);
    bytes.push(0);
    format!("wamid.{}", STANDARD.encode(bytes))
}

impl State {
    /// `POST …/messages`
    pub(super) fn send(&self, call: &Call, version: ApiVersion) -> Answer {
        let asked = self
            .entitled(call, MESSAGING)
            .and_then(|client| Ok((client, json_body(call)?)));
        let (client_id, body) = match asked {
            Ok(asked) => asked,
            Err(refusal) => return *refusal,
        };
        let message = match rules::check(&body, version) {
            Ok(message) => message,
            Err(why) => return error(StatusCode::BAD_REQUEST, &why),
        };
        let id = wamid(&message.to, Direction::ToUser);
        let taken = self.data.write(|data| {
            let from_number = data.clients.get(&client_id)?.number.clone();
            data.received.push(UserMessage {
                wamid: id.clone(),
                from_number,
                to: message.to,
                kind: message.kind,
                text: message.text,
                at: Timestamp::now(),
                client_id,
                api_version: version,
                correlator: call.header("x-correlator").map(str::to_owned),
                idempotency_key: call.header("idempotency-key").map(str::to_owned),
                body,
            });
            Some(data.reports.pop_front().unwrap_or_default())
        });
        let Some(reports) = taken else {
            return error(StatusCode::UNAUTHORIZED, "the token's client is gone");
        };
        for (status, errors) in reports {
            // Without a webhook nobody is told.
            let _ = self.push_status(&id, &status, &errors);
        }
        let meta = json!({"api_status": "stable", "version": "2.53.2"});
        json(
            StatusCode::CREATED,
            &json!({"messages": [{"id": id}], "meta": meta}),
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_unique_and_holds_the_number() {
        let id = wamid("34600000001", Direction::ToUser);
        let bytes = STANDARD.decode(id.strip_prefix("wamid.").unwrap()).unwrap();
        assert!(bytes.windows(11).any(|window| window == b"34600000001"));
        assert!(id.starts_with("wamid.HBgL"));
        assert_ne!(id, wamid("34600000001", Direction::ToUser));
    }
}
