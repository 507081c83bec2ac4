//! The WhatsApp network: users who write to business numbers, and the webhook calls that tell of it.
//!
//! Calls are made as the on-premises API makes them: only 200 counts, redirects are not followed, anything else is
//! repeated after a delay that grows linearly up to a cap, at least once, for a day.

use std::{collections::HashMap, sync::Arc, time::Duration};

use hyper::header::RETRY_AFTER;
use jiff::Timestamp;
use reqwest::Client;
use serde_json::{Value, json};
use tokio::{
    sync::{Semaphore, mpsc, watch},
    task::JoinSet,
    time::Instant,
};

use super::{
    State,
    ledger::{Data, Outcome, WebhookCall, digits},
    messages::{Direction, wamid},
};

/// Why a user's message can't be told to anybody.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum NoWebhook {
    /// No client has such a number.
    #[error("no client has a number that ends with {0:?}")]
    UnknownNumber(String),
    /// More than one client has such a number.
    #[error("more than one client has a number that ends with {0:?}")]
    AmbiguousNumber(String),
    /// The number's client has no webhook.
    #[error("client {0} has no webhook")]
    NotSet(String),
    /// The user's number is none.
    #[error("{0:?} is no phone number of a user: 3 to 15 digits")]
    NoUser(String),
}

/// No such message, or nobody to tell of it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnknownMessage {
    /// There is no message with this id.
    #[error("there is no message {0}")]
    NotFound(String),
    /// The message's number has no webhook.
    #[error(transparent)]
    NoWebhook(#[from] NoWebhook),
}

/// Something to tell a client's webhook.
pub(super) struct Push {
    client_id: String,
    /// The user it is about, for the order; may be empty.
    user: String,
    wamid: Option<String>,
    body: Value,
}

impl State {
    pub(super) fn user_sends(&self, number: &str, from: &str, text: &str) -> Result<String, NoWebhook> {
        let user = digits(from);
        if !(3..=15).contains(&user.len()) {
            return Err(NoWebhook::NoUser(from.to_owned()));
        }
        let client_id = self.data.read(|data| addressee(data, number))?;
        let id = wamid(&user, Direction::FromUser);
        let body = json!({
            "contacts": [{"profile": {"name": format!("User {user}")}, "wa_id": user}],
            "messages": [{
                "from": user,
                "id": id,
                "timestamp": Timestamp::now().as_second().to_string(),
                "type": "text",
                "text": {"body": text},
            }],
        });
        self.data.write(|data| {
            data.sent_by_users
                .insert(id.clone(), (client_id.clone(), user.clone(), body.clone()));
        });
        self.push(Push {
            client_id,
            user,
            wamid: Some(id.clone()),
            body,
        });
        Ok(id)
    }

    pub(super) fn push_raw(&self, number: &str, body: Value) -> Result<(), NoWebhook> {
        let client_id = self.data.read(|data| addressee(data, number))?;
        let message = &body["messages"][0];
        let user = message["from"]
            .as_str()
            .or(body["statuses"][0]["recipient_id"].as_str());
        let user = user.unwrap_or_default().to_owned();
        let wamid = message["id"].as_str().map(str::to_owned);
        self.push(Push {
            client_id,
            user,
            wamid,
            body,
        });
        Ok(())
    }

    pub(super) fn push_status(&self, id: &str, status: &str, errors: &[Value]) -> Result<(), UnknownMessage> {
        let found = self
            .data
            .read(|data| data.received.iter().find(|message| message.wamid == id).cloned());
        let message = found.ok_or_else(|| UnknownMessage::NotFound(id.to_owned()))?;
        if self
            .data
            .read(|data| data.webhook_of(&message.client_id))
            .is_none()
        {
            return Err(NoWebhook::NotSet(message.client_id).into());
        }
        let mut body = json!({
            "id": id,
            "recipient_id": message.to,
            "status": status,
            "timestamp": Timestamp::now().as_second().to_string(),
            "type": "message",
        });
        if !errors.is_empty() {
            body["errors"] = errors.into();
        }
        if let Some(reference) = message.body.get("biz_opaque_callback_data") {
            body["biz_opaque_callback_data"] = reference.clone();
        }
        let (client_id, user) = (message.client_id, message.to);
        self.push(Push {
            client_id,
            user,
            wamid: None,
            body: json!({"statuses": [body]}),
        });
        Ok(())
    }

    pub(super) fn redeliver(&self, id: &str) -> Result<(), UnknownMessage> {
        let sent = self.data.read(|data| data.sent_by_users.get(id).cloned());
        let (client_id, user, body) = sent.ok_or_else(|| UnknownMessage::NotFound(id.to_owned()))?;
        self.push(Push {
            client_id,
            user,
            wamid: Some(id.to_owned()),
            body,
        });
        Ok(())
    }

    fn push(&self, push: Push) {
        self.data.write(|data| data.pending += 1);
        // The other end lives as long as the simulator's handles.
        let _ = self.pushes.send(push);
    }
}

/// The client, with a webhook, whose number it is or ends so.
fn addressee(data: &Data, number: &str) -> Result<String, NoWebhook> {
    let ending = digits(number);
    let exact = data.clients.iter().find(|(_, client)| client.number == ending);
    let mut by_ending = data
        .clients
        .iter()
        .filter(|(_, client)| client.number.ends_with(&ending));
    let (id, client) = match (exact, by_ending.next(), by_ending.next()) {
        _ if ending.is_empty() => return Err(NoWebhook::UnknownNumber(number.to_owned())),
        (Some(found), _, _) | (None, Some(found), None) => found,
        (None, None, _) => return Err(NoWebhook::UnknownNumber(number.to_owned())),
        (None, Some(_), Some(_)) => return Err(NoWebhook::AmbiguousNumber(number.to_owned())),
    };
    if client.webhook.is_none() {
        return Err(NoWebhook::NotSet(id.clone()));
    }
    Ok(id.clone())
}

/// Makes the webhook calls for ever; ends with its caller, and all calls with it.
pub(super) async fn run(
    state: Arc<State>,
    http: Client,
    mut queue: mpsc::UnboundedReceiver<Push>,
    up: watch::Receiver<bool>,
) {
    let mut tasks = JoinSet::new();
    let mut lanes: HashMap<(String, String), mpsc::UnboundedSender<Push>> = HashMap::new();
    let mut permits: HashMap<String, Arc<Semaphore>> = HashMap::new();
    loop {
        let push = tokio::select! {
            Some(_) = tasks.join_next() => continue,
            push = queue.recv() => push,
        };
        let Some(push) = push else { break };
        let in_flight = permits
            .entry(push.client_id.clone())
            .or_insert_with(|| Arc::new(Semaphore::new(state.options.max_concurrent.max(1))));
        let (state, in_flight) = (Arc::clone(&state), Arc::clone(in_flight));
        let mut caller = Caller {
            state,
            http: http.clone(),
            in_flight,
            up: up.clone(),
        };
        if !caller.state.options.sequential {
            tasks.spawn(async move { caller.deliver(push).await });
            continue;
        }
        let lane = lanes
            .entry((push.client_id.clone(), push.user.clone()))
            .or_insert_with(|| {
                let (lane, mut queue) = mpsc::unbounded_channel();
                tasks.spawn(async move {
                    while let Some(push) = queue.recv().await {
                        caller.deliver(push).await;
                    }
                });
                lane
            });
        let _ = lane.send(push);
    }
}

struct Caller {
    state: Arc<State>,
    http: Client,
    in_flight: Arc<Semaphore>,
    up: watch::Receiver<bool>,
}

impl Caller {
    /// Calls until it is taken or too old.
    async fn deliver(&mut self, push: Push) {
        let since = Instant::now();
        let options = self.state.options.clone();
        let mut attempt = 0;
        loop {
            attempt += 1;
            let (outcome, retry_after) = self.attempt(&push, attempt).await;
            if outcome == Outcome::Status(200) || since.elapsed() > options.give_up_after {
                break;
            }
            let own = options.retry_step.saturating_mul(attempt);
            tokio::time::sleep(own.max(retry_after.unwrap_or_default()).min(options.retry_cap)).await;
        }
        self.state.data.write(|data| data.pending -= 1);
    }

    async fn attempt(&mut self, push: &Push, attempt: u32) -> (Outcome, Option<Duration>) {
        // Neither is ever closed while this runs.
        let _ = self.up.wait_for(|up| *up).await;
        let _permit = self.in_flight.acquire().await;
        let start = Instant::now();
        let url = self.state.data.read(|data| data.webhook_of(&push.client_id));
        let (outcome, retry_after) = match &url {
            Some(url) => self.call(url, &push.body).await,
            None => (Outcome::NoWebhook, None),
        };
        let ended = WebhookCall {
            at: Timestamp::now(),
            took: start.elapsed(),
            client_id: push.client_id.clone(),
            url: url.unwrap_or_default(),
            wamid: push.wamid.clone(),
            attempt,
            outcome: outcome.clone(),
        };
        self.state.data.write(|data| data.webhook_calls.push(ended));
        (outcome, retry_after)
    }

    async fn call(&self, url: &str, body: &Value) -> (Outcome, Option<Duration>) {
        match self.http.post(url).json(body).send().await {
            Ok(answer) => {
                let seconds = answer
                    .headers()
                    .get(RETRY_AFTER)
                    .and_then(|value| value.to_str().ok()?.parse().ok());
                (
                    Outcome::Status(answer.status().as_u16()),
                    seconds.map(Duration::from_secs),
                )
            }
            Err(error) if error.is_timeout() => (Outcome::Timeout, None),
            // The URL would show the key.
            Err(error) => (Outcome::Failed(error.without_url().to_string()), None),
        }
    }
}
