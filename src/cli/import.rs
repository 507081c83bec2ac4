//! `import`: wires the making of manifests of Aura's channel documents.

use std::process::ExitCode;

use clap::Args;

#[derive(Debug, Args)]
pub(super) struct Import {}

impl Import {
    #[allow(clippy::unused_self)]
    pub(super) fn run(self) -> anyhow::Result<ExitCode> {
        Ok(ExitCode::SUCCESS)
    }
}
