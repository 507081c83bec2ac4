//! A simulated Aura: takes activities at `POST /messages`, answers 200 at once, and replies with new requests to the
//! activity's `serviceUrl`, as Bot Framework bots do.
//!
//! Written from what is documented of Aura's bridge, its router and the Bot Framework, not from our client.
//!
//! | file | concern |
//! | --- | --- |
//! | `activity` | what an activity must have |
//! | `bot` | what is said in reply, and the requests that carry it |
//! | `ledger` | what happened |

mod activity;
mod bot;
mod ledger;

#[cfg(test)]
mod tests;

use std::{fmt, sync::Arc, time::Duration};

use hyper::{Method, StatusCode};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio_util::sync::{CancellationToken, DropGuard};

pub use self::{
    bot::Behaviour,
    ledger::{AuraCall, Disorder, ReceivedActivity, SentReply},
};
use self::{bot::Turn, ledger::Data};
use super::{
    fault::{Endpoint, Fault, Faults},
    server::{Answer, App, Arrival, Call, Late, Server, Shared, StartError, client, json},
};

/// What the simulated Aura accepts, presents and does.
#[derive(Clone)]
pub struct AuraOptions {
    /// The port on 127.0.0.1; 0 takes a free one.
    pub port: u16,
    /// What callers must present: `Authorization: APIKEY …`.
    pub inbound_api_key: String,
    /// What it presents with its replies, in the same form.
    pub reply_api_key: String,
    /// What it replies.
    pub behaviour: Behaviour,
    /// What every call takes before it is answered.
    pub latency: Duration,
    /// How long a reply's request may take.
    pub reply_timeout: Duration,
    /// The delay before a reply that was not taken is sent again; grows by as much each time.
    pub retry_step: Duration,
    /// The longest such delay.
    pub retry_cap: Duration,
}

impl AuraOptions {
    /// A bot that echoes, with these keys.
    pub fn new(inbound_api_key: impl Into<String>, reply_api_key: impl Into<String>) -> Self {
        Self {
            port: 0,
            inbound_api_key: inbound_api_key.into(),
            reply_api_key: reply_api_key.into(),
            behaviour: Behaviour::Echo,
            latency: Duration::ZERO,
            reply_timeout: Duration::from_secs(5),
            retry_step: Duration::from_millis(100),
            retry_cap: Duration::from_secs(2),
        }
    }
}

impl fmt::Debug for AuraOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut shown = f.debug_struct("AuraOptions");
        shown
            .field("port", &self.port)
            .field("behaviour", &self.behaviour)
            .finish_non_exhaustive()
    }
}

struct State {
    options: AuraOptions,
    faults: Faults,
    data: Shared<Data>,
    turns: mpsc::UnboundedSender<Turn>,
}

/// A handle on a running simulated Aura; clones are the same Aura. It ends with its last handle.
#[derive(Clone)]
pub struct AuraSim {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    server: Server,
    _tasks: DropGuard,
}

impl fmt::Debug for AuraSim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuraSim")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

impl AuraSim {
    /// Starts an Aura that has seen nothing.
    ///
    /// # Errors
    /// When the port can't be listened on.
    pub async fn start(options: AuraOptions) -> Result<Self, StartError> {
        let http = client(options.reply_timeout)?;
        let (turns, queue) = mpsc::unbounded_channel();
        let data = Shared::new(Data::new(options.behaviour.clone(), options.latency));
        let port = options.port;
        let state = Arc::new(State {
            options,
            faults: Faults::default(),
            data,
            turns,
        });
        let server = Server::start(port, Arc::clone(&state)).await?;
        let tasks = CancellationToken::new();
        let replying = bot::run(Arc::clone(&state), http, queue, server.up());
        tokio::spawn(tasks.clone().run_until_cancelled_owned(replying));
        Ok(Self {
            inner: Arc::new(Inner {
                state,
                server,
                _tasks: tasks.drop_guard(),
            }),
        })
    }

    /// Its base, without a final slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.server.address())
    }

    /// Where activities go.
    pub fn messages_url(&self) -> String {
        format!("{}/messages", self.url())
    }

    /// Closes the listener and all connections; no reply is begun until [`AuraSim::restart`].
    pub async fn stop(&self) {
        self.inner.server.stop().await;
    }

    /// Listens again on the same port, with all it knew.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn restart(&self) -> Result<(), StartError> {
        self.inner.server.restart(Arc::clone(&self.inner.state)).await
    }

    /// Connections that callers have open, or whose last call is still being answered.
    pub fn connections(&self) -> usize {
        self.inner.server.connections()
    }

    /// Misbehaves from now on. [`Fault::only_for`] takes a channelId here.
    pub fn inject(&self, fault: Fault) {
        self.inner.state.faults.inject(fault);
    }

    /// Behaves again.
    pub fn clear_faults(&self) {
        self.inner.state.faults.clear();
    }

    /// Replies so from now on.
    pub fn set_behaviour(&self, behaviour: Behaviour) {
        self.data().write(|data| data.behaviour = behaviour);
    }

    /// Sets what every call takes before it is answered.
    pub fn set_latency(&self, latency: Duration) {
        self.data().write(|data| data.latency = latency);
    }

    /// The activities taken, in order, each id once.
    pub fn activities(&self) -> Vec<ReceivedActivity> {
        self.data().read(|data| data.activities.clone())
    }

    /// Waits until `n` activities (each id once) have been taken.
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_activities(&self, n: usize, within: Duration) -> Result<Vec<ReceivedActivity>, Late> {
        self.data()
            .wait("activities", n, within, |data| data.activities.len())
            .await?;
        Ok(self.activities())
    }

    /// Activities whose id had been taken before.
    pub fn duplicates(&self) -> Vec<ReceivedActivity> {
        self.data().read(|data| data.duplicates.clone())
    }

    /// Waits until `n` activities have come again.
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_duplicates(&self, n: usize, within: Duration) -> Result<Vec<ReceivedActivity>, Late> {
        self.data()
            .wait("duplicates", n, within, |data| data.duplicates.len())
            .await?;
        Ok(self.duplicates())
    }

    /// The texts of one conversation's activities, in the order taken.
    pub fn texts(&self, conversation_id: &str) -> Vec<String> {
        self.data().read(|data| data.texts(conversation_id))
    }

    /// Where in a conversation a lower number followed a higher one, for activities that carry one (in their text,
    /// say). Empty: every conversation is in order.
    pub fn disorders(&self, number: impl Fn(&ReceivedActivity) -> Option<u64>) -> Vec<Disorder> {
        ledger::disorders(&self.activities(), number)
    }

    /// Every call to `POST /messages`, also those refused and those that a fault hit.
    pub fn calls(&self) -> Vec<AuraCall> {
        self.data().read(|data| data.calls.clone())
    }

    /// Waits until there have been `n` calls (they may not be answered yet).
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_calls(&self, n: usize, within: Duration) -> Result<Vec<AuraCall>, Late> {
        self.data()
            .wait("calls", n, within, |data| data.calls.len())
            .await?;
        Ok(self.calls())
    }

    /// Every request with a reply that has ended, in the order they ended.
    pub fn replies(&self) -> Vec<SentReply> {
        self.data().read(|data| data.replies.clone())
    }

    /// The requests with replies that have ended after the first `count`: cheap where there were many before.
    pub fn replies_since(&self, count: usize) -> Vec<SentReply> {
        self.data()
            .read(|data| data.replies.get(count..).unwrap_or_default().to_vec())
    }

    /// Waits until `n` replies have been taken (2xx).
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_replies(&self, n: usize, within: Duration) -> Result<Vec<SentReply>, Late> {
        let taken = |data: &Data| data.replies.iter().filter(|reply| reply.taken()).count();
        self.data().wait("replies taken", n, within, taken).await?;
        Ok(self.replies())
    }

    /// Waits until `n` requests with replies have ended, however they ended.
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_reply_attempts(&self, n: usize, within: Duration) -> Result<Vec<SentReply>, Late> {
        self.data()
            .wait("requests with replies", n, within, |data| data.replies.len())
            .await?;
        Ok(self.replies())
    }

    fn data(&self) -> &Shared<Data> {
        &self.inner.state.data
    }
}

fn error(status: StatusCode, message: &str) -> Answer {
    json(status, &error_body(status, message))
}

/// The Bot Framework's error body.
fn error_body(status: StatusCode, message: &str) -> Value {
    let code = status.canonical_reason().unwrap_or("Error").replace(' ', "");
    json!({"error": {"code": code, "message": message}})
}

impl App for State {
    fn faults(&self) -> &Faults {
        &self.faults
    }

    fn latency(&self) -> Duration {
        self.data.read(|data| data.latency)
    }

    fn arrived(&self, call: &Call) -> Option<Arrival> {
        if (call.path.as_str(), &call.method) != ("/messages", &Method::POST) {
            return None;
        }
        let body: Value = serde_json::from_slice(&call.body).unwrap_or_default();
        let channel_id = body["channelData"]["channelId"].as_str().map(str::to_owned);
        let entry = AuraCall {
            at: Timestamp::now(),
            exchange: call.exchange(),
            activity_id: body["id"].as_str().map(str::to_owned),
            channel_id: channel_id.clone(),
            status: None,
            answered_at: None,
        };
        let entry = self.data.write(|data| {
            data.calls.push(entry);
            data.calls.len() - 1
        });
        Some(Arrival {
            endpoint: Endpoint::Messages,
            subject: channel_id,
            entry,
        })
    }

    async fn answer(&self, call: &Call) -> Answer {
        match (call.path.as_str(), &call.method) {
            ("/messages", &Method::POST) => self.messages(call),
            ("/messages", _) => error(StatusCode::METHOD_NOT_ALLOWED, "only POST"),
            _ => error(StatusCode::NOT_FOUND, "there is nothing at this path"),
        }
    }

    fn answered(&self, entry: usize, answer: &Answer) {
        self.data.write(|data| {
            if let Some(call) = data.calls.get_mut(entry) {
                call.status = Some(answer.status().as_u16());
                call.answered_at = Some(Timestamp::now());
            }
        });
    }

    fn error_body(&self, status: StatusCode) -> Value {
        error_body(status, "injected by a test")
    }
}

impl State {
    fn messages(&self, call: &Call) -> Answer {
        if call.credential("APIKEY") != Some(self.options.inbound_api_key.as_str()) {
            return error(StatusCode::UNAUTHORIZED, "the API key is missing or wrong");
        }
        if !call.is("application/json") {
            return error(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "the content type must be application/json",
            );
        }
        let body = match serde_json::from_slice(&call.body) {
            Ok(body) => body,
            Err(why) => return error(StatusCode::BAD_REQUEST, &format!("the body is not JSON: {why}")),
        };
        let activity = match activity::parse(body) {
            Ok(activity) => activity,
            Err(why) => return error(StatusCode::BAD_REQUEST, &why),
        };
        let id = activity.id.clone();
        let (new, behaviour) = self
            .data
            .write(|data| (data.take(activity.clone()), data.behaviour.clone()));
        if new {
            let replies = behaviour.replies(&activity);
            // The other end lives as long as the simulator's handles.
            let _ = self.turns.send(Turn { activity, replies });
        }
        json(StatusCode::OK, &json!({"id": id}))
    }
}
