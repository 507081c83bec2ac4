//! The public listener: Kernel's webhook calls. Answers 200 only after the call's messages are on disk (Law 1).

use std::{sync::atomic::Ordering, time::Instant};

use axum::{
    Router,
    body::Body,
    extract::State as Extract,
    http::{HeaderMap, HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use jiff::Timestamp;

use super::{
    auth::{Verdict, judge},
    deliver, entry, exchange,
    state::{Shared, now_ms},
    trail::IdDigest,
};
use crate::{
    journal::{Appended, Direction},
    kernel::contract::WEBHOOK_CALL_PATH,
    telemetry::Context,
    whatsapp::{self, Class, Event},
};

/// How soon a caller is asked to come back, in seconds.
const COME_BACK: &str = "5";

/// An answer that is not 200.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refusal {
    /// 401: not from Kernel, or not for us.
    Unauthorized,
    /// 503: authentic, but not now.
    NotNow,
    /// 415: not JSON.
    NotJson,
    /// 400: JSON, but no webhook call.
    Malformed,
    /// 413: over the limit.
    TooLarge,
    /// 408: the body did not come in time.
    TooSlow,
    /// 429: too many wrong credentials from one address; how many seconds until it may try again.
    TooMany(u64),
}

impl IntoResponse for Refusal {
    fn into_response(self) -> Response {
        let (status, text) = match self {
            Self::Unauthorized => (StatusCode::UNAUTHORIZED, "unauthorized\n"),
            Self::NotNow => (StatusCode::SERVICE_UNAVAILABLE, "not now, come back\n"),
            Self::NotJson => (StatusCode::UNSUPPORTED_MEDIA_TYPE, "send JSON\n"),
            Self::Malformed => (StatusCode::BAD_REQUEST, "not a WhatsApp webhook call\n"),
            Self::TooLarge => (StatusCode::PAYLOAD_TOO_LARGE, "too large\n"),
            Self::TooSlow => (StatusCode::REQUEST_TIMEOUT, "too slow\n"),
            Self::TooMany(_) => (StatusCode::TOO_MANY_REQUESTS, "too many wrong calls\n"),
        };
        let mut response = (status, text).into_response();
        let wait = match self {
            Self::NotNow => Some(HeaderValue::from_static(COME_BACK)),
            Self::TooMany(seconds) => Some(seconds.into()),
            _ => None,
        };
        if let Some(wait) = wait {
            response.headers_mut().insert(header::RETRY_AFTER, wait);
        }
        response
    }
}

/// The routes of the public listener.
pub(super) fn router(state: Shared) -> Router {
    Router::new()
        .route(WEBHOOK_CALL_PATH, post(webhook))
        .with_state(state)
}

async fn webhook(Extract(state): Extract<Shared>, request: Request<Body>) -> Response {
    let arrived = Instant::now();
    let context = exchange::received(request.headers());
    let answer = take(&state, request, &context).await;
    let mut response = match answer {
        Ok(()) => StatusCode::OK.into_response(),
        Err(refusal) => refusal.into_response(),
    };
    exchange::say_back(&mut response, &context);
    state
        .metrics
        .webhook_answered(response.status().as_u16(), arrived.elapsed().as_secs_f64());
    response
}

async fn take(state: &Shared, request: Request<Body>, context: &Context) -> Result<(), Refusal> {
    let (parts, body) = request.into_parts();
    let authorization = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let (routes, keys, setup) = (
        state.routes.load(),
        state.keys.load_full(),
        state.setup.load_full(),
    );
    let current = state.is_current();
    let now = Timestamp::now();
    let route = match judge(parts.uri.query(), authorization, &keys, &routes, current, now) {
        Verdict::Routed(route) => route,
        Verdict::NotRoutable => return Err(Refusal::NotNow),
        // Before the routes are known nobody can be refused: a key issued elsewhere could not be compared.
        Verdict::Refused if !state.health.routes_known.load(Ordering::Relaxed) => {
            return Err(Refusal::NotNow);
        }
        Verdict::Refused => return Err(state.unauthorized("public", &parts)),
    };
    if !is_json(&parts.headers) {
        return Err(Refusal::NotJson);
    }
    let limits = &setup.installation.bridge;
    let (body, _room) = state
        .read(&parts.headers, body, limits.max_body_bytes, limits.body_timeout())
        .await?;
    let events = whatsapp::parse(&body).map_err(|error| {
        tracing::warn!(channel = %route.channel(), %error, bytes = body.len(), "a webhook call that can't be read");
        Refusal::Malformed
    })?;

    let (now, owner) = (now_ms(), route.owner());
    let came = entry::Now {
        wall_ms: now,
        expiry_ms: state.journal.expiry_ms(now),
    };
    let context = context.clone().without(&entry::personal(&events));
    let kept_context = context.kept();
    let (kept, passed_by): (Vec<&Event>, Vec<&Event>) = events.iter().partition(|event| match event {
        Event::Message(_) => true,
        Event::Status(status) => state.keeps(&route, status),
    });
    for event in passed_by {
        if let Event::Status(status) = event {
            state.passed_by(route.channel(), status, now);
        }
    }
    if kept.is_empty() {
        return Ok(());
    }
    let entries: Vec<_> = kept
        .iter()
        .map(|event| match event {
            Event::Message(message) => entry::message(&owner, message, &keys, came),
            Event::Status(status) => entry::status(&owner, status, &keys, came),
        })
        .map(|entry| entry.in_context(&kept_context))
        .collect();
    let set_aside: Vec<bool> = entries.iter().map(|entry| entry.set_aside.is_some()).collect();
    crate::failpoint::at!(WebhookReceived);
    let appended = state.keep(entries, limits.commit_timeout()).await?;
    let correlator = context.correlator().map(|one| IdDigest::of(one, &keys));
    let (mut new, mut again) = (0, 0);
    for (one, event) in appended.iter().zip(kept) {
        let is_new = matches!(one, Appended::New(_));
        // The ids by which others know each: its activity's, and WhatsApp's own of a user's message.
        let digest = |id: &str| IdDigest::of(id, &keys);
        let activity = digest(&entry::activity_id(route.channel(), event, &keys));
        let id = match event {
            Event::Message(message) => {
                (new, again) = (new + u64::from(is_new), again + u64::from(!is_new));
                Some(digest(&message.id))
            }
            Event::Status(status) => {
                let result = if is_new { "accepted" } else { "again" };
                state.metrics.status(Class::of(&status.status).as_str(), result);
                None
            }
        };
        state.arrived(*one, now, [Some(activity), id, correlator]);
    }
    state.metrics.accepted(&route.channel().to_string(), new, again);
    let set_aside = new_and_set_aside(&set_aside, &appended);
    for _ in 0..set_aside {
        let (channel, direction) = (route.channel().to_string(), deliver::word(Direction::ToAura));
        state.metrics.settled(channel, direction, "dead_letter");
    }
    if set_aside > 0 {
        tracing::warn!(channel = %route.channel(), set_aside, "older than ids are remembered: set aside as dead letters");
    }
    tracing::info!(
        channel = %route.channel(), new, again, statuses = appended.len() as u64 - new - again,
        trace_id = context.trace_id().map(tracing::field::display), correlator = context.correlator(), "accepted"
    );
    crate::failpoint::after!(WebhookAnswered);
    Ok(())
}

/// How many of a call's messages are dead letters from now on.
fn new_and_set_aside(set_aside: &[bool], appended: &[Appended]) -> usize {
    let both = set_aside.iter().zip(appended);
    both.filter(|(set_aside, one)| **set_aside && matches!(one, Appended::New(_)))
        .count()
}

/// Whether the content is declared as JSON: `application/json` or `…+json`, with any parameters.
pub(super) fn is_json(headers: &HeaderMap) -> bool {
    let Some(declared) = headers
        .get(header::CONTENT_TYPE)
        .and_then(|value| value.to_str().ok())
    else {
        return false;
    };
    let essence = declared
        .split(';')
        .next()
        .unwrap_or_default()
        .trim()
        .to_ascii_lowercase();
    essence == "application/json" || (essence.starts_with("application/") && essence.ends_with("+json"))
}
