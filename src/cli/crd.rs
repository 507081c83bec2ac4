//! `crd`: prints the definition of the resource.

use std::io::Write;

use crate::api::crd;

pub(super) fn run() -> anyhow::Result<()> {
    std::io::stdout().write_all(crd::yaml()?.as_bytes())?;
    Ok(())
}
