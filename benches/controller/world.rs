//! The surroundings: a control plane, an installation in it, Kernel, and the load.

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use aura_whatsapp_operator::{
    api::WhatsAppChannel,
    sim::{
        controlplane::Requests,
        dev::{
            bulk::create_all,
            site::{self, Plan, Site},
        },
        kernel::{KernelOptions, KernelSim},
    },
};
use k8s_openapi::api::core::v1::Secret;
use kube::{Api, Client};

use super::{Arguments, board::Board, cluster::Cluster, load};

/// Creations at once: more make the API server no faster on two cores.
const AT_ONCE: usize = 32;
/// The namespace of everything.
const NAMESPACE: &str = "aura-bench";
/// The longest period that the resource allows, so that hardly any channel's own moment falls into what is measured.
pub const PERIOD: Duration = Duration::from_secs(168 * 3600);

pub struct World {
    pub client: Client,
    pub kernel: KernelSim,
    pub site: Site,
    cluster: Cluster,
}

impl World {
    pub async fn start(arguments: &Arguments) -> anyhow::Result<Self> {
        let cluster = Cluster::start(NAMESPACE).await?;
        let client = cluster.client.clone();
        let kernel = KernelSim::start(KernelOptions {
            latency: Duration::from_millis(arguments.kernel_latency),
            ..KernelOptions::default()
        })
        .await?;
        let mut site = Site::install(Plan {
            client: client.clone(),
            kubeconfig: cluster.control_plane.kubeconfig(),
            guard: cluster.guard.clone(),
            program: Path::new(env!("CARGO_BIN_EXE_aura-whatsapp-operator")),
            dir: cluster.dir.path().join("site"),
            release_namespace: NAMESPACE,
            watched: &[NAMESPACE.to_owned()],
            finalizers_cluster_wide: false,
            kernel_url: &kernel.url(),
            // The bridge does not run: nobody calls Aura.
            aura_url: "http://127.0.0.1:9/messages",
            aura_key: "fake-key-towards-aura-0001",
            reply_key: "fake-key-from-aura-000002",
            log_filter: "info",
            kernel_timeout: "5s",
            further_environments: &[],
            controller_server: None,
            bridge_server: None,
            environment_extra: &format!(
                "    registration: {{perSecond: 1000000, concurrent: {}}}\n    channelDefaults: {{resyncPeriod: {}h}}\n",
                arguments.kernel_concurrent,
                PERIOD.as_secs() / 3600,
            ),
            config_extra: "",
        })
        .await?;
        site.controller_arguments = vec!["--concurrency".into(), arguments.concurrency.to_string()];
        Ok(Self {
            client,
            kernel,
            site,
            cluster,
        })
    }

    pub fn channels(&self) -> Api<WhatsAppChannel> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Makes the channels known to Kernel and creates them with their Secrets.
    pub async fn load(&self, channels: usize) -> anyhow::Result<Board> {
        (0..channels).for_each(|n| self.kernel.add_client(load::client(n)));
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), NAMESPACE);
        let all = (0..channels)
            .map(|n| load::secret(NAMESPACE, n))
            .collect::<Result<Vec<_>, _>>()?;
        create_all(&secrets, all, AT_ONCE, progress("Secrets", channels)).await?;
        let all = (0..channels)
            .map(|n| load::channel(NAMESPACE, n))
            .collect::<Result<Vec<_>, _>>()?;
        create_all(&self.channels(), all, AT_ONCE, progress("channels", channels)).await?;
        Board::watch(self.channels(), channels).await
    }

    pub async fn requests(&self) -> anyhow::Result<Requests> {
        Requests::read(&self.client)
            .await
            .context("the API server does not tell what it was asked")
    }

    /// A metric of the controller: the sum over its labels.
    pub async fn metric(&self, name: &str) -> anyhow::Result<f64> {
        let page = site::get(self.site.controller_admin, "/metrics").await;
        let (_, page) = page.context("the controller's metrics can't be read")?;
        Ok(page
            .lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum())
    }

    pub async fn shutdown(&self) -> anyhow::Result<()> {
        Ok(self.cluster.control_plane.shutdown().await?)
    }
}

fn progress(what: &'static str, of: usize) -> impl FnMut(usize) {
    let start = Instant::now();
    let mut told = start;
    move |made| {
        if told.elapsed() > Duration::from_secs(5) || made == of {
            told = Instant::now();
            println!(
                "  {made} of {of} {what} created, {:.1} s",
                start.elapsed().as_secs_f64()
            );
        }
    }
}

/// What the figures were measured on.
pub fn machine() -> String {
    let cores = std::thread::available_parallelism().map_or(0, std::num::NonZero::get);
    let profile = if cfg!(debug_assertions) { "dev" } else { "release" };
    format!("{cores} cores, {profile} build")
}

/// How much of the machine's processors is used, by whomever.
pub struct Load {
    busy: u64,
    all: u64,
}

impl Load {
    /// The processors' counters now.
    pub fn read() -> anyhow::Result<Self> {
        let stat = std::fs::read_to_string("/proc/stat")?;
        let line = stat.lines().next().context("/proc/stat is empty")?;
        let times = line.split_ascii_whitespace().skip(1).map(str::parse);
        let times = times.collect::<Result<Vec<u64>, _>>()?;
        // proc(5): user, nice, system, idle, iowait, irq, softirq, steal; the rest is counted in the first two.
        let all: u64 = times.iter().take(8).sum();
        let idle: u64 = times.iter().skip(3).take(2).sum();
        Ok(Self {
            busy: all - idle,
            all,
        })
    }

    /// The share used since then, of all cores.
    pub fn since(&self) -> anyhow::Result<f64> {
        let now = Self::read()?;
        let all = (now.all - self.all).max(1);
        Ok(super::figures::number(now.busy - self.busy) / super::figures::number(all))
    }
}
