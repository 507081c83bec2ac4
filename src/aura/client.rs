//! Posts activities to Aura. Thin: what an answer means is decided here, what to do about it elsewhere.

use std::{
    sync::{Mutex, PoisonError},
    time::Duration,
};

use bytes::Bytes;
use jiff::Timestamp;
use reqwest::header::{AUTHORIZATION, CONTENT_TYPE, HeaderValue};
use secrecy::ExposeSecret;

use super::contract;
use crate::{
    config::{Credential, Identity},
    http,
    kernel::contract::CORRELATOR,
    telemetry::Outgoing,
};

/// Largest answer of Aura that is read, in bytes. Its content does not matter.
const MAX_ANSWER: usize = 64 * 1024;

/// How long a connection to Aura may take to be made.
const CONNECT: Duration = Duration::from_secs(5);

/// The client of every Aura that is configured.
pub struct Client {
    /// For those that ask for a key, or nothing.
    http: reqwest::Client,
    /// For those that ask for a certificate; each certificate has connections of its own. The last one is used last.
    certified: Mutex<Vec<(Identity, reqwest::Client)>>,
}

/// Certificates that connections are kept for: those in force, and those before that are on their way out.
const CERTIFICATES: usize = 64;

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
            http: http::client(CONNECT)?,
            certified: Mutex::default(),
        })
    }

    fn client_of(&self, credential: &Credential) -> Result<reqwest::Client, reqwest::Error> {
        let Credential::Identity(identity) = credential else {
            return Ok(self.http.clone());
        };
        let mut certified = self.certified.lock().unwrap_or_else(PoisonError::into_inner);
        let kept = certified.iter().position(|(kept, _)| kept == identity);
        let client = match kept {
            Some(at) => certified.remove(at).1,
            None => http::client_with(CONNECT, identity.contents())?,
        };
        if certified.len() >= CERTIFICATES {
            certified.remove(0);
        }
        certified.push((identity.clone(), client.clone()));
        Ok(client)
    }

    /// Posts an activity, already in JSON. `id` is the activity's own and the same for each attempt; `carried` ties the call
    /// to its exchange.
    ///
    /// # Errors
    /// When Aura did not take it.
    pub async fn post(
        &self,
        url: &str,
        credential: &Credential,
        id: &str,
        carried: &Outgoing,
        activity: Bytes,
        timeout: Duration,
    ) -> Result<(), AuraError> {
        let client = self.client_of(credential).map_err(|error| {
            tracing::error!(%error, "a certificate for Aura can't be used");
            AuraError::Unreachable
        })?;
        let mut call = client
            .post(url)
            .timeout(timeout)
            .header(CONTENT_TYPE, "application/json")
            .header(contract::IDEMPOTENCY_KEY, id)
            .header(CORRELATOR, &carried.correlator)
            .body(activity);
        for (name, value) in carried.trace_headers() {
            call = call.header(name, value);
        }
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

#[cfg(test)]
mod tests {
    use std::{path::Path, sync::Arc};

    use axum::{Router, http::StatusCode, routing::post};
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::{
        config::{CredentialSource, Mtls},
        server::{Bounds, ClientNames, Listening, Stop, Tls, listen},
        sim::certificates::Authority,
        telemetry::{Context, ListenersMetrics, w3c::SpanId},
        tls::Files,
    };

    /// An Aura that takes messages from whoever shows a certificate with the bridge's name. Its URL.
    async fn aura(folder: &Path, authority: &Authority) -> String {
        authority
            .sign(&["127.0.0.1"], 2040)
            .unwrap()
            .write(folder)
            .unwrap();
        std::fs::write(folder.join("ca.crt"), authority.pem()).unwrap();
        let files = ["tls.crt", "tls.key", "ca.crt"].map(|name| folder.join(name));
        let tls = Tls::open(&Files {
            certificate: &files[0],
            key: &files[1],
            ca: Some(&files[2]),
        });
        let take = async |names: axum::Extension<ClientNames>| {
            if names.0.0.iter().any(|name| name == "bridge.test") {
                StatusCode::OK
            } else {
                StatusCode::UNAUTHORIZED
            }
        };
        let listener = listen("127.0.0.1:0".parse().unwrap()).await.unwrap();
        let url = format!("https://{}/messages", listener.local_addr().unwrap());
        let listening = Listening {
            listener,
            app: Router::new().route("/messages", post(take)),
            bounds: Bounds::default(),
            trusted: None,
            tls: Some(Arc::new(tls.unwrap())),
            metrics: ListenersMetrics::default().of("test"),
        };
        tokio::spawn(listening.serve(Stop::at_once(CancellationToken::new(), CONNECT)));
        url
    }

    #[tokio::test]
    async fn a_certificate_is_shown_to_an_aura_that_its_own_ca_has_signed() {
        http::install_tls_provider();
        let (folder, authority) = (tempfile::tempdir().unwrap(), Authority::new("aura's").unwrap());
        let url = aura(&folder.path().join("server"), &authority).await;
        let client = Client::new().unwrap();
        let carried = Context::default().outgoing("id".to_owned(), SpanId::new(1));
        let credential = |name: &str, ca: &Authority| {
            let own = folder.path().join(name);
            authority.sign(&[name], 2040).unwrap().write(&own).unwrap();
            std::fs::write(own.join("ca.crt"), ca.pem()).unwrap();
            let source = CredentialSource {
                mtls: Some(Mtls {
                    cert_file: Some(own.join("tls.crt")),
                    key_file: Some(own.join("tls.key")),
                    ca_file: Some(own.join("ca.crt")),
                    name: None,
                }),
                ..CredentialSource::default()
            };
            source.read().unwrap()
        };
        let post = async |credential: &Credential| {
            let activity = Bytes::from_static(b"{}");
            client
                .post(
                    &url,
                    credential,
                    "id",
                    &carried,
                    activity,
                    Duration::from_secs(20),
                )
                .await
        };
        let bridge = credential("bridge.test", &authority);
        assert_eq!(post(&bridge).await, Ok(()));
        assert_eq!(
            post(&credential("other.test", &authority)).await,
            Err(AuraError::CredentialsRejected)
        );
        // Replaced: the next message shows the new one.
        assert_eq!(post(&credential("bridge.test", &authority)).await, Ok(()));
        assert_eq!(client.certified.lock().unwrap().len(), 3);
        let elsewhere = credential("bridge.test", &Authority::new("another").unwrap());
        assert_eq!(
            post(&elsewhere).await,
            Err(AuraError::Unreachable),
            "its server is not believed"
        );
        assert!(!format!("{bridge:?}").contains("BEGIN"));
    }
}
