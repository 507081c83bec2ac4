//! The command line: one file per subcommand, wiring only.

mod around;
mod bridge;
mod conformance;
mod controller;
mod crd;
mod doctor;
mod import;
mod journal;
mod messages;
mod output;
mod plan;
mod progress;
mod signals;
mod sources;
mod validate;

use std::{path::PathBuf, process::ExitCode};

use anyhow::Context;
use clap::{Args, Parser, Subcommand};

use self::output::{NOT_JUDGED, ended};
use crate::{config::Installation, http, telemetry};

/// Runs Aura's WhatsApp channels as Kubernetes resources.
///
/// The controller registers each WhatsAppChannel's webhook with Kernel and keeps it registered. The bridge carries
/// messages between Kernel and Aura. Both read the same configuration file.
#[derive(Debug, Parser)]
#[command(version, propagate_version = true, max_term_width = 100)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Register webhooks and report in the status of each WhatsAppChannel
    Controller(controller::Controller),
    /// Take webhook calls, hand messages to Aura, send replies
    Bridge(bridge::Bridge),
    /// Print the CustomResourceDefinition of WhatsAppChannel
    ///
    /// Install it with: aura-whatsapp-operator crd | kubectl apply --server-side -f -
    Crd,
    /// Say at which step a channel fails, from its Secret to Kernel, and what to do next; changes nothing
    Doctor(Box<doctor::Doctor>),
    /// Say what would be registered, changed or refused in a cluster, also if manifests were applied; changes nothing
    Plan(Box<plan::Plan>),
    /// Judge manifests without a cluster, as the API server and the controller would
    Validate(validate::Validate),
    /// Make manifests of channel documents of Aura
    Import(import::Import),
    /// Check, show or repair the files of a bridge's journal, while no bridge uses them
    Journal(journal::JournalFiles),
    /// See and repair what is stuck in a bridge: dead letters, held conversations, where one message is
    Messages(Box<messages::Messages>),
}

/// What both roles need.
#[derive(Debug, Args)]
struct Common {
    /// The installation's configuration file
    #[arg(
        long,
        value_name = "FILE",
        env = "AURA_CONFIG",
        default_value = "/etc/aura-whatsapp-operator/config/config.yaml"
    )]
    config: PathBuf,
    /// The kubeconfig to use; without it KUBECONFIG, or the pod's service account
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The namespace that this release is installed in
    #[arg(long, value_name = "NAME", env = "POD_NAMESPACE", default_value = "default")]
    namespace: String,
    /// How log lines look
    #[arg(long, value_enum, env = "AURA_LOG_FORMAT", default_value = "text")]
    log_format: telemetry::LogFormat,
    /// What is logged: a level, or levels by module, such as info,kube=debug
    #[arg(long, value_name = "FILTER", env = "AURA_LOG_FILTER", default_value = "info")]
    log_filter: String,
}

impl Common {
    /// Starts logging and TLS, and reads the configuration.
    fn start(&self) -> anyhow::Result<Installation> {
        telemetry::init(self.log_format, &self.log_filter).map_err(anyhow::Error::msg)?;
        http::install_tls_provider();
        Installation::load(&self.config).context("the configuration can't be used")
    }
}

/// Runs the subcommand. An error is one line on stderr and exit status 1; 2 where 1 means that a problem was found.
pub fn run(cli: Cli) -> ExitCode {
    let (result, failed) = match cli.command {
        Command::Controller(command) => (command.run().map(|()| 0), 1),
        Command::Bridge(command) => (command.run().map(|()| 0), 1),
        Command::Crd => (crd::run().map(|()| 0), 1),
        Command::Doctor(command) => (command.run(), NOT_JUDGED),
        Command::Validate(command) => (command.run(), NOT_JUDGED),
        Command::Import(command) => (command.run(), NOT_JUDGED),
        Command::Journal(command) => (command.run(), NOT_JUDGED),
        Command::Plan(command) => (command.run(), NOT_JUDGED),
        Command::Messages(command) => (command.run(), NOT_JUDGED),
    };
    ended(result, failed)
}

/// The runtime of a role. Two threads: the work is waiting, and the limit of a small pod.
fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("can't start the runtime")
}
