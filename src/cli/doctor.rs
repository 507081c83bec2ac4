//! `doctor`: looks at a channel, or at a Kernel, and says what is wrong.

use clap::{Args, Subcommand};

use super::{
    around::Around,
    conformance::Conformance,
    output::{Output, print},
    runtime,
};
use crate::{api::Period, doctor, http};

const EXAMPLES: &str = "\
Examples:
  # What is wrong with channel shop-es?
  aura-whatsapp-operator doctor shop-es -n aura-es

  # With a configuration that is not rolled out yet
  aura-whatsapp-operator doctor shop-es -n aura-es --config config.yaml

  # Compare the webhook's key as well (needs the right to read that Secret)
  aura-whatsapp-operator doctor shop-es -n aura-es --release-namespace aura-system \\
    --installation-key-secret aura-whatsapp-operator-installation-key

  # For a program: the first step that is not right
  aura-whatsapp-operator doctor shop-es -n aura-es --output json |
    jq '[.steps[] | select(.outcome == \"fail\" or .outcome == \"unknown\")][0]'

Exit codes: 0 all is well, 1 a step fails, 2 it could not be judged (a right is missing, no cluster).";

#[derive(Debug, Args)]
#[command(
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    after_help = EXAMPLES
)]
pub(super) struct Doctor {
    #[command(subcommand)]
    command: Option<Command>,
    /// The channel's name, as in kubectl get wac
    #[arg(value_name = "CHANNEL", required = true)]
    channel: Option<String>,
    /// The channel's namespace; without it the kubeconfig's own
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    #[command(flatten)]
    around: Around,
    /// How long one call to Kernel may take, such as 5s; without it what the environment says
    #[arg(long, value_name = "TIME")]
    timeout: Option<Period>,
    /// What the report looks like
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

#[derive(Debug, Subcommand)]
enum Command {
    Conformance(Conformance),
}

impl Doctor {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        http::install_tls_provider();
        match self.command {
            Some(Command::Conformance(command)) => command.run(),
            None => self.examine(),
        }
    }

    fn examine(self) -> anyhow::Result<u8> {
        let name = self.channel.unwrap_or_default();
        let request = doctor::Request {
            kubeconfig: self.around.kubeconfig.clone(),
            namespace: self.namespace,
            // As kubectl prints it: whatsappchannel.channels.auracognitive.com/shop-es.
            name: name.rsplit('/').next().unwrap_or_default().to_owned(),
            config: self.around.source(),
            release_namespace: self.around.release_namespace.clone(),
            installation_key: self.around.installation_key_secret.clone(),
            timeout: self.timeout.map(|timeout| timeout.parse()).transpose()?,
        };
        let report = runtime()?.block_on(doctor::run(&request));
        print(self.output, &report.human(), &report.json())?;
        Ok(report.exit_code())
    }
}
