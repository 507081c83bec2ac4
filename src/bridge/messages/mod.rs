//! The messages listener, on loopback alone: what is stuck, why, and how to get it going. `kubectl port-forward` reaches
//! it, so that who may use it is decided by the API server (`pods/portforward`), and its audit log says who did.
//!
//! Each change says why, and leaves a line in the audit stream. Nothing personal is shown unless the configuration says
//! so (Law 6). Every answer is bounded, and every page says where the next one begins (Law 11).

mod answers;
mod audit;
mod carry;
mod desk;
mod erase;
mod export;
mod lineage;
mod office;
mod view;

use std::{collections::HashSet, net::IpAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, Request, State as Extract},
    http::{HeaderMap, header},
    middleware::{self, Next},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Value, json};

pub use self::audit::AuditLog;
use self::{
    answers::Refused,
    audit::Change,
    view::{Filter, ListQuery},
};
pub(super) use self::{
    audit::Audit,
    desk::{Desk, Hands},
    office::Office,
};
use super::{body, deliver::word, public};
use crate::{
    api::ChannelId,
    delivery::Dropped,
    journal::{Seq, Standing},
};

/// The largest body of a call, in bytes; an import's is larger.
const MAX_BODY: usize = 64 << 10;
/// The most messages of one bulk replay.
const MAX_BULK: usize = 1000;
/// Messages that are read at once.
const CHUNK: usize = 500;
/// How long a body may take to arrive.
const PATIENCE: Duration = Duration::from_secs(20);

type At<D> = Extract<Arc<Office<D>>>;
type Answer = Result<Response, Refused>;

/// The routes of the messages listener.
pub(super) fn router<D: Desk>(office: Office<D>) -> Router {
    Router::new()
        .route("/v1/messages", get(list::<D>))
        .route("/v1/messages/replay", post(replay_many::<D>))
        .route("/v1/messages/{seq}", get(show::<D>))
        .route("/v1/messages/{seq}/replay", post(replay::<D>))
        .route("/v1/messages/{seq}/drop", post(drop_one::<D>))
        .route("/v1/lanes/park", post(park::<D>))
        .route("/v1/lanes/unpark", post(unpark::<D>))
        .route("/v1/lanes/retry", post(retry::<D>))
        .route("/v1/journal", get(lineage::show::<D>))
        .route("/v1/journal/release", post(lineage::release::<D>))
        .route("/v1/journal/drop", post(lineage::give_up::<D>))
        .route("/v1/dead-letters/export", get(carry::export::<D>))
        .route("/v1/dead-letters/import", post(carry::import::<D>))
        .route("/v1/erase", post(erase::erase::<D>))
        .route("/v1/trace/{id}", get(trace::<D>))
        .fallback(async || Refused::NoSuchPath)
        .layer(middleware::from_fn(local))
        .with_state(Arc::new(office))
}

/// A web page that somebody on call has open must not reach the forwarded port: it can't send JSON without a preflight,
/// which nothing here answers, and a name that it has pointed at loopback is not ours.
async fn local(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST);
    if host.and_then(|host| host.to_str().ok()).is_some_and(is_loopback) {
        next.run(request).await
    } else {
        Refused::Foreign.into_response()
    }
}

fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|digit| digit.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.eq_ignore_ascii_case("localhost") || name.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// What a call that changes something says.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct Order {
    because: Option<String>,
    dry_run: bool,
}

/// Which lane is meant.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct LaneOrder {
    channel: String,
    contact: String,
    direction: String,
    #[serde(default)]
    because: Option<String>,
    #[serde(default)]
    dry_run: bool,
}

/// Which dead letters are meant.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct BulkOrder {
    channel: Option<String>,
    contact: Option<String>,
    direction: Option<String>,
    reason: Option<String>,
    older_than: Option<String>,
    after: Option<u64>,
    limit: Option<usize>,
    because: Option<String>,
    dry_run: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
struct ShowQuery {
    body: bool,
}

async fn list<D: Desk>(Extract(office): At<D>, query: Asked<ListQuery>) -> Answer {
    let filter = Filter::new(&query.get()?)?;
    let parked = office.parked();
    let found = office.find(&filter, &parked).await?;
    let messages: Vec<Value> = found
        .messages
        .iter()
        .map(|kept| office.show(kept, &parked))
        .collect();
    Ok(Json(json!({
        "messages": messages,
        "next": found.next.map(|seq| seq.0),
        "unreadable": found.unreadable,
    }))
    .into_response())
}

async fn show<D: Desk>(Extract(office): At<D>, Path(seq): Path<String>, query: Asked<ShowQuery>) -> Answer {
    let (seq, query) = (number(&seq)?, query.get()?);
    if query.body {
        office.may_show()?;
    }
    let kept = office.state.journal.head(seq).await?;
    let mut shown = office.show(&kept, &office.parked());
    view::details(&mut shown, &kept);
    view::ties(&mut shown, Some(&kept), office.state.trail().of(seq));
    if query.body {
        let entry = office.state.journal.read(seq).await?;
        view::body(&mut shown, &entry);
        office.tell_of("showBody", &kept, "", Ok(()));
    }
    Ok(Json(shown).into_response())
}

async fn replay<D: Desk>(Extract(office): At<D>, Path(seq): Path<String>, request: Request) -> Answer {
    let seq = number(&seq)?;
    let order: Order = order(request).await?;
    let because = view::because(order.because.as_deref())?;
    let kept = office.state.journal.head(seq).await?;
    if !matches!(kept.standing, Standing::DeadLetter { .. }) {
        return Err(Refused::NoDeadLetter(seq));
    }
    if order.dry_run {
        return Ok(Json(json!({"seq": seq.0, "dryRun": true})).into_response());
    }
    let replayed = office.replay(&kept).await;
    office.tell_of("replay", &kept, &because, replayed.as_ref().map(|_| ()));
    Ok(Json(json!({"seq": seq.0, "replayedAs": replayed?.0})).into_response())
}

/// A message that waits becomes a dead letter; a dead letter goes for good.
async fn drop_one<D: Desk>(Extract(office): At<D>, Path(seq): Path<String>, request: Request) -> Answer {
    let seq = number(&seq)?;
    let order: Order = order(request).await?;
    let because = view::because(order.because.as_deref())?;
    let kept = office.state.journal.head(seq).await?;
    if matches!(kept.standing, Standing::Sent { .. }) {
        return Err(Refused::SentAlready(seq));
    }
    let was_dead = matches!(kept.standing, Standing::DeadLetter { .. });
    if order.dry_run {
        let would = if was_dead { "gone" } else { "deadLetter" };
        return Ok(Json(json!({"seq": seq.0, "dropped": would, "dryRun": true})).into_response());
    }
    let dropped = if was_dead {
        office.forget(seq).await.map(|()| "gone")
    } else {
        match office.desk.give_up(seq).await {
            Ok(Dropped::Now) => Ok("deadLetter"),
            Ok(Dropped::UnlessDelivered) => Ok("deadLetterUnlessDelivered"),
            Ok(Dropped::NotFound) => Err(Refused::Ending(seq)),
            Err(error) => Err(error.into()),
        }
    };
    let told = dropped.as_ref().map(|_| ());
    office.tell_of("drop", &kept, &because, told);
    Ok(Json(json!({"seq": seq.0, "dropped": dropped?})).into_response())
}

/// What is done to a lane.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Act {
    Park,
    Unpark,
    Retry,
}

async fn park<D: Desk>(Extract(office): At<D>, request: Request) -> Answer {
    act(&office, request, Act::Park).await
}

async fn unpark<D: Desk>(Extract(office): At<D>, request: Request) -> Answer {
    act(&office, request, Act::Unpark).await
}

async fn retry<D: Desk>(Extract(office): At<D>, request: Request) -> Answer {
    act(&office, request, Act::Retry).await
}

async fn act<D: Desk>(office: &Office<D>, request: Request, act: Act) -> Answer {
    let order: LaneOrder = order(request).await?;
    let because = view::because(order.because.as_deref())?;
    let lane = office.lane(&order, act == Act::Unpark).await?;
    let channel = ChannelId::from_bytes(lane.channel);
    if !order.dry_run {
        let (verb, result) = match act {
            Act::Park => ("park", office.desk.park(lane).await),
            Act::Unpark => ("unpark", office.desk.unpark(lane).await),
            Act::Retry => ("retry", office.desk.retry(lane).await),
        };
        let result = result.map_err(Refused::from);
        office.audit.tell(&Change {
            verb,
            channel: Some(channel),
            contact: Some(lane.contact.to_string()),
            direction: Some(word(lane.direction)),
            outcome: result.as_ref().map_or_else(Refused::code, |()| "done"),
            because: &because,
            ..Change::default()
        });
        result?;
    }
    Ok(Json(json!({
        "channel": channel.to_string(),
        "contact": lane.contact.to_string(),
        "direction": word(lane.direction),
        "parked": office.parked().contains(&lane),
        "dryRun": order.dry_run,
    }))
    .into_response())
}

async fn replay_many<D: Desk>(Extract(office): At<D>, request: Request) -> Answer {
    let order: BulkOrder = order(request).await?;
    let because = view::because(order.because.as_deref())?;
    let limit = order.limit.unwrap_or(view::LIMIT);
    if !(1..=MAX_BULK).contains(&limit) {
        return Err(Refused::Wrong(format!("limit: from 1 to {MAX_BULK}")));
    }
    let query = ListQuery {
        state: Some("dead".to_owned()),
        channel: order.channel,
        contact: order.contact,
        direction: order.direction,
        reason: order.reason,
        older_than: order.older_than,
        limit: None,
        after: order.after,
    };
    let filter = Filter {
        limit,
        ..Filter::new(&query)?
    };
    let found = office.find(&filter, &HashSet::new()).await?;
    let mut replayed = Vec::new();
    let mut failed = None;
    for dead in found.messages.iter().filter(|_| !order.dry_run) {
        match office.replay(dead).await {
            Ok(seq) => replayed.push((dead.seq, seq)),
            // Somebody else was faster.
            Err(Refused::NoDeadLetter(_)) => {}
            Err(refused) => {
                failed = Some(refused);
                break;
            }
        }
    }
    if !order.dry_run {
        let seqs: Vec<Seq> = replayed.iter().map(|(dead, _)| *dead).collect();
        office.audit.tell(&Change {
            verb: "replayMany",
            channel: filter.channel,
            direction: filter.direction.map(word),
            reason: filter.reason.as_deref(),
            seqs: &seqs,
            outcome: failed.as_ref().map_or("done", Refused::code),
            because: &because,
            ..Change::default()
        });
    }
    let pairs: Vec<Value> = replayed
        .iter()
        .map(|(dead, seq)| json!({"seq": dead.0, "replayedAs": seq.0}))
        .collect();
    let meant: Vec<u64> = found.messages.iter().map(|dead| dead.seq.0).collect();
    Ok(Json(json!({
        "meant": meant,
        "replayed": pairs,
        "dryRun": order.dry_run,
        "next": found.next.map(|seq| seq.0),
        "stopped": failed.map(|refused| refused.error()),
    }))
    .into_response())
}

async fn trace<D: Desk>(Extract(office): At<D>, Path(id): Path<String>) -> Answer {
    if id.is_empty() || id.len() > 512 {
        return Err(Refused::Wrong("id: at most 512 characters".to_owned()));
    }
    let seq = match id.parse() {
        Ok(seq) => Some(Seq(seq)),
        Err(_) => office.by_id(&id).await?,
    };
    let seq = seq.ok_or(Refused::NoSuchId)?;
    let kept = match office.state.journal.head(seq).await {
        Ok(kept) => Some(kept),
        Err(crate::journal::ReadError::NotKept(_)) => None,
        Err(error) => return Err(error.into()),
    };
    let steps = office.state.trail().of(seq).cloned();
    if kept.is_none() && steps.is_none() {
        return Err(Refused::NotKept(seq));
    }
    let message = kept.as_ref().map(|kept| {
        let mut shown = office.show(kept, &office.parked());
        view::details(&mut shown, kept);
        shown
    });
    let mut answer = json!({
        "seq": seq.0,
        "message": message,
        "steps": view::steps(kept.as_ref(), steps.as_ref()),
        "stepsLeftOut": steps.as_ref().map_or(0, |steps| steps.left_out),
        "remembered": steps.is_some(),
    });
    view::ties(&mut answer, kept.as_ref(), steps.as_ref());
    Ok(Json(answer).into_response())
}

fn number(text: &str) -> Result<Seq, Refused> {
    text.parse()
        .map(Seq)
        .map_err(|_| Refused::Wrong("seq: a message's number".to_owned()))
}

/// A query as it was asked, or what is wrong with it.
struct Asked<T>(Result<T, Refused>);

impl<T> Asked<T> {
    fn get(self) -> Result<T, Refused> {
        self.0
    }
}

impl<S: Sync, T: DeserializeOwned> axum::extract::FromRequestParts<S> for Asked<T> {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(
        parts: &mut axum::http::request::Parts,
        _: &S,
    ) -> Result<Self, Self::Rejection> {
        let query = Query::try_from_uri(&parts.uri).map(|Query(query)| query);
        Ok(Self(query.map_err(|error| {
            Refused::Wrong(format!("query: {}", error.body_text()))
        })))
    }
}

fn declares(headers: &HeaderMap, kind: &str) -> bool {
    let declared = headers.get(header::CONTENT_TYPE);
    declared
        .and_then(|value| value.to_str().ok())
        .and_then(|value| value.split(';').next())
        .is_some_and(|essence| essence.trim().eq_ignore_ascii_case(kind))
}

async fn order<T: DeserializeOwned>(request: Request) -> Result<T, Refused> {
    let (parts, body) = request.into_parts();
    if !declares(&parts.headers, "application/json") {
        return Err(Refused::NotDeclared("application/json"));
    }
    let body = read(&parts.headers, body, MAX_BODY).await?;
    serde_json::from_slice(&body).map_err(|error| Refused::Wrong(format!("body: {error}")))
}

async fn read(headers: &HeaderMap, body: Body, limit: usize) -> Result<bytes::Bytes, Refused> {
    let read = body::alone(headers, body, limit, PATIENCE).await;
    read.map_err(|refusal| match refusal {
        public::Refusal::TooLarge => Refused::TooLarge(limit),
        _ => Refused::Wrong("the body did not arrive".to_owned()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_machine_is_called_loopback() {
        for host in [
            "127.0.0.1:8084",
            "localhost:8084",
            "LOCALHOST",
            "[::1]:8084",
            "127.0.0.1",
        ] {
            assert!(is_loopback(host), "{host}");
        }
        for host in [
            "",
            "evil.example:8084",
            "127.0.0.1.evil.example",
            "10.0.0.1:8084",
            "localhost.evil",
        ] {
            assert!(!is_loopback(host), "{host}");
        }
    }
}
