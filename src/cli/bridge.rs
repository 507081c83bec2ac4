//! `bridge`: wires the bridge.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clap::Args;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::{Common, runtime, signals};
use crate::{
    bridge::{self, AuditLog, Options},
    cluster,
    lineage::DEFAULT_RECORD,
};

#[derive(Debug, Args)]
pub(super) struct Bridge {
    #[command(flatten)]
    common: Common,
    /// The directory that the installation key's Secret is mounted as
    #[arg(
        long,
        value_name = "DIR",
        default_value = "/etc/aura-whatsapp-operator/installation-key"
    )]
    installation_key: PathBuf,
    /// The volume of the journal: what an accepted message survives a crash on
    #[arg(long, value_name = "DIR", default_value = "/var/lib/aura-whatsapp-operator")]
    data_dir: PathBuf,
    /// The ConfigMap in the release's namespace in which the controller records how far the journal has got: a journal that
    /// is older, restored or copied, sends nothing of what it held before a person says so
    #[arg(long, value_name = "NAME", default_value = DEFAULT_RECORD)]
    journal_record: String,
    /// Where Kernel's webhook calls arrive
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8080")]
    public_listen: SocketAddr,
    /// Where Aura's replies arrive
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:8081")]
    internal_listen: SocketAddr,
    /// Where /healthz, /readyz and /metrics are served
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:9090")]
    admin_listen: SocketAddr,
    /// Where `messages` sees and repairs what is stuck: a loopback address, which kubectl port-forward reaches
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8084")]
    messages_address: SocketAddr,
    /// Where changes by `messages` are told of, a JSON line each: a file, stdout, or log for the log's target audit
    #[arg(long, value_name = "FILE|stdout|log", default_value = "log")]
    audit_log: PathBuf,
    /// How many seconds the bridge goes on taking calls when it is told to stop, while its readiness says so and each
    /// answer closes its connection: until nobody sends new calls here any more
    #[arg(long, value_name = "SECONDS", default_value_t = 5)]
    drain: u64,
    /// How many seconds calls and deliveries under way may take after that
    #[arg(long, value_name = "SECONDS", default_value_t = 20)]
    grace: u64,
}

impl Bridge {
    pub(super) fn run(self) -> anyhow::Result<()> {
        let installation = self.common.start()?;
        raise_open_files();
        runtime()?.block_on(async move {
            let stop = signals::stop_token().context("can't listen to signals")?;
            let (client, watches) = cluster::watching_client(self.common.kubeconfig.as_deref()).await?;
            let options = Options {
                installation,
                config: self.common.config.clone(),
                release_namespace: self.common.namespace,
                installation_key: self.installation_key,
                data_dir: self.data_dir,
                journal_record: self.journal_record,
                public: self.public_listen,
                internal: self.internal_listen,
                admin: self.admin_listen,
                messages: self.messages_address,
                audit_log: match self.audit_log.to_str() {
                    Some("log") => AuditLog::Log,
                    Some("stdout") => AuditLog::Stdout,
                    _ => AuditLog::File(self.audit_log),
                },
                drain: Duration::from_secs(self.drain),
                grace: Duration::from_secs(self.grace),
            };
            Ok(bridge::run(client, watches, options, stop).await?)
        })
    }
}

/// Each connection is an open file, and the usual limit is 1,024. The hard limit is what the machine's owner allows; the
/// soft one is for programs that use `select`, which this one does not.
fn raise_open_files() {
    let limit = getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        ..limit
    };
    if let Err(error) = setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, open_files = limit.current, "can't raise the limit of open files");
    }
}
