//! Measures the journal's parts on this machine's disk. What each figure means: docs/performance.md.
//!
//! ```console
//! cargo bench --bench journal -- --only ids
//! ```
//!
//! Nothing here asserts on time: a person judges.

#![allow(clippy::print_stdout, reason = "a report for a person at a terminal")]

#[path = "../figures.rs"]
#[allow(dead_code, reason = "each measurement uses its part of it")]
mod figures;
mod ids;
mod log;

use std::path::PathBuf;

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
    /// How many of them come in a second
    #[arg(long, value_name = "N", default_value_t = 80)]
    ids_per_second: u64,
    /// How long each phase of the log lasts, in seconds
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// How long the log runs before that, in seconds: until it writes segments again instead of making new ones
    #[arg(long, value_name = "S", default_value_t = 30)]
    warm_seconds: u64,
    /// How long the log is watched for stalls, in seconds
    #[arg(long, value_name = "S", default_value_t = 180)]
    stall_seconds: u64,
    /// How many messages are queued
    #[arg(long, value_name = "N", default_value_t = 1_000_000)]
    queued: u64,
    /// The directory whose disk is measured
    #[arg(long, value_name = "DIR", default_value = "target")]
    dir: PathBuf,
    /// Given by `cargo bench`; without it (under `cargo test --benches`) nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Ids,
    Log,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing measured: run it with `cargo bench --bench journal`");
        return Ok(());
    }
    let wanted = |what| arguments.only.is_none_or(|only| only == what);
    if wanted(Only::Ids) {
        ids::measure(&arguments.ids, arguments.ids_per_second.max(1))?;
    }
    if wanted(Only::Log) {
        let ids = arguments.ids.last().copied().unwrap_or_default();
        let extent = log::Extent {
            seconds: arguments.seconds,
            warm_seconds: arguments.warm_seconds,
            stall_seconds: arguments.stall_seconds,
            queued: arguments.queued,
            ids,
        };
        let table = log::measure(&arguments.dir, &extent)?;
        println!("{table}");
    }
    Ok(())
}
