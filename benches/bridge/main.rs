//! Measures the bridge as a process of the release build, with the controller, a real API server and simulated Kernel
//! and Aura: what a channel's trouble does to its neighbour, and what channels take in memory. What each figure means:
//! docs/performance.md.
//!
//! ```console
//! cargo bench --bench bridge -- --only neighbour
//! ```
//!
//! Nothing here asserts on time: a person judges.

#![allow(clippy::print_stdout, reason = "a report for a person at a terminal")]

#[path = "../cluster.rs"]
mod cluster;
#[path = "../figures.rs"]
#[allow(dead_code, reason = "each measurement uses its part of it")]
mod figures;
#[path = "../controller/load.rs"]
mod load;
mod memory;
mod neighbour;
mod world;

use anyhow::Context as _;
use clap::{Parser, ValueEnum};

use self::{figures::Table, world::World};

#[derive(Debug, Parser)]
#[command(about = "Measures the bridge")]
struct Arguments {
    /// Only this
    #[arg(long, value_name = "WHAT")]
    only: Option<Only>,
    /// How long each phase lasts, in seconds
    #[arg(long, value_name = "S", default_value_t = 10)]
    seconds: u64,
    /// How often each kind of phase is gone through
    #[arg(long, value_name = "N", default_value_t = 5)]
    rounds: u64,
    /// Messages a second of the channel that is measured: a channel has up to 80
    #[arg(long, value_name = "N", default_value_t = 80)]
    rate: u64,
    /// Messages a second of its neighbour while that floods
    #[arg(long, value_name = "N", default_value_t = 300)]
    flood: u64,
    /// How many channels memory is measured with
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    channels: usize,
    /// Given by `cargo bench`; without it (under `cargo test --benches`) nothing is measured
    #[arg(long, hide = true)]
    bench: bool,
}

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Only {
    Neighbour,
    Memory,
}

fn main() -> anyhow::Result<()> {
    let arguments = Arguments::parse();
    if !arguments.bench {
        println!("nothing measured: run it with `cargo bench --bench bridge`");
        return Ok(());
    }
    tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("can't start the runtime")?
        .block_on(measure(&arguments))
}

async fn measure(arguments: &Arguments) -> anyhow::Result<()> {
    let wanted = |what| arguments.only.is_none_or(|only| only == what);
    let mut table = Table::default();
    let mut world = World::start().await?;
    if wanted(Only::Neighbour) {
        neighbour::measure(&mut world, arguments, &mut table).await?;
    }
    if wanted(Only::Memory) {
        memory::measure(&mut world, arguments, &mut table).await?;
    }
    println!("{table}");
    world.shutdown().await
}
