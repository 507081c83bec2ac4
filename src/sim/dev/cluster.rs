//! The cluster that a site is put on: one of our own, or a given one.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use kube::{Client, Config, config::Kubeconfig};

use crate::sim::controlplane::{Assets, ControlPlane, Guard, Options};

/// A cluster.
pub(super) enum Cluster {
    Own(Box<ControlPlane>),
    Given { kubeconfig: PathBuf, client: Client },
}

impl Cluster {
    /// Starts a control plane.
    pub async fn start(dir: PathBuf, guard: Guard, assets: &Assets) -> anyhow::Result<Self> {
        let options = Options {
            dir,
            guard,
            assets,
            controller_manager: true,
        };
        Ok(Self::Own(Box::new(ControlPlane::start(options).await?)))
    }

    /// Takes a given one. A cluster that is not on this machine must be allowed twice: what comes next installs
    /// a CRD and roles there.
    pub async fn given(kubeconfig: PathBuf, allow_remote: u8) -> anyhow::Result<Self> {
        let name = kubeconfig.display().to_string();
        let read = Kubeconfig::read_from(&kubeconfig).with_context(|| format!("can't read {name}"))?;
        let config = Config::from_custom_kubeconfig(read, &Default::default())
            .await
            .with_context(|| format!("can't use {name}"))?;
        let host = config.cluster_url.host().unwrap_or_default();
        if !is_local(host) && allow_remote < 2 {
            bail!(
                "{name} names the cluster at {host}, which is not this machine; a CRD, roles and example channels \
                 would be installed there. If that is what you want, give --allow-remote twice"
            );
        }
        let client = Client::try_from(config).context("can't make a client")?;
        client
            .apiserver_version()
            .await
            .with_context(|| format!("the cluster of {name} does not answer"))?;
        Ok(Self::Given { kubeconfig, client })
    }

    pub fn kubeconfig(&self) -> &Path {
        match self {
            Self::Own(own) => own.kubeconfig(),
            Self::Given { kubeconfig, .. } => kubeconfig,
        }
    }

    pub fn client(&self) -> anyhow::Result<Client> {
        match self {
            Self::Own(own) => own.client().context("can't make a client"),
            Self::Given { client, .. } => Ok(client.clone()),
        }
    }

    /// Ends a control plane of our own.
    pub async fn shutdown(&self) -> anyhow::Result<()> {
        if let Self::Own(own) = self {
            own.shutdown().await.context("can't stop the control plane")?;
        }
        Ok(())
    }

    pub fn is_own(&self) -> bool {
        matches!(self, Self::Own(_))
    }
}

/// Whether a host name is this machine's.
fn is_local(host: &str) -> bool {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_is_local() {
        for (host, local) in [
            ("127.0.0.1", true),
            ("[::1]", true),
            ("localhost", true),
            ("10.0.0.1", false),
            ("127.0.0.1.example.com", false),
            ("api.example.com", false),
            ("", false),
        ] {
            assert_eq!(is_local(host), local, "{host}");
        }
    }
}
