//! `controller`: wires the controller.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Args;
use url::Url;

use super::{Common, runtime, signals};
use crate::{
    api::Period,
    cluster,
    controller::{self, Asks, DEFAULT_INSTALLATION_KEY, Options, Timing},
    lineage::DEFAULT_RECORD,
};

#[derive(Debug, Args)]
pub(super) struct Controller {
    #[command(flatten)]
    common: Common,
    /// The name of the Secret with the installation key, in the release's namespace; created if it is not there
    #[arg(long, value_name = "NAME", default_value = DEFAULT_INSTALLATION_KEY)]
    installation_key_secret: String,
    /// How long after a rotation of the installation key Kernel is told of keys derived from it: longer than it takes
    /// until every bridge sees the new Secret
    #[arg(long, value_name = "DURATION", default_value = "2m")]
    installation_key_settle: Period,
    /// How long the others leave the leader's Lease alone after it was renewed last
    #[arg(long, value_name = "DURATION", default_value = "12s")]
    lease_duration: Period,
    /// How long a leader leads on after it renewed the Lease last; shorter than --lease-duration
    #[arg(long, value_name = "DURATION", default_value = "8s")]
    lease_renew_deadline: Period,
    /// How often the leader renews the Lease, and how often the others look at it
    #[arg(long, value_name = "DURATION", default_value = "2s")]
    lease_retry_period: Period,
    /// The bridge's admin listener, such as http://aura-whatsapp-operator-bridge-0.aura-whatsapp-operator-bridge:9090: it is
    /// asked how each channel delivers, and how far its journal has got. Without it, no condition Delivering is written and no journal recorded
    #[arg(long, value_name = "URL")]
    bridge_url: Option<Url>,
    /// How often the bridge is asked. A condition changes after two answers that are alike, or twelve if it gets better
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    bridge_every: Period,
    /// The ConfigMap in the release's namespace in which is recorded how far the bridge's journal has got
    #[arg(long, value_name = "NAME", default_value = DEFAULT_RECORD)]
    journal_record: String,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9090")]
    admin_listen: SocketAddr,
    /// How many channels are reconciled at once, at least
    #[arg(long, value_name = "N", default_value_t = 16)]
    concurrency: u16,
}

impl Controller {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let installation = self.common.start()?;
        let key_settle = self.installation_key_settle.parse()?;
        let bridge_every = self.bridge_every.parse()?;
        let lease = Timing::new(
            self.lease_duration.parse()?,
            self.lease_renew_deadline.parse()?,
            self.lease_retry_period.parse()?,
        )?;
        runtime()?.block_on(async move {
            let stop = signals::stop_token().context("can't listen to signals")?;
            let kubeconfig = self.common.kubeconfig.as_deref();
            let (client, watches) = cluster::watching_client(kubeconfig).await?;
            let lease_client = cluster::lease_client(kubeconfig).await?;
            let options = Options {
                installation,
                release_namespace: self.common.namespace,
                config: self.common.config.clone(),
                installation_key: self.installation_key_secret,
                key_settle,
                lease,
                bridge: Asks {
                    url: self.bridge_url,
                    every: bridge_every,
                    record: self.journal_record,
                },
                admin: self.admin_listen,
                concurrency: self.concurrency,
            };
            Ok(controller::run(client, watches, lease_client, options, stop).await?)
        })
    }
}
