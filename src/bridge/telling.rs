//! What the bridge tells the controller, on its admin listener: how each channel's messages flow, in a word, and how far
//! the journal has got. The controller asks; the bridge writes nothing in the cluster. Nothing of any message, contact or
//! credential is in it (Law 6).

use std::{
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use axum::{
    Json, Router,
    extract::State as Extract,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};

use super::state::{Shared, now_ms};
use crate::{
    api::{ChannelId, Deliveries, Delivering},
    delivery::{RunnerHandle, Standing},
    journal::Backlog,
};

/// How long a message has waited when its channel's backlog is called old.
const OLD: Duration = Duration::from_secs(300);

/// What the page is made from.
#[derive(Clone)]
struct Teller {
    state: Shared,
    runner: RunnerHandle,
}

/// The routes for the controller.
pub(super) fn router(state: Shared, runner: RunnerHandle) -> Router {
    Router::new()
        .route("/v1/deliveries", get(deliveries))
        .route("/v1/journal", get(journal))
        .with_state(Arc::new(Teller { state, runner }))
}

async fn deliveries(Extract(teller): Extract<Arc<Teller>>, headers: HeaderMap) -> Response {
    // Before its routes are known, a bridge would call every channel well.
    if !teller.state.health.routes_known.load(Ordering::Relaxed) {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let Some(standing) = teller.runner.standing().await else {
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    };
    let page = page(&standing, &teller.state.journal.backlogs(), now_ms() / 1000);
    let Ok(body) = serde_json::to_vec(&page) else {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    };
    let mut hasher = DefaultHasher::new();
    body.hash(&mut hasher);
    let tag = format!("\"{:016x}\"", hasher.finish());
    let is_known = headers
        .get(header::IF_NONE_MATCH)
        .is_some_and(|known| known.as_bytes() == tag.as_bytes());
    if is_known {
        return (StatusCode::NOT_MODIFIED, [(header::ETAG, tag)]).into_response();
    }
    let kind = (header::CONTENT_TYPE, "application/json".to_owned());
    ([kind, (header::ETAG, tag)], body).into_response()
}

async fn journal(Extract(teller): Extract<Arc<Teller>>) -> Response {
    Json(teller.state.lineage.told()).into_response()
}

/// What is told of the channels.
fn page(standing: &Standing, backlogs: &[Backlog], now_s: u64) -> Deliveries {
    let mut page = Deliveries::default();
    for (channels, what) in [
        (&standing.unrouted, Delivering::Unknown),
        (&standing.held, Delivering::Held),
        (&standing.blocked, Delivering::TokenRejected),
    ] {
        channels.iter().for_each(|channel| page.add(*channel, what));
    }
    for channel in standing.withheld.keys() {
        page.add(*channel, Delivering::JournalRewound);
    }
    for backlog in backlogs {
        let channel = ChannelId::from_bytes(backlog.channel);
        let waits = backlog
            .oldest_accepted_s
            .map(|accepted| now_s.saturating_sub(accepted));
        if waits.is_some_and(|seconds| seconds >= OLD.as_secs()) {
            page.add(channel, Delivering::BacklogOld);
        }
        if backlog.dead_letters > 0 {
            page.add(channel, Delivering::DeadLetters);
        }
    }
    page
}

#[cfg(test)]
mod tests {
    use super::*;

    fn channel(byte: u8) -> ChannelId {
        ChannelId::from_bytes([byte; 16])
    }

    const NOW_S: u64 = 1_000_000;

    fn backlog(of: u8, oldest_for_s: u64, dead_letters: u64) -> Backlog {
        Backlog {
            channel: [of; 16],
            pending: 5,
            pending_bytes: 500,
            dead_letters,
            oldest_accepted_s: Some(NOW_S - oldest_for_s),
        }
    }

    #[test]
    fn of_each_channel_the_worst_is_told_and_of_a_well_one_nothing() {
        let standing = Standing {
            withheld: [(channel(1), 3)].into(),
            unjudged: 0,
            held: vec![channel(1), channel(2)],
            blocked: vec![channel(3)],
            unrouted: vec![channel(8)],
        };
        let backlogs = [
            backlog(2, 900, 9),
            backlog(3, 900, 9),
            backlog(4, 300, 1),
            backlog(5, 299, 1),
            backlog(6, 0, 0),
        ];
        let page = page(&standing, &backlogs, NOW_S);
        let told: Vec<Delivering> = (1..=8).map(|byte| page.of(channel(byte))).collect();
        assert_eq!(
            told,
            [
                Delivering::JournalRewound,
                Delivering::Held,
                Delivering::TokenRejected,
                Delivering::BacklogOld,
                Delivering::DeadLetters,
                Delivering::Flowing,
                Delivering::Flowing,
                Delivering::Unknown,
            ]
        );
    }
}
