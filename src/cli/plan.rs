//! `plan`: wires the look at what would be registered, changed or refused.

use std::{
    io::{self, IsTerminal, Write},
    path::PathBuf,
    time::Instant,
};

use anyhow::bail;
use clap::Args;

use super::{
    around::Around,
    output::{FOUND, NOT_JUDGED, Output, print},
    progress::Progress,
    runtime,
    sources::Sources,
};
use crate::{
    http,
    plan::{self, Manifests, PlanError, Request},
    validate::{self, Format},
};

/// There are changes, with `--detailed-exit-code`.
const CHANGES: u8 = 3;

const EXAMPLES: &str = "\
Signs: + is created or registered, ~ changes, = stays as it is, ! is refused, ? could not be judged.

Exit status:
  0  nothing is refused (also if there are changes)
  1  something is refused, or the manifests or the configuration are not valid
  2  something could not be judged: Kernel or the cluster does not answer, a right is missing
  3  with --detailed-exit-code: nothing is refused, and there are changes

Examples:
  What would the controller do now about the channels of a namespace?
    aura-whatsapp-operator plan -n aura-es
  What would change if these manifests were applied?
    aura-whatsapp-operator plan --config config.yaml channels/
  The same for what kustomize renders, in a pipeline:
    kustomize build overlays/pro | aura-whatsapp-operator plan --detailed-exit-code --output json -
  Without a call to Kernel:
    aura-whatsapp-operator plan -A --no-kernel";

#[derive(Debug, Args)]
#[command(after_long_help = EXAMPLES)]
#[allow(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
pub(super) struct Plan {
    /// Manifests to lay over the cluster: files, folders, or - for standard input; without them the channels as they are
    #[arg(value_name = "FILE|DIR|-")]
    paths: Vec<PathBuf>,
    /// The namespace, also of manifests that name none; without it the kubeconfig's own
    #[arg(short, long, value_name = "NAME")]
    namespace: Option<String>,
    /// The channels of the whole cluster
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Also name the channels that are in the cluster and not among the files
    #[arg(long, requires = "paths")]
    show_unmanaged: bool,
    #[command(flatten)]
    around: Around,
    /// Make no call to Kernel, and say what can be said without
    #[arg(long)]
    no_kernel: bool,
    /// How many channels are looked at at once; Kernel is called no more often than the environment allows the controller
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u8).range(1..=64))]
    concurrency: u8,
    /// End with 3 if there are changes
    #[arg(long)]
    detailed_exit_code: bool,
    /// What the plan looks like
    #[arg(short, long, value_enum, default_value_t)]
    output: Output,
}

impl Plan {
    pub(super) fn run(self) -> anyhow::Result<u8> {
        http::install_tls_provider();
        let manifests = self.manifests()?;
        let request = Request {
            kubeconfig: self.around.kubeconfig.clone(),
            namespace: self.namespace,
            all_namespaces: self.all_namespaces,
            manifests,
            unmanaged: self.show_unmanaged,
            config: self.around.source(),
            release_namespace: self.around.release_namespace.clone(),
            installation_key: self.around.installation_key_secret.clone(),
            ask_kernel: !self.no_kernel,
            concurrency: usize::from(self.concurrency),
        };
        let stderr = io::stderr();
        let watched = stderr.is_terminal();
        let mut line = Progress::new(stderr, watched, Instant::now());
        let planned = runtime()?.block_on(plan::run(&request, |done, total| {
            line.show(done, total, Instant::now());
        }));
        line.end();
        let (report, judged) = match planned {
            Ok(planned) => planned,
            Err(PlanError::Invalid(report)) => {
                tell(&report)?;
                return Ok(FOUND);
            }
            Err(error @ PlanError::Configuration(_)) => {
                writeln!(io::stderr(), "error: {error}")?;
                return Ok(FOUND);
            }
            Err(error @ PlanError::NotJudged(_)) => {
                writeln!(io::stderr(), "error: {error}")?;
                return Ok(NOT_JUDGED);
            }
        };
        if let Some(judged) = judged.filter(|judged| !judged.problems.is_empty()) {
            tell(&judged)?;
        }
        let code = report.exit_code(if self.detailed_exit_code { CHANGES } else { 0 });
        print(self.output, &report.human(), &report.json(code))?;
        Ok(code)
    }

    fn manifests(&self) -> anyhow::Result<Option<Manifests>> {
        if self.paths.is_empty() {
            return Ok(None);
        }
        let sources = Sources::read(&self.paths);
        if let Some(problem) = sources.unreadable.first() {
            bail!("{}: {}", problem.file, problem.message);
        }
        Ok(Some(Manifests(sources.read)))
    }
}

/// What `validate` says of the manifests.
fn tell(report: &validate::Report) -> io::Result<()> {
    io::stderr().write_all(report.render(Format::Human, false, None).as_bytes())
}
