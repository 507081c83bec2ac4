//! Talks to the bridge's messages listener, and says how to reach it where nothing answers.

use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use clap::Args;
use reqwest::{Method, Response, header::CONTENT_TYPE};
use serde_json::Value;
use url::Url;

use super::super::output::{FOUND, NOT_JUDGED};
use crate::{http, words::printable};

/// The largest answer that is read, in bytes.
const MAX_ANSWER: usize = 32 << 20;
/// How long one call may take in all.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Where the bridge is.
#[derive(Debug, Args)]
pub(super) struct Place {
    /// The bridge's messages listener, as it is reached from here
    #[arg(
        long,
        value_name = "URL",
        default_value = "http://127.0.0.1:8084",
        global = true
    )]
    url: Url,
    /// The bridge's pod, for the command that reaches it
    #[arg(
        long,
        value_name = "NAME",
        default_value = "aura-whatsapp-operator-bridge-0",
        global = true
    )]
    pod: String,
    /// The pod's namespace, for the same; without it the kubeconfig's own
    #[arg(short, long, value_name = "NAME", global = true)]
    namespace: Option<String>,
}

/// Why there is no answer as wanted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Failure {
    /// Nobody answers there.
    #[error("{0}")]
    Unreachable(String),
    /// The bridge says no.
    #[error("{message}")]
    Refused { status: u16, message: String },
    /// An answer that is none of the bridge's.
    #[error("what answers there is not the bridge's messages listener ({0})")]
    Foreign(String),
}

impl Failure {
    /// 1: what was asked for is not there, or not in a state for it; 2: it could not be asked.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Refused {
                status: 404 | 409 | 410,
                ..
            } => FOUND,
            _ => NOT_JUDGED,
        }
    }
}

impl Place {
    /// The command that makes the listener reachable from here.
    pub fn port_forward(&self) -> String {
        let namespace = self.namespace.as_ref();
        let namespace = namespace.map_or_else(String::new, |name| format!("--namespace {name} "));
        let port = self.url.port_or_known_default().unwrap_or(8084);
        format!("kubectl {namespace}port-forward pod/{} {port}:8084", self.pod)
    }

    fn unreachable(&self) -> Failure {
        Failure::Unreachable(
            printable(&format!(
                "nothing answers at {}. The bridge shows messages on its pod's loopback alone; reach it with:",
                self.url
            )) + &format!("\n  {}", self.port_forward()),
        )
    }

    /// A client for it.
    pub fn client(&self) -> anyhow::Result<Client<'_>> {
        // Neither a proxy nor a redirect stands between a person and his own machine.
        let http = reqwest::Client::builder()
            .no_proxy()
            .redirect(reqwest::redirect::Policy::none())
            .timeout(TIMEOUT)
            .build()
            .context("can't set up an HTTP client")?;
        Ok(Client { http, place: self })
    }
}

/// Asks the bridge.
pub(super) struct Client<'a> {
    http: reqwest::Client,
    place: &'a Place,
}

/// What to send along.
pub(super) enum Content<'a> {
    Nothing,
    Json(&'a Value),
    Lines(Vec<u8>),
}

impl Client<'_> {
    /// An answer in JSON.
    pub async fn json(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        content: Content<'_>,
    ) -> Result<Value, Failure> {
        let (body, _) = self.call(method, path, query, content).await?;
        serde_json::from_slice(&body).map_err(|_| Failure::Foreign("no JSON".to_owned()))
    }

    pub async fn get(&self, path: &str, query: &[(&str, String)]) -> Result<Value, Failure> {
        self.json(Method::GET, path, query, Content::Nothing).await
    }

    pub async fn post(&self, path: &str, order: &Value) -> Result<Value, Failure> {
        self.json(Method::POST, path, &[], Content::Json(order)).await
    }

    /// An answer as it comes, and where the next page begins.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        query: &[(&str, String)],
        content: Content<'_>,
    ) -> Result<(Bytes, Option<String>), Failure> {
        let mut url = self.place.url.clone();
        if let Ok(mut segments) = url.path_segments_mut() {
            // An id may hold anything.
            segments.pop_if_empty().extend(path.split('\n'));
        }
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        let request = self.http.request(method, url);
        let request = match content {
            Content::Nothing => request,
            Content::Json(json) => request.json(json),
            Content::Lines(lines) => request.header(CONTENT_TYPE, "application/x-ndjson").body(lines),
        };
        let response = request.send().await.map_err(|_| self.place.unreachable())?;
        let status = response.status();
        let next = header(&response, "next-cursor");
        let body = http::read_body(response, MAX_ANSWER)
            .await
            .map_err(|_| Failure::Foreign("the answer breaks off".to_owned()))?;
        if status.is_success() {
            return Ok((body, next));
        }
        let answer: Value = serde_json::from_slice(&body).unwrap_or_default();
        match answer["error"]["message"].as_str() {
            Some(message) => Err(Failure::Refused {
                status: status.as_u16(),
                message: printable(message),
            }),
            None => Err(Failure::Foreign(format!("HTTP {}", status.as_u16()))),
        }
    }
}

fn header(response: &Response, name: &str) -> Option<String> {
    let value = response.headers().get(name)?;
    value.to_str().ok().map(ToOwned::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(url: &str, namespace: Option<&str>) -> Place {
        Place {
            url: url.parse().unwrap(),
            pod: "wa-bridge-0".to_owned(),
            namespace: namespace.map(ToOwned::to_owned),
        }
    }

    #[test]
    fn who_is_not_reached_is_told_the_exact_command() {
        let command = place("http://127.0.0.1:8084", Some("aura-system")).port_forward();
        assert_eq!(
            command,
            "kubectl --namespace aura-system port-forward pod/wa-bridge-0 8084:8084"
        );
        let command = place("http://localhost:9999", None).port_forward();
        assert_eq!(command, "kubectl port-forward pod/wa-bridge-0 9999:8084");
    }

    #[tokio::test]
    async fn nothing_that_listens_is_not_judged() {
        http::install_tls_provider();
        let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", taken.local_addr().unwrap());
        drop(taken);
        let place = place(&url, None);
        let failure = place
            .client()
            .unwrap()
            .get("v1\nmessages", &[])
            .await
            .unwrap_err();
        assert!(
            failure
                .to_string()
                .contains("kubectl port-forward pod/wa-bridge-0"),
            "{failure}"
        );
        assert_eq!(failure.exit_code(), NOT_JUDGED);
    }
}
