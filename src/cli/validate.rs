//! `validate`: wires the judging of manifests without a cluster.

use std::{
    io::{self, Write},
    path::PathBuf,
};

use clap::Args;

use super::{output::exit, sources::Sources};
use crate::{
    config::{ConfigError, Installation},
    validate::{Format, Options, Report, Severity, Validator, config_problems},
};

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
pub(super) struct Validate {
    /// Files, folders (every .yaml, .yml and .json in them, nothing hidden), or - for standard input
    #[arg(required = true, value_name = "FILE|DIR|-")]
    paths: Vec<PathBuf>,
    /// The installation's configuration: it is checked itself, and tells environments, namespaces and defaults
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// The namespace of manifests that name none
    #[arg(long, value_name = "NAME", default_value = "default")]
    namespace: String,
    /// Make it an error when a Secret that a channel names is not among the files
    #[arg(long)]
    require_secrets: bool,
    /// Make a warning fail too
    #[arg(long)]
    strict: bool,
    /// Print what holds for each channel after all defaults, as YAML that says where each value comes from; the report
    /// then goes to stderr
    #[arg(long)]
    show_effective: bool,
    /// How the report looks
    #[arg(short, long, value_enum, default_value = "human")]
    output: Format,
}

const EXAMPLES: &str = "\
Exit status:
  0  no error (and with --strict no warning)
  1  at least one problem
  2  something could not be judged: an unreadable file, a command line that can't be understood

Examples:
  A folder, with what the installation knows:
    aura-whatsapp-operator validate --config config.yaml channels/
  What kustomize or Helm renders:
    kustomize build overlays/pro | aura-whatsapp-operator validate --namespace aura-es -
  In a GitHub workflow, with annotations beside the lines:
    aura-whatsapp-operator validate --output github --strict channels/
  What holds for a channel in the end:
    aura-whatsapp-operator validate --show-effective --config config.yaml channels/shop-es.yaml";

impl Validate {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        let sources = Sources::read(&self.paths);
        let mut unjudged = !sources.unreadable.is_empty();
        let (installation, mut before) =
            match self.config.as_ref().map(|path| (path, Installation::load(path))) {
                None => (None, Vec::new()),
                Some((_, Ok(installation))) => (Some(installation), Vec::new()),
                Some((path, Err(error))) => {
                    unjudged |= matches!(error, ConfigError::Read { .. });
                    (None, config_problems(&path.display().to_string(), &error))
                }
            };
        before.extend(sources.unreadable);
        let options = Options {
            namespace: &self.namespace,
            installation: installation.as_ref(),
            require_secrets: self.require_secrets,
        };
        let mut report = Validator::new()?.judge(&sources.read, options);
        report.add(before);
        self.print(&report, installation.as_ref())?;
        let failed = report.count(Severity::Error) > 0 || self.strict && !report.problems.is_empty();
        Ok(exit(failed, unjudged))
    }

    fn print(&self, report: &Report, installation: Option<&Installation>) -> io::Result<()> {
        let text = report.render(self.output, self.show_effective, installation);
        if !self.show_effective || self.output == Format::Json {
            return io::stdout().write_all(text.as_bytes());
        }
        for channel in &report.channels {
            let environment = channel.spec.as_ref().map(|spec| &spec.environment);
            let environment = environment.and_then(|name| installation?.environments.get(name));
            let yaml = channel.effective_yaml(environment.map(|it| &it.channel_defaults));
            io::stdout().write_all(yaml.as_bytes())?;
        }
        io::stderr().write_all(text.as_bytes())
    }
}
