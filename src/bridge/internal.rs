//! The internal listener: Aura's replies, in Bot Framework's form. Answers 200 only after the reply is on disk.
//!
//! A reply must come with its environment's credential, for a conversation that we gave out, and name the channel
//! of that conversation (Law 5).

use std::time::Instant;

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, State as Extract},
    http::{HeaderValue, Request, StatusCode, header},
    response::{IntoResponse, Response},
    routing::post,
};
use serde_json::json;

use super::{
    entry, exchange,
    public::{self, Refusal},
    state::{Shared, now_ms},
    trail::IdDigest,
};
use crate::{
    api::ChannelId,
    aura::{Reply, contract, with_id},
    convert,
    journal::Appended,
    server::ClientNames,
    telemetry::Context,
};

/// Why a reply is not taken.
enum Rejection {
    Plain(Refusal),
    /// 400: it can't be delivered as it is.
    Bad(&'static str),
    /// 403: not this caller's conversation.
    Forbidden(&'static str),
    /// 404: no conversation of ours.
    UnknownConversation,
}

impl From<Refusal> for Rejection {
    fn from(refusal: Refusal) -> Self {
        Self::Plain(refusal)
    }
}

impl IntoResponse for Rejection {
    /// The form of Bot Framework's errors.
    fn into_response(self) -> Response {
        let (status, code, message) = match self {
            Self::Plain(Refusal::Malformed) => (
                StatusCode::BAD_REQUEST,
                "BadSyntax",
                "the body is not an activity in JSON",
            ),
            Self::Plain(refusal) => return refusal.into_response(),
            Self::Bad(message) => (StatusCode::BAD_REQUEST, "BadArgument", message),
            Self::Forbidden(message) => (StatusCode::FORBIDDEN, "Forbidden", message),
            Self::UnknownConversation => (
                StatusCode::NOT_FOUND,
                "ConversationNotFound",
                "no conversation of this bridge has that id",
            ),
        };
        (
            status,
            Json(json!({ "error": { "code": code, "message": message } })),
        )
            .into_response()
    }
}

/// The routes of the internal listener.
pub(super) fn router(state: Shared) -> Router {
    Router::new()
        .route(contract::REPLY_ROUTE, post(reply))
        .route(&format!("{}/{{activityId}}", contract::REPLY_ROUTE), post(reply))
        .with_state(state)
}

async fn reply(
    Extract(state): Extract<Shared>,
    Path(path): Path<Vec<(String, String)>>,
    request: Request<Body>,
) -> Response {
    let arrived = Instant::now();
    let context = exchange::received(request.headers());
    let mut response = match take(&state, &path, request, &context).await {
        Ok(id) => Json(json!({ "id": id })).into_response(),
        Err(rejection) => rejection.into_response(),
    };
    if response.status() == StatusCode::SERVICE_UNAVAILABLE {
        response
            .headers_mut()
            .insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
    }
    exchange::say_back(&mut response, &context);
    state.metrics.reply_answered(arrived.elapsed().as_secs_f64());
    response
}

async fn take(
    state: &Shared,
    path: &[(String, String)],
    request: Request<Body>,
    context: &Context,
) -> Result<String, Rejection> {
    let (parts, body) = request.into_parts();
    let presented = parts
        .headers
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok());
    let certified = parts.extensions.get::<ClientNames>().cloned().unwrap_or_default();
    // Every environment's credential is compared, so that the time tells nothing.
    let (setup, keys) = (state.setup.load_full(), state.keys.load_full());
    let admitted: Vec<&str> = setup
        .aura
        .iter()
        .filter(|(_, credentials)| credentials.inbound.admits(presented, &certified.0))
        .map(|(name, _)| name.as_str())
        .collect();
    if admitted.is_empty() {
        return Err(state.unauthorized("internal", &parts).into());
    }
    let conversation = path
        .first()
        .and_then(|(_, id)| keys.sealer().open(id))
        .ok_or(Rejection::UnknownConversation)?;
    let routes = state.routes.load();
    let route = routes.get(conversation.channel).ok_or(Refusal::NotNow)?.clone();
    if !admitted.contains(&route.environment_name()) {
        return Err(Rejection::Forbidden(
            "the conversation belongs to another environment",
        ));
    }
    if !public::is_json(&parts.headers) {
        return Err(Refusal::NotJson.into());
    }
    let limits = &setup.installation.bridge;
    let (body, _room) = state
        .read(&parts.headers, body, contract::MAX_REPLY, limits.body_timeout())
        .await?;
    let activity: Reply = serde_json::from_slice(&body).map_err(|_| Refusal::Malformed)?;
    let named = activity
        .channel_data
        .as_ref()
        .and_then(|data| data.channel_id.as_deref());
    match named.map(str::parse::<ChannelId>) {
        None => {
            return Err(Rejection::Bad(
                "channelData.channelId is missing: a reply names its Aura channel",
            ));
        }
        Some(Ok(channel)) if channel == conversation.channel => {}
        Some(_) => {
            tracing::warn!(channel = %conversation.channel, "refused a reply that names another channel");
            return Err(Rejection::Forbidden(
                "channelData.channelId is not the conversation's channel",
            ));
        }
    }

    let idempotency = parts
        .headers
        .get(contract::IDEMPOTENCY_KEY)
        .and_then(|value| value.to_str().ok());
    let usable = |id: &&str| !id.is_empty() && id.len() <= 512;
    let own_id = activity
        .id
        .as_deref()
        .filter(usable)
        .or(idempotency.filter(usable));
    if convert::reply_messages(&activity, &conversation.contact).is_empty() {
        if activity.kind == "message" {
            return Err(Rejection::Bad(
                "the message shows the user nothing: it needs a text or a card with one",
            ));
        }
        // Typing and the like: taken, and nothing is sent.
        return Ok(own_id.unwrap_or_default().to_owned());
    }
    // In the path or in the activity, as Bot Framework's clients do it.
    let answers = path.get(1).map(|(_, id)| id.as_str());
    // Known by the header alone, it is known by it later too.
    let body = match own_id {
        Some(id) if activity.id.as_deref() != Some(id) => with_id(&body, || id.to_owned()),
        _ => body,
    };
    let reply = entry::ReplyOf {
        contact: &conversation.contact,
        id: own_id,
        answers: answers
            .or(activity.reply_to_id.as_deref())
            .filter(|id| !id.is_empty()),
    };
    // In the header, or where Aura's activities have it.
    let data = activity.channel_data.as_ref();
    let personal = [
        conversation.contact.as_str(),
        path.first().map_or("", |(_, id)| id),
    ];
    let context = context
        .clone()
        .or_correlator(data.and_then(|data| data.correlator.as_deref()))
        .without(&personal);
    let now = now_ms();
    let entry = entry::reply(&route.owner(), &reply, body, &keys, now).in_context(&context.kept());
    crate::failpoint::at!(ReplyReceived);
    let appended = state.keep(vec![entry], limits.commit_timeout()).await?;
    crate::failpoint::at!(ReplyKept);
    let (seq, new) = match appended.first() {
        Some(Appended::New(seq)) => (*seq, 1),
        Some(Appended::Duplicate(seq)) => (*seq, 0),
        None => return Err(Refusal::NotNow.into()),
    };
    if let Some(one) = appended.first() {
        let ids = [own_id, context.correlator()];
        state.arrived(*one, now, ids.map(|id| id.map(|id| IdDigest::of(id, &keys))));
    }
    state.metrics.replied(&route.channel().to_string(), new, 1 - new);
    let contact = keys.digest(&conversation.contact);
    tracing::info!(
        channel = %route.channel(), %contact, seq = seq.0, new,
        trace_id = context.trace_id().map(tracing::field::display), correlator = context.correlator(), "reply accepted"
    );
    Ok(own_id.map_or_else(|| entry::reply_id(seq), ToOwned::to_owned))
}
