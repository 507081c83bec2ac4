//! Measures the journal's parts on this machine's disk. What each figure means: docs/performance.md.
//!
//! ```console
//! cargo bench --bench journal -- --only ids
//! ```
//!
//! Nothing here asserts on time: a person judges.

#![allow(clippy::print_stdout, reason = "a report for a person at a terminal")]

mod ids;

use clap::{Parser, ValueEnum};

#[derive(Debug, Parser)]
#[command(about = "Measures the journal")]
struct Arguments {
    /// Only this
    #[arg(long, value_name = "WHAT")]
    only: Option<Only>,
    /// How many ids are remembered, in millions; measured at each of these numbers
    #[arg(long, value_name = "M", value_delimiter = ',', default_value = "1,10,50")]
    ids: Vec<u64>,
    /// Given by `cargo bench`; without it (under `cargo test --benches`) nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Ids,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing measured: run it with `cargo bench --bench journal`");
        return Ok(());
    }
    let wanted = |what| arguments.only.is_none_or(|only| only == what);
    if wanted(Only::Ids) {
        ids::measure(&arguments.ids)?;
    }
    Ok(())
}
