//! Which endpoint a call is for, what every answer has in common, and Kernel's error body.

use std::time::Duration;

use hyper::{Method, StatusCode, header::HeaderValue};
use jiff::Timestamp;
use serde_json::{Value, json};
use uuid::Uuid;

use super::{
    State,
    ledger::{ApiCall, ApiVersion},
    oauth,
};
use crate::sim::{
    fault::{Endpoint, Faults},
    server::{Answer, App, Arrival, Call, json},
};

const CORRELATOR: &str = "x-correlator";

/// Where a path leads. The methods are checked where it leads.
enum Place {
    Control,
    Token,
    Webhook(ApiVersion),
    Messages(ApiVersion),
    Nowhere,
}

fn place(call: &Call) -> Place {
    if call.path.starts_with("/sim/") {
        return Place::Control;
    }
    match call.path.as_str() {
        "/token" => Place::Token,
        "/whatsapp/v1/settings/webhook" => Place::Webhook(ApiVersion::V1),
        "/whatsapp/v2/settings/webhook" => Place::Webhook(ApiVersion::V2),
        "/whatsapp/v1/messages" => Place::Messages(ApiVersion::V1),
        "/whatsapp/v2/messages" => Place::Messages(ApiVersion::V2),
        _ => Place::Nowhere,
    }
}

fn endpoint(call: &Call) -> Option<(Endpoint, Option<ApiVersion>)> {
    match (place(call), &call.method) {
        (Place::Token, &Method::POST) => Some((Endpoint::Token, None)),
        (Place::Webhook(version), &Method::GET) => Some((Endpoint::WebhookGet, Some(version))),
        (Place::Webhook(version), &Method::PATCH) => Some((Endpoint::WebhookSet, Some(version))),
        (Place::Messages(version), &Method::POST) => Some((Endpoint::Send, Some(version))),
        _ => None,
    }
}

/// The answer to a call that is not served (boxed: an answer is large).
pub(super) type Refusal = Box<Answer>;

/// An error as Kernel words it ("Common errors for 4th Platform APIs", 2.0).
pub(super) fn error(status: StatusCode, message: &str) -> Answer {
    json(status, &body(status, message))
}

fn body(status: StatusCode, message: &str) -> Value {
    let code = match status.as_u16() {
        401 => "UNAUTHENTICATED",
        403 => "PERMISSION_DENIED",
        404 => "NOT_FOUND",
        409 => "CONFLICT",
        429 => "TOO_MANY_REQUESTS",
        501 => "NOT_IMPLEMENTED",
        502 => "BAD_GATEWAY",
        503 => "UNAVAILABLE",
        504 => "TIMEOUT",
        400..=499 => "INVALID_ARGUMENT",
        _ => "INTERNAL",
    };
    json!({"code": code, "message": message})
}

/// The body of a call that must be JSON.
pub(super) fn json_body(call: &Call) -> Result<Value, Refusal> {
    if !call.is("application/json") {
        let why = "the content type must be application/json";
        return Err(Box::new(error(StatusCode::UNSUPPORTED_MEDIA_TYPE, why)));
    }
    serde_json::from_slice(&call.body).map_err(|why| {
        Box::new(error(
            StatusCode::BAD_REQUEST,
            &format!("the body is not JSON: {why}"),
        ))
    })
}

impl App for State {
    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn latency(&self) -> Duration {
        self.data.read(|data| data.latency)
    }

    fn arrived(&self, call: &Call) -> Option<Arrival> {
        let (endpoint, api_version) = endpoint(call)?;
        let client_id = match endpoint {
            Endpoint::Token => oauth::basic(call).map(|(id, _)| id),
            _ => call.credential("Bearer").and_then(|token| {
                self.data
                    .read(|data| data.tokens.get(token).map(|token| token.client_id.clone()))
            }),
        };
        let entry = ApiCall {
            at: Timestamp::now(),
            endpoint,
            api_version,
            client_id: client_id.clone(),
            correlator: call.header(CORRELATOR).map(str::to_owned),
            exchange: call.exchange(),
            status: None,
            asked: if endpoint == Endpoint::Token {
                oauth::scopes_asked(call)
            } else {
                Vec::new()
            },
            answered_at: None,
            granted: Vec::new(),
            body: serde_json::from_slice(&call.body).unwrap_or_default(),
        };
        let entry = self.data.write(|data| {
            data.calls.push(entry);
            data.calls.len() - 1
        });
        Some(Arrival {
            endpoint,
            subject: client_id,
            entry,
        })
    }

    async fn answer(&self, call: &Call) -> Answer {
        match (place(call), &call.method) {
            (Place::Control, _) => self.control(call).await,
            (Place::Token, &Method::POST) => self.token(call),
            (Place::Webhook(_), &Method::GET) => self.webhook_get(call),
            (Place::Webhook(_), &Method::PATCH) => self.webhook_set(call),
            (Place::Messages(version), &Method::POST) => self.send(call, version),
            (Place::Nowhere, _) => error(StatusCode::NOT_FOUND, "there is nothing at this path"),
            _ => error(StatusCode::METHOD_NOT_ALLOWED, "this method is not for this path"),
        }
    }

    fn answered(&self, entry: usize, answer: &Answer) {
        let granted = oauth::scopes_granted(answer);
        self.data.write(|data| {
            if let Some(call) = data.calls.get_mut(entry) {
                call.status = Some(answer.status().as_u16());
                call.answered_at = Some(Timestamp::now());
                if call.endpoint == Endpoint::Token {
                    call.granted = granted;
                }
            }
        });
    }

    fn error_body(&self, status: StatusCode) -> Value {
        body(status, "injected by a test")
    }

    fn decorate(&self, call: &Call, answer: &mut Answer) {
        let given = call.headers.get(CORRELATOR).cloned();
        let fresh = || HeaderValue::from_str(&Uuid::new_v4().to_string()).ok();
        if let Some(correlator) = given.or_else(fresh) {
            answer.headers_mut().insert(CORRELATOR, correlator);
        }
    }
}
