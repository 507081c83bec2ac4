//! What the simulated Kernel knows and what happened to it: clients, tokens, calls in both directions, and what users
//! received. Nothing is ever dropped from it: a simulator lives as long as a test or a day of development.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    fmt,
    time::Duration,
};

use jiff::Timestamp;
use serde_json::Value;
use tokio::time::Instant;

use super::{ClientSpec, settings::mask_key};
use crate::sim::{fault::Endpoint, server::Exchange};

/// A version of Kernel's WhatsApp API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ApiVersion {
    /// `/whatsapp/v1`
    V1,
    /// `/whatsapp/v2`
    V2,
}

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        })
    }
}

/// A message as a user received it.
#[derive(Clone, Debug)]
pub struct UserMessage {
    /// The message's id.
    pub wamid: String,
    /// The business number it came from: that of the client whose token sent it.
    pub from_number: String,
    /// The user.
    pub to: String,
    /// `text`, `interactive`, `image`, …
    pub kind: String,
    /// What can be read: the text, the interactive message's body, the caption; else empty.
    pub text: String,
    /// When Kernel took it.
    pub at: Timestamp,
    /// The client whose token sent it.
    pub client_id: String,
    /// The API it was sent through.
    pub api_version: ApiVersion,
    /// The `x-correlator` it was sent with.
    pub correlator: Option<String>,
    /// The `idempotency-key` it was sent with.
    pub idempotency_key: Option<String>,
    /// The whole message as sent.
    pub body: Value,
}

/// A call to one of Kernel's endpoints.
#[derive(Clone)]
pub struct ApiCall {
    /// When it arrived.
    pub at: Timestamp,
    /// Which endpoint.
    pub endpoint: Endpoint,
    /// The API's version; none for the token endpoint.
    pub api_version: Option<ApiVersion>,
    /// Who called: the token's client, or the one that the Basic credential names (right or not).
    pub client_id: Option<String>,
    /// The `x-correlator` it came with.
    pub correlator: Option<String>,
    /// What its headers said of its exchange.
    pub exchange: Exchange,
    /// What was answered; none while it is under way, or for ever if no answer was sent.
    pub status: Option<u16>,
    /// When it was answered.
    pub answered_at: Option<Timestamp>,
    /// Scopes asked for, at the token endpoint.
    pub asked: Vec<String>,
    /// Scopes granted, at the token endpoint.
    pub granted: Vec<String>,
    /// The body, if it is JSON; else null.
    pub body: Value,
}

/// The body stays out: it may hold a webhook's key.
impl fmt::Debug for ApiCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiCall")
            .field("at", &self.at)
            .field("endpoint", &self.endpoint)
            .field("client_id", &self.client_id)
            .field("status", &self.status)
            .finish_non_exhaustive()
    }
}

impl ApiCall {
    pub(super) fn token_request(&self) -> TokenRequest {
        TokenRequest {
            at: self.at,
            client_id: self.client_id.clone(),
            asked: self.asked.clone(),
            granted: self.granted.clone(),
            status: self.status,
        }
    }
}

/// A call to the token endpoint.
#[derive(Clone, Debug)]
pub struct TokenRequest {
    /// When it arrived.
    pub at: Timestamp,
    /// The client that the Basic credential names, right or not.
    pub client_id: Option<String>,
    /// Scopes asked for.
    pub asked: Vec<String>,
    /// Scopes granted; none if the request was refused.
    pub granted: Vec<String>,
    /// What was answered; none if nothing was, or not yet.
    pub status: Option<u16>,
}

/// How a webhook call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With this status; only 200 counts as taken.
    Status(u16),
    /// Without an answer in time.
    Timeout,
    /// Without an answer: connection refused, closed, …
    Failed(String),
    /// It was not made: the webhook has been cleared.
    NoWebhook,
}

/// A webhook call.
#[derive(Clone)]
pub struct WebhookCall {
    /// When it ended.
    pub at: Timestamp,
    /// How long it took.
    pub took: Duration,
    /// The client whose webhook was called.
    pub client_id: String,
    /// The URL called, with its key.
    pub url: String,
    /// The message it was about, if it was a user's message.
    pub wamid: Option<String>,
    /// 1 for the first call about a thing, then 2, …
    pub attempt: u32,
    /// How it ended.
    pub outcome: Outcome,
}

impl fmt::Debug for WebhookCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("WebhookCall")
            .field("at", &self.at)
            .field("took", &self.took)
            .field("client_id", &self.client_id)
            .field("url", &mask_key(&self.url))
            .field("wamid", &self.wamid)
            .field("attempt", &self.attempt)
            .field("outcome", &self.outcome)
            .finish()
    }
}

pub(super) struct Client {
    pub secret: String,
    pub scopes: Vec<String>,
    /// Digits only.
    pub number: String,
    pub webhook: Option<String>,
}

#[derive(Clone)]
pub(super) struct Token {
    pub client_id: String,
    pub scopes: Vec<String>,
    pub expires: Instant,
    /// Kept, so that the ledger still knows whose it was.
    pub revoked: bool,
}

pub(super) struct Data {
    pub latency: Duration,
    pub clients: BTreeMap<String, Client>,
    pub tokens: HashMap<String, Token>,
    pub calls: Vec<ApiCall>,
    pub received: Vec<UserMessage>,
    pub webhook_calls: Vec<WebhookCall>,
    /// The webhook bodies of users' messages, by wamid: client, user, body.
    pub sent_by_users: HashMap<String, (String, String, Value)>,
    /// What is reported at once of the next messages that users receive.
    pub reports: VecDeque<Vec<Reported>>,
    pub pending: usize,
}

/// A status, with WhatsApp's error objects.
pub(super) type Reported = (String, Vec<Value>);

impl Data {
    pub fn new(latency: Duration) -> Self {
        Self {
            latency,
            clients: BTreeMap::new(),
            tokens: HashMap::new(),
            calls: Vec::new(),
            received: Vec::new(),
            webhook_calls: Vec::new(),
            sent_by_users: HashMap::new(),
            reports: VecDeque::new(),
            pending: 0,
        }
    }

    pub fn add_client(&mut self, spec: ClientSpec) {
        let ClientSpec {
            id,
            secret,
            scopes,
            number,
        } = spec;
        let webhook = self.webhook_of(&id);
        self.clients.insert(
            id,
            Client {
                secret,
                scopes,
                number: digits(&number),
                webhook,
            },
        );
    }

    pub fn remove_client(&mut self, id: &str) -> bool {
        self.revoke_tokens(id);
        self.clients.remove(id).is_some()
    }

    pub fn rotate_secret(&mut self, id: &str, secret: &str) -> bool {
        let client = self.clients.get_mut(id);
        client
            .map(|client| secret.clone_into(&mut client.secret))
            .is_some()
    }

    pub fn revoke_tokens(&mut self, id: &str) -> usize {
        let live = self
            .tokens
            .values_mut()
            .filter(|token| token.client_id == id && !token.revoked);
        live.map(|token| token.revoked = true).count()
    }

    pub fn webhook_of(&self, id: &str) -> Option<String> {
        self.clients.get(id)?.webhook.clone()
    }

    pub fn set_webhook(&mut self, id: &str, url: &str) -> bool {
        let webhook = (!url.is_empty()).then(|| url.to_owned());
        self.clients
            .get_mut(id)
            .map(|client| client.webhook = webhook)
            .is_some()
    }

    pub fn received(&self, user: &str) -> impl Iterator<Item = &UserMessage> {
        let user = digits(user);
        self.received.iter().filter(move |message| message.to == user)
    }

    pub fn calls_at(&self, endpoint: Endpoint) -> impl Iterator<Item = &ApiCall> {
        self.calls.iter().filter(move |call| call.endpoint == endpoint)
    }
}

pub(super) fn digits(number: &str) -> String {
    number.chars().filter(char::is_ascii_digit).collect()
}
