//! Posts activities to Aura. Thin: what an answer means is decided here, what to do about it elsewhere.

use std::time::Duration;

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use secrecy::ExposeSecret;

use super::contract;
use crate::{config::Credential, http, kernel::contract::CORRELATOR};

/// Largest answer of Aura that is read, in bytes. Its content does not matter.
const MAX_ANSWER: usize = 64 * 1024;

/// The client of every Aura that is configured.
pub struct Client {
    http: reqwest::Client,
}

/// Aura did not take an activity. Free of ids, addresses and secrets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuraError {
    /// 401: our credential is wrong. Nothing is wrong with the message.
    #[error("Aura rejects the bridge's credential (401)")]
    CredentialsRejected,
    /// No connection: nothing was sent.
    #[error("Aura can't take messages now (unreachable)")]
    Unreachable,
    /// The connection broke, or no answer came in time, after the message was on its way: Aura may have it.
    #[error("Aura can't take messages now ({class})")]
    OutcomeUnknown {
        /// One word for logs.
        class: &'static str,
    },
    /// An answer that says nothing of the message: it may work later.
    #[error("Aura can't take messages now ({status})")]
    Unavailable {
        /// The status.
        status: u16,
        /// How long Aura asks us to wait.
        retry_after: Option<Duration>,
    },
    /// 400, 413, 415 or 422: the same message will be refused again.
    #[error("Aura refuses the message ({status})")]
    Refused {
        /// The status.
        status: u16,
    },
}

impl Client {
    /// A client.
    ///
    /// # Errors
    /// When TLS can't be set up.
    pub fn new() -> Result<Self, reqwest::Error> {
        Ok(Self {
            http: http::client(Duration::from_secs(5))?,
        })
    }

    /// Posts an activity, already in JSON. `id` is the activity's own and the same for each attempt.
    ///
    /// # Errors
    /// When Aura did not take it.
    pub async fn post(
        &self,
        url: &str,
        credential: &Credential,
        id: &str,
        activity: Bytes,
        timeout: Duration,
    ) -> Result<(), AuraError> {
        let mut call = self
            .http
            .post(url)
            .timeout(timeout)
            .header(CONTENT_TYPE, "application/json")
            .header(contract::IDEMPOTENCY_KEY, id)
            .header(CORRELATOR, id)
            .body(activity);
        if let Credential::Header(value) = credential
            && let Ok(mut value) = HeaderValue::from_str(value.expose_secret())
        {
            value.set_sensitive(true);
            call = call.header(AUTHORIZATION, value);
        }
        let response = call.send().await.map_err(|error| {
            // The library's own text shows the whole URL: it is not used.
            match () {
                () if error.is_connect() => AuraError::Unreachable,
                () if error.is_timeout() => AuraError::OutcomeUnknown { class: "timed_out" },
                () => AuraError::OutcomeUnknown { class: "interrupted" },
            }
        })?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        // Read to the end, so that the connection can be used again; what it says does not matter.
        let _ = http::read_body(response, MAX_ANSWER).await;
        let retry_after = http::retry_after(&headers, Timestamp::now());
        match status {
            200..=299 => Ok(()),
            401 => Err(AuraError::CredentialsRejected),
            400 | 413 | 415 | 422 => Err(AuraError::Refused { status }),
            // Also 403, 404, 409 and the like: a gateway on the way, a rollout, a path that is wrong for now. None of
            // them is a judgement on this message.
            _ => Err(AuraError::Unavailable { status, retry_after }),
        }
    }
}
