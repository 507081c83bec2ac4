//! The flags that say where an installation is, for the subcommands that look at one from outside.

use std::path::PathBuf;

use clap::Args;

use crate::doctor::ConfigSource;

#[derive(Debug, Args)]
pub(super) struct Around {
    /// The installation's configuration file; without it the ConfigMap of the release is read
    #[arg(long, value_name = "FILE", conflicts_with = "config_map")]
    config: Option<PathBuf>,
    /// The ConfigMap's name, if the chart's labels were changed
    #[arg(long, value_name = "NAME")]
    config_map: Option<String>,
    /// The namespace that the release is installed in; without it the release is looked for everywhere
    #[arg(long, value_name = "NAME")]
    pub release_namespace: Option<String>,
    /// The Secret with the installation key, in the release's namespace: read to compare webhooks' keys
    #[arg(long, value_name = "NAME")]
    pub installation_key_secret: Option<String>,
    /// The kubeconfig to use; without it KUBECONFIG, or the pod's service account
    #[arg(long, value_name = "FILE")]
    pub kubeconfig: Option<PathBuf>,
}

impl Around {
    /// Where the configuration is.
    pub fn source(&self) -> ConfigSource {
        match &self.config {
            Some(file) => ConfigSource::File(file.clone()),
            None => ConfigSource::ConfigMap(self.config_map.clone()),
        }
    }
}
