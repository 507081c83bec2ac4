//! The calls to Kernel: read and set the webhook, send a message. Thin: what an answer means is decided here, what
//! to do about it elsewhere.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::{RequestBuilder, header::HeaderMap};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};
use tokio::time::Instant;
use url::Url;
use uuid::Uuid;

use super::{
    KernelError, contract,
    token::{AccessToken, TokenRequest, Tokens},
    turnstile::Operation,
};
use crate::{http, telemetry::Outgoing, whatsapp::OutboundMessage};

/// The client of every Kernel that is configured.
pub struct Client {
    http: reqwest::Client,
    tokens: Tokens,
}

/// What Kernel holds as a channel's webhook.
#[derive(Clone, Debug)]
pub enum ReadBack {
    /// This URL; it may hold a key, so it is not printed.
    Url(SecretString),
    /// None.
    Empty,
    /// Kernel can't be asked.
    Unsupported,
}

pub(super) struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub body: Bytes,
}

/// Why a call failed, and whether it was made.
#[derive(Debug)]
pub struct Failed {
    /// Why.
    pub error: KernelError,
    /// The call itself was made, and Kernel has not said that it did nothing: not so where a token was missing.
    pub called: bool,
}

impl Failed {
    fn before(error: KernelError) -> Self {
        Self { error, called: false }
    }

    fn called(error: KernelError) -> Self {
        Self { error, called: true }
    }
}

impl From<Failed> for KernelError {
    fn from(failed: Failed) -> Self {
        failed.error
    }
}

#[derive(Serialize)]
struct Setting<'a> {
    webhooks: SettingUrl<'a>,
}

#[derive(Serialize)]
struct SettingUrl<'a> {
    url: &'a str,
}

#[derive(Deserialize)]
struct HeldSetting {
    /// It must be there, though it may be null: an answer without it is no webhook setting, and says nothing of one.
    #[serde(deserialize_with = "Option::deserialize")]
    webhooks: Option<HeldUrl>,
}

#[derive(Deserialize)]
struct HeldUrl {
    url: Option<SecretString>,
}

#[derive(Deserialize)]
struct Sent {
    messages: Vec<SentMessage>,
}

#[derive(Deserialize)]
struct SentMessage {
    id: String,
}

/// What an answer means.
pub(super) type Judge<'a> = &'a (dyn Fn(&Answer) -> Result<(), KernelError> + Sync);

impl Client {
    /// A client without tokens.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn new() -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: http::client(Duration::from_secs(5))?,
            tokens: Tokens::default(),
        })
    }

    pub(super) fn http(&self) -> &reqwest::Client {
        &self.http
    }

    /// Fetches (or finds) a token: the credentials are good and the scopes are granted.
    ///
    /// # Errors
    /// What the auth server says.
    pub async fn token(&self, request: &TokenRequest) -> Result<AccessToken, KernelError> {
        self.tokens.get(self, request).await
    }

    /// Reads the webhook that Kernel holds for the client.
    ///
    /// # Errors
    /// What Kernel answers.
    pub async fn webhook(&self, request: &TokenRequest, url: &str) -> Result<ReadBack, KernelError> {
        let build = |http: &reqwest::Client| http.get(url);
        let answer = self
            .authorized(
                request,
                Operation::WebhookGet,
                &new_correlator(),
                build,
                &|answer| read_back(answer).map(drop),
            )
            .await?;
        read_back(&answer)
    }

    /// Sets the webhook. An answer that names another URL is an error: somebody would not be called.
    ///
    /// # Errors
    /// What Kernel answers.
    pub async fn set_webhook(
        &self,
        request: &TokenRequest,
        url: &str,
        to: &SecretString,
    ) -> Result<(), KernelError> {
        let body = Setting {
            webhooks: SettingUrl {
                url: to.expose_secret(),
            },
        };
        let build = |http: &reqwest::Client| http.patch(url).json(&body);
        let was_set = |answer: &Answer| was_set(answer, to);
        let answer = self
            .authorized(request, Operation::WebhookSet, &new_correlator(), build, &was_set)
            .await?;
        was_set(&answer)
    }

    /// Sends one message and returns WhatsApp's id of it, where the answer tells it: a message that was taken is not
    /// sent again because its id can't be read. `key` is this message's own and the same for each attempt; `carried` ties
    /// the call to its exchange.
    ///
    /// # Errors
    /// What Kernel answers, and whether the message had been handed to it; see [`KernelError::outcome_unknown`].
    pub async fn send(
        &self,
        request: &TokenRequest,
        url: &str,
        key: &str,
        carried: &Outgoing,
        message: &OutboundMessage,
    ) -> Result<Option<String>, Failed> {
        let build = |http: &reqwest::Client| {
            let call = http
                .post(url)
                .header(contract::IDEMPOTENCY_KEY, key)
                .json(message);
            let trace = carried.trace_headers();
            trace.fold(call, |call, (name, value)| call.header(name, value))
        };
        let correlator = &carried.correlator;
        let answer = self
            .authorized(request, Operation::Send, correlator, build, &|_| Ok(()))
            .await?;
        match answer.status {
            200..=299 => {
                let sent: Option<Sent> = serde_json::from_slice(&answer.body).ok();
                Ok(sent
                    .and_then(|sent| sent.messages.into_iter().next())
                    .map(|message| message.id))
            }
            _ => Err(Failed::called(answer.error_on_the_way())),
        }
    }

    /// Makes a call with the channel's token. After a 401 the token is fetched anew and the call made once more.
    async fn authorized(
        &self,
        request: &TokenRequest,
        operation: Operation,
        correlator: &str,
        build: impl Fn(&reqwest::Client) -> RequestBuilder,
        judge: Judge<'_>,
    ) -> Result<Answer, Failed> {
        for _ in 0..2 {
            // Also where the call before was refused with 401: that one was not carried out.
            let token = self.tokens.get(self, request).await.map_err(Failed::before)?;
            let call = build(&self.http).bearer_auth(token.expose());
            let answer = self.call(call, request, operation, correlator, judge).await;
            let answer = answer.map_err(Failed::called)?;
            match answer.status {
                401 => self.tokens.reject(request, &token),
                // The right may be granted soon, to the next token.
                403 => {
                    self.tokens.reject(request, &token);
                    return Ok(answer);
                }
                _ => return Ok(answer),
            }
        }
        Err(Failed::before(KernelError::Unauthorized))
    }

    /// Makes one call when it is its turn and reads its answer, within bounds. `judge` says what the answer means, for the
    /// turnstile.
    pub(super) async fn call(
        &self,
        call: RequestBuilder,
        request: &TokenRequest,
        operation: Operation,
        correlator: &str,
        judge: Judge<'_>,
    ) -> Result<Answer, KernelError> {
        let Some(turnstile) = &request.turnstile else {
            return self.make(call, request.timeout, operation, correlator).await;
        };
        let turn = turnstile.enter(operation).await?;
        let start = Instant::now();
        let result = tokio::select! {
            biased;
            () = turn.lost => Err(KernelError::StoodDown),
            result = self.make(call, request.timeout, operation, correlator) => result,
        };
        let took = start.elapsed();
        drop(turn.place);
        // What an answer means for its caller is decided elsewhere; that the server fails is the same for all.
        match &result {
            Ok(answer) => match judge(answer) {
                Err(error) if error.is_outage() || matches!(error, KernelError::RateLimited { .. }) => {
                    turnstile.left(operation, Err(&error), took);
                }
                _ => turnstile.left(operation, Ok(answer.status), took),
            },
            Err(error) => turnstile.left(operation, Err(error), took),
        }
        result
    }

    async fn make(
        &self,
        call: RequestBuilder,
        timeout: Duration,
        operation: Operation,
        correlator: &str,
    ) -> Result<Answer, KernelError> {
        let call = call.timeout(timeout).header(contract::CORRELATOR, correlator);
        let result = match call.send().await {
            Ok(response) => {
                let (status, headers) = (response.status().as_u16(), response.headers().clone());
                match http::read_body(response, contract::MAX_ANSWER).await {
                    Ok(body) => Ok(Answer {
                        status,
                        headers,
                        body,
                    }),
                    // The head has said that the message was taken: sent again, the user would have it twice.
                    Err(_) if matches!(operation, Operation::Send) && (200..300).contains(&status) => {
                        Ok(Answer {
                            status,
                            headers,
                            body: Bytes::new(),
                        })
                    }
                    Err(http::BodyError::TooLarge) => Err(KernelError::InvalidResponse("it is too large")),
                    Err(http::BodyError::TimedOut) => Err(KernelError::TimedOut),
                    Err(http::BodyError::Broken) => Err(KernelError::Interrupted),
                }
            }
            // The library's own text shows the whole URL: it is not used.
            Err(error) if error.is_connect() => Err(KernelError::Unreachable),
            Err(error) if error.is_timeout() => Err(KernelError::TimedOut),
            Err(_) => Err(KernelError::Interrupted),
        };
        let operation = operation.as_str();
        match &result {
            Ok(answer) => {
                tracing::debug!(operation, correlator, status = answer.status, "called Kernel");
            }
            Err(error) => tracing::info!(
                operation,
                correlator,
                error = error.class(),
                "call to Kernel failed"
            ),
        }
        result
    }
}

impl Answer {
    /// What a status that is no success means where it may be the way that is wrong, not what was sent: a path that is a
    /// guess, a gateway that is being set up, a conflict of the moment.
    fn error_on_the_way(&self) -> KernelError {
        match self.status {
            status @ (404 | 405 | 409 | 410 | 425) => KernelError::Unavailable {
                status,
                retry_after: http::retry_after(&self.headers, Timestamp::now()),
            },
            _ => self.error(),
        }
    }

    /// What a status that is no success means.
    pub(super) fn error(&self) -> KernelError {
        let retry_after = || http::retry_after(&self.headers, Timestamp::now());
        match self.status {
            403 => KernelError::PermissionDenied,
            408 => KernelError::TimedOut,
            429 => KernelError::RateLimited {
                retry_after: retry_after(),
            },
            status @ 500..=599 => KernelError::Unavailable {
                status,
                retry_after: retry_after(),
            },
            status @ 400..=499 => KernelError::Refused { status },
            _ => KernelError::InvalidResponse("its status is none that Kernel documents"),
        }
    }
}

/// A correlator for a call that stands for itself.
pub(super) fn new_correlator() -> String {
    Uuid::new_v4().to_string()
}

/// What an answer says of the webhook that Kernel holds.
fn read_back(answer: &Answer) -> Result<ReadBack, KernelError> {
    if contract::NO_READ_BACK.contains(&answer.status) {
        return Ok(ReadBack::Unsupported);
    }
    match answer.status {
        204 => Ok(ReadBack::Empty),
        200 => Ok(held_url(&answer.body)?.map_or(ReadBack::Empty, ReadBack::Url)),
        _ => Err(answer.error()),
    }
}

/// Whether an answer says that this webhook was set.
fn was_set(answer: &Answer, to: &SecretString) -> Result<(), KernelError> {
    if !contract::SET_STATUSES.contains(&answer.status) {
        return Err(answer.error_on_the_way());
    }
    if answer.body.is_empty() {
        return Ok(());
    }
    match held_url(&answer.body)? {
        Some(named) if !same_target(named.expose_secret(), to.expose_secret()) => Err(
            KernelError::InvalidResponse("it names another webhook than the one that was set"),
        ),
        _ => Ok(()),
    }
}

fn held_url(body: &[u8]) -> Result<Option<SecretString>, KernelError> {
    let held: HeldSetting = serde_json::from_slice(body)
        .map_err(|_| KernelError::InvalidResponse("the webhook setting is not in it"))?;
    Ok(held
        .webhooks
        .and_then(|held| held.url)
        .filter(|url| !url.expose_secret().is_empty()))
}

/// Whether two URLs lead to the same place: all but the query, where Kernel may mask the key.
fn same_target(a: &str, b: &str) -> bool {
    let place = |text: &str| {
        let url = Url::parse(text).ok()?;
        let host = url.host_str().map(ToOwned::to_owned);
        Some((
            url.scheme().to_owned(),
            host,
            url.port_or_known_default(),
            url.path().to_owned(),
        ))
    };
    a == b || (place(a).is_some() && place(a) == place(b))
}
