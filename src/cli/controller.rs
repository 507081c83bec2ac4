//! `controller`: wires the controller.

use std::net::SocketAddr;

use anyhow::Context;
use clap::Args;

use super::{Common, runtime, signals};
use crate::{
    api::Period,
    cluster,
    controller::{self, DEFAULT_INSTALLATION_KEY, Options},
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
        let key_settle = self
            .installation_key_settle
            .parse()
            .context("--installation-key-settle must be a duration such as 2m")?;
        runtime()?.block_on(async move {
            let stop = signals::stop_token().context("can't listen to signals")?;
            let client = cluster::client(self.common.kubeconfig.as_deref()).await?;
            let options = Options {
                installation,
                release_namespace: self.common.namespace,
                config: self.common.config.clone(),
                installation_key: self.installation_key_secret,
                key_settle,
                admin: self.admin_listen,
                concurrency: self.concurrency,
            };
            Ok(controller::run(client, options, stop).await?)
        })
    }
}
