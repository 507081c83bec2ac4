//! A proxy in front of the real API server that misbehaves when told to: what a real one can't be made to do on demand.
//!
//! It serves plain HTTP on loopback and passes every request on as it is, the caller's own credentials included, so
//! that rights are judged as ever; answers are streamed, so that watches work. It notes every request, and the body of
//! every write to a `/status`, in order; no other body is kept.
//!
//! ```text
//! proxy.inject(Calls::writes().of("whatsappchannels/status"), Fault::status(409).times(1));
//! proxy.inject(Calls::watches(), Fault::gone());
//! proxy.end_watches(WatchEnd::Eof);
//! ```
//!
//! | file | concern |
//! | --- | --- |
//! | `request` | what a request asks for, and which requests are meant |
//! | `forward` | passing on, and misbehaving |

mod forward;
mod request;

#[cfg(test)]
mod tests;

use std::{fmt, io, path::Path, sync::Arc, time::Duration};

use kube::{
    Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::Value;
use tokio::sync::watch;
use url::Url;

pub use self::request::{ApiRequest, Calls, Verb};
use super::{
    fault::Fault,
    server::{Late, Server, Shared, StartError},
};

/// How the watches that run are ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WatchEnd {
    /// Properly, as the server does every few minutes.
    Eof,
    /// With an `ERROR` event of 410: what the watch could go on from is forgotten.
    Gone,
}

/// One write to the status of an object.
#[derive(Clone, Debug, PartialEq)]
pub struct StatusWrite {
    /// The object's name.
    pub name: String,
    /// What was sent.
    pub body: Value,
    /// The status that was answered; `None` while it is under way, and where the answer was withheld.
    pub status: Option<u16>,
}

/// There is no proxy.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// The kubeconfig can't be used.
    #[error("can't use the kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// The address of the API server can't be used.
    #[error("the API server's address is none: {0}")]
    Address(#[from] url::ParseError),
    /// No client for the API server.
    #[error("can't make a client for the API server: {0}")]
    Client(#[from] reqwest::Error),
    /// No listener.
    #[error(transparent)]
    Start(#[from] StartError),
}

#[derive(Default)]
struct Record {
    requests: Vec<ApiRequest>,
    /// Each with the number of its request.
    status_writes: Vec<(usize, Value)>,
}

struct State {
    upstream: Url,
    http: reqwest::Client,
    faults: std::sync::Mutex<Vec<(Calls, Fault)>>,
    record: Shared<Record>,
    ends: watch::Sender<WatchEnd>,
}

/// A handle on a running proxy; clones are the same one. It ends with its last handle.
#[derive(Clone)]
pub struct ApiProxy {
    inner: Arc<Inner>,
}

struct Inner {
    state: Arc<State>,
    server: Server,
}

impl fmt::Debug for ApiProxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ApiProxy")
            .field("url", &self.url())
            .finish_non_exhaustive()
    }
}

impl ApiProxy {
    /// Starts a proxy in front of the API server that a kubeconfig names. Its credentials are not used: each caller
    /// brings its own.
    ///
    /// # Errors
    /// When the kubeconfig can't be used or no port be had.
    pub async fn start(kubeconfig: &Path) -> Result<Self, ProxyError> {
        let read = Kubeconfig::read_from(kubeconfig)?;
        let config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        let certificates: Vec<reqwest::Certificate> = config
            .root_cert
            .iter()
            .flatten()
            .map(|der| reqwest::Certificate::from_der(der))
            .collect::<Result<_, _>>()?;
        Self::in_front_of(&config.cluster_url.to_string(), certificates).await
    }

    async fn in_front_of(url: &str, certificates: Vec<reqwest::Certificate>) -> Result<Self, ProxyError> {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let http = reqwest::Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(Duration::from_secs(5))
            // An idle connection that the server closes would fail a request that no test meant to fail.
            .pool_max_idle_per_host(0);
        let http = if certificates.is_empty() {
            http
        } else {
            http.tls_certs_only(certificates)
        };
        let state = Arc::new(State {
            upstream: Url::parse(url)?,
            http: http.build()?,
            faults: std::sync::Mutex::default(),
            record: Shared::new(Record::default()),
            ends: watch::Sender::new(WatchEnd::Eof),
        });
        let server = Server::start(0, Arc::clone(&state)).await?;
        Ok(Self {
            inner: Arc::new(Inner { state, server }),
        })
    }

    /// The address to give to a client instead of the API server's, without a final slash.
    pub fn url(&self) -> String {
        format!("http://{}", self.inner.server.address())
    }

    /// Closes the listener and all connections, watches too: connections are refused until [`ApiProxy::restart`].
    pub async fn stop(&self) {
        self.inner.server.stop().await;
    }

    /// Listens again on the same port.
    ///
    /// # Errors
    /// When somebody else took the port.
    pub async fn restart(&self) -> Result<(), StartError> {
        self.inner.server.restart(Arc::clone(&self.inner.state)).await
    }

    /// Misbehaves from now on, in these requests. Of several faults that fit, the one injected first acts, alone.
    pub fn inject(&self, calls: Calls, fault: Fault) {
        self.state().faults().push((calls, fault));
    }

    /// Behaves again. What is dripping goes on dripping.
    pub fn clear_faults(&self) {
        self.state().faults().clear();
    }

    /// Ends the watches that run now.
    pub fn end_watches(&self, how: WatchEnd) {
        self.state().ends.send_replace(how);
    }

    /// Every request so far, also those that a fault hit.
    pub fn requests(&self) -> Vec<ApiRequest> {
        self.state().record.read(|record| record.requests.clone())
    }

    /// How many such requests there were so far.
    pub fn count(&self, calls: &Calls) -> usize {
        self.state().record.read(|record| count(record, calls))
    }

    /// Waits until there were `n` such requests (they may not be answered yet).
    ///
    /// # Errors
    /// When there are fewer after this time.
    pub async fn wait_requests(&self, calls: &Calls, n: usize, within: Duration) -> Result<(), Late> {
        let record = &self.state().record;
        record
            .wait("requests", n, within, |record| count(record, calls))
            .await
    }

    /// Every write to a status, in order, also those that a fault hit.
    pub fn status_writes(&self) -> Vec<StatusWrite> {
        self.state().record.read(|record| {
            let write = |(at, body): &(usize, Value)| {
                let request = record.requests.get(*at)?;
                Some(StatusWrite {
                    name: request.name.clone(),
                    body: body.clone(),
                    status: request.status,
                })
            };
            record.status_writes.iter().filter_map(write).collect()
        })
    }

    fn state(&self) -> &Arc<State> {
        &self.inner.state
    }
}

fn count(record: &Record, calls: &Calls) -> usize {
    record
        .requests
        .iter()
        .filter(|request| calls.fit(request))
        .count()
}

/// What is streamed can break.
type Chunk = io::Result<hyper::body::Frame<bytes::Bytes>>;
