//! The command line of `cargo dev`.

use std::{path::PathBuf, process::ExitCode};

use clap::{ArgAction, Parser, Subcommand};

use super::{smoke, up, user};
use crate::{http, sim::controlplane::guard_main, telemetry};

/// Brings up a whole installation on this machine: a real Kubernetes API server, simulated Kernel and Aura, the
/// controller, the bridge, and the two example channels.
///
/// The first run builds the API server from Go modules (about 5 minutes, once). Ctrl-C ends everything.
#[derive(Debug, Parser)]
#[command(
    name = "cargo dev",
    bin_name = "cargo dev",
    max_term_width = 100,
    args_conflicts_with_subcommands = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    /// Drive everything through one conversation on both numbers, a Secret's rotation and a deletion; then end
    #[arg(long)]
    smoke: bool,
    /// Use this cluster instead of one of our own
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Allow --kubeconfig to name a cluster that is not on this machine; must be given twice
    #[arg(long, action = ArgAction::Count)]
    allow_remote: u8,
    /// What controller and bridge log
    #[arg(long, value_name = "FILTER", default_value = "info")]
    log_filter: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Play a WhatsApp user: send a text to a number and print the replies as they come
    Send(user::Send),
    /// End what its parent started, when its parent has ended
    #[command(hide = true)]
    Guard,
}

/// What `up` and `smoke` need.
pub(super) struct Request {
    pub kubeconfig: Option<PathBuf>,
    pub allow_remote: u8,
    pub log_filter: String,
}

/// Runs the command line.
#[allow(clippy::print_stderr, reason = "a command line program's errors go to stderr")]
pub fn main() -> ExitCode {
    let cli = Cli::parse();
    if matches!(cli.command, Some(Command::Guard)) {
        return guard_main();
    }
    http::install_tls_provider();
    let _ = telemetry::init(telemetry::LogFormat::Text, "error,kube_client=off");
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => {
            eprintln!("error: can't start: {error}");
            return ExitCode::FAILURE;
        }
    };
    let request = Request {
        kubeconfig: cli.kubeconfig,
        allow_remote: cli.allow_remote,
        log_filter: cli.log_filter,
    };
    let result = runtime.block_on(async {
        match cli.command {
            Some(Command::Send(send)) => send.run().await,
            _ if cli.smoke => smoke::run(request).await,
            _ => up::run(request).await,
        }
    });
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
