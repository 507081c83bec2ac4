//! The Kubernetes client, with a deadline on every call.
//!
//! The library retries 429, 503 and 504 by itself, for minutes in the worst case and whatever `Retry-After` says, and has
//! no read timeout: one half dead connection would hold a reconciliation for ever. A layer around it bounds both, another
//! has calls wait for as long as the API server asks, and the outermost one keeps watches that end at once from being
//! begun anew without a pause.

use std::{path::Path, time::Duration};

use kube::{
    Client, Config,
    client::ClientBuilder,
    config::{KubeConfigOptions, Kubeconfig},
};

use super::{
    around::AroundLayer,
    asked::{Asked, Patience},
    deadline::DeadlineLayer,
    pace::Pace,
    watches::Watches,
};

/// The time for one call to the API server, its retries included, and then for the answer's body.
const DEADLINE: DeadlineLayer = DeadlineLayer {
    head: Duration::from_secs(10),
    body: Duration::from_secs(10),
};
/// The time for one call of the election, and for a silence on its connection. The election itself waits no longer
/// than its retry period; this ends what that leaves behind.
const LEASE_DEADLINE: Duration = Duration::from_secs(5);

/// There is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The kubeconfig can't be read.
    #[error("can't use the kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    /// Neither a kubeconfig nor a service account is there.
    #[error(
        "no way to a Kubernetes API server: not in a pod with a service account, and no kubeconfig ({0}); \
         set KUBECONFIG or --kubeconfig"
    )]
    Infer(#[from] kube::config::InferConfigError),
    /// TLS can't be set up.
    #[error("can't set up the connection to the API server: {0}")]
    Client(#[from] kube::Error),
}

/// A client for the given kubeconfig, or for the surroundings (KUBECONFIG, a pod's service account).
///
/// # Errors
/// When neither leads anywhere.
pub async fn client(kubeconfig: Option<&Path>) -> Result<Client, ClientError> {
    Ok(ClientBuilder::try_from(config(kubeconfig).await?)?
        .with_layer(&DEADLINE)
        .build())
}

/// A client for a role that runs on, and word of whether its watches stand. It repeats nothing by itself: whoever calls
/// does, less and less often, and no sooner than the API server asks for.
///
/// # Errors
/// As [`client`].
pub async fn watching_client(kubeconfig: Option<&Path>) -> Result<(Client, Watches), ClientError> {
    let watches = Watches::default();
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    let patience = Patience {
        asked: Asked::default(),
        waits: true,
    };
    let client = ClientBuilder::try_from(config)?
        .with_layer(&DEADLINE)
        .with_layer(&AroundLayer(patience))
        .with_layer(&AroundLayer(watches.clone()))
        .with_layer(&AroundLayer(Pace::default()))
        .build();
    Ok((client, watches))
}

/// A client for the election alone, with connections of its own: it repeats nothing by itself, because the election
/// counts its tries, and gives a silent connection up before a claim ends. With it comes what the API server asks for.
///
/// # Errors
/// As [`client`].
pub async fn lease_client(kubeconfig: Option<&Path>) -> Result<(Client, Asked), ClientError> {
    let mut config = config(kubeconfig).await?;
    config.default_retry = false;
    config.connect_timeout = Some(LEASE_DEADLINE);
    config.read_timeout = Some(LEASE_DEADLINE);
    config.write_timeout = Some(LEASE_DEADLINE);
    let asked = Asked::default();
    let client = ClientBuilder::try_from(config)?
        .with_layer(&DeadlineLayer {
            head: LEASE_DEADLINE,
            body: LEASE_DEADLINE,
        })
        .with_layer(&AroundLayer(Patience {
            asked: asked.clone(),
            waits: false,
        }))
        .build();
    Ok((client, asked))
}

async fn config(kubeconfig: Option<&Path>) -> Result<Config, ClientError> {
    Ok(match kubeconfig {
        Some(path) => {
            Config::from_custom_kubeconfig(Kubeconfig::read_from(path)?, &KubeConfigOptions::default())
                .await?
        }
        None => Config::infer().await?,
    })
}

/// One word for an error of the API server, for logs: its own text may name more than it should.
pub fn error_class(error: &kube::Error) -> &'static str {
    match error {
        kube::Error::Api(status) if status.is_forbidden() => "forbidden",
        // By its number: of a path that is not served, as where the CRD is missing, the answer gives no reason.
        kube::Error::Api(status) if status.code == 404 => "not_found",
        kube::Error::Api(status) if status.is_conflict() => "conflict",
        kube::Error::Api(status) if status.code == 429 => "too_many_requests",
        kube::Error::Api(_) => "api_error",
        kube::Error::Service(_) | kube::Error::HyperError(_) => "unreachable",
        _ => "error",
    }
}
