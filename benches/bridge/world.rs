//! The surroundings: a control plane, an installation in it, Kernel and Aura.

use std::{path::Path, time::Duration};

use anyhow::{Context, ensure};
use aura_whatsapp_operator::{
    api::WhatsAppChannel,
    sim::{
        aura::{AuraOptions, AuraSim, Behaviour},
        controlplane::Child,
        dev::site::{self, Plan, Site},
        kernel::{KernelOptions, KernelSim},
    },
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client, api::PostParams};

use super::{cluster::Cluster, load};

/// The namespace of everything.
pub const NAMESPACE: &str = "aura-bench";
const AURA_KEY: &str = "fake-key-towards-aura-0001";
const REPLY_KEY: &str = "fake-key-from-aura-000002";
/// How long anything may take that is waited for.
const PATIENCE: Duration = Duration::from_secs(900);
const LOOK_AGAIN: Duration = Duration::from_millis(100);

pub struct World {
    pub client: Client,
    pub kernel: KernelSim,
    pub aura: AuraSim,
    pub site: Site,
    cluster: Cluster,
}

impl World {
    pub async fn start() -> anyhow::Result<Self> {
        let cluster = Cluster::start(NAMESPACE).await?;
        let client = cluster.client.clone();
        let kernel = KernelSim::start(KernelOptions::default()).await?;
        let aura = AuraSim::start(AuraOptions {
            // Replies would be a load of their own.
            behaviour: Behaviour::Silent,
            ..AuraOptions::new(AURA_KEY, REPLY_KEY)
        })
        .await?;
        let site = Site::install(Plan {
            client: client.clone(),
            kubeconfig: cluster.control_plane.kubeconfig(),
            guard: cluster.guard.clone(),
            program: Path::new(env!("CARGO_BIN_EXE_aura-whatsapp-operator")),
            dir: cluster.dir.path().join("site"),
            release_namespace: NAMESPACE,
            watched: &[NAMESPACE.to_owned()],
            finalizers_cluster_wide: false,
            kernel_url: &kernel.url(),
            aura_url: &aura.messages_url(),
            aura_key: AURA_KEY,
            reply_key: REPLY_KEY,
            log_filter: "warn",
            kernel_timeout: "5s",
            further_environments: &[],
            controller_server: None,
            bridge_server: None,
            environment_extra: "",
            config_extra: "",
        })
        .await?;
        Ok(Self {
            client,
            kernel,
            aura,
            site,
            cluster,
        })
    }

    /// Creates the n-th channel, known to Kernel and with its Secret.
    pub async fn add(&self, n: usize) -> anyhow::Result<WhatsAppChannel> {
        self.kernel.add_client(load::client(n));
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        secrets
            .create(&PostParams::default(), &load::secret(NAMESPACE, n)?)
            .await?;
        let channels: Api<WhatsAppChannel> = Api::namespaced(self.client.clone(), NAMESPACE);
        Ok(channels
            .create(&PostParams::default(), &load::channel(NAMESPACE, n)?)
            .await?)
    }

    /// Waits until something is so.
    pub async fn until(&self, what: &str, mut is: impl AsyncFnMut() -> bool) -> anyhow::Result<()> {
        let start = std::time::Instant::now();
        while !is().await {
            ensure!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        Ok(())
    }

    /// A metric of the bridge: the sum over its labels; zero where the bridge does not answer.
    pub async fn metric(&self, name: &str) -> f64 {
        let page = site::get(self.site.bridge_admin, "/metrics").await;
        let (_, page) = page.unwrap_or_default();
        page.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    pub async fn shutdown(&self) -> anyhow::Result<()> {
        Ok(self.cluster.control_plane.shutdown().await?)
    }
}

/// What a process takes of the machine's memory, bytes.
pub fn resident(process: &Child) -> anyhow::Result<u64> {
    site::resident_bytes(process.pid()).context("the process has ended")
}
