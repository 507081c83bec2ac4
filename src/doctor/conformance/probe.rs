//! The calls, as they are: no token is kept and none fetched unasked, nothing is tried again. Thin.

use std::time::{Duration, Instant};

use jiff::Timestamp;
use reqwest::{
    RequestBuilder,
    header::{HeaderMap, RETRY_AFTER},
};
use secrecy::{ExposeSecret, SecretString};
use serde_json::json;
use uuid::Uuid;

use super::{
    Options,
    evidence::{NoAnswer, Reached, Seen, SettingAnswer, TokenAnswer, harmless},
};
use crate::{
    http,
    kernel::{Credentials, contract},
};

/// Asks one Kernel.
pub(super) struct Probe {
    http: reqwest::Client,
    token_url: String,
    webhook_url: String,
    messages_url: String,
    timeout: Duration,
    purposes: Vec<String>,
    registration_scopes: Vec<String>,
    client: Credentials,
    pub seen: Seen,
}

struct Answer {
    status: u16,
    body: bytes::Bytes,
}

impl Probe {
    pub fn new(options: &Options) -> Result<Self, reqwest::Error> {
        let kernel = &options.kernel;
        Ok(Self {
            http: http::client(Duration::from_secs(5))?,
            token_url: kernel.token_url(),
            webhook_url: kernel.webhook_url(options.version),
            messages_url: kernel.messages_url(options.version),
            timeout: kernel.timeout(),
            purposes: options.purposes.clone(),
            registration_scopes: options.registration_scopes.clone(),
            client: options.client.clone(),
            seen: Seen::default(),
        })
    }

    /// Asks for a token by client credentials.
    pub async fn token(&mut self, client: &Credentials, scopes: &[String]) -> Reached<TokenAnswer> {
        let mut form = vec![("grant_type", "client_credentials".to_owned())];
        for (name, words) in [("scope", scopes), ("purpose", &self.purposes)] {
            if !words.is_empty() {
                form.push((name, words.join(" ")));
            }
        }
        let call = self
            .http
            .post(&self.token_url)
            .basic_auth(client.id.expose_secret(), Some(client.secret.expose_secret()))
            .form(&form);
        let answer = self.call(call).await?;
        Ok(TokenAnswer::read(answer.status, &answer.body))
    }

    /// A fresh token of the test client for the controller's scopes.
    pub async fn fresh(&mut self) -> Option<SecretString> {
        let (client, scopes) = (self.client.clone(), self.registration_scopes.clone());
        self.token(&client, &scopes).await.ok()?.token
    }

    /// Reads the webhook.
    pub async fn webhook(&mut self, token: &SecretString) -> Reached<SettingAnswer> {
        let call = self
            .http
            .get(&self.webhook_url)
            .bearer_auth(token.expose_secret());
        let answer = self.call(call).await?;
        Ok(SettingAnswer::read(answer.status, &answer.body))
    }

    /// Sets the webhook; an empty URL clears it.
    pub async fn set_webhook(&mut self, token: &SecretString, url: &SecretString) -> Reached<SettingAnswer> {
        let call = self
            .http
            .patch(&self.webhook_url)
            .bearer_auth(token.expose_secret())
            .json(&json!({"webhooks": {"url": url.expose_secret()}}));
        let answer = self.call(call).await?;
        Ok(SettingAnswer::read(answer.status, &answer.body))
    }

    /// What a GET of the path that messages are posted to says: nothing is sent.
    pub async fn messages_path(&mut self, token: &SecretString) -> Reached<u16> {
        let call = self
            .http
            .get(&self.messages_url)
            .bearer_auth(token.expose_secret());
        Ok(self.call(call).await?.status)
    }

    async fn call(&mut self, call: RequestBuilder) -> Reached<Answer> {
        let correlator = Uuid::new_v4().to_string();
        let began = Instant::now();
        let sent = call
            .header(contract::CORRELATOR, &correlator)
            .timeout(self.timeout)
            .send()
            .await;
        let response = sent.map_err(|error| {
            if error.is_connect() {
                NoAnswer::Unreachable
            } else if error.is_timeout() {
                NoAnswer::TimedOut
            } else {
                NoAnswer::Broken
            }
        })?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        let body = http::read_body(response, contract::MAX_ANSWER).await;
        let body = body.map_err(|error| match error {
            http::BodyError::TooLarge => NoAnswer::TooLarge,
            http::BodyError::TimedOut => NoAnswer::TimedOut,
            http::BodyError::Broken => NoAnswer::Broken,
        })?;
        self.note(status, &headers, body.len(), began.elapsed(), &correlator);
        Ok(Answer { status, body })
    }

    fn note(&mut self, status: u16, headers: &HeaderMap, size: usize, took: Duration, correlator: &str) {
        let seen = &mut self.seen;
        seen.answers += 1;
        seen.slowest = seen.slowest.max(took);
        seen.largest = seen.largest.max(size);
        let echo = headers.get(contract::CORRELATOR);
        seen.echoed += u32::from(echo.is_some_and(|echo| echo.as_bytes() == correlator.as_bytes()));
        for (name, value) in headers {
            let name = name.as_str();
            if ["ratelimit", "rate-limit", "quota"]
                .iter()
                .any(|word| name.contains(word))
            {
                let line = format!("{}: {}", harmless(name), harmless(value.to_str().unwrap_or("?")));
                if seen.quota_headers.len() < 8 && !seen.quota_headers.contains(&line) {
                    seen.quota_headers.push(line);
                }
            }
        }
        if status == 429 && seen.limited.len() < 8 {
            let text = headers.get(RETRY_AFTER).and_then(|value| value.to_str().ok());
            seen.limited.push(match text {
                None => "absent",
                Some(text) if text.trim().parse::<u64>().is_ok() => "seconds",
                Some(_) if http::retry_after(headers, Timestamp::now()).is_some() => "a date",
                Some(_) => "something else",
            });
        }
    }
}
