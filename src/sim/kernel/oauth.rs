//! The token endpoint (client credentials with HTTP Basic, RFC 6749) and what a bearer token entitles to.

use std::collections::BTreeMap;

use base64::{Engine, engine::general_purpose::STANDARD};
use hyper::{
    StatusCode,
    header::{CACHE_CONTROL, HeaderValue, WWW_AUTHENTICATE},
};
use serde_json::{Value, json};
use tokio::time::Instant;
use uuid::Uuid;

use super::{
    State,
    api::{Refusal, error},
    ledger::Token,
};
use crate::sim::server::{Answer, Call, json};

pub(super) const ADMIN: &str = "whatsapp:app-admin";
pub(super) const MESSAGING: &str = "whatsapp:app-messaging";

/// The client id and secret of a Basic credential, as they are: Kernel's documentation shows
/// `base64(client_id:client_secret)`, without RFC 6749's form encoding of both.
pub(super) fn basic(call: &Call) -> Option<(String, String)> {
    let decoded = STANDARD.decode(call.credential("Basic")?).ok()?;
    let (id, secret) = String::from_utf8(decoded)
        .ok()?
        .split_once(':')
        .map(|(a, b)| (a.to_owned(), b.to_owned()))?;
    Some((id, secret))
}

/// The form's parameters. Those without a value count as left out; none may come twice (RFC 6749, section 3.2).
fn form(call: &Call) -> Result<BTreeMap<String, String>, &'static str> {
    if !call.is("application/x-www-form-urlencoded") {
        return Err("the content type must be application/x-www-form-urlencoded");
    }
    let mut parameters = BTreeMap::new();
    for (name, value) in url::form_urlencoded::parse(&call.body) {
        if !value.is_empty() && parameters.insert(name.into_owned(), value.into_owned()).is_some() {
            return Err("a parameter is given twice");
        }
    }
    Ok(parameters)
}

fn words(text: &str) -> Vec<String> {
    text.split_ascii_whitespace().map(str::to_owned).collect()
}

/// For the ledger.
pub(super) fn scopes_asked(call: &Call) -> Vec<String> {
    form(call)
        .ok()
        .and_then(|form| form.get("scope").map(|scope| words(scope)))
        .unwrap_or_default()
}

/// For the ledger.
pub(super) fn scopes_granted(answer: &Answer) -> Vec<String> {
    let body: Value = serde_json::from_slice(answer.body()).unwrap_or_default();
    body["scope"].as_str().map(words).unwrap_or_default()
}

fn refused(code: &str, why: &str) -> Answer {
    let status = if code == "invalid_client" {
        StatusCode::UNAUTHORIZED
    } else {
        StatusCode::BAD_REQUEST
    };
    let mut answer = json(status, &json!({"error": code, "error_description": why}));
    if status == StatusCode::UNAUTHORIZED {
        answer.headers_mut().insert(
            WWW_AUTHENTICATE,
            HeaderValue::from_static("Basic realm=\"Kernel\""),
        );
    }
    no_store(answer)
}

fn no_store(mut answer: Answer) -> Answer {
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

impl State {
    /// `POST /token`
    pub(super) fn token(&self, call: &Call) -> Answer {
        let Some((id, secret)) = basic(call) else {
            return refused("invalid_client", "a Basic credential is required");
        };
        let known = self.data.read(|data| {
            let client = data.clients.get(&id).filter(|client| client.secret == secret);
            client.map(|client| client.scopes.clone())
        });
        let Some(allowed) = known else {
            return refused("invalid_client", "client_id or client_secret is wrong");
        };
        let form = match form(call) {
            Ok(form) => form,
            Err(why) => return refused("invalid_request", why),
        };
        if form.contains_key("client_secret") {
            return refused("invalid_request", "only one way to authenticate may be used");
        }
        match form.get("grant_type").map(String::as_str) {
            Some("client_credentials") => {}
            Some(_) => return refused("unsupported_grant_type", "only client_credentials"),
            None => return refused("invalid_request", "grant_type is required"),
        }
        let mut scopes = form.get("scope").map(|scope| words(scope)).unwrap_or_default();
        scopes.retain(|scope| allowed.contains(scope));
        let lifetime = self.options.token_lifetime;
        let access_token = format!("sim-{}", Uuid::new_v4().simple());
        let answer = json!({
            "access_token": access_token,
            "token_type": "Bearer",
            "expires_in": lifetime.as_secs(),
            "scope": scopes.join(" "),
            "purpose": form.get("purpose").map_or("", String::as_str),
        });
        let token = Token {
            client_id: id,
            scopes,
            expires: Instant::now() + lifetime,
            revoked: false,
        };
        self.data.write(|data| data.tokens.insert(access_token, token));
        no_store(json(StatusCode::OK, &answer))
    }

    /// The client whose live token with this scope the call carries.
    pub(super) fn entitled(&self, call: &Call, scope: &str) -> Result<String, Refusal> {
        let unauthenticated = |why| Err(Box::new(error(StatusCode::UNAUTHORIZED, why)));
        let Some(token) = call.credential("Bearer") else {
            return unauthenticated("a bearer token is required");
        };
        let token = self.data.read(|data| data.tokens.get(token).cloned());
        match token {
            None => unauthenticated("the token is unknown"),
            Some(token) if token.revoked => unauthenticated("the token has been revoked"),
            Some(token) if token.expires <= Instant::now() => unauthenticated("the token has expired"),
            Some(token) if !token.scopes.iter().any(|granted| granted == scope) => {
                let why = format!("the token lacks the scope {scope}");
                Err(Box::new(error(StatusCode::FORBIDDEN, &why)))
            }
            Some(token) => Ok(token.client_id),
        }
    }
}
